"""Tables of cells: the same rows in every format, whole or not at all."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dpcdsl
from dpcdsl import DpcError, cost, enumerator, export, parse_cell, read_space
from dpcdsl.enumeration import Enumerator
from dpcdsl.tables import COLUMNS, SUFFIXES, rows

STUDY = enumerator(read_space("aspp_subsets"))


def read(path: Path) -> list[dict[str, Any]]:
    """The table as JSON lines would have it."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return [{k: v if k == "cell" else json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cells{suffix}"
    assert export(path, STUDY, STUDY.walk(), features=2048, size=(33, 33)) == 31
    found = read(path)
    assert found == list(rows(STUDY, range(31), features=2048, size=(33, 33)))
    assert [list(row) for row in found] == [list(COLUMNS)] * 31
    assert [row["rank"] for row in found] == list(range(31))
    for row in found:
        cell = parse_cell(row["cell"])
        price = cost(cell, 2048, (33, 33))
        assert dpcdsl.from_vector(row["vector"], STUDY.space) == cell == STUDY.unrank(row["rank"])
        assert (row["branches"], row["depth"]) == (len(cell), cell.depth)
        assert (row["params"], row["madds"], row["activation_bytes"]) == (
            price.params,
            price.madds,
            price.activation_bytes,
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ranks_past_64_bits(tmp_path: Path, suffix: str) -> None:
    cells = enumerator(read_space("dpc(B=12)"))
    path = tmp_path / f"cells{suffix}"
    assert export(path, cells, [cells.count - 1, 0]) == 2
    assert [int(row["rank"]) for row in read(path)] == [cells.count - 1, 0]


def test_nothing_is_a_table_too(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"cells{suffix}"
        assert export(path, STUDY, []) == 0
        assert read(path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_that_breaks_off_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    def ranks() -> Iterator[int]:
        yield from range(10)
        raise KeyboardInterrupt

    path = tmp_path / f"cells{suffix}"
    path.write_text("what was there")
    with pytest.raises(KeyboardInterrupt):
        export(path, STUDY, ranks())
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(path.name, "what was there")]


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "cells.xlsx", tmp_path / "cells", tmp_path / "no" / "cells.csv", tmp_path):
        with pytest.raises(DpcError) as caught:
            export(path, STUDY, [0])
        assert caught.value.codes == ("DPC060",)
    dear = read_space("dpc(B=1)").model_copy(update={"filters": 65536})
    with pytest.raises(DpcError, match="too large for Parquet"):
        export(tmp_path / "a.parquet", enumerator(dear), [0], features=2**20, size=(2**20, 2**20))
    assert export(tmp_path / "a.csv", enumerator(dear), [0], features=2**20, size=(2**20, 2**20)) == 1
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DpcError, match="needs pyarrow") as caught:
        export(tmp_path / "b.parquet", STUDY, [0])
    assert "dpcdsl[parquet]" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_many_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """More rows than are held at once: the second thousand is asked for after the first is written."""
    path = tmp_path / "cells.jsonl"
    asked = 0

    def ranks(cells: Enumerator) -> Iterator[int]:
        nonlocal asked
        for rank in cells.sample_ranks(9000, 1).tolist():
            asked += 1
            if asked == 8500:
                (part,) = tmp_path.glob(".*.part")
                assert part.stat().st_size > 0
            yield rank

    cells = enumerator(read_space("dpc"))
    assert export(path, cells, ranks(cells)) == 9000
    assert len(path.read_text(encoding="utf-8").splitlines()) == 9000
