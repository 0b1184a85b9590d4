"""Sums of measures over the branches of a half-built cell, and what constraints still ask of them.

Several sums are packed into one whole number, a field for each measure, so that a step of the dynamic programme is one
addition. Of a sum its future needs no more than the constraints leave open
(:class:`~dpcdsl.enumeration.verdict.Breaks`): sums that behave alike are made equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TypeAlias

from dpcdsl.constraints import Comparison, Depth, Distance, Measure
from dpcdsl.enumeration.consequences import Channels, Consequences, missing
from dpcdsl.enumeration.verdict import Breaks, decided
from dpcdsl.errors import DpcError
from dpcdsl.space import OperatorSet, Space

__all__ = ["DEPTH", "MAX_CHANNELS", "Sums", "SumsOfSpace", "too_many_channels"]

#: Sums so far, packed.
Sums: TypeAlias = int
#: What is known of the comparisons of one measure.
_Known: TypeAlias = tuple[bool | None, ...]

#: The measure that is no sum.
DEPTH = Depth()
#: Most different numbers of channels among the tensors of a space, where its costs are measured.
MAX_CHANNELS = 10_000


class SumsOfSpace:
    """The sums of ``space``'s cells. kept: measures of which each value matters, not only what constraints ask."""

    def __init__(self, space: Space, consequences: Consequences, kept: Iterable[Measure], *, has_depth: bool):
        self._space = space
        self._consequences = consequences
        self._kept = frozenset(kept)
        self._optional = any(slot.optional for slot in space.slots)
        self._order: list[Measure] = [*consequences.measures, *([DEPTH] if has_depth else [])]
        self._has_depth = has_depth
        self._breaks = {measure: Breaks(measure, space.constraints) for measure in self._order}
        self._settled: list[list[dict[int, tuple[int, _Known]]]] = [
            [{} for _ in consequences.measures] for _ in range(len(space.slots) + 2)
        ]
        self._verdicts: dict[tuple[_Known, ...], bool | None] = {}
        self._depths: dict[tuple[int, int], _Known] = {}

    @cached_property
    def start(self) -> Sums:
        """Before the first slot. Where no branch is optional it is known how many will be missing."""
        return 0 if self._optional else self.pack(self._consequences.of_missing(len(self._space.slots)))

    @cached_property
    def reads(self) -> dict[tuple[OperatorSet, Channels], int]:
        """Operator sets, the channels of tensors that they may read, and how many slots come before the first to do so.

        Raises :class:`DpcError` (DPC070) if there are more than :data:`MAX_CHANNELS` numbers of channels.
        """
        channels: set[Channels] = {self._consequences.features}
        found: dict[tuple[OperatorSet, Channels], int] = {}
        for before, slot in enumerate(self._space.slots):
            for read in [c for c in channels if (slot.operators, c) not in found]:
                found[slot.operators, read] = before
                channels |= {c.channels for c in self._consequences.groups(slot.operators, read).consequences}
                if len(channels) > MAX_CHANNELS:
                    raise too_many_channels()
        return found

    @cached_property
    def bounds(self) -> list[list[tuple[int, int]]]:
        """By slots decided, and measure: the least and the most that later slots add."""
        new: dict[int, list[Channels]] = {}
        for (_, read), before in self.reads.items():
            new.setdefault(before, []).append(read)
        spans: dict[OperatorSet, list[tuple[int, int]]] = {}
        each: list[list[tuple[int, int]]] = []
        for before, slot in enumerate(self._space.slots):
            operators = slot.operators
            for read in new.get(before, []):
                for consequence in self._consequences.groups(operators, read).consequences:
                    added = consequence.added
                    span = spans.get(operators) or [(n, n) for n in added]
                    spans[operators] = [(min(a, n), max(b, n)) for (a, b), n in zip(span, added, strict=True)]
            each.append(
                [
                    (0, 2) if isinstance(measure, Distance) else (0 if slot.optional else least, most)
                    for measure, (least, most) in zip(self._consequences.measures, spans[operators], strict=True)
                ]
            )
        # A distance may still find that the cell has fewer branches than the other.
        found = [[(0, missing(m, 0) if self._optional else 0) for m in self._consequences.measures]]
        for one in reversed(each):
            found.append([(a + c, b + d) for (a, b), (c, d) in zip(found[-1], one, strict=True)])
        return found[::-1]

    @cached_property
    def _shifts(self) -> list[int]:
        shifts, shift = [], 0
        for measure, (_, most) in zip(self._consequences.measures, self.bounds[0], strict=True):
            shifts.append(shift)
            shift += (most + missing(measure, 0)).bit_length() + 1
        return [*shifts, shift]

    def pack(self, values: Iterable[int]) -> Sums:
        """One number of each measure as one."""
        return sum(value << shift for value, shift in zip(values, self._shifts, strict=False))

    def unpack(self, sums: Sums) -> dict[Measure, int]:
        """The value of each measure."""
        shifts = self._shifts
        fields = zip(self._consequences.measures, shifts, shifts[1:], strict=False)
        return {measure: (sums >> low) & ((1 << (high - low)) - 1) for measure, low, high in fields}

    def settle(self, decided_slots: int, depth: int, sums: Sums) -> Sums | None:
        """The least sums of the same future after so many slots, or None if the constraints are lost.

        One slot more than there are means that nothing is added any more.
        """
        if not self._space.constraints:
            return sums
        settled = 0
        known = []
        table = self._settled[decided_slots]
        shifts = self._shifts
        for place, values in enumerate(table):
            low = shifts[place]
            value = (sums >> low) & ((1 << (shifts[place + 1] - low)) - 1)
            entry = values.get(value)
            if entry is None:
                entry = values[value] = self._settle_one(decided_slots, place, value)
            settled += entry[0]
            known.append(entry[1])
        if self._has_depth:
            known.append(self._known_depth(decided_slots, depth))
        key = tuple(known)
        if key not in self._verdicts:
            self._verdicts[key] = self._verdict(known)
        return None if self._verdicts[key] is False else settled

    def _settle_one(self, decided_slots: int, place: int, value: int) -> tuple[int, _Known]:
        measure = self._consequences.measures[place]
        breaks = self._breaks[measure]
        least, most = self.bounds[decided_slots][place] if decided_slots <= len(self._space.slots) else (0, 0)
        settled = value if measure in self._kept else breaks.settle(value, least, most)
        return settled << self._shifts[place], breaks.known(value + least, value + most)

    def is_lost(self, sums: Sums, depth: int) -> bool:
        """Whether no cell with a part of these sums and this depth fulfils the constraints."""
        known = [
            self._breaks[measure].known(value, value + most)
            for (measure, value), (_, most) in zip(self.unpack(sums).items(), self.bounds[0], strict=True)
        ]
        if self._has_depth:
            known.append(self._known_depth(0, depth))
        return self._verdict(known) is False

    def _verdict(self, known: list[_Known]) -> bool | None:
        truth: dict[Comparison, bool | None] = {}
        for measure, values in zip(self._order, known, strict=True):
            truth.update(zip(self._breaks[measure].comparisons, values, strict=True))
        verdicts = [decided(constraint, truth.__getitem__) for constraint in self._space.constraints]
        return False if False in verdicts else None if None in verdicts else True

    # Depth, which is a maximum and stands beside the sums

    def depth_matters(self, decided_slots: int, depth: int) -> bool:
        """Whether branches after so many slots can still change what the depth says."""
        return self._has_depth and (DEPTH in self._kept or None in self._known_depth(decided_slots, depth))

    def settle_depth(self, decided_slots: int, depth: int) -> int:
        """The least depth of the same future after so many slots."""
        if not self._has_depth or DEPTH in self._kept:
            return depth
        return self._breaks[DEPTH].settle(depth, 0, len(self._space.slots) - decided_slots)

    def depth_below(self, depth: int) -> int:
        """The depth of a branch that reads one of ``depth``; where none of them is asked for, always 0."""
        if not self._has_depth:
            return 0
        return depth + 1 if DEPTH in self._kept else min(depth + 1, self._breaks[DEPTH].last)

    def _known_depth(self, decided_slots: int, depth: int) -> _Known:
        key = decided_slots, depth
        if key not in self._depths:
            left = max(0, len(self._space.slots) - decided_slots)
            self._depths[key] = self._breaks[DEPTH].known(depth, depth + left)
        return self._depths[key]


def too_many_channels() -> DpcError:
    return DpcError.of(
        "DPC070",
        f"the tensors of this space have more than {MAX_CHANNELS:,} different numbers of channels",
        hint="costs are counted by channels; ask for fewer operators that widen their input, or fewer branches",
    )
