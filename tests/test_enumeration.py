"""The enumerator against brute force: counts, order, ranks, vectors and distributions; numbers beyond 64 bits.

The oracle builds every genome of a small space slot by slot, an optional branch left out first, then inputs and
operators in order. It shares nothing with the enumerator: not its dynamic programme, not Space.embed, not its order.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, pairwise, product
from math import comb, factorial, prod
from operator import eq, ge, gt, le, lt, ne
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import Branch, Cell, DpcError, Operator, OperatorSet, Slot, Space, operators, parse, read_cell, read_space
from dpcdsl.constraints import (
    AllOf,
    AnyOf,
    Branches,
    Comparison,
    Constraint,
    Depth,
    Distance,
    MAdds,
    Measure,
    Not,
    Params,
    Uses,
)
from dpcdsl.enumeration import Enumerator, count, distribution, enumerator, enumerator_of, reporting, tally
from dpcdsl.layers import Convolution, Layer
from dpcdsl.neighbourhood import crossover, mutate, neighbours
from dpcdsl.operators import Integer, OperatorKind, register_operator

RELATIONS = {"<=": le, "<": lt, ">=": ge, ">": gt, "==": eq, "!=": ne}

Choices: TypeAlias = tuple[tuple[int, int] | None, ...]


# Operators of one's own: the channels that they write depend on those that they read


@dataclass(frozen=True)
class _Through(Layer):
    """Passes its channels through, as a max pooling without a convolution does."""

    tag: int


@dataclass(frozen=True)
class _Twice(Layer):
    """Writes its input twice over."""

    def out_channels(self, in_channels: int) -> int:
        return 2 * in_channels


def _through(filters: int, tag: int) -> list[Layer]:  # noqa: ARG001
    return [_Through(tag)]


def _twice(filters: int) -> list[Layer]:  # noqa: ARG001
    return [_Twice()]


def _wide(filters: int) -> list[Layer]:
    return [Convolution("conv", filters + 3)]


@pytest.fixture(autouse=True, scope="module")
def operators_of_ones_own() -> Iterator[None]:
    with patch.dict(operators._registry):
        register_operator(OperatorKind("through", _through, (Integer("tag"),)))
        register_operator(OperatorKind("twice", _twice))
        register_operator(OperatorKind("wide", _wide))
        yield


# The oracle


def genomes(space: Space) -> Iterator[Choices]:
    """What each slot chooses, in the order of the vectors."""
    options: list[list[tuple[int, int] | None]] = []
    for number, slot in enumerate(space.slots, 1):
        inputs = range(number) if slot.inputs is None else slot.inputs
        options.append([*([None] if slot.optional else []), *product(inputs, range(len(slot.operators.operators)))])
    for choices in product(*options):
        there = {0, *(number for number, choice in enumerate(choices, 1) if choice is not None)}
        if len(there) > 1 and all(choice is None or choice[0] in there for choice in choices):
            yield choices


@lru_cache(maxsize=2**16)
def branch(source: int, operator: Operator) -> Branch:
    return Branch(input=source, operator=operator)


def cell_of(space: Space, choices: Choices) -> Cell:
    number_of = {0: 0}
    branches = []
    for number, (slot, choice) in enumerate(zip(space.slots, choices, strict=True), 1):
        if choice is not None:
            number_of[number] = len(branches) + 1
            branches.append(branch(number_of[choice[0]], slot.operators.operators[choice[1]]))
    return Cell(branches=tuple(branches), filters=space.filters)


def everything(space: Space) -> list[tuple[Choices, Cell]]:
    """All genomes of the slots, whatever the constraints say."""
    return [(choices, cell_of(space, choices)) for choices in genomes(space)]


def vector_of(choices: Choices) -> list[int]:
    return [number for choice in choices for number in (choice or (-1, -1))]


def code_of(error: pytest.ExceptionInfo[DpcError]) -> str:
    (code,) = error.value.codes
    assert str(error.value)
    return code


def compare(space: Space, inside: list[tuple[Choices, Cell]], outside: Sequence[tuple[Choices, Cell]] = ()) -> None:
    """The enumerator of ``space`` against its genomes in order, and some genomes that the constraints leave out."""
    found = enumerator(space)
    cells = [cell for _, cell in inside]
    vectors = np.array([vector_of(choices) for choices, _ in inside], np.int32).reshape(-1, 2 * len(space.slots))
    places = np.arange(len(cells), dtype=np.uint64)
    assert found.count == count(space) == len(cells)
    assert list(found.cells()) == cells
    if cells:
        assert np.array_equal(found.vectors(places), vectors)
        assert found.vectors(places).dtype == np.int32
    assert np.array_equal(found.ranks(vectors), places)
    assert found.ranks(vectors).dtype == np.uint64
    ranks_of: dict[Cell, list[int]] = {}
    for rank, cell in enumerate(cells):
        ranks_of.setdefault(cell, []).append(rank)
        assert found.rank_of(inside[rank][0]) == rank
        assert found.choices(rank) == inside[rank][0]
    for cell, ranks in ranks_of.items():
        assert found.rank(cell) == ranks[0]  # there are more only where optional branches give it twice
        assert cell in found
    for rank in (-1, len(cells)):
        with pytest.raises(DpcError) as caught:
            found.unrank(rank)
        assert code_of(caught) == ("DPC071" if cells else "DPC074")
    for choices, cell in outside:
        assert cell not in found
        if cells:
            with pytest.raises(DpcError) as caught:
                found.ranks([vector_of(choices)])
            assert code_of(caught) == "DPC055"
        with pytest.raises(DpcError, match="breaks") as caught:
            found.rank(cell)
        assert code_of(caught) == "DPC055"


def compare_all(space: Space, measures: Sequence[Measure] = ()) -> None:
    """Everything that brute force knows of a space, and how ``measures`` are distributed, each and two together."""
    inside, outside = [], []
    for choices, cell in everything(space):
        (inside if all(c.holds(cell) for c in space.constraints) else outside).append((choices, cell))
    compare(space, inside, outside[:: max(1, len(outside) // 10)])
    for asked in (*((m,) for m in measures), *pairwise(measures)):
        wanted = Counter(tuple(m.of(cell) for m in asked) for _, cell in inside)
        assert distribution(space, *asked) == wanted
        assert list(distribution(space, *asked)) == sorted(wanted)


def space_of(text: str) -> Space:
    return parse(f"from zoo import top1, aspp, dpc, paper\nspace s {{ {text} }}").space("s")


# Small spaces


@cache
def measured() -> tuple[Measure, ...]:
    """One measure of each kind and more; operators of one's own are known only while the tests run."""
    return (
        Params(features=3),
        Depth(),
        Uses(kinds=("avgpool", "through")),
        MAdds(features=5, at=(3, 4)),
        Branches(),
        Uses(operators=(Operator.of("sepconv3x3", rate=(1, 1)), Operator.of("conv1x1"))),
        Params(features=700),
        Distance(to=Cell.of((0, Operator.of("conv1x1")), (1, Operator.of("avgpool", grid=(1, 1))))),
    )


SIX = "conv1x1 | sepconv3x3 rate {1, 3} x 1 | avgpool grid 1 x {1, 2} | sepconv3x3 rate 2x2"
OWN = "conv1x1 | through tag {1, 2} | twice | wide"

FREE = {
    "one cell": "(F, conv1x1, _)",
    "one branch": f"(F, {SIX}, _)",
    "two of six": f"2 * (any, {SIX}, _)",
    "three of five": "3 * (any, sepconv3x3 rate {1..5}x1, _)",
    "four of two": "4 * (any, conv1x1 | avgpool grid 1x1, _)",
    "five of one": "5 * (any, conv1x1, _)",
    "other sets": f"(F, {SIX}, _) (any, conv1x1, _) (any, avgpool grid {{1..3}}x1, _) (any, {SIX}, _)",
    "chosen inputs": f"(F, conv1x1 | wide, _) (Y1, {SIX}, _) ({{F, Y2}}, conv1x1, _) ({{Y1, Y3}}, "
    f"{OWN}, _) (any, twice, _)",
    "reads one only": f"(F, {SIX}, _) (Y1, {SIX}, _) (Y2, {SIX}, _)",
    "own operators": f"filters 2 3 * (any, {OWN}, _)",
}

OPTIONAL = {
    "first": f"optional (F, conv1x1 | wide, _) (any, {SIX}, _) (any, conv1x1 | twice, _)",
    "middle": f"(F, conv1x1, _) optional (any, {SIX}, _) (any, conv1x1 | twice, _)",
    "last": f"filters 7 (F, conv1x1, _) (any, {SIX}, _) optional (any, conv1x1 | twice, _)",
    "alike": "(F, conv1x1, _) optional 3 * (F, conv1x1, _) (any, conv1x1, _)",
    "all but one": "optional 2 * (any, conv1x1 | avgpool grid 1x1, _) (F, twice, _) optional 2 * (any, conv1x1, _)",
    "alternating": f"optional (F, {OWN}, _) (F, conv1x1, _) optional ({{F, Y1, Y2}}, conv1x1 | "
    f"twice, _) (any, {OWN}, _)",
    "named": "(F, conv1x1, _) optional (F, twice, _) optional ({Y1, Y2}, wide, _) ({Y1, Y2, Y3}, conv1x1 | twice, _)",
    "every branch": "optional 4 * (any, conv1x1 | avgpool grid 1x1, _) require branches >= 1",
    "every branch, deep": f"optional 3 * (any, {OWN}, _) require depth > 1",
    "31 cells": "optional (F, conv1x1, _) optional 3 * (F, wide, _) optional (F, twice, _) require branches != 0",
}

CONSTRAINED = {
    "params": f"filters 4 3 * (any, {SIX}, _) require params(F=10) <= 130",
    "params of own": f"filters 4 3 * (any, {OWN}, _) require params(F=3) > 20 require params(F=3) < 61",
    "two features": f"filters 4 3 * (any, {OWN}, _) require params(F=3) <= 40 and params(F=100) > 100",
    "madds": f"filters 16 3 * (any, {SIX}, _) require madds(F=10, at=3x5) <= 10K",
    "madds at two sizes": f"filters 3 3 * (any, {SIX}, _) require madds(F=2, at=1x1) < 40 or madds(F=2, at=9x9) > 4K",
    "depth is": "5 * (any, conv1x1 | avgpool grid 1x1, _) require depth == 3",
    "depth is not": "5 * (any, conv1x1 | avgpool grid 1x1, _) require not depth == 3 and depth != 1",
    "depth of named": f"(F, {OWN}, _) ({{F, Y1}}, {OWN}, _) ({{Y1, Y2}}, {OWN}, _) (any, conv1x1, _) "
    f"require depth <= 2",
    "uses": "4 * (any, conv1x1 | avgpool grid 1x1 | through tag 1, _) require uses(avgpool) == 2",
    "uses one of": f"3 * (any, {SIX}, _) require uses(conv1x1 | sepconv3x3 rate 3x1) >= 1 require uses(avgpool) < 2",
    "uses too many": "3 * (any, conv1x1 | wide, _) require uses(wide) > 3",
    "distance": f"3 * (any, {SIX}, _) require distance((F, conv1x1, Y1) (Y1, sepconv3x3 rate 3x1, Y2)) <= 3",
    "distance of a longer": f"3 * (any, {SIX}, _) require distance(top1) < 9 or distance(aspp) == 8",
    "distance at least": "4 * (any, conv1x1 | avgpool grid 1x1 | wide, _) require distance(aspp) >= 8",
    "distance and optional": f"optional 2 * (any, {SIX}, _) (F, conv1x1, _) optional (any, conv1x1 | twice, _) "
    "require distance((F, conv1x1, Y1) (F, conv1x1, Y2) (Y1, twice, Y3)) <= 3",
    "distance of a longer and optional": "optional 3 * (any, conv1x1 | sepconv3x3 rate 1x6, _) require branches >= 1 "
    "require distance(top1) == 7 or distance(aspp) < 8 or distance((F, conv1x1, Y1)) == 0",
    "branches": f"optional 3 * (any, {OWN}, _) (F, conv1x1, _) require branches == 2 or branches > 3",
    "optional and cost": f"filters 5 optional 3 * (any, {OWN}, _) (F, wide, _) require params(F=6) < 130 "
    "and depth >= 2",
    "filters": f"filters 1 4 * (any, {OWN.replace(' | wide', '')}, _) require params(F=1) == 3",
    "large filters": f"filters 65536 2 * (any, {OWN}, _) "
    "require params(F=1048576) != 0 and madds(F=1048576, at=65x129) > 1T",
    "nested": f"filters 3 3 * (any, {SIX}, _) require not (depth == 1 or (uses(avgpool) >= 1 "
    "and not params(F=3) > 40)) or (uses(conv1x1) == 3 and depth == 1)",
    "a riddle": "5 * (any, conv1x1 | avgpool grid 1x1, _) require (depth == 2 or depth == 4) and "
    "not uses(conv1x1) == 2 "
    "and (uses(conv1x1) != 4 or depth < 4) require depth >= 0",
    "always": f"3 * (any, {SIX}, _) require depth >= 0 require params(F=3) != 1 or depth < 99",
    "never": f"3 * (any, {SIX}, _) require depth < 0",
    "contradiction": f"2 * (any, {SIX}, _) require uses(conv1x1) > 1 and not uses(conv1x1) > 1",
    "one left": "5 * (any, conv1x1 | avgpool grid 1x1, _) require depth == 5 and uses(avgpool) == 0",
    "large bound": "2 * (any, conv1x1 | twice, _) require params(F=3) <= 1000000000000T",
}


@pytest.mark.parametrize("text", [*FREE.values(), *OPTIONAL.values()], ids=[*FREE, *OPTIONAL])
def test_a_small_space_against_brute_force(text: str) -> None:
    compare_all(space_of(text), measured())


@pytest.mark.parametrize("text", CONSTRAINED.values(), ids=CONSTRAINED.keys())
def test_a_constrained_space_against_brute_force(text: str) -> None:
    compare_all(space_of(text), measured())


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("branches", range(1, 6))
def test_every_number_of_operators_and_branches(size: int, branches: int) -> None:
    names = " | ".join([*SIX.replace("{1, 3} x 1", "1x1").split(" | "), *OWN.split(" | ")[3:]][:size])
    space = space_of(f"{branches} * (any, {names}, _)")
    assert len(space.slots[0].operators) >= size
    wanted = factorial(branches) * len(space.slots[0].operators) ** branches
    assert count(space) == wanted
    if wanted <= 3000:
        compare_all(space, [Depth()])


BASES = {
    "free": "filters 5 3 * (any, conv1x1 | through tag 1 | wide, _)",
    "own inputs": "(F, twice | conv1x1, _) ({F, Y1}, conv1x1 | avgpool grid 1x1, _) (Y1, conv1x1, "
    "_) (any, twice | wide, _)",
    "optional": "filters 9 optional (F, conv1x1 | twice, _) (F, twice | wide, _) optional (any, "
    "conv1x1, _) (any, wide, _)",
}


@pytest.mark.parametrize("text", BASES.values(), ids=BASES.keys())
def test_every_relation_of_every_measure_at_many_bounds(text: str) -> None:
    space = space_of(text)
    universe = everything(space)
    for measure in measured():
        values = [measure.of(cell) for _, cell in universe]
        known = sorted(set(values))
        bounds = {0, 1, known[0], known[0] + 1, known[len(known) // 2], known[-1] - 1, known[-1], known[-1] + 1}
        for bound, (relation, holds) in product(sorted(b for b in bounds if b >= 0), RELATIONS.items()):
            asked = Comparison(measure=measure, relation=relation, bound=bound)
            kept = [one for one, value in zip(universe, values, strict=True) if holds(value, bound)]
            assert count(space.where(asked)) == len(kept)
            assert count(space.where(Not(negated=asked))) == len(universe) - len(kept)
            if relation in ("<=", "==") or not kept:
                compare(space.where(asked), kept)


def test_distributions_of_more_measures_and_of_none() -> None:
    space = space_of(CONSTRAINED["optional and cost"])
    cells = [cell for _, cell in everything(space) if all(c.holds(cell) for c in space.constraints)]
    assert distribution(space) == {(): len(cells)}
    assert distribution(space, *measured()) == Counter(tuple(m.of(cell) for m in measured()) for cell in cells)
    assert list(distribution(space, *measured())) == sorted({tuple(m.of(cell) for m in measured()) for cell in cells})


def all_vectors(branches: int, kinds: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The vectors of a free space in order, with no loop but over the slots."""
    rest = np.arange(factorial(branches) * kinds**branches)
    columns = []
    for number in range(branches, 0, -1):
        rest, operator = np.divmod(rest, kinds)
        rest, source = np.divmod(rest, number)
        columns += [operator, source]
    return np.stack(columns[::-1], axis=1)


def test_half_a_million_cells() -> None:
    space = space_of("filters 4 6 * (any, conv1x1 | sepconv3x3 rate 1x1 | avgpool grid 1x1, _)")
    vectors = all_vectors(6, 3)
    found = enumerator(space)
    assert found.count == len(vectors) == 524_880
    assert np.array_equal(found.vectors(np.arange(found.count)), vectors)
    assert np.array_equal(found.ranks(vectors), np.arange(found.count))
    depths = np.zeros((len(vectors), 7), np.int64)
    params = np.zeros(len(vectors), np.int64)
    for slot in range(6):
        source, operator = vectors[:, 2 * slot], vectors[:, 2 * slot + 1]
        depths[:, slot + 1] = depths[np.arange(len(vectors)), source] + 1
        channels = np.where(source == 0, 10, 4)
        params += channels * 4 + np.where(operator == 1, 9 * channels, 0)
    pools = (vectors[:, 1::2] == 2).sum(1)
    depth = depths.max(1)
    kept = vectors[((depth <= 3) & (params < 250) & (pools >= 1)) | ((depth == 6) & (pools != 2))]
    bound = enumerator(
        space_of(
            "filters 4 6 * (any, conv1x1 | sepconv3x3 rate 1x1 | avgpool grid 1x1, _) "
            "require depth <= 3 and params(F=10) < 250 and uses(avgpool) >= 1 or depth == 6 and uses(avgpool) != 2"
        )
    )
    assert 10_000 < bound.count == len(kept) < 500_000
    places = np.unique(np.r_[np.arange(0, len(kept), 41), len(kept) - 1])
    assert np.array_equal(bound.vectors(places), kept[places])
    assert np.array_equal(bound.ranks(kept[places]), places)
    triples = Counter(zip(params.tolist(), depth.tolist(), pools.tolist(), strict=True))
    assert distribution(space, Params(features=10), Depth(), Uses(kinds=("avgpool",))) == triples


# Random small spaces

POOL = (
    ("conv1x1", {}),
    ("sepconv3x3", {"rate": (1, 1)}),
    ("sepconv3x3", {"rate": (2, 1)}),
    ("avgpool", {"grid": (1, 1)}),
    ("through", {"tag": 1}),
    ("twice", {}),
    ("wide", {}),
)


def draw_operators(draw: st.DrawFn, most: int = 3) -> tuple[Operator, ...]:
    named = draw(st.lists(st.sampled_from(range(len(POOL))), min_size=1, max_size=most, unique=True))
    return tuple(Operator.of(POOL[i][0], **POOL[i][1]) for i in named)


@st.composite
def measures(draw: st.DrawFn) -> Measure:
    match draw(st.integers(0, 6)):
        case 0:
            return Params(features=draw(st.integers(1, 9)))
        case 1:
            return MAdds(features=draw(st.integers(1, 9)), at=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))))
        case 2:
            return Branches()
        case 3:
            return Uses(kinds=(draw(st.sampled_from(["conv1x1", "sepconv3x3", "avgpool", "twice"])),))
        case 4:
            return Uses(operators=draw_operators(draw))
        case 5:
            length = draw(st.integers(1, 5))
            return Distance(
                to=Cell.of(*((draw(st.integers(0, i)), draw_operators(draw)[0]) for i in range(length))),
            )
    return Depth()


@st.composite
def comparisons(draw: st.DrawFn) -> Constraint:
    measure = draw(measures())
    most = 4 if isinstance(measure, Depth | Branches | Uses) else 8 if isinstance(measure, Distance) else 200
    return Comparison(
        measure=measure, relation=draw(st.sampled_from(sorted(RELATIONS))), bound=draw(st.integers(0, most))
    )


def conditions() -> st.SearchStrategy[Constraint]:
    def joined(parts: st.SearchStrategy[Constraint]) -> st.SearchStrategy[Constraint]:
        some = st.lists(parts, min_size=2, max_size=3).map(tuple)
        return (
            some.map(lambda of: AllOf(all_of=of))
            | some.map(lambda of: AnyOf(any_of=of))
            | parts.map(lambda of: Not(negated=of))
        )

    return st.recursive(comparisons(), joined, max_leaves=4)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    slots: list[Slot] = []
    branches = draw(st.integers(1, 4))
    most = 3 if branches < 4 else 1
    shared = OperatorSet.of(draw_operators(draw, most))
    for number in range(1, branches + 1):
        inputs = None
        if draw(st.booleans()):
            chosen = draw(st.sets(st.integers(0, number - 1), min_size=1))
            # one of them at least is always there
            inputs = tuple(sorted(chosen if any(i == 0 or not slots[i - 1].optional for i in chosen) else {0, *chosen}))
        own = shared if draw(st.booleans()) else OperatorSet.of(draw_operators(draw, most))
        slots.append(Slot(inputs=inputs, operators=own, optional=draw(st.booleans())))
    constraints = draw(st.lists(conditions(), max_size=2))
    if all(slot.optional for slot in slots):
        constraints.append(Comparison(measure=Branches(), relation=">=", bound=1))
    return Space(slots=tuple(slots), filters=draw(st.sampled_from((256, 1, 3))), constraints=tuple(constraints))


@given(spaces(), st.lists(measures(), min_size=1, max_size=2, unique=True))
@settings(max_examples=200)
def test_random_spaces_against_brute_force(space: Space, asked: list[Measure]) -> None:
    compare_all(space, asked)


@given(spaces().filter(lambda space: count(space) > 0), st.integers(0, 2**32), st.sampled_from([True, False]))
@settings(max_examples=60)
def test_samples_of_random_spaces_lie_in_them(space: Space, seed: int, replacement: bool) -> None:
    found = enumerator(space)
    n = min(found.count, 20)
    for cell in found.sample(n, seed, replacement=replacement):
        assert cell in found
        assert all(constraint.holds(cell) for constraint in space.constraints)


# The paper's space, and beyond 64 bits


def dpc(branches: int, condition: str = "") -> Space:
    where = f" where {condition}" if condition else ""
    return parse(f"from zoo import dpc, top1\nspace s = dpc(B={branches}){where}").space("s")


def radices_of(space: Space) -> list[int]:
    return [
        (number if slot.inputs is None else len(slot.inputs)) * len(slot.operators.operators)
        for number, slot in enumerate(space.slots, 1)
    ]


def exact_vector(space: Space, rank: int) -> list[int]:
    """The vector of a rank in a free space, with Python's whole numbers and from the first slot on."""
    radices = radices_of(space)
    found = []
    for number, slot in enumerate(space.slots, 1):
        weight = prod(radices[number:])
        digit, rank = divmod(rank, weight)
        place, operator = divmod(digit, len(slot.operators.operators))
        found += [place if slot.inputs is None else slot.inputs[place], operator]
    assert rank == 0
    return found


def as_choices(vector: Sequence[int]) -> Choices:
    return tuple(zip(vector[::2], vector[1::2], strict=True))


@pytest.mark.parametrize("branches", range(1, 11))
def test_the_closed_formula(branches: int) -> None:
    space = dpc(branches)
    assert count(space) == enumerator(space).count == factorial(branches) * 81**branches


def test_known_counts() -> None:
    assert count(read_space("dpc")) == 418_414_128_120
    assert count(read_space("aspp_subsets")) == 31
    assert count(read_space("top1")) == 1
    assert list(enumerator(read_space("aspp_subsets"))) == [cell for _, cell in everything(read_space("aspp_subsets"))]


def test_a_million_ranks_and_back() -> None:
    found = enumerator(read_space("dpc"))
    ranks = np.random.default_rng(1).integers(0, found.count, 10**6).astype(np.uint64)
    ranks[:2] = 0, found.count - 1
    vectors = found.vectors(ranks)
    assert vectors.shape == (10**6, 10)
    assert np.array_equal(found.ranks(vectors), ranks)
    assert vectors.min() == 0
    assert vectors[:, ::2].max(0).tolist() == [0, 1, 2, 3, 4]
    assert vectors[:, 1::2].max(0).tolist() == [80] * 5
    for rank, vector in zip(ranks[:300].tolist(), vectors[:300].tolist(), strict=True):
        assert vector == exact_vector(found.space, rank)
        cell = found.unrank(rank)
        assert cell == cell_of(found.space, as_choices(vector))
        assert found.rank(cell) == rank
    first, last = found.unrank(0), found.unrank(found.count - 1)
    assert str(first) == " ".join(f"(F, conv1x1, Y{i})" for i in range(1, 6))
    assert str(last) == " ".join(f"({'Y' + str(i) if i else 'F'}, avgpool grid 8x8, Y{i + 1})" for i in range(5))


def sizes(*operators: int) -> Space:
    """Branches that all read F, with so many operators to choose from."""
    return Space(
        slots=tuple(
            Slot(inputs=(0,), operators=OperatorSet.of(Operator.of("avgpool", grid=(h, 1)) for h in range(1, size + 1)))
            for size in operators
        )
    )


BEYOND = {
    "2^62": (sizes(*[256] * 7, 64), 2**62),
    "2^63": (sizes(*[256] * 7, 128), 2**63),
    "just below 2^63": (sizes(219, 190, 256, 256, 296, 273, 218, 192), 2**63 - 2**27),
    "just above 2^63": (sizes(186, 271, 182, 232, 221, 253, 271, 286), 2**63 + 39_471_424),
    "just below 2^64": (sizes(292, 218, 256, 260, 266, 288, 296, 192), 2**64 - 2**28),
    "2^64": (sizes(*[256] * 8), 2**64),
    "2^64 of one operator more": (sizes(1, *[2] * 64), 2**64),
    "just above 2^64": (sizes(257, 194, 251, 293, 289, 216, 292, 276), 2**64 + 976_353_536),
    "2^65": (sizes(2, *[256] * 8), 2**65),
    "2^72": (sizes(*[256] * 9), 2**72),
    "2^128": (sizes(*[256] * 16), 2**128),
    "10 branches": (dpc(10), factorial(10) * 81**10),
    "12 branches": (dpc(12), factorial(12) * 81**12),
    "30 branches": (dpc(30), factorial(30) * 81**30),
    "256 branches": (dpc(256), factorial(256) * 81**256),
    "chosen inputs": (
        space_of(
            "(F, paper, _) ({F, Y1}, paper, _) 9 * (any, paper, _) ({F, Y3, Y7}, avgpool "
            "grid 1x{1..3}, _) (Y12, conv1x1, _)"
        ),
        factorial(11) * 81**11 * 9,
    ),
}


@pytest.mark.parametrize(("space", "wanted"), BEYOND.values(), ids=BEYOND.keys())
def test_counts_and_ranks_around_and_beyond_64_bits(space: Space, wanted: int) -> None:
    found = enumerator(space)
    assert found.count == wanted
    r = random.Random(wanted)
    ends = [0, 1, wanted - 2, wanted - 1, *(2**bits + i for bits in (31, 32, 53, 62, 63, 64, 65) for i in (-1, 0, 1))]
    ranks = [rank for rank in ends if rank < wanted] + [r.randrange(wanted) for _ in range(100)]
    vectors = found.vectors(ranks)
    back = found.ranks(vectors)
    assert vectors.tolist() == [exact_vector(space, rank) for rank in ranks]
    assert back.tolist() == ranks
    assert back.dtype == (np.uint64 if wanted <= 2**64 else object)
    assert all(type(rank) is int for rank in back.tolist())
    for rank, vector in zip(ranks[:40], vectors.tolist(), strict=False):
        assert found.choices(rank) == as_choices(vector)
        assert found.rank_of(as_choices(vector)) == rank
    assert found.rank(found.unrank(wanted - 1)) == wanted - 1
    if wanted > 2**32:  # an array of numbers of a machine is as good as a list
        few = np.array([0, 2**32 - 1], np.uint32)
        assert np.array_equal(found.vectors(few), found.vectors(few.tolist()))
        assert np.array_equal(found.vectors(few.astype(np.int64)), found.vectors(few.astype(object)))
    for wrong in (wanted, wanted + 1, 2 * wanted, wanted + 2**64, -1, -wanted):
        for ask in (found.unrank, lambda rank: found.vectors([rank]), lambda rank: found.vectors([0, rank])):
            with pytest.raises(DpcError) as caught:
                ask(wrong)
            assert code_of(caught) == "DPC071"


@given(st.data())
@settings(max_examples=60)
def test_one_by_one_as_all_at_once(data: st.DataObject) -> None:
    space = data.draw(st.sampled_from([of for of, _ in BEYOND.values()] + [dpc(5), sizes(3, 1, 7)]))
    found = enumerator(space)
    ranks = data.draw(st.lists(st.integers(0, found.count - 1), min_size=1, max_size=10))
    vectors = found.vectors(ranks)
    assert [as_choices(row) for row in vectors.tolist()] == [found.choices(rank) for rank in ranks]
    assert found.ranks(vectors).tolist() == [found.rank_of(as_choices(row)) for row in vectors.tolist()] == ranks


def test_more_ranks_than_are_worked_on_at_once() -> None:
    for space in (dpc(5), dpc(12)):
        found = enumerator(space)
        ranks = [i * (found.count // 40_000) + i for i in range(40_000)]
        vectors = found.vectors(ranks)
        assert found.ranks(vectors).tolist() == ranks
        assert vectors[16_380:16_390].tolist() == [exact_vector(space, rank) for rank in ranks[16_380:16_390]]
        wrong = vectors.copy()
        wrong[20_000, 3] = 81
        with pytest.raises(DpcError, match=r"row 20000.*branch 2 has operators 0 to 80, not 81"):
            found.ranks(wrong)


def test_no_ranks_are_no_vectors() -> None:
    for space in (dpc(5), dpc(30), space_of(CONSTRAINED["never"]), read_space("aspp_subsets")):
        found = enumerator(space)
        assert found.vectors([]).shape == (0, 2 * len(space.slots))
        assert found.ranks(np.zeros((0, 2 * len(space.slots)), np.int32)).shape == (0,)


# Counts by hand


def polynomial(*factors: dict[int, int]) -> Counter[int]:
    """The product of polynomials, each a coefficient by exponent."""
    found = Counter({0: 1})
    for factor in factors:
        after: Counter[int] = Counter()
        for (a, x), (b, y) in product(found.items(), factor.items()):
            after[a + b] += x * y
        found = after
    return found


def params_by_hand(branches: int) -> Counter[int]:
    """Weights of the paper's cells on 320 channels: a 1x1 convolution to 256 in every branch, 9 a channel before 64 of
    the 81. The branch reads F, or one of the earlier ones, which all have 256 channels."""
    return polynomial(
        *(
            {320 * 256: 17, 320 * (256 + 9): 64}
            | ({256 * 256: 17 * earlier, 256 * (256 + 9): 64 * earlier} if earlier else {})
            for earlier in range(branches)
        )
    )


def test_cheap_cells_of_the_paper_by_hand() -> None:
    by_hand = params_by_hand(5)
    assert sum(by_hand.values()) == 418_414_128_120
    cheap = sum(number for params, number in by_hand.items() if params <= 400_000)
    assert cheap == count(dpc(5, "params(F=320) <= 0.40M")) == 382_353_330_279
    assert distribution(dpc(5), Params(features=320)) == {(params,): n for params, n in by_hand.items()}
    for branches in (1, 2, 8, 12):
        here = distribution(dpc(branches), Params(features=320))
        assert here == {(params,): n for params, n in params_by_hand(branches).items()}
    madds = distribution(dpc(5), MAdds(features=320, at=(65, 129)))
    assert sum(madds.values()) == 418_414_128_120


@pytest.mark.parametrize("branches", [1, 5, 10])
def test_other_distributions_by_hand(branches: int) -> None:
    space, total = dpc(branches), factorial(branches) * 81**branches
    pools = distribution(space, Uses(kinds=("avgpool",)))
    assert pools == {
        (k,): factorial(branches) * comb(branches, k) * 16**k * 65 ** (branches - k) for k in range(branches + 1)
    }
    assert distribution(space, Branches()) == {(branches,): total}
    top1 = read_cell("top1")
    far = polynomial(
        *(
            polynomial({0: 1, 1: number - 1}, {0: 1, 1: 80}) if number <= len(top1) else {2: 81 * number}
            for number in range(1, branches + 1)
        ),
        {2 * max(0, len(top1) - branches): 1},
    )
    assert distribution(space, Distance(to=top1)) == {(d,): n for d, n in far.items() if n}
    # Of the recursive trees with so many nodes: those of no more than a depth, by the size of the first subtree.
    depths = distribution(space, Depth())
    assert sum(depths.values()) == total
    assert depths[1,] == 81**branches
    assert depths[branches,] == 81**branches
    below = [trees_of_depth(branches + 1, depth) for depth in range(branches + 1)]
    assert [n // 81**branches for n in depths.values()] == [b - a for a, b in pairwise(below)]


@cache
def trees_of_depth(nodes: int, most: int) -> int:
    """Recursive trees (each node is attached to an earlier one) whose longest way from the root has ``most`` edges at
    most: the second node with all below it is one such tree, the rest another."""
    if nodes == 1:
        return 1
    if most == 0:
        return 0
    return sum(
        comb(nodes - 2, below - 1) * trees_of_depth(below, most - 1) * trees_of_depth(nodes - below, most)
        for below in range(1, nodes)
    )


def test_counts_grow_with_the_bound() -> None:
    total = count(dpc(5))
    running = list(accumulate(distribution(dpc(5), Params(features=320)).values()))
    assert running[-1] == total
    values = [value for (value,) in distribution(dpc(5), Params(features=320))]
    counts = [count(dpc(5, f"params(F=320) <= {bound}")) for bound in values]
    assert counts == running
    assert all(a < b for a, b in pairwise(counts))
    for bound, so_far in zip(values[::7], running[::7], strict=True):
        assert count(dpc(5, f"params(F=320) > {bound}")) == total - so_far
        assert count(dpc(5, f"not params(F=320) > {bound}")) == so_far


LARGE = {
    "cheap": "5 * (any, paper, _) require params(F=320) <= 0.40M",
    "cheap and deep": "5 * (any, paper, _) require params(F=320) <= 0.40M and madds(F=320, at=65x129) "
    "<= 3.0G and depth > 2",
    "near": "5 * (any, paper, _) require distance(top1) <= 4",
    "far": "6 * (any, paper, _) require distance(top1) >= 6 and uses(avgpool) < 4 and not depth == 2",
    "optional": "optional 2 * (any, paper, _) (F, paper, _) optional 4 * (any, paper, _) "
    "require depth == 3 or branches == 6",
    "own": "filters 24 (F, paper | wide, _) (any, paper | twice, _) optional 4 * (any, paper | through tag {1..9}, _) "
    "require params(F=320) <= 20K and uses(through) >= 1 or branches == 2",
}


def spread(found: Enumerator, n: int) -> list[int]:
    return sorted({0, found.count - 1, *(i * found.count // n for i in range(n))})


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_ranks_of_a_large_constrained_space(text: str) -> None:
    space = space_of(text)
    found = enumerator(space)
    assert found.count > 10**6
    ranks = spread(found, 300)
    vectors = found.vectors(ranks)
    assert found.ranks(vectors).tolist() == ranks
    assert vectors.tolist() == sorted(vectors.tolist())
    for rank, row in zip(ranks, vectors.tolist(), strict=True):
        choices = tuple(None if pair == (-1, -1) else pair for pair in as_choices(row))
        cell = found.unrank(rank)
        assert cell == cell_of(space, choices)
        assert all(constraint.holds(cell) for constraint in space.constraints)
        assert cell in space


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE.keys())
def test_a_rank_counts_the_cells_before_it(text: str) -> None:
    """Those that agree up to a slot and choose less there are a space of their own, and its count is known."""
    space = space_of(text)
    found = enumerator(space)
    for rank in (0, found.count // 3, 2 * found.count // 3 + 1, found.count - 1):
        choices = found.choices(rank)
        before = 0
        for place, choice in enumerate(choices):
            slot = space.slots[place]
            if choice is None:
                continue
            given = [
                None if made is None else Slot(inputs=(made[0],), operators=only(old, made[1], made[1] + 1))
                for made, old in zip(choices[:place], space.slots, strict=False)
            ]
            there = [i for i in space.candidates(place + 1) if i == 0 or choices[i - 1] is not None]
            less: list[Slot | None] = [None] if slot.optional else []
            less += [Slot(inputs=(i,), operators=slot.operators) for i in there if i < choice[0]]
            less += [Slot(inputs=(choice[0],), operators=only(slot, 0, choice[1]))] if choice[1] else []
            before += sum(counted(space, [*given, one]) for one in less)
        assert before == rank


def only(slot: Slot, start: int, stop: int) -> OperatorSet:
    return OperatorSet.of(slot.operators.operators[start:stop])


def counted(space: Space, fixed: list[Slot | None]) -> int:
    """Genomes of ``space`` whose first slots are ``fixed``, where None is left out. Slots that are left out are taken
    away, the later ones numbered anew."""
    number_of = {0: 0}
    slots = []
    for number, slot in enumerate([*fixed, *space.slots[len(fixed) :]], 1):
        if slot is None:
            continue
        inputs = range(number) if slot.inputs is None else slot.inputs
        number_of[number] = len(slots) + 1
        slots.append(
            Slot(
                inputs=tuple(number_of[i] for i in inputs if i in number_of),
                operators=slot.operators,
                optional=slot.optional,
            )
        )
    return count(Space(slots=tuple(slots), filters=space.filters, constraints=space.constraints))


# What cannot be answered

NOT_RANKS = [True, False, np.bool_(True), 1.0, np.float64(1), "1", b"1", None, (1,), [1], 1j, float("nan")]


@pytest.mark.parametrize("space", [dpc(5), dpc(12), read_space("aspp_subsets")], ids=["5", "12", "31"])
def test_what_is_not_a_rank(space: Space) -> None:
    found = enumerator(space)
    for wrong in NOT_RANKS:
        for ask in (found.unrank, lambda rank: found.vectors([rank])):
            with pytest.raises(DpcError) as caught:
                ask(wrong)
            assert code_of(caught) == "DPC071", wrong
    with pytest.raises(DpcError, match=f"ranks go from 0 to {found.count - 1}, and this is {found.count}") as caught:
        found.unrank(found.count)
    assert code_of(caught) == "DPC071"
    for array in (
        np.array([1.0]),
        np.array([True]),
        np.array(["1"]),
        np.array([1], "datetime64[s]"),
        np.array([[1, 2]]),
        np.zeros((0, 2), int),
        np.array(1),
        np.array([-1]),
        np.array([-1, found.count], object),
        np.array([0, 1.0], object),
        [[0, 1]],
        [0, 1.0],
        [0, "1"],
        [found.count],
        [0, -1],
        "01",
        {0, 1},
        None,
        [2**200],
    ):
        with pytest.raises(DpcError) as caught:
            found.vectors(array)
        assert code_of(caught) == "DPC071", array
    for integer in (np.int8, np.int64, np.uint8, np.uint64):
        assert found.unrank(integer(3)) == found.unrank(3)
        assert np.array_equal(found.vectors(np.array([3], integer)), found.vectors([3]))


@pytest.mark.parametrize("space", [dpc(5), dpc(12), dpc(5, "depth <= 2")], ids=["5", "12", "constrained"])
def test_what_is_not_a_vector(space: Space) -> None:
    found = enumerator(space)
    width = 2 * len(space.slots)
    for array in (
        [0] * width,
        [[0] * (width - 1)],
        [[0] * (width + 2)],
        [[0.0] * width],
        [[True] * width],
        [["0"] * width],
        [[2**70] * width],
        [[0] * width, [0]],
        [],
        None,
        "0",
        np.zeros((1, 1, width), int),
    ):
        with pytest.raises(DpcError, match=f"an array of {width} columns") as caught:
            found.ranks(array)
        assert code_of(caught) == "DPC054"
    for column, number, message in (
        (0, 1, "branch 1 cannot read tensor 1"),
        (0, -1, "branch 1 cannot read tensor -1"),
        (1, 81, "branch 1 has operators 0 to 80, not 81"),
        (1, -1, "branch 1 has operators 0 to 80, not -1"),
        (8, 5, "branch 5 cannot read tensor 5"),
        (8, 2**62, f"branch 5 cannot read tensor {2**62}"),
        (9, 2**62, f"not {2**62}"),
        (9, 2**32, f"not {2**32}"),
        (9, 2**31 + 80, f"not {2**31 + 80}"),
    ):
        rows = np.zeros((4, width), np.int64)
        rows[2, column] = number
        with pytest.raises(DpcError, match=f"row 2: .*{message}") as caught:
            found.ranks(rows)
        assert code_of(caught) == "DPC054"
    for dtype in (np.int8, np.uint8, np.int16, np.uint64):
        rows = np.zeros((2, width), dtype)
        rows[1, 1] = 80
        assert found.ranks(rows).tolist() == [0, found.rank_of(as_choices(rows[1].tolist()))]


def test_vectors_with_branches_left_out() -> None:
    found = enumerator(space_of("(F, conv1x1, _) optional (F, conv1x1, _) ({F, Y2}, conv1x1 | wide, _)"))
    assert found.count == 6
    assert found.ranks([[0, 0, -1, -1, 0, 1]]).tolist() == [1]
    for row, message in (
        ([0, 0, -1, -1, 2, 0], "branch 3 cannot read tensor 2"),
        ([0, 0, 0, 0, 1, 0], "branch 3 cannot read tensor 1"),
        ([0, 0, -1, 0, 0, 0], "branch 2 cannot read tensor -1"),
        ([0, 0, 0, -1, 0, 0], "branch 2 has operators 0 to 0, not -1"),
        ([0, 0, 0, 0, -1, -1], "branch 3 of the space cannot be left out"),
    ):
        with pytest.raises(DpcError, match=f"row 1: .*{message}") as caught:
            found.ranks([[0, 0, 0, 0, 0, 0], row])
        assert code_of(caught) == "DPC054"


def test_a_cell_outside_is_told_why() -> None:
    cheap = enumerator(dpc(5, "params(F=320) <= 0.40M and depth <= 2"))
    conv, pool = Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))
    for cell, reason in (
        (read_cell("top1"), "it breaks `depth <= 2`"),
        (Cell.of((0, conv), (0, conv)), "it has 2 branches, the space 5"),
        (Cell.of(*((0, conv) for _ in range(6))), "it has 6 branches, the space 5"),
        (Cell.of(*((0, conv) for _ in range(5)), filters=64), "it has 64 filters, the space 256"),
        (
            Cell.of(*((0, conv) for _ in range(4)), (1, Operator.of("avgpool", grid=(3, 3)))),
            "`avgpool grid 3x3` is not among the operators of branch 5",
        ),
    ):
        assert cell not in cheap
        with pytest.raises(DpcError, match=reason) as caught:
            cheap.rank(cell)
        assert code_of(caught) == "DPC055"
    named = enumerator(space_of("(F, conv1x1, _) (F, conv1x1, _) ({F, Y2}, conv1x1, _)"))
    with pytest.raises(DpcError, match="branch 3 cannot read `Y1`"):
        named.rank(Cell.of((0, conv), (0, conv), (1, conv)))
    optional = enumerator(space_of("(F, conv1x1, _) optional (F, conv1x1, _)"))
    with pytest.raises(DpcError, match="no choice of its optional branches gives it"):
        optional.rank(Cell.of((0, conv), (0, pool)))
    assert "(F, conv1x1, Y1)" not in optional
    assert 0 not in optional


@pytest.mark.parametrize("text", [CONSTRAINED["never"], CONSTRAINED["contradiction"], CONSTRAINED["uses too many"]])
def test_an_empty_space(text: str) -> None:
    space = space_of(text)
    found = enumerator(space)
    assert found.count == count(space) == 0
    assert list(found) == list(found.cells()) == list(found.walk()) == list(found.walk(shuffle=1)) == []
    assert distribution(space, Depth()) == {}
    assert found.sample(0, 1) == []
    assert found.sample(0, 1, replacement=False) == []
    for ask in (
        lambda: found.sample(1, 1),
        lambda: found.sample(1, 1, replacement=False),
        lambda: found.sample_ranks(3),
        lambda: found.unrank(0),
        lambda: found.vectors([0]),
    ):
        with pytest.raises(DpcError) as caught:
            ask()
        assert code_of(caught) == "DPC074"
    with pytest.raises(DpcError) as caught:
        found.rank(Cell.of(*((0, Operator.of("conv1x1")) for _ in space.slots)))
    assert code_of(caught) == "DPC055"


def test_too_many_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_STATES", 50)
    space = dpc(5, "params(F=321) <= 0.40M and madds(F=322, at=17x19) <= 1M and depth == 3")
    for ask in (
        lambda: count(space),
        lambda: enumerator(space).unrank(0),
        lambda: distribution(dpc(5), Params(features=320), Depth()),
    ):
        with pytest.raises(DpcError, match="more than 50 states") as caught:
            ask()
        assert code_of(caught) == "DPC070"
    assert count(dpc(7)) == factorial(7) * 81**7  # choices that are free of each other need none


@pytest.mark.parametrize(
    "settings_of",
    [{"up_to": "cells"}, {"up_to": None}, {"at": (3, 3)}, {"up_to": "function"}, {"up_to": "function", "at": (0, 3)}],
)
def test_wrong_settings(settings_of: dict[str, Any]) -> None:
    for ask in (enumerator, count):
        with pytest.raises(DpcError) as caught:
            ask(dpc(2), **settings_of)
        assert code_of(caught) == "DPC062"


# Progress


def test_progress_is_reported_while_somebody_listens() -> None:
    heard: list[tuple[str, int, int]] = []
    inner: list[tuple[str, int, int]] = []
    with reporting(lambda *said: heard.append(said)):
        count(dpc(5, "params(F=323) <= 0.40M"))
        assert heard == [("counting", done, 5) for done in range(1, 6)]
        with reporting(lambda *said: inner.append(said)):
            distribution(dpc(4), Depth())
        assert inner == [("counting", done, 4) for done in range(1, 5)]
        assert len(heard) == 5
        enumerator(dpc(5, "params(F=323) <= 0.40M")).unrank(0)
        assert len(heard) > 5
        assert all(what == "counting" and 1 <= done <= total == 5 for what, done, total in heard)
    so_far = len(heard)
    count(dpc(3, "params(F=323) <= 0.40M"))
    assert len(heard) == so_far


def test_what_a_listener_raises_arrives() -> None:
    def stop(*said: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(stop):
        distribution(dpc(3), Depth())
    assert distribution(dpc(1), Depth()) == {(1,): 81}


# Odd questions


def test_odd_questions() -> None:
    study, paper = enumerator(read_space("aspp_subsets")), enumerator(dpc(12))
    with pytest.raises(DpcError, match="at least one branch"):
        study.ranks([[-1] * 10])
    assert len(study.sample_ranks(1, 1, replacement=False, shard=(0, 2**65))) == 1
    assert len(list(study.walk(shard=(0, 2**65), shuffle=3))) == 1
    assert list(study.walk(shard=(np.int64(1), np.int64(16)))) == [1, 17]
    twice = distribution(study.space, Branches(), Depth(), Branches())
    assert twice == {(n, 1, n): comb(5, n) for n in range(1, 6)}
    assert enumerator(space_of("9 * (F, avgpool grid {1..16} x {1..16}, _)")).vectors([]).shape == (0, 18)
    wrong: list[Callable[[], Any]] = [
        *(lambda stop=stop: study.walk(stop=stop) for stop in ("x", 2.5, True, -1)),
        lambda: paper.walk(np.bool_(True)),
        lambda: paper.walk(0.5),
        lambda: study.vectors([np.zeros((2, 3)), np.zeros((2, 4))]),
    ]
    for ask in wrong:
        with pytest.raises(DpcError) as caught:
            ask()
        assert code_of(caught) == "DPC071"


def test_many_measures_of_one_cell_are_answered_or_refused_soon() -> None:
    condition = "distance(top1) >= 12 and uses(avgpool) < 4 and not depth == 5"
    assert count(dpc(9, condition)) < count(dpc(9))


def test_many_threads_ask_one_enumerator() -> None:
    space = dpc(5, "madds(F=320, at=65x129) <= 3G")
    wanted = enumerator(space).sample_ranks(40, 1).tolist()
    for _ in range(3):
        found = enumerator_of(space)
        with ThreadPoolExecutor(8) as pool:
            counts = [pool.submit(getattr, found, "count") for _ in range(4)]
            ranks = [pool.submit(lambda e, r: e.rank(e.unrank(r)), found, rank) for rank in wanted]
            assert {future.result() for future in counts} == {enumerator(space).count}
            assert [future.result() for future in ranks] == wanted


def test_what_is_not_a_space_or_a_cell() -> None:
    cells = enumerator(dpc(5))
    for ask in (
        lambda: count("dpc"),  # type: ignore[arg-type]
        lambda: enumerator(read_cell("top1")),  # type: ignore[arg-type]
        lambda: cells.rank("top1"),  # type: ignore[arg-type]
        lambda: neighbours(read_cell("top1"), "dpc"),  # type: ignore[arg-type]
        lambda: mutate("top1", dpc(5)),  # type: ignore[arg-type]
        lambda: crossover("top1", read_cell("top1")),  # type: ignore[arg-type]
        lambda: distribution(dpc(5), "depth"),  # type: ignore[arg-type]
    ):
        with pytest.raises(DpcError, match="is wanted, not") as caught:
            ask()
        assert code_of(caught) == "DPC062"
    assert "top1" not in cells


def test_a_question_out_of_reach_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_STATES", 1000)
    cells = enumerator_of(dpc(12, "depth <= 6"))
    cell = enumerator(dpc(12)).unrank(0)
    assert cell in cells.space
    with pytest.raises(DpcError) as caught:
        assert cell in cells
    assert code_of(caught) == "DPC070"
