"""Classes of cells, up to isomorphism and up to function: against every genome of small spaces, formulas, Burnside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from math import factorial
from random import Random
from typing import Any, TypeAlias

import generators
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Cell,
    Conventions,
    Convolution,
    DpcError,
    Layer,
    Operator,
    OperatorKind,
    OperatorSet,
    Size,
    Slot,
    Space,
    parse,
    parse_cell,
    read_cell,
    read_space,
)
from dpcdsl.constraints import Branches, Comparison, Depth, Distance, MAdds, Params, Uses
from dpcdsl.enumeration import MAX_LISTED, Enumerator, count, distribution, enumerator, reporting
from dpcdsl.enumeration.forests import ForestEnumerator
from dpcdsl.enumeration.listed import ListedEnumerator
from dpcdsl.interchange import paper_space

Label: TypeAlias = Callable[[Operator], Any]


def space_of(text: str) -> Space:
    return parse(f"space s {{ {text} }}").space("s")


# The oracle: every genome, and its tree as nested brackets


@dataclass(frozen=True)
class Genome:
    """A choice in every slot: its row of numbers, and the branches that it leaves."""

    row: tuple[int, ...]
    inputs: tuple[int, ...]
    operators: tuple[Operator, ...]

    @property
    def branches(self) -> tuple[tuple[int, Operator], ...]:
        return tuple(zip(self.inputs, self.operators, strict=True))


def genomes(space: Space) -> Iterator[Genome]:
    """All choices in the slots of a space, its constraints not looked at; in the order of their rows."""
    choices = [
        [
            *([None] if slot.optional else []),
            *product(range(number) if slot.inputs is None else slot.inputs, range(len(slot.operators.operators))),
        ]
        for number, slot in enumerate(space.slots, 1)
    ]
    for picked in product(*choices):
        places = {0: 0}
        inputs, operators = [], []
        for number, pick in enumerate(picked, 1):
            if pick is None:
                continue
            if pick[0] not in places:
                break
            inputs.append(places[pick[0]])
            operators.append(space.slots[number - 1].operators.operators[pick[1]])
            places[number] = len(inputs)
        else:
            if inputs:
                row = tuple(value for pick in picked for value in (pick or (-1, -1)))
                yield Genome(row, tuple(inputs), tuple(operators))


def tree(inputs: Sequence[int], labels: Sequence[object], root: int = 0) -> str:
    """The branches that read ``root``, and those that read them, siblings in no order."""
    below = (number for number, source in enumerate(inputs, 1) if source == root)
    return "".join(sorted(f"<{labels[number - 1]}{tree(inputs, labels, number)}>" for number in below))


def every_class(found: Sequence[Genome], label: Label = str) -> dict[str, list[Genome]]:
    classes: dict[str, list[Genome]] = {}
    for genome in found:
        classes.setdefault(tree(genome.inputs, [label(o) for o in genome.operators]), []).append(genome)
    return classes


def check(classes: Enumerator, found: Sequence[Genome], label: Label = str, *, one_by_one: bool = True) -> None:
    """The classes are those of the genomes that were found: counted, each with a rank, one for all its genomes."""
    expected = every_class(found, label)
    space = classes.space
    assert classes.count == len(expected)
    if not found:
        return
    # Every genome has the rank of its class.
    rank_of = dict(zip(found, classes.ranks(np.array([genome.row for genome in found])).tolist(), strict=True))
    ranks = {name: {rank_of[genome] for genome in members} for name, members in expected.items()}
    assert all(len(each) == 1 for each in ranks.values())
    assert sorted(rank for each in ranks.values() for rank in each) == list(range(len(expected)))
    if one_by_one:
        for genome in found:
            assert classes.rank(Cell.of(*genome.branches, filters=space.filters)) == rank_of[genome]
    # Every rank has a cell of its class that lies in the space.
    inside = {genome.branches for genome in found}
    rows = {genome.row for genome in found}
    for name, (rank,) in ranks.items():
        cell = classes.unrank(rank)
        branches = tuple((branch.input, branch.operator) for branch in cell.branches)
        assert branches in inside
        assert cell.filters == space.filters
        assert tree([x for x, _ in branches], [label(o) for _, o in branches]) == name
        if isinstance(classes, ForestEnumerator):
            assert list(branches) == in_preorder(cell)
    vectors = classes.vectors(range(classes.count))
    assert set(map(tuple, vectors.tolist())) <= rows
    assert classes.ranks(vectors).tolist() == list(range(classes.count))
    assert [classes.unrank(rank) for rank in range(min(20, classes.count))] == list(classes.cells(stop=20))


def in_preorder(cell: Cell) -> list[tuple[int, Operator]]:
    """The branches of the cell that stands for a class: by operator, then by what reads them, which follows."""

    def key(number: int) -> list[tuple[int, str, list[object]]]:
        """(depth, kind, numbers) of a branch and of all below it, in order."""
        branch = cell.branches[number - 1]
        below = sorted((key(i), i) for i, other in enumerate(cell.branches, 1) if other.input == number)
        own = (cell.depths[number - 1], branch.operator.kind, [value for _, value in branch.operator.parameters])
        return [own, *(node for keys, _ in below for node in keys)]

    found: list[tuple[int, Operator]] = []

    def visit(number: int, place: int) -> None:
        for _, child in sorted((key(i), i) for i, other in enumerate(cell.branches, 1) if other.input == number):
            found.append((place, cell.branches[child - 1].operator))
            visit(child, len(found))

    visit(0, 0)
    return found


# Costs and shapes, computed again


def _weights(operator: Operator, channels: int, filters: int) -> int:
    return channels * filters + (9 * channels if operator.kind == "sepconv3x3" else 0)


def params(genome: Genome, features: int, filters: int) -> int:
    return sum(_weights(o, features if x == 0 else filters, filters) for x, o in genome.branches)


def madds(genome: Genome, features: int, filters: int, size: Size) -> int:
    total = 0
    for source, operator in genome.branches:
        height, width = dict(operator.parameters)["grid"] if operator.kind == "avgpool" else size
        total += _weights(operator, features if source == 0 else filters, filters) * height * width
    return total


def depth(genome: Genome) -> int:
    depths = [0]
    for source in genome.inputs:
        depths.append(depths[source] + 1)
    return max(depths)


def uses(genome: Genome, *kinds: str) -> int:
    return sum(operator.kind in kinds for operator in genome.operators)


# Up to isomorphism

SIX = [
    "sepconv3x3 rate 10x6",  # not in the order of their names, nor of their numbers as text
    "conv1x1",
    "avgpool grid 2x1",
    "sepconv3x3 rate 3x6",
    "avgpool grid 1x1",
    "avgpool grid 10x1",
]


@pytest.mark.parametrize(
    ("operators", "branches"),
    [(k, b) for k in range(1, 7) for b in range(1, 8) if k**b * factorial(b) <= 30_000],
)
def test_classes_of_free_spaces(operators: int, branches: int) -> None:
    space = space_of(f"{branches} * (any, {' | '.join(SIX[:operators])}, _)")
    found = list(genomes(space))
    assert len(found) == operators**branches * factorial(branches) == count(space)
    classes = enumerator(space, "isomorphism")
    assert isinstance(classes, ForestEnumerator)
    check(classes, found, one_by_one=len(found) < 3_000)


@pytest.mark.soak
@pytest.mark.parametrize(("operators", "branches"), [(1, 9), (2, 7), (6, 5)])
def test_classes_of_free_spaces_of_a_million_genomes(operators: int, branches: int) -> None:
    space = space_of(f"{branches} * (any, {' | '.join(SIX[:operators])}, _)")
    check(enumerator(space, "isomorphism"), list(genomes(space)), one_by_one=False)


THREE = "conv1x1 | sepconv3x3 rate 3x6 | avgpool grid 2x1"
TWO = "sepconv3x3 rate 3x6 | avgpool grid 2x1"

CONSTRAINED: dict[str, tuple[str, Callable[[Genome], bool]]] = {
    "params": (
        f"filters 4 4 * (any, {THREE}, _) require params(F=3) <= 150",
        lambda g: params(g, 3, 4) <= 150,
    ),
    "params, the input as wide as a branch": (
        f"filters 4 4 * (any, {THREE}, _) require params(F=4) == 100",
        lambda g: params(g, 4, 4) == 100,
    ),
    "madds": (
        f"filters 4 4 * (any, {THREE}, _) require madds(F=3, at=5x7) > 2500",
        lambda g: madds(g, 3, 4, (5, 7)) > 2500,
    ),
    "both, on two inputs": (
        f"filters 2 4 * (any, {TWO}, _) require params(F=7) >= 90 and madds(F=1, at=3x2) < 150",
        lambda g: params(g, 7, 2) >= 90 and madds(g, 1, 2, (3, 2)) < 150,
    ),
    "depth": (f"4 * (any, {THREE}, _) require depth <= 2", lambda g: depth(g) <= 2),
    "deep": (f"5 * (any, {TWO}, _) require depth >= 4", lambda g: depth(g) >= 4),
    "depth, and not that": (
        f"5 * (any, {TWO}, _) require depth != 3 and depth < 5",
        lambda g: depth(g) != 3 and depth(g) < 5,
    ),
    "uses": (
        f"4 * (any, {THREE}, _) require uses(conv1x1 | avgpool) == 2",
        lambda g: uses(g, "conv1x1", "avgpool") == 2,
    ),
    "or, not": (
        f"4 * (any, {THREE}, _) require depth >= 4 or not (uses(conv1x1) <= 1 and depth != 1)",
        lambda g: depth(g) >= 4 or not (uses(g, "conv1x1") <= 1 and depth(g) != 1),
    ),
    "params or depth": (
        f"filters 4 4 * (any, {THREE}, _) require params(F=3) <= 100 or depth == 4",
        lambda g: params(g, 3, 4) <= 100 or depth(g) == 4,
    ),
    "optional": (f"(any, {TWO}, _) optional 3 * (any, {TWO}, _)", lambda _: True),
    "all optional": (
        f"optional 4 * (any, {TWO}, _) require branches >= 2",
        lambda g: len(g.inputs) >= 2,
    ),
    "optional first": (f"optional 2 * (any, {TWO}, _) 2 * (any, {TWO}, _)", lambda _: True),
    "optional between, constrained": (
        f"filters 4 (any, {THREE}, _) optional (any, {THREE}, _) (any, {THREE}, _) optional (any, {THREE}, _) "
        "require branches != 3 or params(F=3) <= 100",
        lambda g: len(g.inputs) != 3 or params(g, 3, 4) <= 100,
    ),
    "nothing is left": (f"3 * (any, {TWO}, _) require depth >= 4", lambda _: False),
    "always true": (f"4 * (any, {TWO}, _) require depth <= 300 or uses(conv1x1) >= 1", lambda _: True),
}


@pytest.mark.parametrize(("text", "holds"), CONSTRAINED.values(), ids=CONSTRAINED.keys())
def test_classes_under_constraints_and_with_optional_branches(text: str, holds: Callable[[Genome], bool]) -> None:
    space = space_of(text)
    everything = list(genomes(space))
    found = [genome for genome in everything if holds(genome)]
    classes = enumerator(space, "isomorphism")
    assert isinstance(classes, ForestEnumerator)
    check(classes, found)
    inside = {genome.branches for genome in found}
    for genome in everything[:: max(1, len(everything) // 50)]:
        if genome.branches not in inside:
            with pytest.raises(DpcError) as caught:
                classes.rank(Cell.of(*genome.branches, filters=space.filters))
            assert caught.value.codes == ("DPC055",)


OUTSIDE: dict[str, tuple[str, Callable[[Genome], bool]]] = {
    "inputs": (f"(F, {THREE}, _) ({{F, Y1}}, {THREE}, _) ({{Y1, Y2}}, {THREE}, _) (any, {TWO}, _)", lambda _: True),
    "a chain": (f"(F, {THREE}, _) (Y1, {THREE}, _) (Y2, {THREE}, _)", lambda _: True),
    "only F": (f"4 * (F, {THREE}, _)", lambda _: True),
    "operators": (f"(any, {TWO}, _) (any, {THREE}, _) (any, conv1x1, _) (any, {TWO}, _)", lambda _: True),
    "the same operators in another order": (
        "2 * (any, conv1x1 | avgpool grid 2x1, _) 2 * (any, avgpool grid 2x1 | conv1x1, _)",
        lambda _: True,
    ),
    "distance": (
        f"4 * (any, {TWO}, _) require distance((F, avgpool grid 2x1, _) (F, sepconv3x3 rate 3x6, _)) <= 6",
        lambda g: (
            4
            + sum(x != y for x, y in zip(g.branches[0], (0, Operator.of("avgpool", grid=(2, 1))), strict=True))
            + sum(x != y for x, y in zip(g.branches[1], (0, Operator.of("sepconv3x3", rate=(3, 6))), strict=True))
            <= 6
        ),
    ),
    "optional": (
        f"optional (F, {TWO}, _) (any, {TWO}, _) optional ({{F, Y1, Y2}}, {TWO}, _) ({{F, Y1, Y3}}, {TWO}, _)",
        lambda _: True,
    ),
    "optional and alike": (f"optional 3 * (F, {THREE}, _) require branches >= 1", lambda _: True),
    "constrained": (
        f"filters 4 (F, {THREE}, _) 3 * ({{F, Y1}}, {THREE}, _) require params(F=3) < 120 and depth == 2",
        lambda g: params(g, 3, 4) < 120 and depth(g) == 2,
    ),
    "nothing is left": (f"3 * (F, {TWO}, _) require depth >= 2", lambda _: False),
}


@pytest.mark.parametrize(("text", "holds"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_classes_of_spaces_that_are_gone_through(text: str, holds: Callable[[Genome], bool]) -> None:
    space = space_of(text)
    found = [genome for genome in genomes(space) if holds(genome)]
    classes = enumerator(space, "isomorphism")
    assert isinstance(classes, ListedEnumerator)
    check(classes, found)
    # Ranks follow the first genome of each class.
    first = [every[0].row for every in every_class(found).values()]
    assert first == sorted(first)
    assert classes.vectors(range(classes.count)).tolist() == [list(row) for row in first]


def random_spaces() -> st.SearchStrategy[Space]:
    """Inside the fragment and out of it, whose conditions may leave no cell."""
    pools = (Operator.of("avgpool", grid=(1, 2)), Operator.of("avgpool", grid=(10, 2)))
    few = [Operator.of("conv1x1"), *pools, Operator.of("sepconv3x3", rate=(3, 1))]
    operators = st.sampled_from(few)
    target = Cell.of((0, few[0]), (1, few[1]))
    condition = st.builds(
        Comparison,
        measure=st.sampled_from(
            [
                Branches(),
                Depth(),
                Uses(kinds=("conv1x1",)),
                Uses(operators=(few[1],)),
                Params(features=3),
                MAdds(features=2, at=(3, 2)),
                Distance(to=target),
            ]
        ),
        relation=st.sampled_from(generators.RELATIONS),
        bound=st.integers(0, 4) | st.integers(0, 300),
    )
    conditions = condition | generators.strategies.constraints(operators=operators)

    @st.composite
    def fragment(draw: st.DrawFn) -> Space:
        chosen = OperatorSet.of(draw(st.lists(operators, min_size=1, max_size=3)))
        slots = [
            Slot(inputs=None, operators=chosen, optional=draw(st.booleans())) for _ in range(draw(st.integers(1, 4)))
        ]
        if all(slot.optional for slot in slots):
            slots[draw(st.integers(0, len(slots) - 1))] = Slot(inputs=None, operators=chosen)
        return Space(
            slots=tuple(slots),
            filters=draw(st.sampled_from((3, 2))),
            constraints=tuple(draw(st.lists(conditions, max_size=2))),
        )

    anything = generators.spaces(4, operators=operators, conditions=condition, filters=st.sampled_from((3, 2)))
    return fragment() | anything


@given(random_spaces())
@settings(max_examples=300)
def test_classes_of_random_spaces(space: Space) -> None:
    found = list(genomes(space))
    if len(found) > 2_000:
        return
    cells = {genome: Cell.of(*genome.branches, filters=space.filters) for genome in found}
    found = [genome for genome in found if all(constraint.holds(cells[genome]) for constraint in space.constraints)]
    check(enumerator(space, "isomorphism"), found, one_by_one=len(found) < 300)
    # On a map of one position every mean is the position itself, and every tap but the middle one reads nothing.
    check(
        enumerator(space, "function", at=(1, 1)), found, lambda o: o.kind == "sepconv3x3", one_by_one=len(found) < 300
    )


# Operators of a user's own


@dataclass(frozen=True)
class Passing(Layer):
    """Like a maximum pooling: no weights, and as many channels out as in."""

    window: int


@dataclass(frozen=True)
class Doubling(Layer):
    """As many channels again, up to twelve."""

    def out_channels(self, in_channels: int) -> int:
        return min(2 * in_channels, 12)

    def weights(self, in_channels: int) -> int:
        return in_channels


PASSING = OperatorKind("classes_passing", lambda **_: [Passing(3)])
DOUBLING = OperatorKind("classes_doubling", lambda **_: [Doubling()])


@pytest.mark.usefixtures("shipped_operators")
@pytest.mark.parametrize("condition", ["params(F=3) <= 40", "params(F=2) == 34", "params(F=1) > 50 or depth == 2"])
def test_classes_where_operators_pass_their_channels_on(condition: str) -> None:
    with generators.registered(PASSING), generators.registered(DOUBLING):
        text = "classes_passing | conv1x1 | classes_doubling"
        space = space_of(f"filters 4 4 * (any, {text}, _) require {condition}")

        def weights(genome: Genome, features: int) -> int:
            channels, total = [features], 0
            for source, operator in genome.branches:
                read = channels[source]
                match operator.kind:
                    case "classes_passing":
                        channels.append(read)
                    case "classes_doubling":
                        total += read
                        channels.append(min(2 * read, 12))
                    case _:
                        total += 4 * read
                        channels.append(4)
            return total

        holds: dict[str, Callable[[Genome], bool]] = {
            "params(F=3) <= 40": lambda g: weights(g, 3) <= 40,
            "params(F=2) == 34": lambda g: weights(g, 2) == 34,
            "params(F=1) > 50 or depth == 2": lambda g: weights(g, 1) > 50 or depth(g) == 2,
        }
        found = [genome for genome in genomes(space) if holds[condition](genome)]
        assert found
        classes = enumerator(space, "isomorphism")
        assert isinstance(classes, ForestEnumerator)
        check(classes, found)


# Up to function


def effective(size: Size) -> Label:
    """What an operator computes on a map of ``size``, for grids that are not finer than the map.

    A tap at ``rate`` lies outside of every map that is not longer. A mean over as many parts as there are positions is
    the position itself, so that nothing is left but the 1x1 convolution.
    """

    def label(operator: Operator) -> str:
        values = dict(operator.parameters)
        if operator.kind == "sepconv3x3":
            return f"sep {[min(rate, side) for rate, side in zip(values['rate'], size, strict=True)]}"
        if operator.kind == "avgpool" and values["grid"] != size:
            return f"pool {values['grid']}"
        return "conv"

    return label


FUNCTIONS = [
    ("3 * (any, conv1x1 | avgpool grid 1x1 | avgpool grid 3x3 | sepconv3x3 rate {1, 3, 9} x 1, _)", (3, 3)),
    ("3 * (any, sepconv3x3 rate {1, 2, 3} x {1, 2, 3}, _)", (2, 3)),
    ("4 * (any, sepconv3x3 rate 9x9 | sepconv3x3 rate 4x5 | avgpool grid 4x5 | conv1x1, _)", (4, 5)),
    ("4 * (any, sepconv3x3 rate 9x9 | sepconv3x3 rate 4x5 | avgpool grid 4x5 | conv1x1, _)", (5, 5)),
    ("4 * (any, sepconv3x3 rate 9x9 | sepconv3x3 rate 4x5 | avgpool grid 4x5 | conv1x1, _)", (20, 20)),
    ("4 * (any, avgpool grid 1x1 | sepconv3x3 rate 7x2 | conv1x1 | sepconv3x3 rate 1x1, _)", (1, 1)),
    ("(any, avgpool grid 1x1 | conv1x1, _) optional 3 * (any, avgpool grid 1x1 | conv1x1, _)", (1, 1)),
]


@pytest.mark.parametrize(("text", "size"), FUNCTIONS)
def test_classes_of_functions(text: str, size: Size) -> None:
    space = space_of(text)
    found = list(genomes(space))
    classes = enumerator(space, "function", at=size)
    assert isinstance(classes, ForestEnumerator)
    check(classes, found, effective(size))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 7), (10, 7), (33, 33)])
def test_functions_of_the_paper_are_classes_over_fewer_operators(size: Size) -> None:
    space = paper_space(2)
    operators = space.slots[0].operators.operators
    sides = [operator["grid"] for operator in operators if operator.kind == "avgpool"]
    if any(grid[axis] > size[axis] for grid in sides for axis in (0, 1)):  # of those the test's label knows nothing
        kept = [o for o in operators if o.kind != "avgpool" or all(o["grid"][axis] <= size[axis] for axis in (0, 1))]
        slots = tuple(Slot(inputs=None, operators=OperatorSet.of(kept)) for _ in space.slots)
        space, operators = Space(slots=slots), tuple(kept)
    found = list(genomes(space))
    distinct = len(set(map(effective(size), operators)))
    classes = enumerator(space, "function", at=size)
    assert classes.count == forests(2, distinct)[2]
    check(classes, found, effective(size), one_by_one=False)


def test_functions_where_merged_operators_cost_the_same_are_not_gone_through() -> None:
    everything = "sepconv3x3 rate 9x9 | sepconv3x3 rate 4x5 | conv1x1"
    label = effective((4, 5))
    for condition, holds in {
        "params(F=3) <= 130": lambda g: params(g, 3, 4) <= 130,
        "uses(sepconv3x3) == 2 and depth <= 3": lambda g: uses(g, "sepconv3x3") == 2 and depth(g) <= 3,
        "madds(F=3, at=2x2) > 600": lambda g: madds(g, 3, 4, (2, 2)) > 600,
    }.items():
        space = space_of(f"filters 4 4 * (any, {everything}, _) require {condition}")
        classes = enumerator(space, "function", at=(4, 5))
        assert isinstance(classes, ForestEnumerator)
        found = [genome for genome in genomes(space) if holds(genome)]
        assert found
        check(classes, found, label)


def test_functions_whose_pooling_costs_the_same_on_the_map_that_is_measured() -> None:
    text = "filters 4 3 * (any, avgpool grid 4x5 | conv1x1 | avgpool grid 1x1, _) require madds(F=3, at={}) <= 800"
    same, other = space_of(text.format("4x5")), space_of(text.format("8x8"))
    for space, kind, size in ((same, ForestEnumerator, (4, 5)), (other, ListedEnumerator, (8, 8))):
        classes = enumerator(space, "function", at=(4, 5))
        assert isinstance(classes, kind)
        found = [genome for genome in genomes(space) if madds(genome, 3, 4, size) <= 800]
        check(classes, found, effective((4, 5)))


MIXED: dict[str, tuple[str, Callable[[Genome], bool]]] = {
    "uses a kind": (
        "3 * (any, avgpool grid 4x5 | conv1x1 | sepconv3x3 rate 1x1, _) require uses(conv1x1) == 1",
        lambda g: uses(g, "conv1x1") == 1,
    ),
    "uses an operator": (
        "3 * (any, sepconv3x3 rate {4, 6} x 1 | conv1x1, _) require uses(sepconv3x3 rate 6x1) >= 2",
        lambda g: sum(str(o) == "sepconv3x3 rate 6x1" for o in g.operators) >= 2,
    ),
    "not that": (
        "3 * (any, sepconv3x3 rate {4, 6} x 1 | conv1x1, _) require not (uses(sepconv3x3 rate 6x1) >= 1 or depth == 3)",
        lambda g: depth(g) != 3 and all(str(o) != "sepconv3x3 rate 6x1" for o in g.operators),
    ),
    "distance": (
        "2 * (any, sepconv3x3 rate {4, 6} x 1 | conv1x1, _) require distance((F, conv1x1, _) (Y1, conv1x1, _)) == 2",
        lambda g: sum(str(o) != "conv1x1" for o in g.operators) + (g.inputs[1] != 1) == 2,
    ),
    "inputs and operators": (
        "(F, sepconv3x3 rate 4x1 | conv1x1, _) (Y1, sepconv3x3 rate 6x1 | avgpool grid 4x5, _) "
        "optional ({F, Y2}, sepconv3x3 rate {4, 6} x 1 | conv1x1, _)",
        lambda _: True,
    ),
}


@pytest.mark.parametrize(("text", "holds"), MIXED.values(), ids=MIXED.keys())
def test_functions_that_are_gone_through(text: str, holds: Callable[[Genome], bool]) -> None:
    """A class belongs to the space if one of its cells does, whatever the others cost."""
    space = space_of(text)
    classes = enumerator(space, "function", at=(4, 5))
    assert isinstance(classes, ListedEnumerator)
    found = [genome for genome in genomes(space) if holds(genome)]
    assert len(every_class(found, effective((4, 5)))) < len(found)
    check(classes, found, effective((4, 5)))


@pytest.mark.usefixtures("shipped_operators")
def test_functions_of_operators_that_have_two_names() -> None:
    twin = OperatorKind("classes_twin", lambda filters: [Convolution("another", filters)])
    half = OperatorKind("classes_half", lambda filters: [Convolution("conv", filters // 2)])
    with generators.registered(twin), generators.registered(half):
        space = space_of(
            "filters 4 3 * (any, classes_half | classes_twin | conv1x1, _) require params(F=3) <= 30 and branches == 3"
        )

        def weights(genome: Genome) -> int:
            made = [2 if operator.kind == "classes_half" else 4 for operator in genome.operators]
            return sum((made[x - 1] if x else 3) * made[number] for number, x in enumerate(genome.inputs))

        found = [genome for genome in genomes(space) if weights(genome) <= 30]
        classes = enumerator(space, "function", at=(9, 9))
        assert isinstance(classes, ForestEnumerator)
        check(classes, found, lambda o: "half" if o.kind == "classes_half" else "conv")


def test_functions_are_those_of_the_way_in_which_a_cell_is_run() -> None:
    space = space_of("2 * (any, sepconv3x3 rate 3x3 | sepconv3x3 rate 4x4 | sepconv3x3 rate 9x9, _)")
    assert count(space, "function", at=(7, 7)) == forests(2, 3)[2]
    # At output stride 8 the rates are doubled: 6, 8 and 18.
    assert count(space, "function", at=(7, 7), conventions=Conventions(output_stride=8)) == forests(2, 2)[2]
    assert count(space, "function", at=(6, 6), conventions=Conventions(output_stride=8)) == forests(2, 1)[2]
    assert count(space, "function", at=(7, 7)) == count(space, "isomorphism")


# Formulas


def forests(nodes: int, colours: int) -> list[int]:
    """How many forests of 0, 1, …, ``nodes`` nodes in so many colours there are.

    A tree is a coloured root with a forest below it: t(n) = k f(n - 1). Forests are multisets of trees, that is the
    Euler transform: n f(n) = sum over j = 1..n of (sum over d | j of d t(d)) f(n - j). For one colour these are the
    rooted trees, f(n) = A000081(n + 1); for two A000151(n + 1).
    """
    trees, found = [0], [1]
    for n in range(1, nodes + 1):
        trees.append(colours * found[n - 1])
        total = sum(sum(d * trees[d] for d in range(1, j + 1) if j % d == 0) * found[n - j] for j in range(1, n + 1))
        exact = Fraction(total, n)
        assert exact.denominator == 1
        found.append(int(exact))
    return found


def test_the_formula_gives_the_sequences_that_are_known() -> None:
    assert forests(9, 1) == [1, 1, 2, 4, 9, 20, 48, 115, 286, 719]  # A000081
    assert forests(8, 2) == [1, 2, 7, 26, 107, 458, 2058, 9498, 44947]  # A000151


@pytest.mark.parametrize("colours", [81, 53, 2])
@pytest.mark.parametrize("branches", range(1, 11))
def test_classes_of_large_spaces_are_as_many_as_the_formula_says(branches: int, colours: int) -> None:
    operators = OperatorSet(operators=paper_space(1).slots[0].operators.operators[:colours])
    space = Space(slots=tuple(Slot(inputs=None, operators=operators) for _ in range(branches)))
    assert count(space, "isomorphism") == forests(branches, colours)[branches]


def test_optional_branches_add_the_classes_of_smaller_cells() -> None:
    operators = paper_space(1).slots[0].operators
    slots = tuple(Slot(inputs=None, operators=operators, optional=number >= 2) for number in range(7))
    assert count(Space(slots=slots), "isomorphism") == sum(forests(7, 81)[2:])


def test_the_classes_of_the_papers_space() -> None:
    assert count(read_space("dpc"), "isomorphism") == 37_888_452_756
    assert count(paper_space(8), "isomorphism") == 221_698_432_543_111_344
    assert count(read_space("dpc"), "function", at=(33, 33)) == 37_888_452_756  # the paper's are 81 functions there


@pytest.mark.parametrize(("branches", "colours"), [(b, k) for b in range(1, 6) for k in (1, 2, 3, 81)])
def test_the_lemma_of_burnside_gives_as_many(branches: int, colours: int) -> None:
    """All ways to number the nodes of a forest, and the renumberings under which each stays what it is."""
    numbers = range(1, branches + 1)
    labelled = [p for p in product(range(branches + 1), repeat=branches) if _grows(p)]
    assert len(labelled) == (branches + 1) ** (branches - 1)  # Cayley
    fixed = 0
    for order in permutations(numbers):
        moved = (0, *order)
        same = sum(all(p[moved[i] - 1] == moved[p[i - 1]] for i in numbers) for p in labelled)
        fixed += same * colours ** _cycles(order)
    operators = OperatorSet(operators=paper_space(1).slots[0].operators.operators[:colours])
    space = Space(slots=tuple(Slot(inputs=None, operators=operators) for _ in numbers))
    assert Fraction(fixed, factorial(branches)) == count(space, "isomorphism")


def _grows(parents: Sequence[int]) -> bool:
    """Whether every node comes to the root."""
    for node in range(1, len(parents) + 1):
        steps = 0
        while node and steps <= len(parents):
            node, steps = parents[node - 1], steps + 1  # noqa: PLW2901
        if node:
            return False
    return True


def _cycles(order: Sequence[int]) -> int:
    left, cycles = set(range(1, len(order) + 1)), 0
    while left:
        node, cycles = left.pop(), cycles + 1
        while (node := order[node - 1]) in left:
            left.remove(node)
    return cycles


# Large spaces


@pytest.mark.parametrize(("branches", "tries"), [(5, 10_000), (8, 1_000), (20, 30)])
def test_ranks_of_classes_and_cells_are_each_others_inverse(branches: int, tries: int) -> None:
    classes = enumerator(paper_space(branches), "isomorphism")
    r = Random(branches)
    ranks = [0, classes.count - 1, *(r.randrange(classes.count) for _ in range(tries))]
    vectors = classes.vectors(ranks)
    assert classes.ranks(vectors).tolist() == ranks
    assert len(set(map(tuple, vectors.tolist()))) == len(set(ranks))
    for rank in ranks[:300]:
        cell = classes.unrank(rank)
        assert classes.rank(cell) == rank
        assert classes.rank(shuffled(cell, r)) == rank


def shuffled(cell: Cell, r: Random) -> Cell:
    """The cell with its branches in another order."""
    place, found = {0: 0}, []
    while len(found) < len(cell):
        number = r.choice([n for n, b in enumerate(cell.branches, 1) if n not in place and b.input in place])
        found.append((place[cell.branches[number - 1].input], cell.branches[number - 1].operator))
        place[number] = len(found)
    return Cell.of(*found, filters=cell.filters)


@pytest.mark.parametrize("text", ["dpc", "dpc(B=8)", "dpc(B=3) where params(F=320) <= 400K", "dpc(B=70)"])
def test_there_is_no_class_beyond_the_last(text: str) -> None:
    classes = enumerator(read_space(text), "isomorphism")
    for rank in (classes.count, -1, 10**5000, 0.5, True):
        with pytest.raises(DpcError) as caught:
            classes.unrank(rank)  # type: ignore[arg-type]
        assert caught.value.codes == ("DPC071",)
    for rank in (0, classes.count - 1):
        assert classes.rank(classes.unrank(rank)) == rank


def test_classes_under_a_constraint_on_the_papers_space() -> None:
    space = read_space("dpc(B=4) where params(F=320) <= 400K and depth <= 3")
    classes = enumerator(space, "isomorphism")
    # Spaces apart, and together.
    other = read_space("dpc(B=4) where not (params(F=320) <= 400K and depth <= 3)")
    assert classes.count + count(other, "isomorphism") == forests(4, 81)[4]
    r = Random(0)
    for rank in [0, classes.count - 1, *(r.randrange(classes.count) for _ in range(200))]:
        cell = classes.unrank(rank)
        assert cell in space
        assert classes.rank(shuffled(cell, r)) == rank


def test_a_space_without_cells_has_no_classes() -> None:
    for text in ("2 * (any, conv1x1, _) require depth > 2", "2 * (F, conv1x1, _) require depth > 1"):
        classes = enumerator(space_of(text), "isomorphism")
        assert classes.count == 0
        assert list(classes) == []
        with pytest.raises(DpcError) as caught:
            classes.unrank(0)
        assert caught.value.codes == ("DPC074",)


# Samples


def chi_square_limit(freedom: int) -> float:
    """What a uniform sample exceeds with probability 1e-6: the quantile by Wilson and Hilferty, z = 4.7534."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 4.7534 * part**0.5) ** 3


def assert_uniform(values: Sequence[int], count: int) -> None:
    """False alarm: once in a million seeds. The seeds are fixed, so none here."""
    expected = len(values) / count
    assert expected >= 20
    found = Counter(values)
    assert set(found) <= set(range(count))
    assert sum((found[i] - expected) ** 2 / expected for i in range(count)) < chi_square_limit(count - 1)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("3 * (any, conv1x1 | avgpool grid 1x1, _)", None),
        ("3 * (any, conv1x1 | avgpool grid 1x1 | sepconv3x3 rate 1x1, _)", (1, 1)),
        ("4 * (any, conv1x1 | avgpool grid 1x1, _) require depth <= 2", None),
        ("(any, conv1x1 | avgpool grid 1x1, _) optional 2 * (any, conv1x1 | avgpool grid 1x1, _)", None),
        ("(F, conv1x1 | avgpool grid 1x1, _) 2 * ({F, Y1}, conv1x1 | avgpool grid 1x1, _)", None),
    ],
)
def test_classes_are_equally_likely(text: str, at: Size | None) -> None:
    space = space_of(text)
    classes = enumerator(space, "isomorphism" if at is None else "function", at=at)
    label = str if at is None else effective(at)
    names: dict[str, int] = {}
    for cell in classes:
        names[tree([b.input for b in cell.branches], [label(b.operator) for b in cell.branches])] = len(names)
    assert len(names) == classes.count
    drawn = classes.sample(200 * classes.count, seed=20181211)
    found = [names[tree([b.input for b in c.branches], [label(b.operator) for b in c.branches])] for c in drawn]
    assert_uniform(found, classes.count)


def test_the_chi_square_test_would_see_genomes_for_classes() -> None:
    space = space_of("3 * (any, conv1x1 | avgpool grid 1x1, _)")
    classes = enumerator(space, "isomorphism")
    drawn = [classes.rank(cell) for cell in enumerator(space).sample(200 * classes.count, seed=20181211)]
    with pytest.raises(AssertionError):
        assert_uniform(drawn, classes.count)


def test_ranks_of_classes_that_may_never_change() -> None:
    """Whoever has noted down a rank or a seed must find the same cell again: these numbers may never change."""
    classes = enumerator(read_space("dpc"), "isomorphism")
    assert classes.rank(read_cell("top1")) == 20_323_307_488
    assert str(classes.unrank(0)) == " ".join(f"(F, conv1x1, Y{number})" for number in range(1, 6))
    assert str(classes.unrank(12_629_484_252)) == (
        "(F, sepconv3x3 rate 6x9, Y1) (Y1, sepconv3x3 rate 9x9, Y2) (Y1, sepconv3x3 rate 18x1, Y3) "
        "(Y3, sepconv3x3 rate 12x12, Y4) (F, sepconv3x3 rate 18x15, Y5)"
    )
    assert str(classes.unrank(37_888_452_755)) == (
        "(F, avgpool grid 8x8, Y1) (Y1, avgpool grid 8x8, Y2) (Y2, avgpool grid 8x8, Y3) (Y3, avgpool grid 8x8, Y4) "
        "(Y4, avgpool grid 8x8, Y5)"
    )
    assert str(enumerator(paper_space(8), "isomorphism").unrank(73_899_477_514_370_448)) == (
        "(F, sepconv3x3 rate 12x21, Y1) (Y1, sepconv3x3 rate 18x15, Y2) (F, sepconv3x3 rate 21x12, Y3) "
        "(Y3, avgpool grid 8x4, Y4) (Y4, sepconv3x3 rate 18x3, Y5) (Y5, sepconv3x3 rate 6x1, Y6) "
        "(Y6, sepconv3x3 rate 15x6, Y7) (Y5, sepconv3x3 rate 15x21, Y8)"
    )
    functions = enumerator(read_space("dpc"), "function", at=(9, 9))
    assert functions.count == 429_095_700
    assert functions.rank(read_cell("top1")) == 241_688_152
    assert str(functions.unrank(241_688_152)) == (
        "(F, sepconv3x3 rate 1x6, Y1) (Y1, sepconv3x3 rate 1x1, Y2) (Y1, sepconv3x3 rate 6x9, Y3) "
        "(Y1, sepconv3x3 rate 9x9, Y4) (Y4, sepconv3x3 rate 6x3, Y5)"
    )
    constrained = enumerator(read_space("dpc where params(F=320) <= 400K and depth <= 3"), "isomorphism")
    assert constrained.count == 21_581_480_762
    assert constrained.rank(read_cell("top1")) == 4_281_464_189


def test_samples_of_classes_that_may_never_change() -> None:
    classes = enumerator(read_space("dpc"), "isomorphism")
    assert classes.sample_ranks(4, seed=0).tolist() == [18539601800, 2815679124, 1135770465, 37357624954]
    assert classes.sample_ranks(4, seed=0, replacement=False).tolist() == [
        *(28435736089, 1634895027, 21006355895, 9314635516),
    ]
    assert [str(cell) for cell in classes.sample(2, seed=0)] == [
        "(F, avgpool grid 1x8, Y1) (F, avgpool grid 2x4, Y2) (Y2, sepconv3x3 rate 3x15, Y3) "
        "(Y3, sepconv3x3 rate 15x18, Y4) (Y4, sepconv3x3 rate 15x18, Y5)",
        "(F, avgpool grid 2x8, Y1) (Y1, sepconv3x3 rate 18x15, Y2) (F, sepconv3x3 rate 1x9, Y3) "
        "(Y3, sepconv3x3 rate 3x21, Y4) (Y4, sepconv3x3 rate 3x15, Y5)",
    ]
    functions = enumerator(read_space("dpc"), "function", at=(9, 9))
    assert functions.sample_ranks(4, seed=0).tolist() == [341966201, 144840639, 21997493, 8873206]
    large = enumerator(paper_space(8), "isomorphism")
    assert large.sample_ranks(2, seed=7).tolist() == [180171501470192938, 64911553083058333]
    assert large.sample_ranks(2, seed=7, replacement=False).tolist() == [213471371164534084, 192939360873172597]


# What is out of reach


@pytest.mark.parametrize(
    "text",
    [
        "4 * (any, paper, _) (F, paper, _)",
        "4 * (any, paper, _) (any, paper | sepconv3x3 rate 2x2, _)",
        "5 * (any, paper, _) require distance(top1) <= 9",
    ],
)
def test_a_space_that_is_too_large_to_be_gone_through_says_so(text: str) -> None:
    space = parse(f"from zoo import paper, top1\nspace s {{ {text} }}").space("s")
    assert count(space) > MAX_LISTED == 10**7
    for settings_ in ({"up_to": "isomorphism"}, {"up_to": "function", "at": (33, 33)}):
        message = re.escape(f"going through its genomes, and it has {count(space):,}")
        with pytest.raises(DpcError, match=message) as caught:
            enumerator(space, **settings_)  # type: ignore[arg-type]
        assert caught.value.codes == ("DPC070",)
        assert "at most 10,000,000" in str(caught.value)
        assert "every branch reads `any`" in str(caught.value)


def test_merged_operators_of_different_costs_are_out_of_reach_in_a_large_space() -> None:
    space = read_space("dpc where uses(conv1x1) <= 1")
    assert count(space, "isomorphism") > 0
    with pytest.raises(DpcError) as caught:
        count(space, "function", at=(8, 8))  # there avgpool grid 8x8 is conv1x1, and is not counted as one
    assert caught.value.codes == ("DPC070",)
    assert count(space, "function", at=(33, 33)) == count(space, "isomorphism")


def test_a_space_of_too_many_weights_is_gone_through_if_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpcdsl.enumeration.trees.MAX_STATES", 20)
    monkeypatch.setattr("dpcdsl.enumeration.MAX_LISTED", 100)
    small = space_of(f"filters 13 3 * (any, {TWO}, _) require params(F=3) <= 1000")
    classes = enumerator(small, "isomorphism")
    assert isinstance(classes, ListedEnumerator)
    check(classes, [genome for genome in genomes(small) if params(genome, 3, 13) <= 1000])
    with pytest.raises(DpcError) as caught:
        enumerator(space_of(f"filters 13 4 * (any, {TWO}, _) require params(F=3) <= 1000"), "isomorphism")
    assert caught.value.codes == ("DPC070",)
    assert "more than 20 states" in str(caught.value)


def test_listing_tells_how_far_it_is_and_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpcdsl.enumeration.listed.MAX_LISTED", 7)
    with pytest.raises(DpcError) as caught:
        enumerator(space_of("filters 11 3 * (F, conv1x1 | avgpool grid 1x1, _)"), "isomorphism")
    assert caught.value.codes == ("DPC070",)
    monkeypatch.setattr("dpcdsl.enumeration.listed.MAX_LISTED", 8)
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *progress: told.append(progress)):
        assert count(space_of("filters 11 3 * (F, conv1x1 | avgpool grid 1x1, _)"), "isomorphism") == 4
    assert told == [("listing", 8, 8)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"up_to": "isomorphisms"},
        {"up_to": None},
        {"up_to": "function"},
        {"up_to": "function", "at": (0, 3)},
        {"up_to": "function", "at": 33},
        {"up_to": "function", "at": (2**21, 1)},
        {"up_to": "isomorphism", "at": (33, 33)},
        {"up_to": "genome", "at": (33, 33)},
        {"up_to": "isomorphism", "conventions": Conventions()},
        {"up_to": "genome", "conventions": Conventions()},
    ],
)
def test_wrong_settings(arguments: dict[str, Any]) -> None:
    with pytest.raises(DpcError) as caught:
        enumerator(paper_space(1), **arguments)
    assert caught.value.codes == ("DPC062",)
    with pytest.raises(DpcError) as caught:
        count(paper_space(1), **arguments)
    assert caught.value.codes == ("DPC062",)


def test_a_cell_of_another_space_has_no_class() -> None:
    classes = enumerator(read_space("dpc"), "isomorphism")
    for text in ("pspnet", "denseaspp", "filters 3 (F, conv1x1, _)"):
        with pytest.raises(DpcError) as caught:
            classes.rank(read_cell(text))
        assert caught.value.codes == ("DPC055",)
        assert read_cell(text) not in classes
    assert read_cell("top1") in classes


def test_a_class_belongs_to_a_space_if_one_of_its_cells_does() -> None:
    """Where classes are found by going through genomes, any cell of a class has its rank."""
    classes = enumerator(parse("space s { (F, conv1x1, _) (F, avgpool grid 1x1, _) }").space("s"), "isomorphism")
    other = parse_cell("(F, avgpool grid 1x1, Y1) (F, conv1x1, Y2)")
    assert classes.rank(other) == 0
    assert other in classes
    assert parse_cell("(F, avgpool grid 1x1, Y1) (Y1, conv1x1, Y2)") not in classes
    assert parse_cell("(F, sepconv3x3 rate 1x1, Y1) (F, conv1x1, Y2)") not in classes


@pytest.mark.parametrize(
    "text",
    [
        "4 * (any, conv1x1 | avgpool grid 1x1 | sepconv3x3 rate 3x1, _)",
        "2 * (any, conv1x1 | sepconv3x3 rate 3x3 | sepconv3x3 rate 6x6, _) optional 2 * (any, conv1x1 | "
        "sepconv3x3 rate 3x3 | sepconv3x3 rate 6x6, _)",
        "3 * (any, conv1x1 | sepconv3x3 rate 3x3 | sepconv3x3 rate 6x6, _) require depth <= 2 and uses(conv1x1) < 3",
        "(F, conv1x1 | sepconv3x3 rate 3x3 | sepconv3x3 rate 6x6, _) 2 * (any, conv1x1 | sepconv3x3 rate 9x3, _)",
        "2 * (any, conv1x1 | avgpool grid 2x2, _) require distance((F, conv1x1, _) (F, conv1x1, _)) <= 3",
    ],
)
def test_distributions_over_classes(text: str) -> None:
    space = parse(f"space s {{ {text} }}").space("s")
    asked = (Params(features=10), Depth(), Uses(kinds=("conv1x1",)))
    for up_to, at in (("isomorphism", None), ("function", (3, 3)), ("function", (5, 9))):
        wanted = Counter(tuple(measure.of(cell) for measure in asked) for cell in enumerator(space, up_to, at=at))
        assert distribution(space, *asked, up_to=up_to, at=at) == wanted
        assert list(wanted) or space.constraints


def test_distributions_that_classes_do_not_have() -> None:
    space = parse("space s { 2 * (any, conv1x1 | avgpool grid 3x3, _) }").space("s")
    cell = next(iter(enumerator(space)))
    for measure, settings_of in (
        (Distance(to=cell), {"up_to": "isomorphism"}),
        (MAdds(features=3, at=(9, 9)), {"up_to": "function", "at": (3, 3)}),
        (Uses(kinds=("conv1x1",)), {"up_to": "function", "at": (3, 3)}),
    ):
        with pytest.raises(DpcError, match="not the same for all cells") as caught:
            distribution(space, measure, **settings_of)  # type: ignore[arg-type]
        assert caught.value.codes == ("DPC062",)
    assert sum(distribution(space, Params(features=3), up_to="function", at=(3, 3)).values()) == 2
