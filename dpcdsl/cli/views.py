"""``dpc cost``, ``dpc draw`` and ``dpc explain``: a cell seen from several sides, from its text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dpcdsl.cell import Cell
from dpcdsl.cli.common import (
    SIZE,
    cell_argument,
    cell_of,
    conventions_of,
    conventions_options,
    json_option,
    print_json,
    read_stdin,
    segmentation,
)
from dpcdsl.cost import cost, paper_table1
from dpcdsl.explain import explain, explain_data, spelled_count, table
from dpcdsl.layers import Size
from dpcdsl.references import find, read_cell

_features = click.option("--features", type=int, default=320, show_default=True, metavar="C", help="Channels of F.")
_size = click.option(
    "--size", type=SIZE, metavar="HxW", default="65x129", show_default=True, help="Height and width of the map."
)


@click.command("cost")
@cell_argument
@_features
@_size
@click.option("--batch-norm", is_flag=True, help="Count batch normalisation too.")
@click.option(
    "--projection", type=int, metavar="P", help="Count the 1x1 convolution to P filters after the concatenation."
)
@click.option("--backbone", metavar="NAME", help="Cost of a whole model around the cell: mobilenet-v2, xception65, …")
@click.option("--image", type=SIZE, metavar="HxW", default="1025x2049", show_default=True, help="With --backbone.")
@click.option("--decoder", is_flag=True, help="With --backbone: with DeepLabv3+'s decoder.")
@click.option("--classes", type=int, metavar="K", default=19, show_default=True, help="With --backbone.")
@conventions_options
@json_option
def cost_command(
    cell: str,
    features: int,
    size: Size,
    batch_norm: bool,
    projection: int | None,
    backbone: str | None,
    image: Size,
    decoder: bool,
    classes: int,
    as_json: bool,
    **conventions: Any,
) -> None:
    """Parameters, multiply-adds and activation memory, by closed formulas.

    By default convolutions only, without batch normalisation and projection, as in the paper's Table 1. With
    --backbone, those of the convolutions of a whole model: backbone, cell with its projection, decoder, logits.
    """
    name, value = cell_of(cell)
    context = click.get_current_context()
    given = {option for option in context.params if context.get_parameter_source(option) is not ParameterSource.DEFAULT}
    if backbone is not None:
        if wrong := given & {"features", "size", "batch_norm", "projection", "pooling", "image_pooling_crop_size"}:
            raise click.UsageError(f"{_spelled(wrong)} does not go with --backbone")
        _model_cost(name or "cell", value, backbone, image, decoder, classes, conventions["output_stride"], as_json)
        return
    if wrong := given & {"image", "decoder", "classes"}:
        raise click.UsageError(f"{_spelled(wrong)} goes with --backbone")
    conventions_of(**conventions)
    price = cost(value, features, size, batch_norm=batch_norm, projection=projection, **conventions)
    if as_json:
        print_json(price.model_dump(mode="json"))
        return
    rows = [["part", "operator", "params", "MAdds", "activations"]]
    rows += [
        [part.name, part.operator, f"{part.params:,}", f"{part.madds:,}", f"{spelled_count(part.activation_bytes)}B"]
        for part in price.parts
    ]
    rows.append(["all", "", f"{price.params:,}", f"{price.madds:,}", f"{spelled_count(price.activation_bytes)}B"])
    counted = "convolutions" + (", batch normalisation" if batch_norm else "") + (", projection" if projection else "")
    click.echo(f"{name or 'cell'} on {features} channels, map {size[0]}x{size[1]}, counting {counted}:\n")
    click.echo(table(rows, right=(2, 3, 4)))
    row = _paper_row(value, features, size) if not batch_norm and projection is None else None
    if row is not None:
        click.echo(f"\nThe paper's Table 1 has {row.paper_params} and {row.paper_madds} multiply-adds.")
        if row.note:
            click.echo(f"Note: {row.note}.")


def _spelled(options: set[str]) -> str:
    return ", ".join(f"--{option.replace('_', '-')}" for option in sorted(options))


def _model_cost(
    name: str,
    cell: Cell,
    backbone: str,
    image: Size,
    decoder: bool,
    classes: int,
    output_stride: int,
    as_json: bool,
) -> None:
    with segmentation():
        from dpcdsl.segmentation import model_cost

    price = model_cost(
        cell,
        backbone,
        image,
        classes=classes,
        output_stride=output_stride,
        decoder="deeplabv3+" if decoder else None,
    )
    if as_json:
        parts = [{"name": part.name, "params": part.params, "madds": part.madds} for part in price.parts]
        print_json({"params": price.params, "madds": price.madds, "features": list(price.features), "parts": parts})
        return
    rows = [["part", "params", "MAdds"]]
    rows += [[part.name, f"{part.params:,}", f"{part.madds:,}"] for part in price.parts]
    rows.append(["all", f"{price.params:,}", f"{price.madds:,}"])
    height, width = price.features
    click.echo(
        f"{name} on {backbone}, image {image[0]}x{image[1]}, output stride {output_stride} (map {height}x{width}), "
        f"{classes} classes, counting convolutions:\n"
    )
    click.echo(table(rows, right=(1, 2)))


def _paper_row(cell: Cell, features: int, size: Size) -> Any:
    if size != (65, 129):
        return None
    top1, aspp = read_cell("top1"), read_cell("aspp")
    rows = {row.features: row for row in paper_table1(top1, aspp) if row.module == ("DPC" if cell == top1 else "ASPP")}
    return rows.get(features) if cell in (top1, aspp) else None


@click.command("draw")
@click.argument("cell", metavar="CELL|SPACE")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to; .svg, .png, .pdf or .dot says what.")
@click.option("--title", help="A title; default the name.")
@click.option("--receptive-field", "field", is_flag=True, help="Draw which positions of F the branches see (Fig. 2).")
@click.option("--branch", metavar="Yk", help="With --receptive-field: only this branch.")
@click.option(
    "--size", type=SIZE, metavar="HxW", help="With --receptive-field: size of the map; cells with a pooling need it."
)
@json_option
def draw_command(
    cell: str, output: str, title: str | None, field: bool, branch: str | None, size: Size | None, as_json: bool
) -> None:
    """Draw a cell or a space in the paper's style."""
    from dpcdsl.diagram import draw, draw_receptive_field

    if not field and (branch is not None or size is not None):
        raise click.UsageError("--branch and --size go with --receptive-field")
    found = find(cell, "cell" if field else "either", read_stdin=read_stdin)
    title = title if title is not None else found.name or None
    if field:
        assert isinstance(found.value, Cell)
        picture = draw_receptive_field(found.value, branch, size=size, title=title)
    else:
        picture = draw(found.value, title=title)
    picture.save(Path(output))
    if as_json:
        print_json({"file": output})


@click.command("explain")
@cell_argument
@_features
@_size
@conventions_options
@json_option
def explain_command(cell: str, features: int, size: Size, as_json: bool, **conventions: Any) -> None:
    """All that the text says about a cell, on one page: picture, cost, receptive field."""
    name, value = cell_of(cell)
    chosen = conventions_of(**conventions)
    if as_json:
        print_json(explain_data(value, name=name, features=features, size=size, conventions=chosen))
    else:
        click.echo(explain(value, name=name, features=features, size=size, conventions=chosen))
