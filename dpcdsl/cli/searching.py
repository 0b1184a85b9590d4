"""``dpc search``: cells are proposed, scored and written down, and what was found is looked at."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from dpcdsl.cli.common import (
    cell_of,
    device_option,
    json_option,
    names,
    print_json,
    proxy_options,
    space_argument,
    space_of,
    where_option,
)
from dpcdsl.cli.searches import (
    fleet_options,
    grace_option,
    plugins,
    proxy_or_named,
    running,
    searching,
    storage_options,
    terms_of,
    watching,
)
from dpcdsl.errors import DpcError
from dpcdsl.explain import table
from dpcdsl.files import write_whole

if TYPE_CHECKING:
    from dpcdsl.cell import Cell
    from dpcdsl.search.objective import Objective
    from dpcdsl.search.storage import Seen
    from dpcdsl.search.study import Plan

F = TypeVar("F", bound=Callable[..., Any])

_OURS = ("near-best", "uniform", "evolution", "policy", "exhaustive")
_OPTUNAS = ("tpe", "nsga2", "gp")


class _Search(click.Group):
    """What is no command's name is a space to search."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("search", cls=_Search)
def search_command() -> None:
    """Search a SPACE for the best cells: `dpc search SPACE …`; its options are told by `dpc search run -h`.

    A study is kept in a database; the same command goes on where one has stopped.
    """


def _search_options(command: F) -> F:
    """What is searched for, and how: whoever works on a study says the same."""
    options: list[Callable[[Any], Any]] = [
        space_argument,
        where_option,
        click.option("--trials", type=click.IntRange(1), default=100, show_default=True, help="In all, over all runs."),
        click.option(
            "--objective",
            default="proxy",
            show_default=True,
            metavar="proxy|MODULE:FUNCTION",
            help="Of (cell, attempt); the larger the better.",
        ),
        click.option("--cache", metavar="DIR|URL", help="Of the proxy: see `dpc cache build`."),
        click.option(
            "--strategy",
            type=click.Choice([*_OURS, *_OPTUNAS]),
            default="near-best",
            show_default=True,
            help="Who proposes.",
        ),
        click.option("--uniform", type=float, help="Of near-best: the share of uniform samples."),
        click.option("--best", type=int, help="Of near-best: how many of the best have neighbours drawn."),
        click.option("--radius", type=int, help="Of near-best: how far a neighbour is at most."),
        click.option(
            "--minimize",
            type=click.Choice(["params", "madds"]),
            multiple=True,
            help="A cost to search for beside the score.",
        ),
        click.option("--first", multiple=True, metavar="CELL", shell_complete=names, help="Evaluate it before others."),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of proposals and evaluations."
        ),
        storage_options,
        proxy_options,
        device_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


class _Asked(NamedTuple):
    """A search, as the options tell it."""

    plan: Plan
    objective: Objective
    strategy: Any
    first: list[Cell]
    trials: int


def _asked(
    space: str,
    where: Sequence[str],
    trials: int,
    objective: str,
    cache: str | None,
    strategy: str,
    uniform: float | None,
    best: int | None,
    radius: int | None,
    minimize: tuple[str, ...],
    first: tuple[str, ...],
    seed: int,
    trains: str,
    held_out: str,
    device: str,
    **settings: Any,
) -> _Asked:
    with searching():
        from dpcdsl.search.objective import identity_of
        from dpcdsl.search.strategies import NearBest
        from dpcdsl.search.study import Plan

    chosen: Any = strategy
    asked: dict[str, Any] = {"uniform": uniform, "best": best, "radius": radius}
    if given := {key: value for key, value in asked.items() if value is not None}:
        if strategy != "near-best":
            raise DpcError.of("DPC062", f"--{next(iter(given))} is a setting of near-best, not of {strategy}")
        chosen = NearBest(**given)
    named = space_of(space, where)
    maximized, costs = proxy_or_named(objective, cache, trains, held_out, device, settings)
    plan = Plan.of(named.space, identity_of(maximized), named.name, minimize=minimize, seed=seed, **costs)
    cells = [cell_of(reference)[1] for reference in first]
    return _Asked(plan, maximized, chosen, cells, trials)


@search_command.command("run")
@_search_options
@fleet_options
@json_option
def run(
    workers: int,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    grace: float,
    storage: str,
    name: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Search SPACE until so many trials have ended; a study that is there already is gone on with.

    Ctrl-C ends it cleanly, and so does a kill, of a worker or of all: what was lost is run again.
    """
    asked = _asked(**options)
    from dpcdsl.search.driver import search

    with watching() as report:
        found = search(
            storage,
            asked.plan,
            asked.objective,
            asked.strategy,
            trials=asked.trials,
            name=name,
            first=asked.first,
            report=report,
            **running(workers, address, cpus, gpus, grace),
        )
    with found as study:
        _tell_best(study.best(5), as_json)


@search_command.command("worker")
@_search_options
@click.option(
    "--workers", type=click.IntRange(1), required=True, help="How many there are in all, on whatever machines."
)
@click.option(
    "--index",
    type=click.IntRange(0),
    required=True,
    envvar=["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"],
    show_envvar=True,
    help="Which of them this is, from 0.",
)
@grace_option
def worker(workers: int, index: int, grace: float, storage: str, name: str, **options: Any) -> None:
    """Work on a study as one of many, each begun by itself: a job of Slurm, or of Kubernetes.

    All are given the same options, but --index. The first to come begins the study. Ctrl-C and SIGTERM give up the
    trial at once, so that another runs it again.
    """
    if index >= workers:
        raise DpcError.of("DPC062", f"{workers} workers are numbered from 0 to {workers - 1}, not {index}")
    asked = _asked(**options)
    from dpcdsl.search.jobs import END_CODE, End, Job, serve
    from dpcdsl.search.study import SearchStudy, View

    end = End()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end.ask)
    with SearchStudy.begin(storage, asked.plan, name) as study:
        for cell in asked.first:
            study.enqueue(cell)
        count = View(study).updated().count
    terms = replace(terms_of(grace, asked.trials), asker=index, askers=workers, since=count)
    with suppress(KeyboardInterrupt):
        serve(Job(storage, name, asked.objective, asked.strategy, terms, plugins()), end)
    if end.asked:
        raise SystemExit(END_CODE)


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
