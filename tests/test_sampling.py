"""Streams, permutations, samples and walks: the same for ever, a bijection, and uniform.

The tests of uniformity are chi-square tests with fixed seeds, so they never fail by chance once they have passed. Each
would refuse a perfect generator for one seed in a million (:func:`looks_uniform`). What they would detect stands with
each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from math import erfc, exp, factorial, isqrt, lgamma, log, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import DpcError, Space, parse, read_space
from dpcdsl.enumeration import Permutation, Stream, enumerator

FALSE_ALARM = 1e-6


def space_of(text: str) -> Space:
    return parse(f"from zoo import dpc, paper, top1\nspace s {text}").space("s")


PAPER = read_space("dpc")
CHEAP = space_of("= dpc where params(F=320) <= 0.40M")
TWELVE = space_of("= dpc(B=12)")
STUDY = read_space("aspp_subsets")
FEW = space_of("{ 3 * (any, conv1x1 | avgpool grid {1, 2}x1, _) require depth == 2 and uses(conv1x1) < 3 }")
EMPTY = space_of("{ (F, conv1x1, _) require depth > 1 }")
MIDDLE = space_of("{ 3 * (any, sepconv3x3 rate {1..5}x{1..5}, _) }")  # 93,750 cells


def code_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(DpcError) as caught:
        ask()
    (code,) = caught.value.codes
    return code


# The streams. They may never change: seeds stand in papers and in people's scripts.

WORDS = {
    0: [11749869230777074271, 4976686463289251617, 755828109848996024],
    2**70: [10013647886062870613, 17212894771359432687, 8717928184856760160],
}
BELOW = {
    (31, 0): [20, 8, 1, 0, 26],
    (1000, 1): [524, 973, 147, 971, 319],
    (418414128120, 2): [143822791787, 164097241485, 50531323577, 329908753066, 400530385384],
    (18446744073709551616, 3): [
        1579948266424812280,
        4368382809143759861,
        14780904992460893238,
        10738994088709064484,
        1736366973414412046,
    ],
    (10000000000000000000000, 4): [
        9658704388713198573509,
        1526949319412167007207,
        7111630509253227453037,
        3296737237147983024949,
        9013175232645641197467,
    ],
}
PERMUTED = {
    (31, 1): [9, 16, 2, 28, 18],
    (70000, 1): [56745, 4127, 36458, 2561, 2457],
    (418414128120, 1): [304029008596, 336349337451, 140990509409, 44341634404, 21075217912],
    (4611686018427387909, 1): [
        176118247691580089,
        2704358460689516114,
        4025789394197112696,
        3740803109951342735,
        3776909115318839752,
    ],
    (10000000000000000000000, 1): [
        7152580933506572678283,
        6902616450559959562325,
        2491589936965133078461,
        8636868403529549927540,
        5023846599425477119475,
    ],
}
SAMPLES = {
    ("paper", True): [343649867000, 123808962026, 165018160263, 2894631796, 257249960847],
    ("paper", False): [233055387213, 341081917047, 352555984084, 242268700735, 32143207660],
    ("cheap", True): [343649867000, 123808962026, 165018160263, 2894631796, 257249960847],
    ("cheap", False): [372506410149, 159767605358, 1890212794, 121200747633, 34077927746],
    ("twelve", True): [
        36395315626628273753514385298403,
        9135488946153177483888252731176,
        35435537580416298789405498618396,
        33312982319596585407736082222547,
        18981696762883548186852995101251,
    ],
    ("twelve", False): [
        37539949169207509392621440424304,
        18637321754066812101742316454210,
        37981936142371436593850450410534,
        492263425206626457346446459432,
        36252314398142561002003741909433,
    ],
    ("study", True): [20, 28, 24, 7, 9],
    ("study", False): [6, 24, 23, 21, 20],
}


def test_streams_never_change() -> None:
    for seed, words in WORDS.items():
        assert Stream(seed).words(3).tolist() == words
    for (bound, seed), numbers in BELOW.items():
        assert Stream(seed).below(bound, 5).tolist() == numbers


def test_permutations_never_change() -> None:
    for (count, seed), numbers in PERMUTED.items():
        assert Permutation(count, seed)(range(5)).tolist() == numbers


@pytest.mark.parametrize(("name", "space"), [("paper", PAPER), ("cheap", CHEAP), ("twelve", TWELVE), ("study", STUDY)])
def test_samples_never_change(name: str, space: Space) -> None:
    found = enumerator(space)
    for replacement in (True, False):
        ranks = found.sample_ranks(5, 7, replacement=replacement)
        assert ranks.tolist() == SAMPLES[name, replacement]
        assert ranks.dtype == (object if name == "twelve" else np.uint64)
        assert found.sample(5, 7, replacement=replacement) == [found.unrank(rank) for rank in ranks.tolist()]


def test_the_stream_is_pcg64_and_rejection() -> None:
    """The same in plain Python: the highest bits of words, until they are below the bound."""
    for bound in (1, 2, 3, 31, 2**32 + 1, 3 * 2**62, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**30, 2**130 - 5):
        words = iter(np.random.PCG64(np.random.SeedSequence(5)).random_raw(3000).tolist())
        bits = (bound - 1).bit_length()
        each = -(-bits // 64)
        wanted: list[int] = []
        while len(wanted) < 300:
            value = sum(word << (64 * place) for place, word in enumerate(islice(words, each)))
            value >>= 64 * each - bits
            if value < bound:
                wanted.append(value)
        assert Stream(5).below(bound, 300).tolist() == wanted
        assert Stream(5).one_below(bound) == wanted[0]
    with pytest.raises(ValueError, match="at least 1"):
        Stream(5).below(0, 1)


def feistel(count: int, keys: Sequence[int], value: int) -> int:
    """The permutation of more than 2^16 and at most 2^62 numbers, with Python's whole numbers."""
    side = isqrt(count - 1) + 1
    while True:
        left, right = divmod(value, side)
        for key in keys:
            mixed = (right + key) * 0xFF51AFD7ED558CCD % 2**64
            mixed ^= mixed >> 33
            mixed = mixed * 0xC4CEB9FE1A85EC53 % 2**64
            mixed ^= mixed >> 29
            left, right = right, (left + (mixed * side >> 64)) % side
        value = left * side + right
        if value < count:
            return value


@pytest.mark.parametrize("count", [65_537, 70_000, 2**20, 418_414_128_120, 2**62 - 1, 2**62])
def test_the_permutation_in_plain_numbers(count: int) -> None:
    keys = Stream(11).words(6).tolist()
    places = [0, 1, 2, count // 2, count - 2, count - 1, *(i * (count // 500) for i in range(500))]
    assert Permutation(count, 11)(places).tolist() == [feistel(count, keys, place) for place in places]


@pytest.mark.parametrize("space", [PAPER, CHEAP, TWELVE, STUDY, FEW], ids=["5", "cheap", "12", "31", "few"])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_first_ones_do_not_depend_on_how_many(space: Space, replacement: bool) -> None:
    found = enumerator(space)
    longest = found.sample_ranks(min(3000, found.count), 3, replacement=replacement).tolist()
    for n in (0, 1, 2, 3, 17, 30, 1000):
        if n <= len(longest):
            assert found.sample_ranks(n, 3, replacement=replacement).tolist() == longest[:n]
            assert found.sample_ranks(np.int64(n), 3, replacement=replacement).tolist() == longest[:n]
    assert found.sample_ranks(20, 4, replacement=replacement).tolist() != longest[:20]


# Seeds

GENERATORS = (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM)


@pytest.mark.parametrize("bits", GENERATORS)
def test_a_generator_is_a_seed_and_is_moved_on(bits: type[np.random.BitGenerator]) -> None:
    found = enumerator(PAPER)
    for replacement in (True, False):
        generator, same = (np.random.Generator(bits(3)) for _ in range(2))
        first = found.sample_ranks(10, generator, replacement=replacement).tolist()
        second = found.sample_ranks(10, generator, replacement=replacement).tolist()
        assert first != second
        assert first == found.sample_ranks(10, same, replacement=replacement).tolist()
        assert second == found.sample_ranks(10, same, replacement=replacement).tolist()
        assert generator.integers(2**62) == same.integers(2**62)
        again = np.random.Generator(bits(3))
        state = again.bit_generator.state
        assert (
            found.sample_ranks(20, again, replacement=replacement).tolist()[:10] == first
        )  # one seed is taken, whatever n is
        again.bit_generator.state = state
        assert found.sample_ranks(10, again, replacement=replacement).tolist() == first
        assert found.sample_ranks(10, again, replacement=replacement).tolist() == second


def test_seeds() -> None:
    wanted = Stream(300).words(4).tolist()
    for same in (np.int64(300), np.uint16(300), np.uint64(300), np.int32(300)):
        assert Stream(same).words(4).tolist() == wanted
    assert len({tuple(Stream(seed).words(2).tolist()) for seed in (*range(200), 2**32, 2**64, 2**200)}) == 203
    assert Stream().words(4).tolist() != Stream(None).words(4).tolist()
    found = enumerator(PAPER)
    assert found.sample_ranks(4).tolist() != found.sample_ranks(4).tolist()
    assert list(found.walk(0, 4, shuffle=np.random.default_rng())) != list(found.walk(0, 4))


WRONG_SEEDS = [-1, np.int64(-1), 1.0, "1", b"1", True, False, np.bool_(True), [1], (1,), np.array([1]), 1j]


@pytest.mark.parametrize("seed", [*WRONG_SEEDS, np.random.RandomState(1), np.random.PCG64(1)])
def test_what_is_not_a_seed(seed: Any) -> None:
    found = enumerator(PAPER)
    assert code_of(lambda: Stream(seed)) == "DPC062"
    assert code_of(lambda: Permutation(100, seed)) == "DPC062"
    assert code_of(lambda: found.sample(1, seed)) == "DPC062"
    assert code_of(lambda: found.sample(1, seed, replacement=False)) == "DPC062"


# Permutations


@pytest.mark.parametrize("seed", [0, 1])
def test_small_permutations_are_bijections(seed: int) -> None:
    for count in range(301):
        assert sorted(Permutation(count, seed)(np.arange(count)).tolist()) == list(range(count))


@pytest.mark.parametrize(
    "count",
    [
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        65_538,
        256**2 + 256,
        257**2 - 1,
        257**2,
        257**2 + 1,
        300**2 - 1,
        300**2,
        300**2 + 1,
        300 * 299,
        99_991,
        447**2 - 1,
        447**2,
        447**2 + 1,
        200_000,
    ],
)
def test_permutations_are_bijections(count: int) -> None:
    found = Permutation(count, count)(np.arange(count))
    assert found.dtype == np.uint64
    assert np.array_equal(np.sort(found), np.arange(count))
    assert not np.array_equal(found, np.arange(count))
    assert not np.array_equal(found, Permutation(count, count + 1)(np.arange(count)))


LARGE_COUNTS = [2**32, 2**40 + 1, 418_414_128_120, 2**62 - 1, 2**62, 2**62 + 1, 2**62 + 5, 2**63 - 1, 2**63, 2**63 + 1]
LARGE_COUNTS += [2**64 - 1, 2**64, 2**64 + 1, (2**31 - 1) ** 2, (2**31) ** 2 + 1, (2**32 - 1) ** 2 + 1, 10**22, 2**200]


@pytest.mark.parametrize("count", LARGE_COUNTS)
def test_large_permutations_are_injective_and_stay_inside(count: int) -> None:
    permutation = Permutation(count, 9)
    places = sorted({0, 1, count - 1, count - 2, *range(1500), *(i * (count // 1500) for i in range(1500))})
    found = permutation(places if count > 2**64 else np.array(places, np.uint64))
    numbers = found.tolist()
    assert found.dtype == (np.uint64 if count <= 2**64 else object)
    assert len(set(numbers)) == len(places)
    assert 0 <= min(numbers) < count // 100
    assert count - count // 100 < max(numbers) < count
    some = list(range(0, len(places), 97))
    assert [int(permutation([places[i]])[0]) for i in some] == [numbers[i] for i in some]


@given(st.integers(1, 2**90), st.integers(0, 2**64), st.sets(st.integers(0, 2**90), max_size=20))
@settings(max_examples=60)
def test_any_permutation_is_injective(count: int, seed: int, places: set[int]) -> None:
    asked = sorted({place % count for place in places})
    found = Permutation(count, seed)(np.array(asked, object)).tolist()
    assert len(set(found)) == len(asked)
    assert all(0 <= number < count for number in found)


# Without replacement, in shards, and walks


@pytest.mark.parametrize("space", [STUDY, FEW, MIDDLE], ids=["31", "few", "93750"])
def test_all_cells_once(space: Space) -> None:
    found = enumerator(space)
    ranks = found.sample_ranks(found.count, 2, replacement=False).tolist()
    assert sorted(ranks) == list(range(found.count))
    assert ranks == list(found.walk(shuffle=2))
    assert list(found.walk()) == list(range(found.count))
    for shards in (1, 2, 3, 7):
        parts = []
        for index in range(shards):
            size = len(range(index, found.count, shards))
            part = found.sample_ranks(size, 2, replacement=False, shard=(index, shards)).tolist()
            assert part == ranks[index::shards] == list(found.walk(shuffle=2, shard=(index, shards)))
            assert list(found.walk(shard=(index, shards))) == list(range(index, found.count, shards))
            assert (
                code_of(
                    lambda n=size + 1, i=index, of=shards: found.sample_ranks(n, 2, replacement=False, shard=(i, of))
                )
                == "DPC074"
            )
            parts += part
        assert sorted(parts) == list(range(found.count))


@pytest.mark.parametrize("space", [PAPER, CHEAP, TWELVE], ids=["5", "cheap", "12"])
def test_shards_of_a_large_space_are_parts_of_one_stream(space: Space) -> None:
    found = enumerator(space)
    ranks = found.sample_ranks(2100, 8, replacement=False).tolist()
    assert len(set(ranks)) == 2100
    for shards in (1, 2, 3, 7):
        for index in range(shards):
            part = found.sample_ranks(2100 // shards, 8, replacement=False, shard=(index, shards)).tolist()
            assert part == ranks[index::shards]
            assert list(islice(found.walk(shuffle=8, shard=(index, shards)), 50)) == part[:50]
    assert list(found.walk(5, 4200, shuffle=8))[:2095] == ranks[5:]  # more than a walk works out at once
    last = found.count - 3
    assert list(found.walk(last)) == [last, last + 1, last + 2]
    assert len(set(found.walk(last, shuffle=8))) == 3
    assert list(found.walk(shuffle=8, start=last)) == Permutation(found.count, 8)([last, last + 1, last + 2]).tolist()


@given(st.integers(0, 31), st.none() | st.integers(0, 40), st.integers(1, 9), st.data())
def test_walks_are_slices(start: int, stop: int | None, shards: int, data: st.DataObject) -> None:
    found = enumerator(STUDY)
    index = data.draw(st.integers(0, shards - 1))
    permuted = data.draw(st.none() | st.integers(0, 5))
    order = list(range(31)) if permuted is None else Permutation(31, permuted)(range(31)).tolist()
    wanted = order[start : 31 if stop is None else stop][index::shards]
    assert list(found.walk(start, stop, shard=(index, shards), shuffle=permuted)) == wanted
    cells = list(found.cells(start, stop, shard=(index, shards), shuffle=permuted))
    assert cells == [found.unrank(rank) for rank in wanted]


def test_walks_are_lazy() -> None:
    for space in (PAPER, TWELVE, space_of("= dpc(B=40)")):
        found = enumerator(space)
        assert list(islice(found, 2)) == [found.unrank(0), found.unrank(1)]
        assert len(list(islice(found.cells(shuffle=1), 3))) == 3
        assert next(found.walk(found.count - 1)) == found.count - 1
        assert list(found.walk(found.count)) == []


def test_wrong_samples_and_walks() -> None:
    found = enumerator(STUDY)
    for n in (-1, 1.0, "3", None, True, np.float64(2)):
        assert code_of(lambda n=n: found.sample(n, 1)) == "DPC062"
    for shard in ((0, 0), (-1, 2), (2, 2), (0,), (0, 1, 2), None, 5, "01", (0.0, 1), (0, 2.0)):
        assert code_of(lambda shard=shard: found.sample(1, 1, replacement=False, shard=shard)) == "DPC062"
        assert code_of(lambda shard=shard: list(found.walk(shard=shard))) == "DPC062"
    assert code_of(lambda: found.sample(1, 1, shard=(0, 2))) == "DPC062"
    assert code_of(lambda: found.sample(32, 1, replacement=False)) == "DPC074"
    assert code_of(lambda: found.sample(2**70, 1, replacement=False)) == "DPC074"
    for start in (-1, 32, 1.5, "0", None):
        assert code_of(lambda start=start: list(found.walk(start))) == "DPC071"
    with pytest.raises(DpcError, match="shard 3 of 4 holds 7 cells, fewer than the 8 asked for"):
        found.sample(8, 1, replacement=False, shard=(3, 4))
    assert len(found.sample(32, 1)) == 32
    assert code_of(lambda: enumerator(EMPTY).sample(1, 1)) == "DPC074"


# Uniformity


def chance(value: float, degrees: int) -> float:
    """The probability that chi-square of so many degrees exceeds ``value``."""
    half = value / 2
    if half == 0:
        return 1.0
    found = erfc(sqrt(half)) if degrees % 2 else exp(-half)
    for power in (place / 2 for place in range(2 - degrees % 2, degrees, 2)):
        found += exp(power * log(half) - half - lgamma(power + 1))
    return found


def chi_square(counts: Sequence[int], weights: Sequence[float] | None = None) -> float:
    total = sum(counts)
    shares = [1 / len(counts)] * len(counts) if weights is None else [w / sum(weights) for w in weights]
    assert min(shares) * total >= 10, "too few for a chi-square test"
    return sum((count - share * total) ** 2 / (share * total) for count, share in zip(counts, shares, strict=True))


def looks_uniform(counts: Sequence[int], weights: Sequence[float] | None = None) -> bool:
    return chance(chi_square(counts, weights), len(counts) - 1) > FALSE_ALARM


def evenly(numbers: Any, count: int, bins: int) -> bool:
    """Whether numbers below ``count`` fall evenly into so many bins, which hold a number more or less each."""
    found = Counter(int(number) * bins // count for number in numbers.tolist())
    starts = [-(-place * count // bins) for place in range(bins + 1)]
    return looks_uniform([found[place] for place in range(bins)], [(b - a) / count for a, b in pairwise(starts)])


def test_what_the_test_of_uniformity_sees() -> None:
    for value, degrees, known in (
        (3.841459, 1, 0.05),
        (5.991465, 2, 0.05),
        (18.307038, 10, 0.05),
        (59.70306, 30, 0.001),
    ):
        assert chance(value, degrees) == pytest.approx(known, rel=1e-4)
    words = Stream(1).words(30_000)
    assert evenly(words, 2**64, 30)
    # A remainder in place of rejection: below 2^62 of the 3 2^62 numbers come twice as often.
    assert not evenly(words % np.uint64(3 * 2**62), 3 * 2**62, 30)
    # So with 32 bits and a bound of 3 2^30.
    assert not evenly((words >> np.uint64(32)) % np.uint64(3 * 2**30), 3 * 2**30, 30)
    # One cell of 31 left out.
    assert not evenly(words % np.uint64(30), 31, 31)


@pytest.mark.parametrize("bound", [3, 5, 31, 100, 2**16 + 1, 3 * 2**30 + 1, 3 * 2**62, 2**64 - 1, 2**64 + 1, 3 * 2**70])
def test_numbers_below_a_bound_are_uniform(bound: int) -> None:
    """Sees a share that is off by a tenth in any thirtieth of the range; a remainder in place of rejection is off by a
    third at 3 2^62 and 3 2^70."""
    bins = min(bound, 30)
    assert evenly(Stream(bound).below(bound, 30_000), bound, bins)


@pytest.mark.parametrize("space", [STUDY, FEW], ids=["optional", "constrained"])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_first_cell_of_many_seeds_is_uniform(space: Space, replacement: bool) -> None:
    """Sees seeds whose streams begin alike, and a cell that comes 1.6 times as often as the others."""
    found = enumerator(space)
    for place in (0, 1):
        drawn = Counter(
            int(found.sample_ranks(2, seed, replacement=replacement)[place]) for seed in range(60 * found.count)
        )
        assert looks_uniform([drawn[rank] for rank in range(found.count)])


def test_the_first_two_cells_without_replacement_are_uniform_among_pairs() -> None:
    """Sees orders of a short shuffle that come more often than others: all 6! are counted by their first two."""
    orders = Counter(tuple(Permutation(6, seed)([0, 5]).tolist()) for seed in range(30 * 100))
    assert len(orders) == 30
    assert looks_uniform(list(orders.values()))
    whole = Counter(tuple(Permutation(4, seed)(range(4)).tolist()) for seed in range(24 * 100))
    assert len(whole) == factorial(4)
    assert looks_uniform(list(whole.values()))


@pytest.mark.parametrize("space", [PAPER, CHEAP, STUDY, FEW, TWELVE], ids=["5", "cheap", "31", "few", "12"])
@pytest.mark.parametrize("replacement", [True, False])
def test_a_sample_is_uniform_over_the_ranks(space: Space, replacement: bool) -> None:
    """Sees a range of ranks that is left out or comes too often: a tenth in a thirtieth of them."""
    found = enumerator(space)
    if found.count < 1000:
        if replacement:
            drawn = Counter(found.sample_ranks(100 * found.count, 5).tolist())
            assert looks_uniform([drawn[rank] for rank in range(found.count)])
        return
    assert evenly(found.sample_ranks(20_000, 5, replacement=replacement), found.count, 30)


@pytest.mark.parametrize("replacement", [True, False])
def test_every_choice_of_every_slot_is_uniform(replacement: bool) -> None:
    """Sees an operator or an input that comes a quarter too often in any slot, and slots that are not independent."""
    found = enumerator(PAPER)
    vectors = found.vectors(found.sample_ranks(40_000, 6, replacement=replacement))
    for slot in range(5):
        inputs, numbers = vectors[:, 2 * slot], vectors[:, 2 * slot + 1]
        assert looks_uniform(np.bincount(numbers, minlength=81).tolist())
        if slot:
            assert looks_uniform(np.bincount(inputs, minlength=slot + 1).tolist())
            earlier = vectors[:, 2 * slot - 1]
            assert looks_uniform(np.bincount(inputs * 9 + earlier % 9, minlength=9 * (slot + 1)).tolist())
            assert looks_uniform(np.bincount(numbers % 9 * 9 + earlier // 9, minlength=81).tolist())


@pytest.mark.parametrize("count", [65_537, 93_750, 2**20 + 7, 418_414_128_120])
def test_neighbours_in_a_permutation_are_independent(count: int) -> None:
    """Sees rounds too few or too weak: with two or three of the six, neighbours fall into bins of their own."""
    for step in (1, 2, _side(count), count // 3):
        for seed in range(3):
            permutation = Permutation(count, seed)
            places = np.arange(20_000)
            first = permutation(places) * np.uint64(15) // np.uint64(count)
            second = permutation((places + step) % count) * np.uint64(15) // np.uint64(count)
            counts = np.bincount((first * np.uint64(15) + second).astype(np.int64), minlength=225)
            assert looks_uniform(counts.tolist()), (step, seed)
            assert evenly(permutation(places) % np.uint64(_side(count)), _side(count), 50)


def _side(count: int) -> int:
    return isqrt(count - 1) + 1


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_are_the_sample_one_by_one(replacement: bool) -> None:
    for space, n in ((PAPER, 9000), (TWELVE, 50), (STUDY, 31)):
        found = enumerator(space)
        wanted = found.sample_ranks(n, 5, replacement=replacement).tolist()
        assert list(found.draws(n, 5, replacement=replacement)) == wanted
    found = enumerator(PAPER)
    assert len(list(islice(found.draws(10**18, 1), 3))) == 3  # lazily
    assert list(found.draws(3, 1, replacement=False, shard=(1, 2))) == list(
        islice(found.walk(shuffle=1, shard=(1, 2)), 3)
    )
    assert code_of(lambda: enumerator(STUDY).draws(32, 1, replacement=False)) == "DPC074"


def test_places_outside_a_permutation() -> None:
    for count in (10, 10**6, 10**22):
        for places in ([-1], [count], [0.5], [True]):
            assert code_of(lambda p=places, c=count: Permutation(c, 1)(p)) == "DPC071"
    for count in (-1, 2.5, True):
        assert code_of(lambda c=count: Permutation(c, 1)) == "DPC062"
