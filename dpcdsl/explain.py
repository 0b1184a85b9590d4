"""All that text alone says about a cell, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpcdsl.cell import Cell, tensor_name
from dpcdsl.cost import Cost, cost
from dpcdsl.layers import Conventions, Size
from dpcdsl.receptive_field import receptive_field
from dpcdsl.syntax import format_cell

__all__ = ["explain", "explain_data", "spelled_count", "spelled_histogram", "table", "tree_picture"]


def explain_data(
    cell: Cell, *, name: str = "", features: int = 320, size: Size = (65, 129), conventions: Conventions | None = None
) -> dict[str, Any]:
    """The page as data: the cell's text and JSON-ready numbers.

    features: channels of F; size: (height, width) of the map.
    """
    options = _options(conventions)
    price = cost(cell, features, size, **options)
    field = receptive_field(cell, size, **options)
    return {
        "name": name,
        "line": str(cell),
        "branches": len(cell),
        "depth": cell.depth,
        "filters": cell.filters,
        "cost": price.model_dump(mode="json"),
        "receptive_field": field.summary(),
    }


def _options(conventions: Conventions | None) -> dict[str, Any]:
    c = conventions or Conventions()
    return {
        "pooling": c.pooling,
        "output_stride": c.output_stride,
        "image_pooling_crop_size": c.image_pooling_crop_size,
    }


def explain(
    cell: Cell, *, name: str = "", features: int = 320, size: Size = (65, 129), conventions: Conventions | None = None
) -> str:
    """The page as text: the cell, its picture, its cost and what each branch sees."""
    options = _options(conventions)
    price = cost(cell, features, size, **options)
    field = receptive_field(cell, size, **options)
    rows = [["branch", "reads", "operator", "params", "MAdds", "sees (HxW)", "of the map"]]
    for number, (branch, part, seen) in enumerate(zip(cell.branches, price.branches, field.branches, strict=True), 1):
        height, width = seen.extent
        rows.append(
            [
                f"Y{number}",
                tensor_name(branch.input),
                str(branch.operator),
                spelled_count(part.params),
                spelled_count(part.madds),
                f"{height}x{width}",
                f"{seen.coverage:.1%}",
            ]
        )
    rows.append(["all", "", "", spelled_count(price.params), spelled_count(price.madds), "", f"{field.coverage:.1%}"])
    shape = f"{len(cell)} branch{'es' if len(cell) > 1 else ''}, {cell.depth} deep, {cell.filters} filters"
    return "\n".join(
        [
            f"{name or 'cell'}: {shape}",
            "",
            format_cell(cell, name if name.isidentifier() else None).rstrip("\n"),
            "",
            tree_picture(cell),
            "",
            f"On {features} channels, map {size[0]}x{size[1]}:",
            "",
            table(rows, right=(3, 4, 5, 6)),
            "",
            _footnote(price),
        ]
    )


def _footnote(price: Cost) -> str:
    channels = price.concatenation.out_channels
    return (
        f"{price.params:,} parameters and {price.madds:,} multiply-adds: convolutions only, as the paper counts.\n"
        f"{price.activation_bytes:,} bytes of activations an image; the concatenation has {channels:,} channels.\n"
        "`sees` is the extent of the inputs that the central output reads, `of the map` how many of them."
    )


def tree_picture(cell: Cell) -> str:
    """The cell as a tree of lines: every branch has one input, so it hangs below what it reads."""
    children: dict[int, list[int]] = {number: [] for number in range(len(cell) + 1)}
    for number, branch in enumerate(cell.branches, 1):
        children[branch.input].append(number)
    lines = ["F"]
    stack = [(number, "", number == children[0][-1]) for number in reversed(children[0])]
    while stack:
        number, indent, last = stack.pop()
        lines.append(f"{indent}{'└─' if last else '├─'} Y{number}  {cell.branches[number - 1].operator}")
        below = indent + ("   " if last else "│  ")
        stack += [(child, below, child == children[number][-1]) for child in reversed(children[number])]
    names = "Y1" if len(cell) == 1 else "Y1, Y2" if len(cell) == 2 else f"Y1 … Y{len(cell)}"
    lines.append(f"output: concat({names})")
    return "\n".join(lines)


def table(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """Rows of text in columns; the first row is the head. ``right``: columns set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def spelled_histogram(values: Mapping[int, int], bins: int, name: str) -> str:
    """An exact distribution as a table with bars: a row for each value, or for each of ``bins`` ranges of values.

    values: how many there are of each value, at least one.
    """
    low, high, total = min(values), max(values), sum(values.values())
    if len(values) <= bins:
        counts = {f"{value:,}": count for value, count in sorted(values.items())}
    else:
        width = -(-(high - low + 1) // bins)
        rows: dict[int, int] = {}
        for value, count in values.items():
            rows[(value - low) // width] = rows.get((value - low) // width, 0) + count
        counts = {
            f"{low + i * width:,} … {min(high, low + (i + 1) * width - 1):,}": rows.get(i, 0)
            for i in range((high - low) // width + 1)
        }
    most = max(counts.values())
    lines = [[name, "cells", "share", ""]]
    # Whole numbers up to the last step: a count may have more digits than a float.
    lines += [
        [label, f"{count:,}", f"{count * 10**4 // total / 100:.2f} %", "█" * -(-count * 30 // most)]
        for label, count in counts.items()
    ]
    return table(lines, right=(0, 1, 2))


def spelled_count(count: int) -> str:
    """A count to three digits, for tables: 84,800 as ``84.8K``."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.3g}{suffix}" if count < 999.5 * unit else f"{count / unit:,.0f}{suffix}"
    return str(count)
