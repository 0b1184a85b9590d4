"""Syntax tree to values: what every name means, and every mistake of a file told at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from lark import Token

from dpcdsl import constraints
from dpcdsl.cell import DEFAULT_FILTERS, MAX_BRANCHES, tensor_index
from dpcdsl.errors import DpcError, Source, Span, nearest, shown
from dpcdsl.operators import LARGEST_INTEGER, RESERVED_WORDS, kinds
from dpcdsl.space import Slot, Space
from dpcdsl.syntax import tree
from dpcdsl.syntax.branches import check_count, read_cell, read_filters, read_slots
from dpcdsl.syntax.choices import read_operators
from dpcdsl.syntax.conditions import read_condition, read_measure, required
from dpcdsl.syntax.context import Budget, Context, Scope, Skip, short
from dpcdsl.syntax.document import Definition, Document

__all__ = [
    "LANGUAGE_VERSION",
    "Importer",
    "Template",
    "is_definable",
    "resolve_condition",
    "resolve_file",
    "resolve_reference",
]

#: The version of the language that this library reads.
LANGUAGE_VERSION = 1

#: Most conditions a space may gather.
_MAX_CONDITIONS = 256
#: Longest chain of spaces that pass parameters on to one another.
_MAX_DERIVED = 50

#: Mistakes that another value of a space's parameter may mend.
_HANG_ON_NUMBERS = {"DPC011", "DPC012", "DPC017", "DPC020", "DPC021", "DPC022", "DPC023", "DPC024", "DPC025", "DPC062"}

#: Finds the definitions of an imported text: called with the import's source token and its place. None where its
#: mistakes have been told before.
Importer = Callable[[Token, Span], Document | None]


@dataclass(frozen=True)
class Template:
    """A space that takes parameters: its tree, and the names that were known where it stands.

    height: how many templates it takes to instantiate it, itself counted.
    """

    source: Source = field(repr=False)
    node: tree.SpaceNode = field(repr=False)
    scope: Scope = field(repr=False)
    parameters: Mapping[str, int | None]
    height: int = 1

    def instantiate(self, name: str, given: Mapping[str, int], budget: Budget | None = None) -> Space:
        for parameter, value in given.items():
            if parameter not in self.parameters:
                raise _unknown_parameter(name, parameter, self.parameters)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_INTEGER:
                raise DpcError.of("DPC017", f"`{parameter}` must be a whole number, not {shown(value)}")
        values = {**self.parameters, **given}
        for parameter, default in values.items():
            if default is None:
                raise DpcError.of(
                    "DPC034", f"`{name}` needs its parameter `{parameter}`", hint=f"for example `{name}({parameter}=5)`"
                )
        c = Context(self.source, self.scope, budget)
        space = None
        with c.reading():
            space = read_space_value(c, self.node, {k: v for k, v in values.items() if v is not None})
        if space is None:
            raise Skip  # it rests on a definition whose mistakes have been reported
        return space


def resolve_file(source: Source, node: tree.FileNode, importer: Importer) -> Document:
    """The document of a parsed text. Raises one :class:`DpcError` with every mistake in it."""
    c = Context(source, {})
    own: dict[str, Definition] = {}
    with c.reading():
        read_version(c, node.version)
        c.later = _names_defined(node)
        for item in node.items:
            for definition in read_item(c, item, importer):
                own[definition.name] = definition
    return Document(source, own)


def resolve_condition(source: Source, node: tree.ConditionNode, scope: Scope) -> constraints.Constraint:
    c = Context(source, scope)
    condition = None
    with c.reading():
        condition = read_condition(c, node, {})
    assert condition is not None
    return condition


def resolve_measure(source: Source, node: tree.MeasureNode, scope: Scope) -> constraints.Measure:
    c = Context(source, scope)
    measure = None
    with c.reading(), suppress(Skip):  # what is skipped has been told
        measure = read_measure(c, node, {})
    assert measure is not None
    return measure


def resolve_reference(
    source: Source, reference: tree.Reference, condition: tree.ConditionNode | None, scope: Scope
) -> Space:
    c = Context(source, scope)
    space = None
    with c.reading():
        space = read_derived(c, reference, condition, {})
    assert space is not None
    return space


def read_version(c: Context, number: Token | None) -> None:
    if number is not None and (len(number) > 9 or int(number) != LANGUAGE_VERSION):
        c.report(
            "DPC005",
            f"this is version {str(number)[:20]} of the language, and version {LANGUAGE_VERSION} is known here",
            number,
            f"install a newer dpcdsl, or write `dpc {LANGUAGE_VERSION}`",
        )


def read_item(c: Context, item: tree.Item, importer: Importer) -> list[Definition]:
    try:
        match item:
            case tree.ImportNode():
                read_import(c, item, importer)
                return []
            case tree.CellNode():
                made = read_cell(c, item)
            case tree.OpsNode():
                made = read_ops(c, item)
            case tree.SpaceNode():
                made = read_space(c, item)
    except Skip:
        # The name is known all the same: what uses it is not to blame.
        made = None
    name = getattr(item, "name", None)
    if name is not None:
        define(c, name, made)
    return [made] if made is not None else []


def is_reserved(name: str) -> bool:
    """Whether ``name`` is a word of the language or looks like a tensor."""
    return name in RESERVED_WORDS or name == "_" or tensor_index(name) is not None


def is_definable(name: str) -> bool:
    """Whether a cell, an operator set or a space may have this name."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and not is_reserved(name) and name not in kinds()


def define(c: Context, name: Token, made: Definition | None) -> None:
    known = c.scope.get(name)
    if is_reserved(name):
        c.report("DPC033", f"`{name}` is a word of the language and cannot be a name", name, "choose another name")
    elif name in kinds():
        c.report("DPC033", f"`{name}` is an operator and cannot be another name", name, "choose another name")
    elif known is not None:
        line = "by an import" if name in c.imported else f"in line {known.span.position[0]}"
        c.report("DPC030", f"`{name}` is defined already, {line}", name, "choose another name")
    c.scope[str(name)] = made or Definition(str(name), None, c.span(name))


def read_import(c: Context, node: tree.ImportNode, importer: Importer) -> None:
    try:
        document = importer(node.source, c.span(node.source))
        c.spoiled |= document is None
    except DpcError as error:
        c.adopt(error, node.source)
        document = None
    for name, alias in node.names:
        own = alias or name
        if document is not None and name not in document.definitions:
            near = c.nearest(name, document.definitions)
            c.report(
                "DPC037",
                f"{'the zoo' if node.source.type == 'ZOO' else node.source} does not define `{name}`"
                + (f"; did you mean `{near}`?" if near else ""),
                name,
                "it defines " + ", ".join(f"`{n}`" for n in islice(document.definitions, 12) if n),
            )
        define(c, own, document.definitions.get(name) if document else None)
        c.imported.add(str(own))


def read_ops(c: Context, node: tree.OpsNode) -> Definition:
    return Definition(str(node.name), read_operators(c, node.operators, {}), c.span(node.name))


def read_space(c: Context, node: tree.SpaceNode) -> Definition:
    parameters: dict[str, int | None] = {}
    for formal in node.formals:
        if formal.name in parameters:
            c.report("DPC016", f"the parameter `{formal.name}` is named twice", formal.name)
        if is_reserved(formal.name):
            c.report("DPC033", f"`{formal.name}` is a word of the language", formal.name, "choose another name")
        default = c.integer(formal.default, {}, 0) if formal.default is not None else None
        parameters[str(formal.name)] = default
    scope = {name: c.scope[name] for name in _words(c.source, node) if name in c.scope} if parameters else {}
    template = Template(c.source, node, scope, parameters, _height(node, c.scope))
    if None not in parameters.values():
        value = read_space_value(c, node, {name: n for name, n in parameters.items() if n is not None})
        if value is None:
            raise Skip
        return Definition(str(node.name), value, c.span(node.name), template=template)
    # A parameter without a default: read the body for any number, and leave what hangs on the number for later.
    found = len(c.found)
    with suppress(Skip):
        read_space_value(c, node, {name: 1 if n is None else n for name, n in parameters.items()})
    c.found[found:] = [d for d in c.found[found:] if d.code not in _HANG_ON_NUMBERS]
    if len(c.found) > found:
        raise Skip
    return Definition(str(node.name), None, c.span(node.name), template=template)


def read_space_value(c: Context, node: tree.SpaceNode, env: Mapping[str, int]) -> Space | None:
    if node.base is not None:
        return read_derived(c, node.base, node.condition, env)
    slots: list[Slot] = []
    conditions: list[constraints.Constraint] = []
    filters: int | None = None
    failed = False
    at = c.span(node.name)
    if sum(isinstance(statement, tree.BranchNode) for statement in node.statements) > MAX_BRANCHES:
        c.fail("DPC021", f"a space has at most {MAX_BRANCHES} branches", at)
    if sum(isinstance(statement, tree.RequireNode) for statement in node.statements) > _MAX_CONDITIONS:
        c.fail("DPC025", f"a space has at most {_MAX_CONDITIONS} conditions", at)
    for statement in node.statements:
        try:
            match statement:
                case tree.FiltersNode():
                    filters = read_filters(c, statement, filters, env)
                case tree.RequireNode():
                    conditions.append(required(c, statement.condition, env))
                case tree.BranchNode():
                    slots += read_slots(c, statement, slots, env)
        except Skip:
            failed = True
    if not failed:
        check_count(c, len(slots), "space", at)
    if failed:
        return None
    return make_space(c, slots, filters, conditions, at)


def make_space(
    c: Context, slots: Sequence[Slot], filters: int | None, conditions: Sequence[constraints.Constraint], at: Span
) -> Space | None:
    if len(conditions) > _MAX_CONDITIONS:
        c.fail("DPC025", f"a space has at most {_MAX_CONDITIONS} conditions", at)
    try:
        return Space(
            slots=tuple(slots),
            filters=DEFAULT_FILTERS if filters is None else filters,
            constraints=tuple(conditions),
        )
    except DpcError as error:
        c.adopt(error, at)
        return None


def read_derived(
    c: Context, reference: tree.Reference, condition: tree.ConditionNode | None, env: Mapping[str, int]
) -> Space | None:
    """``base(B = 8) where …``."""
    try:
        definition = c.lookup(reference.name)
        given: dict[str, int] = {}
        for name, value in reference.arguments:
            if name in given:
                c.fail("DPC016", f"`{short(name)}` is given twice", name)
            if name not in definition.parameters:
                error = _unknown_parameter(str(reference.name), str(name), definition.parameters)
                d = error.diagnostics[0]
                c.fail(d.code, d.message, name, d.hint)
            given[str(name)] = c.integer(value, env, 0)
        template = definition.template
        if given and template is not None and template.height >= _MAX_DERIVED:
            c.fail(
                "DPC007",
                f"more than {_MAX_DERIVED} spaces pass parameters on to one another",
                reference.name,
                "write this one out",
            )
        try:
            if given and template is not None:
                c.spend(len(template.parameters), reference.name)
                base = template.instantiate(str(reference.name), given, c.budget)
            else:
                base = definition.space()
        except DpcError as error:
            c.adopt(error, reference.name)
            raise Skip from None
        c.spend(len(base.slots) + sum(map(constraints.size, base.constraints)), reference.name)
    except Skip:
        base = None
    try:
        added = [] if condition is None else [required(c, condition, env)]
    except Skip:
        return None
    if base is None:
        return None
    if not added:
        return base
    return make_space(c, base.slots, base.filters, [*base.constraints, *added], c.span(reference.name))


def _unknown_parameter(name: str, parameter: str, known: Iterable[str]) -> DpcError:
    known = list(known)
    near = nearest(parameter, known)
    listed = ", ".join(f"`{k}`" for k in known[:12]) + (" …" if len(known) > 12 else "")
    return DpcError.of(
        "DPC034",
        f"`{name}` has no parameter `{parameter[:40]}`" + (f"; did you mean `{near}`?" if near else ""),
        hint=f"its parameters: {listed}" if known else "it takes none",
    )


def _names_defined(node: tree.FileNode) -> dict[str, Token]:
    found: dict[str, Token] = {}
    for item in node.items:
        if not isinstance(item, tree.ImportNode) and item.name is not None:
            found.setdefault(str(item.name), item.name)
    return found


def _words(source: Source, node: tree.SpaceNode) -> set[str]:
    """Every word of a space's text: the names it uses, which its template has to remember, are among them."""
    text = source.text[tree.start_of(node.keyword) : tree.end_of_space(node)]
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", text))


def _height(node: tree.SpaceNode, scope: Scope) -> int:
    base = scope.get(node.base.name) if node.base is not None and node.base.arguments else None
    return 1 + (base.template.height if base is not None and base.template is not None else 0)
