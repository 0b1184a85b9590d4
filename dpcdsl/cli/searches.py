"""What the commands of searches share: where studies are, where workers run, what is scored, and what is shown."""

from __future__ import annotations

import inspect
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpcdsl.cli.common import load_plugins, segmentation
from dpcdsl.cli.training import described
from dpcdsl.errors import DpcError, shown
from dpcdsl.files import read_text
from dpcdsl.layers import Size

if TYPE_CHECKING:
    from dpcdsl.search.driver import SearchProgress
    from dpcdsl.search.fleet import Fleet
    from dpcdsl.search.objective import Objective
    from dpcdsl.search.worker import Terms
    from dpcdsl.segmentation.objective import ProxyObjective, TrainingObjective

__all__ = [
    "fleet_options",
    "grace_option",
    "name_option",
    "plugins",
    "proxy_or_named",
    "running",
    "searching",
    "storage_option",
    "storage_options",
    "terms_of",
    "training_objective",
    "watching",
    "ways_of",
]

F = TypeVar("F", bound=Callable[..., Any])

_SPOKEN = 10.0  # seconds between two lines where there is no terminal


@contextmanager
def searching() -> Iterator[None]:
    """To import what needs Optuna within."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DpcError.of("DPC098", f"the search needs {error.name}", hint="pip install 'dpcdsl[search]'") from None


def storage_options(command: F) -> F:
    """Where a study is: its name, and its storage's."""
    return storage_option(name_option("search")(command))


def name_option(default: str) -> Callable[[F], F]:
    return click.option("--name", default=default, show_default=True, help="Of the study, of which a storage has many.")


storage_option = click.option(
    "--storage", default="search.db", show_default=True, metavar="FILE|URL", help="SQLite, or any URL."
)


def fleet_options(command: F) -> F:
    """How many workers, where they run, and when they count as dead: for :func:`running`."""
    for option in reversed(
        [
            click.option(
                "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="How many work at once."
            ),
            click.option(
                "--ray",
                "address",
                metavar="ADDRESS|auto|local",
                help="They run on a Ray cluster; by default they are processes of this machine.",
            ),
            click.option(
                "--cpus",
                type=click.FloatRange(0, min_open=True),
                help="Of a node of the cluster, for each; 1 by default.",
            ),
            click.option("--gpus", type=click.FloatRange(0), help="Of a node of the cluster, for each; 0 by default."),
            grace_option,
        ]
    ):
        command = option(command)
    return command


grace_option = click.option(
    "--grace",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Seconds until a worker counts as dead.",
)


def terms_of(grace: float, trials: int = 1) -> Terms:
    """trials: those of a search are its own."""
    from dpcdsl.search.worker import Terms

    return Terms(trials, interval=min(10.0, grace / 3), grace=grace)


def running(workers: int, address: str | None, cpus: float | None, gpus: float | None, grace: float) -> dict[str, Any]:
    """How a search is run, as options of its function."""
    fleet = _fleet(address, cpus, gpus)
    return {"workers": workers, "terms": terms_of(grace), "fleet": fleet, "prepare": plugins()}


def _fleet(address: str | None, cpus: float | None, gpus: float | None) -> Fleet | None:
    if address is None:
        if cpus is not None or gpus is not None:
            raise DpcError.of("DPC062", "--cpus and --gpus are of a node of a cluster: they go with --ray")
        return None
    try:
        from dpcdsl.search.ray_fleet import RayFleet
    except ModuleNotFoundError:
        raise DpcError.of("DPC099", "a cluster needs Ray", hint="pip install 'dpcdsl[cluster]'") from None
    return RayFleet(address, 1 if cpus is None else cpus, gpus or 0)


def plugins() -> Callable[[], object]:
    """What each worker imports first."""
    return partial(load_plugins, click.get_current_context().find_root().params["plugins"])


def proxy_or_named(
    reference: str, cache: str | None, trains: str, held_out: str, device: str, settings: dict[str, Any]
) -> tuple[Objective, dict[str, Any]]:
    """What is maximized, and on which map costs are counted."""
    from dpcdsl.search.objective import NamedObjective

    if reference != "proxy":
        return NamedObjective(reference), {}
    if cache is None:
        raise DpcError.of("DPC062", "the proxy needs --cache", hint="keep features with `dpc cache build` first")
    found = _proxy(cache, train=trains, held_out=held_out, device=device, **settings)
    facts = found.caches[0].facts
    stride = facts.model.output_stride
    size: Size = ((facts.model.crop[0] - 1) // stride + 1, (facts.model.crop[1] - 1) // stride + 1)
    return found, {"features": facts.channels, "size": size}


def _proxy(
    cache: str, *, train: str = "train", held_out: str = "val", device: str = "auto", **settings: Any
) -> ProxyObjective:
    with segmentation():
        from dpcdsl.segmentation.objective import ProxyObjective
        from dpcdsl.segmentation.proxy_task import ProxySettings

    folder = cache.rstrip("/") if "://" in cache else str(Path(cache).absolute())
    return ProxyObjective(f"{folder}/{train}", f"{folder}/{held_out}", ProxySettings(**settings), device)


def training_objective(
    data: str,
    out: str,
    *,
    train: str = "train",
    held_out: str = "val",
    weights: str | None = None,
    device: str = "auto",
    readers: int = 0,
    save_every: int = 1000,
    **options: Any,
) -> TrainingObjective:
    """The whole model. data: the data set's folder; out: of the checkpoints. options: of :func:`described`."""
    with segmentation():
        from dpcdsl.segmentation.datasets import open_data
        from dpcdsl.segmentation.objective import TrainingObjective

    root = str(Path(data).absolute())
    if weights is not None and weights != "timm":
        weights = str(Path(weights).absolute())
    splits = open_data(root, train), open_data(root, held_out)
    description, settings = described(splits[0].labels, weights=weights, **options)
    return TrainingObjective(*splits, description, settings, Path(out).absolute(), weights, device, readers, save_every)


def ways_of(path: Path) -> dict[str, Objective]:
    """Objectives from a TOML file: a table for each, with its name, and the options of `dpc proxy` or `dpc train`."""
    try:
        tables = tomllib.loads(read_text(path, _LARGEST).text)
    except tomllib.TOMLDecodeError as error:
        raise DpcError.of("DPC062", f"this is no TOML: {error}", place=str(path)) from None
    found = {}
    for name, table in tables.items():
        place = f"{path}: [{name}]"
        if not isinstance(table, dict):
            raise DpcError.of("DPC062", f"{name} is no table", place=str(path), hint=f"begin one with [{name}]")
        if not name or not all(character.isalnum() or character in "-_ " for character in name):
            raise DpcError.of("DPC062", "this is no name of a way", place=place, hint="letters, digits, - and _")
        found[name] = _way(place, dict(table))
    if len(found) < 2:
        raise DpcError.of("DPC062", "there is nothing to compare", place=str(path), hint="give two tables or more")
    return found


_LARGEST = 2**20  # characters of such a file


def _way(place: str, table: dict[str, Any]) -> Objective:
    from dpcdsl.search.objective import NamedObjective

    kind = table.pop("objective", None)
    if kind == "proxy":
        with segmentation():
            from dpcdsl.segmentation.proxy_task import ProxySettings
        make: Callable[..., Objective] = _proxy
        known = {*_names(_proxy), *ProxySettings.model_fields} - {"seed"}
    elif kind == "training":
        with segmentation():
            from dpcdsl.segmentation.training import TrainingSettings
        make = training_objective
        known = {*_names(training_objective), *_names(described), *TrainingSettings.model_fields}
        known -= {"seed", "labels", "cell", "space", "mirror", "fine_tune_batch_norm"}
    elif isinstance(kind, str) and ":" in kind:
        make, known = partial(NamedObjective, kind), set()
    else:
        hint = 'objective = "proxy", "training" or "module:function"'
        raise DpcError.of("DPC062", f"{shown(kind)} is not an objective", place=place, hint=hint)
    given = {key.replace("-", "_"): value for key, value in table.items()}
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"do you mean {close[0]}?" if close else f"it may have {', '.join(sorted(known)) or 'nothing else'}"
            raise DpcError.of("DPC062", f"{shown(key)} is not an option of it", place=place, hint=hint)
    for key in _names(make, needed=True) if make is not NamedObjective else ():
        if key not in given:
            raise DpcError.of("DPC062", f"it needs {key}", place=place)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return make(**given)


def _names(function: Callable[..., Any], needed: bool = False) -> list[str]:
    """Of its parameters; of those without a default alone, if ``needed``."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind in named and (not needed or one.default is one.empty)]


@contextmanager
def watching() -> Iterator[Callable[[SearchProgress], None]]:
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
