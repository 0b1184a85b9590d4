"""Branch tuples: the branches of a cell, and the slots of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NoReturn

from lark import Token

from dpcdsl.cell import DEFAULT_FILTERS, MAX_BRANCHES, MAX_FILTERS, Branch, Cell, tensor_index, tensor_name
from dpcdsl.errors import DpcError, Span
from dpcdsl.operators import Operator, ParameterValue
from dpcdsl.space import OperatorSet, Slot
from dpcdsl.syntax import tree
from dpcdsl.syntax.choices import read_operators
from dpcdsl.syntax.context import Context, Skip, short
from dpcdsl.syntax.document import Definition
from dpcdsl.syntax.grammar import LONGEST_KEPT, parse_tuple

__all__ = ["check_count", "read_cell", "read_filters", "read_slots"]


@lru_cache(maxsize=1 << 16)
def plain_branch(text: str) -> tuple[Branch, int | None] | None:
    """The branch that a tuple without choices stands for, and its output's number; None for anything else.

    Nearly every tuple of a large file is one of these, so each text is worked out once.
    """
    node = parse_tuple(text)
    term = node.operators.terms[0]
    if len(node.operators.terms) > 1 or len(node.inputs) > 1 or node.braced:
        return None
    index = tensor_index(node.inputs[0])
    output = None if node.output == "_" else tensor_index(node.output)
    if index is None or (output is None and node.output != "_"):
        return None
    values: list[tuple[str, ParameterValue]] = []
    for parameter in term.parameters:
        value = parameter.height
        if parameter.width is not None or isinstance(value, tree.AxisSet) or value.type not in ("PAIR", "INT"):
            return None
        numbers = tuple(map(int, value.split("x"))) if len(value) < 24 else ()
        if len(numbers) != (2 if value.type == "PAIR" else 1):
            return None
        values.append((str(parameter.name), numbers if len(numbers) == 2 else numbers[0]))
    try:
        if len(dict(values)) < len(values):
            return None
        return Branch(input=index, operator=Operator(kind=str(term.kind), parameters=tuple(values))), output
    except DpcError:
        return None  # the slow way tells what is wrong, and where


def read_plain(c: Context, token: Token) -> tuple[Branch, int | None] | None:
    spend_reading(c, token)
    if len(token) > LONGEST_KEPT:
        return None
    try:
        return plain_branch(str(token))
    except DpcError as error:
        report_inside(c, error, token)


def spend_reading(c: Context, token: Token) -> None:
    """A tuple so long that it is read anew wherever it stands is paid for by its length."""
    if len(token) > LONGEST_KEPT:
        c.spend(len(token) // 8, token)


def read_tuple(c: Context, token: Token) -> tree.TupleNode:
    try:
        return parse_tuple(str(token))
    except DpcError as error:
        report_inside(c, error, token)


def report_inside(c: Context, error: DpcError, token: Token) -> NoReturn:
    """Report a mistake inside a tuple at its place in the file."""
    start = tree.start_of(token)
    for d in error.diagnostics:
        assert d.span is not None
        end = min(d.span.end, len(token))
        c.report(d.code, d.message, Span(c.source, start + min(d.span.start, len(token) - 1), start + end), d.hint)
    raise Skip


def read_branch(c: Context, token: Token, number: int) -> Branch:
    """A tuple of a cell, the slow way: for what is wrong with it, or unusual."""
    node = read_tuple(c, token)
    c.offset = tree.start_of(token)
    try:
        failed = False
        choice = next((x for x in node.inputs if x == "any"), None)
        if choice is not None or len(node.inputs) > 1:
            c.report(
                "DPC019",
                "a cell names the one input of each branch",
                choice or node.inputs[0],
                "write `F` or an earlier output; choices belong in a `space`",
            )
            failed = True
        source = None
        try:
            source = read_input(c, node.inputs[0], number) if not failed else None
        except Skip:
            failed = True
        operators: OperatorSet | None = None
        try:
            operators = read_operators(c, node.operators, {})
        except Skip:
            failed = True
        if operators is not None and len(operators) > 1:
            c.report(
                "DPC019",
                f"a cell names the one operator of each branch, and this stands for {len(operators)}",
                node.operators.terms[0].kind,
                "choices belong in a `space`",
            )
            failed = True
        read_output(c, node.output, number)
        if failed or operators is None or source is None:
            raise Skip
        return Branch(input=source, operator=operators.operators[0])
    finally:
        c.offset = 0


def read_input(c: Context, token: Token, number: int) -> int:
    index = tensor_index(token)
    earlier = "`F`" if number == 1 else "`F` or `Y1`" if number == 2 else f"`F` or `Y1`..`Y{number - 1}`"
    if index is None:
        near = c.nearest(token, ["F", *(tensor_name(i) for i in range(1, number)), "any"])
        c.fail(
            "DPC010",
            f"`{short(token)}` is not a tensor" + (f"; did you mean `{near}`?" if near else ""),
            token,
            f"branch {number} can read {earlier}",
        )
    if index == number:
        c.fail(
            "DPC011",
            f"branch {number} reads its own output `{token}`",
            token,
            f"branch {number} can read {earlier}",
        )
    if index > number:
        c.fail(
            "DPC011",
            f"`{short(token)}` is not defined yet; did you mean `{tensor_name(number - 1)}`?",
            token,
            f"branch {number} can read {earlier}",
        )
    return index


def read_output(c: Context, token: Token, number: int) -> None:
    if token != "_" and tensor_index(token) != number:
        c.fail(
            "DPC012",
            f"branch {number} writes `Y{number}`, not `{short(token)}`",
            token,
            f"write `Y{number}`, or `_` to number it by itself",
        )


def read_filters(c: Context, node: tree.FiltersNode, known: int | None, env: Mapping[str, int]) -> int:
    if known is not None:
        c.fail("DPC016", "`filters` is given twice", node.keyword, "keep one of them")
    return c.integer(node.number, env, 1, MAX_FILTERS)


def read_cell(c: Context, node: tree.CellNode, at: Span | None = None) -> Definition:
    """The cell of ``node``; ``at`` is where one without a name is told about as a whole."""
    name = node.name
    if at is None:
        at = c.span(name) if name is not None else Span(c.source, 0, 1)
    count = sum(isinstance(statement, tree.BranchNode) for statement in node.statements)
    if count > MAX_BRANCHES:
        check_count(c, count, "cell", at)
    branches: list[Branch] = []
    spans: list[Span] = []
    filters: int | None = None
    failed = False
    for statement in node.statements:
        if isinstance(statement, tree.BranchNode) and statement.optional is None and statement.times is None:
            token = statement.text
            start = tree.start_of(token)
            spans.append(Span(c.source, start, start + len(token)))
            try:
                plain = read_plain(c, token)
                number = len(spans)
                if plain is None or plain[0].input >= number or plain[1] not in (number, None):
                    branches.append(read_branch(c, token, number))
                else:
                    branches.append(plain[0])
            except Skip:
                failed = True
            continue
        try:
            match statement:
                case tree.FiltersNode():
                    filters = read_filters(c, statement, filters, {})
                case tree.RequireNode():
                    c.fail(
                        "DPC019",
                        "a cell leaves nothing open, so it has nothing to require",
                        statement.keyword,
                        "write `space` instead of `cell`",
                    )
                case tree.BranchNode():
                    what = statement.optional or statement.times
                    assert what is not None
                    c.fail(
                        "DPC019",
                        "a cell leaves nothing open",
                        what,
                        "write `space` instead of `cell`, or each branch on its own",
                    )
        except Skip:
            failed = True
    if not failed:
        check_count(c, len(spans), "cell", at)
    if failed:
        raise Skip
    value = Cell(branches=tuple(branches), filters=DEFAULT_FILTERS if filters is None else filters)
    return Definition(str(name or ""), value, at, tuple(spans))


def check_count(c: Context, count: int, noun: str, at: Span) -> None:
    if not count:
        c.fail("DPC020", f"a {noun} needs at least one branch", at, "for example `(F, conv1x1, Y1)`")
    if count > MAX_BRANCHES:
        c.fail("DPC021", f"a {noun} has at most {MAX_BRANCHES} branches, not {count}", at)


def read_slots(c: Context, statement: tree.BranchNode, before: Sequence[Slot], env: Mapping[str, int]) -> list[Slot]:
    number = len(before) + 1
    count = c.integer(statement.times, env, 1) if statement.times is not None else 1
    if number + count - 1 > MAX_BRANCHES:
        at = statement.times if statement.times is not None else statement.text
        c.fail("DPC021", f"a space has at most {MAX_BRANCHES} branches", at, f"this would make {number + count - 1}")
    c.spend(count, statement.text)
    spend_reading(c, statement.text)
    node = read_tuple(c, statement.text)
    c.offset = tree.start_of(statement.text)
    try:
        failed = False
        inputs: tuple[int, ...] | None = None
        operators: OperatorSet | None = None
        try:
            inputs = read_inputs(c, node, number, before)
        except Skip:
            failed = True
        try:
            operators = read_operators(c, node.operators, env)
        except Skip:
            failed = True
        if count > 1 and node.output != "_":
            c.report(
                "DPC012",
                f"{count} branches cannot all write `{short(node.output)}`",
                node.output,
                "write `_` to number them by themselves",
            )
            failed = True
        read_output(c, node.output, number) if count == 1 else None
        if failed or operators is None:
            raise Skip
        return [Slot(inputs=inputs, operators=operators, optional=statement.optional is not None)] * count
    finally:
        c.offset = 0


def read_inputs(c: Context, node: tree.TupleNode, number: int, before: Sequence[Slot]) -> tuple[int, ...] | None:
    if any(token == "any" for token in node.inputs):
        if len(node.inputs) > 1:
            c.fail("DPC016", "`any` already stands for every input", node.inputs[0], "write `any` alone")
        return None
    chosen: dict[int, Token] = {}
    failed = False
    for token in node.inputs:
        try:
            index = read_input(c, token, number)
            if index in chosen:
                c.fail("DPC016", f"`{token}` is listed twice", token, "keep one of them")
            chosen[index] = token
        except Skip:
            failed = True
    if failed:
        raise Skip
    if all(index > 0 and before[index - 1].optional for index in chosen):
        names = " and ".join(f"`{tensor_name(i)}`" for i in chosen)
        first = next(iter(chosen.values()))
        c.fail(
            "DPC022",
            f"this branch can read only {names}, which may be left out",
            first,
            f"let it choose `F` as well: `{{F, {', '.join(chosen.values())}}}`",
        )
    return tuple(sorted(chosen))
