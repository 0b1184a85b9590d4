"""Conditions: ``params(F=320) <= 0.40M and not uses(avgpool) > 1``."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from lark import Token

from dpcdsl import constraints
from dpcdsl.cell import Cell
from dpcdsl.cost import MAX_FEATURES
from dpcdsl.errors import DpcError
from dpcdsl.operators import kinds
from dpcdsl.syntax import tree
from dpcdsl.syntax.branches import read_cell
from dpcdsl.syntax.choices import read_operators
from dpcdsl.syntax.context import Context, Skip, short
from dpcdsl.syntax.grammar import FLATTER, MAX_DEPTH, TOO_DEEP

__all__ = ["read_condition", "read_measure", "required"]


def required(c: Context, node: tree.ConditionNode, env: Mapping[str, int]) -> constraints.Constraint:
    found = read_condition(c, node, env)
    if found is None:
        raise Skip
    return found


def read_condition(c: Context, node: tree.ConditionNode, env: Mapping[str, int]) -> constraints.Constraint | None:
    if node.depth > MAX_DEPTH:
        c.report("DPC007", TOO_DEEP, tree.first_word(node), FLATTER)
        return None
    match node:
        case tree.AnyOfNode(parts=parts):
            any_of = [read_condition(c, part, env) for part in parts]
            return constraints.AnyOf(any_of=tuple(p for p in any_of if p)) if all(any_of) else None
        case tree.AllOfNode(parts=parts):
            all_of = [read_condition(c, part, env) for part in parts]
            return constraints.AllOf(all_of=tuple(p for p in all_of if p)) if all(all_of) else None
        case tree.NotNode(part=part):
            negated = read_condition(c, part, env)
            return constraints.Not(negated=negated) if negated else None
        case tree.ComparisonNode():
            try:
                c.spend(1, node.measure.name)
                measure = read_measure(c, node.measure, env)
                bound = read_bound(c, node.bound, env)
            except Skip:
                return None
            return constraints.Comparison(measure=measure, relation=str(node.relation), bound=bound)


def read_bound(c: Context, token: Token, env: Mapping[str, int]) -> int:
    """``0.40M`` as an exact whole number."""
    if token.type != "NUMBER":
        return c.integer(token, env, 0, constraints.LARGEST_BOUND)
    if len(token) > 30:
        c.fail("DPC017", f"the number {short(token)} is too long", token)
    suffix = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(token[-1], 1)
    value = Fraction(token.rstrip("KMGT")) * suffix
    if value > constraints.LARGEST_BOUND:
        c.fail("DPC017", f"{token} is more than any measure can be", token)
    if value.denominator != 1:
        c.fail("DPC042", f"{token} is not a whole number", token, "measures are whole numbers: write, say, `400K`")
    return value.numerator


def read_measure(c: Context, node: tree.MeasureNode, env: Mapping[str, int]) -> constraints.Measure:
    name = str(node.name)
    if name not in constraints.MEASURES:
        near = c.nearest(name, constraints.MEASURES)
        c.fail(
            "DPC040",
            f"there is no measure `{short(name)}`" + (f"; did you mean `{near}`?" if near else ""),
            node.name,
            "measures: " + ", ".join(f"`{m}`" for m in constraints.MEASURES.values()),
        )
    try:
        return _made(c, node, env)
    except DpcError as error:  # a size or a number of channels that no cell runs on
        c.adopt(error, node.name)
        raise Skip from None


def _made(c: Context, node: tree.MeasureNode, env: Mapping[str, int]) -> constraints.Measure:
    name = str(node.name)
    match name:
        case "params":
            return constraints.Params(features=read_features(c, node, env, ["F"])["F"])
        case "madds":
            read_features(c, node, env, ["F", "at"])
            at = next(a.value for a in node.arguments if isinstance(a, tree.KeywordArgument) and a.name == "at")
            return constraints.MAdds(features=read_features(c, node, env, ["F", "at"])["F"], at=c.pair(at))
        case "depth" | "branches":
            if node.arguments:
                c.fail("DPC041", f"`{name}` takes no argument", node.name, f"write `{name} <= 3`")
            return constraints.Depth() if name == "depth" else constraints.Branches()
        case "uses":
            return read_uses(c, node, env)
        case _:
            return read_distance(c, node)


def read_features(c: Context, node: tree.MeasureNode, env: Mapping[str, int], wanted: list[str]) -> dict[str, int]:
    """The keyword arguments of a measure; ``at`` is checked to be a pair, and left out."""
    example = constraints.MEASURES[str(node.name)]
    given: dict[str, Token] = {}
    for argument in node.arguments:
        if not isinstance(argument, tree.KeywordArgument):
            c.fail(
                "DPC041",
                f"`{node.name}` takes {' and '.join(f'`{w}`' for w in wanted)}",
                node.name,
                f"write `{example}`",
            )
        if argument.name not in wanted:
            c.fail(
                "DPC041",
                f"`{node.name}` has no argument `{short(argument.name)}`",
                argument.name,
                f"write `{example}`",
            )
        if argument.name in given:
            c.fail("DPC016", f"`{argument.name}` is given twice", argument.name)
        given[str(argument.name)] = argument.value
        if (argument.value.type == "PAIR") != (argument.name == "at"):
            c.fail(
                "DPC041",
                f"`{argument.name}` is {'a size HxW' if argument.name == 'at' else 'one number'}",
                argument.value,
                f"write `{example}`",
            )
    for name in wanted:
        if name not in given:
            what = "the channels of F" if name == "F" else "the map's size"
            c.fail("DPC041", f"`{node.name}` needs `{name}`, {what}", node.name, f"write `{example}`")
    return {"F": c.integer(given["F"], env, 1, MAX_FEATURES)}


def read_uses(c: Context, node: tree.MeasureNode, env: Mapping[str, int]) -> constraints.Uses:
    if len(node.arguments) != 1 or not isinstance(node.arguments[0], tree.Alternatives):
        c.fail("DPC041", "`uses` takes operators", node.name, "write `uses(avgpool)` or `uses(conv1x1 | avgpool)`")
    found_kinds: list[str] = []
    listed: list[tree.Term] = []
    for term in node.arguments[0].terms:
        if term.kind in kinds() and not term.parameters:
            found_kinds.append(str(term.kind))  # a bare kind stands for every operator of it
        else:
            listed.append(term)
    operators = read_operators(c, tree.Alternatives(tuple(listed)), env).operators if listed else ()
    return constraints.Uses(kinds=tuple(found_kinds), operators=operators)


def read_distance(c: Context, node: tree.MeasureNode) -> constraints.Distance:
    argument = node.arguments[0] if len(node.arguments) == 1 else None
    if isinstance(argument, tree.InlineCell):
        statements = tuple(tree.BranchNode(None, None, token) for token in argument.tuples)
        value = read_cell(c, tree.CellNode(None, None, statements, None), c.span(node.name)).value
        assert isinstance(value, Cell)
        return constraints.Distance(to=value)
    if not isinstance(argument, tree.Alternatives) or len(argument.terms) > 1 or argument.terms[0].parameters:
        c.fail("DPC041", "`distance` takes a cell", node.name, "write `distance(top1)` or `distance((F, conv1x1, Y1))`")
    name = argument.terms[0].kind
    definition = c.lookup(name)
    if not isinstance(definition.value, Cell):
        c.fail("DPC032", f"`{name}` is the name of {definition.kind}, not of a cell", name, "write `distance(top1)`")
    return constraints.Distance(to=definition.value)
