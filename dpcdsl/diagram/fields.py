"""What the branches of a cell see of F, in the style of the paper's Figure 2: a grid of positions, the taps marked.

What a branch sees is a set of rows times a set of columns. So a panel is a block of colour with the rows and columns
that are not seen laid over it as white stripes: a few hundred rectangles, however many positions there are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from dpcdsl.cell import Cell, tensor_name
from dpcdsl.diagram.rendering import FONT, Diagram, marked_up
from dpcdsl.errors import DpcError
from dpcdsl.layers import Pooling, Size
from dpcdsl.receptive_field import BranchField, receptive_field

__all__ = ["draw_receptive_field"]

# Lengths in points.
_PANEL = 240  # the longer side of a panel among others, at most
_ONLY_PANEL = 400  # of one that stands alone
_LARGEST_SQUARE = 14
_SMALLEST_SQUARE = 3  # smaller ones have no lines between them
_SMALLEST_DISC = 3
_MARGIN = 10  # on either side of a panel
_LINE_HEIGHT = 13
_CHARACTER = 6

_MOST_SQUARES = 180  # along a side; a larger map is drawn coarser
_IN_A_ROW = 6  # panels
_LEAST = 4  # positions shown on each side of the centre where the map is not given

_SEEN, _LINES, _FRAME, _CENTRE = "#2f6aa0", "#cccccc", "#666666", "#f28e1c"

#: Rows and columns of F that a branch sees, or offsets along the two axes.
_Seen: TypeAlias = tuple[Sequence[int], Sequence[int]]


def draw_receptive_field(
    cell: Cell,
    branch: int | str | None = None,
    size: Size | None = None,
    *,
    at: Size | None = None,
    pooling: Pooling = "paper",
    output_stride: int = 16,
    image_pooling_crop_size: Size | None = None,
    title: str | None = None,
) -> Diagram:
    """Which positions of F a branch sees; without ``branch`` all of them side by side, on one scale.

    branch: ``"Y3"`` or 3.
    size: (height, width) of the map, up to 4096 each. Needed where an operator pools. Without it a panel shows offsets
        from the output's position, and no border.
    at: (row, column) of the output on that map, from (0, 0); by default (height // 2, width // 2). A disc marks it,
        hollow if the branch does not see the position of F below its output.
    pooling, output_stride, image_pooling_crop_size: see :func:`~dpcdsl.receptive_field.receptive_field`.

    A map of more than 180 positions a side is drawn coarser, and the picture says so: a square is marked if any of its
    positions is seen. Raises :class:`DpcError` (DPC062) on a wrong setting, an unknown branch or a missing size.
    """
    field = receptive_field(
        cell,
        size,
        pooling=pooling,
        output_stride=output_stride,
        image_pooling_crop_size=image_pooling_crop_size,
    )
    name = tensor_name(branch) if isinstance(branch, int) else branch
    chosen = field.branches if name is None else (field.branch(name),)
    if field.size is not None and at is None:
        at = field.size[0] // 2, field.size[1] // 2
    seen = [_seen(each, at) for each in chosen]

    spans = [_span([pair[axis] for pair in seen], field.size and field.size[axis]) for axis in (0, 1)]
    coarse = -(-max(map(len, spans)) // _MOST_SQUARES)
    rows, columns = (_Axis(span.start, -(-len(span) // coarse), coarse) for span in spans)
    panel = _PANEL if len(chosen) > 1 else _ONLY_PANEL
    pitch = panel + 2 * _MARGIN
    square = min(_LARGEST_SQUARE, panel / max(rows.squares, columns.squares))

    settings = []
    if field.size is not None and at is not None:
        settings.append(f"map {field.size[0]}×{field.size[1]}, output at row {at[0]}, column {at[1]}")
    if pooling != "paper":
        settings.append(f"{pooling} pooling")
    if output_stride != 16:
        settings.append(f"output stride {output_stride}")
    if coarse > 1:
        settings.append(f"a square is {coarse}×{coarse} positions")

    canvas = _Canvas()
    across = min(len(chosen), _IN_A_ROW)
    top = canvas.text(0, 0, across * pitch, (title or "").splitlines(), [", ".join(settings)])
    for start in range(0, len(chosen), across):
        ends = []
        for place, each in enumerate(chosen[start : start + across]):
            left, sees = place * pitch, seen[start + place]
            margin = (pitch - square * columns.squares) / 2
            _add_panel(canvas, (left + margin, top), square, (rows, columns), sees, at or (0, 0))
            under = top + square * rows.squares + 4
            ends.append(canvas.text(left, under, pitch, [each.name], _caption(cell, each, sees)))
        top = max(ends) + 12
    what = "What each branch sees" if name is None else f"What {name} sees"
    return Diagram(canvas.dot, f"{title or what}: {cell}")


def _seen(field: BranchField, at: Size | None) -> _Seen:
    """What the output at ``at`` sees, or offsets where there is no size."""
    if at is not None:
        import numpy as np

        positions = field.positions(at)
        rows, columns = (np.flatnonzero(np.any(positions, axis=axis)).tolist() for axis in (1, 0))
        return rows, columns
    down, across = field.offsets
    if down is None or across is None:
        raise DpcError.of(
            "DPC062",
            f"`{field.name}` pools or resizes, so what it sees depends on the size of the map",
            hint="give one, as in `size=(65, 129)`",
        )
    return down, across


def _span(seen: Iterable[Sequence[int]], size: int | None) -> range:
    """The positions that are shown along an axis: the map, or as far as any branch looks and one more."""
    if size is not None:
        return range(size)
    furthest = max(_LEAST, *(abs(offset) + 1 for offsets in seen for offset in offsets))
    return range(-furthest, furthest + 1)


def _caption(cell: Cell, field: BranchField, seen: _Seen) -> list[str]:
    branch = cell.branches[int(field.name[1:]) - 1]
    operator = " ".join(branch.operator.label.split())
    rows, columns = seen
    count = len(rows) * len(columns)
    if field.size is not None:
        says = f"sees {count} of {field.size[0] * field.size[1]} positions"
    else:
        extent = f"{rows[-1] - rows[0] + 1}×{columns[-1] - columns[0] + 1}"
        says = f"extent {extent}, {count} tap{'s' * (count > 1)}"
    return [f"{operator} of {tensor_name(branch.input)}", says]


@dataclass(frozen=True)
class _Axis:
    """One axis of a panel: ``squares`` squares of ``coarse`` positions each, from position ``first`` on."""

    first: int
    squares: int
    coarse: int

    def square(self, position: int) -> int:
        return (position - self.first) // self.coarse

    def block_and_gaps(self, positions: Iterable[int]) -> tuple[range, list[range]]:
        """The squares from the first to the last of ``positions``, and the runs among them without any."""
        marked = sorted({self.square(position) for position in positions})
        gaps = [range(a + 1, b) for a, b in pairwise(marked) if b > a + 1]
        return range(marked[0], marked[-1] + 1), gaps


class _Canvas:
    """Rectangles and lines of text, each at its place. Lengths in points, from the upper left corner."""

    def __init__(self) -> None:
        import graphviz

        self._count = 0
        self._graph = graphviz.Graph(
            "receptive_field",
            graph_attr={"layout": "nop", "bgcolor": "white"},  # `nop` leaves everything where it is put
            node_attr={
                "shape": "box",
                "style": "filled",
                "fixedsize": "true",
                "label": "",
                "color": "transparent",
                "fillcolor": "white",
                "fontname": FONT,
                "fontsize": "10",
            },
        )

    @property
    def dot(self) -> str:
        source: str = self._graph.source
        return source

    def add(self, left: float, top: float, width: float, height: float, **attributes: str) -> None:
        """A rectangle without a border; ``attributes`` are Graphviz's."""
        self._count += 1
        self._graph.node(
            str(self._count),
            pos=f"{left + width / 2:.2f},{-top - height / 2:.2f}",
            width=f"{width / 72:.4f}",
            height=f"{height / 72:.4f}",
            **attributes,
        )

    def text(self, left: float, top: float, width: float, bold: Iterable[str], plain: Iterable[str]) -> float:
        """Centred lines, wrapped at ``width``. Returns where they end."""

        def wrapped(lines: Iterable[str]) -> Iterable[str]:
            return (marked_up(part) for line in lines for part in textwrap.wrap(line, int(width / _CHARACTER)))

        lines = [*(f"<B>{line}</B>" for line in wrapped(bold)), *wrapped(plain)]
        if not lines:
            return top
        height = _LINE_HEIGHT * len(lines) + 4
        self.add(left, top, width, height, label=f"<{'<BR/>'.join(lines)}>")
        return top + height + 4


def _add_panel(
    canvas: _Canvas,
    corner: tuple[float, float],
    square: float,
    axes: tuple[_Axis, _Axis],
    seen: _Seen,
    at: Size,
) -> None:
    """One grid of squares of ``square`` points, its upper left corner at ``corner`` = (x, y)."""
    (x, y), (rows, columns) = corner, axes
    width, height = square * columns.squares, square * rows.squares

    if seen[0] and seen[1]:
        down, row_gaps = rows.block_and_gaps(seen[0])
        across, column_gaps = columns.block_and_gaps(seen[1])
        left, top = x + square * across.start, y + square * down.start
        block = square * len(across), square * len(down)
        canvas.add(left, top, *block, fillcolor=_SEEN)
        # The stripes stick out a little, or their ends would leave a hair of the block's edge.
        for gap in row_gaps:
            canvas.add(left - 0.5, y + square * gap.start, block[0] + 1, square * len(gap))
        for gap in column_gaps:
            canvas.add(x + square * gap.start, top - 0.5, square * len(gap), block[1] + 1)
    if square >= _SMALLEST_SQUARE:
        thin = {"style": "", "color": _LINES, "penwidth": "0.4"}
        for row in range(0, rows.squares, 2):  # the outlines of every second row are the lines of all
            canvas.add(x, y + square * row, width, square, **thin)
        for column in range(0, columns.squares, 2):
            canvas.add(x + square * column, y, square, height, **thin)
    canvas.add(x, y, width, height, style="", color=_FRAME)

    disc = max(0.75 * square, _SMALLEST_DISC)
    canvas.add(
        x + square * (columns.square(at[1]) + 0.5) - disc / 2,
        y + square * (rows.square(at[0]) + 0.5) - disc / 2,
        disc,
        disc,
        shape="circle",
        color=_CENTRE,
        fillcolor=_CENTRE if at[0] in seen[0] and at[1] in seen[1] else "white",
    )
