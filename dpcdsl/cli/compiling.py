"""``dpc compile``: a cell as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpcdsl.cell import Cell
from dpcdsl.cli.common import SIZE, cell_argument, cell_of, conventions_of, conventions_options, json_option, print_json
from dpcdsl.errors import DpcError
from dpcdsl.layers import Size


@click.command("compile")
@cell_argument
@click.option("-o", "--output", metavar="FILE", help="Where to; its ending says what: .py, .pt2 or .onnx.")
@click.option("--plan", "shows_plan", is_flag=True, help="Print the steps the cell is run by, and what is fused.")
@click.option("--training", is_flag=True, help="With --plan: the passes of training.")
@click.option("--without", multiple=True, metavar="FUSION", help="With --plan: leave a fusion out, by its name.")
@click.option("--target", default="torch", show_default=True, help="The compiler.")
@click.option("--features", type=int, default=320, show_default=True, metavar="C", help="Channels of F.")
@click.option(
    "--size", type=SIZE, metavar="HxW", default="65x129", show_default=True, help="Height and width of the example map."
)
@click.option("--projection", type=int, metavar="P", help="End with the 1x1 convolution to P filters.")
@conventions_options
@json_option
def compile_command(
    cell: str,
    output: str | None,
    shows_plan: bool,
    training: bool,
    without: tuple[str, ...],
    target: str,
    features: int,
    size: Size,
    projection: int | None,
    as_json: bool,
    **conventions: Any,
) -> None:
    """Compile a cell: readable source (.py), an exported program (.pt2) or ONNX (.onnx).

    Programs are in evaluation mode, with weights freshly initialised from seed 0, for any batch. The map may have any
    size, unless the cell pools: then a sliding pooling, and in ONNX a grid other than 1x1, fix it to --size.

    With --plan the steps are printed by which the module runs.
    """
    from dpcdsl.compilers import compiler

    if output is None and not shows_plan:
        raise click.UsageError("Say where to (-o FILE), or ask for the --plan.")
    if (training or without) and not shows_plan:
        raise click.UsageError("--training and --without say what --plan prints; a file holds the cell whole.")
    _, value = cell_of(cell)
    conventions_of(**conventions)
    chosen = compiler(target)
    options = {"in_channels": features, "size": size, "projection": projection, **conventions}
    if output is not None:
        chosen.write(value, Path(output), **options)
    steps = _plan(chosen, target, value, training=training, without=without, **options) if shows_plan else None
    if as_json:
        print_json({"file": output, "target": target} | ({} if steps is None else {"plan": steps.splitlines()}))
    elif steps is not None:
        click.echo(steps, nl=False)


def _plan(chosen: Any, target: str, cell: Cell, **options: Any) -> str:
    plan = getattr(chosen, "plan", None)
    if plan is None:
        raise DpcError.of(
            "DPC064", f"the compiler `{target}` fuses nothing, and has no plan", hint="try --target torch"
        )
    return str(plan(cell, **options))
