"""A cell as named choices, which every optimizer can vary: an input and an operator for each branch of the space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from dpcdsl.cell import Cell
from dpcdsl.enumeration import Enumerator, enumerator
from dpcdsl.errors import DpcError
from dpcdsl.space import Space

__all__ = ["LEFT_OUT", "Genes"]

LEFT_OUT = -1


class Genes:
    """The genes of a space: ``Y2.input`` is the number of a tensor (0 is F), ``Y2.operator`` that of an operator.

    choices: the values of each gene that has more than one. The operator of an optional branch may be
    :data:`LEFT_OUT`, and then its input says nothing.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._all: dict[str, tuple[int, ...]] = {}
        for number, slot in enumerate(space.slots, 1):
            operators = tuple(range(len(slot.operators)))
            self._all[f"Y{number}.input"] = space.candidates(number)
            self._all[f"Y{number}.operator"] = (LEFT_OUT, *operators) if slot.optional else operators
        self.choices = {name: values for name, values in self._all.items() if len(values) > 1}

    @cached_property
    def cells(self) -> Enumerator:
        """The genomes of the space. Raises :class:`DpcError`: DPC070 if it is too large, DPC074 if it is empty."""
        cells = enumerator(self.space)
        if not cells.count:
            raise cells.empty()
        return cells

    def of(self, cell: Cell) -> dict[str, int]:
        """The values of ``cell``. Raises :class:`DpcError` (DPC055) if it is not in the space."""
        found: dict[str, int] = {}
        for number, choice in enumerate(self.space.placed(cell), 1):
            source, operator = choice if choice is not None else (self._all[f"Y{number}.input"][0], LEFT_OUT)
            found |= {f"Y{number}.input": source, f"Y{number}.operator": operator}
        return {name: found[name] for name in self.choices}

    def rank(self, values: Mapping[str, Any]) -> int:
        """The rank of the genome with these values; where the space has none, of the next one in order.

        The next one shares the longest possible beginning; after the last one comes the first. So every choice of
        values stands for a cell of the space, whatever its constraints are. Raises :class:`DpcError` (DPC054) if a
        value is missing, or is none of the gene's.
        """
        vector: list[int] = []
        for number in range(1, len(self.space.slots) + 1):
            source, operator = (self._value(f"Y{number}.{part}", values) for part in ("input", "operator"))
            vector += (LEFT_OUT, LEFT_OUT) if operator == LEFT_OUT else (source, operator)
        low, high = 0, self.cells.count
        while low < high:  # the lowest rank whose vector is not before this one
            middle = (low + high) // 2
            if self._vector(middle) < vector:
                low = middle + 1
            else:
                high = middle
        return low % self.cells.count

    def _value(self, name: str, values: Mapping[str, Any]) -> int:
        choices = self._all[name]
        if len(choices) == 1:
            return choices[0]
        if values.get(name) not in choices:
            raise DpcError.of("DPC054", f"{name} is {values.get(name)!r}, which is none of its {len(choices)} values")
        return int(values[name])

    def _vector(self, rank: int) -> list[int]:
        found: list[int] = []
        for choice in self.cells.choices(rank):
            found += choice or (LEFT_OUT, LEFT_OUT)
        return found
