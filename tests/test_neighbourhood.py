"""Neighbours, mutation and crossover: against all cells of small spaces, formulas, and chi-square tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pytest
from brute_force import cell_of, everything, genomes_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpcdsl import Cell, DpcError, Operator, Space, distance, parse, parse_cell, read_cell, read_space
from dpcdsl.enumeration import enumerator
from dpcdsl.interchange import paper_space
from dpcdsl.neighbourhood import crossover, mutate, neighbours


def space_of(text: str) -> Space:
    return parse(f"space s {{ {text} }}").space("s")


def members(space: Space) -> list[Cell]:
    """Every cell of a space, once for each way to choose it: by trying every choice at every slot."""
    return [cell for _, cell in everything(space) if all(constraint.holds(cell) for constraint in space.constraints)]


def differences(a: Cell, b: Cell) -> int:
    """Inputs and operators that differ; a branch that one of them has not counts two."""
    total = 2 * abs(len(a) - len(b))
    for one, other in zip(a.branches, b.branches, strict=False):
        total += one.input != other.input
        total += one.operator != other.operator
    return total


def chi_square_limit(freedom: int) -> float:
    """What a uniform sample exceeds with probability 1e-6: the quantile by Wilson and Hilferty, z = 4.7534."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 4.7534 * part**0.5) ** 3


def assert_uniform(found: Sequence[Hashable], among: set[Any]) -> None:
    """False alarm: once in a million seeds. The seeds are fixed, so none here."""
    expected = len(found) / len(among)
    assert expected >= 20
    counts = Counter(found)
    assert set(counts) <= among
    if len(among) > 1:
        limit = chi_square_limit(len(among) - 1)
        assert sum((counts[each] - expected) ** 2 / expected for each in among) < limit


# In none of these a cell can be chosen in two ways, so that cells and genomes are the same.
SPACES = {
    "free": "3 * (any, conv1x1 | avgpool grid 1x1, _)",
    "chosen inputs": "(F, conv1x1 | avgpool grid 1x1, _) (Y1, conv1x1, _) ({F, Y2}, conv1x1 | sepconv3x3 rate 3x6, _)",
    "optional": "(F, conv1x1 | avgpool grid 1x1, _) optional (any, avgpool grid 2x2, _) (any, conv1x1, _)",
    "optional last": "(any, conv1x1 | avgpool grid 1x1, _) optional (any, conv1x1 | avgpool grid 1x1, _)",
    "subsets": "optional (F, conv1x1, _) optional (F, avgpool grid 1x1, _) optional (F, sepconv3x3 rate 6x6, _) "
    "require branches >= 1",
    "constrained": "3 * (any, conv1x1 | sepconv3x3 rate {1, 3} x 6, _) require depth <= 2 and uses(conv1x1) >= 1",
    "costs": "filters 4 3 * (any, conv1x1 | sepconv3x3 rate 1x1 | avgpool grid 1x1, _) require params(F=3) <= 60",
    "near a cell": "3 * (any, conv1x1 | avgpool grid 1x1, _) require distance((F, conv1x1, _) (F, conv1x1, _)) <= 4",
    "both": "(any, conv1x1 | avgpool grid 1x1, _) optional (F, sepconv3x3 rate 1x1, _) (any, conv1x1, _) "
    "require depth <= 2 or branches == 3",
    "filters": "filters 64 2 * (any, conv1x1 | avgpool grid 1x1, _)",
}

OUTSIDE = [
    "(F, conv1x1, _)",
    "(F, sepconv3x3 rate 1x6, _) (Y1, sepconv3x3 rate 3x6, _) (Y2, avgpool grid 5x5, _)",
    "(F, avgpool grid 1x1, _) (F, avgpool grid 1x1, _) (Y2, conv1x1, _) (F, conv1x1, _) (Y4, conv1x1, _)",
]

spaces = pytest.mark.parametrize("text", SPACES.values(), ids=SPACES.keys())


# Neighbours


@spaces
def test_neighbours_are_the_cells_within_the_radius(text: str) -> None:
    space = space_of(text)
    everything = members(space)
    assert len(set(everything)) == len(everything) > 1
    centres = [*everything[:: max(1, len(everything) // 8)], *map(parse_cell, OUTSIDE)]
    for cell in centres:
        for radius in range(1, 2 * max(len(cell), len(space.slots)) + 2):
            near = neighbours(cell, space, radius)
            expected = [other for other in everything if 1 <= differences(other, cell) <= radius]
            assert near.count == len(expected)
            assert list(near) == expected  # in the order of the space
            assert [near.rank(other) for other in expected] == list(range(len(expected)))
            for other in everything[:20]:
                assert (other in near) == (other in expected)


@pytest.mark.parametrize(
    "text",
    [
        "(F, conv1x1, _) optional 2 * (F, conv1x1 | avgpool grid 1x1, _)",
        "optional 3 * (any, conv1x1 | avgpool grid 1x1, _) require branches >= 1",
        "optional (any, conv1x1, _) optional (any, conv1x1, _) (any, conv1x1 | avgpool grid 1x1, _) require depth <= 2",
    ],
)
def test_neighbours_where_a_cell_can_be_chosen_in_several_ways(text: str) -> None:
    """Which cells there are, whatever the number of ways to choose each."""
    space = space_of(text)
    everything = set(members(space))
    assert len(everything) < len(members(space))
    for cell in sorted(everything, key=str)[:: max(1, len(everything) // 6)]:
        for radius in range(1, 2 * len(space.slots) + 1):
            expected = {other for other in everything if 1 <= differences(other, cell) <= radius}
            assert set(neighbours(cell, space, radius)) == expected
            at_it = {other for other in everything if differences(other, cell) == radius}
            if at_it:
                assert mutate(cell, space, 0, distance=radius) in at_it


def test_neighbours_of_the_papers_cells_by_the_formula() -> None:
    """A branch can change its operator to 80 others, branch i its input to i - 1 others; both are independent."""
    for name in ("top1", "aspp"):
        assert neighbours(read_cell(name)).count == 5 * 80 + (0 + 1 + 2 + 3 + 4) == 410
    changes = [80] * 5 + [0, 1, 2, 3, 4]
    at = [1] + [0] * 10  # how many cells at each distance: the coefficients of the product of (1 + c z)
    for c in changes:
        at = [number + (c * at[d - 1] if d else 0) for d, number in enumerate(at)]
    assert at[2] == comb(5, 2) * 80**2 + 5 * 80 * 10 + (1 * 2 + 1 * 3 + 1 * 4 + 2 * 3 + 2 * 4 + 3 * 4)
    assert sum(at) == 418_414_128_120
    for radius in range(1, 13):
        assert neighbours(read_cell("top1"), radius=radius).count == sum(at[1 : radius + 1])
    assert neighbours(read_cell("top1"), radius=2).count == 410 + 68_035
    # From outside of the space nothing is lost where the operator is not the space's: there are 81 others.
    outside = parse_cell("(F, sepconv3x3 rate 2x2, _) (F, conv1x1, _)")
    assert neighbours(outside).count == 81
    assert neighbours(outside, radius=2).count == 81 + 81 * (80 + 1)


def test_the_default_space_is_the_papers() -> None:
    for cell in (parse_cell("(F, conv1x1, _)"), parse_cell("(F, conv1x1, _) (F, avgpool grid 3x3, _)")):
        assert neighbours(cell).space.slots == paper_space(len(cell)).slots
        assert neighbours(cell, paper_space(len(cell))).count == neighbours(cell).count
        assert mutate(cell, seed=3) == mutate(cell, paper_space(len(cell)), 3)
    a, b = read_cell("top1"), read_cell("aspp")
    assert crossover(a, b, seed=3) == crossover(a, b, paper_space(5), 3)


@pytest.mark.parametrize("text", ["dpc", "dpc where params(F=320) <= 400K", "aspp_subsets"])
def test_neighbours_in_large_spaces(text: str) -> None:
    space = read_space(text)
    cell = enumerator(space).sample(1, seed=1)[0]
    for radius in (1, 2, 3):
        near = neighbours(cell, space, radius)
        for other in near.sample(30, seed=radius):
            assert other in space
            assert 1 <= differences(other, cell) <= radius
            assert near.unrank(near.rank(other)) == other


@pytest.mark.parametrize("name", ["free", "optional", "subsets", "constrained", "both"])
def test_neighbours_are_equally_likely(name: str) -> None:
    space = space_of(SPACES[name])
    everything = members(space)
    cell = everything[len(everything) // 3]
    near = {other for other in everything if 1 <= differences(other, cell) <= 2}
    assert len(near) > 1
    assert_uniform(neighbours(cell, space, 2).sample(100 * len(near), seed=20181211), near)


def test_the_neighbours_of_the_only_cell_are_none() -> None:
    cell = parse_cell("(F, conv1x1, _)")
    near = neighbours(cell, Space.only(cell), 5)
    assert near.count == 0
    assert list(near) == []
    with pytest.raises(DpcError) as caught:
        near.sample(1)
    assert caught.value.codes == ("DPC074",)
    assert list(neighbours(parse_cell("(F, avgpool grid 1x1, _)"), Space.only(cell))) == [cell]


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "1", None, True, -(10**30)])
def test_wrong_radii(wrong: Any) -> None:
    for ask in (
        lambda: neighbours(read_cell("top1"), radius=wrong),
        lambda: mutate(read_cell("top1"), distance=wrong),
    ):
        with pytest.raises(DpcError) as caught:
            ask()
        assert caught.value.codes == ("DPC062",)


# Mutation


@spaces
def test_a_mutant_lies_at_exactly_the_distance(text: str) -> None:
    space = space_of(text)
    everything = members(space)
    for cell in [*everything[:: max(1, len(everything) // 5)], *map(parse_cell, OUTSIDE)]:
        for far in range(1, 2 * max(len(cell), len(space.slots)) + 2):
            possible = {other for other in everything if differences(other, cell) == far}
            if possible:
                found = [mutate(cell, space, seed, distance=far) for seed in range(3)]
                assert set(found) <= possible
                assert mutate(cell, space, 0, distance=far) == found[0]
            else:
                with pytest.raises(DpcError) as caught:
                    mutate(cell, space, 0, distance=far)
                assert caught.value.codes == ("DPC074",)


@pytest.mark.parametrize(
    ("name", "far"), [("free", 1), ("free", 3), ("optional", 2), ("subsets", 4), ("constrained", 2), ("both", 2)]
)
def test_mutants_are_equally_likely(name: str, far: int) -> None:
    space = space_of(SPACES[name])
    everything = members(space)
    cell = everything[-1]
    possible = {other for other in everything if differences(other, cell) == far}
    assert len(possible) > 1
    generator = np.random.Generator(np.random.PCG64(20181211))
    assert_uniform([mutate(cell, space, generator, distance=far) for _ in range(60 * len(possible))], possible)


def test_mutants_that_may_never_change() -> None:
    top1 = read_cell("top1")
    assert str(mutate(top1, seed=0)) == (
        "(F, sepconv3x3 rate 1x6, Y1) (Y1, avgpool grid 4x2, Y2) (Y2, sepconv3x3 rate 6x3, Y3) "
        "(Y1, sepconv3x3 rate 1x1, Y4) (Y1, sepconv3x3 rate 6x21, Y5)"
    )
    assert str(mutate(top1, seed=1, distance=3)) == (
        "(F, sepconv3x3 rate 15x12, Y1) (Y1, sepconv3x3 rate 18x15, Y2) (Y2, sepconv3x3 rate 6x3, Y3) "
        "(Y1, sepconv3x3 rate 1x18, Y4) (Y1, sepconv3x3 rate 3x21, Y5)"
    )
    assert str(mutate(top1, read_space("dpc where params(F=320) <= 400K"), 2, distance=2)) == (
        "(F, sepconv3x3 rate 1x6, Y1) (Y1, sepconv3x3 rate 18x15, Y2) (Y2, avgpool grid 2x1, Y3) "
        "(Y1, sepconv3x3 rate 21x6, Y4) (Y1, sepconv3x3 rate 6x21, Y5)"
    )
    assert neighbours(top1, radius=2).sample_ranks(3, seed=5).tolist() == [67544, 37460, 7068]


# Crossover


def children(a: Cell, b: Cell, space: Space) -> set[Cell]:
    """All cells of the space that take each input and operator of a slot from a parent: by trying all choices."""
    ways = [space.embed(cell) for cell in (a, b)]
    assert all(way is not None for way in ways)
    offered = []
    for slot, *taken in zip(space.slots, *ways, strict=True):  # type: ignore[arg-type]
        there = [choice for choice in taken if choice is not None]
        pairs = {(source, operator) for source, _ in there for _, operator in there}
        offered.append([*([None] if len(there) < 2 else []), *sorted(pairs)])
        assert slot.optional or len(there) == 2
    cells = {cell_of(space, choices) for choices in genomes_of(offered)}
    return {cell for cell in cells if all(constraint.holds(cell) for constraint in space.constraints)}


@spaces
def test_children_have_each_input_and_operator_from_a_parent(text: str) -> None:
    space = space_of(text)
    everything = members(space)
    few = everything[:: max(1, len(everything) // 7)]
    for a, b in product(few, few):
        possible = children(a, b, space)
        assert {a, b} <= possible <= set(everything)
        found = {crossover(a, b, space, seed) for seed in range(5)}
        assert found <= possible
        assert crossover(a, b, space, 0) in found
        if a == b:
            assert possible == found == {a}


PARENTS = {
    "free": (
        "(F, conv1x1, _) (F, avgpool grid 1x1, _) (Y2, conv1x1, _)",
        "(F, avgpool grid 1x1, _) (Y1, conv1x1, _) (F, conv1x1, _)",
    ),
    "optional": (
        "(F, conv1x1, _) (Y1, avgpool grid 2x2, _) (Y2, conv1x1, _)",
        "(F, avgpool grid 1x1, _) (F, conv1x1, _)",
    ),
    "subsets": ("(F, conv1x1, _)", "(F, avgpool grid 1x1, _) (F, sepconv3x3 rate 6x6, _)"),
    "constrained": (
        "(F, sepconv3x3 rate 1x6, _) (Y1, sepconv3x3 rate 3x6, _) (Y1, conv1x1, _)",
        "(F, conv1x1, _) (F, sepconv3x3 rate 1x6, _) (Y2, sepconv3x3 rate 3x6, _)",
    ),
    "both": (
        "(F, conv1x1, _) (F, sepconv3x3 rate 1x1, _) (Y2, conv1x1, _)",
        "(F, avgpool grid 1x1, _) (Y1, conv1x1, _)",
    ),
}


@pytest.mark.parametrize("name", PARENTS)
def test_all_children_are_equally_likely(name: str) -> None:
    space = space_of(SPACES[name])
    a, b = map(parse_cell, PARENTS[name])
    possible = children(a, b, space)
    assert len(possible) > 2
    generator = np.random.Generator(np.random.PCG64(20181211))
    found = [crossover(a, b, space, generator) for _ in range(60 * len(possible))]
    assert set(found) == possible
    assert_uniform(found, possible)
    again = [crossover(b, a, space, generator) for _ in range(60 * len(possible))]
    assert_uniform(again, possible)


def test_a_constraint_can_forbid_what_parents_could_have_together() -> None:
    space = space_of("2 * (any, conv1x1 | avgpool grid 1x1, _) require uses(conv1x1) == 1")
    a = parse_cell("(F, conv1x1, _) (F, avgpool grid 1x1, _)")
    b = parse_cell("(F, avgpool grid 1x1, _) (F, conv1x1, _)")
    assert {crossover(a, b, space, seed) for seed in range(60)} == {a, b}


def test_children_where_a_branch_would_be_left_without_an_input() -> None:
    space = space_of("(F, conv1x1, _) optional 2 * (any, conv1x1, _) (any, avgpool grid 1x1, _)")
    a = parse_cell("(F, conv1x1, _) (Y1, conv1x1, _) (Y2, conv1x1, _) (Y3, avgpool grid 1x1, _)")
    b = parse_cell("(F, conv1x1, _) (Y1, avgpool grid 1x1, _)")
    possible = children(a, b, space)
    found = {crossover(a, b, space, seed) for seed in range(200)}
    assert found == possible
    assert parse_cell("(F, conv1x1, _) (Y1, conv1x1, _) (Y1, avgpool grid 1x1, _)") in found
    # Both optional branches only one parent has, and the third branch reads the second: never without it.
    assert all(len(cell) != 3 or cell.branches[1].input == 1 for cell in found)


OPERATORS = st.sampled_from(read_space("dpc").slots[0].operators.operators)


def cells_of(branches: int) -> st.SearchStrategy[Cell]:
    return st.tuples(*(st.tuples(st.integers(0, i), OPERATORS) for i in range(branches))).map(
        lambda found: Cell.of(*found)
    )


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(cells_of(n), cells_of(n))), st.integers(0, 2**64))
@settings(max_examples=60)
def test_a_child_in_the_papers_space_lies_between_its_parents(pair: tuple[Cell, Cell], seed: int) -> None:
    a, b = pair
    child = crossover(a, b, seed=seed)
    assert child in paper_space(len(a))
    assert differences(a, child) + differences(child, b) == differences(a, b)
    for one, other, made in zip(a.branches, b.branches, child.branches, strict=True):
        assert made.input in (one.input, other.input)
        assert made.operator in (one.operator, other.operator)


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(cells_of(n), cells_of(n))))
@settings(max_examples=20)
def test_fields_of_a_child_come_from_both_parents(pair: tuple[Cell, Cell]) -> None:
    a, b = pair
    assume(differences(a, b) >= 2)
    found = {crossover(a, b, seed=seed) for seed in range(40)}
    assert len(found) > 1
    assert len(found) <= 2 ** differences(a, b)


def test_a_parent_from_elsewhere_is_refused() -> None:
    a, b = read_cell("top1"), parse_cell("(F, conv1x1, _)")
    for one, other in ((a, b), (b, a), (a, parse_cell("filters 3 (F, conv1x1, _)"))):
        with pytest.raises(DpcError) as caught:
            crossover(one, other, paper_space(5))
        assert caught.value.codes == ("DPC055",)
    with pytest.raises(DpcError) as caught:
        crossover(a, b)
    assert caught.value.codes == ("DPC055",)


def test_children_that_may_never_change() -> None:
    top1, aspp = read_cell("top1"), read_cell("aspp")
    assert str(crossover(top1, aspp, seed=0)) == (
        "(F, avgpool grid 1x1, Y1) (F, conv1x1, Y2) (F, sepconv3x3 rate 6x3, Y3) (F, sepconv3x3 rate 12x12, Y4) "
        "(Y1, sepconv3x3 rate 6x21, Y5)"
    )
    assert str(crossover(top1, aspp, seed=1)) == (
        "(F, avgpool grid 1x1, Y1) (F, sepconv3x3 rate 18x15, Y2) (F, sepconv3x3 rate 6x3, Y3) "
        "(F, sepconv3x3 rate 12x12, Y4) (Y1, sepconv3x3 rate 6x21, Y5)"
    )


# The distance


def _few(most: int) -> st.SearchStrategy[Cell]:
    # Few operators and branches, so that cells agree in much.
    operators = st.sampled_from([Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))])
    return (
        st.integers(1, most)
        .flatmap(lambda n: st.tuples(*(st.tuples(st.integers(0, i), operators) for i in range(n))))
        .flatmap(lambda found: st.sampled_from((256, 8)).map(lambda filters: Cell.of(*found, filters=filters)))
    )


@given(_few(5), _few(5), _few(5))
@settings(max_examples=300)
def test_distance_counts_what_differs(a: Cell, b: Cell, c: Cell) -> None:
    assert distance(a, b) == differences(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a.branches == b.branches)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert abs(len(a) - len(b)) * 2 <= distance(a, b) <= 2 * max(len(a), len(b))
