"""Operators and sets of them: ``sepconv3x3 rate {1, 3..21 step 3} x {6} | conv1x1``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import chain, product

from lark import Token

from dpcdsl.operators import Operator, OperatorKind, ParameterValue, kind_named, kinds, missing_parameter
from dpcdsl.space import MAX_OPERATORS, OperatorSet
from dpcdsl.syntax import tree
from dpcdsl.syntax.context import Context, Skip, short
from dpcdsl.syntax.document import Definition

__all__ = ["read_operators"]


def read_axis(c: Context, axis: tree.Axis, env: Mapping[str, int], least: int) -> list[int]:
    if isinstance(axis, Token):
        return [c.integer(axis, env, least)]
    values: dict[int, None] = {}
    for interval in axis.intervals:
        first = c.integer(interval.first, env, least)
        if interval.last is None:
            values[first] = None
            continue
        last = c.integer(interval.last, env, least)
        step = c.integer(interval.step, env) if interval.step is not None else 1
        span = c.span(interval.first, interval.last)
        if last < first:
            c.fail("DPC024", f"the range {first}..{last} runs backward", span, f"write `{last}..{first}`")
        if (last - first) // step >= MAX_OPERATORS:
            c.fail(
                "DPC025",
                f"the range {first}..{last} holds more than {MAX_OPERATORS} numbers",
                span,
                "use a smaller range",
            )
        c.spend((last - first) // step + 1, span)
        values.update(dict.fromkeys(range(first, last + 1, step)))
    return sorted(values)


def read_operators(c: Context, node: tree.Alternatives, env: Mapping[str, int]) -> OperatorSet:
    """The set that ``a | b | …`` stands for."""
    found: dict[Operator, None] = {}
    failed = False
    for term in node.terms:
        try:
            definition = c.scope.get(term.kind)
            if definition is not None and term.kind not in kinds():
                operators = read_named_set(c, term, definition)
                if len(node.terms) == 1:
                    return operators
                c.spend(len(operators), term.kind)
                found.update(dict.fromkeys(operators.operators))
            else:
                found.update(dict.fromkeys(read_term(c, term, env)))
        except Skip:
            failed = True
    if failed:
        raise Skip
    if len(found) > MAX_OPERATORS:
        c.fail(
            "DPC025",
            f"this set holds {len(found)} operators, more than {MAX_OPERATORS}",
            c.span(node.terms[0].kind, node.terms[-1].kind),
        )
    return OperatorSet.model_construct(operators=tuple(found))  # not checked again: each once, not none, not too many


def read_named_set(c: Context, term: tree.Term, definition: Definition) -> OperatorSet:
    if definition.value is None and definition.template is None:
        raise Skip
    if not isinstance(definition.value, OperatorSet):
        c.fail(
            "DPC032",
            f"`{term.kind}` is the name of {definition.kind}, not of an operator",
            term.kind,
            "an operator set is defined with `ops`",
        )
    if term.parameters:
        c.fail("DPC015", f"the operator set `{term.kind}` takes no parameters", term.parameters[0].name)
    return definition.value


def read_kind(c: Context, name: Token) -> OperatorKind:
    if name not in kinds():
        sets = (n for n, d in c.scope.items() if isinstance(d.value, OperatorSet))
        c.refuse_zoo_name(name)
        near = c.nearest(name, chain(kinds(), sets))
        c.fail(
            "DPC013",
            f"there is no operator `{short(name)}`" + (f"; did you mean `{near}`?" if near else ""),
            name,
            "operators: " + ", ".join(f"`{k.example}`" for k in kinds().values()),
        )
    return kind_named(name)


def read_term(c: Context, term: tree.Term, env: Mapping[str, int]) -> list[Operator]:
    """Every operator that one term with sets for its parameters stands for, in order of its values."""
    kind = read_kind(c, term.kind)
    given: dict[str, list[ParameterValue]] = {}
    failed = False
    for node in term.parameters:
        try:
            if node.name in given:
                c.fail("DPC016", f"`{node.name}` is given twice", node.name, f"write `{kind.example}`")
            given[str(node.name)] = read_values(c, kind, node, env)
        except Skip:
            failed = True
    for parameter in kind.parameters:
        if parameter.name not in given and not failed:
            report_missing(c, kind, term, parameter.name)
            failed = True
    if failed:
        raise Skip
    columns = [given[parameter.name] for parameter in kind.parameters]
    count = 1
    for column in columns:
        count *= len(column)
    if count > MAX_OPERATORS:
        c.fail("DPC025", f"this stands for {count} operators, more than {MAX_OPERATORS}", term.kind, "use smaller sets")
    c.spend(count, term.kind)
    names = [parameter.name for parameter in kind.parameters]
    return [_operator(kind.name, tuple(zip(names, row, strict=True))) for row in product(*columns)]


def report_missing(c: Context, kind: OperatorKind, term: tree.Term, name: str) -> None:
    parameter = kind.parameter(name)
    assert parameter is not None
    missing = missing_parameter(kind, parameter)
    c.report(missing.code, missing.message, term.kind, missing.hint)


def read_values(
    c: Context, kind: OperatorKind, node: tree.ParameterNode, env: Mapping[str, int]
) -> list[ParameterValue]:
    parameter = kind.parameter(node.name)
    if parameter is None:
        near = c.nearest(node.name, [p.name for p in kind.parameters])
        c.fail(
            "DPC015",
            f"`{kind.name}` has no parameter `{short(node.name)}`" + (f"; did you mean `{near}`?" if near else ""),
            node.name,
            f"write `{kind.example}`",
        )
    value = node.height
    if isinstance(value, Token) and value.type == "PAIR":
        height, width = c.pair(value, parameter.minimum)
        if not parameter.pair:
            c.fail("DPC018", f"`{parameter.name}` takes one number, not a pair", value, f"write `{kind.example}`")
        return [(height, width)]
    heights = read_axis(c, value, env, parameter.minimum)
    if node.width is None:
        if parameter.pair:
            shown = heights[0] if len(heights) == 1 else "{…}"
            c.fail(
                "DPC018",
                f"`{parameter.name}` takes a height and a width",
                value.opening if isinstance(value, tree.AxisSet) else value,
                f"write `{parameter.name} {shown} x {shown}`"
                if len(heights) > 1
                else f"write `{parameter.name} {shown}x{shown}`",
            )
        return list(heights)
    widths = read_axis(c, node.width, env, parameter.minimum)
    if not parameter.pair:
        at = node.width.opening if isinstance(node.width, tree.AxisSet) else node.width
        c.fail("DPC018", f"`{parameter.name}` takes one number, not a pair", at, f"write `{kind.example}`")
    if len(heights) * len(widths) > MAX_OPERATORS:
        c.fail("DPC025", f"this stands for more than {MAX_OPERATORS} pairs", node.name, "use smaller sets")
    return list(product(heights, widths))


@lru_cache(maxsize=1 << 14)
def _operator(kind: str, parameters: tuple[tuple[str, ParameterValue], ...]) -> Operator:
    # Not checked again: every word and number of it has been.
    return Operator.model_construct(kind=kind, parameters=parameters)
