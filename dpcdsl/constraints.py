"""What a space may demand of its cells: comparisons of measures, joined by and, or, not.

``params`` and ``madds`` count convolution weights only: no batch normalisation and no projection, as Table 1 of the
paper does.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dpcdsl.cell import Cell, distance
from dpcdsl.cost import MAX_FEATURES, cost
from dpcdsl.errors import DpcError
from dpcdsl.layers import Size, checked_size
from dpcdsl.operators import Operator, kind_named
from dpcdsl.values import Value

__all__ = [
    "LARGEST_BOUND",
    "MAX_DEPTH",
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
    "size",
    "spelled_number",
]

#: Largest number that a measure can be compared with.
LARGEST_BOUND = 10**30
#: Deepest nesting of a constraint.
MAX_DEPTH = 50

Relation: TypeAlias = Literal["<=", "<", ">=", ">", "==", "!="]


def _checked_at(at: Size) -> Size:
    return checked_size(at, "at")


_Features = Annotated[int, Field(strict=True, ge=1, le=MAX_FEATURES)]


class Params(Value):
    """Convolution weights of the cell on ``features`` channels of F."""

    name: Literal["params"] = "params"
    features: _Features

    def of(self, cell: Cell) -> int:
        return cost(cell, features=self.features, size=(1, 1)).params

    def __str__(self) -> str:
        return f"params(F={self.features})"


class MAdds(Value):
    """Multiply-adds of the cell's convolutions on ``features`` channels of F at map size ``at`` (height, width)."""

    name: Literal["madds"] = "madds"
    features: _Features
    at: Annotated[Size, AfterValidator(_checked_at)]

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
    """Number of branches whose operator is of one of ``kinds`` or one of ``operators``.

    An operator without parameters is all of its kind, and is kept as that.
    """

    name: Literal["uses"] = "uses"
    kinds: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()

    @model_validator(mode="after")
    def _normalise(self) -> Uses:
        wanted = dict.fromkeys((*self.kinds, *(o.kind for o in self.operators if not o.parameters)))
        for kind in wanted:
            kind_named(kind)
        if not wanted and not self.operators:
            raise DpcError.of("DPC041", "`uses` takes operators", hint="for example `uses(avgpool)`")
        self.__dict__["kinds"] = tuple(wanted)
        self.__dict__["operators"] = tuple(dict.fromkeys(o for o in self.operators if o.kind not in wanted))
        return self

    def of(self, cell: Cell) -> int:
        return sum(self.counts(branch.operator) for branch in cell.branches)

    def counts(self, operator: Operator) -> bool:
        """Whether a branch with this operator is counted."""
        return operator.kind in self.kinds or operator in self._wanted

    @cached_property
    def _wanted(self) -> frozenset[Operator]:
        return frozenset(self.operators)

    def __str__(self) -> str:
        from dpcdsl.space import spelled_operators

        terms = [*self.kinds, *([spelled_operators(self.operators)] if self.operators else [])]
        return f"uses({' | '.join(terms)})"


class Distance(Value):
    """:func:`dpcdsl.cell.distance` to a given cell, whose filters count for nothing and are kept as the default."""

    name: Literal["distance"] = "distance"
    to: Cell

    @model_validator(mode="after")
    def _normalise(self) -> Distance:
        self.__dict__["to"] = Cell(branches=self.to.branches)
        return self

    def of(self, cell: Cell) -> int:
        return distance(cell, self.to)

    def __str__(self) -> str:
        return f"distance({self.to})"


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

    levels: ClassVar[int] = 1

    measure: Measure
    relation: Relation
    bound: Annotated[int, Field(strict=True, ge=0, le=LARGEST_BOUND)]

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
        _check_levels(self.levels)
        return self

    @cached_property
    def levels(self) -> int:
        """How deeply it is nested."""
        return 1 + max(part.levels for part in self.all_of)

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
        _check_levels(self.levels)
        return self

    @cached_property
    def levels(self) -> int:
        """How deeply it is nested."""
        return 1 + max(part.levels for part in self.any_of)

    def holds(self, cell: Cell) -> bool:
        return any(part.holds(cell) for part in self.any_of)

    def __str__(self) -> str:
        return " or ".join(str(part) for part in self.any_of)


class Not(Value):
    """True where its part is not."""

    negated: Constraint

    @model_validator(mode="after")
    def _check(self) -> Not:
        _check_levels(self.levels)
        return self

    @cached_property
    def levels(self) -> int:
        """How deeply it is nested."""
        return 1 + self.negated.levels

    def holds(self, cell: Cell) -> bool:
        return not self.negated.holds(cell)

    def __str__(self) -> str:
        return f"not ({self.negated})" if isinstance(self.negated, AllOf | AnyOf) else f"not {self.negated}"


def _check_levels(levels: int) -> None:
    if levels > MAX_DEPTH:
        raise DpcError.of("DPC007", f"a constraint is nested deeper than {MAX_DEPTH}", hint="write it flatter")


def _form(value: Any) -> str | None:
    # Which of the four a value is, so that only that one is tried.
    if isinstance(value, Value):
        return type(value).__name__
    forms = {"measure": "Comparison", "all_of": "AllOf", "any_of": "AnyOf", "negated": "Not"}
    return next((form for key, form in forms.items() if key in value), None) if isinstance(value, dict) else None


Constraint: TypeAlias = Annotated[
    Annotated[Comparison, Tag("Comparison")]
    | Annotated[AllOf, Tag("AllOf")]
    | Annotated[AnyOf, Tag("AnyOf")]
    | Annotated[Not, Tag("Not")],
    Discriminator(_form),
]
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


def size(constraint: Constraint) -> int:
    """Number of comparisons in the constraint."""
    match constraint:
        case AllOf(all_of=parts) | AnyOf(any_of=parts):
            return sum(map(size, parts))
        case Not(negated=part):
            return size(part)
    return 1


def spelled_number(number: int) -> str:
    """``400000`` as ``400K``: the largest suffix that keeps the number whole."""
    for suffix, unit in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number and number % unit == 0:
            return f"{number // unit}{suffix}"
    return str(number)
