"""What every enumerator offers: cells in a fixed order, numbered from 0, to rank, unrank, sample and walk through.

An enumerator says how many there are and turns a number into a vector and back; everything here follows from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dpcdsl.cell import Branch, Cell
from dpcdsl.enumeration.streams import Permutation, Ranks, Seed, Stream, fits_64_bits
from dpcdsl.errors import DpcError, shown
from dpcdsl.space import Space

__all__ = ["Choice", "Choices", "Enumerator", "Vectors", "checked_cell", "checked_shard", "checked_space"]

#: What a slot chose: (input by slot number, operator number), or None where it is left out.
Choice: TypeAlias = tuple[int, int] | None
Choices: TypeAlias = tuple[Choice, ...]
#: An array [cells, 2 x slots]: input and operator number of each slot, -1 and -1 where it is left out.
Vectors: TypeAlias = npt.NDArray[np.int32]

_WALKED = 1 << 12  # ranks that a walk works out at once


class Enumerator(ABC):
    """Cells of a space in a fixed order, numbered from 0 to ``count`` - 1. Make one with :func:`enumerator`.

    Several threads may ask one enumerator. Subclasses give ``space``, ``count``, :meth:`choices` and :meth:`rank_of`.
    """

    #: The space whose cells these are.
    space: Space

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are, exactly."""

    @abstractmethod
    def choices(self, rank: int) -> Choices:
        """What each slot chooses in the cell with this rank; ``rank`` has been checked."""

    @abstractmethod
    def rank_of(self, choices: Choices) -> int:
        """The inverse of :meth:`choices`; they have been checked against the space's slots.

        Raises :class:`DpcError` (DPC055) if a constraint leaves them out.
        """

    def unrank(self, rank: int) -> Cell:
        """The cell with this rank. Raises :class:`DpcError` (DPC071) if it is not from 0 to ``count`` - 1."""
        return self.cell(self.choices(self.checked(rank)))

    def rank(self, cell: Cell) -> int:
        """The rank of ``cell``, the lowest where optional branches give it in several ways.

        Raises :class:`DpcError` (DPC055) if the space does not contain it.
        """
        return self.rank_of(self.space.placed(checked_cell(cell)))

    def vectors(self, ranks: npt.ArrayLike) -> Vectors:
        """The vectors of an array of ranks: [cells, 2 x slots]. Raises :class:`DpcError` (DPC071) on a wrong rank."""
        checked = self._checked_array(ranks)
        found = np.empty((len(checked), 2 * len(self.space.slots)), np.int32)
        for row, rank in zip(found, checked.tolist(), strict=True):
            row[:] = [number for choice in self.choices(rank) for number in (choice or (-1, -1))]
        return found

    def ranks(self, vectors: npt.ArrayLike) -> Ranks:
        """The ranks of an array of vectors [cells, 2 x slots], the inverse of :meth:`vectors`.

        Raises :class:`DpcError`: DPC054 if a row is not a vector of the space, DPC055 if a constraint leaves it out,
        DPC074 if the space has no cells.
        """
        checked = self._checked_vectors(vectors)
        found = np.empty(len(checked), np.uint64 if fits_64_bits(self.count) else object)
        for number, row in enumerate(checked.tolist()):
            pairs = zip(row[::2], row[1::2], strict=True)
            choices = tuple(None if pair == (-1, -1) else pair for pair in pairs)
            try:
                self.space.check_choices(choices)
                found[number] = self.rank_of(choices)
            except DpcError as error:
                raise error.within(f"row {number}") from None
        return found

    def sample(
        self, n: int, seed: Seed = None, *, replacement: bool = True, shard: tuple[int, int] = (0, 1)
    ) -> list[Cell]:
        """``n`` cells, each equally likely; see :meth:`sample_ranks`."""
        ranks = self.sample_ranks(n, seed, replacement=replacement, shard=shard)
        return [self.cell(self.choices(rank)) for rank in ranks.tolist()]

    def sample_ranks(
        self, n: int, seed: Seed = None, *, replacement: bool = True, shard: tuple[int, int] = (0, 1)
    ) -> Ranks:
        """The ranks of ``n`` cells drawn uniformly. The first ones do not depend on ``n``.

        seed: a whole number, or a ``numpy.random.Generator``, which is moved on; None for another sample each time.
        replacement: False draws no rank twice, in constant memory: the ranks at places 0, 1, … of a permutation.
        shard: (index, shards): this machine's part of one stream; the parts are disjoint. Only without replacement.

        Raises :class:`DpcError`: DPC062 on a wrong setting, DPC074 if there are fewer cells than are asked for.
        """
        n, (index, shards) = self._checked_sample(n, replacement, shard)
        if replacement:
            return Stream(seed).below(max(self.count, 1), n)
        return Permutation(self.count, seed)(_places(index, shards, n, self.count))

    def draws(
        self, n: int, seed: Seed = None, *, replacement: bool = True, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[int]:
        """The ranks of :meth:`sample_ranks` one by one, in constant memory."""
        n, (index, shards) = self._checked_sample(n, replacement, shard)
        if not replacement:
            return self._shuffled(range(index, index + n * shards, shards), Permutation(self.count, seed))
        stream, bound = Stream(seed), max(self.count, 1)
        blocks = (stream.below(bound, min(_WALKED, n - first)).tolist() for first in range(0, n, _WALKED))
        return chain.from_iterable(blocks)

    def _checked_sample(self, n: int, replacement: bool, shard: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0:
            raise DpcError.of("DPC062", f"the size of a sample is a whole number from 0 up, not {shown(n)}")
        index, shards = checked_shard(shard)
        if replacement and shards > 1:
            raise DpcError.of(
                "DPC062",
                "shards are parts of a sample without replacement",
                hint="pass replacement=False, or give each machine a seed of its own",
            )
        if n and not self.count:
            raise self.empty()
        available = max(0, -(-(self.count - index) // shards))
        if n > available and not replacement:
            where = f"shard {index} of {shards}" if shards > 1 else "the space"
            raise DpcError.of(
                "DPC074",
                f"{where} holds {available:,} cells, fewer than the {n:,} asked for",
                hint="ask for fewer, or draw with replacement",
            )
        return int(n), (index, shards)

    def walk(
        self, start: int = 0, stop: int | None = None, *, shard: tuple[int, int] = (0, 1), shuffle: Seed = None
    ) -> Iterator[int]:
        """Ranks in order, lazily: those from ``start`` up to and without ``stop``; of these every ``shards``-th.

        shard: (index, shards); the parts are disjoint and together all.
        shuffle: a seed; the order is then that of a sample without replacement, and ``start`` and ``stop`` are places
            in it. None for the order of the ranks.

        Raises :class:`DpcError`: DPC071 if ``start`` or ``stop`` is no whole number from 0 up, or ``start`` is beyond
        the count; DPC062 on a wrong shard.
        """
        index, shards = checked_shard(shard)
        stop = self.count if stop is None else min(self._whole(stop), self.count)
        start = self._whole(start)
        if start > self.count:
            raise self._outside(start)
        places = range(start + index, stop, shards)
        return iter(places) if shuffle is None else self._shuffled(places, Permutation(self.count, shuffle))

    def _shuffled(self, places: range, permutation: Permutation) -> Iterator[int]:
        for first in range(0, _length(places), _WALKED):
            few = min(_WALKED, _length(places) - first)
            block = _places(places.start + first * places.step, places.step, few, self.count)
            yield from permutation(block).tolist()

    def cells(
        self, start: int = 0, stop: int | None = None, *, shard: tuple[int, int] = (0, 1), shuffle: Seed = None
    ) -> Iterator[Cell]:
        """The cells in order, lazily; the arguments are those of :meth:`walk`."""
        return map(self.unrank, self.walk(start, stop, shard=shard, shuffle=shuffle))

    def __iter__(self) -> Iterator[Cell]:
        return self.cells()

    def __contains__(self, cell: object) -> bool:
        if not isinstance(cell, Cell):
            return False
        try:
            self.rank(cell)
        except DpcError as error:
            if error.codes == ("DPC055",):
                return False
            raise  # the question is out of reach
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.space!r})"

    def cell(self, choices: Iterable[Choice]) -> Cell:
        """The cell of what each slot chooses; the choices are taken as they are."""
        tensors = [0] * (len(self.space.slots) + 1)  # slot number -> branch number
        branches: list[Branch] = []
        known = self._branches
        for number, choice in enumerate(choices, 1):
            if choice is None:
                continue
            key = (number, tensors[choice[0]], choice[1])
            branch = known.get(key)
            if branch is None:
                operator = self.space.slots[number - 1].operators.operators[choice[1]]
                branch = Branch(input=key[1], operator=operator)
                if len(known) < 1 << 16:
                    known[key] = branch
            branches.append(branch)
            tensors[number] = len(branches)
        return Cell(branches=tuple(branches), filters=self.space.filters)

    # What subclasses share

    @cached_property
    def _branches(self) -> dict[tuple[int, int, int], Branch]:
        return {}

    def empty(self) -> DpcError:
        """What is said of a space without cells."""
        return DpcError.of(
            "DPC074", "no cell of the space fulfils its constraints", hint="loosen a `where` or `require`"
        )

    def checked(self, rank: object) -> int:
        """``rank`` as a whole number, or a :class:`DpcError` (DPC071) if it is not from 0 to ``count`` - 1."""
        number = self._whole(rank)
        if number >= self.count:
            raise self._outside(number)
        return number

    def _whole(self, number: object) -> int:
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise DpcError.of("DPC071", f"a rank is a whole number, not {shown(number)}")
        if number < 0:
            raise self._outside(int(number))
        return int(number)

    def _outside(self, rank: int) -> DpcError:
        if not self.count:
            return self.empty()
        return DpcError.of(
            "DPC071",
            f"ranks go from 0 to {shown(self.count - 1)}, and this is {shown(rank)}",
            hint="ranks count from 0",
        )

    def _checked_array(self, ranks: npt.ArrayLike) -> Ranks:
        """Ranks as an array of the kind that :data:`Ranks` says, each of them in range."""
        try:
            array = ranks if isinstance(ranks, np.ndarray) else np.array(_listed(ranks), dtype=object)
        except ValueError:  # lists of several lengths
            array = np.empty((0, 0))
        if array.ndim != 1:
            raise DpcError.of("DPC071", f"ranks come in an array of one dimension, not {array.ndim}")
        if not len(array):
            return np.empty(0, np.uint64 if fits_64_bits(self.count) else object)
        if array.dtype.kind not in "iuO":
            raise DpcError.of("DPC071", f"ranks are whole numbers, not {array.dtype}", hint="floats lose digits")
        if array.dtype == object:
            for value in array:
                self.checked(value)
        elif array.min() < 0 or int(array.max()) >= self.count:
            self.checked(int(array.min()) if array.min() < 0 else int(array.max()))
        return array.astype(np.uint64 if fits_64_bits(self.count) else object)

    def _checked_vectors(self, vectors: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
        try:
            array = np.asarray(vectors)
        except ValueError:
            array = np.empty(0)
        if array.ndim != 2 or array.shape[1] != 2 * len(self.space.slots) or array.dtype.kind not in "iu":
            raise DpcError.of(
                "DPC054",
                f"vectors come as whole numbers in an array of {2 * len(self.space.slots)} columns, "
                f"not {'x'.join(map(str, array.shape))} of {array.dtype}",
                hint="each slot has two columns: its input and the number of its operator",
            )
        return array


def checked_space(space: object) -> Space:
    """``space``, or a :class:`DpcError` (DPC062) that says how to come by one."""
    if not isinstance(space, Space):
        raise DpcError.of(
            "DPC062",
            f"a space is wanted, not {shown(space)}",
            hint='read one with `dpcdsl.read_space("dpc")`, or make one of a cell with `Space.only(cell)`',
        )
    return space


def checked_cell(cell: object) -> Cell:
    """``cell``, or a :class:`DpcError` (DPC062) that says how to come by one."""
    if not isinstance(cell, Cell):
        raise DpcError.of(
            "DPC062", f"a cell is wanted, not {shown(cell)}", hint='read one with `dpcdsl.read_cell("top1")`'
        )
    return cell


def checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """(index, shards), the index from 0; or a :class:`DpcError` (DPC062)."""
    match shard:
        case (int() | np.integer() as index, int() | np.integer() as shards) if not isinstance(index, bool):
            if 0 <= index < shards:
                return int(index), int(shards)
    raise DpcError.of("DPC062", f"a shard is (index, shards) with the index from 0, not {shown(shard)}")


def _listed(ranks: Any) -> Sequence[Any]:
    return ranks if isinstance(ranks, Sequence) and not isinstance(ranks, str) else list(np.atleast_1d(ranks))


def _length(places: range) -> int:
    # len() of a range stops at the largest machine word.
    return max(0, -(-(places.stop - places.start) // places.step))


def _places(first: int, step: int, n: int, count: int) -> Ranks:
    if n <= 1:  # the step may be longer than any space
        step = 1
    if fits_64_bits(count):
        return np.uint64(first) + np.uint64(step) * np.arange(n, dtype=np.uint64)
    return np.array([first + step * i for i in range(n)], dtype=object)
