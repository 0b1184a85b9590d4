"""IDs: one number for a cell, its rank in a space, written with the space's fingerprint so that it keeps its meaning.

``dpc@6c1f0a9d2b73:19825144575`` is the cell of that rank in the space called ``dpc``. The fingerprint is a hash of all
that the rank depends on; against a space with another one the ID is an error.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import NamedTuple

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, shown
from dpcdsl.layers import Layer
from dpcdsl.operators import Operator
from dpcdsl.space import Space

__all__ = ["RANKING_VERSION", "CellId", "cell_id", "cell_of_id", "fingerprint", "is_id", "read_id"]

#: Version of the order in which genomes are ranked. It is part of every fingerprint.
RANKING_VERSION = 1

_ID = re.compile(r"\s*(?P<space>.*?)\s*@(?P<fingerprint>[0-9a-f]{12}):(?P<rank>[0-9]{1,4000})\s*", re.DOTALL)


class CellId(NamedTuple):
    """An ID, taken apart. space: what the space is called, may be empty. rank: of the genome, from 0."""

    space: str
    fingerprint: str
    rank: int

    def __str__(self) -> str:
        return f"{self.space}@{self.fingerprint}:{self.rank}"


@lru_cache(maxsize=256)
def fingerprint(space: Space) -> str:
    """Twelve hexadecimal digits that change with anything a rank in ``space`` depends on.

    They are taken from a SHA-256 of the space's text in one line, of what its operators stand for (their layers at the
    space's filters), and of :data:`RANKING_VERSION`.
    """
    operators = dict.fromkeys(operator for slot in space.slots for operator in slot.operators.operators)
    parts = [f"ranking {RANKING_VERSION}", str(space), *(_signature(o, space.filters) for o in operators)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _signature(operator: Operator, filters: int) -> str:
    return f"{operator} = {', '.join(map(_spelled, operator.layers(filters)))}"


def _spelled(layer: Layer) -> str:
    # Fields at their defaults are left out, so that a layer can grow a new one without changing any fingerprint.
    defaults = {field.name: field.default for field in fields(layer)}
    names = [*defaults, *(name for name in getattr(layer, "__dict__", ()) if name not in defaults)]
    values = {name: getattr(layer, name) for name in names}
    told = [f"{name}={value!r}" for name, value in values.items() if value != defaults.get(name, MISSING)]
    text = f"{type(layer).__name__}({', '.join(told)})"
    if re.search(r" at 0x[0-9a-fA-F]+>", text):
        raise DpcError.of(
            "DPC065",
            f"{type(layer).__name__} holds a value that is written as an address: {shown(text)}",
            hint="give a layer numbers, text and tuples, so that it is told from others by what it holds",
        )
    return text


def cell_id(cell: Cell, space: Space, name: str = "") -> CellId:
    """The ID of ``cell`` in ``space``; ``name`` is what a reader finds the space by, such as ``dpc(B=8)``.

    Raises :class:`DpcError` (DPC055) if the space does not contain the cell.
    """
    from dpcdsl.enumeration import enumerator  # brings NumPy

    return CellId(name, fingerprint(space), enumerator(space).rank(cell))


def is_id(text: str) -> bool:
    """Whether ``text`` is written as an ID is."""
    return _ID.fullmatch(text) is not None


def read_id(text: str) -> CellId:
    """An ID taken apart, or a :class:`DpcError` (DPC073)."""
    match = _ID.fullmatch(text)
    if match is None:
        raise DpcError.of(
            "DPC073",
            f"`{shown(text)}` is not an ID",
            hint="an ID is SPACE@FINGERPRINT:RANK, such as dpc@0123456789ab:42, the fingerprint of 12 digits 0-9 a-f",
        )
    return CellId(match["space"], match["fingerprint"], int(match["rank"]))


def cell_of_id(identifier: CellId, space: Space) -> Cell:
    """The cell with this ID in ``space``.

    Raises :class:`DpcError`: DPC072 if the space has another fingerprint, DPC071 if the rank is too large.
    """
    if identifier.fingerprint != fingerprint(space):
        raise DpcError.of(
            "DPC072",
            f"the ID was given in a space of fingerprint {identifier.fingerprint}, and this has {fingerprint(space)}",
            hint="name the space it was made in; this one, an operator of it or the order of ranks has changed",
        )
    from dpcdsl.enumeration import enumerator

    return enumerator(space).unrank(identifier.rank)
