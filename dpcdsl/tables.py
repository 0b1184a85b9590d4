"""Cells as rows of a table, with what they cost: CSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from dpcdsl.cost import TABLE_1_FEATURES, TABLE_1_SIZE, cost
from dpcdsl.enumeration import Enumerator, fits_64_bits
from dpcdsl.errors import DpcError
from dpcdsl.files import writing
from dpcdsl.layers import Conventions, Size

__all__ = ["COLUMNS", "SUFFIXES", "export", "rows"]

#: The endings of files that :func:`export` writes.
SUFFIXES = (".csv", ".jsonl", ".parquet")

#: The columns, and what they hold.
COLUMNS = {
    "rank": "the cell's rank, a whole number; text in Parquet where the space has more than 2^64 cells",
    "cell": "the cell in one line",
    "vector": "two whole numbers for each branch of the space",
    "branches": "number of branches",
    "depth": "branches on the longest way from F",
    "params": "convolution weights",
    "madds": "multiply-adds for one image",
    "activation_bytes": "bytes of all maps that are written, for one image",
}

Row: TypeAlias = dict[str, Any]
_BATCH = 4096


def rows(
    cells: Enumerator,
    ranks: Iterable[int],
    *,
    features: int = TABLE_1_FEATURES,
    size: Size = TABLE_1_SIZE,
    conventions: Conventions | None = None,
) -> Iterator[Row]:
    """A row for each rank, with the columns :data:`COLUMNS`, lazily.

    features: channels of F; size: (height, width) of the map. Costs are those of :func:`dpcdsl.cost`.
    """
    for given in ranks:
        rank = cells.checked(given)
        choices = cells.choices(rank)
        cell = cells.cell(choices)
        price = cost(cell, features, size, **asdict(conventions or Conventions()))
        yield {
            "rank": rank,
            "cell": str(cell),
            "vector": [number for choice in choices for number in (choice or (-1, -1))],
            "branches": len(cell),
            "depth": cell.depth,
            "params": price.params,
            "madds": price.madds,
            "activation_bytes": price.activation_bytes,
        }


def export(path: str | Path, cells: Enumerator, ranks: Iterable[int], **options: Any) -> int:
    """Write the cells of these ranks to ``path``, whose ending says how; returns how many. See :func:`rows`.

    The file appears when it is whole. Raises :class:`DpcError` (DPC060) if it cannot be written, or for another ending.
    """
    path = Path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise DpcError.of(
            "DPC060",
            f"{path} cannot be written: its ending does not say how",
            hint=f"use one of {', '.join(SUFFIXES)}",
        )
    if writer is _parquet:
        _arrow()
    written = 0
    with writing(path) as file, writer(file, fits_64_bits(cells.count)) as write:
        source = rows(cells, ranks, **options)
        while batch := list(islice(source, _BATCH)):
            write(batch)
            written += len(batch)
    return written


@contextmanager
def _csv(file: BinaryIO, _: bool) -> Iterator[Callable[[list[Row]], None]]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    yield lambda batch: table.writerows({**row, "vector": json.dumps(row["vector"])} for row in batch)
    text.detach()


@contextmanager
def _json_lines(file: BinaryIO, _: bool) -> Iterator[Callable[[list[Row]], None]]:
    def write(batch: list[Row]) -> None:
        file.writelines(json.dumps(row).encode() + b"\n" for row in batch)

    yield write


@contextmanager
def _parquet(file: BinaryIO, small: bool) -> Iterator[Callable[[list[Row]], None]]:
    arrow = _arrow()
    from pyarrow import parquet

    types = {
        "rank": arrow.uint64() if small else arrow.string(),
        "cell": arrow.string(),
        "vector": arrow.list_(arrow.int32()),
        "branches": arrow.int32(),
        "depth": arrow.int32(),
        **dict.fromkeys(("params", "madds", "activation_bytes"), arrow.int64()),
    }
    schema = arrow.schema([arrow.field(name, types[name]) for name in COLUMNS])
    with parquet.ParquetWriter(file, schema) as table:

        def write(batch: list[Row]) -> None:
            if not small:
                batch = [{**row, "rank": str(row["rank"])} for row in batch]
            try:
                table.write_batch(arrow.RecordBatch.from_pylist(batch, schema))
            except (OverflowError, arrow.ArrowInvalid):
                raise DpcError.of(
                    "DPC060", "a number is too large for Parquet's 64 bits", hint="write .csv or .jsonl instead"
                ) from None

        yield write


def _arrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise DpcError.of("DPC060", "Parquet needs pyarrow", hint="pip install 'dpcdsl[parquet]'") from None
    return pa


_WRITERS = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}
