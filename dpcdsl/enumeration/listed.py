"""Classes of a space outside the fragment that is counted in closed form: its genomes are gone through one by one."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain

from dpcdsl.cell import Cell
from dpcdsl.enumeration.base import Choices, Enumerator, checked_cell
from dpcdsl.enumeration.progress import report
from dpcdsl.errors import DpcError
from dpcdsl.isomorphism import sorted_preorder
from dpcdsl.operators import Operator

__all__ = ["MAX_LISTED", "ListedEnumerator"]

#: Most genomes that are gone through one by one.
MAX_LISTED = 10**7

_REPORTED = 1 << 14


class ListedEnumerator(Enumerator):
    """Classes of genomes whose trees are equal, operators with equal labels counting as equal.

    Ranks follow the first genome of each class. Raises :class:`DpcError` (DPC070) for more than :data:`MAX_LISTED`
    genomes.
    """

    def __init__(self, genomes: Enumerator, labels: Mapping[Operator, int]):
        self.space = genomes.space
        self._genomes = genomes
        if genomes.count > MAX_LISTED:
            raise DpcError.of(
                "DPC070",
                f"classes of this space are found by going through its genomes, and it has {genomes.count:,}",
                hint=f"at most {MAX_LISTED:,} are gone through; classes are counted without that where every branch "
                "reads `any`, all draw from one operator set, no constraint measures a distance, and operators that "
                "are the same function are alike to every constraint",
            )
        self._labels = [[labels[operator] for operator in slot.operators.operators] for slot in self.space.slots]
        self._label_of = dict(labels)
        self._class_of: dict[bytes, int] = {}
        self._first = array("Q")
        for start in range(0, genomes.count, _REPORTED):
            stop = min(start + _REPORTED, genomes.count)
            for rank in range(start, stop):
                key = self._key(genomes.choices(rank))
                if key not in self._class_of:
                    self._class_of[key] = len(self._first)
                    self._first.append(rank)
            report("listing", stop, genomes.count)

    @property
    def count(self) -> int:
        return len(self._first)

    def rank(self, cell: Cell) -> int:
        """The rank of the class of ``cell``, which need not lie in the space itself if another of its class does."""
        branches = checked_cell(cell).branches
        labels = [self._label_of.get(branch.operator) for branch in branches]
        known = [label for label in labels if label is not None]
        rank = None
        if len(known) == len(labels) and cell.filters == self.space.filters:
            rank = self._class_of.get(_packed([branch.input for branch in branches], known))
        if rank is None:
            raise DpcError.of("DPC055", "no cell of the space is of the class of this one", hint="name another space")
        return rank

    def _key(self, choices: Choices) -> bytes:
        branch = [0] * (len(choices) + 1)
        inputs: list[int] = []
        labels: list[int] = []
        for number, choice in enumerate(choices, 1):
            if choice is not None:
                inputs.append(branch[choice[0]])
                labels.append(self._labels[number - 1][choice[1]])
                branch[number] = len(inputs)
        return _packed(inputs, labels)

    def choices(self, rank: int) -> Choices:
        return self._genomes.choices(self._first[rank])

    def rank_of(self, choices: Choices) -> int:
        self._genomes.rank_of(choices)  # says so if a constraint breaks
        return self._class_of[self._key(choices)]


def _packed(inputs: Sequence[int], labels: Sequence[int]) -> bytes:
    """The tree of a cell, small: there may be millions."""
    return array("I", chain.from_iterable(sorted_preorder(inputs, labels)[1])).tobytes()
