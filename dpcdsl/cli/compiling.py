"""``dpc compile``: a cell as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpcdsl.cli.common import SIZE, cell_argument, cell_of, conventions_of, conventions_options, json_option, print_json
from dpcdsl.layers import Size


@click.command("compile")
@cell_argument
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to; its ending says what: .pt2 or .onnx.")
@click.option("--target", default="eager", show_default=True, help="The compiler.")
@click.option("--features", type=int, default=320, show_default=True, metavar="C", help="Channels of F.")
@click.option(
    "--size", type=SIZE, metavar="HxW", default="65x129", show_default=True, help="Height and width of the example map."
)
@click.option("--projection", type=int, metavar="P", help="End with the 1x1 convolution to P filters.")
@conventions_options
@json_option
def compile_command(
    cell: str,
    output: str,
    target: str,
    features: int,
    size: Size,
    projection: int | None,
    as_json: bool,
    **conventions: Any,
) -> None:
    """Compile a cell: an exported program (.pt2) or ONNX (.onnx).

    In evaluation mode, with weights freshly initialised from seed 0, for any batch. The map may have any size, unless
    the cell pools: then a sliding pooling, and in ONNX a grid other than 1x1, fix it to --size.
    """
    from dpcdsl.compilers import compiler

    _, value = cell_of(cell)
    conventions_of(**conventions)
    compiler(target).write(value, Path(output), in_channels=features, size=size, projection=projection, **conventions)
    if as_json:
        print_json({"file": output, "target": target})
