"""Exact answers about spaces: how many, which one, draw some, go through them.

:func:`enumerator` puts the cells of a space into a fixed order, up to isomorphism or function if one likes; what can
then be asked is described at :class:`Enumerator`. :func:`count` and :func:`distribution` answer without that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

from dpcdsl.constraints import Branches, Comparison, Distance, Measure
from dpcdsl.enumeration.base import Choice, Choices, Enumerator, Vectors, checked_cell, checked_space
from dpcdsl.enumeration.constrained import ConstrainedEnumerator
from dpcdsl.enumeration.forests import ForestEnumerator, is_forest_space
from dpcdsl.enumeration.listed import MAX_LISTED, ListedEnumerator
from dpcdsl.enumeration.product import ProductEnumerator
from dpcdsl.enumeration.progress import report, reporting
from dpcdsl.enumeration.streams import Permutation, Ranks, Seed, Stream, fits_64_bits
from dpcdsl.enumeration.tally import MAX_STATES, Tally
from dpcdsl.errors import DpcError, shown
from dpcdsl.layers import Conventions, Size, checked_size
from dpcdsl.merging import merge_operators
from dpcdsl.operators import Operator
from dpcdsl.space import Space

__all__ = [
    "MAX_LISTED",
    "MAX_STATES",
    "Choice",
    "Choices",
    "Enumerator",
    "Permutation",
    "Ranks",
    "Seed",
    "Stream",
    "UpTo",
    "Vectors",
    "checked_cell",
    "checked_space",
    "count",
    "distribution",
    "enumerator",
    "enumerator_of",
    "fits_64_bits",
    "report",
    "reporting",
]

#: What counts as one: a genome, that is a choice in every slot; a class of cells that differ in the order of branches
#: alone; a class that also takes operators for equal that are the same function at a map size.
UpTo: TypeAlias = Literal["genome", "isomorphism", "function"]

_NOT_EMPTY = (Comparison(measure=Branches(), relation=">=", bound=1),)


def enumerator(
    space: Space, up_to: UpTo = "genome", *, at: Size | None = None, conventions: Conventions | None = None
) -> Enumerator:
    """The cells of ``space`` in a fixed order.

    up_to: ``"genome"``: every choice counts, and ranks grow in the lexicographic order of the vectors. A cell that
        optional branches give in several ways is there as often; its rank is the lowest.
        ``"isomorphism"``: one cell for all that differ in the order of their branches alone.
        ``"function"``: operators that are the same function of any input at map size ``at`` count as one as well
        (:mod:`dpcdsl.merging`). A class belongs to the space if one of its cells does.
    at: height and width of the map, for functions. conventions: how pooling and rates are run, for functions.

    Raises :class:`DpcError`: DPC062 on a wrong setting, DPC070 if an exact answer is out of reach: it is within reach
    for genomes of any space, constraints included, whose partial cells fall into at most :data:`MAX_STATES` states, for
    classes where every branch reads ``any``, all draw from one operator set and no constraint measures a distance, and
    for classes of every space of at most :data:`MAX_LISTED` genomes.
    """
    return _enumerator(checked_space(space), up_to, *_checked_settings(up_to, at, conventions))


def _checked_settings(up_to: UpTo, at: Size | None, conventions: Conventions | None) -> tuple[Size | None, Conventions]:
    if up_to not in get_args(UpTo):
        choices = ", ".join(f'"{choice}"' for choice in get_args(UpTo))
        raise DpcError.of("DPC062", f"up_to must be one of {choices}, not {shown(up_to)}")
    if up_to == "function":
        if at is None:
            raise DpcError.of(
                "DPC062", "which operators are equal depends on the size of the map", hint="give it, such as 33x33"
            )
        at = checked_size(at, "at")
    elif at is not None or conventions is not None:
        raise DpcError.of("DPC062", 'a map size goes with up_to="function"')
    return at, Conventions() if conventions is None else conventions


def enumerator_of(space: Space) -> Enumerator:
    """The genomes of ``space``, made anew: for spaces that are asked about once."""
    if space.constraints or any(slot.optional for slot in space.slots):
        return ConstrainedEnumerator(space)
    return ProductEnumerator(space)


@lru_cache(maxsize=16)  # many questions about few spaces
def _enumerator(space: Space, up_to: UpTo, at: Size | None, conventions: Conventions) -> Enumerator:
    return enumerator_of(space) if up_to == "genome" else _classes(space, _labels(space, at, conventions))


def _labels(space: Space, at: Size | None, conventions: Conventions) -> dict[Operator, int]:
    """A number for each operator of the space, the same for those that count as one."""
    operators = list(dict.fromkeys(o for slot in space.slots for o in slot.operators.operators))
    groups: Sequence[tuple[Operator, ...]] = [(operator,) for operator in operators]
    if at is not None:
        groups = merge_operators(operators, at, space.filters, conventions)
    return {operator: number for number, group in enumerate(groups) for operator in group}


def _classes(space: Space, labels: Mapping[Operator, int], keep: Sequence[Measure] = ()) -> Enumerator:
    alike = not (space.constraints or keep) or Tally(space, keep).agree(labels)
    if is_forest_space(space) and alike:
        first: dict[int, int] = {}
        operators = space.slots[0].operators.operators
        stands_for = [first.setdefault(labels[operator], number) for number, operator in enumerate(operators)]
        try:
            return ForestEnumerator(space, stands_for, keep)
        except DpcError as error:
            if error.codes != ("DPC070",) or count(space) > MAX_LISTED:
                raise
    return ListedEnumerator(enumerator_of(space), labels)


def count(
    space: Space, up_to: UpTo = "genome", *, at: Size | None = None, conventions: Conventions | None = None
) -> int:
    """How many cells ``space`` has, exactly; the arguments and errors are those of :func:`enumerator`."""
    return enumerator(space, up_to, at=at, conventions=conventions).count


def distribution(
    space: Space,
    *measures: Measure,
    up_to: UpTo = "genome",
    at: Size | None = None,
    conventions: Conventions | None = None,
) -> dict[tuple[int, ...], int]:
    """How many cells of ``space`` there are for each value of the measures, exactly and over the whole space.

    The keys have a number for each measure and are in rising order. up_to, at, conventions: as for :func:`enumerator`.

    Raises :class:`DpcError`: DPC070 where that takes more than :data:`MAX_STATES` states or genomes; DPC062 if a
    measure is not the same for all cells of a class: a distance never is, and a cost is not if operators that are the
    same function cost differently.
    """
    for measure in measures:
        if not isinstance(measure, get_args(get_args(Measure)[0])):
            raise DpcError.of(
                "DPC062",
                f"a measure is wanted, not {shown(measure)}",
                hint='read one with `dpcdsl.parse_measure("params(F=320)")`',
            )
    at, conventions = _checked_settings(up_to, at, conventions)
    asked = tuple(dict.fromkeys(measures))
    if up_to == "genome":
        found = Tally(checked_space(space), asked).distribution()
    else:
        found = _distribution_of_classes(checked_space(space), asked, _labels(space, at, conventions))
    places = [asked.index(measure) for measure in measures]
    return {tuple(values[place] for place in places): number for values, number in found.items()}


def _distribution_of_classes(
    space: Space, measures: tuple[Measure, ...], labels: Mapping[Operator, int]
) -> dict[tuple[int, ...], int]:
    plain = Space(slots=space.slots, filters=space.filters, constraints=_NOT_EMPTY)
    for measure in measures:
        if isinstance(measure, Distance) or not Tally(plain, (measure,)).agree(labels):
            raise DpcError.of(
                "DPC062",
                f"`{measure}` is not the same for all cells of a class",
                hint="count genomes, or ask for another measure",
            )
    cells = _classes(space, labels, measures)
    if isinstance(cells, ForestEnumerator):
        return cells.distribution()
    values = (tuple(measure.of(cell) for measure in measures) for cell in cells)
    return dict(sorted(Counter(values).items()))
