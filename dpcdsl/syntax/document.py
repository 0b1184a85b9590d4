"""What a file defines: cells, operator sets and spaces by name, each with its place in the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, Source, Span, nearest
from dpcdsl.space import OperatorSet, Space

if TYPE_CHECKING:
    from dpcdsl.syntax.resolve import Template

__all__ = ["Definition", "Document"]


@dataclass(frozen=True)
class Definition:
    """A named value and where it stands.

    value: a :class:`Cell`, an :class:`OperatorSet`, or a :class:`Space` with its parameters at their defaults (None
        if one has no default).
    span: the name in the text. branch_spans: the branch tuples of a cell, in order.
    """

    name: str
    value: Cell | OperatorSet | Space | None
    span: Span
    branch_spans: tuple[Span, ...] = ()
    template: Template | None = field(default=None, repr=False)

    @property
    def noun(self) -> str:
        if isinstance(self.value, Cell):
            return "cell"
        return "operator set" if isinstance(self.value, OperatorSet) else "space"

    @property
    def kind(self) -> str:
        """The noun with its article, for messages."""
        return f"an {self.noun}" if self.noun.startswith("o") else f"a {self.noun}"

    @property
    def parameters(self) -> Mapping[str, int | None]:
        """The parameters of a space and their defaults."""
        return self.template.parameters if self.template else {}

    def space(self, /, **parameters: int) -> Space:
        """The space with some of its parameters set; a cell is the space that holds only it.

        Raises :class:`DpcError`: DPC034 for unknown or missing parameters, DPC032 for an operator set.
        """
        if isinstance(self.value, Cell) and not parameters:
            return Space.only(self.value)
        if self.template is None:
            raise DpcError.of(
                "DPC032",
                f"`{self.name}` is the name of {self.kind}, not of a space"
                + (" with parameters" if isinstance(self.value, Cell) else ""),
            )
        if isinstance(self.value, Space) and not parameters:
            return self.value
        return self.template.instantiate(self.name, parameters)


@dataclass(frozen=True)
class Document:
    """A parsed and validated text. ``definitions`` are its own, in order; imported names are not among them.

    A text of bare branch tuples defines one cell, under the name ``""``.
    """

    source: Source
    definitions: Mapping[str, Definition]

    def __getitem__(self, name: str) -> Definition:
        """The definition, or a :class:`DpcError` (DPC061) with the nearest name."""
        found = self.definitions.get(name)
        if found is None:
            near = nearest(name, self.definitions)
            raise DpcError.of(
                "DPC061",
                f"{self.source.name} does not define `{name[:60]}`" + (f"; did you mean `{near}`?" if near else ""),
                hint=self._contents(),
            )
        return found

    @property
    def _start(self) -> Span:
        return Span(self.source, 0, 1)

    def _contents(self) -> str:
        names = [f"`{name}`" for name in self.definitions if name]
        shown = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        return f"name one of {shown}" if names else "write `cell NAME { (F, conv1x1, Y1) }`"

    @property
    def cells(self) -> Mapping[str, Cell]:
        return {name: d.value for name, d in self.definitions.items() if isinstance(d.value, Cell)}

    @property
    def spaces(self) -> Mapping[str, Space]:
        """Spaces with their parameters at the defaults."""
        return {name: d.value for name, d in self.definitions.items() if isinstance(d.value, Space)}

    @property
    def operator_sets(self) -> Mapping[str, OperatorSet]:
        return {name: d.value for name, d in self.definitions.items() if isinstance(d.value, OperatorSet)}

    def cell(self, name: str | None = None) -> Cell:
        """The cell ``name``, or the only cell of the text."""
        if name is None:
            cells = self.cells
            if len(cells) != 1:
                what = "no cell" if not cells else f"{len(cells)} cells, and one is wanted"
                raise DpcError.of("DPC061", f"this defines {what}", self._start, hint=self._contents())
            return next(iter(cells.values()))
        value = self[name].value
        if not isinstance(value, Cell):
            raise DpcError.of("DPC032", f"`{name}` is the name of {self[name].kind}, not of a cell")
        return value

    def space(self, name: str | None = None, /, **parameters: int) -> Space:
        """The space ``name`` with its parameters, or the only space of the text (else its only cell)."""
        if name is None:
            spaces = [n for n, d in self.definitions.items() if d.noun == "space"]
            names = spaces or list(self.cells)
            if not names:
                raise DpcError.of("DPC061", "this defines no space", self._start, hint=self._contents())
            if len(names) > 1:
                listed = ", ".join(f"`{n}`" for n in names[:16])
                what = f"{len(names)} {'spaces' if spaces else 'cells'}, and one is wanted"
                raise DpcError.of("DPC061", f"this defines {what}", self._start, hint=f"name one of {listed}")
            name = names[0]
        return self[name].space(**parameters)

    def __iter__(self) -> Iterator[Definition]:
        return iter(self.definitions.values())

    def __len__(self) -> int:
        return len(self.definitions)
