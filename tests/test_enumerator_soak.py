"""Random small spaces of every sort against brute force: everything that can be asked of a space and of its cells.

The oracle lists the genomes of a space and measures them from their inputs and operators. It shares nothing with the
library but the values that a question is asked in: costs, distances, trees, functions and constraints are worked out
again. ``make soak`` goes through tens of thousands of spaces; what fails says its seed and the space as text.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from math import prod
from operator import eq, ge, gt, le, lt, ne
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

import numpy as np
import pytest

from dpcdsl import Cell, Conventions, DpcError, Operator, OperatorSet, Slot, Space, neighbourhood, operators
from dpcdsl.constraints import (
    AllOf,
    AnyOf,
    Branches,
    Comparison,
    Constraint,
    Depth,
    Distance,
    MAdds,
    Measure,
    Not,
    Params,
    Uses,
)
from dpcdsl.enumeration import Enumerator, count, distribution, enumerator
from dpcdsl.enumeration.constrained import ConstrainedEnumerator
from dpcdsl.enumeration.forests import ForestEnumerator
from dpcdsl.enumeration.listed import ListedEnumerator
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Layer, Pooling, Resize, Size
from dpcdsl.operators import Integer, OperatorKind, Pair, register_operator

RELATIONS: dict[Any, Callable[[int, int], bool]] = {"<=": le, "<": lt, ">=": ge, ">": gt, "==": eq, "!=": ne}

Choice: TypeAlias = tuple[int, int] | None


# Operators of one's own


@dataclass(frozen=True)
class _Tagged(Layer):
    """Costs nothing and passes its channels through."""

    tag: int


@dataclass(frozen=True)
class _Twice(Layer):
    """Costs nothing and writes its input twice over."""

    def out_channels(self, in_channels: int) -> int:
        return 2 * in_channels


@dataclass(frozen=True)
class _Fan(Layer):
    """A weight for each channel, which it doubles up to twelve."""

    def out_channels(self, in_channels: int) -> int:
        return min(2 * in_channels, 12)

    def weights(self, in_channels: int) -> int:
        return in_channels


OWN = (
    OperatorKind("soak_nothing", lambda **_: []),
    OperatorKind("soak_tagged", lambda tag, **_: [_Tagged(tag)], (Integer("tag"),)),
    OperatorKind("soak_twice", lambda **_: [_Twice()]),
    OperatorKind("soak_fan", lambda **_: [_Fan()]),
    OperatorKind("soak_twin", lambda filters: [Convolution("another", filters)]),
    OperatorKind("soak_wide", lambda filters: [Convolution("conv", filters + 3)]),
    OperatorKind("soak_half", lambda filters: [Convolution("conv", max(1, filters // 2))]),
    OperatorKind("soak_deep", lambda rate, **_: [DepthwiseConvolution("depthwise", (3, 3), rate)], (Pair("rate"),)),
    OperatorKind("soak_mean", lambda grid, **_: [GridPool(grid), Resize()], (Pair("grid"),)),
)


@pytest.fixture(autouse=True, scope="module")
def operators_of_ones_own() -> Iterator[None]:
    with patch.dict(operators._registry):
        for kind in OWN:
            register_operator(kind)
        yield


@cache
def known_operators() -> tuple[Operator, ...]:
    sides = ((1, 1), (1, 2), (2, 1), (3, 2), (8, 8))
    return (
        *(Operator.of(kind) for kind in ("conv1x1", *(each.name for each in OWN if not each.parameters))),
        *(Operator.of(kind, rate=side) for kind in ("sepconv3x3", "soak_deep") for side in sides),
        *(Operator.of(kind, grid=side) for kind in ("avgpool", "soak_mean") for side in sides),
        *(Operator.of("soak_tagged", tag=tag) for tag in (1, 2)),
    )


#: Kinds some of whose operators are one function on small maps.
FAMILIES = (
    ("sepconv3x3",),
    ("soak_deep", "soak_nothing"),
    ("conv1x1", "soak_twin", "soak_half", "avgpool"),
    ("soak_mean", "soak_nothing"),
)


def some_operators(r: random.Random, number: int) -> list[Operator]:
    """Different ones of all sorts, or of one family and what else it takes."""
    everything = r.sample(known_operators(), len(known_operators()))
    if r.random() < 0.5:
        family = r.choice(FAMILIES)
        everything.sort(key=lambda operator: operator.kind not in family)
    return everything[:number]


# The oracle: genomes, and what they measure


class Genome(NamedTuple):
    """A choice in every slot, and the branches that this leaves."""

    choices: tuple[Choice, ...]
    inputs: tuple[int, ...]
    operators: tuple[Operator, ...]

    @property
    def row(self) -> list[int]:
        return [number for choice in self.choices for number in (choice or (-1, -1))]

    @property
    def branches(self) -> tuple[tuple[int, Operator], ...]:
        return tuple(zip(self.inputs, self.operators, strict=True))


def genomes(slots: Sequence[Slot]) -> list[Genome]:
    """All of them in the order of their rows, constraints not looked at."""
    options = [
        [
            *([None] if slot.optional else []),
            *product(range(number) if slot.inputs is None else slot.inputs, range(len(slot.operators.operators))),
        ]
        for number, slot in enumerate(slots, 1)
    ]
    return [genome for choices in product(*options) if (genome := genome_of(slots, choices)) is not None]


def genome_of(slots: Sequence[Slot], choices: tuple[Choice, ...]) -> Genome | None:
    """None where a branch reads one that is left out, and where all are left out."""
    place = {0: 0}
    inputs, chosen = [], []
    for number, (slot, choice) in enumerate(zip(slots, choices, strict=True), 1):
        if choice is not None:
            if choice[0] not in place:
                return None
            inputs.append(place[choice[0]])
            chosen.append(slot.operators.operators[choice[1]])
            place[number] = len(inputs)
    return Genome(choices, tuple(inputs), tuple(chosen)) if inputs else None


def cell_of(genome: Genome, filters: int) -> Cell:
    return Cell.of(*genome.branches, filters=filters)


@cache
def work(operator: Operator, channels: int, filters: int, size: Size) -> tuple[int, int, int]:
    """Weights, multiply-adds and channels written."""
    weights = writes = {
        "soak_twin": filters,
        "conv1x1": filters,
        "avgpool": filters,
        "sepconv3x3": filters,
        "soak_wide": filters + 3,
        "soak_half": max(1, filters // 2),
    }.get(operator.kind, 0)
    weights *= channels
    if operator.kind in ("sepconv3x3", "soak_deep"):
        weights += 9 * channels
    elif operator.kind == "soak_fan":
        weights, writes = channels, min(2 * channels, 12)
    elif operator.kind == "soak_twice":
        writes = 2 * channels
    height, width = operator["grid"] if operator.kind == "avgpool" else size
    return weights, weights * height * width, writes or channels


def measured(measure: Measure, genome: Genome, filters: int) -> int:
    match measure:
        case Params(features=features):
            return _summed(genome, features, filters, (1, 1), 0)
        case MAdds(features=features, at=size):
            return _summed(genome, features, filters, size, 1)
        case Depth():
            depths = [0]
            for source in genome.inputs:
                depths.append(depths[source] + 1)
            return max(depths)
        case Branches():
            return len(genome.inputs)
        case Uses(kinds=kinds, operators=chosen):
            return sum(o.kind in kinds or o in chosen for o in genome.operators)
        case Distance(to=target):
            return apart(genome.branches, tuple((b.input, b.operator) for b in target.branches))


def _summed(genome: Genome, features: int, filters: int, size: Size, which: int) -> int:
    channels, total = [features], 0
    for source, operator in genome.branches:
        found = work(operator, channels[source], filters, size)
        total += found[which]
        channels.append(found[2])
    return total


def apart(a: Sequence[tuple[int, Operator]], b: Sequence[tuple[int, Operator]]) -> int:
    """Inputs and operators that differ; a branch that only one has counts two."""
    both = sum((x != y) + (p != q) for (x, p), (y, q) in zip(a, b, strict=False))
    return both + 2 * abs(len(a) - len(b))


def fulfils(constraint: Constraint, genome: Genome, filters: int) -> bool:
    match constraint:
        case Comparison(measure=measure, relation=relation, bound=bound):
            return RELATIONS[relation](measured(measure, genome, filters), bound)
        case AllOf(all_of=parts):
            return all(fulfils(part, genome, filters) for part in parts)
        case AnyOf(any_of=parts):
            return any(fulfils(part, genome, filters) for part in parts)
        case Not(negated=part):
            return not fulfils(part, genome, filters)


def fulfilling(space: Space, every: Sequence[Genome]) -> list[Genome]:
    """The genomes that fulfil all constraints."""
    return [genome for genome in every if all(fulfils(c, genome, space.filters) for c in space.constraints)]


# The oracle: trees, and what operators compute


def tree(inputs: Sequence[int], labels: Sequence[Hashable], root: int = 0) -> str:
    """The branches that read ``root``, and those that read them, siblings in no order."""
    below = (number for number, source in enumerate(inputs, 1) if source == root)
    return "".join(sorted(f"<{labels[number - 1]}{tree(inputs, labels, number)}>" for number in below))


@cache
def means(size: int, grid: int, pooling: Pooling) -> tuple[tuple[tuple[tuple[int, int], Fraction], ...], ...]:
    """At each position of an axis: the windows whose means it mixes, and how much of each."""
    if pooling == "paper":
        windows = [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]
    else:
        length = -(-size // grid)
        windows = [(i, i + length) for i in range(size - length + 1)]
    found = []
    for position in range(size):
        at = Fraction(position * (len(windows) - 1), max(size - 1, 1))
        below, part = int(at), at - int(at)
        mixed = {windows[below]: 1 - part}
        if part:
            mixed[windows[below + 1]] = mixed.get(windows[below + 1], Fraction(0)) + part
        found.append(tuple(sorted(mixed.items())))
    return tuple(found)


def computes(operator: Operator, size: Size, filters: int, conventions: Conventions) -> Hashable:
    """Equal for two operators that are one function on a map of ``size``."""
    match operator.kind:
        case "conv1x1" | "soak_twin":
            return "conv", filters
        case "soak_wide":
            return "conv", filters + 3
        case "soak_half":
            return "conv", max(1, filters // 2)
        case "avgpool" | "soak_mean":
            mixed = [means(side, grid, conventions.pooling) for side, grid in zip(size, operator["grid"], strict=True)]
            alone = [tuple((((i, i + 1), Fraction(1)),) for i in range(side)) for side in size]
            then: tuple[Hashable, ...] = ("conv", filters) if operator.kind == "avgpool" else ("nothing",)
            return then if mixed == alone else ("mean", *mixed, *then)
        case "sepconv3x3" | "soak_deep":  # a tap that is as far away as the map is long reads padding alone
            rates = (rate * 16 // conventions.output_stride for rate in operator["rate"])
            return operator.kind, *(min(rate, side) for rate, side in zip(rates, size, strict=True))
        case "soak_nothing":
            return ("nothing",)
    return str(operator)


# Random spaces


def random_space(r: random.Random) -> tuple[Space, list[Genome], list[Measure]]:
    """A space, the genomes of its slots, and measures, of which its constraints ask for some."""
    slots = _forest_slots(r) if r.random() < 0.3 else _slots(r)
    every = genomes(slots)
    filters = r.choice((256, 256, 1, 2, 3, 5, 48, 65536))
    pool = [random_measure(r, slots, every) for _ in range(r.randint(1, 5))]
    constraints = [_telling(r, pool, every, filters) for _ in range(r.choice((0, 1, 1, 2, 3)))]
    if r.random() < 0.9:  # one cell fulfils them all
        witness = r.choice(every)
        constraints = [c if fulfils(c, witness, filters) else Not(negated=c) for c in constraints]
    if all(slot.optional for slot in slots):
        constraints.insert(r.randint(0, len(constraints)), _a_branch(r))
    return Space(slots=tuple(slots), filters=filters, constraints=tuple(constraints)), every, pool


def _telling(r: random.Random, pool: Sequence[Measure], every: Sequence[Genome], filters: int) -> Constraint:
    """A constraint that mostly tells some genomes apart."""
    some = few(r, every, 12)
    for _ in range(r.randint(1, 5)):
        found = _constraint(r, pool, every, filters, 3)
        if len({fulfils(found, genome, filters) for genome in some}) > 1:
            break
    return found


def _a_branch(r: random.Random) -> Constraint:
    measures: tuple[Measure, ...] = (Branches(), Depth())
    single = (
        Comparison(measure=r.choice(measures), relation=relation, bound=bound)
        for relation, bound in ((">=", 1), (">", 0), ("!=", 0), (">=", 2))
    )
    parts = tuple(r.sample(list(single), 2))
    return r.choice((parts[0], AllOf(all_of=parts), AnyOf(any_of=parts)))


def _largest(r: random.Random) -> int:
    return r.choice((20, 60, 60, 200, 200, 600, 3000))


def _forest_slots(r: random.Random) -> list[Slot]:
    """Every branch reads ``any`` and all draw from one set: classes are counted in closed form there."""
    chosen = some_operators(r, r.randint(1, 4))
    likely = r.choice((0, 0, 0.4, 1))
    optional = [r.random() < likely for _ in range(r.choice((1, 2, 3, 4, 4, 5, 5, 6, 7)))]
    most = _largest(r)
    if r.random() < 0.1:  # two trees of three nodes, of one shape or of two
        chosen, optional, most = chosen[:1], [False] * 5 + [likely > 0], 1000
    while True:
        alike = OperatorSet(operators=tuple(chosen))
        slots = [Slot(inputs=None, operators=alike, optional=one) for one in optional]
        if _options(slots) <= most:
            return slots
        if len(chosen) > 1 and (len(optional) == 1 or r.random() < 0.7):
            chosen.pop()
        else:
            optional.pop(r.randrange(len(optional)))


def _slots(r: random.Random) -> list[Slot]:
    pool = some_operators(r, r.randint(2, 8))
    sets = [r.sample(pool, r.randint(1, min(4, len(pool)))) for _ in range(r.randint(1, 3))]
    likely, read_any = r.choice((0, 0.3, 0.6, 1)), r.choice((0, 0.3, 0.7))
    slots: list[Slot] = []
    for number in range(1, r.choice((1, 2, 3, 3, 4, 4, 5, 5, 6, 7)) + 1):
        sure = [i for i in range(number) if i == 0 or not slots[i - 1].optional]
        inputs = {r.choice(sure), *r.sample(range(number), r.randint(0, min(3, number)))}
        chosen = OperatorSet.of(r.choice(sets) if r.random() < 0.7 else r.sample(pool, r.randint(1, min(4, len(pool)))))
        slots.append(
            Slot(
                inputs=None if r.random() < read_any else tuple(sorted(inputs)),
                operators=chosen,
                optional=r.random() < likely,
            )
        )
    most = _largest(r)
    while _options(slots) > most:  # then some slot loses a choice
        number = r.randrange(len(slots))
        slots[number] = _less(r, slots, number)
    return slots


def _options(slots: Sequence[Slot]) -> int:
    return prod(
        (number if slot.inputs is None else len(slot.inputs)) * len(slot.operators) + slot.optional
        for number, slot in enumerate(slots, 1)
    )


def _less(r: random.Random, slots: Sequence[Slot], number: int) -> Slot:
    slot = slots[number]
    inputs = list(range(number + 1) if slot.inputs is None else slot.inputs)
    chosen = list(slot.operators.operators)
    losing: list[Any] = r.choice((inputs, chosen))
    if len(losing) > 1:
        losing.remove(r.choice(losing))
    if any(i == 0 or not slots[i - 1].optional for i in inputs):
        slot = Slot(inputs=tuple(inputs), operators=OperatorSet.of(chosen), optional=slot.optional)
    return slot.model_copy(update={"optional": False}) if r.random() < 0.1 else slot


def random_measure(r: random.Random, slots: Sequence[Slot], every: Sequence[Genome]) -> Measure:
    features = r.choice((1, 2, 3, 4, 5, 7, 12, 48, 320, 2**20))
    present = [operator for slot in slots for operator in slot.operators.operators]
    some = [r.choice(known_operators() if r.random() < 0.2 else present) for _ in range(r.randint(1, 3))]
    match r.randrange(7):
        case 0:
            return Params(features=features)
        case 1:
            return MAdds(features=features, at=r.choice(((1, 1), (1, 3), (2, 2), (4, 3), (65, 129))))
        case 2:
            return Depth()
        case 3:
            return Branches()
        case 4:
            by_kind = r.choice((0, 1, len(some)))
            return Uses(kinds=tuple(o.kind for o in some[:by_kind]), operators=tuple(some[by_kind:]))
    return Distance(to=random_cell(r, present, every, len(slots)))


def random_cell(r: random.Random, present: Sequence[Operator], every: Sequence[Genome], slots: int) -> Cell:
    """A cell near one of a space, or any, shorter or longer."""
    branches = list(r.choice(every).branches) if r.random() < 0.6 else []
    if branches and r.random() < 0.3:
        del branches[r.randint(1, len(branches)) :]
    longest = max(len(branches), r.randint(1, slots + 3)) if not branches or r.random() < 0.4 else len(branches)
    while len(branches) < longest:
        branches.append((r.randint(0, len(branches)), r.choice(present)))
    for _ in range(r.choice((0, 0, 1, 2))):
        number = r.randrange(len(branches))
        source, operator = branches[number]
        if r.random() < 0.5:
            branches[number] = r.randint(0, number), operator
        else:
            branches[number] = source, r.choice(known_operators() if r.random() < 0.3 else present)
    return Cell.of(*branches, filters=r.choice((256, 3)))


def _constraint(
    r: random.Random, pool: Sequence[Measure], every: Sequence[Genome], filters: int, levels: int
) -> Constraint:
    form = r.choice(("comparison", "comparison", "not", "and", "or")) if levels else "comparison"
    if form == "comparison":
        measure = r.choice(pool)
        near = measured(measure, r.choice(every), filters)
        bound = r.choice((near, near, near, near + 1, near - 1, near + 2, 2 * near, near // 2, 0, 1, 10**30))
        return Comparison(measure=measure, relation=r.choice(list(RELATIONS)), bound=max(0, bound))
    if form == "not":
        return Not(negated=_constraint(r, pool, every, filters, levels - 1))
    parts = tuple(_constraint(r, pool, every, filters, levels - 1) for _ in range(r.randint(2, 3)))
    return AllOf(all_of=parts) if form == "and" else AnyOf(any_of=parts)


# What is compared


def refused(ask: Callable[..., Any], *arguments: Any, **settings: Any) -> tuple[str, ...]:
    with pytest.raises(DpcError) as caught:
        ask(*arguments, **settings)
    return caught.value.codes


def rows_of(found: Sequence[Genome], slots: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([genome.row for genome in found], np.int64).reshape(-1, 2 * slots)


def few(r: random.Random, found: Sequence[Genome], most: int) -> list[Genome]:
    return r.sample(found, min(most, len(found)))


def check_genomes(r: random.Random, space: Space, found: Enumerator, every: list[Genome], inside: list[Genome]) -> None:
    """Count, order, ranks and vectors of all genomes, and that those that break a constraint are refused."""
    assert found.count == len(inside)
    places, rows = np.arange(len(inside)), rows_of(inside, len(space.slots))
    if inside:
        assert np.array_equal(found.vectors(places), rows)
    assert np.array_equal(found.ranks(rows), places)
    assert [found.choices(rank) for rank in places.tolist()] == [genome.choices for genome in inside]
    assert [found.rank_of(genome.choices) for genome in inside] == places.tolist()
    first = {genome.branches: rank for rank, genome in reversed(list(enumerate(inside)))}  # cells may come up again
    for rank in r.sample(range(len(inside)), min(60, len(inside))):
        cell = cell_of(inside[rank], space.filters)
        assert found.unrank(rank) == space.decode(inside[rank].choices) == cell
        assert found.rank(cell) == first[inside[rank].branches]
        assert all(constraint.holds(cell) for constraint in space.constraints)
    assert refused(found.unrank, len(inside)) == (("DPC071",) if inside else ("DPC074",))
    kept = {genome.choices for genome in inside}
    outside = [genome for genome in every if genome.choices not in kept]
    for genome in outside:
        assert refused(found.ranks, [genome.row]) == (("DPC055",) if inside else ("DPC074",))
    for genome in few(r, outside, 30):
        cell = cell_of(genome, space.filters)
        assert refused(found.rank, cell) == ("DPC055",)
        assert refused(space.decode, genome.choices) == ("DPC055",)
        assert cell not in space
    present = [operator for slot in space.slots for operator in slot.operators.operators]
    for _ in range(8):
        cell = random_cell(r, present, every, len(space.slots))
        branches = tuple((branch.input, branch.operator) for branch in cell.branches)
        assert (cell in found) == (cell in space) == (cell.filters == space.filters and branches in first)


def check_samples(r: random.Random, found: Enumerator, inside: list[Genome]) -> None:
    cells = {genome.branches for genome in inside}
    for replacement in (True, False):
        for cell in found.sample(min(6, len(inside)), r.randrange(2**32), replacement=replacement):
            assert tuple((branch.input, branch.operator) for branch in cell.branches) in cells
    ranks = found.sample_ranks(len(inside), r.randrange(2**32), replacement=False).tolist()
    assert sorted(ranks) == list(range(len(inside)))


def check_distributions(r: random.Random, space: Space, inside: list[Genome], pool: list[Measure]) -> None:
    for number in range(1, 4):
        asked = [r.choice(pool) for _ in range(number)]
        known = distribution(space, *asked)
        assert known == Counter(tuple(measured(m, genome, space.filters) for m in asked) for genome in inside)
        assert list(known) == sorted(known)


def check_extensions(space: Space, every: list[Genome], inside: list[Genome]) -> None:
    """What can follow every beginning, also those after which no cell follows."""
    steps = ConstrainedEnumerator(space)
    wanted: dict[tuple[Choice, ...], dict[int | None, list[int]]] = {
        genome.choices[:done]: {} for genome in every for done in range(len(space.slots))
    }
    for genome in inside:
        for done, choice in enumerate(genome.choices):
            after = wanted[genome.choices[:done]]
            if choice is None:
                after[None] = []
            elif choice[1] not in (known := after.setdefault(choice[0], [])):
                known.append(choice[1])
    for prefix, after in wanted.items():
        assert list(steps.extensions(prefix).items()) == list(after.items())
    assert steps.count == len(inside)
    if not space.constraints:
        assert [steps.choices(rank) for rank in range(len(inside))] == [genome.choices for genome in inside]


def check_classes(
    r: random.Random,
    space: Space,
    classes: Enumerator,
    every: list[Genome],
    inside: list[Genome],
    labels: Mapping[Operator, Hashable],
) -> None:
    """Every genome has the rank of its class, and every rank a cell of its class that lies in the space."""
    name_of = {genome: tree(genome.inputs, [labels[o] for o in genome.operators]) for genome in inside}
    names = list(dict.fromkeys(name_of.values()))
    assert classes.count == len(names)
    ranks = classes.ranks(rows_of(inside, len(space.slots))).tolist()
    rank_of: dict[str, int] = {}
    for genome, rank in zip(inside, ranks, strict=True):
        assert rank_of.setdefault(name_of[genome], rank) == rank
    assert sorted(rank_of.values()) == list(range(len(names)))
    by_choices = {genome.choices: genome for genome in inside}
    first: dict[tuple[tuple[int, Operator], ...], Genome] = {}
    for genome in inside:
        first.setdefault(genome.branches, genome)
    for name, rank in rank_of.items():
        genome = by_choices[classes.choices(rank)]
        assert name_of[genome] == name
        assert genome == first[genome.branches]  # of the ways to choose the cell the lowest one
    if isinstance(classes, ListedEnumerator):
        assert [rank_of[name] for name in names] == list(range(len(names)))  # classes in the order of their first cells
    else:
        assert isinstance(classes, ForestEnumerator)
        sizes = [name.count("<") for name in sorted(rank_of, key=rank_of.__getitem__)]
        assert sizes == sorted(sizes)
    for genome in few(r, inside, 15):
        cell = cell_of(genome, space.filters)
        assert classes.rank(cell) == rank_of[name_of[genome]]
        assert cell in classes
    kept = set(by_choices)
    for genome in every:
        if genome.choices not in kept:
            code = refused(classes.ranks, [genome.row])
            assert code == (("DPC055",) if inside else ("DPC074",))


def check_neighbours(r: random.Random, space: Space, every: list[Genome], inside: list[Genome]) -> None:
    present = [operator for slot in space.slots for operator in slot.operators.operators]
    for _ in range(2):
        cell = random_cell(r, present, every, len(space.slots))
        centre = tuple((branch.input, branch.operator) for branch in cell.branches)
        radius = r.choice((1, 2, 3, 4, 6, 9, 10**40))
        near = neighbourhood.neighbours(cell, space, radius)
        expected = [genome for genome in inside if 1 <= apart(genome.branches, centre) <= radius]
        assert near.count == len(expected)
        rows = rows_of(expected, len(space.slots))
        assert np.array_equal(near.vectors(range(len(expected))), rows)
        assert np.array_equal(near.ranks(rows), np.arange(len(expected)))
        far = r.randint(1, 6)
        at_it = {genome.branches for genome in inside if apart(genome.branches, centre) == far}
        if at_it:
            mutant = neighbourhood.mutate(cell, space, r.randrange(2**32), distance=far)
            assert tuple((branch.input, branch.operator) for branch in mutant.branches) in at_it
        else:
            assert refused(neighbourhood.mutate, cell, space, 0, distance=far) == ("DPC074",)


_sample = Enumerator.sample


def check_crossover(r: random.Random, space: Space, inside: list[Genome]) -> None:
    """The space that children are drawn from holds all that take each input and operator of a slot from a parent."""
    first: dict[tuple[tuple[int, Operator], ...], Genome] = {}
    for genome in inside:
        first.setdefault(genome.branches, genome)
    for _ in range(2):
        parents = r.choice(inside), r.choice(inside)
        drawn_from: list[Enumerator] = []

        def sample(children: Enumerator, *how: Any, drawn_from: list[Enumerator] = drawn_from) -> list[Cell]:
            drawn_from.append(children)
            return _sample(children, *how)

        with patch.object(Enumerator, "sample", sample):
            a, b = (cell_of(parent, space.filters) for parent in parents)
            child = neighbourhood.crossover(a, b, space, r.randrange(2**32))
        offered = []
        for taken in zip(*(first[parent.branches].choices for parent in parents), strict=True):
            there = [choice for choice in taken if choice is not None]
            pairs = {(source, operator) for source, _ in there for _, operator in there}
            offered.append([*([None] if len(there) < 2 else []), *pairs])
        children = [g for choices in product(*offered) if (g := genome_of(space.slots, choices)) is not None]
        possible = Counter(genome.branches for genome in fulfilling(space, children))
        found = Counter(tuple((b.input, b.operator) for b in cell.branches) for cell in drawn_from[0])
        assert found == possible
        assert tuple((branch.input, branch.operator) for branch in child.branches) in possible
        assert all(parent.branches in possible for parent in parents)


def check(seed: int) -> None:
    """All of it for the space of one seed."""
    r = random.Random(seed)
    space, every, pool = random_space(r)
    try:
        inside = fulfilling(space, every)
        assert count(space) == len(inside)
        found = enumerator(space)
        check_genomes(r, space, found, every, inside)
        check_samples(r, found, inside)
        check_distributions(r, space, inside, pool)
        check_extensions(space, every, inside)
        chosen = {operator for slot in space.slots for operator in slot.operators.operators}
        check_classes(r, space, enumerator(space, "isomorphism"), every, inside, {o: str(o) for o in chosen})
        size = r.choice((1, 1, 2, 2, 3, 9)), r.choice((1, 1, 2, 2, 3, 8))
        conventions = Conventions(pooling=r.choice(("paper", "sliding")), output_stride=r.choice((16, 8)))
        labels = {operator: computes(operator, size, space.filters, conventions) for operator in chosen}
        functions = enumerator(space, "function", at=size, conventions=conventions)
        check_classes(r, space, functions, every, inside, labels)
        check_neighbours(r, space, every, inside)
        if inside:
            check_crossover(r, space, inside)
    except BaseException as error:
        error.add_note(f"seed {seed}: {space}")
        raise


@pytest.mark.parametrize("start", range(0, 150, 30))
def test_random_spaces_of_every_sort(start: int) -> None:
    for seed in range(start, start + 30):
        check(seed)


@pytest.mark.soak
@pytest.mark.parametrize("start", range(1_000, 21_000, 1_000))
def test_many_thousand_random_spaces(start: int) -> None:
    for seed in range(start, start + 1_000):
        check(seed)
