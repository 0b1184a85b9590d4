"""What a space may demand of its cells: comparisons of measures, joined by and, or, not.

``params`` and ``madds`` count convolution weights only: no batch normalisation and no projection, as Table 1 of the
paper does.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from dpcdsl.cell import Cell, distance
from dpcdsl.cost import cost
from dpcdsl.layers import Size
from dpcdsl.operators import Operator
from dpcdsl.values import Value

__all__ = [
    "MEASURES",
    "AllOf",
    "AnyOf",
    "Branches",
    "Comparison",
    "Constraint",
    "Depth",
    "Distance",
    "MAdds",
    "Measure",
    "Not",
    "Params",
    "Relation",
    "Uses",
    "implies_a_branch",
    "spelled_number",
]

Relation: TypeAlias = Literal["<=", "<", ">=", ">", "==", "!="]


class Params(Value):
    """Convolution weights of the cell on ``features`` channels of F."""

    name: Literal["params"] = "params"
    features: int

    def of(self, cell: Cell) -> int:
        return cost(cell, features=self.features, size=(1, 1)).params

    def __str__(self) -> str:
        return f"params(F={self.features})"


class MAdds(Value):
    """Multiply-adds of the cell's convolutions on ``features`` channels of F at map size ``at`` (height, width)."""

    name: Literal["madds"] = "madds"
    features: int
    at: Size

    def of(self, cell: Cell) -> int:
        return cost(cell, features=self.features, size=self.at).madds

    def __str__(self) -> str:
        return f"madds(F={self.features}, at={self.at[0]}x{self.at[1]})"


class Depth(Value):
    """Branches on the longest way from F."""

    name: Literal["depth"] = "depth"

    def of(self, cell: Cell) -> int:
        return cell.depth

    def __str__(self) -> str:
        return "depth"


class Branches(Value):
    """Number of branches."""

    name: Literal["branches"] = "branches"

    def of(self, cell: Cell) -> int:
        return len(cell)

    def __str__(self) -> str:
        return "branches"


class Uses(Value):
    """Number of branches whose operator is of one of ``kinds`` or one of ``operators``."""

    name: Literal["uses"] = "uses"
    kinds: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()

    def of(self, cell: Cell) -> int:
        wanted = frozenset(self.operators)
        return sum(branch.operator.kind in self.kinds or branch.operator in wanted for branch in cell.branches)

    def __str__(self) -> str:
        from dpcdsl.space import spelled_operators

        terms = [*self.kinds, *([spelled_operators(self.operators)] if self.operators else [])]
        return f"uses({' | '.join(terms)})"


class Distance(Value):
    """:func:`dpcdsl.cell.distance` to a given cell."""

    name: Literal["distance"] = "distance"
    to: Cell

    def of(self, cell: Cell) -> int:
        return distance(cell, self.to)

    def __str__(self) -> str:
        return f"distance({Cell(branches=self.to.branches)})"


Measure: TypeAlias = Annotated[Params | MAdds | Depth | Branches | Uses | Distance, Field(discriminator="name")]

#: Every measure by the name it has in text, and how it is written.
MEASURES: dict[str, str] = {
    "params": "params(F=320)",
    "madds": "madds(F=320, at=65x129)",
    "depth": "depth",
    "branches": "branches",
    "uses": "uses(avgpool)",
    "distance": "distance(top1)",
}


class Comparison(Value):
    """``measure relation bound``, such as ``params(F=320) <= 400K``. The bound is an exact whole number."""

    measure: Measure
    relation: Relation
    bound: int

    def holds(self, cell: Cell) -> bool:
        return self.compare(self.measure.of(cell))

    def compare(self, value: int) -> bool:
        """Whether ``value relation bound`` is true."""
        match self.relation:
            case "<=":
                return value <= self.bound
            case "<":
                return value < self.bound
            case ">=":
                return value >= self.bound
            case ">":
                return value > self.bound
            case "==":
                return value == self.bound
            case "!=":
                return value != self.bound

    def __str__(self) -> str:
        return f"{self.measure} {self.relation} {spelled_number(self.bound)}"


class AllOf(Value):
    """True where every part is."""

    all_of: Annotated[tuple[Constraint, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _flatten(self) -> AllOf:
        flat = (p for part in self.all_of for p in (part.all_of if isinstance(part, AllOf) else (part,)))
        self.__dict__["all_of"] = tuple(flat)
        return self

    def holds(self, cell: Cell) -> bool:
        return all(part.holds(cell) for part in self.all_of)

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.all_of)


class AnyOf(Value):
    """True where at least one part is."""

    any_of: Annotated[tuple[Constraint, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _flatten(self) -> AnyOf:
        flat = (p for part in self.any_of for p in (part.any_of if isinstance(part, AnyOf) else (part,)))
        self.__dict__["any_of"] = tuple(flat)
        return self

    def holds(self, cell: Cell) -> bool:
        return any(part.holds(cell) for part in self.any_of)

    def __str__(self) -> str:
        return " or ".join(str(part) for part in self.any_of)


class Not(Value):
    """True where its part is not."""

    negated: Constraint

    def holds(self, cell: Cell) -> bool:
        return not self.negated.holds(cell)

    def __str__(self) -> str:
        return f"not ({self.negated})" if isinstance(self.negated, AllOf | AnyOf) else f"not {self.negated}"


Constraint: TypeAlias = Comparison | AllOf | AnyOf | Not
AllOf.model_rebuild()
AnyOf.model_rebuild()
Not.model_rebuild()


def implies_a_branch(constraint: Constraint) -> bool:
    """Whether the constraint plainly rules out the cell without branches."""
    match constraint:
        case Comparison(measure=Branches() | Depth()):
            return not constraint.compare(0)
        case AllOf(all_of=parts):
            return any(implies_a_branch(part) for part in parts)
        case AnyOf(any_of=parts):
            return all(implies_a_branch(part) for part in parts)
    return False


def spelled_number(number: int) -> str:
    """``400000`` as ``400K``: the largest suffix that keeps the number whole."""
    for suffix, unit in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number and number % unit == 0:
            return f"{number // unit}{suffix}"
    return str(number)
