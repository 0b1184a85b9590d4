"""Cells up to isomorphism or function, where every branch may read any tensor and all draw from one operator set.

A class of such cells is a forest of operators (:mod:`~dpcdsl.enumeration.trees`): the branches that read F are its
roots. The cell that stands for a class is its canonical one (:mod:`dpcdsl.isomorphism`). Ranks grow with the number of
branches, then with the sums that constraints ask for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

from dpcdsl.constraints import Distance, Measure
from dpcdsl.enumeration.base import Choice, Choices, Enumerator
from dpcdsl.enumeration.consequences import Channels
from dpcdsl.enumeration.sums import DEPTH
from dpcdsl.enumeration.tally import Structure, Tally
from dpcdsl.enumeration.trees import Forests, Weight
from dpcdsl.enumeration.verdict import measures
from dpcdsl.errors import DpcError
from dpcdsl.isomorphism import operator_key, sorted_preorder
from dpcdsl.space import OperatorSet, Slot, Space

__all__ = ["ForestEnumerator", "is_forest_space"]


def is_forest_space(space: Space) -> bool:
    """Whether every branch may read any tensor, all draw from one operator set, and no constraint looks at the order
    of branches."""
    operators = space.slots[0].operators
    return all(slot.inputs is None and slot.operators == operators for slot in space.slots) and not any(
        isinstance(measure, Distance) for measure in measures(space.constraints)
    )


class ForestEnumerator(Enumerator):
    """The classes of a space for which :func:`is_forest_space` holds.

    stands_for: for each operator's number that of the operator that it counts as, which costs the same; its own where
    none are merged. keep: measures that :meth:`distribution` tells.
    """

    def __init__(self, space: Space, stands_for: Sequence[int], keep: Sequence[Measure] = ()):
        self.space = space
        everything = space.slots[0].operators
        self._numbers = sorted(set(stands_for))  # number here -> number in the space
        place = {number: i for i, number in enumerate(self._numbers)}
        self._stands_for = [place[number] for number in stands_for]
        self._operators = OperatorSet(operators=tuple(everything.operators[number] for number in self._numbers))
        order = sorted(range(len(self._operators)), key=lambda i: operator_key(self._operators.operators[i]))
        place_in_order = {i: label for label, i in enumerate(order)}
        self._labels = [place_in_order[i] for i in range(len(order))]
        slots = tuple(Slot(inputs=None, operators=self._operators, optional=slot.optional) for slot in space.slots)
        self._tally = Tally(Space(slots=slots, filters=space.filters, constraints=space.constraints), keep)
        self._needed = sum(not slot.optional for slot in space.slots)
        self._forests = Forests(
            len(space.slots),
            self._tally.features().channels,
            self._consequences,
            deep=DEPTH in (*keep, *measures(space.constraints)),
            lost=self._lost if space.constraints else lambda _: False,
        )
        self._parts = [
            (size, weight, count)
            for size in range(max(1, self._needed), len(slots) + 1)
            for weight, count in sorted(self._forests.counts(size).items())
            if self._tally.finish(self._ended(weight), weight.sums) is not None
        ]
        self._running = list(accumulate(count for _, _, count in self._parts))
        self._place = {(size, weight): i for i, (size, weight, _) in enumerate(self._parts)}

    @property
    def count(self) -> int:
        return self._running[-1] if self._running else 0

    def _consequences(self, channels: Channels) -> list[tuple[int, Channels]]:
        return self._tally.consequences(self._operators, channels)

    def _lost(self, weight: Weight) -> bool:
        return self._tally.sums.is_lost(weight.sums, weight.height)

    @staticmethod
    def _ended(weight: Weight) -> Structure:
        return Structure((), weight.height, 0, deepening=False)

    def distribution(self) -> dict[tuple[int, ...], int]:
        """How many classes there are for each combination of the kept measures' values."""
        found: Counter[tuple[int, ...]] = Counter()
        for _, weight, count in self._parts:
            found[self._tally.values(self._ended(weight), weight.sums)] += count
        return dict(sorted(found.items()))

    def choices(self, rank: int) -> Choices:
        place = bisect_right(self._running, rank)
        size, weight, _ = self._parts[place]
        inputs, operators = self._forests.unrank(size, weight, rank - (self._running[place - 1] if place else 0))
        order, _ = sorted_preorder(inputs, [self._labels[operator] for operator in operators])
        slots = self._present(size)
        tensor = {0: 0}
        found: list[Choice] = [None] * len(self.space.slots)
        for branch, slot in zip(order, slots, strict=True):
            found[slot - 1] = tensor[inputs[branch - 1]], self._numbers[operators[branch - 1]]
            tensor[branch] = slot
        return tuple(found)

    @cached_property
    def _slots(self) -> dict[int, list[int]]:
        return {}

    def _present(self, size: int) -> list[int]:
        """The slots of a cell of ``size`` branches in its lowest vector: optional ones are left out while they can."""
        found = self._slots.get(size)
        if found is None:
            left_out = len(self.space.slots) - size
            found = []
            for number, slot in enumerate(self.space.slots, 1):
                if slot.optional and left_out:
                    left_out -= 1
                else:
                    found.append(number)
            self._slots[size] = found
        return found

    def rank_of(self, choices: Choices) -> int:
        if not self.count:
            raise self.empty()
        if not any(choices):
            raise DpcError.of("DPC055", "a cell needs at least one branch")
        number = {0: 0}
        inputs: list[int] = []
        operators: list[int] = []
        for slot, choice in enumerate(choices, 1):
            if choice is not None:
                inputs.append(number[choice[0]])
                operators.append(self._stands_for[choice[1]])
                number[slot] = len(inputs)
        try:
            size, weight, rank = self._forests.rank(inputs, operators)
            place = self._place[size, weight]
        except KeyError:  # weights that the constraints rule out have no trees, no forests and no place
            raise DpcError.of("DPC055", "the cell breaks a constraint of the space") from None
        return rank + (self._running[place - 1] if place else 0)
