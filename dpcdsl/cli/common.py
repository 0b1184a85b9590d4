"""What several commands share: options, reading a cell, and JSON on standard output."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Size
from dpcdsl.references import Found, find, read_space

__all__ = [
    "SIZE",
    "cell_argument",
    "cell_of",
    "conventions_of",
    "conventions_options",
    "json_option",
    "load_plugin",
    "print_json",
    "read_stdin",
]

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _SizeType = click.ParamType[Size]
else:
    _SizeType = click.ParamType  # only the newest click knows it as generic when it runs


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

cell_argument = click.argument("cell", metavar="CELL")
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
