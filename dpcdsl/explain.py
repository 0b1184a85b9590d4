"""All that text alone says about a cell, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import count as naturals
from typing import Any

from dpcdsl.cell import Cell, tensor_name
from dpcdsl.cost import Cost, cost
from dpcdsl.errors import DpcError
from dpcdsl.identity import CellId
from dpcdsl.interchange import paper_id, paper_space
from dpcdsl.isomorphism import canonical
from dpcdsl.layers import Conventions, Size
from dpcdsl.merging import merge_operators
from dpcdsl.receptive_field import receptive_field
from dpcdsl.syntax import format_cell

__all__ = ["explain", "explain_data", "spelled_count", "spelled_histogram", "table", "tree_picture"]


def explain_data(
    cell: Cell, *, name: str = "", features: int = 320, size: Size = (65, 129), conventions: Conventions | None = None
) -> dict[str, Any]:
    """The page as data: the cell's text and JSON-ready numbers.

    features: channels of F; size: (height, width) of the map.
    """
    options = asdict(conventions or Conventions())
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
        "id": str(found) if (found := _paper_id(cell)) else None,
        "canonical": str(canonical(cell)),
        "merges": [
            {"branches": names, "operators": operators} for names, operators in _merges(cell, size, conventions)
        ],
    }


def _paper_id(cell: Cell) -> CellId | None:
    try:
        return paper_id(cell)
    except DpcError:  # not of the paper's operators
        return None


def _merges(cell: Cell, size: Size, conventions: Conventions | None) -> list[tuple[list[str], list[str]]]:
    """Operators of the cell that are the same function as others at this size: the branches, and all that are equal.

    The others are those of the cell and of the paper's set.
    """
    own = dict.fromkeys(branch.operator for branch in cell.branches)
    pool = list(dict.fromkeys([*own, *paper_space(1).slots[0].operators.operators]))
    found = []
    for group in merge_operators(pool, size, cell.filters, conventions or Conventions()):
        names = [f"Y{number}" for number, branch in enumerate(cell.branches, 1) if branch.operator in group]
        if len(group) > 1 and names:
            found.append((names, [str(operator) for operator in group]))
    return found


def explain(
    cell: Cell, *, name: str = "", features: int = 320, size: Size = (65, 129), conventions: Conventions | None = None
) -> str:
    """The page as text: the cell, its picture, its cost and what each branch sees."""
    options = asdict(conventions or Conventions())
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
            "",
            *_standing(cell, size, conventions),
        ]
    )


def _standing(cell: Cell, size: Size, conventions: Conventions | None) -> list[str]:
    """Where the cell stands among others: its number, its class, and the operators that make no difference."""
    from dpcdsl.enumeration import enumerator

    found = _paper_id(cell)
    if found is None:
        lines = ["It is not in the paper's space."]
    else:
        total = enumerator(paper_space(len(cell))).count
        lines = [f"Rank {found.rank:,} of {total:,} in the paper's space: {found}"]
    standing = canonical(cell)
    if standing == cell:
        lines.append("It is the canonical form of all cells that differ from it in the order of branches alone.")
    else:
        lines.append(f"Up to the order of branches it is {standing}")
    merges = _merges(cell, size, conventions)
    for names, operators in merges:
        first, *others = operators
        more = f" and {len(others) - 4} more" if len(others) > 5 else ""
        shown = others[:4] if more else others
        lines.append(
            f"At {size[0]}x{size[1]} {', '.join(names)}: {first} is the same function as {', '.join(shown)}{more}."
        )
    if not merges:
        lines.append(f"At {size[0]}x{size[1]} none of its operators is the same function as another of the paper's.")
    return lines


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
    """An exact distribution as a table with bars: a row for each value, or for each range of round width.

    values: how many there are of each value, at least one. bins: the most rows.
    """
    low, high, total = min(values), max(values), sum(values.values())
    if len(values) <= bins:
        counts = {f"{value:,}": count for value, count in sorted(values.items())}
    else:
        width = _round_width(low, high, bins)
        rows: dict[int, int] = {}
        for value, count in values.items():
            rows[value // width] = rows.get(value // width, 0) + count
        counts = {
            f"{i * width:,} … {(i + 1) * width - 1:,}": rows.get(i, 0) for i in range(low // width, high // width + 1)
        }
    most = max(counts.values())
    lines = [[name, "cells", "share", ""]]
    # Whole numbers up to the last step: a count may have more digits than a float.
    lines += [
        [label, f"{count:,}", f"{count * 10**4 // total / 100:.2f} %", "█" * -(-count * 30 // most)]
        for label, count in counts.items()
    ]
    return table(lines, right=(0, 1, 2))


def _round_width(low: int, high: int, bins: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … whose multiples cut ``low`` to ``high`` into at most ``bins`` ranges."""
    for power in naturals():
        for digit in (1, 2, 5):
            width: int = digit * 10**power
            if high // width - low // width < bins:
                return width
    raise AssertionError("there is always one")


def spelled_count(count: int) -> str:
    """A count to three digits, for tables: 84,800 as ``84.8K``."""
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.3g}{suffix}" if count < 999.5 * unit else f"{count / unit:,.0f}{suffix}"
    return str(count)
