"""The enumerator of small spaces against brute force: counts, order, ranks, vectors and distributions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import product
from math import factorial
from typing import Any

import numpy as np
import pytest
from brute_force import (
    EMPTY,
    RELATIONS,
    SIX,
    compare,
    compare_all,
    everything,
    operators_of_ones_own,
    space_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import Cell, Operator, OperatorSet, Slot, Space
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
from dpcdsl.enumeration import count, distribution, enumerator


@pytest.fixture(autouse=True, scope="module")
def own() -> Iterator[None]:
    with operators_of_ones_own():
        yield


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
    "one left": "5 * (any, conv1x1 | avgpool grid 1x1, _) require depth == 5 and uses(avgpool) == 0",
    "large bound": "2 * (any, conv1x1 | twice, _) require params(F=3) <= 1000000000000T",
    **EMPTY,
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
