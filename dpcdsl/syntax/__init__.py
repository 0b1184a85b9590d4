"""Text to structure and back.

:func:`parse` and :func:`load` read a text or a file into a :class:`Document`; :func:`parse_cell`, :func:`parse_space`,
:func:`parse_condition` and :func:`parse_measure` read one thing. :func:`format_text` lays a text out,
:func:`format_cell` and :func:`format_space` write values as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from lark import Token

from dpcdsl.cell import Cell
from dpcdsl.constraints import Constraint, Measure
from dpcdsl.errors import DpcError, Source, Span
from dpcdsl.files import read_text
from dpcdsl.space import Space
from dpcdsl.syntax import tree
from dpcdsl.syntax.document import Definition, Document
from dpcdsl.syntax.format import format_cell, format_space, format_text
from dpcdsl.syntax.grammar import MAX_CHARACTERS, MAX_DEPTH, parse_file, parse_start
from dpcdsl.syntax.resolve import (
    LANGUAGE_VERSION,
    is_definable,
    resolve_condition,
    resolve_file,
    resolve_measure,
    resolve_reference,
)

__all__ = [
    "LANGUAGE_VERSION",
    "MAX_CHARACTERS",
    "MAX_DEPTH",
    "Definition",
    "Document",
    "format_cell",
    "format_space",
    "format_text",
    "is_definable",
    "load",
    "parse",
    "parse_cell",
    "parse_condition",
    "parse_measure",
    "parse_space",
    "zoo",
]

#: Longest chain of files that import one another.
_MAX_IMPORTS = 32


def parse(
    text: str, *, name: str = "<text>", folder: Path | None = None, max_characters: int = MAX_CHARACTERS
) -> Document:
    """The validated document of ``text``.

    name: what messages call the text. folder: where the files it imports are looked for (the working directory).
    Raises :class:`DpcError` with every mistake of the text, and nothing else, whatever the text.
    """
    return _parse(Source(name, text), folder or Path(), (), max_characters, {})


def load(path: str | Path, *, max_characters: int = MAX_CHARACTERS) -> Document:
    """The validated document of a UTF-8 file; files it imports are looked for beside it.

    Raises :class:`DpcError`: DPC060 if the file cannot be read, DPC006 if it is not text, else as :func:`parse`.
    """
    path = Path(path)
    return _parse(read_text(path, max_characters), path.parent, (path,), max_characters, {})


def _parse(
    source: Source, folder: Path, chain: tuple[Path, ...], max_characters: int, known: dict[Path, Document | None]
) -> Document:
    """chain: the files on the way to this one. known: every file read so far, None where it has mistakes."""
    here: dict[str, Document | None] = {}  # what this text has imported, as it is written

    def importer(token: Token, span: Span) -> Document | None:
        if token.type == "ZOO":
            return Document(Source("zoo", ""), zoo())
        if token not in here:
            here[str(token)] = None
            here[str(token)] = read(token, span)
        return here[str(token)]

    def read(token: Token, span: Span) -> Document | None:
        path = folder / str(token)[1:-1]
        try:
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise DpcError.of("DPC035", f"{token} is not a path: {error}", span) from None
        resolved_chain = [one.resolve() for one in chain]
        if resolved in resolved_chain:
            way = " → ".join(p.name for p in (*chain[resolved_chain.index(resolved) :], resolved))
            raise DpcError.of("DPC036", f"this import goes round in a circle: {way}", span, hint="take one of them out")
        if len(chain) >= _MAX_IMPORTS:
            raise DpcError.of("DPC036", f"more than {_MAX_IMPORTS} files import one another in a chain", span)
        if resolved in known:
            return known[resolved]
        try:
            text = read_text(path, max_characters)
        except DpcError as error:
            hint = error.diagnostics[0].hint or "a file is looked for from the folder of the text that imports it"
            raise DpcError.of("DPC035", error.diagnostics[0].message, span, hint=hint) from None
        known[resolved] = None
        known[resolved] = _parse(text, path.parent, (*chain, path), max_characters, known)
        return known[resolved]

    return resolve_file(source, parse_file(source, max_characters), importer)


def parse_cell(text: str, *, name: str = "<text>") -> Cell:
    """The only cell of ``text``: a definition, or bare tuples in one line or several.

    >>> parse_cell("(F, sepconv3x3 rate 1x6, Y1) (Y1, conv1x1, _)")
    Cell('(F, sepconv3x3 rate 1x6, Y1) (Y1, conv1x1, Y2)')
    """
    return parse(text, name=name).cell()


def parse_space(text: str, scope: Mapping[str, Definition] | None = None, *, name: str = "<space>") -> Space:
    """A reference such as ``dpc(B=8) where depth <= 3``, its names taken from ``scope`` (default: the zoo)."""
    source = Source(name, text)
    reference, condition = parse_start(source, "space_reference")
    return resolve_reference(source, reference, condition, zoo() if scope is None else scope)


def parse_condition(
    text: str, scope: Mapping[str, Definition] | None = None, *, name: str = "<condition>"
) -> Constraint:
    """A condition such as ``params(F=320) <= 0.4M``, its names taken from ``scope`` (default: the zoo)."""
    source = Source(name, text)
    node = parse_start(source, "condition")
    return resolve_condition(source, node, zoo() if scope is None else scope)


def parse_measure(text: str, scope: Mapping[str, Definition] | None = None, *, name: str = "<measure>") -> Measure:
    """A measure such as ``params(F=320)`` or ``distance(top1)``, its names taken from ``scope`` (default: the zoo)."""
    source = Source(name, text)
    node = parse_start(source, "measure")
    return resolve_measure(source, node, zoo() if scope is None else scope)


@cache
def zoo() -> Mapping[str, Definition]:
    """The published cells, operator sets and spaces that come with the library, by name."""

    def importer(token: Token, span: Span) -> Document:
        raise DpcError.of("DPC035", f"a file of the zoo cannot import {token}", span)

    found: dict[str, Definition] = {}
    for source in _zoo_sources():
        found.update(resolve_file(source, parse_file(source), importer).definitions)
    return found


@cache
def zoo_names() -> frozenset[str]:
    """The names in the zoo, read without their meaning (which may be what is being read)."""
    items = (item for source in _zoo_sources() for item in parse_file(source).items)
    return frozenset(str(item.name) for item in items if not isinstance(item, tree.ImportNode))


def _zoo_sources() -> list[Source]:
    entries = sorted((files("dpcdsl") / "zoo").iterdir(), key=lambda entry: entry.name)
    return [Source(f"zoo/{e.name}", e.read_text(encoding="utf-8")) for e in entries if e.name.endswith(".dpc")]
