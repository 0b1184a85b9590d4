"""When a constraint is decided: comparisons of measures known only to lie between two numbers.

Measures that are counted branch by branch only grow, so a half-built cell knows each of them up to an interval.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from dpcdsl.constraints import AllOf, AnyOf, Comparison, Constraint, Measure, Not

__all__ = ["Breaks", "comparisons", "decided", "measures"]


def comparisons(constraints: Iterable[Constraint]) -> list[Comparison]:
    """Every comparison in the constraints, each once."""
    found: dict[Comparison, None] = {}
    stack = list(constraints)
    while stack:
        match stack.pop():
            case Comparison() as comparison:
                found[comparison] = None
            case AllOf(all_of=parts) | AnyOf(any_of=parts):
                stack += parts
            case Not(negated=part):
                stack.append(part)
    return list(found)


def measures(constraints: Iterable[Constraint]) -> list[Measure]:
    """Every measure in the constraints, each once."""
    return list(dict.fromkeys(comparison.measure for comparison in comparisons(constraints)))


def decided(constraint: Constraint, truth: Callable[[Comparison], bool | None]) -> bool | None:
    """Whether the constraint holds, given what is known of its comparisons; None while it is open."""
    match constraint:
        case Comparison():
            return truth(constraint)
        case AllOf(all_of=parts):
            return _all(decided(part, truth) for part in parts)
        case AnyOf(any_of=parts):
            return _opposite(_all(_opposite(decided(part, truth)) for part in parts))
        case Not(negated=part):
            return _opposite(decided(part, truth))


def _opposite(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(values: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = True
    for value in values:
        if value is False:
            return False
        if value is None:
            verdict = None
    return verdict


class Breaks:
    """The numbers at which some comparison of one measure changes its mind.

    Between two of them all comparisons of the measure are constant, so a value whose whole future lies there can be
    replaced by the first of its kind: that is what keeps the states of the dynamic programme few.
    """

    def __init__(self, measure: Measure, constraints: Iterable[Constraint]):
        self.comparisons = [c for c in comparisons(constraints) if c.measure == measure]
        starts = {0}
        for comparison in self.comparisons:
            if comparison.relation in ("<=", ">", "==", "!="):
                starts.add(comparison.bound + 1)
            if comparison.relation in ("<", ">=", "==", "!="):
                starts.add(comparison.bound)
        self._starts = sorted(starts)
        #: From here on nothing changes any more.
        self.last = self._starts[-1]

    def settle(self, value: int, least: int, most: int) -> int:
        """The least number, from 0 up, that behaves as ``value`` does, whatever from ``least`` to ``most`` is added."""
        place = bisect_right(self._starts, value + least)
        if place < len(self._starts) and value + most >= self._starts[place]:
            return value
        return max(0, self._starts[place - 1] - least)

    def known(self, least: int, most: int) -> tuple[bool | None, ...]:
        """What is known of each of :attr:`comparisons` when the measure lies from ``least`` to ``most``."""
        return tuple(c.compare(least) if _constant(c, least, most) else None for c in self.comparisons)


def _constant(comparison: Comparison, least: int, most: int) -> bool:
    """Whether the comparison says the same of every number from ``least`` to ``most``."""
    bound = comparison.bound
    match comparison.relation:
        case "<=" | ">":
            return most <= bound or bound < least
        case "<" | ">=":
            return most < bound or bound <= least
        case "==" | "!=":
            return least == most or not least <= bound <= most
