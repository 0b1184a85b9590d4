"""Cells near a cell: neighbours, mutation, crossover; all of them inside a space, exactly counted and drawn uniformly.

Near is meant by :func:`dpcdsl.distance`: the number of inputs and operators in which two cells differ. A neighbourhood
is the space with a constraint more, so that whatever can be asked of a space can be asked of it.
"""

from __future__ import annotations

from dpcdsl.cell import Cell
from dpcdsl.constraints import LARGEST_BOUND, Comparison, Distance
from dpcdsl.enumeration import Enumerator, Seed, checked_cell, checked_space, enumerator_of
from dpcdsl.errors import DpcError, shown
from dpcdsl.interchange import paper_space
from dpcdsl.space import OperatorSet, Slot, Space

__all__ = ["crossover", "exactly_at", "mutate", "neighbours"]


def neighbours(cell: Cell, space: Space | None = None, radius: int = 1) -> Enumerator:
    """The cells of ``space`` at distance 1 to ``radius`` from ``cell``: count, sample, rank or go through them.

    They are genomes: a cell that optional branches give in several ways is there as often.

    space: default the paper's with as many branches as the cell, which need not lie in it itself.
    Raises :class:`DpcError` (DPC062) if ``radius`` is not a whole number from 1 up.

    >>> neighbours(Cell.of((0, paper_space().slots[0].operators.operators[0])), radius=1).count
    80
    """
    return enumerator_of(_around(cell, space, 1, _checked(radius, "radius")))


def mutate(cell: Cell, space: Space | None = None, seed: Seed = None, *, distance: int = 1) -> Cell:
    """A cell drawn uniformly from those of ``space`` at exactly this distance from ``cell``, genomes as for
    :func:`neighbours`.

    Raises :class:`DpcError`: DPC074 if there is none, DPC062 if ``distance`` is not a whole number from 1 up.
    """
    found = exactly_at(cell, space, distance)
    if not found.count:
        raise DpcError.of(
            "DPC074",
            f"no cell of the space is at distance {shown(distance)} from this one",
            hint="ask for a smaller distance, or for another space",
        )
    return found.sample(1, seed)[0]


def exactly_at(cell: Cell, space: Space | None, distance: int) -> Enumerator:
    """The cells of ``space`` at exactly this distance from ``cell``, as :func:`neighbours` has those up to it."""
    distance = _checked(distance, "distance")
    return enumerator_of(_around(cell, space, distance, distance))


def crossover(a: Cell, b: Cell, space: Space | None = None, seed: Seed = None) -> Cell:
    """A cell of ``space`` each of whose inputs and operators is that of ``a`` or of ``b``, drawn uniformly from all
    such cells; the parents are among them. Drawn are genomes, as for :func:`neighbours`.

    space: default the paper's with as many branches as ``a``. An optional branch that only one parent has may be left
    out. Raises :class:`DpcError` (DPC055) if a parent is not in the space.
    """
    space = paper_space(len(checked_cell(a))) if space is None else checked_space(space)
    ways = []
    for name, parent in (("first", a), ("second", b)):
        try:
            ways.append(space.placed(checked_cell(parent)))
        except DpcError as error:
            raise error.within(f"the {name} parent") from None
    number = {0: 0}  # of each slot that a child may fill
    slots = []
    for place, (slot, *parents) in enumerate(zip(space.slots, *ways, strict=True), 1):
        taken = [choice for choice in parents if choice is not None]
        if taken:
            inputs = tuple(sorted({number[source] for source, _ in taken}))
            operators = OperatorSet.of(slot.operators.operators[operator] for _, operator in taken)
            slots.append(Slot(inputs=inputs, operators=operators, optional=len(taken) < 2))
            number[place] = len(slots)
    # Not validated: a branch may be left with no input there, and then that is no child.
    children = Space.model_construct(slots=tuple(slots), filters=space.filters, constraints=space.constraints)
    return enumerator_of(children).sample(1, seed)[0]


def _around(cell: Cell, space: Space | None, least: int, most: int) -> Space:
    distance = Distance(to=checked_cell(cell))
    space = paper_space(len(cell)) if space is None else checked_space(space)
    return space.where(
        Comparison(measure=distance, relation=">=", bound=least),
        Comparison(measure=distance, relation="<=", bound=most),
    )


def _checked(value: object, name: str) -> int:
    value = getattr(value, "item", lambda: value)()  # a number of NumPy's
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DpcError.of("DPC062", f"{name} must be a whole number from 1 up, not {shown(value)}")
    return min(value, LARGEST_BOUND)
