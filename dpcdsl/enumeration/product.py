"""Spaces whose slots choose independently: ranks are mixed-radix numbers, for one cell and for arrays of them.

The digit of a slot is (place of the input among those it may choose) x operators + (number of the operator); the first
slot is the most significant. So ranks grow in the lexicographic order of the vectors.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt

from dpcdsl.enumeration.base import Choices, Enumerator, Vectors
from dpcdsl.enumeration.streams import Ranks, fits_64_bits
from dpcdsl.errors import DpcError
from dpcdsl.space import Space

__all__ = ["ProductEnumerator"]

_CHUNK = 1 << 14  # rows worked on at once: they stay in the second-level cache


class ProductEnumerator(Enumerator):
    """The genomes of a space without optional branches and without constraints."""

    def __init__(self, space: Space):
        self.space = space
        self._inputs = [space.candidates(number) for number in range(1, len(space.slots) + 1)]
        self._operators = [len(slot.operators) for slot in space.slots]
        self._radices = [
            len(inputs) * operators for inputs, operators in zip(self._inputs, self._operators, strict=True)
        ]
        # Slots in runs whose digits together fit 64 bits, from the last slot to the first.
        self._runs: list[tuple[range, int]] = []
        last = len(self._radices)
        while last:
            products = list(accumulate(reversed(self._radices[:last]), mul))
            fitting = max(1, sum(map(fits_64_bits, products)))
            self._runs.append((range(last - fitting, last), products[fitting - 1]))
            last -= fitting

    @cached_property
    def count(self) -> int:
        return prod(self._radices)

    def choices(self, rank: int) -> Choices:
        found = []
        for radix, inputs, operators in zip(
            reversed(self._radices), reversed(self._inputs), reversed(self._operators), strict=True
        ):
            rank, digit = divmod(rank, radix)
            place, operator = divmod(digit, operators)
            found.append((inputs[place], operator))
        return tuple(reversed(found))

    def rank_of(self, choices: Choices) -> int:
        rank = 0
        for choice, radix, inputs, operators in zip(choices, self._radices, self._inputs, self._operators, strict=True):
            assert choice is not None
            rank = rank * radix + inputs.index(choice[0]) * operators + choice[1]
        return rank

    def vectors(self, ranks: npt.ArrayLike) -> Vectors:
        rest: Any = self._checked_array(ranks)
        found = np.empty((len(rest), 2 * len(self._radices)), np.int32)
        for slots, size in self._runs:
            if fits_64_bits(self.count):
                digits = rest
            else:  # numbers of Python's, taken apart once a run
                digits, rest = (rest % size).astype(np.uint64), rest // size
            for start in range(0, len(digits), _CHUNK):
                self._decode(slots, digits[start : start + _CHUNK], found[start : start + _CHUNK])
        return found

    def _decode(self, slots: range, digits: npt.NDArray[np.uint64], found: Vectors) -> None:
        for slot in reversed(slots):
            radix, operators = np.uint64(self._radices[slot]), np.uint32(self._operators[slot])
            if slot == slots.start:
                digit = digits.astype(np.uint32)
            else:
                rest = digits // radix
                digit = (digits - rest * radix).astype(np.uint32)
                digits = rest
            place = digit // operators
            found[:, 2 * slot + 1] = digit - place * operators
            if self.space.slots[slot].inputs is None:
                found[:, 2 * slot] = place
            else:
                found[:, 2 * slot] = np.array(self._inputs[slot], np.int32)[place]

    def ranks(self, vectors: npt.ArrayLike) -> Ranks:
        checked = self._checked_vectors(vectors)
        small = fits_64_bits(self.count)
        found: Ranks = np.zeros(len(checked), np.uint64 if small else object)
        for slots, size in reversed(self._runs):
            digits = np.empty(len(checked), np.uint64)
            for start in range(0, len(checked), _CHUNK):
                digits[start : start + _CHUNK] = self._encode(slots, checked[start : start + _CHUNK], start)
            found = digits if small else found * size + digits.astype(object)
        return found

    def _encode(self, slots: range, rows: npt.NDArray[np.integer[Any]], first_row: int) -> npt.NDArray[np.uint64]:
        digits = np.zeros(len(rows), np.uint64)
        for slot in slots:
            given, operator = rows[:, 2 * slot], rows[:, 2 * slot + 1]
            inputs, operators = self._inputs[slot], self._operators[slot]
            if self.space.slots[slot].inputs is None:
                place, known = given, (given >= 0) & (given < len(inputs))
            else:
                place = np.searchsorted(np.array(inputs), given)
                known = np.array(inputs)[np.minimum(place, len(inputs) - 1)] == given
            known &= (operator >= 0) & (operator < operators)
            if not known.all():
                self._refuse(rows, first_row, int(np.argmin(known)))
            digits *= np.uint64(self._radices[slot])
            digits += (place.astype(np.uint32) * np.uint32(operators) + operator.astype(np.uint32)).astype(np.uint64)
        return digits

    def _refuse(self, rows: npt.NDArray[np.integer[Any]], first_row: int, row: int) -> None:
        numbers = rows[row].tolist()
        try:
            self.space.check_choices(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
        except DpcError as error:
            raise error.within(f"row {first_row + row}") from None
