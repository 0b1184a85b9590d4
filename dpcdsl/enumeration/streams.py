"""Randomness that stays the same: uniform whole numbers and permutations from a seed.

Both stand on the raw output of NumPy's PCG64, whose stream is fixed for good, and never on the distributions of
``numpy.random.Generator``, which may change from one version of NumPy to the next. Golden tests hold the streams.
"""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dpcdsl.errors import DpcError, shown

__all__ = ["Permutation", "Ranks", "Seed", "Stream", "fits_64_bits"]

#: Where randomness comes from: a whole number from 0 up, a generator (which is moved on), or None for fresh entropy.
Seed: TypeAlias = int | np.random.Generator | None

#: Ranks: unsigned 64-bit numbers where the space has at most 2^64 cells, else an object array of Python's.
Ranks: TypeAlias = npt.NDArray[np.uint64] | npt.NDArray[np.object_]

#: Spaces up to this size are shuffled for real: the permutation is uniform among all of them.
_SHUFFLED = 1 << 16
_ROUNDS = 6
_CHUNK = 1 << 14  # ranks that are worked on at once: they stay in the second-level cache
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_LOW = np.uint64(0xFFFFFFFF)
_29, _32, _33 = np.uint64(29), np.uint64(32), np.uint64(33)


def fits_64_bits(count: int) -> bool:
    """Whether ranks below ``count`` are kept as unsigned 64-bit numbers."""
    return count <= 1 << 64


class Stream:
    """Uniform whole numbers from a seed. Values come one after another: the first 5 of 10 are those of 5.

    Raises :class:`DpcError` (DPC062) on anything that is not a seed.
    """

    def __init__(self, seed: Seed = None):
        if isinstance(seed, np.random.Generator):
            words = np.asarray(seed.bit_generator.random_raw(8), dtype=np.uint64)  # holds the generator's lock
            entropy: int | list[int] | None = [int(word) & 0xFFFFFFFF for word in words]  # MT19937 has 32 bits a word
        elif seed is None:
            entropy = None
        elif isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0:
            entropy = int(seed)
        else:
            raise DpcError.of(
                "DPC062",
                f"a seed is a whole number from 0 up, not {shown(seed)}",
                hint="or a numpy.random.Generator, or None for another sample each time",
            )
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """``count`` raw words of 64 bits."""
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def below(self, bound: int, count: int) -> Ranks:
        """``count`` uniform numbers from 0 to ``bound`` - 1, by rejection: exactly uniform."""
        if bound < 1:
            raise ValueError("bound must be at least 1")
        bits = (bound - 1).bit_length()
        if bits == 0:
            return np.zeros(count, np.uint64)
        if bits > 64:
            return self._large_below(bound, bits, count)
        found = np.empty(count, np.uint64)
        filled = 0
        while filled < count:  # each round asks for what is missing, so no word is ever thrown away unseen
            drawn = self.words(count - filled) >> np.uint64(64 - bits)
            kept = drawn[drawn <= np.uint64(bound - 1)]
            found[filled : filled + len(kept)] = kept
            filled += len(kept)
        return found

    def _large_below(self, bound: int, bits: int, count: int) -> npt.NDArray[np.object_]:
        found = np.empty(count, object)
        each = -(-bits // 64)
        filled = 0
        while filled < count:
            for row in self.words((count - filled) * each).astype("<u8").reshape(-1, each):
                value = int.from_bytes(row.tobytes(), "little") >> (64 * each - bits)
                if value < bound:
                    found[filled] = value
                    filled += 1
        return found

    def one_below(self, bound: int) -> int:
        """One uniform number from 0 to ``bound`` - 1."""
        return int(self.below(bound, 1)[0])


class Permutation:
    """A permutation of 0 … ``count`` - 1 in constant memory, chosen by a seed.

    Up to 65,536 numbers it is a shuffle, uniform among all permutations. Above, it is a Feistel network of six rounds
    on pairs (left, right) of numbers below a = ⌈√count⌉, whose rounds add a hash of one half to the other modulo a
    (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002); what falls at or above ``count`` is sent through
    again, which happens to fewer than 2/√count of the numbers.
    """

    def __init__(self, count: int, seed: Seed = None):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise DpcError.of("DPC062", f"a permutation is one of a whole number of things, not {shown(count)}")
        self.count = count
        stream = Stream(seed)
        self._shuffled = _shuffle(count, stream) if count <= _SHUFFLED else None
        self._keys = stream.words(_ROUNDS)
        self._side = _ceiled_root(count)

    def __call__(self, indices: npt.ArrayLike) -> Ranks:
        """The numbers at ``indices``, each from 0 to ``count`` - 1; an array of them. Else DPC071."""
        given = np.asarray(indices)
        if given.dtype.kind not in "iuO" or (given.size and (given.min() < 0 or int(given.max()) >= self.count)):
            raise DpcError.of("DPC071", f"places are whole numbers from 0 to {shown(self.count - 1)}")
        if self._shuffled is not None:
            return self._shuffled[given.astype(np.int64)]
        if self._side > 1 << 31:
            found = np.empty(given.shape, np.uint64 if fits_64_bits(self.count) else object)
            found.ravel()[:] = [self._large(int(index)) for index in given.ravel()]
            return found
        flat = given.astype(np.uint64).ravel()
        found = np.empty_like(flat)
        for start in range(0, len(flat), _CHUNK):
            found[start : start + _CHUNK] = self._walk(flat[start : start + _CHUNK])
        return found.reshape(given.shape)

    def _walk(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        values = self._pass(values)
        last = np.uint64(self.count - 1)
        outside = np.flatnonzero(values > last)
        while len(outside):
            values[outside] = self._pass(values[outside])
            outside = outside[values[outside] > last]
        return values

    def _pass(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        side = np.uint64(self._side)
        left = values // side
        right = values - left * side
        for key in self._keys:
            mixed = (right + key) * _MIX[0]
            mixed ^= mixed >> _33
            mixed *= _MIX[1]
            mixed ^= mixed >> _29
            # The high 64 bits of mixed * side: a number below side, uniform but for one part in 2^33.
            low = (mixed & _LOW) * side
            low >>= _32
            mixed >>= _32
            mixed *= side
            mixed += low
            mixed >>= _32
            mixed += left
            np.minimum(mixed, mixed - side, out=mixed)  # modulo side: below zero wraps round to the largest numbers
            left, right = right, mixed
        left *= side
        left += right
        return left

    def _large(self, value: int) -> int:
        size = (self._side.bit_length() + 7) // 8
        while True:
            left, right = divmod(value, self._side)
            for key in self._keys:
                digest = hashlib.shake_256(int(key).to_bytes(8, "little") + right.to_bytes(size, "little"))
                mixed = int.from_bytes(digest.digest(size + 16), "little")  # 128 bits more: no bias one could see
                left, right = right, (left + mixed) % self._side
            value = left * self._side + right
            if value < self.count:
                return value


def _ceiled_root(count: int) -> int:
    return isqrt(max(count, 1) - 1) + 1


def _shuffle(count: int, stream: Stream) -> npt.NDArray[np.uint64]:
    while True:  # sorted by distinct random keys, every order is equally likely
        keys = stream.words(count)
        order = np.argsort(keys, kind="stable")
        if not np.any(keys[order][1:] == keys[order][:-1]):
            return order.astype(np.uint64)
