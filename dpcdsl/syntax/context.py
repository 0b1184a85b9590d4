"""What every part of reading the tree shares: the text, the names known so far, and the mistakes found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

from lark import Token

from dpcdsl.errors import Diagnostic, DpcError, Source, Span, nearest
from dpcdsl.layers import Size
from dpcdsl.operators import LARGEST_INTEGER
from dpcdsl.syntax import tree
from dpcdsl.syntax.document import Definition

__all__ = ["Budget", "Context", "Enough", "Scope", "Skip", "short"]

#: Most operators, branches and conditions one text may spell out through sets, repetition and derived spaces, all of
#: its definitions together.
_BUDGET = 1 << 18

Scope = Mapping[str, Definition]


class Skip(Exception):  # noqa: N818 (it is no error: the error has been reported)
    """Raised after a mistake has been reported, to leave what depends on it."""


class Enough(Exception):  # noqa: N818
    """Raised where the rest of the text is not worth reading: what has been found says enough."""


class Budget:
    """What a text may still spell out. A space with parameters that it instantiates spends of the same."""

    def __init__(self) -> None:
        self.left = _BUDGET


class Context:
    """One pass over one text. Mistakes are gathered, so that all of them are told together.

    scope: definitions by name, grown as the text is read. offset: where the tuple begins that is being read, whose
    tokens count from there. later: the names that the rest of the text defines.
    """

    def __init__(self, source: Source, scope: Scope, budget: Budget | None = None):
        self.source = source
        self.scope: dict[str, Definition] = dict(scope)
        self.found: list[Diagnostic] = []
        self.more = 0
        self.budget = budget or Budget()
        self.offset = 0  # where the tuple begins that is being read
        self.imported: set[str] = set()
        self.spoiled = False  # by an imported file whose mistakes have been told already
        self.later: Mapping[str, Token] = {}

    def span(self, first: Token, last: Token | None = None) -> Span:
        return Span(self.source, self.offset + tree.start_of(first), self.offset + tree.end_of(last or first))

    def report(self, code: str, message: str, at: Token | Span, hint: str | None = None) -> None:
        if len(self.found) >= DpcError.limit:
            self.more += 1
            if self.more >= DpcError.most_counted:
                raise Enough
            return
        self.found.append(Diagnostic(code, message, at if isinstance(at, Span) else self.span(at), hint))

    def fail(self, code: str, message: str, at: Token | Span, hint: str | None = None) -> NoReturn:
        self.report(code, message, at, hint)
        raise Skip

    def adopt(self, error: DpcError, at: Token | Span) -> None:
        """Report what a value's own check or an imported file has found, here."""
        for d in error.diagnostics:
            self.report(d.code, d.message, d.span or at, d.hint)
        self.more += error.more

    def nearest(self, word: str, candidates: Iterable[str]) -> str | None:
        """What :func:`dpcdsl.errors.nearest` finds, as long as mistakes are still shown."""
        return nearest(word, candidates) if len(self.found) < DpcError.limit else None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whatever has been found inside is raised at the end."""
        with suppress(Enough):
            yield
        if self.found or self.spoiled:
            raise DpcError(self.found, self.more)

    def spend(self, amount: int, at: Token | Span) -> None:
        self.budget.left -= amount
        if self.budget.left < 0:
            self.report(
                "DPC025",
                f"this text spells out more than {_BUDGET} operators, branches and conditions",
                at,
                "split it, or use smaller sets",
            )
            raise Enough

    def lookup(self, name: Token) -> Definition:
        found = self.scope.get(name)
        if found is None:
            later = self.later.get(name)
            if later is not None:
                line = self.source.position(tree.start_of(later))[0]
                self.fail(
                    "DPC031", f"`{name}` is defined only later, in line {line}", name, "move its definition above"
                )
            self.refuse_zoo_name(name)
            near = self.nearest(name, self.scope)
            self.fail(
                "DPC031",
                f"`{short(name)}` is not defined" + (f"; did you mean `{near}`?" if near else ""),
                name,
                "names are defined with `cell`, `ops`, `space` or `from … import`, before they are used",
            )
        if found.value is None and found.template is None:
            raise Skip  # its own definition has been reported
        return found

    def refuse_zoo_name(self, name: Token) -> None:
        """Say where an unknown name could come from, if the zoo has it."""
        from dpcdsl.syntax import zoo_names

        if name in zoo_names():
            self.fail("DPC031", f"`{name}` is not defined here", name, f"write `from zoo import {name}` above")

    def integer(self, token: Token, env: Mapping[str, int], least: int = 1, most: int = LARGEST_INTEGER) -> int:
        """A whole number, or a parameter of the space that stands for one."""
        if token.type != "INT":
            if token not in env:
                near = self.nearest(token, env)
                self.fail(
                    "DPC034",
                    f"`{short(token)}` is not a parameter of this space"
                    + (f"; did you mean `{near}`?" if near else ""),
                    token,
                    "a space names its parameters, as in `space mine(B = 5) { … }`",
                )
            value = env[token]
        else:
            value = int(token) if len(token) <= 40 else most + 1
        if not least <= value <= most:
            shown = short(token) if token.type == "INT" else f"{token} = {value}"
            self.fail("DPC017", f"a whole number from {least} to {most} is wanted here, not {shown}", token)
        return value

    def pair(self, token: Token, least: int = 1) -> Size:
        height, _, width = token.partition("x")
        if len(token) > 40 or not all(least <= int(n) <= LARGEST_INTEGER for n in (height, width)):
            self.fail(
                "DPC017", f"both numbers of a pair are from {least} to {LARGEST_INTEGER}, not {short(token)}", token
            )
        return int(height), int(width)


def short(text: str) -> str:
    """A word for a message, however long it is."""
    return text if len(text) <= 40 else text[:40] + "…"
