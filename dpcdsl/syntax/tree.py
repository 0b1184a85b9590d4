"""The syntax tree: what was written, with the place of every word, before it is known to mean anything.

Leaves are Lark tokens: strings that know their ``start_pos`` and ``end_pos``. Places inside a branch tuple count from
its opening parenthesis, because one parsed tuple stands for every equal text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from lark import Token

__all__ = [
    "AllOfNode",
    "Alternatives",
    "AnyOfNode",
    "Argument",
    "Axis",
    "AxisSet",
    "BranchNode",
    "CellNode",
    "ComparisonNode",
    "ConditionNode",
    "FileNode",
    "FiltersNode",
    "Formal",
    "ImportNode",
    "InlineCell",
    "Interval",
    "Item",
    "KeywordArgument",
    "MeasureNode",
    "NotNode",
    "OpsNode",
    "ParameterNode",
    "Reference",
    "RequireNode",
    "SpaceNode",
    "Statement",
    "Term",
    "TupleNode",
    "conditions_of",
    "end_of",
    "end_of_space",
    "first_word",
    "last_comparison",
    "start_of",
]


class Interval(NamedTuple):
    """``3``, ``3..21`` or ``3..21 step 3``."""

    first: Token
    last: Token | None
    step: Token | None


class AxisSet(NamedTuple):
    opening: Token
    intervals: tuple[Interval, ...]
    closing: Token


Axis: TypeAlias = Token | AxisSet


class ParameterNode(NamedTuple):
    """``rate 1x6`` (the height is a PAIR token), ``groups 4``, or ``rate {1, 3} x {6}``."""

    name: Token
    height: Axis
    width: Axis | None


class Term(NamedTuple):
    """An operator or the name of a set, with its parameters."""

    kind: Token
    parameters: tuple[ParameterNode, ...]

    @property
    def end(self) -> int:
        if not self.parameters:
            return end_of(self.kind)
        last = self.parameters[-1]
        axis = last.width or last.height
        return end_of(axis.closing if isinstance(axis, AxisSet) else axis)


class Alternatives(NamedTuple):
    terms: tuple[Term, ...]


class TupleNode(NamedTuple):
    """``(X, OP, Y)``."""

    inputs: tuple[Token, ...]
    braced: bool
    operators: Alternatives
    output: Token


class FiltersNode(NamedTuple):
    keyword: Token
    number: Token


class BranchNode(NamedTuple):
    """A tuple, still as one token, with what stands before it."""

    optional: Token | None
    times: Token | None
    text: Token


class KeywordArgument(NamedTuple):
    name: Token
    value: Token


class InlineCell(NamedTuple):
    tuples: tuple[Token, ...]


Argument: TypeAlias = KeywordArgument | Alternatives | InlineCell


class MeasureNode(NamedTuple):
    name: Token
    arguments: tuple[Argument, ...]


class ComparisonNode(NamedTuple):
    measure: MeasureNode
    relation: Token
    bound: Token
    depth: int = 1


class AnyOfNode(NamedTuple):
    parts: tuple[ConditionNode, ...]
    depth: int


class AllOfNode(NamedTuple):
    parts: tuple[ConditionNode, ...]
    depth: int


class NotNode(NamedTuple):
    keyword: Token
    part: ConditionNode
    depth: int


ConditionNode: TypeAlias = ComparisonNode | AnyOfNode | AllOfNode | NotNode


class RequireNode(NamedTuple):
    keyword: Token
    condition: ConditionNode


Statement: TypeAlias = FiltersNode | BranchNode | RequireNode


class ImportNode(NamedTuple):
    keyword: Token
    source: Token
    names: tuple[tuple[Token, Token | None], ...]


class CellNode(NamedTuple):
    """A named cell, or the bare tuples of a file (then ``name`` is None)."""

    keyword: Token | None
    name: Token | None
    statements: tuple[Statement, ...]
    closing: Token | None


class OpsNode(NamedTuple):
    keyword: Token
    name: Token
    operators: Alternatives


class Formal(NamedTuple):
    name: Token
    default: Token | None


class Reference(NamedTuple):
    """``dpc`` or ``dpc(B = 8)``."""

    name: Token
    arguments: tuple[tuple[Token, Token], ...]


class SpaceNode(NamedTuple):
    """A space with a body (``statements``), or one derived from another (``base``)."""

    keyword: Token
    name: Token
    formals: tuple[Formal, ...]
    statements: tuple[Statement, ...] = ()
    closing: Token | None = None
    base: Reference | None = None
    condition: ConditionNode | None = None


Item: TypeAlias = ImportNode | CellNode | OpsNode | SpaceNode


class FileNode(NamedTuple):
    version: Token | None
    items: tuple[Item, ...]


def start_of(token: Token) -> int:
    assert token.start_pos is not None
    return token.start_pos


def end_of(token: Token) -> int:
    return start_of(token) + len(token)  # a pickled token does not keep its end_pos


def first_word(node: ConditionNode) -> Token:
    while not isinstance(node, ComparisonNode):
        if isinstance(node, NotNode):
            return node.keyword
        node = node.parts[0]
    return node.measure.name


def last_comparison(node: ConditionNode) -> ComparisonNode:
    while not isinstance(node, ComparisonNode):
        node = node.part if isinstance(node, NotNode) else node.parts[-1]
    return node


def conditions_of(node: FileNode) -> Iterator[ConditionNode]:
    """Every condition that a text states, in order."""
    for item in node.items:
        for statement in item.statements if isinstance(item, CellNode | SpaceNode) else ():
            if isinstance(statement, RequireNode):
                yield statement.condition
        if isinstance(item, SpaceNode) and item.condition is not None:
            yield item.condition


def end_of_space(node: SpaceNode) -> int:
    """Where its last word ends; parentheses that close behind it are left out."""
    if node.condition is not None:
        return end_of(last_comparison(node.condition).bound)
    last = node.closing or (node.base.name if node.base is not None else node.name)
    return end_of(last)
