"""What several commands share: options, reading a cell, and JSON on standard output."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from dpcdsl.cell import Cell
from dpcdsl.constraints import AnyOf
from dpcdsl.errors import DpcError
from dpcdsl.interchange import FORMS
from dpcdsl.layers import Conventions, Size
from dpcdsl.references import Found, find, read_space
from dpcdsl.space import Space
from dpcdsl.syntax import Definition, parse_condition, zoo

__all__ = [
    "NUMBERS",
    "SHARD",
    "SIZE",
    "NamedSpace",
    "as_value",
    "cell_argument",
    "cell_of",
    "conventions_of",
    "conventions_options",
    "crop_option",
    "device_option",
    "form_option",
    "json_option",
    "load_plugins",
    "names",
    "preprocessing_of",
    "preprocessing_options",
    "print_json",
    "problems_of",
    "progress",
    "proxy_options",
    "read_stdin",
    "segmentation",
    "space_argument",
    "space_of",
    "stepping",
    "tracked",
    "usual_crop",
    "where_option",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


if TYPE_CHECKING:
    from dpcdsl.segmentation.labels import LabelSet
    from dpcdsl.segmentation.schedule import Progress
    from dpcdsl.segmentation.transforms import Preprocessing

    _SizeType = click.ParamType[Size]
    _ShardType = click.ParamType[tuple[int, int]]
    _NumbersType = click.ParamType[tuple[float, ...]]
else:
    _SizeType = _ShardType = _NumbersType = click.ParamType  # only the newest click knows it as generic when it runs

_SPOKEN = 10  # seconds between two lines where there is no terminal

#: Totals up to this are told as a share and with the time that is left.
_COUNTABLE = 10**12


class _Size(_SizeType):
    """HxW, as in the language."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,7})x(\d{1,7})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write HEIGHTxWIDTH, such as 65x129", param, ctx)
        return int(match[1]), int(match[2])


SIZE = _Size()


def names(_: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell can complete a cell or a space to."""
    cells_only = param.name in ("cell", "a", "b") and "SPACE" not in (param.metavar or "")
    found = [
        CompletionItem(name, help=definition.noun)
        for name, definition in zoo().items()
        if name.startswith(incomplete) and definition.noun in (("cell",) if cells_only else ("cell", "space"))
    ]
    return [*found, CompletionItem(incomplete, type="file")]


cell_argument = click.argument("cell", metavar="CELL", shell_complete=names)
space_argument = click.argument("space", metavar="SPACE", shell_complete=names)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def conventions_options(command: F) -> F:
    """Options for what the paper leaves open and its authors' code decides."""
    for option in reversed(
        [
            click.option(
                "--pooling",
                type=click.Choice(["paper", "sliding"]),
                default="paper",
                show_default=True,
                help="The paper's grid pooling, or the sliding one of its authors' code.",
            ),
            click.option(
                "--output-stride", type=int, default=16, show_default=True, help="8 doubles all atrous rates."
            ),
            click.option(
                "--image-pooling-crop-size",
                type=SIZE,
                metavar="HxW",
                help="Crop in pixels that fixes the sliding pooling's window.",
            ),
        ]
    ):
        command = option(command)
    return command


def conventions_of(pooling: Any, output_stride: int, image_pooling_crop_size: Size | None) -> Conventions:
    return Conventions(pooling, output_stride, image_pooling_crop_size)


class _Shard(_ShardType):
    """I/N, the index from 0."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if match is None or int(match[1]) >= int(match[2]):
            self.fail(f"{value!r} is not a part; write I/N with I from 0 to N-1, such as 0/4", param, ctx)
        return int(match[1]), int(match[2])


SHARD = _Shard()


class _Numbers(_NumbersType):
    """Several numbers, between commas."""

    name = "A,B,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write them as 0.5,1,1.5", param, ctx)


NUMBERS = _Numbers()

device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, or whichever there is.")

where_option = click.option(
    "--where", multiple=True, metavar="EXPR", help="A constraint, such as 'params(F=320) <= 0.40M'. May be repeated."
)


def form_option(default: str) -> Callable[[F], F]:
    """In which form cells are written."""
    return click.option(
        "--to", "form", type=click.Choice(FORMS), default=default, show_default=True, help="The form to write."
    )


class NamedSpace(NamedTuple):
    """A space, how the user named it, and the names known where it stands."""

    name: str
    space: Space
    scope: Mapping[str, Definition]


def space_of(reference: str, where: Iterable[str] = ()) -> NamedSpace:
    """The space that an argument names, with more constraints; their names are those of its file, or of the zoo."""
    found = find(reference, "space", read_stdin=read_stdin)
    space = Space.only(found.value) if isinstance(found.value, Cell) else found.value
    constraints = [parse_condition(text, found.scope, name="--where") for text in where]
    name, condition, *_ = [*re.split(r"\s+where\s+", reference, maxsplit=1), ""]
    conditions = [f"({condition})" if " or " in condition else condition] if condition else []
    conditions += [
        f"({constraint})" if isinstance(constraint, AnyOf) else str(constraint) for constraint in constraints
    ]
    name += f" where {' and '.join(conditions)}" if conditions else ""
    return NamedSpace("" if reference == "-" else name, space.where(*constraints), found.scope)


@contextmanager
def segmentation() -> Iterator[None]:
    """To import what needs torch and timm within."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = "pip install 'dpcdsl[segmentation]'"
        raise DpcError.of("DPC090", f"the segmentation system needs {error.name}", hint=hint) from None


@contextmanager
def progress() -> Iterator[None]:
    """Shows how far long computations have come, on a terminal, once they take more than a second."""
    # Where standard output is the terminal too, its lines would run through the bar.
    if not sys.stderr.isatty():
        yield
        return
    from dpcdsl.enumeration import reporting

    began = time.monotonic()
    shown = 0.0

    def listener(what: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - began > 1 and now - shown > 0.1 and not (what == "writing" and sys.stdout.isatty()):
            shown = now
            share = f"{done / total:4.0%}" if total < _COUNTABLE else f"{done:,}"
            left = f", {(now - began) * (total - done) / done:,.0f} s left" if 0 < done <= total < _COUNTABLE else ""
            click.echo(f"\r\x1b[K{what} {share}{left}", err=True, nl=False)

    try:
        with reporting(listener):
            yield
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def tracked(items: Iterable[T], total: int, what: str, every: int = 64) -> Iterator[T]:
    """The same items, reported as they go by."""
    from dpcdsl.enumeration import report

    for number, item in enumerate(items):
        if number % every == 0:
            report(what, number, total)
        yield item


@contextmanager
def stepping(steps: int) -> Iterator[tuple[Callable[[int], None], Callable[[Progress], None]]]:
    """A bar on a terminal, and a line now and then elsewhere, both on standard error."""
    if not sys.stderr.isatty():
        spoken = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal spoken
            if time.monotonic() - spoken >= _SPOKEN or progress.step == progress.steps:
                spoken = time.monotonic()
                left = (progress.steps - progress.step) * progress.seconds_per_step
                click.echo(
                    f"step {progress.step:,} of {progress.steps:,}: loss {progress.loss:.4f}, rate "
                    f"{progress.rate:.2e}, {left:,.0f} s left",
                    err=True,
                )

        def begins(start: int) -> None:
            if 0 < start < steps:
                click.echo(f"going on after step {start:,}", err=True)

        yield begins, line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        *("training", BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}")),
        *(TextColumn("rate {task.fields[rate]:.2e}"), TimeRemainingColumn()),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, loss=float("nan"), rate=0.0)
        yield (
            lambda start: bar.update(task, completed=start),
            lambda progress: bar.update(task, completed=progress.step, loss=progress.loss, rate=progress.rate),
        )


def preprocessing_options(command: F) -> F:
    """``mean`` and ``std``, for :func:`preprocessing_of`."""
    for name in ("--std", "--mean"):
        said = "Of pixels from 0 to 1; 0.5 by default, or timm's."
        command = click.option(name, type=NUMBERS, metavar="R,G,B", help=said)(command)
    return command


def preprocessing_of(
    backbone: str, weights: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Preprocessing:
    """What a backbone's images go through: as timm's weights were trained, where they are taken."""
    from dpcdsl.segmentation.backbone import timm_preprocessing
    from dpcdsl.segmentation.transforms import Preprocessing

    own: dict[str, Any] = timm_preprocessing(backbone) if weights == "timm" else {}
    own |= {name: given for name, given in (("mean", mean), ("std", std)) if given is not None}
    return Preprocessing(**own)


def proxy_options(command: F) -> F:
    """How a candidate is trained on cached features: where those are, and the fields of the proxy's settings."""
    for option in reversed(
        [
            click.option("--train", "trains", default="train", show_default=True, metavar="SPLIT"),
            click.option("--held-out", default="val", show_default=True, metavar="SPLIT"),
            click.option("--steps", type=int, default=30_000, show_default=True),
            click.option("--batch", type=int, default=8, show_default=True),
            click.option("--rate", type=float, default=0.01, show_default=True, help="At the start; it falls to 0."),
            click.option("--power", type=float, default=0.9, show_default=True, help="Of the rate's polynomial decay."),
            click.option("--momentum", type=float, default=0.9, show_default=True),
            click.option("--weight-decay", type=float, default=4e-5, show_default=True),
            click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True),
            click.option("--evaluate-every", type=int, default=3_000, show_default=True, metavar="STEPS"),
            click.option("--patience", type=int, metavar="N", help="Stop after N evaluations without a better one."),
            click.option("--pooling", type=click.Choice(["paper", "sliding"]), default="paper", show_default=True),
        ]
    ):
        command = option(command)
    return command


crop_option = click.option(
    "--crop", type=SIZE, metavar="HxW", help="In pixels; 769x769 for Cityscapes and 513x513 for others."
)


def usual_crop(labels: LabelSet) -> Size:
    """The paper's."""
    from dpcdsl.segmentation.labels import CITYSCAPES

    return (769, 769) if labels is CITYSCAPES else (513, 513)


def read_stdin() -> str:
    """Standard input as text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DpcError.of("DPC006", f"this is not UTF-8 text: byte {error.start}", place="<stdin>") from None


def cell_of(reference: str, space: str | None = None) -> tuple[str, Cell]:
    """The cell that an argument names, and its name."""
    found: Found = find(reference, "cell", space=read_space(space) if space else None, read_stdin=read_stdin)
    assert isinstance(found.value, Cell)
    return found.name, found.value


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def problems_of(errors: Iterable[DpcError]) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [
        {"code": one.code, "place": one.place, "message": one.message, "hint": one.hint}
        for error in errors
        for one in error.diagnostics
    ]


def as_value(text: str, form: str) -> Any:
    """A cell in one of its forms as a value of JSON."""
    return json.loads(text) if form in ("vector", "deeplab", "json") else text


def load_plugins(names: Iterable[str]) -> None:
    """Import them all."""
    for name in names:
        load_plugin(name)


def load_plugin(name: str) -> None:
    """Import a Python file or module, for what it registers."""
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            importlib.import_module(name)
    except DpcError:
        raise
    except Exception as error:
        raise DpcError.of(
            "DPC060",
            f"the plugin {name} cannot be imported: {type(error).__name__}: {error}",
            hint="a plugin is a Python file or module that registers operators",
        ) from None
