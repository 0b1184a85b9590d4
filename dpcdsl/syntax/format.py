"""The one layout of the language. Formatting twice changes nothing more, and no comment is lost.

A comment on a line of its own stays above what it stood above; one at the end of a line stays at the end of that line;
one in the middle of a tuple or a condition moves above it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lark import Token

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, Source, Span
from dpcdsl.space import Space
from dpcdsl.syntax import tree
from dpcdsl.syntax.grammar import FLATTER, MAX_CHARACTERS, MAX_DEPTH, TOO_DEEP, parse_file, parse_tuple

__all__ = ["format_cell", "format_space", "format_text"]

_WIDTH = 100
_BLANKS = re.compile(r"[ \t]*")
# What stands between words, comments among it, up to a sign or the last closing parenthesis. Possessive, for memory.
_TO_BRACE = re.compile(r"(?:[^{#]++|#[^\n]*+)*+")
_TO_PARENTHESIS = re.compile(r"(?:[^)#]++|#[^\n]*+)*+")
_CLOSING = re.compile(r"(?:(?:\s++|#[^\n]*+)*+\))*+")


def format_text(text: str, *, name: str = "<text>", max_characters: int = MAX_CHARACTERS) -> str:
    """``text`` in its one layout. Raises :class:`DpcError` if it does not fit the grammar."""
    source = Source(name, text)
    node = parse_file(source, max_characters)
    for condition in tree.conditions_of(node):
        if condition.depth > MAX_DEPTH:
            word = tree.first_word(condition)
            raise DpcError.of("DPC007", TOO_DEEP, Span(source, tree.start_of(word), tree.end_of(word)), hint=FLATTER)
    return _Printer(text).file(node)


def format_cell(cell: Cell, name: str | None = None) -> str:
    """A cell as text: a definition if it has a name, else its bare tuples, a line each."""
    return format_text(str(cell) if name is None else f"cell {name} {{ {cell} }}")


def format_space(space: Space, name: str) -> str:
    """A space as the text of a definition, with its operator sets written out."""
    return format_text(f"space {name} {{ {space} }}")


class _Printer:
    def __init__(self, text: str):
        self.text = text
        # Strings are skipped, so that a `#` inside a file name is none.
        found = re.finditer(r'"[^"\n]*"|#[^\n]*', text)
        self.comments = [(m.start(), m.end(), m.group().rstrip()) for m in found if m.group()[0] == "#"]
        self.next = 0
        self.lines: list[str] = []
        self.done = 0  # how far into the text everything has been printed

    # Lines, comments, blank lines

    def put(self, start: int, end: int, lines: Sequence[str], indent: str, apart: bool = False) -> None:
        """Print what stands at text[start:end], after the comments before it and before the one behind it."""
        self.comments_before(end, indent)
        self.gap(start, apart)
        self.lines += [indent + line if line else line for line in lines]
        self.done = end
        self.trailing(end)

    def gap(self, start: int, apart: bool = False) -> None:
        """At most one blank line where the text has some (or ``apart`` asks for one), none at the start of a body."""
        if not self.lines or not self.lines[-1] or self.lines[-1].lstrip().partition("#")[0].rstrip().endswith("{"):
            return
        before = self.lines[-1].lstrip().startswith("#")
        blank = re.search(r"\n[ \t\r]*\n", self.text[self.done : start]) is not None
        if blank or (apart and not before):
            self.lines.append("")

    def comments_before(self, offset: int, indent: str, apart: bool = False) -> None:
        while self.next < len(self.comments) and self.comments[self.next][0] < offset:
            start, end, comment = self.comments[self.next]
            self.gap(start, apart)
            apart = False
            self.lines.append(indent + comment)
            self.done = max(self.done, end)
            self.next += 1

    def trailing(self, end: int) -> None:
        if self.next < len(self.comments):
            start, stop, comment = self.comments[self.next]
            if start >= end and _BLANKS.fullmatch(self.text, end, start):
                self.lines[-1] += "  " + comment
                self.done = stop
                self.next += 1

    # Files and items

    def file(self, node: tree.FileNode) -> str:
        if node.version is not None:
            self.put(tree.start_of(node.version), tree.end_of(node.version), [f"dpc {node.version}"], "")
        previous: tree.Item | None = None
        for item in node.items:
            apart = previous is not None or node.version is not None
            if isinstance(item, tree.ImportNode) and isinstance(previous, tree.ImportNode):
                apart = False
            if _one_line(item) and _one_line(previous) and type(item) is type(previous):
                apart = False
            self.item(item, apart)
            previous = item
        self.comments_before(len(self.text) + 1, "")
        while self.lines and not self.lines[-1]:
            self.lines.pop()
        return "".join(line + "\n" for line in self.lines)

    def item(self, item: tree.Item, apart: bool) -> None:
        match item:
            case tree.ImportNode(keyword=keyword, source=source, names=names):
                listed = ", ".join(f"{n} as {alias}" if alias else str(n) for n, alias in names)
                last = names[-1][1] or names[-1][0]
                self.start_item(tree.start_of(keyword), apart)
                self.put(tree.start_of(keyword), tree.end_of(last), [f"from {source} import {listed}"], "")
            case tree.OpsNode():
                self.ops(item, apart)
            case tree.CellNode(keyword=None):
                self.body(item.statements, "", aligned=True)
            case tree.CellNode():
                assert item.keyword is not None
                assert item.name is not None
                self.block(item.keyword, item.name, f"cell {item.name} {{", item, apart, aligned=True)
            case tree.SpaceNode(base=None):
                head = f"space {item.name}{_formals(item)} {{"
                self.block(item.keyword, item.name, head, item, apart, aligned=False)
            case tree.SpaceNode():
                self.derived(item, apart)

    def start_item(self, start: int, apart: bool) -> None:
        self.comments_before(start, "", apart)
        self.gap(start, apart)

    def block(
        self,
        keyword: Token,
        name: Token,
        head: str,
        node: tree.CellNode | tree.SpaceNode,
        apart: bool,
        aligned: bool,
    ) -> None:
        assert node.closing is not None
        self.start_item(tree.start_of(keyword), apart)
        brace = self.opening(tree.end_of(name))
        self.comments_before(brace, "")
        self.lines.append(head)
        self.done = brace + 1
        self.trailing(brace + 1)
        self.body(node.statements, "  ", aligned)
        self.comments_before(tree.start_of(node.closing), "  ")
        while not self.lines[-1]:
            self.lines.pop()
        self.lines.append("}")
        self.done = tree.end_of(node.closing)
        self.trailing(self.done)

    def opening(self, offset: int) -> int:
        """Where the brace is that opens a body, past comments."""
        match = _TO_BRACE.match(self.text, offset)
        assert match is not None
        return match.end()

    def ops(self, node: tree.OpsNode, apart: bool) -> None:
        start, terms = tree.start_of(node.keyword), node.operators.terms
        self.start_item(start, apart)
        end = terms[-1].end
        written = [_term(term) for term in terms]
        line = f"ops {node.name} = " + " | ".join(written)
        # Comments behind the first operator stay between the lines; earlier ones move above.
        inside = any(terms[0].end <= start < end for start, _, _ in self.comments[self.next :])
        if len(line) <= _WIDTH - 20 and not inside:
            self.put(start, end, [line], "")
            return
        lead = f"ops {node.name} "
        self.comments_before(tree.start_of(terms[0].kind), "")
        for number, (term, text) in enumerate(zip(terms, written, strict=True)):
            indent = "" if number == 0 else " " * len(lead)
            self.comments_before(tree.start_of(term.kind), indent)
            self.done = tree.start_of(term.kind)  # no blank lines inside
            self.put(self.done, term.end, [f"{lead}= {text}" if number == 0 else f"| {text}"], indent)

    def derived(self, node: tree.SpaceNode, apart: bool) -> None:
        assert node.base is not None
        start = tree.start_of(node.keyword)
        end = tree.end_of(node.base.name)
        if node.base.arguments:
            end = self.after_parenthesis(tree.end_of(node.base.arguments[-1][1]))
        elif re.compile(r"\s*\(\s*\)").match(self.text, end):
            end = self.after_parenthesis(end)
        head = f"space {node.name}{_formals(node)} = {_reference(node.base)}"
        lines = [head]
        if node.condition is not None:
            end = self.condition_end(node.condition, end)
            where = f"where {_condition(node.condition)}"
            lines = [f"{head} {where}"] if len(head) + len(where) < _WIDTH else [head, f"  {where}"]
        self.start_item(start, apart)
        self.put(start, end, lines, "")

    def after_parenthesis(self, offset: int) -> int:
        """Just behind the next closing parenthesis that is not in a comment."""
        match = _TO_PARENTHESIS.match(self.text, offset)
        assert match is not None
        return match.end() + 1

    def condition_end(self, node: tree.ConditionNode, offset: int) -> int:
        """Where a condition ends: behind its last number and the parentheses that close after it."""
        closing = _CLOSING.match(self.text, tree.end_of(tree.last_comparison(node).bound))
        assert closing is not None
        return max(offset, closing.end())

    # Bodies

    def body(self, statements: Sequence[tree.Statement], indent: str, aligned: bool) -> None:
        layout = _aligned(statements) if aligned else _plain
        for statement in statements:
            match statement:
                case tree.FiltersNode(keyword=keyword, number=number):
                    self.put(tree.start_of(keyword), tree.end_of(number), [f"filters {number}"], indent)
                case tree.RequireNode(keyword=keyword, condition=condition):
                    end = self.condition_end(condition, 0)
                    self.put(tree.start_of(keyword), end, [f"require {_condition(condition)}"], indent)
                case tree.BranchNode():
                    first = statement.optional or statement.times or statement.text
                    prefix = "optional " if statement.optional is not None else ""
                    prefix += f"{statement.times} * " if statement.times is not None else ""
                    lines = layout(parse_tuple(str(statement.text)), prefix)
                    self.put(tree.start_of(first), tree.end_of(statement.text), lines, indent)


def _one_line(item: tree.Item | None) -> bool:
    return isinstance(item, tree.ImportNode | tree.OpsNode) or (
        isinstance(item, tree.SpaceNode) and item.base is not None
    )


def _formals(node: tree.SpaceNode) -> str:
    if not node.formals:
        return ""
    return "(" + ", ".join(f"{f.name} = {f.default}" if f.default else str(f.name) for f in node.formals) + ")"


def _reference(reference: tree.Reference) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in reference.arguments)
    return f"{reference.name}({arguments})" if arguments else str(reference.name)


def _inputs(node: tree.TupleNode) -> str:
    listed = ", ".join(node.inputs)
    return f"{{{listed}}}" if node.braced and len(node.inputs) > 1 else listed


def _plain(node: tree.TupleNode, prefix: str) -> list[str]:
    written = [_term(term) for term in node.operators.terms]
    line = f"{prefix}({_inputs(node)}, {' | '.join(written)}, {node.output})"
    if len(line) <= _WIDTH or len(written) == 1:
        return [line]
    hang = " " * (len(prefix) + 1)
    middle = [hang + ("| " if i else "  ") + text for i, text in enumerate(written)]
    return [f"{prefix}({_inputs(node)},", *middle[:-1], middle[-1] + ",", f"{hang}{node.output})"]


def _aligned(statements: Sequence[tree.Statement]) -> Callable[[tree.TupleNode, str], list[str]]:
    """A layout of one line a tuple, with the parts of all tuples below one another."""
    nodes = [parse_tuple(str(s.text)) for s in statements if isinstance(s, tree.BranchNode)]
    rows = [(_inputs(n), " | ".join(map(_term, n.operators.terms))) for n in nodes]
    wide = max((len(x) for x, _ in rows), default=0)
    broad = max((len(op) for _, op in rows), default=0)
    if wide + broad > _WIDTH - 20:
        return _plain

    def layout(node: tree.TupleNode, prefix: str) -> list[str]:
        operators = " | ".join(map(_term, node.operators.terms))
        return [f"{prefix}({_inputs(node) + ',':<{wide + 1}} {operators + ',':<{broad + 1}} {node.output})"]

    return layout


def _term(term: tree.Term) -> str:
    return " ".join([str(term.kind), *map(_parameter, term.parameters)])


def _parameter(node: tree.ParameterNode) -> str:
    if node.width is None:
        return f"{node.name} {_axis(node.height)}"
    if isinstance(node.height, Token) and isinstance(node.width, Token):
        numbers = node.height.type == node.width.type == "INT"
        return f"{node.name} {node.height}x{node.width}" if numbers else f"{node.name} {node.height} x {node.width}"
    return f"{node.name} {_axis(node.height)} x {_axis(node.width)}"


def _axis(axis: tree.Axis) -> str:
    if isinstance(axis, Token):
        return str(axis)
    parts = []
    for interval in axis.intervals:
        text = str(interval.first)
        if interval.last is not None:
            text += f"..{interval.last}" + (f" step {interval.step}" if interval.step is not None else "")
        parts.append(text)
    return f"{{{', '.join(parts)}}}"


def _condition(node: tree.ConditionNode) -> str:
    match node:
        case tree.AnyOfNode(parts=parts):
            return " or ".join(map(_condition, parts))
        case tree.AllOfNode(parts=parts):
            return " and ".join(f"({_condition(p)})" if isinstance(p, tree.AnyOfNode) else _condition(p) for p in parts)
        case tree.NotNode(part=part):
            inner = _condition(part)
            return f"not ({inner})" if isinstance(part, tree.AnyOfNode | tree.AllOfNode) else f"not {inner}"
        case tree.ComparisonNode(measure=measure, relation=relation, bound=bound):
            return f"{_measure(measure)} {relation} {bound}"


def _measure(node: tree.MeasureNode) -> str:
    if not node.arguments:
        return str(node.name)
    written = []
    for argument in node.arguments:
        match argument:
            case tree.KeywordArgument(name=name, value=value):
                written.append(f"{name}={value}")
            case tree.Alternatives(terms=terms):
                written.append(" | ".join(map(_term, terms)))
            case tree.InlineCell(tuples=tuples):
                written.append(" ".join(_plain_line(parse_tuple(str(t))) for t in tuples))
    return f"{node.name}({', '.join(written)})"


def _plain_line(node: tree.TupleNode) -> str:
    return f"({_inputs(node)}, {' | '.join(map(_term, node.operators.terms))}, {node.output})"
