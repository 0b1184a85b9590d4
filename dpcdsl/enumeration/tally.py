"""The dynamic programme: cells built slot by slot, all partial cells with the same future counted together.

Two partial cells have the same future when they offer later branches the same tensors and have the same sums so far.
Of a tensor the future needs no more than the measures ask for: its channels for ``params`` and ``madds``, its depth for
``depth``, its number for ``distance``, its slot where a later slot names it. Of a sum it needs no more than the
constraints still leave open (:class:`~dpcdsl.enumeration.verdict.Breaks`). So the states stay few though the cells are
4.2e11, and every count is exact.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

from dpcdsl.constraints import Branches, Comparison, Depth, Distance, MAdds, Measure, Params, Uses
from dpcdsl.cost import operator_cost
from dpcdsl.enumeration.progress import report
from dpcdsl.enumeration.verdict import Breaks, decided, measures
from dpcdsl.errors import DpcError
from dpcdsl.operators import Operator
from dpcdsl.space import OperatorSet, Slot, Space

__all__ = [
    "MAX_CHANNELS",
    "MAX_STATES",
    "Layer",
    "Option",
    "Structure",
    "Sums",
    "Tally",
    "Tensor",
    "too_large",
    "too_many_channels",
]

#: Most states the dynamic programme may pass through, unless the space has no more genomes than this.
MAX_STATES = 10**7
#: Steps from one state to the next that count for a state.
_STEPS = 10
#: What a new arrangement of tensors counts for among states: it takes that much longer.
_STRUCTURE = 100
_DEPTH = Depth()
#: Most different numbers of channels among the tensors of a space, where its costs are measured.
MAX_CHANNELS = 10_000


class Tensor(NamedTuple):
    """What a later branch can tell of a tensor; what no measure asks for is the same everywhere."""

    slot: int  # -1 where no later slot names it
    number: int  # of its branch, where distance is measured
    channels: tuple[int, ...]  # for each number of features that a cost is measured on
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


#: Sums so far, packed into one whole number: a field for each measure that is counted branch by branch.
Sums: TypeAlias = int
#: How many partial cells there are, by structure and sums.
Layer: TypeAlias = dict[Structure, dict[Sums, int]]


_Summed: TypeAlias = Params | MAdds | Uses | Branches | Distance


class _Group(NamedTuple):
    added: tuple[int, ...]
    channels: tuple[int, ...]


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
        self.space = space
        self.slots: tuple[Slot, ...] = space.slots
        self.kept = tuple(dict.fromkeys(keep))
        found = list(dict.fromkeys((*self.kept, *measures(space.constraints))))
        self._summed: list[_Summed] = [m for m in found if not isinstance(m, Depth)]
        self._has_depth = _DEPTH in found
        self._tells_depth = _DEPTH in self.kept
        self._features = sorted({m.features for m in found if isinstance(m, Params | MAdds)})
        self._targets = [m.to for m in found if isinstance(m, Distance)]
        self._optional = any(slot.optional for slot in self.slots)
        self._breaks = {m: Breaks(m, space.constraints) for m in found}
        self._grouped: dict[tuple[OperatorSet, tuple[int, ...], int], tuple[list[int], list[_Group], list[int]]] = {}
        self._settled: list[list[dict[int, tuple[int, tuple[bool | None, ...]]]]] = [
            [{} for _ in self._summed] for _ in range(len(self.slots) + 2)
        ]
        self._verdicts: dict[tuple[tuple[bool | None, ...], ...], bool | None] = {}
        self._depths: dict[tuple[int, int], tuple[bool | None, ...]] = {}

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
        return Tensor(0, 0 if self._targets else -1, tuple(self._features), 0)

    def _made(self, number: int, structure: Structure, source: Tensor, channels: tuple[int, ...]) -> Tensor:
        """What slot ``number`` writes when it reads ``source``."""
        depth = 0
        if self._has_depth:
            depth = source.depth + 1
            if not self._tells_depth:
                depth = min(depth, self._breaks[_DEPTH].last)
        branch = self._branch(number, structure) if self._targets else -1
        return Tensor(number, branch, channels, depth)

    def _branch(self, number: int, structure: Structure) -> int:
        return structure.branches + 1 if self._optional and self._targets else number

    # The programme's steps

    @cached_property
    def start(self) -> Structure:
        deepening = self._has_depth and self._depth_matters(0, 0)
        first = self._seen(0, 0, deepening, self.features())
        return Structure(((first, 1),) if first else (), 0, 0, deepening)

    @cached_property
    def start_sums(self) -> Sums:
        missing = [0 if self._optional else self._missing(m, len(self.slots)) for m in self._summed]
        return self._pack(missing)

    @staticmethod
    def _missing(measure: Measure, branches: int) -> int:
        """What branches that the cell does not have add to a distance."""
        return 2 * max(0, len(measure.to) - branches) if isinstance(measure, Distance) else 0

    def option(self, number: int, structure: Structure, source: Tensor) -> Option:
        """Slot ``number`` (from 1) reading ``source``, as it is seen there."""
        operators = self.slots[number - 1].operators
        branch = self._branch(number, structure)
        at = branch if self._targets else 0
        group_of, groups, sizes = self._grouped_operators(operators, source.channels, at)
        inputs = [
            int(branch <= len(m.to) and m.to.branches[branch - 1].input != source.number)
            if isinstance(m, Distance)
            else 0
            for m in self._summed
        ]
        makes = [self._made(number, structure, source, group.channels) for group in groups]
        found = [
            (
                self._pack(a + b for a, b in zip(group.added, inputs, strict=True)),
                self._after(number, structure, made),
                size,
            )
            for group, made, size in zip(groups, makes, sizes, strict=True)
        ]
        return Option(group_of, found, makes)

    def left_out(self, number: int, structure: Structure) -> Structure:
        """The structure after slot ``number`` is left out."""
        return self._after(number, structure, None)

    def _after(self, number: int, structure: Structure, made: Tensor | None) -> Structure:
        depth = max(structure.depth, made.depth) if made else structure.depth
        deepening = structure.deepening and self._depth_matters(number, depth)
        if self._has_depth and not self._tells_depth:
            depth = self._breaks[_DEPTH].settle(depth, 0, len(self.slots) - number)
        counted = self._optional and bool(self._targets)
        branches = structure.branches + (counted and made is not None)
        tensors: dict[Tensor, int] = {}
        for tensor, times in (*structure.tensors, *([(made, 1)] if made else [])):
            seen = self._seen(number, branches, deepening, tensor)
            if seen is not None:
                tensors[seen] = tensors.get(seen, 0) + times
        return Structure(tuple(sorted(tensors.items())), depth, branches, deepening)

    def _depth_matters(self, number: int, depth: int) -> bool:
        """Whether branches after ``number`` slots can still change what the depth says."""
        return self._tells_depth or None in self._known_depth(number, depth)

    def _grouped_operators(
        self, operators: OperatorSet, channels: tuple[int, ...], branch: int
    ) -> tuple[list[int], list[_Group], list[int]]:
        """Operators that read a tensor of these channels, by consequence: the group of each, groups, their sizes."""
        known = self._grouped.get((operators, channels, branch))
        if known is not None:
            return known
        numbers: dict[_Group, int] = {}
        group_of = [
            numbers.setdefault(self._consequence(operator, channels, branch), len(numbers))
            for operator in operators.operators
        ]
        counted = Counter(group_of)
        found = group_of, list(numbers), [counted[number] for number in range(len(numbers))]
        self._grouped[operators, channels, branch] = found
        return found

    def _consequence(self, operator: Operator, channels: tuple[int, ...], branch: int) -> _Group:
        added = []
        for measure in self._summed:
            match measure:
                case Params(features=features):
                    count = channels[self._features.index(features)]
                    added.append(operator_cost(operator, count, (1, 1), self.space.filters).params)
                case MAdds(features=features, at=size):
                    count = channels[self._features.index(features)]
                    added.append(operator_cost(operator, count, size, self.space.filters).madds)
                case Uses():
                    added.append(int(measure.counts(operator)))
                case Branches():
                    added.append(1)
                case Distance(to=target):
                    beyond = branch > len(target)
                    added.append(2 if beyond else int(target.branches[branch - 1].operator != operator))
        after = tuple(_out_channels(operator, count, self.space.filters) for count in channels)
        return _Group(tuple(added), after)

    def consequences(self, operators: OperatorSet, channels: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
        """What each operator adds to the sums when it reads these channels, and the channels it writes."""
        group_of, groups, _ = self._grouped_operators(operators, channels, 0)
        found = [(self._pack(group.added), group.channels) for group in groups]
        return [found[group] for group in group_of]

    def agree(self, stands_for: Sequence[int]) -> bool:
        """Whether each operator of the first slot has all its consequences in common with the one it stands for."""
        operators = self.slots[0].operators
        self._shifts  # noqa: B018 (goes through all channels that occur)
        return all(
            group_of[number] == group_of[other]
            for (found, _, _), (group_of, _, _) in self._grouped.items()
            if found == operators
            for number, other in enumerate(stands_for)
        )

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

    # Sums

    @cached_property
    def _bounds(self) -> list[list[tuple[int, int]]]:
        """By slots decided, and measure: the least and the most that later slots add."""
        channels = {tuple(self._features)}
        seen: set[tuple[OperatorSet, tuple[int, ...]]] = set()
        spans: dict[OperatorSet, list[tuple[int, int]]] = {}
        each: list[list[tuple[int, int]]] = []
        for slot in self.slots:
            operators = slot.operators
            for count in [c for c in channels if (operators, c) not in seen]:
                seen.add((operators, count))
                for group in self._grouped_operators(operators, count, 1 if self._targets else 0)[1]:
                    span = spans.get(operators) or [(n, n) for n in group.added]
                    spans[operators] = [
                        (min(low, n), max(high, n)) for (low, high), n in zip(span, group.added, strict=True)
                    ]
                    channels.add(group.channels)
                if len(channels) > MAX_CHANNELS:
                    raise too_many_channels()
            each.append(
                [
                    (0, 2) if isinstance(measure, Distance) else (0 if slot.optional else low, high)
                    for measure, (low, high) in zip(self._summed, spans[operators], strict=True)
                ]
            )
        # A distance may still find that the cell has fewer branches than the other.
        found = [[(0, 2 * len(m.to) if isinstance(m, Distance) and self._optional else 0) for m in self._summed]]
        for one in reversed(each):
            found.append([(a + c, b + d) for (a, b), (c, d) in zip(found[-1], one, strict=True)])
        return found[::-1]

    @cached_property
    def _shifts(self) -> list[int]:
        shifts, shift = [], 0
        for measure, (_, most) in zip(self._summed, self._bounds[0], strict=True):
            shifts.append(shift)
            shift += (most + self._missing(measure, 0)).bit_length() + 1
        return [*shifts, shift]

    def _pack(self, values: Iterable[int]) -> Sums:
        return sum(value << shift for value, shift in zip(values, self._shifts, strict=False))

    def _unpack(self, sums: Sums) -> list[int]:
        return [
            (sums >> low) & ((1 << (high - low)) - 1) for low, high in zip(self._shifts, self._shifts[1:], strict=False)
        ]

    def settle(self, number: int, structure: Structure, sums: Sums) -> Sums | None:
        """The least sums of the same future after ``number`` slots, or None if the constraints are lost."""
        if not self.space.constraints:
            return sums
        settled = 0
        known = []
        table = self._settled[number]
        shifts = self._shifts
        for place in range(len(self._summed)):
            low = shifts[place]
            value = (sums >> low) & ((1 << (shifts[place + 1] - low)) - 1)
            entry = table[place].get(value)
            if entry is None:
                entry = table[place][value] = self._settle_one(number, place, value)
            settled += entry[0]
            known.append(entry[1])
        if self._has_depth:
            known.append(self._known_depth(number, structure.depth))
        key = tuple(known)
        if key not in self._verdicts:
            self._verdicts[key] = self._verdict(known)
        return None if self._verdicts[key] is False else settled

    def _settle_one(self, number: int, place: int, value: int) -> tuple[int, tuple[bool | None, ...]]:
        measure = self._summed[place]
        breaks = self._breaks[measure]
        least, most = self._bounds[number][place] if number <= len(self.slots) else (0, 0)
        settled = value if measure in self.kept else breaks.settle(value, least, most)
        return settled << self._shifts[place], breaks.known(value + least, value + most)

    def is_lost(self, sums: Sums, depth: int) -> bool:
        """Whether no cell with a part of these sums and this depth fulfils the constraints."""
        known = [
            self._breaks[measure].known(value, value + most)
            for measure, value, (_, most) in zip(self._summed, self._unpack(sums), self._bounds[0], strict=True)
        ]
        if self._has_depth:
            known.append(self._known_depth(0, depth))
        return self._verdict(known) is False

    def _known_depth(self, number: int, depth: int) -> tuple[bool | None, ...]:
        key = number, depth
        if key not in self._depths:
            self._depths[key] = self._breaks[_DEPTH].known(depth, depth + max(0, len(self.slots) - number))
        return self._depths[key]

    def _verdict(self, known: list[tuple[bool | None, ...]]) -> bool | None:
        truth: dict[Comparison, bool | None] = {}
        for measure, values in zip([*self._summed, *([_DEPTH] if self._has_depth else [])], known, strict=True):
            truth.update(zip(self._breaks[measure].comparisons, values, strict=True))
        verdicts = [decided(constraint, truth.__getitem__) for constraint in self.space.constraints]
        return False if False in verdicts else None if None in verdicts else True

    def finish(self, structure: Structure, sums: Sums) -> Sums | None:
        """The sums of a whole cell, or None if it breaks a constraint."""
        if self._optional and self._targets:
            sums += self._pack(self._missing(m, structure.branches) for m in self._summed)
        return self.settle(len(self.slots) + 1, structure, sums)

    def values(self, structure: Structure, sums: Sums) -> tuple[int, ...]:
        """The kept measures of a whole cell with these finished sums."""
        found: dict[Measure, int] = dict(zip(self._summed, self._unpack(sums), strict=False))
        return tuple(structure.depth if isinstance(m, Depth) else found[m] for m in self.kept)

    # The programme itself

    def layers(self) -> Iterator[Layer]:
        """Partial cells after 0, 1, …, all slots, counted by structure and sums. Those that are lost are left out."""
        first = self.settle(0, self.start, self.start_sums)
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
            len(self.space.candidates(number)) * len(slot.operators) + slot.optional
            for number, slot in enumerate(self.slots, 1)
        )

    def finished(self) -> Iterator[tuple[Structure, Sums, int]]:
        """Whole cells that fulfil the constraints: structure, finished sums, and how many there are."""
        layer: Layer = {}
        for layer in self.layers():  # noqa: B007 (the last one counts)
            pass
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


def _out_channels(operator: Operator, channels: int, filters: int) -> int:
    for layer in operator.layers(filters):
        channels = layer.out_channels(channels)
    return channels


def too_many_channels() -> DpcError:
    return DpcError.of(
        "DPC070",
        f"the tensors of this space have more than {MAX_CHANNELS:,} different numbers of channels",
        hint="costs are counted by channels; ask for fewer operators that widen their input, or fewer branches",
    )


def too_large(states: int) -> DpcError:
    return DpcError.of(
        "DPC070",
        f"an exact answer needs more than {states:,} states",
        hint="ask for fewer measures at once, or loosen what the constraints tell apart",
    )
