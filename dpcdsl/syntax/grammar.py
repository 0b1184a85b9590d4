"""Text to syntax tree, by the grammar in ``grammars/dpc.lark``."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from lark import Lark, Token, Transformer, UnexpectedInput, v_args
from lark.lark import PostLex

from dpcdsl.constraints import MAX_DEPTH
from dpcdsl.errors import Diagnostic, DpcError, Source, Span
from dpcdsl.syntax import tree
from dpcdsl.syntax.mistakes import explain

__all__ = [
    "FLATTER",
    "LONGEST_KEPT",
    "MAX_CHARACTERS",
    "MAX_DEPTH",
    "TOO_DEEP",
    "parse_file",
    "parse_start",
    "parse_tuple",
]

#: Largest text that is read, in characters, unless a caller sets another limit.
MAX_CHARACTERS = 8_000_000
#: What is said against deeper ones, and the remedy.
TOO_DEEP = f"this condition is nested deeper than {MAX_DEPTH}"
FLATTER = "write it flatter, with `and` and `or`"
#: A text may have one word or sign for so many characters of the limit.
CHARACTERS_PER_WORD = 8
#: Longest branch tuple, in characters, whose tree is kept for the next equal one.
LONGEST_KEPT = 100

Start = Literal["file", "branch_tuple", "condition", "measure", "space_reference"]


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    """Builds the tree bottom up while Lark parses, so that no input can exhaust the stack."""

    def file(self, version: Token | None, *items: tree.Item | tree.Statement) -> tree.FileNode:
        if items and isinstance(items[0], tree.FiltersNode | tree.BranchNode | tree.RequireNode):
            bare = tree.CellNode(None, None, cast("tuple[tree.Statement, ...]", items), None)
            return tree.FileNode(version, (bare,))
        return tree.FileNode(version, cast("tuple[tree.Item, ...]", items))

    def version(self, number: Token) -> Token:
        return number

    def import_(self, keyword: Token, source: Token, *names: tuple[Token, Token | None]) -> tree.ImportNode:
        return tree.ImportNode(keyword, source, names)

    def imported(self, name: Token, alias: Token | None) -> tuple[Token, Token | None]:
        return name, alias

    def cell(self, keyword: Token, name: Token, _: Token, *rest: Any) -> tree.CellNode:
        return tree.CellNode(keyword, name, rest[:-1], rest[-1])

    def ops(self, keyword: Token, name: Token, operators: tree.Alternatives) -> tree.OpsNode:
        return tree.OpsNode(keyword, name, operators)

    def space_body(
        self, keyword: Token, name: Token, formals: tuple[tree.Formal, ...] | None, _: Token, *rest: Any
    ) -> tree.SpaceNode:
        return tree.SpaceNode(keyword, name, formals or (), rest[:-1], rest[-1])

    def space_derived(
        self,
        keyword: Token,
        name: Token,
        formals: tuple[tree.Formal, ...] | None,
        base: tree.Reference,
        condition: tree.ConditionNode | None,
    ) -> tree.SpaceNode:
        return tree.SpaceNode(keyword, name, formals or (), base=base, condition=condition)

    def formals(self, *formals: tree.Formal | None) -> tuple[tree.Formal, ...]:
        return tuple(formal for formal in formals if formal)

    def formal(self, name: Token, default: Token | None) -> tree.Formal:
        return tree.Formal(name, default)

    def reference(self, name: Token, arguments: tuple[tuple[Token, Token], ...] | None) -> tree.Reference:
        return tree.Reference(name, arguments or ())

    def actuals(self, *actuals: tuple[Token, Token] | None) -> tuple[tuple[Token, Token], ...]:
        return tuple(actual for actual in actuals if actual)

    def actual(self, name: Token, value: Token) -> tuple[Token, Token]:
        return name, value

    def space_reference(
        self, base: tree.Reference, condition: tree.ConditionNode | None
    ) -> tuple[tree.Reference, tree.ConditionNode | None]:
        return base, condition

    def filters(self, keyword: Token, number: Token) -> tree.FiltersNode:
        return tree.FiltersNode(keyword, number)

    def branch(self, optional: Token | None, times: Token | None, text: Token) -> tree.BranchNode:
        return tree.BranchNode(optional, times, text)

    def require(self, keyword: Token, condition: tree.ConditionNode) -> tree.RequireNode:
        return tree.RequireNode(keyword, condition)

    def condition(self, condition: tree.ConditionNode) -> tree.ConditionNode:
        return condition

    def any_of(self, *parts: tree.ConditionNode) -> tree.ConditionNode:
        if len(parts) == 1:
            return parts[0]
        depth = 1 + max(part.depth for part in parts)
        if depth > MAX_DEPTH:
            return tree.AnyOfNode((_shallow(parts[0]),), depth)
        flat = [p for part in parts for p in (part.parts if isinstance(part, tree.AnyOfNode) else (part,))]
        return tree.AnyOfNode(tuple(flat), depth)

    def all_of(self, *parts: tree.ConditionNode) -> tree.ConditionNode:
        if len(parts) == 1:
            return parts[0]
        depth = 1 + max(part.depth for part in parts)
        if depth > MAX_DEPTH:
            return tree.AllOfNode((_shallow(parts[0]),), depth)
        flat = [p for part in parts for p in (part.parts if isinstance(part, tree.AllOfNode) else (part,))]
        return tree.AllOfNode(tuple(flat), depth)

    def negated(self, keyword: Token, part: tree.ConditionNode) -> tree.NotNode:
        depth = 1 + part.depth
        return tree.NotNode(keyword, part if depth <= MAX_DEPTH else tree.last_comparison(part), depth)

    def comparison(self, measure: tree.MeasureNode, relation: Token, bound: Token) -> tree.ComparisonNode:
        return tree.ComparisonNode(measure, relation, bound)

    def measure(self, name: Token, *arguments: tree.Argument | None) -> tree.MeasureNode:
        return tree.MeasureNode(name, tuple(argument for argument in arguments if argument is not None))

    def keyword(self, name: Token, value: Token) -> tree.KeywordArgument:
        return tree.KeywordArgument(name, value)

    def inline_cell(self, *tuples: Token) -> tree.InlineCell:
        return tree.InlineCell(tuples)

    def argument(self, argument: tree.Argument) -> tree.Argument:
        return argument

    def number(self, token: Token) -> Token:
        return token

    def alternatives(self, *terms: tree.Term) -> tree.Alternatives:
        return tree.Alternatives(terms)

    def term(self, kind: Token, *parameters: tree.ParameterNode) -> tree.Term:
        return tree.Term(kind, parameters)

    def parameter(self, name: Token, height: tree.Axis, width: tree.Axis | None = None) -> tree.ParameterNode:
        return tree.ParameterNode(name, height, width)

    def axis_set(self, opening: Token, *rest: Any) -> tree.AxisSet:
        return tree.AxisSet(opening, rest[:-1], rest[-1])

    def interval(self, first: Token, last: Token | None, step: Token | None = None) -> tree.Interval:
        return tree.Interval(first, last, step)

    def branch_tuple(self, inputs: tuple[tuple[Token, ...], bool], operators: Any, output: Token) -> tree.TupleNode:
        tokens, braced = inputs
        return tree.TupleNode(tokens, braced, operators, output)

    def inputs(self, *tokens: Token) -> tuple[tuple[Token, ...], bool]:
        braced = tokens[0].type == "LBRACE"
        return (tokens[1:-1] if braced else tokens), braced


def _shallow(part: tree.ConditionNode) -> tree.ConditionNode:
    """Of what is nested too deeply to be read, only its depth and its first word are kept."""
    return part.parts[0] if part.depth > MAX_DEPTH and isinstance(part, tree.AnyOfNode | tree.AllOfNode) else part


class _TooManyWords(Exception):  # noqa: N818 (becomes a DpcError where the text is known)
    def __init__(self, token: Token):
        self.token = token


_most_words: ContextVar[int] = ContextVar("most_words")


class _Count(PostLex):
    """Counts what the parser gets to read: a text of single signs takes far more memory than one of words."""

    always_accept = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        most = _most_words.get()
        for number, token in enumerate(stream):
            if number >= most:
                raise _TooManyWords(token)
            yield token


@cache
def _lark() -> Lark:
    packaged = files("dpcdsl") / "grammars" / "dpc.lark"
    path = packaged if packaged.is_file() else Path(__file__).parents[2] / "grammars" / "dpc.lark"
    return Lark(
        path.read_text(encoding="utf-8"),
        parser="lalr",
        start=["file", "branch_tuple", "condition", "measure", "space_reference"],
        maybe_placeholders=True,
        transformer=_Build(),
        postlex=_Count(),
    )


def parse_start(source: Source, start: Start, max_characters: int = MAX_CHARACTERS) -> Any:
    """The syntax tree of ``source`` read as ``start``, or a :class:`DpcError` that says where it goes wrong."""
    if len(source.text) > max_characters:
        raise DpcError.of(
            "DPC004",
            f"the text has {len(source.text)} characters, more than the limit of {max_characters}",
            Span(source, 0, 1),
            hint="split it into several files, or raise the limit (`max_characters`, `--max-characters`)",
        )
    most = max(4000, max_characters // CHARACTERS_PER_WORD)
    limit = _most_words.set(most)
    try:
        return _lark().parse(source.text, start=start)
    except UnexpectedInput as mistake:
        inner = _inside_tuple(source, mistake) if start != "branch_tuple" else None
        found = inner or explain(source, mistake, start)
    except _TooManyWords as mistake:
        at = Span(source, tree.start_of(mistake.token), tree.end_of(mistake.token))
        message = f"the text has more than {most} words and signs"
        found = Diagnostic("DPC004", message, at, "split it into several files, or raise the limit (`max_characters`)")
    finally:
        _most_words.reset(limit)
    raise DpcError([found])  # out here, so that it does not keep all that was parsed


def parse_file(source: Source, max_characters: int = MAX_CHARACTERS) -> tree.FileNode:
    node: tree.FileNode = parse_start(source, "file", max_characters)
    return node


def parse_tuple(text: str) -> tree.TupleNode:
    """The branch tuple ``text``; its places count from the opening parenthesis."""
    return _short_tuple(text) if len(text) <= LONGEST_KEPT else _long_tuple(text)


def _parse_tuple(text: str) -> tree.TupleNode:
    node: tree.TupleNode = parse_start(Source("<tuple>", text), "branch_tuple", len(text))
    return node


_short_tuple = lru_cache(maxsize=1 << 14)(_parse_tuple)
_long_tuple = lru_cache(maxsize=1)(_parse_tuple)  # what reads one asks for it several times in a row


def _inside_tuple(source: Source, mistake: UnexpectedInput) -> Diagnostic | None:
    """A parenthesis that opens no whole tuple: read what follows it as one, to find what is missing."""
    start: int | None = mistake.pos_in_stream
    parser = getattr(mistake, "interactive_parser", None)
    if start is None or parser is None or source.text[start : start + 1] != "(" or "TUPLE" not in parser.accepts():
        return None
    tail = source.text[start : start + 2000]
    try:
        _lark().parse(tail, start="branch_tuple")
    except UnexpectedInput as inner:
        return explain(source, inner, "branch_tuple", base=start)
    return None
