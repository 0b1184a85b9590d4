"""Spaces with optional branches or constraints: ranks by counting what each partial cell can still become.

Ranks grow in the lexicographic order of the vectors, as in :mod:`~dpcdsl.enumeration.product`, a branch that is left
out coming before all others: so a constraint takes cells away and keeps the order of the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate, pairwise
from threading import RLock
from typing import NamedTuple

from dpcdsl.enumeration.base import Choice, Choices, Enumerator
from dpcdsl.enumeration.sums import Sums
from dpcdsl.enumeration.tally import Layer, Structure, Tally, Tensor
from dpcdsl.errors import DpcError
from dpcdsl.space import Space

__all__ = ["ConstrainedEnumerator"]

_MOST_KEPT = 2_000_000  # running counts that are remembered


class _Node:
    """A state of the dynamic programme on the way to a cell, with the ways on from it that have been asked for."""

    __slots__ = ("completing", "decided", "steps", "structure", "sums", "without")

    def __init__(self, decided: int, structure: Structure, sums: Sums, completing: int):
        self.decided = decided  # slots
        self.structure = structure
        self.sums = sums
        self.completing = completing  # cells that it can become
        self.without: _Node | None = None  # after the next slot is left out
        self.steps: dict[Tensor, _Step | None] = {}  # by what the next slot reads; None where it cannot


class _Step(NamedTuple):
    ladder: list[int]  # running counts of the cells below each operator
    group_of: list[int]  # of each operator
    after: list[tuple[Tensor, _Node]]  # what each group writes, and the node behind it


class ConstrainedEnumerator(Enumerator):
    """The genomes of a space, those that fulfil its constraints."""

    def __init__(self, space: Space):
        self.space = space
        self._tally = Tally(space)
        self._nodes: dict[tuple[int, Structure, Sums], _Node] = {}
        self._kept = 0
        self._lock = RLock()  # of what is worked out once

    @cached_property
    def count(self) -> int:
        with self._lock:
            if "_completions" in self.__dict__:
                return sum(n for counts in self._completions[0].values() for n in counts.values())
            return self._tally.count()

    @cached_property
    def _completions(self) -> list[Layer]:
        with self._lock:
            return self._tally.completions()

    def choices(self, rank: int) -> Choices:
        node = self._start()
        tensors: list[Tensor | None] = [self._tally.features()]
        found: list[Choice] = []
        for number, slot in enumerate(self.space.slots, 1):
            if slot.optional:
                without = self._without(node)
                if rank < without.completing:
                    found.append(None)
                    tensors.append(None)
                    node = without
                    continue
                rank -= without.completing
            for source in self.space.candidates(number):
                step = self._step(node, tensors[source])
                if step is None:
                    continue
                if rank < step.ladder[-1]:
                    operator = bisect_right(step.ladder, rank)
                    rank -= step.ladder[operator - 1] if operator else 0
                    found.append((source, operator))
                    made, node = step.after[step.group_of[operator]]
                    tensors.append(made)
                    break
                rank -= step.ladder[-1]
            else:
                raise AssertionError("the rank is below the count")
        return tuple(found)

    def extensions(self, prefix: Choices) -> dict[int | None, list[int]]:
        """What the next slot can choose after the choices of the first ones so that some cell follows.

        By input, None for leaving the slot out: the numbers of the operators (none for None). Nothing follows the last.
        """
        if len(prefix) == len(self.space.slots):
            return {}
        _, node, tensors = self._followed(prefix)
        found: dict[int | None, list[int]] = {}
        if not node.completing:
            return found
        if self.space.slots[len(prefix)].optional and self._without(node).completing:
            found[None] = []
        for source in self.space.candidates(len(prefix) + 1):
            step = self._step(node, tensors[source])
            if step is not None and step.ladder[-1]:
                found[source] = [i for i, (a, b) in enumerate(pairwise([0, *step.ladder])) if a < b]
        return found

    def rank_of(self, choices: Choices) -> int:
        if not self.count:
            raise self.empty()
        rank, node, _ = self._followed(choices)
        if not node.completing:
            if not any(choices):
                raise DpcError.of("DPC055", "a cell needs at least one branch")
            broken = next((c for c in self.space.constraints if not c.holds(self.cell(choices))), None)
            raise DpcError.of("DPC055", f"the cell breaks `{broken}`")
        return rank

    def _followed(self, choices: Choices) -> tuple[int, _Node, list[Tensor | None]]:
        """Where choices of the first slots lead: how many cells come before, the node, and what the slots wrote."""
        node = self._start()
        tensors: list[Tensor | None] = [self._tally.features()]
        rank = 0
        for number, choice in enumerate(choices, 1):
            if not node.completing:  # lost, and its sums mean nothing
                break
            if choice is None:
                tensors.append(None)
                node = self._without(node)
                continue
            if self.space.slots[number - 1].optional:
                rank += self._without(node).completing
            for source in self.space.candidates(number):
                step = self._step(node, tensors[source])
                if source == choice[0]:
                    assert step is not None, "the choices have been checked"
                    rank += step.ladder[choice[1] - 1] if choice[1] else 0
                    made, node = step.after[step.group_of[choice[1]]]
                    tensors.append(made)
                    break
                rank += step.ladder[-1] if step else 0
        return rank, node, tensors

    # Nodes

    def _start(self) -> _Node:
        if self._kept > _MOST_KEPT:
            self._nodes, self._kept = {}, 0
        return self._node(0, self._tally.start, self._tally.sums.start)

    def _node(self, decided: int, structure: Structure, sums: Sums) -> _Node:
        least = self._tally.settle(decided, structure, sums)
        key = decided, structure, -1 if least is None else least  # -1: the constraints are lost
        node = self._nodes.get(key)
        if node is None:
            completing = self._completions[decided].get(structure, {}).get(key[2], 0)
            node = self._nodes[key] = _Node(*key, completing)
        return node

    def _without(self, node: _Node) -> _Node:
        if node.without is None:
            after = self._tally.left_out(node.decided + 1, node.structure)
            node.without = self._node(node.decided + 1, after, node.sums)
        return node.without

    def _step(self, node: _Node, source: Tensor | None) -> _Step | None:
        """The next slot reading ``source``; None where it has been left out or cannot be read."""
        if source is None:
            return None
        if source not in node.steps:
            node.steps[source] = self._new_step(node, source)
        return node.steps[source]

    def _new_step(self, node: _Node, source: Tensor) -> _Step | None:
        seen = self._tally.seen(node.decided, node.structure, source)
        if seen is None:
            return None
        option = self._tally.option(node.decided + 1, node.structure, seen)
        nodes = [self._node(node.decided + 1, after, node.sums + added) for added, after, _ in option.groups]
        ladder = list(accumulate(nodes[group].completing for group in option.group_of))
        self._kept += len(ladder)
        return _Step(ladder, option.group_of, list(zip(option.makes, nodes, strict=True)))
