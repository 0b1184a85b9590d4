"""Every genome of a small space, slot by slot, and the enumerator held against them.

An optional branch is left out first, then come inputs and operators in order. It shares nothing with the enumerator:
not its dynamic programme, not Space.embed, not its order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from operator import eq, ge, gt, le, lt, ne
from typing import TypeAlias
from unittest.mock import patch

import numpy as np
import pytest

from dpcdsl import Branch, Cell, DpcError, Operator, Space, operators, parse
from dpcdsl.constraints import (
    Measure,
)
from dpcdsl.enumeration import count, distribution, enumerator
from dpcdsl.layers import Convolution, Layer
from dpcdsl.operators import Integer, OperatorKind, register_operator

RELATIONS = {"<=": le, "<": lt, ">=": ge, ">": gt, "==": eq, "!=": ne}

Choices: TypeAlias = tuple[tuple[int, int] | None, ...]


# Operators of one's own: the channels that they write depend on those that they read


@dataclass(frozen=True)
class _Through(Layer):
    """Passes its channels through, as a max pooling without a convolution does."""

    tag: int


@dataclass(frozen=True)
class _Twice(Layer):
    """Writes its input twice over."""

    def out_channels(self, in_channels: int) -> int:
        return 2 * in_channels


def _through(filters: int, tag: int) -> list[Layer]:  # noqa: ARG001
    return [_Through(tag)]


def _twice(filters: int) -> list[Layer]:  # noqa: ARG001
    return [_Twice()]


def _wide(filters: int) -> list[Layer]:
    return [Convolution("conv", filters + 3)]


@contextmanager
def operators_of_ones_own() -> Iterator[None]:
    """Inside, `through`, `twice` and `wide` are operators of the language."""
    with patch.dict(operators._registry):
        register_operator(OperatorKind("through", _through, (Integer("tag"),)))
        register_operator(OperatorKind("twice", _twice))
        register_operator(OperatorKind("wide", _wide))
        yield


# The oracle


def genomes(space: Space) -> Iterator[Choices]:
    """What each slot chooses, in the order of the vectors."""
    options: list[list[tuple[int, int] | None]] = []
    for number, slot in enumerate(space.slots, 1):
        inputs = range(number) if slot.inputs is None else slot.inputs
        options.append([*([None] if slot.optional else []), *product(inputs, range(len(slot.operators.operators)))])
    return genomes_of(options)


def genomes_of(options: Sequence[Sequence[tuple[int, int] | None]]) -> Iterator[Choices]:
    """All ways to choose one option a slot that leave a branch, and no branch that reads one left out."""
    for choices in product(*options):
        there = {0, *(number for number, choice in enumerate(choices, 1) if choice is not None)}
        if len(there) > 1 and all(choice is None or choice[0] in there for choice in choices):
            yield choices


@lru_cache(maxsize=2**16)
def branch(source: int, operator: Operator) -> Branch:
    return Branch(input=source, operator=operator)


def cell_of(space: Space, choices: Choices) -> Cell:
    number_of = {0: 0}
    branches = []
    for number, (slot, choice) in enumerate(zip(space.slots, choices, strict=True), 1):
        if choice is not None:
            number_of[number] = len(branches) + 1
            branches.append(branch(number_of[choice[0]], slot.operators.operators[choice[1]]))
    return Cell(branches=tuple(branches), filters=space.filters)


def everything(space: Space) -> list[tuple[Choices, Cell]]:
    """All genomes of the slots, whatever the constraints say."""
    return [(choices, cell_of(space, choices)) for choices in genomes(space)]


def vector_of(choices: Choices) -> list[int]:
    return [number for choice in choices for number in (choice or (-1, -1))]


def code_of(error: pytest.ExceptionInfo[DpcError]) -> str:
    (code,) = error.value.codes
    assert str(error.value)
    return code


def compare(space: Space, inside: list[tuple[Choices, Cell]], outside: Sequence[tuple[Choices, Cell]] = ()) -> None:
    """The enumerator of ``space`` against its genomes in order, and some genomes that the constraints leave out."""
    found = enumerator(space)
    cells = [cell for _, cell in inside]
    vectors = np.array([vector_of(choices) for choices, _ in inside], np.int32).reshape(-1, 2 * len(space.slots))
    places = np.arange(len(cells), dtype=np.uint64)
    assert found.count == count(space) == len(cells)
    assert list(found.cells()) == cells
    if cells:
        assert np.array_equal(found.vectors(places), vectors)
        assert found.vectors(places).dtype == np.int32
    assert np.array_equal(found.ranks(vectors), places)
    assert found.ranks(vectors).dtype == np.uint64
    ranks_of: dict[Cell, list[int]] = {}
    for rank, cell in enumerate(cells):
        ranks_of.setdefault(cell, []).append(rank)
        assert found.rank_of(inside[rank][0]) == rank
        assert found.choices(rank) == inside[rank][0]
    for cell, ranks in ranks_of.items():
        assert found.rank(cell) == ranks[0]  # there are more only where optional branches give it twice
        assert cell in found
    for rank in (-1, len(cells)):
        with pytest.raises(DpcError) as caught:
            found.unrank(rank)
        assert code_of(caught) == ("DPC071" if cells else "DPC074")
    for choices, cell in outside:
        assert cell not in found
        if cells:
            with pytest.raises(DpcError) as caught:
                found.ranks([vector_of(choices)])
            assert code_of(caught) == "DPC055"
        with pytest.raises(DpcError, match="breaks") as caught:
            found.rank(cell)
        assert code_of(caught) == "DPC055"


def compare_all(space: Space, measures: Sequence[Measure] = ()) -> None:
    """Everything that brute force knows of a space, and how ``measures`` are distributed, each and two together."""
    inside, outside = [], []
    for choices, cell in everything(space):
        (inside if all(c.holds(cell) for c in space.constraints) else outside).append((choices, cell))
    compare(space, inside, outside[:: max(1, len(outside) // 10)])
    for asked in (*((m,) for m in measures), *pairwise(measures)):
        wanted = Counter(tuple(m.of(cell) for m in asked) for _, cell in inside)
        assert distribution(space, *asked) == wanted
        assert list(distribution(space, *asked)) == sorted(wanted)


def space_of(text: str) -> Space:
    return parse(f"from zoo import top1, aspp, dpc, paper\nspace s {{ {text} }}").space("s")


#: Six operators.
SIX = "conv1x1 | sepconv3x3 rate {1, 3} x 1 | avgpool grid 1 x {1, 2} | sepconv3x3 rate 2x2"

#: Spaces without cells.
EMPTY = {
    "never": f"3 * (any, {SIX}, _) require depth < 0",
    "contradiction": f"2 * (any, {SIX}, _) require uses(conv1x1) > 1 and not uses(conv1x1) > 1",
    "uses too many": "3 * (any, conv1x1 | wide, _) require uses(wide) > 3",
}


def dpc(branches: int, condition: str = "") -> Space:
    where = f" where {condition}" if condition else ""
    return parse(f"from zoo import dpc, top1\nspace s = dpc(B={branches}){where}").space("s")


def as_choices(vector: Sequence[int]) -> Choices:
    return tuple(zip(vector[::2], vector[1::2], strict=True))
