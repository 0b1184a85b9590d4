"""``dpc count``, ``sample``, ``enumerate``, ``rank``, ``unrank`` and ``neighbours``: a space, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpcdsl.cell import Cell
from dpcdsl.cli.common import (
    SHARD,
    SIZE,
    as_value,
    cell_argument,
    cell_of,
    conventions_of,
    conventions_options,
    form_option,
    json_option,
    names,
    print_json,
    progress,
    space_argument,
    space_of,
    tracked,
    where_option,
)
from dpcdsl.explain import spelled_histogram
from dpcdsl.identity import CellId, fingerprint, is_id, read_id
from dpcdsl.interchange import spell
from dpcdsl.layers import Conventions, Size
from dpcdsl.space import Space

if TYPE_CHECKING:
    from dpcdsl.enumeration import Enumerator

F = TypeVar("F", bound=Callable[..., Any])


def _what_counts(command: F) -> F:
    """Options that say which cells there are, and what counts as one."""
    for option in reversed(
        [
            where_option,
            click.option(
                "--up-to",
                type=click.Choice(["genome", "isomorphism", "function"]),
                default="genome",
                show_default=True,
                help="What counts as one: each choice; cells that differ in the order of branches alone; "
                "cells that are the same function at map size --at as well.",
            ),
            click.option("--at", type=SIZE, metavar="HxW", help="With --up-to function: size of the map."),
            conventions_options,
        ]
    ):
        command = option(command)
    return command


def _cells(space: Space, up_to: Any, at: Size | None, conventions: Conventions, *, costs: bool = False) -> Enumerator:
    """The cells that are asked about. costs: whether conventions are asked for elsewhere too."""
    from dpcdsl.enumeration import enumerator

    return enumerator(space, **_settings(up_to, at, conventions, costs=costs))


def _taken(how: dict[str, Any]) -> Conventions:
    """The conventions among a command's options, which are taken out."""
    return conventions_of(*map(how.pop, ("pooling", "output_stride", "image_pooling_crop_size")))


def _settings(up_to: Any, at: Size | None, conventions: Conventions, *, costs: bool = False) -> dict[str, Any]:
    if up_to == "function":
        return {"up_to": up_to, "at": at, "conventions": conventions}
    if conventions != Conventions() and not costs:
        raise click.UsageError("--pooling, --output-stride and the crop size go with --up-to function, or with -o")
    return {"up_to": up_to, "at": at}


def _writing(command: F) -> F:
    """Options of commands that write many cells."""
    for option in reversed(
        [
            form_option("line"),
            click.option(
                "-o",
                "--output",
                metavar="FILE",
                help="Write a table of the cells and their costs instead: .csv, .jsonl or .parquet.",
            ),
            click.option(
                "--features", type=int, default=320, show_default=True, metavar="C", help="With -o: channels of F."
            ),
            click.option(
                "--size",
                type=SIZE,
                default="65x129",
                show_default=True,
                metavar="HxW",
                help="With -o: size of the map.",
            ),
            json_option,
        ]
    ):
        command = option(command)
    return command


def _write(
    cells: Enumerator,
    ranks: Iterable[int],
    total: int,
    *,
    count: int,
    name: str,
    form: str,
    output: str | None,
    features: int,
    size: Size,
    as_json: bool,
    conventions: Conventions,
) -> None:
    shown = tracked(ranks, total, "writing")
    if output is not None:
        from dpcdsl.tables import export

        with progress():
            written = export(Path(output), cells, shown, features=features, size=size, conventions=conventions)
        if as_json:
            print_json({"file": output, "cells": written})
        else:
            click.echo(f"{output}: {written:,} cells", err=True)
        return

    def spelled(cell: Cell) -> str:
        return spell(cell, form, space=cells.space, space_name=name)

    with progress():
        if as_json:  # one object, written as it comes: there may be no end of cells
            click.echo(f'{{"count": {count}, "cells": [', nl=False)
            for number, rank in enumerate(shown):
                one = {"rank": rank, "cell": as_value(spelled(cells.unrank(rank)), form)}
                click.echo((", " if number else "") + json.dumps(one, ensure_ascii=False), nl=False)
            click.echo("]}")
            return
        for number, rank in enumerate(shown):
            click.echo("\n" * (form == "text" and number > 0) + spelled(cells.unrank(rank)))


@click.command("count")
@space_argument
@_what_counts
@click.option(
    "--histogram",
    metavar="MEASURE",
    help="The exact distribution of a measure, such as 'params(F=320)', over the whole space.",
)
@click.option("--bins", type=click.IntRange(1, 1000), default=20, show_default=True, help="Rows of the histogram.")
@json_option
def count_command(
    space: str,
    up_to: Any,
    at: Size | None,
    where: tuple[str, ...],
    histogram: str | None,
    bins: int,
    as_json: bool,
    **conventions: Any,
) -> None:
    """How many cells a space has, exactly."""
    from dpcdsl.enumeration import distribution
    from dpcdsl.syntax import parse_measure

    found = space_of(space, where)
    if histogram is None:
        with progress():
            number = _cells(found.space, up_to, at, conventions_of(**conventions)).count
        if as_json:
            print_json({"count": number})
        else:
            click.echo(f"{number:,}")
        return
    measure = parse_measure(histogram, found.scope, name="--histogram")
    with progress():
        settings = _settings(up_to, at, conventions_of(**conventions))
        values = {key[0]: number for key, number in distribution(found.space, measure, **settings).items()}
    if as_json:
        print_json({"count": sum(values.values()), "measure": str(measure), "histogram": list(values.items())})
        return
    click.echo(f"{sum(values.values()):,} cells, {len(values):,} value{'s' * (len(values) != 1)} of {measure}\n")
    if values:
        click.echo(spelled_histogram(values, bins, str(measure)))


@click.command("sample")
@space_argument
@click.option("-n", "n", type=click.IntRange(0), default=1, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same sample.")
@click.option("--without-replacement", is_flag=True, help="No cell twice.")
@click.option("--shard", type=SHARD, metavar="I/N", help="Part I (from 0) of N of one sample without replacement.")
@_what_counts
@_writing
def sample_command(
    space: str,
    n: int,
    seed: int,
    without_replacement: bool,
    shard: tuple[int, int] | None,
    where: tuple[str, ...],
    up_to: Any,
    at: Size | None,
    **how: Any,
) -> None:
    """Draw cells uniformly, one per line."""
    found = space_of(space, where)
    conventions = _taken(how)
    with progress():
        cells = _cells(found.space, up_to, at, conventions, costs=how["output"] is not None)
        replacement = not without_replacement and shard is None
        ranks = cells.draws(n, seed, replacement=replacement, shard=shard or (0, 1))
    _write(cells, ranks, n, count=cells.count, name=found.name, conventions=conventions, **how)


@click.command("enumerate")
@space_argument
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first rank (or place).")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="Stop after N cells.")
@click.option("--shard", type=SHARD, default="0/1", metavar="I/N", help="Part I (from 0) of N disjoint parts.")
@click.option("--shuffle", type=click.IntRange(0), metavar="SEED", help="In an order permuted by this seed.")
@_what_counts
@_writing
def enumerate_command(
    space: str,
    start: int,
    limit: int | None,
    shard: tuple[int, int],
    shuffle: int | None,
    where: tuple[str, ...],
    up_to: Any,
    at: Size | None,
    **how: Any,
) -> None:
    """Go through the cells in order, one per line."""
    found = space_of(space, where)
    conventions = _taken(how)
    with progress():
        cells = _cells(found.space, up_to, at, conventions, costs=how["output"] is not None)
    ranks = cells.walk(start, shard=shard, shuffle=shuffle)
    left = max(0, -(-(cells.count - start - shard[0]) // shard[1]))
    total = left if limit is None else min(limit, left)
    some = ranks if limit is None else islice(ranks, limit)
    _write(cells, some, total, count=cells.count, name=found.name, conventions=conventions, **how)


def _space_for(reference: str, cell: Cell, space: str | None, where: tuple[str, ...]) -> tuple[str, Space]:
    """The space that is named, else that of an ID, else the paper's."""
    named = read_id(reference).space if is_id(reference) else ""
    paper = "dpc" if len(cell) == 5 else f"dpc(B={len(cell)})"
    found = space_of(space or named or paper, where)
    return found.name, found.space


space_option = click.option(
    "--space",
    metavar="SPACE",
    shell_complete=names,
    help="The space; default that of an ID, else the paper's with as many branches as the cell.",
)


@click.command("rank")
@cell_argument
@space_option
@_what_counts
@json_option
def rank_command(
    cell: str,
    space: str | None,
    where: tuple[str, ...],
    up_to: Any,
    at: Size | None,
    as_json: bool,
    **conventions: Any,
) -> None:
    """The number of a cell in the order of its space, from 0."""
    _, value = cell_of(cell, space)
    name, inside = _space_for(cell, value, space, where)
    with progress():
        cells = _cells(inside, up_to, at, conventions_of(**conventions))
        rank = cells.rank(value)
    if not as_json:
        click.echo(rank)
        return
    told = {"rank": rank, "count": cells.count, "space": name}
    print_json({**told, "id": str(CellId(name, fingerprint(inside), rank))} if up_to == "genome" else told)


@click.command("unrank", context_settings={"ignore_unknown_options": True})  # -1 is a wrong rank, not an option
@space_argument
@click.argument("rank", metavar="RANK", type=click.IntRange(0))
@_what_counts
@form_option("line")
@json_option
def unrank_command(
    space: str,
    rank: int,
    where: tuple[str, ...],
    up_to: Any,
    at: Size | None,
    form: str,
    as_json: bool,
    **conventions: Any,
) -> None:
    """The cell of a number; the inverse of rank."""
    found = space_of(space, where)
    with progress():
        cell = _cells(found.space, up_to, at, conventions_of(**conventions)).unrank(rank)
    text = spell(cell, form, space=found.space, space_name=found.name)
    if as_json:
        print_json({"rank": rank, "cell": as_value(text, form)})
    else:
        click.echo(text)


@click.command("neighbours")
@cell_argument
@space_option
@click.option("--radius", type=click.IntRange(1), default=1, show_default=True, help="Largest distance.")
@click.option("--count", "only_count", is_flag=True, help="Only say how many there are.")
@click.option("--sample", "n", type=click.IntRange(0), metavar="N", help="Draw N of them uniformly.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="For --sample.")
@where_option
@conventions_options
@_writing
def neighbours_command(
    cell: str,
    space: str | None,
    radius: int,
    only_count: bool,
    n: int | None,
    seed: int,
    where: tuple[str, ...],
    as_json: bool,
    **how: Any,
) -> None:
    """The cells that differ from one in at most --radius inputs and operators, one per line."""
    from dpcdsl.enumeration import enumerator
    from dpcdsl.neighbourhood import neighbours

    _, value = cell_of(cell, space)
    name, inside = _space_for(cell, value, space, where)
    with progress():
        near = neighbours(value, inside, radius)
        count = near.count
    if only_count and n is not None:
        raise click.UsageError("--count says how many there are, --sample draws some of them; give one of the two")
    if only_count:
        if as_json:
            print_json({"count": count})
        else:
            click.echo(f"{count:,}")
        return
    whole = enumerator(inside)
    found = map(near.unrank, near.walk() if n is None else near.draws(n, seed))
    conventions = _taken(how)
    total = count if n is None else n
    ranks = map(whole.rank, found)
    _write(whole, ranks, total, count=count, name=name, as_json=as_json, conventions=conventions, **how)
