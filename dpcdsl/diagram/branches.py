"""Cells and spaces as boxes and arrows: F below, a box a branch, the concatenation on top."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING
from zlib import crc32

from dpcdsl.cell import DEFAULT_FILTERS, Cell, tensor_name
from dpcdsl.diagram.rendering import FONT, Diagram, marked_up
from dpcdsl.space import OperatorSet, Space, spelled_operators

if TYPE_CHECKING:
    import graphviz

__all__ = ["draw"]

# Fill and border. The fills grow darker in this order and the text stays black, so grey print loses nothing.
_COLOURS = {
    "conv1x1": ("#fff4d1", "#a8842c"),
    "sepconv3x3": ("#d3e5f5", "#3b6c9c"),
    "avgpool": ("#f5cdb4", "#b0582a"),
}
_OTHER_COLOURS = (
    ("#dcebd3", "#55803f"),
    ("#e4daea", "#775590"),
    ("#cfe8e4", "#35807a"),
    ("#f3d3d8", "#a84a5c"),
    ("#e3e0cb", "#77714a"),
)
_NEUTRAL = ("#f2f2f2", "#666666")

_LINE_WIDTH = 44  # characters a line of a box
_MOST_LINES = 12  # in a box of a space
_MOST_LISTED = 4  # operators of a kind, one by one
_LANE = 22  # points between neighbouring arrows that pass boxes on their way up
_MOST_PASSED = 2000  # levels, see _levels_passed


def draw(subject: Cell | Space, *, title: str | None = None) -> Diagram:
    """The diagram of a cell or a space.

    F is at the bottom, ``Concat`` at the top; each branch is a box with the name of its output and its operator, in a
    colour that belongs to the operator's kind. From left to right the branches stand in the order of the text, except
    that what a branch feeds comes directly after it, so that the arrows of a cell need not cross. The concatenation
    itself is in the order of the names, Y1 first.

    In a space, a box with choices lists them; a dot is a choice among the inputs whose dashed lines meet in it; a
    dashed box may be left out. ``title`` is shown on top.
    """
    import graphviz

    space = Space.only(subject) if isinstance(subject, Cell) else subject
    graph = graphviz.Digraph(
        "cell" if isinstance(subject, Cell) else "space",
        graph_attr={
            "rankdir": "BT",
            "nodesep": "0.2",
            "ranksep": "0.35",
            "bgcolor": "white",
            "fontname": FONT,
            "fontsize": "11",
            "labelloc": "t",
        },
        node_attr={
            "shape": "box",
            "style": "rounded,filled",
            "margin": "0.1,0.05",
            "height": "0.3",
            "fontname": FONT,
            "fontsize": "11",
            "color": _NEUTRAL[1],
            "fillcolor": _NEUTRAL[0],
        },
        edge_attr={"arrowsize": "0.6", "color": "#555555"},
    )
    if _levels_passed(space) > _MOST_PASSED:  # Graphviz must be content sooner: a chain of 128 takes it a minute
        graph.attr(nslimit="1")
    if heading := _heading(space, title):
        graph.attr(label=heading)
    graph.node("F", label="F", width="0.6")
    order = _left_to_right(space)
    texts = _box_texts(space)
    for number in order:
        _add_box(graph, space, number, texts[number - 1])
    _add_inputs(graph, space)
    _add_concatenation(graph, space, order, texts)
    what = "Dense Prediction Cell" if isinstance(subject, Cell) else "Space of Dense Prediction Cells"
    return Diagram(graph.source, f"{title or what}: {subject}")


def _heading(space: Space, title: str | None) -> str | None:
    lines = [f'<FONT POINT-SIZE="13"><B>{marked_up(line)}</B></FONT>' for line in (title or "").splitlines()]
    settings = [] if space.filters == DEFAULT_FILTERS else [f"filters {space.filters}"]
    settings += [f"require {constraint}" for constraint in space.constraints]
    lines += [marked_up(line) for text in settings for line in textwrap.wrap(text, 72)]
    return f"<{'<BR/>'.join(lines)}<BR/> >" if lines else None


def _left_to_right(space: Space) -> list[int]:
    """Branch numbers in the preorder of the tree of inputs (of the latest choice, where there are several).

    A tree whose every node also has an arrow up to the concatenation, left of what it feeds, can be drawn without a
    crossing.
    """
    fed: list[list[int]] = [[] for _ in range(len(space.slots) + 1)]
    for number in range(1, len(space.slots) + 1):
        fed[space.candidates(number)[-1]].append(number)
    order, waiting = [], [0]
    while waiting:
        number = waiting.pop()
        order.append(number)
        waiting += reversed(fed[number])
    return order[1:]


def _levels_passed(space: Space) -> int:
    """How many levels of boxes the arrows to the concatenation pass: what a layout costs Graphviz."""
    depths = [0]
    for number in range(1, len(space.slots) + 1):
        depths.append(1 + max(depths[index] for index in space.candidates(number)))
    return sum(max(depths) - depth for depth in depths)


def _add_box(graph: graphviz.Digraph, space: Space, number: int, lines: list[str]) -> None:
    slot = space.slots[number - 1]
    kinds = {operator.kind for operator in slot.operators.operators}
    fill, border = _colour(kinds.pop()) if len(kinds) == 1 else _NEUTRAL
    small = '<FONT POINT-SIZE="9" COLOR="#555555">{}</FONT>'
    candidates = space.candidates(number)
    source = [small.format(f"of {_spelled_inputs(candidates)}")] if len(candidates) > 1 else []
    graph.node(
        tensor_name(number),
        label=f"<{'<BR/>'.join([small.format(tensor_name(number)), *map(marked_up, lines), *source])}>",
        fillcolor=fill,
        color=border,
        style="rounded,filled,dashed" if slot.optional else None,
    )


def _spelled_inputs(candidates: tuple[int, ...]) -> str:
    names = list(map(tensor_name, candidates))
    if len(names) > 4:
        if candidates[-1] - candidates[1] == len(names) - 2:  # F, or the first, and then a run
            names[2:-1] = ["…"]
        elif len(names) > 6:
            return f"one of {len(names)} inputs"
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _box_texts(space: Space) -> list[list[str]]:
    """The lines of each box; a set of operators is written out in the first box that has it."""
    first: dict[OperatorSet, int] = {}
    texts = []
    for number, slot in enumerate(space.slots, 1):
        operators = slot.operators
        if len(operators) == 1:
            lines = operators.operators[0].label.splitlines()
        elif (same := first.setdefault(operators, number)) < number:
            lines = [f"{len(operators)} operators", f"as in {tensor_name(same)}"]
        else:
            lines = [f"{len(operators)} operators", *_spelled_choice(operators)]
        texts.append([part for line in lines for part in textwrap.wrap(line, _LINE_WIDTH) or [""]])
    return texts


def _spelled_choice(operators: OperatorSet) -> list[str]:
    lines = []
    for kind, run in groupby(operators.operators, key=lambda operator: operator.kind):
        listed = tuple(run)
        terms = spelled_operators(listed).split(" | ")
        if len(terms) > _MOST_LISTED:
            terms = [f"{len(listed)} × {kind}"]
        for term in terms:
            lines += [term] if len(term) <= _LINE_WIDTH else term.split(" ", 1)
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "…"]


def _colour(kind: str) -> tuple[str, str]:
    # A hash and not the order of registration, so that a kind keeps its colour from one program to the next.
    return _COLOURS.get(kind) or _OTHER_COLOURS[crc32(kind.encode()) % len(_OTHER_COLOURS)]


def _add_inputs(graph: graphviz.Digraph, space: Space) -> None:
    # Heavier than all arrows to the concatenation together, which else would pull a large subtree up and away.
    single, line = str(len(space.slots) + 1), str(2 * len(space.slots) + 2)
    # A choice of inputs is a dot. It takes over what an earlier dot has gathered, so that `any` twelve times is a line
    # of dots and not a tangle of 78 arrows.
    dots: dict[frozenset[int], str] = {}
    for number in range(1, len(space.slots) + 1):
        name, candidates = tensor_name(number), frozenset(space.candidates(number))
        if len(candidates) == 1:
            graph.edge(tensor_name(min(candidates)), name, weight=single)
            continue
        if candidates not in dots:
            dot = f"X{number}"
            graph.node(dot, shape="circle", label="", width="0.08", height="0.08", fillcolor="#555555", color="#555555")
            below = max((known for known in dots if known < candidates), key=len, default=frozenset[int]())
            if below:
                graph.edge(dots[below], dot, style="dashed", arrowhead="none", weight=line)
            for index in sorted(candidates - below):
                graph.edge(tensor_name(index), dot, style="dashed", arrowhead="none", weight="1" if index else line)
            dots[candidates] = dot
        graph.edge(dots[candidates], name, style="dashed")


def _add_concatenation(graph: graphviz.Digraph, space: Space, order: list[int], texts: list[list[str]]) -> None:
    # A bar with a port for every branch, wide enough that the arrows go up side by side instead of meeting in a point.
    fed = {index for number in order for index in space.candidates(number)}
    widths = {
        number: _LANE if number in fed else max(68, 26 + 11 * max(map(len, texts[number - 1])) // 2) for number in order
    }
    ports = "".join(f'<TD PORT="{tensor_name(n)}" WIDTH="{widths[n]}" HEIGHT="3"></TD>' for n in order)
    graph.node(
        "Y",
        shape="plain",
        style="",
        label=f'<<TABLE STYLE="ROUNDED" BORDER="1" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" '
        f'COLOR="{_NEUTRAL[1]}" BGCOLOR="{_NEUTRAL[0]}"><TR><TD COLSPAN="{len(order)}" CELLPADDING="4">Concat</TD></TR>'
        f"<TR>{ports}</TR></TABLE>>",
    )
    for number in order:
        name = tensor_name(number)
        graph.edge(name, f"Y:{name}:s", style="dashed" if space.slots[number - 1].optional else None)
