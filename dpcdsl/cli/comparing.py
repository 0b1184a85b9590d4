"""``dpc distance``, ``dpc canonical`` and ``dpc diff``: cells beside one another."""

from __future__ import annotations

from itertools import zip_longest

import click

from dpcdsl.cell import Branch, distance, tensor_name
from dpcdsl.cli.common import SIZE, as_value, cell_argument, cell_of, form_option, json_option, names, print_json
from dpcdsl.cost import cost
from dpcdsl.interchange import spell
from dpcdsl.isomorphism import canonical, isomorphic
from dpcdsl.layers import Size
from dpcdsl.syntax import is_definable


@click.command("distance")
@click.argument("a", metavar="A", shell_complete=names)
@click.argument("b", metavar="B", shell_complete=names)
@json_option
def distance_command(a: str, b: str, as_json: bool) -> None:
    """In how many inputs and operators two cells differ; a branch that only one has counts 2."""
    one, other = cell_of(a)[1], cell_of(b)[1]
    if as_json:
        print_json({"distance": distance(one, other), "isomorphic": isomorphic(one, other)})
    else:
        click.echo(distance(one, other))


@click.command("canonical")
@cell_argument
@form_option("line")
@json_option
def canonical_command(cell: str, form: str, as_json: bool) -> None:
    """The cell that stands for all those that differ in the order of their branches alone."""
    name, value = cell_of(cell)
    text = spell(canonical(value), form, name=name if is_definable(name) else None)
    if as_json:
        print_json({"cell": as_value(text, form), "changed": canonical(value) != value})
    else:
        click.echo(text)


@click.command("diff")
@click.argument("a", metavar="A", shell_complete=names)
@click.argument("b", metavar="B", shell_complete=names)
@click.option("--features", type=int, default=320, show_default=True, metavar="C", help="Channels of F.")
@click.option("--size", type=SIZE, default="65x129", show_default=True, metavar="HxW", help="Size of the map.")
@json_option
def diff_command(a: str, b: str, features: int, size: Size, as_json: bool) -> None:
    """Two cells side by side, their differences marked."""
    (a_name, one), (b_name, other) = cell_of(a), cell_of(b)
    costs = cost(one, features, size), cost(other, features, size)
    measures = [
        ("params", costs[0].params, costs[1].params),
        ("madds", costs[0].madds, costs[1].madds),
        ("depth", one.depth, other.depth),
        ("filters", one.filters, other.filters),
    ]
    pairs = list(zip_longest(one.branches, other.branches))
    if as_json:
        print_json(
            {
                "distance": distance(one, other),
                "isomorphic": isomorphic(one, other),
                "branches": [
                    {"output": f"Y{number}", "a": _as_json(x), "b": _as_json(y), "equal": x == y}
                    for number, (x, y) in enumerate(pairs, 1)
                ],
                **{name: {"a": x, "b": y} for name, x, y in measures},
            }
        )
        return
    rows: list[list[str]] = []
    marks: list[tuple[bool, bool]] = []
    for number, (x, y) in enumerate(pairs, 1):
        differ = x is None or y is None or x.input != y.input, x is None or y is None or x.operator != y.operator
        rows.append([f"Y{number}", *_fields(x), *_fields(y), "≠" if any(differ) else ""])
        marks.append(differ)
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    head = f"{'':{widths[0]}}  {a_name or 'A':{widths[1] + 1 + widths[2]}}  │  {b_name or 'B'}"
    click.echo(head)
    for row, (inputs, operators) in zip(rows, marks, strict=True):
        cells = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
        for column, marked in ((1, inputs), (2, operators), (3, inputs), (4, operators)):
            if marked and row[column]:
                cells[column] = click.style(row[column], fg="red" if column < 3 else "green") + " " * (
                    widths[column] - len(row[column])
                )
        click.echo(f"{cells[0]}  {cells[1]} {cells[2]}  │  {cells[3]} {cells[4]}  {cells[5]}".rstrip())
    click.echo()
    for name, x, y in measures:
        click.echo(f"{name}: {x:,}" + (f" → {y:,} ({y - x:+,})" if x != y else ", both"))
    same = ", though only in the order of branches" if one != other and isomorphic(one, other) else ""
    click.echo(f"distance: {distance(one, other)}{same}")


def _fields(branch: Branch | None) -> tuple[str, str]:
    return (tensor_name(branch.input), str(branch.operator)) if branch else ("", "")


def _as_json(branch: Branch | None) -> object:
    return branch.model_dump(mode="json") if branch else None
