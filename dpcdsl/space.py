"""A space of cells: the same list of branch tuples with choices left open. A cell is a space of size 1."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import groupby, product
from typing import Annotated

from pydantic import Field, model_validator

from dpcdsl.cell import DEFAULT_FILTERS, MAX_BRANCHES, Branch, Cell, check_filters, tensor_name
from dpcdsl.constraints import AllOf, Constraint, implies_a_branch
from dpcdsl.errors import DpcError, shown
from dpcdsl.operators import Operator, kind_named
from dpcdsl.values import Value

__all__ = ["MAX_OPERATORS", "OperatorSet", "Slot", "Space", "spelled_operators"]

#: Most operators a set may hold.
MAX_OPERATORS = 65536


class OperatorSet(Value):
    """Operators to choose from, in order and without repetition; the order gives them their numbers."""

    operators: tuple[Operator, ...]

    @classmethod
    def of(cls, operators: Iterable[Operator]) -> OperatorSet:
        """The set of ``operators``; one that is given twice counts once, at its first place."""
        return cls(operators=tuple(dict.fromkeys(operators)))

    @model_validator(mode="after")
    def _check(self) -> OperatorSet:
        if not self.operators:
            raise DpcError.of("DPC025", "an operator set needs at least one operator")
        if len(self.operators) > MAX_OPERATORS:
            raise DpcError.of(
                "DPC025", f"an operator set holds at most {MAX_OPERATORS} operators, not {len(self.operators)}"
            )
        if len(self.index) < len(self.operators):
            raise DpcError.of("DPC016", "an operator set holds an operator twice", hint="use OperatorSet.of(…)")
        return self

    @cached_property
    def index(self) -> dict[Operator, int]:
        """The number of each operator."""
        return {operator: number for number, operator in enumerate(self.operators)}

    def __len__(self) -> int:
        return len(self.operators)

    def __contains__(self, operator: object) -> bool:
        return operator in self.index

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.operators)

    def __str__(self) -> str:
        return spelled_operators(self.operators)

    def __repr__(self) -> str:
        return f"OperatorSet({str(self)!r})"


class Slot(Value):
    """One branch with its choices.

    inputs: the tensors to choose from, by slot number (0 is F), or None for F and every earlier slot.
    optional: the branch may be left out; later branches then cannot choose it.
    """

    inputs: tuple[int, ...] | None
    operators: OperatorSet
    optional: bool = False

    def __str__(self) -> str:
        inputs = "any" if self.inputs is None else ", ".join(map(tensor_name, self.inputs))
        if self.inputs is not None and len(self.inputs) > 1:
            inputs = f"{{{inputs}}}"
        return f"{'optional ' if self.optional else ''}({inputs}, {self.operators}, _)"


class Space(Value):
    """An immutable, validated space of cells.

    Raises :class:`DpcError`: DPC020/DPC021 for none or too many branches, DPC011 for an input that is not earlier,
    DPC022 if a branch may be left with no input, DPC023 if every branch may be left out.
    """

    slots: tuple[Slot, ...]
    filters: Annotated[int, Field(strict=True)] = DEFAULT_FILTERS
    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def only(cls, cell: Cell) -> Space:
        """The space whose one cell is ``cell``."""
        return cls(
            slots=tuple(
                Slot(inputs=(branch.input,), operators=OperatorSet(operators=(branch.operator,)))
                for branch in cell.branches
            ),
            filters=cell.filters,
        )

    @model_validator(mode="after")
    def _check(self) -> Space:
        if not self.slots:
            raise DpcError.of("DPC020", "a space needs at least one branch", hint="for example `(any, conv1x1, _)`")
        if len(self.slots) > MAX_BRANCHES:
            raise DpcError.of("DPC021", f"a space has at most {MAX_BRANCHES} branches, not {len(self.slots)}")
        check_filters(self.filters)
        normal = []
        for number, slot in enumerate(self.slots, 1):
            self._check_inputs(number, slot)
            if slot.inputs is not None and len(slot.inputs) == number:
                slot = Slot(inputs=None, operators=slot.operators, optional=slot.optional)  # noqa: PLW2901
            normal.append(slot)
        if all(slot.optional for slot in self.slots) and not any(map(implies_a_branch, self.constraints)):
            raise DpcError.of(
                "DPC023",
                "every branch of this space may be left out, and a cell needs one",
                hint="add `require branches >= 1`",
            )
        self.__dict__["slots"] = tuple(normal)
        parts = (p for c in self.constraints for p in (c.all_of if isinstance(c, AllOf) else (c,)))
        self.__dict__["constraints"] = tuple(dict.fromkeys(parts))  # one way to write it, one fingerprint
        return self

    def _check_inputs(self, number: int, slot: Slot) -> None:
        place = f"space.slots[{number - 1}].inputs"
        if slot.inputs is None:
            return
        if not slot.inputs or any(
            earlier >= later for earlier, later in zip(slot.inputs, slot.inputs[1:], strict=False)
        ):
            raise DpcError.of("DPC016", "inputs must be in rising order, each once, at least one", place=place)
        if slot.inputs[0] < 0 or slot.inputs[-1] >= number:
            raise DpcError.of("DPC011", f"branch {number} may only choose F or earlier branches", place=place)
        if all(i > 0 and self.slots[i - 1].optional for i in slot.inputs):
            names = " and ".join(f"`{tensor_name(i)}`" for i in slot.inputs)
            raise DpcError.of(
                "DPC022",
                f"branch {number} can read only {names}, which may be left out",
                hint="let it choose `F` as well, as in `{F, " + tensor_name(slot.inputs[0]) + "}`",
                place=place,
            )

    def candidates(self, number: int) -> tuple[int, ...]:
        """Tensors that slot ``number`` (from 1) may choose, by slot number."""
        inputs = self.slots[number - 1].inputs
        return tuple(range(number)) if inputs is None else inputs

    def embed(self, cell: Cell) -> tuple[tuple[int, int] | None, ...] | None:
        """How ``cell`` lies in the slots: (input, operator number) a slot, None for a slot left out.

        Where optional branches allow several ways, the one that leaves out what it can as early as it can, which has
        the lowest rank; None if there is none or a constraint does not hold.
        """
        if cell.filters != self.filters or not all(c.holds(cell) for c in self.constraints):
            return None
        return self._first_way(cell)

    def placed(self, cell: Cell) -> tuple[tuple[int, int] | None, ...]:
        """:meth:`embed`, with a :class:`DpcError` (DPC055) that says why where there is no way."""
        choices = self.embed(cell)
        if choices is None:
            raise DpcError.of(
                "DPC055", f"the cell is not in the space: {_why_not(cell, self)}", hint="name a space that contains it"
            )
        return choices

    def _first_way(self, cell: Cell) -> tuple[tuple[int, int] | None, ...] | None:
        # Depth first over slots, without recursion: each frame is (slots decided, tensor of each branch by slot).
        stack: list[tuple[tuple[tuple[int, int] | None, ...], tuple[int, ...]]] = [((), (0,))]
        # What has failed from one frame fails from every other that leaves the rest of the slots and branches the same
        # choices: as many branches placed in as many slots, and those that are yet to be read open to the same slots.
        failed: set[tuple[int, int, tuple[int, ...]]] = set()
        optional = any(slot.optional for slot in self.slots)
        to_read = _to_read(cell) if optional else []
        while stack:
            chosen, tensors = stack.pop()
            number, branch_number = len(chosen) + 1, len(tensors) - 1
            missing = len(cell) - branch_number
            if missing > len(self.slots) - len(chosen):
                continue
            if number > len(self.slots):
                return chosen
            if optional:
                open_to = tuple(self._readers[tensors[i]] >> len(chosen) for i in to_read[branch_number])
                if (len(chosen), branch_number, open_to) in failed:
                    continue
                failed.add((len(chosen), branch_number, open_to))
            slot = self.slots[number - 1]
            if missing:
                branch = cell.branches[branch_number]
                operator = slot.operators.index.get(branch.operator)
                source = tensors[branch.input]
                if operator is not None and (slot.inputs is None or source in slot.inputs):
                    stack.append(((*chosen, (source, operator)), (*tensors, number)))
            if slot.optional:
                stack.append(((*chosen, None), tensors))  # tried first
        return None

    @cached_property
    def _readers(self) -> tuple[int, ...]:
        """By tensor: the slots that may choose it, as bits."""
        readers = [0] * (len(self.slots) + 1)
        for number in range(1, len(self.slots) + 1):
            for tensor in self.candidates(number):
                readers[tensor] |= 1 << (number - 1)
        return tuple(readers)

    def decode(self, choices: Iterable[tuple[int, int] | None]) -> Cell:
        """The cell of (input, operator number) a slot, None for a slot left out; the inverse of :meth:`embed`.

        Raises :class:`DpcError`: DPC054 if the choices are not among the slots' own, DPC055 if a constraint breaks.
        """
        listed = tuple(choices)
        self.check_choices(listed)
        tensors: dict[int, int] = {0: 0}  # slot number -> branch number
        branches = []
        for number, (slot, choice) in enumerate(zip(self.slots, listed, strict=True), 1):
            if choice is not None:
                branches.append(Branch(input=tensors[choice[0]], operator=slot.operators.operators[choice[1]]))
                tensors[number] = len(branches)
        cell = Cell(branches=tuple(branches), filters=self.filters)
        for constraint in self.constraints:
            if not constraint.holds(cell):
                raise DpcError.of("DPC055", f"the cell breaks `{constraint}`")
        return cell

    def check_choices(self, choices: tuple[tuple[int, int] | None, ...]) -> None:
        """Raise :class:`DpcError` (DPC054) if the choices are not the slots' own. Constraints are not looked at."""
        if len(choices) != len(self.slots):
            raise DpcError.of("DPC054", f"the space has {len(self.slots)} branches, the vector {len(choices)}")
        for number, (slot, choice) in enumerate(zip(self.slots, choices, strict=True), 1):
            if choice is None:
                if not slot.optional:
                    raise DpcError.of("DPC054", f"branch {number} of the space cannot be left out")
                continue
            source, operator = choice
            left_out = 0 < source < number and choices[source - 1] is None
            if left_out or source not in self.candidates(number):
                raise DpcError.of("DPC054", f"branch {number} cannot read tensor {shown(source)}")
            if not 0 <= operator < len(slot.operators):
                raise DpcError.of(
                    "DPC054", f"branch {number} has operators 0 to {len(slot.operators) - 1}, not {shown(operator)}"
                )

    def where(self, *constraints: Constraint) -> Space:
        """The same space with more constraints."""
        return Space(slots=self.slots, filters=self.filters, constraints=(*self.constraints, *constraints))

    def __contains__(self, cell: object) -> bool:
        return isinstance(cell, Cell) and self.embed(cell) is not None

    def __str__(self) -> str:
        """The body of the space in one line."""
        parts = [] if self.filters == DEFAULT_FILTERS else [f"filters {self.filters}"]
        number = 0
        for text, same in groupby(map(str, self.slots)):
            count = len(list(same))
            if count == 1 and number == 0:  # the first branch can read nothing but F
                text = str(self.slots[0].model_copy(update={"inputs": (0,)}))  # noqa: PLW2901
            optional = "optional " if self.slots[number].optional else ""
            parts.append(f"{optional}{count} * {text.removeprefix(optional)}" if count > 1 else text)
            number += count
        parts += [f"require {constraint}" for constraint in self.constraints]
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"Space({str(self)!r})"

    def _repr_svg_(self) -> str | None:
        # The one reach upward of the layers: a notebook shows a space as its diagram.
        from dpcdsl.diagram import draw

        try:
            return draw(self).svg()
        except DpcError:  # no Graphviz: the notebook shows the text instead
            return None


def _why_not(cell: Cell, space: Space) -> str:
    if cell.filters != space.filters:
        return f"it has {cell.filters} filters, the space {space.filters}"
    if len(cell) > len(space.slots):
        return f"it has {len(cell)} branches, the space {len(space.slots)}"
    if not any(slot.optional for slot in space.slots):
        if len(cell) < len(space.slots):
            return f"it has {len(cell)} branches, the space {len(space.slots)}"
        for number, (branch, slot) in enumerate(zip(cell.branches, space.slots, strict=True), 1):
            if branch.operator not in slot.operators:
                return f"`{branch.operator}` is not among the operators of branch {number}"
            if branch.input not in space.candidates(number):
                return f"branch {number} cannot read `{tensor_name(branch.input)}`"
    for constraint in space.constraints:
        if not constraint.holds(cell):
            return f"it breaks `{constraint}`"
    return "no choice of its optional branches gives it"


def _to_read(cell: Cell) -> list[tuple[int, ...]]:
    """By the number of branches placed: those of them, and F, that later branches read."""
    last = {branch.input: number for number, branch in enumerate(cell.branches, 1)}
    return [tuple(i for i in sorted(last) if i <= placed < last[i]) for placed in range(len(cell) + 1)]


def spelled_operators(operators: tuple[Operator, ...]) -> str:
    """Operators as text: each run of one kind as a product of sets where it is one, else singly.

    >>> spelled_operators(tuple(Operator.of("avgpool", grid=(h, w)) for h in (1, 2, 4) for w in (1, 3, 5)))
    'avgpool grid {1, 2, 4} x {1..5 step 2}'
    """
    terms = []
    for kind, run in groupby(operators, key=lambda operator: operator.kind):
        listed = list(run)
        terms.append(_as_product(kind, listed) or " | ".join(map(str, listed)))
    return " | ".join(terms)


def _as_product(kind: str, operators: list[Operator]) -> str | None:
    def flat(operator: Operator) -> tuple[int, ...]:
        return tuple(n for _, value in operator.parameters for n in (value if isinstance(value, tuple) else (value,)))

    values = [flat(operator) for operator in operators]
    axes = [sorted(set(column)) for column in zip(*values, strict=True)]
    count = 1
    for axis in axes:
        count *= len(axis)
    if len(operators) == 1 or count != len(values) or values != list(product(*axes)):
        return None
    sets = iter(map(_spelled_axis, axes))
    words = (
        f"{parameter.name} {next(sets)}" + (f" x {next(sets)}" if parameter.pair else "")
        for parameter in kind_named(kind).parameters
    )
    return " ".join([kind, *words])


def _spelled_axis(values: list[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    parts, start = [], 0
    while start < len(values):
        end = start + 1  # the longest arithmetic run from here; three or more become a range
        while end < len(values) and values[end] - values[end - 1] == values[start + 1] - values[start]:
            end += 1
        if end - start >= 3:
            step = values[start + 1] - values[start]
            parts.append(f"{values[start]}..{values[end - 1]}" + (f" step {step}" if step > 1 else ""))
            start = end
        else:
            parts.append(str(values[start]))
            start += 1
    return f"{{{', '.join(parts)}}}"
