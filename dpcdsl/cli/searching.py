"""``dpc search``: cells are proposed, scored and written down, and what was found is looked at."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpcdsl.cli.common import (
    cell_of,
    device_option,
    json_option,
    load_plugins,
    names,
    print_json,
    proxy_options,
    segmentation,
    space_argument,
    space_of,
    where_option,
)
from dpcdsl.errors import DpcError
from dpcdsl.explain import table
from dpcdsl.files import write_whole
from dpcdsl.layers import Size

if TYPE_CHECKING:
    from dpcdsl.search.driver import SearchProgress
    from dpcdsl.search.objective import Objective
    from dpcdsl.search.storage import Seen

_OURS = ("near-best", "uniform", "evolution", "policy", "exhaustive")
_OPTUNAS = ("tpe", "nsga2", "gp")
_SPOKEN = 10.0  # seconds between two lines where there is no terminal


class _Search(click.Group):
    """What is no command's name is a space to search."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@contextmanager
def searching() -> Iterator[None]:
    """To import what needs Optuna within."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DpcError.of("DPC098", f"the search needs {error.name}", hint="pip install 'dpcdsl[search]'") from None


@click.group("search", cls=_Search)
def search_command() -> None:
    """Search a SPACE for the best cells: `dpc search SPACE …`; its options are told by `dpc search run -h`.

    A study is kept in a database; the same command goes on where one has stopped.
    """


def storage_options(command: Any) -> Any:
    for option in (
        click.option("--name", default="search", show_default=True, help="Of the study, of which a storage has many."),
        click.option(
            "--storage", default="search.db", show_default=True, metavar="FILE|URL", help="SQLite, or any URL."
        ),
    ):
        command = option(command)
    return command


@search_command.command("run")
@space_argument
@where_option
@click.option("--trials", type=click.IntRange(1), default=100, show_default=True, help="In all, over all runs.")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes.")
@click.option(
    "--objective",
    default="proxy",
    show_default=True,
    metavar="proxy|MODULE:FUNCTION",
    help="Of (cell, attempt); the larger the better.",
)
@click.option("--cache", metavar="DIR", type=click.Path(path_type=Path), help="Of the proxy: see `dpc cache build`.")
@click.option(
    "--strategy", type=click.Choice([*_OURS, *_OPTUNAS]), default="near-best", show_default=True, help="Who proposes."
)
@click.option("--uniform", type=float, help="Of near-best: the share of uniform samples.")
@click.option("--best", type=int, help="Of near-best: how many of the best have neighbours drawn.")
@click.option("--radius", type=int, help="Of near-best: how far a neighbour is at most.")
@click.option(
    "--minimize", type=click.Choice(["params", "madds"]), multiple=True, help="A cost to search for beside the score."
)
@click.option("--first", multiple=True, metavar="CELL", shell_complete=names, help="Evaluate it before others.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of proposals and evaluations.")
@click.option(
    "--grace", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds until a worker counts as dead."
)
@storage_options
@proxy_options
@device_option
@json_option
def run(
    space: str,
    where: Sequence[str],
    trials: int,
    workers: int,
    objective: str,
    cache: Path | None,
    strategy: str,
    uniform: float | None,
    best: int | None,
    radius: int | None,
    minimize: tuple[str, ...],
    first: tuple[str, ...],
    seed: int,
    grace: float,
    storage: str,
    name: str,
    trains: str,
    held_out: str,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search SPACE until so many trials have ended; a study that is there already is gone on with.

    Ctrl-C ends it cleanly, and so does a kill, of a worker or of all: what was lost is run again.
    """
    with searching():
        from dpcdsl.search.driver import search
        from dpcdsl.search.objective import identity_of
        from dpcdsl.search.strategies import NearBest
        from dpcdsl.search.study import Plan
        from dpcdsl.search.worker import Terms

    chosen: Any = strategy
    asked: dict[str, Any] = {"uniform": uniform, "best": best, "radius": radius}
    if given := {key: value for key, value in asked.items() if value is not None}:
        if strategy != "near-best":
            raise DpcError.of("DPC062", f"--{next(iter(given))} is a setting of near-best, not of {strategy}")
        chosen = NearBest(**given)
    named = space_of(space, where)
    maximized, costs = _objective(objective, cache, trains, held_out, device, settings)
    plan = Plan.of(named.space, identity_of(maximized), named.name, minimize=minimize, seed=seed, **costs)
    cells = [cell_of(reference)[1] for reference in first]
    terms = Terms(trials, interval=min(10.0, grace / 3), grace=grace)
    with _watching() as report:
        found = search(
            storage,
            plan,
            maximized,
            chosen,
            trials=trials,
            workers=workers,
            name=name,
            first=cells,
            terms=terms,
            prepare=partial(load_plugins, click.get_current_context().find_root().params["plugins"]),
            report=report,
        )
    with found as study:
        _tell_best(study.best(5), as_json)


def _objective(
    reference: str, cache: Path | None, trains: str, held_out: str, device: str, settings: dict[str, Any]
) -> tuple[Objective, dict[str, Any]]:
    """What is maximized, and on which map costs are counted."""
    from dpcdsl.search.objective import NamedObjective

    if reference != "proxy":
        return NamedObjective(reference), {}
    if cache is None:
        raise DpcError.of("DPC062", "the proxy needs --cache", hint="keep features with `dpc cache build` first")
    with segmentation():
        from dpcdsl.segmentation.objective import ProxyObjective
        from dpcdsl.segmentation.proxy_task import ProxySettings

    found = ProxyObjective(cache.absolute() / trains, cache.absolute() / held_out, ProxySettings(**settings), device)
    facts = found.caches[0].facts
    stride = facts.model.output_stride
    size: Size = ((facts.model.crop[0] - 1) // stride + 1, (facts.model.crop[1] - 1) // stride + 1)
    return found, {"features": facts.channels, "size": size}


@contextmanager
def _watching() -> Iterator[Callable[[SearchProgress], None]]:
    """A table on a terminal, and a line now and then elsewhere, both on standard error."""
    if not sys.stderr.isatty():
        spoken = time.monotonic()

        def line(progress: SearchProgress) -> None:
            nonlocal spoken
            if time.monotonic() - spoken >= _SPOKEN:
                spoken = time.monotonic()
                click.echo(_in_words(progress), err=True)

        yield line
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:

        def show(progress: SearchProgress) -> None:
            shown = Table(show_header=False, box=None)
            for key, value in _facts(progress):
                shown.add_row(key, value)
            live.update(shown)

        yield show


def _facts(progress: SearchProgress) -> list[tuple[str, str]]:
    left = (progress.trials - progress.finished) / progress.rate if progress.rate else None
    rows = [
        ("trials", f"{progress.finished:,} of {progress.trials:,}, {progress.running} running"),
        ("rate", f"{60 * progress.rate:,.1f} a minute" + ("" if left is None else f", {left:,.0f} s left")),
    ]
    if progress.best is not None and progress.best.record is not None and progress.best.record.scores is not None:
        rows.append(("best", f"{progress.best.record.scores['score']:.4f} in trial {progress.best.number}"))
        rows.append(("", progress.best.record.cell))
    rows += [("failed", f"{count} times: {reason}") for reason, count in progress.failures.items()]
    return rows


def _in_words(progress: SearchProgress) -> str:
    return "; ".join(f"{key} {value}" for key, value in _facts(progress) if key)


@search_command.command("status")
@storage_options
@json_option
def status(storage: str, name: str, as_json: bool) -> None:
    """How far a study is."""
    with searching():
        from dpcdsl.search.study import SearchStudy, View

    with SearchStudy.open(storage, name) as study:
        view = View(study).updated()
    states: dict[str, int] = {}
    for seen in view.unfinished.values():
        states[seen.state.name.lower()] = states.get(seen.state.name.lower(), 0) + 1
    found = {
        "study": name,
        "space": study.plan.space,
        "objective": study.plan.objective,
        "seed": study.plan.seed,
        "finished": view.finished,
        "complete": view.complete,
        "failed": view.finished - view.complete,
        "running": states.get("running", 0),
        "waiting": states.get("waiting", 0) + len(view.lost()),
        "failures": dict(view.failures),
        "best": view.best[0] if view.best else None,
    }
    if as_json:
        print_json(found)
        return
    found["objective"] = json.dumps(found["objective"], ensure_ascii=False)
    found["failures"] = "; ".join(f"{count} times {reason}" for reason, count in view.failures.items()) or "none"
    click.echo(table([["", ""], *([key, "" if value is None else str(value)] for key, value in found.items())]))


@search_command.command("best")
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True)
@storage_options
@json_option
def best_command(count: int, storage: str, name: str, as_json: bool) -> None:
    """The best cells; with several scores, those that the fewest others beat."""
    with searching():
        from dpcdsl.search.study import SearchStudy

    with SearchStudy.open(storage, name) as study:
        _tell_best(study.best(count), as_json)


def _tell_best(trials: list[Seen], as_json: bool) -> None:
    if as_json:
        print_json([_row(seen) for seen in trials])
        return
    rows = [["trial", "score", "params", "madds", "cell"]]
    for seen in trials:
        row = _row(seen)
        rows.append([str(row["number"]), f"{row['score']:.4f}", f"{row['params']:,}", f"{row['madds']:,}", row["cell"]])
    click.echo(table(rows, right=(0, 1, 2, 3)))


@search_command.command("export")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help=".json, .csv or .parquet.")
@storage_options
def export(out: Path, storage: str, name: str) -> None:
    """Write all trials as a table."""
    with searching():
        from dpcdsl.search.study import SearchStudy

    kind = out.suffix.lower()
    if kind not in (".json", ".csv", ".parquet"):
        raise DpcError.of("DPC062", f"{out.name} is no .json, .csv or .parquet")
    with SearchStudy.open(storage, name) as study:
        rows = [_row(seen) for seen in study.records()]
    if kind == ".json":
        write_whole(out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    elif kind == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({key: _flat(value) for key, value in row.items()} for row in rows)
        write_whole(out, text.getvalue())
    else:
        _write_parquet(out, rows)
    click.echo(f"{out}: {len(rows):,} trials")


def _write_parquet(out: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DpcError.of("DPC060", "Parquet needs pyarrow", hint="pip install 'dpcdsl[parquet]'") from None
    buffer = io.BytesIO()
    flat = [{key: _flat(value) for key, value in row.items()} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), buffer)
    write_whole(out, buffer.getvalue())


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _row(seen: Seen) -> dict[str, Any]:
    """A trial for people and programs: the same keys for each."""
    record = seen.record
    row: dict[str, Any] = {"number": seen.number, "state": seen.state.name.lower()}
    for key in ("cell", "id", "canonical", "seed", "asker", "first", "attempt", "seconds"):
        row[key] = getattr(record, key, None)
    row["score"] = (record.scores or {}).get("score") if record else None
    row |= {name: record.costs[name] if record else None for name in ("params", "madds")}
    for key in ("failure", "withdrawn", "reused", "environment", "notes"):
        row[key] = getattr(record, key, None)
    return row
