"""The one exception of the library, and how it shows the place, the cause and the remedy.

Every mistake is a :class:`Diagnostic` with a stable code (each code has a paragraph in ``docs/errors.md``).
A :class:`DpcError` carries one or more of them, so that all mistakes of a file arrive together.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

__all__ = ["CODES", "Diagnostic", "DpcError", "Source", "Span", "nearest", "shown"]

#: Every diagnostic code and its title. Codes are never renumbered or reused.
CODES: dict[str, str] = {
    # Reading text
    "DPC001": "unexpected character",
    "DPC002": "unexpected word or sign",
    "DPC003": "the text ends too early",
    "DPC004": "the input is too large",
    "DPC005": "unsupported language version",
    "DPC006": "the input is not text",
    "DPC007": "nested too deeply",
    # Cells and spaces
    "DPC010": "unknown input",
    "DPC011": "an input may refer only to an earlier branch",
    "DPC012": "output out of order",
    "DPC013": "unknown operator",
    "DPC014": "missing parameter",
    "DPC015": "unknown parameter",
    "DPC016": "given twice",
    "DPC017": "value out of range",
    "DPC018": "wrong shape of value",
    "DPC019": "a cell leaves nothing open",
    "DPC020": "no branches",
    "DPC021": "too many branches",
    "DPC022": "a branch may be left with no input",
    "DPC023": "every branch may be left out",
    "DPC024": "a range that runs backward",
    "DPC025": "a set of choices is too large",
    # Names, parameters, imports
    "DPC030": "a name is defined twice",
    "DPC031": "unknown name",
    "DPC032": "a name of another kind",
    "DPC033": "reserved name",
    "DPC034": "unknown or missing space parameter",
    "DPC035": "an import cannot be read",
    "DPC036": "an import goes round in a circle",
    "DPC037": "the imported file does not define the name",
    # Constraints
    "DPC040": "unknown measure",
    "DPC041": "wrong argument of a measure",
    "DPC042": "not a whole number",
    # Interchange
    "DPC050": "not valid JSON",
    "DPC051": "not a DeepLab cell",
    "DPC052": "DeepLab JSON cannot hold this cell",
    "DPC053": "not a cell in JSON",
    "DPC054": "not a vector of this space",
    "DPC055": "the space does not contain this cell",
    # Files, settings and the outside world
    "DPC060": "a file cannot be read or written",
    "DPC061": "no such cell or space",
    "DPC062": "wrong setting",
    "DPC063": "cannot be drawn",
    "DPC064": "cannot be compiled",
    "DPC065": "an operator cannot be registered",
    "DPC066": "weights do not fit the cell",
    # Counting, ranks, samples
    "DPC070": "too large for an exact answer",
    "DPC071": "not a rank of this space",
    "DPC072": "the ID belongs to another space",
    "DPC073": "not an ID",
    "DPC074": "fewer cells than were asked for",
    # Native kernels
    "DPC080": "the native kernels cannot be used",
    # Segmentation
    "DPC090": "no such backbone",
    "DPC091": "weights do not fit the backbone",
    "DPC092": "a label map does not fit the classes",
    "DPC093": "a data set is not whole",
    "DPC094": "an image cannot be read",
    "DPC095": "a checkpoint cannot be used",
    "DPC096": "training has stopped",
    "DPC097": "a cache of features cannot be used",
    "DPC098": "a study cannot be used",
    "DPC099": "a search has stopped",
}

_WINDOW = 100  # characters of a source line shown around the caret
_LONGEST = 500  # characters of a message that are kept


@dataclass(frozen=True)
class Source:
    """A text and the name it is reported under (a path, ``<stdin>``, ``<text>``)."""

    name: str
    text: str = field(repr=False)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of a character offset."""
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        start = self._line_starts[number - 1]
        end = self._line_starts[number] - 1 if number < len(self._line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a source."""

    source: Source
    start: int
    end: int

    @property
    def position(self) -> tuple[int, int]:
        return self.source.position(self.start)

    def __str__(self) -> str:
        line, column = self.position
        return f"{self.source.name}:{line}:{column}"


@dataclass(frozen=True)
class Diagnostic:
    """One mistake: a code of :data:`CODES`, what is wrong, where, and what to do about it.

    ``place`` names the spot where there is no text to point into (``branches[2].input``, an option of the
    command line); ``hint`` is the remedy.
    """

    code: str
    message: str
    span: Span | None = None
    hint: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code
        # Whatever of the input is quoted in them: one line each, and not a long one.
        for name in ("message", "hint", "place"):
            text = getattr(self, name)
            if text is not None and (len(text) > _LONGEST or not text.isprintable()):
                cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
                object.__setattr__(self, name, _printable(cut))

    def __str__(self) -> str:
        where = str(self.span) if self.span else self.place
        head = f"{where}: error: {self.message} [{self.code}]" if where else f"error: {self.message} [{self.code}]"
        lines = [head]
        if self.span:
            lines += _excerpt(self.span)
        if self.hint:
            lines.append(f"    help: {self.hint}")
        return "\n".join(lines)


def _excerpt(span: Span) -> list[str]:
    number, column = span.position
    line = span.source.line(number)
    start = column - 1
    width = max(1, min(span.end - span.start, len(line) - start))
    if len(line) > _WINDOW:  # a window around the caret, so that a line of megabytes stays readable
        cut = max(0, min(start - _WINDOW // 3, len(line) - _WINDOW))
        line, start = line[cut : cut + _WINDOW], start - cut
        width = max(1, min(width, _WINDOW - start))
        line = ("…" if cut else "") + line
        start += bool(cut)
    shown = _printable(line, "\t")
    lead = "".join("\t" if c == "\t" else " " for c in shown[:start])
    gutter = f"{number:>5} | "
    return [gutter + shown, " " * 5 + " | " + lead + "^" * width]


def _printable(text: str, *also: str) -> str:
    # One printable character for each character, so that a caret stays below its target.
    return "".join(c if c.isprintable() or c in also else "\N{REPLACEMENT CHARACTER}" for c in text)


class DpcError(Exception):
    """Everything this library has to say against an input: one or more diagnostics.

    ``str(error)`` shows them all, each as ``file:line:column: error: message [code]`` with the line, a caret and,
    where there is one, the remedy.
    """

    #: More mistakes than this in one input are counted, not shown.
    limit = 100
    #: Where so many more have been counted, the rest of the input is not read.
    most_counted = 1000

    def __init__(self, diagnostics: Iterable[Diagnostic], more: int = 0):
        found = tuple(diagnostics)
        self.diagnostics = found[: self.limit]
        self.more = more + len(found) - len(self.diagnostics)
        super().__init__(self.diagnostics, self.more)

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        hint: str | None = None,
        place: str | None = None,
    ) -> DpcError:
        """An error with one diagnostic."""
        return cls([Diagnostic(code, message, span, hint, place)])

    def within(self, place: str | None = None, span: Span | None = None) -> DpcError:
        """The same error, told at ``place`` or ``span`` where a diagnostic does not name one of its own."""
        return DpcError(
            (
                d
                if d.span
                else Diagnostic(d.code, d.message, span, d.hint, ": ".join(p for p in (place, d.place) if p) or None)
                for d in self.diagnostics
            ),
            self.more,
        )

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(d.code for d in self.diagnostics)

    def __str__(self) -> str:
        shown = [str(d) for d in self.diagnostics]
        if self.more:
            count = f"{self.more} or more" if self.more >= self.most_counted else f"{self.more} more"
            shown.append(f"error: {count} mistakes are not shown; mend these first")
        return "\n".join(shown)

    def __reduce__(self) -> tuple[type[DpcError], tuple[tuple[Diagnostic, ...], int]]:
        return type(self), (self.diagnostics, self.more)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like ``word``, or None where none is near."""
    if len(word) > 64:  # the comparison is quadratic, and nobody mistypes this much
        return None
    pool = list(islice(candidates, 1000))
    folded = {c.lower(): c for c in reversed(pool)}
    if word.lower() in folded:
        return folded[word.lower()]
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def shown(value: object) -> str:
    """Any value for a message: short, on one line, and never an exception of its own."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists in lists in lists
        text = "one that large"
    return text if len(text) <= 60 else text[:60] + "…"
