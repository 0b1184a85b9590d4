"""Cells that differ in the order of their branches alone: against networkx, and against every reordering there is."""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import permutations, product

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import Branch, Cell, Operator, parse_cell, read_cell
from dpcdsl.isomorphism import canonical, is_canonical, isomorphic, operator_key, sorted_preorder, tree_key

CONV = Operator.of("conv1x1")
POOL = Operator.of("avgpool", grid=(1, 1))
POOL_2 = Operator.of("avgpool", grid=(2, 1))
SEP = Operator.of("sepconv3x3", rate=(3, 6))
SEP_10 = Operator.of("sepconv3x3", rate=(10, 6))  # after rate 3 as a number, before it as text


def cells(
    most: int, operators: tuple[Operator, ...] = (CONV, POOL, POOL_2, SEP, SEP_10), filters: tuple[int, ...] = (256,)
) -> st.SearchStrategy[Cell]:
    def branches(count: int) -> st.SearchStrategy[tuple[tuple[int, Operator], ...]]:
        return st.tuples(*(st.tuples(st.integers(0, i), st.sampled_from(operators)) for i in range(count)))

    return st.builds(
        lambda found, chosen: Cell.of(*found, filters=chosen),
        st.integers(1, most).flatmap(branches),
        st.sampled_from(filters),
    )


@st.composite
def reordered(draw: st.DrawFn, source: st.SearchStrategy[Cell]) -> tuple[Cell, Cell]:
    """A cell, and the same with its branches in another order in which each still follows what it reads."""
    cell = draw(source)
    order: list[int] = []
    while len(order) < len(cell):
        ready = [
            number
            for number, branch in enumerate(cell.branches, 1)
            if number not in order and (branch.input == 0 or branch.input in order)
        ]
        order.append(draw(st.sampled_from(ready)))
    return cell, in_order(cell, tuple(order))


def in_order(cell: Cell, order: tuple[int, ...]) -> Cell:
    place = {0: 0, **{old: new for new, old in enumerate(order, 1)}}
    found = ((place[cell.branches[old - 1].input], cell.branches[old - 1].operator) for old in order)
    return Cell.of(*found, filters=cell.filters)


def all_orders(cell: Cell) -> set[Cell]:
    """Every cell with the same branches in another order, the cell itself among them: by trying all permutations."""
    found = set()
    for order in permutations(range(1, len(cell) + 1)):
        place = {0: 0, **{old: new for new, old in enumerate(order, 1)}}
        if all(place[cell.branches[old - 1].input] < new for new, old in enumerate(order, 1)):
            found.add(in_order(cell, order))
    return found


def same_graph(a: Cell, b: Cell) -> bool:
    """What networkx says, the concatenation left out: it reads every branch, and its own order is what is forgotten."""
    graphs = [cell.graph() for cell in (a, b)]
    for graph in graphs:
        graph.remove_node("Y")
    return nx.is_isomorphic(*graphs, node_match=lambda one, other: one.get("operator") == other.get("operator"))


def edges(cell: Cell) -> Counter[tuple[Operator | None, Operator]]:
    """Which operator reads which, each as often as it does."""
    read = [None, *(branch.operator for branch in cell.branches)]
    return Counter((read[branch.input], branch.operator) for branch in cell.branches)


# Every order


@given(reordered(cells(12, filters=(256, 16))))
@settings(max_examples=300)
def test_a_reordered_cell_is_isomorphic_and_has_the_same_canonical_form(pair: tuple[Cell, Cell]) -> None:
    cell, other = pair
    assert isomorphic(cell, other)
    assert isomorphic(other, cell)
    assert tree_key(cell) == tree_key(other)
    assert canonical(cell) == canonical(other)


@given(cells(12, filters=(256, 16)))
@settings(max_examples=300)
def test_the_canonical_form_is_the_cell_in_another_order(cell: Cell) -> None:
    found = canonical(cell)
    assert canonical(found) == found
    assert is_canonical(found)
    assert is_canonical(cell) == (found == cell)
    assert found.filters == cell.filters
    assert Counter(branch.operator for branch in found.branches) == Counter(b.operator for b in cell.branches)
    assert edges(found) == edges(cell)
    assert sorted(found.depths) == sorted(cell.depths)
    assert same_graph(found, cell)
    assert Cell.model_validate(found.model_dump()) == found  # checked anew: every branch reads an earlier one


@given(cells(5, operators=(CONV, POOL, SEP)))
@settings(max_examples=60)
def test_the_class_is_all_orders_and_one_of_them_is_canonical(cell: Cell) -> None:
    orders = all_orders(cell)
    assert [other for other in orders if is_canonical(other)] == [canonical(cell)]
    assert {canonical(other) for other in orders} == {canonical(cell)}


# Exactly those


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_small_cells_fall_into_the_classes_of_their_orders(count: int) -> None:
    operators = (CONV, POOL)
    universe = [Cell.of(*pick) for pick in product(*(product(range(i + 1), operators) for i in range(count)))]
    by_form: dict[Cell, set[Cell]] = {}
    by_key: dict[object, set[Cell]] = {}
    for cell in universe:
        by_form.setdefault(canonical(cell), set()).add(cell)
        by_key.setdefault(tree_key(cell), set()).add(cell)
    assert sorted(by_form.values(), key=str) == sorted(by_key.values(), key=str)
    left = set(universe)
    while left:
        orders = all_orders(next(iter(left)))
        assert orders in list(by_form.values())
        left -= orders


@given(cells(6, operators=(CONV, POOL)), cells(6, operators=(CONV, POOL)))
@settings(max_examples=300)
def test_two_cells_are_isomorphic_as_networkx_says(a: Cell, b: Cell) -> None:
    assert isomorphic(a, b) == same_graph(a, b) == (canonical(a) == canonical(b))


def test_all_pairs_of_three_branches_are_isomorphic_as_networkx_says() -> None:
    operators = (CONV, POOL)
    universe = [Cell.of(*pick) for pick in product(*(product(range(i + 1), operators) for i in range(3)))]
    found = [(a, b) for number, a in enumerate(universe) for b in universe[number + 1 :] if isomorphic(a, b)]
    assert found == [(a, b) for number, a in enumerate(universe) for b in universe[number + 1 :] if same_graph(a, b)]
    assert found


@given(reordered(cells(7, operators=(CONV, POOL))), st.data())
@settings(max_examples=150)
def test_one_change_to_a_reordered_cell_is_seen_as_networkx_sees_it(
    pair: tuple[Cell, Cell], data: st.DataObject
) -> None:
    cell, other = pair
    number = data.draw(st.integers(0, len(other) - 1))
    branch = Branch(input=data.draw(st.integers(0, number)), operator=data.draw(st.sampled_from((CONV, POOL))))
    changed = Cell(branches=(*other.branches[:number], branch, *other.branches[number + 1 :]))
    assert isomorphic(cell, changed) == same_graph(cell, changed)


@given(cells(7, operators=(CONV, SEP)), st.data())
@settings(max_examples=150)
def test_siblings_that_differ_only_far_below_are_in_order(below: Cell, data: st.DataObject) -> None:
    """Two branches with the same below them but for one operator, whichever comes first."""
    place = data.draw(st.integers(0, len(below) - 1))
    changed = [(b.input, POOL if number == place else b.operator) for number, b in enumerate(below.branches)]
    same = [(b.input, b.operator) for b in below.branches]

    def together(*trees: list[tuple[int, Operator]]) -> Cell:
        found: list[tuple[int, Operator]] = []
        for branches in trees:
            found.append((0, CONV))
            root = len(found)
            found += [(root + source, operator) for source, operator in branches]
        return Cell.of(*found)

    a, b = together(same, changed), together(changed, same)
    assert same_graph(a, b)
    assert isomorphic(a, b)
    assert canonical(a) == canonical(b)
    assert not isomorphic(a, together(same, same))
    assert not isomorphic(a, together(changed, changed))


def test_filters_tell_cells_apart() -> None:
    cell = Cell.of((0, CONV), (0, POOL))
    other = Cell.of((0, POOL), (0, CONV), filters=64)
    assert not isomorphic(cell, other)
    assert tree_key(cell) == tree_key(other)
    assert canonical(other).filters == 64


# Which one it is


def test_siblings_are_in_order_and_followed_by_what_reads_them() -> None:
    cell = parse_cell(
        "(F, sepconv3x3 rate 10x6, Y1) (F, conv1x1, Y2) (F, sepconv3x3 rate 3x6, Y3) (Y2, sepconv3x3 rate 3x6, Y4)"
        "(Y2, avgpool grid 2x1, Y5) (F, conv1x1, Y6) (Y6, avgpool grid 2x1, Y7)"
    )
    assert str(canonical(cell)) == str(
        parse_cell(
            "(F, conv1x1, Y1) (Y1, avgpool grid 2x1, Y2)"
            "(F, conv1x1, Y3) (Y3, avgpool grid 2x1, Y4) (Y3, sepconv3x3 rate 3x6, Y5)"
            "(F, sepconv3x3 rate 3x6, Y6) (F, sepconv3x3 rate 10x6, Y7)"
        )
    )


@given(cells(10))
def test_the_canonical_form_is_what_its_description_says(cell: Cell) -> None:
    found = canonical(cell)
    children: dict[int, list[int]] = {}
    for number, branch in enumerate(found.branches, 1):
        children.setdefault(branch.input, []).append(number)

    def subtree(number: int) -> list[int]:
        return [number, *(inner for child in children.get(number, []) for inner in subtree(child))]

    assert subtree(0) == list(range(len(found) + 1))
    # Siblings rise by their operators, then by the tree below each, in the order of its branches.
    depths = (0, *found.depths)
    described = {
        number: [(depths[inner], operator_key(found.branches[inner - 1].operator)) for inner in subtree(number)]
        for number in range(1, len(found) + 1)
    }
    for siblings in children.values():
        assert [described[s] for s in siblings] == sorted(described[s] for s in siblings)


def test_canonical_forms_that_may_never_change() -> None:
    assert str(canonical(read_cell("top1"))) == (
        "(F, sepconv3x3 rate 1x6, Y1) (Y1, sepconv3x3 rate 1x1, Y2) (Y1, sepconv3x3 rate 6x21, Y3) "
        "(Y1, sepconv3x3 rate 18x15, Y4) (Y4, sepconv3x3 rate 6x3, Y5)"
    )
    assert str(canonical(read_cell("aspp"))) == str(read_cell("aspp"))
    for name in ("pspnet", "denseaspp"):
        assert is_canonical(read_cell(name))


# Labels


def test_labels_say_which_operators_count_as_equal() -> None:
    a, b = Cell.of((0, CONV), (1, SEP)), Cell.of((0, CONV), (1, SEP_10))
    assert tree_key(a) != tree_key(b)
    assert tree_key(a, lambda operator: operator.kind) == tree_key(b, lambda operator: operator.kind)
    backward = {CONV: 2, SEP: 1, POOL: 0}
    for pick in product(product(range(1), backward), product(range(2), backward), product(range(3), backward)):
        cell = Cell.of(*pick)
        for other in all_orders(cell):
            assert tree_key(cell, backward.__getitem__) == tree_key(other, backward.__getitem__)


def test_the_order_tells_where_each_branch_went() -> None:
    order, key = sorted_preorder([0, 0, 2, 1, 0], "babba")
    assert order == [5, 2, 3, 1, 4]
    assert key == ((1, "a"), (1, "a"), (2, "b"), (1, "b"), (2, "b"))


# Large


@pytest.mark.parametrize("shape", ["chain", "star", "broom", "comb", "binary"])
def test_the_largest_cells_are_compared_soon(shape: str) -> None:
    sources = {
        "chain": [*range(256)],
        "star": [0] * 256,
        "broom": [*range(128), *[128] * 128],
        "comb": [number if number % 2 else max(0, number - 1) for number in range(256)],
        "binary": [number // 2 for number in range(256)],
    }[shape]
    cell = Cell.of(*((source, (CONV, POOL, SEP)[number % 3]) for number, source in enumerate(sources)))
    backward = Cell.of(*((source, (SEP, POOL, CONV)[number % 3]) for number, source in enumerate(sources)))
    start = time.perf_counter()
    form = canonical(cell)
    assert canonical(form) == form
    assert isomorphic(cell, form)
    assert edges(form) == edges(cell)
    assert not isomorphic(cell, backward)
    assert time.perf_counter() - start < 2  # some milliseconds


def test_a_chain_of_the_largest_cell_does_not_depend_on_the_recursion_limit() -> None:
    cell = Cell.of(*((number, CONV) for number in range(256)))
    limit = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    try:
        sys.setrecursionlimit(depth + 60)
        assert sorted_preorder([b.input for b in cell.branches], [0] * 256)[0] == list(range(1, 257))
    finally:
        sys.setrecursionlimit(limit)
