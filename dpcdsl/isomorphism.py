"""When two cells are the same but for the order of their branches, and the one that stands for all of them.

Every branch has one input, so a cell is a tree: F is its root and every other node an operator. Reordering branches
permutes the channels of the concatenation and changes nothing else; two cells are isomorphic if their trees are equal
when the order of siblings is forgotten, which sorting decides exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dpcdsl.cell import Branch, Cell
from dpcdsl.operators import Operator

__all__ = ["TreeKey", "canonical", "is_canonical", "isomorphic", "operator_key", "sorted_preorder", "tree_key"]

#: A tree as (depth, label) of its nodes in preorder, siblings in rising order: equal for isomorphic cells alone.
TreeKey: TypeAlias = tuple[tuple[int, Any], ...]


def canonical(cell: Cell) -> Cell:
    """The one cell that stands for all those isomorphic to ``cell``.

    Each branch is followed by the branches that read it, and theirs, before its next sibling; siblings are in rising
    order of their operators (by kind, then by the numbers of their parameters), then of what follows them.

    >>> canonical(Cell.of((0, Operator.of("conv1x1")), (0, Operator.of("avgpool", grid=(1, 1)))))
    Cell('(F, avgpool grid 1x1, Y1) (F, conv1x1, Y2)')
    """
    order, _ = _of_cell(cell, operator_key)
    place = {branch: number for number, branch in enumerate(order, 1)}
    place[0] = 0
    branches = (cell.branches[branch - 1] for branch in order)
    return Cell(
        branches=tuple(Branch(input=place[branch.input], operator=branch.operator) for branch in branches),
        filters=cell.filters,
    )


def is_canonical(cell: Cell) -> bool:
    """Whether ``cell`` stands for its class."""
    return canonical(cell) == cell


def isomorphic(a: Cell, b: Cell) -> bool:
    """Whether one cell is the other with its branches reordered: the same function but for the order of channels."""
    return a.filters == b.filters and tree_key(a) == tree_key(b)


def tree_key(cell: Cell, label: Callable[[Operator], Any] | None = None) -> TreeKey:
    """Equal for two cells if and only if their trees are equal, operators with equal labels counting as equal.

    label: what to compare operators by, values that can be ordered; by default the operators themselves. ``filters``
    are not part of it.
    """
    return _of_cell(cell, label or operator_key)[1]


def _of_cell(cell: Cell, label: Callable[[Operator], Any]) -> tuple[list[int], TreeKey]:
    return sorted_preorder([b.input for b in cell.branches], [label(b.operator) for b in cell.branches])


def operator_key(operator: Operator) -> tuple[Any, ...]:
    """What operators are sorted by: their kind, then the numbers of their parameters."""
    return operator.kind, *(value for _, value in operator.parameters)


def sorted_preorder(inputs: Sequence[int], labels: Sequence[Any]) -> tuple[list[int], TreeKey]:
    """The branches of a canonical cell in order, and its tree; branch i (from 1) reads ``inputs[i - 1]``."""
    count = len(inputs)
    depths = [0] * (count + 1)
    children: list[list[int]] = [[] for _ in range(count + 1)]
    for number, source in enumerate(inputs, 1):
        children[source].append(number)
        depths[number] = depths[source] + 1
    orders: list[list[int]] = [[]] * (count + 1)
    keys: list[TreeKey] = [()] * (count + 1)
    for number in range(count, 0, -1):  # what reads a branch comes after it
        node = (depths[number], labels[number - 1])
        orders[number], keys[number] = _joined([number], (node,), children[number], orders, keys)
    return _joined([], (), children[0], orders, keys)


def _joined(
    order: list[int], key: TreeKey, children: list[int], orders: list[list[int]], keys: list[TreeKey]
) -> tuple[list[int], TreeKey]:
    if len(children) > 1:
        children = sorted(children, key=keys.__getitem__)
    for child in children:
        order += orders[child]
        key += keys[child]
    return order, key
