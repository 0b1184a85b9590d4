"""The dynamic programme: cells built slot by slot, all partial cells with the same future counted together.

Two partial cells have the same future when they offer later branches the same tensors and have the same sums so far.
Of a tensor the future needs no more than the measures ask for: its channels for ``params`` and ``madds``, its depth for
``depth``, its number for ``distance``, its slot where a later slot names it. Of a sum it needs no more than the
constraints still leave open (:mod:`~dpcdsl.enumeration.sums`). So the states stay few though the cells are 4.2e11, and
every count is exact.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

from dpcdsl.constraints import Depth, Distance, Measure
from dpcdsl.enumeration.consequences import Channels, Consequences
from dpcdsl.enumeration.progress import report
from dpcdsl.enumeration.sums import DEPTH, Sums, SumsOfSpace
from dpcdsl.enumeration.verdict import measures
from dpcdsl.errors import DpcError
from dpcdsl.operators import Operator
from dpcdsl.space import OperatorSet, Slot, Space

__all__ = ["MAX_STATES", "Layer", "Option", "Structure", "Tally", "Tensor", "too_large"]

#: Most states the dynamic programme may pass through, unless the space has no more genomes than this.
MAX_STATES = 10**7
#: Steps from one state to the next that count for a state.
_STEPS = 10
#: What a new arrangement of tensors counts for among states: it takes that much longer.
_STRUCTURE = 100


class Tensor(NamedTuple):
    """What a later branch can tell of a tensor; what no measure asks for is the same everywhere."""

    slot: int  # -1 where no later slot names it
    number: int  # of its branch, where distance is measured
    channels: Channels  # where costs are measured
    depth: int


class Structure(NamedTuple):
    """What later branches find: tensors in order and how many there are of each, and what has been built."""

    tensors: tuple[tuple[Tensor, int], ...]
    depth: int
    branches: int
    deepening: bool  # whether depths still matter


class Option(NamedTuple):
    """A slot that reads a given tensor: its operators in groups of the same consequence."""

    group_of: list[int]  # group of each operator
    groups: list[tuple[int, Structure, int]]  # what it adds to the sums, the structure after it, operators in it
    makes: list[Tensor]  # what each group writes


#: How many partial cells there are, by structure and sums.
Layer: TypeAlias = dict[Structure, dict[Sums, int]]


@dataclass
class _Work:
    """What one run of the programme has done, and how much it may do."""

    limit: int
    states: int = 0
    steps: int = 0

    def check(self, more: int = 0) -> None:
        if max(self.states + more, self.steps // _STEPS) > self.limit:
            raise too_large(MAX_STATES)


class Tally:
    """The states of a space's partial cells. keep: measures whose exact value each whole cell shall still tell."""

    def __init__(self, space: Space, keep: Iterable[Measure] = ()):
        self.slots: tuple[Slot, ...] = space.slots
        self.kept = tuple(dict.fromkeys(keep))
        found = list(dict.fromkeys((*self.kept, *measures(space.constraints))))
        self._space = space
        self._targets = [m.to for m in found if isinstance(m, Distance)]
        self._optional = any(slot.optional for slot in self.slots)
        self._consequences = Consequences((m for m in found if not isinstance(m, Depth)), space.filters)
        self.sums = SumsOfSpace(space, self._consequences, self.kept, has_depth=DEPTH in found)

    # What later slots can see

    @cached_property
    def _named_after(self) -> list[frozenset[int]]:
        """By slots decided: the slots that a later slot names."""
        found: list[frozenset[int]] = [frozenset()]
        for slot in reversed(self.slots):
            found.append(found[-1] | frozenset(slot.inputs or ()))
        return found[::-1]

    @cached_property
    def _any_after(self) -> list[bool]:
        """By slots decided: whether a later slot may read any tensor."""
        found = [False]
        for slot in reversed(self.slots):
            found.append(found[-1] or slot.inputs is None)
        return found[::-1]

    @cached_property
    def _compared_after(self) -> list[frozenset[int]]:
        """By branches there are: the numbers that a later branch of some cell to compare with reads."""
        most = max((len(target) for target in self._targets), default=0)
        return [
            frozenset(branch.input for target in self._targets for branch in target.branches[branches:])
            for branches in range(most + 1)
        ]

    def seen(self, number: int, structure: Structure, tensor: Tensor) -> Tensor | None:
        """The tensor as slots after the first ``number`` see it, or None if none of them can read it."""
        return self._seen(number, structure.branches, structure.deepening, tensor)

    def _seen(self, number: int, branches: int, deepening: bool, tensor: Tensor) -> Tensor | None:
        slot, branch, channels, depth = tensor
        if slot not in self._named_after[number]:
            if not self._any_after[number]:
                return None
            slot = -1
        if branch >= 0:
            there = branches if self._optional else number
            if there >= len(self._compared_after) or branch not in self._compared_after[there]:
                branch = -1
        return Tensor(slot, branch, channels, depth if deepening else 0)

    def features(self) -> Tensor:
        """F."""
        return Tensor(0, 0 if self._targets else -1, self._consequences.features, 0)

    def _branch(self, number: int, structure: Structure) -> int:
        """The number of the branch that slot ``number`` makes, where it matters."""
        return structure.branches + 1 if self._optional and self._targets else number

    # The programme's steps

    @cached_property
    def start(self) -> Structure:
        deepening = self.sums.depth_matters(0, 0)
        first = self._seen(0, 0, deepening, self.features())
        return Structure(((first, 1),) if first else (), 0, 0, deepening)

    def option(self, number: int, structure: Structure, source: Tensor) -> Option:
        """Slot ``number`` (from 1) reading ``source``, as it is seen there."""
        branch = self._branch(number, structure)
        groups = self._consequences.groups(self.slots[number - 1].operators, source.channels, branch)
        inputs = self._consequences.of_inputs(branch, source.number)
        depth = self.sums.depth_below(source.depth)
        makes = [Tensor(number, branch if self._targets else -1, c.channels, depth) for c in groups.consequences]
        found = [
            (
                self.sums.pack(a + b for a, b in zip(consequence.added, inputs, strict=True)),
                self._after(number, structure, made),
                size,
            )
            for consequence, made, size in zip(groups.consequences, makes, groups.sizes, strict=True)
        ]
        return Option(groups.group_of, found, makes)

    def left_out(self, number: int, structure: Structure) -> Structure:
        """The structure after slot ``number`` is left out."""
        return self._after(number, structure, None)

    def _after(self, number: int, structure: Structure, made: Tensor | None) -> Structure:
        depth = max(structure.depth, made.depth) if made else structure.depth
        deepening = structure.deepening and self.sums.depth_matters(number, depth)
        depth = self.sums.settle_depth(number, depth)
        counted = self._optional and bool(self._targets)
        branches = structure.branches + (counted and made is not None)
        tensors: dict[Tensor, int] = {}
        for tensor, times in (*structure.tensors, *([(made, 1)] if made else [])):
            seen = self._seen(number, branches, deepening, tensor)
            if seen is not None:
                tensors[seen] = tensors.get(seen, 0) + times
        return Structure(tuple(sorted(tensors.items())), depth, branches, deepening)

    def consequences(self, operators: OperatorSet, channels: Channels) -> list[tuple[Sums, Channels]]:
        """What each operator adds to the sums when it reads these channels, and the channels it writes."""
        groups = self._consequences.groups(operators, channels)
        found = [(self.sums.pack(c.added), c.channels) for c in groups.consequences]
        return [found[group] for group in groups.group_of]

    def agree(self, labels: Mapping[Operator, int]) -> bool:
        """Whether operators of equal labels are alike to every measure, in every slot that has them."""
        return all(self._consequences.agree(operators, read, labels) for operators, read in self.sums.reads)

    def moves(self, number: int, structure: Structure) -> list[tuple[int, int, Structure]]:
        """All that slot ``number`` can do: (choices, what they add to the sums, the structure after them)."""
        slot = self.slots[number - 1]
        found: Counter[tuple[int, Structure]] = Counter()
        if slot.optional:
            found[0, self.left_out(number, structure)] += 1
        for tensor, times in structure.tensors:
            if slot.inputs is None or tensor.slot in slot.inputs:
                for added, after, operators in self.option(number, structure, tensor).groups:
                    found[added, after] += times * operators
        return [(times, added, after) for (added, after), times in found.items()]

    def settle(self, number: int, structure: Structure, sums: Sums) -> Sums | None:
        """The least sums of the same future after ``number`` slots, or None if the constraints are lost."""
        return self.sums.settle(number, structure.depth, sums)

    def finish(self, structure: Structure, sums: Sums) -> Sums | None:
        """The sums of a whole cell, or None if it breaks a constraint."""
        if self._optional and self._targets:
            sums += self.sums.pack(self._consequences.of_missing(structure.branches))
        return self.sums.settle(len(self.slots) + 1, structure.depth, sums)

    def values(self, structure: Structure, sums: Sums) -> tuple[int, ...]:
        """The kept measures of a whole cell with these finished sums."""
        found = self.sums.unpack(sums)
        return tuple(structure.depth if isinstance(m, Depth) else found[m] for m in self.kept)

    # The programme itself

    def layers(self) -> Iterator[Layer]:
        """Partial cells after 0, 1, …, all slots, counted by structure and sums. Those that are lost are left out."""
        first = self.settle(0, self.start, self.sums.start)
        layer: Layer = {self.start: {first: 1}} if first is not None else {}
        yield layer
        work = _Work(MAX_STATES if self._genomes > MAX_STATES else sys.maxsize)
        for number in range(1, len(self.slots) + 1):
            layer = self._advance(number, layer, work)
            yield layer
            report("counting", number, len(self.slots))

    def _advance(self, number: int, layer: Layer, work: _Work) -> Layer:
        reached: Layer = {}
        for structure, counts in layer.items():
            for times, added, after in self.moves(number, structure):
                target = reached.setdefault(after, {})
                get = target.get
                for sums, count in counts.items():
                    key = sums + added
                    target[key] = get(key, 0) + count * times
                work.steps += len(counts)
                work.check(len(target) + _STRUCTURE * len(reached))
        settled: Layer = {}
        for structure, counts in reached.items():
            few: dict[Sums, int] = {}
            for sums, count in counts.items():
                least = self.settle(number, structure, sums)
                if least is not None:
                    few[least] = few.get(least, 0) + count
            if few:
                settled[structure] = few
                work.states += len(few) + _STRUCTURE
        work.check()
        return settled

    @cached_property
    def _genomes(self) -> int:
        """At least as many as there are without constraints."""
        return prod(
            len(self._space.candidates(number)) * len(slot.operators) + slot.optional
            for number, slot in enumerate(self.slots, 1)
        )

    def finished(self) -> Iterator[tuple[Structure, Sums, int]]:
        """Whole cells that fulfil the constraints: structure, finished sums, and how many there are."""
        layer = deque(self.layers(), maxlen=1).pop()
        for structure, counts in layer.items():
            for sums, count in counts.items():
                ended = self.finish(structure, sums)
                if ended is not None:
                    yield structure, ended, count

    def count(self) -> int:
        """How many genomes fulfil the constraints."""
        return sum(count for _, _, count in self.finished())

    def distribution(self) -> dict[tuple[int, ...], int]:
        """How many genomes there are for each combination of the kept measures' values."""
        found: Counter[tuple[int, ...]] = Counter()
        for structure, sums, count in self.finished():
            found[self.values(structure, sums)] += count
        return dict(sorted(found.items()))

    def completions(self) -> list[Layer]:
        """By slots decided: the genomes that each partial cell can still become."""
        layers = list(self.layers())
        found: list[Layer] = [{} for _ in layers]
        for structure, counts in layers[-1].items():
            found[-1][structure] = {sums: 1 for sums in counts if self.finish(structure, sums) is not None}
        for number in range(len(self.slots), 0, -1):
            after = found[number]
            for structure, counts in layers[number - 1].items():
                moves = self.moves(number, structure)
                found[number - 1][structure] = here = {}
                for sums in counts:
                    total = 0
                    for times, added, then in moves:
                        least = self.settle(number, then, sums + added)
                        if least is not None:
                            total += times * after[then].get(least, 0)
                    here[sums] = total
            report("counting", len(self.slots) - number + 1, len(self.slots))
        return found


def too_large(states: int) -> DpcError:
    return DpcError.of(
        "DPC070",
        f"an exact answer needs more than {states:,} states",
        hint="ask for fewer measures at once, or loosen what the constraints tell apart",
    )
