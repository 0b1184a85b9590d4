"""What a searcher knows of the trials before: the rank of a trial's cell, and how good it is beside others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Standings", "Trial", "beaten"]

_BLOCK = 64  # rows that are compared with all others at once


class Trial(NamedTuple):
    """What is known of a trial.

    rank: of its cell among the genomes of the space; None if it has none, as one that was withdrawn.
    asker: whose proposal it is; None if it is a user's. scores: the larger the better; None if it failed, or is not
    finished.
    """

    number: int
    rank: int | None
    asker: int | None = None
    finished: bool = False
    scores: tuple[float, ...] | None = None


class Standings:
    """Trials with scores, by how many are better: those that are as good in every score, and better in one.

    It is the same whatever the order in which they are added. A trial takes some dozens of bytes.
    """

    def __init__(self) -> None:
        self._count = 0
        self._scores: npt.NDArray[np.float64] = np.empty((0, 1))
        self._better: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._numbers: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._ranks: list[int] = []

    def __len__(self) -> int:
        return self._count

    def add(self, trial: Trial) -> None:
        assert trial.scores is not None
        assert trial.rank is not None
        if self._count == len(self._numbers):
            self._grow(len(trial.scores))
        scores, better = self._scores[: self._count], self._better[: self._count]
        new = np.array(trial.scores)
        differ = (scores != new).any(1)
        better += (scores <= new).all(1) & differ
        self._scores[self._count] = new
        self._better[self._count] = np.count_nonzero((scores >= new).all(1) & differ)
        self._numbers[self._count] = trial.number
        self._ranks.append(trial.rank)
        self._count += 1

    def best(self, count: int) -> list[int]:
        """The ranks of the ``count`` best; of equal ones, those of lower numbers."""
        better, numbers = self._better[: self._count], self._numbers[: self._count]
        limit = np.partition(better, count - 1)[count - 1] if count < self._count else np.inf
        places = np.flatnonzero(better <= limit)
        order = places[np.lexsort((numbers[places], better[places]))][:count]
        return [self._ranks[place] for place in order]

    def latest(self, count: int) -> list[tuple[int, int]]:
        """(how many are better, rank) of the ``count`` trials of the highest numbers, by number."""
        numbers = self._numbers[: self._count]
        limit = np.partition(numbers, -count)[-count] if count < self._count else -1
        places = np.flatnonzero(numbers >= limit)
        order = places[np.argsort(numbers[places])]
        return [(int(self._better[place]), self._ranks[place]) for place in order]

    def _grow(self, width: int) -> None:
        size = max(64, 2 * self._count)
        for name, shape in (("_scores", (size, width)), ("_better", (size,)), ("_numbers", (size,))):
            old = getattr(self, name)
            new = np.zeros(shape, old.dtype)
            new[: self._count] = old[: self._count]
            setattr(self, name, new)


def beaten(values: Sequence[tuple[float, ...]]) -> npt.NDArray[np.int64]:
    """How many beat each: are as good in every value, and better in one. The larger the better."""
    array = np.asarray(values, np.float64)
    if not array.size or array.shape[1] == 1:
        ordered = np.sort(array.ravel())
        return len(ordered) - np.searchsorted(ordered, array.ravel(), side="right")
    found = np.empty(len(array), np.int64)
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK, None]
        as_good = np.logical_and.reduce([array[:, axis] >= block[..., axis] for axis in range(array.shape[1])])
        alike = np.logical_and.reduce([array[:, axis] == block[..., axis] for axis in range(array.shape[1])])
        found[start : start + _BLOCK] = np.count_nonzero(as_good, 1) - np.count_nonzero(alike, 1)
    return found
