"""Ranks of large spaces: the closed formula, counts by hand, and numbers beyond 64 bits, exactly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise, product
from math import comb, factorial, prod

import numpy as np
import pytest
from brute_force import (
    EMPTY,
    as_choices,
    cell_of,
    code_of,
    dpc,
    everything,
    operators_of_ones_own,
    space_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import DpcError, Operator, OperatorSet, Slot, Space, read_cell, read_space
from dpcdsl.constraints import (
    Branches,
    Depth,
    Distance,
    MAdds,
    Params,
    Uses,
)
from dpcdsl.enumeration import Enumerator, count, distribution, enumerator


@pytest.fixture(autouse=True, scope="module")
def own() -> Iterator[None]:
    with operators_of_ones_own():
        yield


# The paper's space, and beyond 64 bits


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
    for space in (dpc(5), dpc(30), space_of(EMPTY["never"]), read_space("aspp_subsets")):
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
