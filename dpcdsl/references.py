"""What a user names on a command line or in a call: a file, a definition in it, the zoo, or the thing itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, Source, nearest
from dpcdsl.files import read_text
from dpcdsl.identity import cell_of_id, is_id, read_id
from dpcdsl.interchange import cell_from_text
from dpcdsl.space import Space
from dpcdsl.syntax import MAX_CHARACTERS, Definition, Document, parse, parse_space, zoo

__all__ = ["Found", "find", "read_cell", "read_space"]

Want = Literal["cell", "space", "either"]

_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Found:
    """A cell or a space, what it is called (empty if it has no name), and the names known where it stands."""

    name: str
    value: Cell | Space
    scope: Mapping[str, Definition] = field(default_factory=zoo, repr=False)


def read_cell(reference: str | Path, *, space: Space | None = None) -> Cell:
    """The cell that ``reference`` names.

    It may be a name of the zoo (``top1``), a file with one cell, ``file.dpc:name``, a JSON file, or a cell itself in
    any of :data:`dpcdsl.interchange.FORMS`: ``(F, conv1x1, Y1) …``, ``[{"kernel": 3, …}]``, ``[0, 12, 1, 3]``,
    ``dpc@0123456789ab:42``. ``space`` is the one a vector or an ID belongs to; an ID may name its own.
    Raises :class:`DpcError`.
    """
    value = find(str(reference), "cell", space=space).value
    assert isinstance(value, Cell)
    return value


def read_space(reference: str | Path) -> Space:
    """The space that ``reference`` names: ``dpc(B=8)``, ``file.dpc:name(B=8) where depth <= 3``, a file with one space.

    A cell counts as the space of size 1. Raises :class:`DpcError`.
    """
    value = find(str(reference), "space").value
    return Space.only(value) if isinstance(value, Cell) else value


def find(
    reference: str,
    want: Want = "either",
    *,
    space: Space | None = None,
    max_characters: int = MAX_CHARACTERS,
    read_stdin: Callable[[], str] | None = None,
) -> Found:
    """What ``reference`` names, as :func:`read_cell` and :func:`read_space` describe.

    ``-`` is the text that ``read_stdin`` returns, where it is given.
    """

    def from_content(source: Source, folder: Path, called: str) -> Found:
        if is_id(source.text):
            return Found(called, _of_id(source.text, space))
        if want != "cell" and source.text.lstrip()[:1] not in ("{", "["):
            document = parse(source.text, name=source.name, folder=folder, max_characters=max_characters)
            return _only(document, want, called)
        cell = cell_from_text(source.text, name=source.name, folder=folder, space=space, max_characters=max_characters)
        return Found(called, cell)

    if is_id(reference):
        return Found("", _of_id(reference, space))
    if reference == "-" and read_stdin is not None:
        return from_content(Source("<stdin>", read_stdin()), Path(), "")
    if reference.lstrip()[:1] in ("(", "[", "{") or re.match(r"\s*filters\s+\d", reference):
        return from_content(Source("<argument>", reference), Path(), "")
    path, name = _split(reference)
    if path is None:
        return _named(Document(Source("zoo", ""), zoo()), reference, want)
    source = read_text(path, max_characters)
    if name is None and path.suffix != ".dpc":
        return from_content(source, path.parent, path.stem)
    document = parse(source.text, name=source.name, folder=path.parent, max_characters=max_characters)
    return _only(document, want, path.stem) if name is None else _named(document, name, want)


def _of_id(text: str, space: Space | None) -> Cell:
    identifier = read_id(text)
    if space is None and not identifier.space:
        raise DpcError.of("DPC073", "the ID does not say which space it belongs to", hint="name the space (`--space`)")
    return cell_of_id(identifier, read_space(identifier.space) if space is None else space)


def _split(reference: str) -> tuple[Path | None, str | None]:
    """A path and the name behind its colon; no path where the reference is a name or an expression of the zoo."""
    file, colon, name = reference.partition(".dpc:")
    if colon:
        return Path(file + ".dpc"), name
    if reference in zoo() or len(reference) > _LONGEST_PATH:
        return None, None
    looks_like_a_file = re.fullmatch(r"[^\s()]+", reference) and re.search(r"[./\\]", reference)
    return (Path(reference), None) if looks_like_a_file or _is_file(reference) else (None, None)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no file has such a name
        return False


def _only(document: Document, want: Want, called: str) -> Found:
    """The one cell or space of a document."""
    cells, spaces = document.cells, [d.name for d in document if d.noun == "space"]
    if want == "cell" or (want == "either" and (cells or not spaces)):
        if want == "either" and spaces:
            names = ", ".join(f"`{name}`" for name in [*cells, *spaces][:12])
            raise DpcError.of("DPC061", f"{document.source.name} defines cells and spaces: {names}", hint="name one")
        value = document.cell()
        return Found(next(iter(cells)) or called, value, document.definitions)
    space = document.space()
    return Found((spaces or list(cells))[0] or called, space, document.definitions)


def _named(document: Document, name: str, want: Want) -> Found:
    if not re.fullmatch(r"\w+", name):
        if want == "cell":
            raise DpcError.of("DPC061", f"`{name[:60]}` is not the name of a cell", hint=_remedy(document, want))
        return Found(name, parse_space(name, document.definitions), document.definitions)
    if name not in document.definitions:
        near = nearest(name, document.definitions)
        what = "cell" if want == "cell" else "space" if want == "space" else "cell or space"
        where = "cell or file" if document.source.name == "zoo" and want == "cell" else what
        raise DpcError.of(
            "DPC061",
            (
                f"there is no {where} `{name[:60]}`"
                if document.source.name == "zoo"
                else f"{document.source.name} does not define `{name[:60]}`"
            )
            + (f"; did you mean `{near}`?" if near else ""),
            hint=_remedy(document, want),
        )
    definition = document[name]
    if isinstance(definition.value, Cell):
        return Found(name, definition.value, document.definitions)
    if want == "cell" or definition.noun == "operator set":
        wanted = "cell" if want == "cell" else "space"
        raise DpcError.of(
            "DPC032", f"`{name}` is the name of {definition.kind}, not of a {wanted}", hint=_remedy(document, want)
        )
    return Found(name, definition.space(), document.definitions)


def _remedy(document: Document, want: Want) -> str:
    nouns = ("cell",) if want == "cell" else ("cell", "space")
    names = ", ".join([f"`{d.name}`" for d in document if d.name and d.noun in nouns][:16])
    if document.source.name != "zoo":
        return f"it defines {names}" if names else "it defines no names"
    return f"name a file, one of the zoo ({names}), or write the cell: '(F, conv1x1, Y1)'"
