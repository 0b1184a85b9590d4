"""Spaces with optional branches or constraints: ranks by counting what each partial cell can still become.

Ranks grow in the lexicographic order of the vectors, as in :mod:`~dpcdsl.enumeration.product`, a branch that is left
out coming before all others: so a constraint takes cells away and keeps the order of the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

from dpcdsl.enumeration.base import Choice, Choices, Enumerator
from dpcdsl.enumeration.tally import Layer, Option, Structure, Sums, Tally, Tensor
from dpcdsl.errors import DpcError
from dpcdsl.space import Space

__all__ = ["ConstrainedEnumerator"]

_State: TypeAlias = tuple[int, Structure, Sums]
_MOST_KEPT = 2_000_000  # running counts that are remembered


class ConstrainedEnumerator(Enumerator):
    """The genomes of a space, those that fulfil its constraints."""

    def __init__(self, space: Space):
        self.space = space
        self._tally = Tally(space)
        self._ladders: dict[tuple[_State, Tensor], list[int]] = {}
        self._kept = 0

    @cached_property
    def count(self) -> int:  # type: ignore[override]
        if "_completions" in self.__dict__:
            return sum(n for counts in self._completions[0].values() for n in counts.values())
        return self._tally.count()

    @cached_property
    def _completions(self) -> list[Layer]:
        return self._tally.completions()

    @cached_property
    def _start(self) -> _State:
        structure = self._tally.start
        sums = self._tally.settle(0, structure, self._tally.start_sums)
        assert sums is not None, "an empty space has no ranks"
        return 0, structure, sums

    def choices(self, rank: int) -> Choices:
        state = self._start
        tensors: list[Tensor | None] = [self._tally.features()]
        found: list[Choice] = []
        for slot in self.space.slots:
            number = state[0] + 1
            if slot.optional:
                without = self._left_out(state)
                fitting = self._completing(without)
                if rank < fitting:
                    found.append(None)
                    tensors.append(None)
                    state = without
                    continue
                rank -= fitting
            for source in self.space.candidates(number):
                seen = self._seen(state[0], tensors[source])
                if seen is None:
                    continue
                ladder = self._ladder(state, seen)
                if rank < ladder[-1]:
                    operator = bisect_right(ladder, rank)
                    rank -= ladder[operator - 1] if operator else 0
                    found.append((source, operator))
                    made, state = self._chosen(state, seen, operator)
                    tensors.append(made)
                    break
                rank -= ladder[-1]
            else:
                raise AssertionError("the rank is below the count")
        return tuple(found)

    def rank_of(self, choices: Choices) -> int:
        if not self.count:
            raise self._empty()
        state = self._start
        tensors: list[Tensor | None] = [self._tally.features()]
        rank = 0
        for slot, choice in zip(self.space.slots, choices, strict=True):
            number = state[0] + 1
            without = self._left_out(state) if slot.optional else None
            if choice is None:
                assert without is not None
                tensors.append(None)
                state = without
                continue
            if without is not None:
                rank += self._completing(without)
            for source in self.space.candidates(number):
                seen = self._seen(state[0], tensors[source])
                if seen is None:
                    continue
                ladder = self._ladder(state, seen)
                if source == choice[0]:
                    rank += ladder[choice[1] - 1] if choice[1] else 0
                    made, state = self._chosen(state, seen, choice[1])
                    tensors.append(made)
                    break
                rank += ladder[-1]
            if not self._completing(state):
                break
        if not self._completing(state):
            broken = next((c for c in self.space.constraints if not c.holds(self.cell(choices))), None)
            raise DpcError.of("DPC055", f"the cell breaks `{broken}`")
        return rank

    def _seen(self, decided: int, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self._tally.seen(decided, tensor)

    def _completing(self, state: _State) -> int:
        number, structure, sums = state
        return self._completions[number].get(structure, {}).get(sums, 0)

    def _left_out(self, state: _State) -> _State:
        number, structure, sums = state
        after = self._tally.left_out(number + 1, structure)
        return self._settled(number + 1, after, sums)

    def _settled(self, number: int, structure: Structure, sums: Sums) -> _State:
        least = self._tally.settle(number, structure, sums)
        return number, structure, -1 if least is None else least  # no partial cell has these sums

    def _chosen(self, state: _State, source: Tensor, operator: int) -> tuple[Tensor, _State]:
        number, structure, sums = state
        option = self._tally.option(number + 1, structure, source)
        added, after, _ = option.groups[option.group_of[operator]]
        made = option.makes[option.group_of[operator]]
        return made, self._settled(number + 1, after, sums + added)

    def _ladder(self, state: _State, source: Tensor) -> list[int]:
        """Running counts of the cells below each operator of the next slot, when it reads ``source``."""
        key = state, source
        ladder = self._ladders.get(key)
        if ladder is None:
            option: Option = self._tally.option(state[0] + 1, state[1], source)
            fitting = [
                self._completing(self._settled(state[0] + 1, after, state[2] + added))
                for added, after, _ in option.groups
            ]
            ladder = list(accumulate(fitting[group] for group in option.group_of))
            self._kept += len(ladder)
            if self._kept > _MOST_KEPT:
                self._ladders.clear()
                self._kept = len(ladder)
            self._ladders[key] = ladder
        return ladder
