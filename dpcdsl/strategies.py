"""Hypothesis strategies: cells, spaces and texts for property tests of one's own code, spaces and operators.

They need Hypothesis: ``pip install 'dpcdsl[testing]'``. Wherever a strategy takes ``operators``, these are names of
operator kinds, or a strategy of operators, or None for all kinds that are registered when an example is drawn, one's
own included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain, product
from pathlib import Path
from typing import TypeAlias, get_args

try:
    from hypothesis import strategies as st
    from hypothesis.errors import InvalidArgument
except ImportError:
    raise ImportError("dpcdsl.strategies needs Hypothesis: pip install 'dpcdsl[testing]'") from None

from dpcdsl.cell import DEFAULT_FILTERS, MAX_FILTERS, Branch, Cell
from dpcdsl.constraints import (
    LARGEST_BOUND,
    AllOf,
    AnyOf,
    Branches,
    Comparison,
    Constraint,
    Depth,
    Distance,
    MAdds,
    Measure,
    Not,
    Params,
    Relation,
    Uses,
)
from dpcdsl.cost import MAX_FEATURES
from dpcdsl.enumeration.constrained import ConstrainedEnumerator
from dpcdsl.errors import DpcError
from dpcdsl.operators import Operator, kind_named
from dpcdsl.operators import kinds as registered_kinds
from dpcdsl.references import read_space
from dpcdsl.space import OperatorSet, Slot, Space
from dpcdsl.syntax import is_definable, parse

__all__ = ["cells", "constraints", "malformed_texts", "operator_sets", "operators", "spaces", "texts"]

Operators: TypeAlias = st.SearchStrategy[Operator] | Sequence[str] | None

# Operators


def operators(kinds: Sequence[str] | None = None, *, largest: int = 24) -> st.SearchStrategy[Operator]:
    """Operators of ``kinds`` (default: all registered), each number of a parameter from its minimum to ``largest``.

    Shrinks to the first kind that has the fewest parameters, ``conv1x1``, and to the smallest numbers.
    """
    return _products(kinds, largest, 1).map(lambda listed: listed[0])


def operator_sets(operators: Operators = None) -> st.SearchStrategy[OperatorSet]:
    """Operator sets: up to four operators, or products such as ``sepconv3x3 rate {1, 3} x {3..12 step 3}`` of up to 27.

    A product holds what no strategy of ``operators`` may have promised, so there are none where that is given.
    Shrinks to one operator.
    """
    if isinstance(operators, st.SearchStrategy):
        parts = operators.map(lambda operator: [operator])
    else:
        parts = _products(operators, 24, 6)
    return st.lists(parts, min_size=1, max_size=4).map(lambda listed: OperatorSet.of(chain.from_iterable(listed)))


@st.composite
def _products(draw: st.DrawFn, names: Sequence[str] | None, largest: int, most: int) -> list[Operator]:
    """All operators of a kind with their parameters in sets of numbers: the more sets, the fewer than ``most`` each."""
    known = [kind_named(name) for name in (registered_kinds() if names is None else names)]
    kind = draw(st.sampled_from(sorted(known, key=lambda kind: len(kind.parameters))))
    minima = [p.minimum for p in kind.parameters for _ in range(1 + p.pair)]
    size = max(1, most - len(minima))

    def operator(numbers: Sequence[int]) -> Operator:
        left = iter(numbers)
        pairs = {p.name: (next(left), next(left)) if p.pair else next(left) for p in kind.parameters}
        return Operator.of(kind.name, **pairs)

    return [operator(n) for n in product(*(draw(_axes(least, max(least, largest), size)) for least in minima))]


@cache
def _axes(least: int, largest: int, size: int) -> st.SearchStrategy[list[int]]:
    numbers = st.integers(least, largest)
    single = numbers.map(lambda number: [number])
    steps = st.builds(
        lambda count, first, step: list(range(first, largest + 1, step))[:count],
        *(st.integers(1, size), numbers, st.integers(1, 6)),
    )
    several = st.lists(numbers, min_size=1, max_size=size, unique=True).map(sorted)
    return single | several | steps if size > 1 else single


def _some(chosen: Operators) -> st.SearchStrategy[Operator]:
    return chosen if isinstance(chosen, st.SearchStrategy) else operators(chosen)


# Cells

_FILTERS = st.sampled_from((DEFAULT_FILTERS, DEFAULT_FILTERS, 1, 48, MAX_FILTERS))


def cells(
    space: Space | str | Path | None = None,
    *,
    operators: Operators = None,
    min_branches: int = 1,
    max_branches: int = 6,
    filters: st.SearchStrategy[int] = _FILTERS,
) -> st.SearchStrategy[Cell]:
    """Cells of ``space``, or any cells.

    space: a space, or what :func:`dpcdsl.read_space` reads: ``"dpc(B=3) where depth <= 2"``, ``"file.dpc:mine"``. It
    settles all the rest, so that nothing else can be given with it.
    Without it: ``min_branches`` to ``max_branches`` branches (of 1 to 256) of ``operators``; ``filters`` is mostly 256.

    Shrinks to ``(F, conv1x1, Y1)``; in a space, to as few branches as may be, each with its first input and operator.
    """
    if space is None:
        return _any_cells(operators, min_branches, max_branches, filters)
    if (operators, min_branches, max_branches, filters) != (None, 1, 6, _FILTERS):
        raise InvalidArgument("a space has operators, branches and filters of its own: give it alone")
    found = space if isinstance(space, Space) else read_space(space)
    if not _steps(found).count:
        raise InvalidArgument("no cell of the space fulfils its constraints")
    return _of_space(found)


@st.composite
def _any_cells(
    draw: st.DrawFn, operators: Operators, least: int = 1, most: int = 6, filters: st.SearchStrategy[int] = _FILTERS
) -> Cell:
    single = _some(operators)
    # Up to 256 branches can be asked for, but it is small cells that differ in what matters.
    count = draw(st.integers(least, max(least, min(most, least + 7))) | st.integers(least, most))
    deep = draw(st.booleans())
    branches: list[Branch] = []
    for number in range(count):
        source = _source(draw, range(number + 1), deep)
        again = bool(branches) and draw(st.integers(0, 5)) == 5
        branches.append(Branch(input=source, operator=branches[-1].operator if again else draw(single)))
    return Cell(branches=tuple(branches), filters=draw(filters))


def _source(draw: st.DrawFn, tensors: Sequence[int], deep: bool) -> int:
    """One of ``tensors``. Chosen evenly, cells would be neither deep nor wide: half of the time it is the first one, or
    the last one where ``deep``."""
    index = draw(st.just(0) | st.integers(0, len(tensors) - 1))
    return tensors[-1 - index] if deep else tensors[index]


@lru_cache(maxsize=64)
def _steps(space: Space) -> ConstrainedEnumerator:
    return ConstrainedEnumerator(space)


@st.composite
def _of_space(draw: st.DrawFn, space: Space) -> Cell:
    """A cell of ``space``, slot by slot: only what some cell begins with is chosen, so that none is thrown away."""
    cells = _steps(space)
    deep = draw(st.booleans())
    choices: tuple[tuple[int, int] | None, ...] = ()
    for _ in space.slots:
        possible = cells.extensions(choices)
        sources = [source for source in possible if source is not None]
        if not sources or (None in possible and not draw(st.booleans())):
            choices = (*choices, None)
        else:
            source = _source(draw, sources, deep)
            choices = (*choices, (source, draw(st.sampled_from(possible[source]))))
    return cells.cell(choices)


# Constraints and spaces

_RELATIONS: tuple[Relation, ...] = get_args(Relation)


def constraints(cell: Cell | None = None, *, operators: Operators = None) -> st.SearchStrategy[Constraint]:
    """Constraints of all measures, with ``and``, ``or`` and ``not``, that hold for ``cell``, or each for some cell.

    Their bounds lie about what the cell measures, so that they tell cells apart. Shrinks to ``depth <= 1``, or to the
    depth of ``cell``.
    """
    return _constraints(_any_cells(operators) if cell is None else st.just(cell), _measures(operators))


@st.composite
def _constraints(
    draw: st.DrawFn, witnesses: st.SearchStrategy[Cell], measures: st.SearchStrategy[Measure]
) -> Constraint:
    witness = draw(witnesses)

    def that_is(wanted: bool, levels: int) -> Constraint:
        """A constraint of at most ``levels`` that holds for the witness, or does not, as wanted."""
        form = draw(st.sampled_from(("comparison", "comparison", "not", "and", "or"))) if levels else "comparison"
        if form == "comparison":
            return _comparison(draw, draw(measures), witness, wanted)
        if form == "not":
            return Not(negated=that_is(not wanted, levels - 1))
        parts = [wanted] * draw(st.integers(2, 3))
        if (form == "or") == wanted:  # one part settles it, wherever it stands
            settles = draw(st.integers(0, len(parts) - 1))
            parts = [wanted != (number != settles and draw(st.booleans())) for number in range(len(parts))]
        joined = tuple(that_is(part, levels - 1) for part in parts)
        return AllOf(all_of=joined) if form == "and" else AnyOf(any_of=joined)

    return that_is(True, 2)


def _comparison(draw: st.DrawFn, measure: Measure, cell: Cell, wanted: bool) -> Comparison:
    value = measure.of(cell)
    near = st.integers(max(0, value - 2), value + 2)
    round_up = st.sampled_from((10**3, 10**6, 10**9)).map(lambda unit: -(-value // unit) * unit)
    bound = min(draw(st.just(value) | near | round_up | st.integers(0, LARGEST_BOUND)), LARGEST_BOUND)
    comparisons = (Comparison(measure=measure, relation=relation, bound=bound) for relation in _RELATIONS)
    return draw(st.sampled_from([comparison for comparison in comparisons if comparison.compare(value) == wanted]))


def _measures(operators: Operators) -> st.SearchStrategy[Measure]:
    features, sides = st.integers(1, MAX_FEATURES), st.integers(1, 2**20)
    kinds = st.lists(_some(operators).map(lambda operator: operator.kind), min_size=1, max_size=2).map(tuple)
    return st.one_of(
        st.just(Depth()),
        st.just(Branches()),
        st.builds(Params, features=features),
        st.builds(MAdds, features=features, at=st.tuples(sides, sides)),
        st.builds(Uses, kinds=kinds),
        st.builds(Uses, operators=operator_sets(operators).map(lambda chosen: chosen.operators)),
        st.builds(Distance, to=_any_cells(operators, 1, 4, st.just(DEFAULT_FILTERS))),
    )


@st.composite
def spaces(
    draw: st.DrawFn,
    *,
    operators: Operators = None,
    max_branches: int = 5,
    optional: bool = True,
    constraints: bool | st.SearchStrategy[Constraint] = True,
    filters: st.SearchStrategy[int] = _FILTERS,
) -> Space:
    """Spaces of 1 to ``max_branches`` branches, with one to three operator sets, repeated branches and chosen inputs.

    optional: whether branches may be left out. constraints: up to two that leave at least one cell, none (False), or
    those of a strategy, which may leave no cell.
    Shrinks to ``(F, conv1x1, _)`` without constraints, and each branch to one that is not optional and reads ``F``.
    """
    pool = st.sampled_from(draw(st.lists(operator_sets(operators), min_size=1, max_size=3)))
    slots: list[Slot] = []
    for number in range(1, draw(st.integers(1, max_branches)) + 1):
        sure = [i for i in range(number) if i == 0 or not slots[i - 1].optional]  # one of them is an input
        some = st.builds(set.union, st.sampled_from(sure).map(lambda i: {i}), st.sets(st.integers(0, number - 1)))
        slot = Slot(
            inputs=draw(st.just((0,)) | st.none() | some.map(sorted).map(tuple)),
            operators=draw(pool),
            optional=optional and draw(st.booleans()),
        )
        repeated = bool(slots) and draw(st.integers(0, 3)) == 3
        slots.append(slots[-1] if repeated else slot)
    nonempty = Comparison(measure=Branches(), relation=">=", bound=1)
    demands: list[Constraint] = [nonempty] if all(slot.optional for slot in slots) else []
    space = Space(slots=tuple(slots), filters=draw(filters), constraints=tuple(demands))
    if constraints is False:
        return space
    if constraints is True:  # one cell fulfils them all
        constraints = _constraints(st.shared(_of_space(space)), _measures(operators))
    demands += draw(st.lists(constraints, max_size=2))
    return Space(slots=space.slots, filters=space.filters, constraints=tuple(demands))


# Texts

#: The same meaning, written otherwise: what is searched for, and what may stand in its place.
_VARIANTS = (
    (r"\bY\d+\)", "_)"),
    (r"\(F,", "({F},"),
    (r"(?<= )(\d+)x(\d+)", r"\1 x\2"),
    (r"\b(\d+)([KMGT])\b", r"\1.0\2"),
    (r"\b(depth|branches) (?=[<>=!])", r"\1() "),
    (r" ", "\n"),
    (r"\s", "\r\n\t"),
    (r"\s*([^\w\s])\s*", r"\1"),
)


@st.composite
def texts(draw: st.DrawFn, *, operators: Operators = None, max_definitions: int = 4) -> str:
    """Texts that :func:`dpcdsl.parse` reads: a cell, or a file of cells, operator sets, spaces and imports of the zoo.

    With every part of the language, with comments, and with layouts that are legal but odd. No text reads another file.
    Shrinks to ``(F, conv1x1, Y1)``.
    """
    count = draw(st.integers(0, max_definitions))
    text = draw(_files(count, operators) if count else _any_cells(operators).map(str))
    text = draw(st.sampled_from(("", "dpc 1\n\n"))) + text
    for pattern, instead in _VARIANTS:
        if draw(st.integers(0, 3)) == 3:
            text = re.sub(pattern, instead, text)
    comments = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
    gaps = st.sampled_from((" ", "\t", "\n", "\r\n", "\n\n\n")) | comments.map(lambda comment: f" #{comment}\n")
    between = [word.start() for word in re.finditer(r"\w+(\.\d\w*)?|\.\.|[<>=!]=|\S", text)] + [len(text)]
    for place, gap in sorted(draw(st.dictionaries(st.sampled_from(between), gaps, max_size=4)).items(), reverse=True):
        text = text[:place] + gap + text[place:]
    return text


@st.composite
def _files(draw: st.DrawFn, count: int, operators: Operators) -> str:
    """A file of ``count`` definitions."""
    words = st.sampled_from(("a", "b", "mine", "dpc", "rate", "Y", "y", "spaces", "_x", "K", "X", "deep_one"))
    names = st.builds(str.__add__, words, st.sampled_from(("", "2", "_of_mine"))).filter(is_definable)
    taken: set[str] = set()
    items: list[str] = []
    spelled = operator_sets(operators).map(str)
    known: dict[str, list[str]] = {"cell": [], "ops": [], "space": []}  # as later definitions refer to them
    for _ in range(count):
        name = reference = draw(names.filter(lambda name: name not in taken))
        taken.add(name)
        bases = known["cell"] + known["space"]
        alternatives = st.lists(
            st.sampled_from(known["ops"]) | spelled if known["ops"] else spelled, min_size=1, max_size=2
        )
        noun = draw(st.sampled_from(("cell", "ops", "space", "imported", *(["derived"] * 3 if bases else []))))
        if noun == "imported":
            original, noun = draw(st.sampled_from((("top1", "cell"), ("paper", "ops"), ("dpc", "space"))))
            item = f"from zoo import {original} as {name}"
        elif noun == "cell":
            item = f"cell {name} {{ {draw(_any_cells(operators))} }}"
        elif noun == "ops":
            item = f"ops {name} = {' | '.join(draw(alternatives))}"
        elif noun == "space":
            formals, given = draw(st.sampled_from((("", ""), ("(B)", "(B=2)"), ("(B = 3)", ""), ("(B = 1)", "(B=4)"))))
            body = draw(spaces(operators=operators, max_branches=3).map(str))
            if formals:
                body += f" B * (any, {' | '.join(draw(alternatives))}, _) require depth <= B"
            item, reference = f"space {name}{formals} {{ {body} }}", name + given
        else:
            named = [f"distance({cell}) <= 4" for cell in known["cell"]] + [
                f"uses({set_}) > 0" for set_ in known["ops"]
            ]
            condition = draw(constraints(operators=operators).map(str) | st.sampled_from(["depth > 1", *named]))
            item, noun = f"space {name} = {draw(st.sampled_from(bases))} where {condition}", "space"
        items.append(item)
        known[noun].append(reference)
    return "\n".join(items)


_SIGNS = tuple("(){},|=<>*#.;~")
_WORDS = ("Y9", "x", "any", "cell", "space", "ops", "F", "a", "depth", "where", "not", "0", "2x2", "9" * 12, "nobody")


def malformed_texts() -> st.SearchStrategy[str]:
    """Texts that :func:`dpcdsl.parse` refuses: noise, words of the language, and valid texts with words lost or put in.

    Each raises a :class:`dpcdsl.DpcError`. Shrinks to ``0``.
    """
    words = st.lists(st.sampled_from((*_SIGNS, *_WORDS)), min_size=1, max_size=12).map(" ".join)
    return (st.text(min_size=1) | words | _mutated() | _mutated()).filter(_is_malformed)


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    parts = re.split(r"(\w+)", draw(texts(max_definitions=2)))  # words, at the odd places, and what is between them
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(parts) - 1))
        if at % 2 and draw(st.booleans()):  # lost
            parts[at] = ""
        elif at % 2:  # another word: this fits the grammar more often than not
            parts[at] = draw(st.sampled_from(_WORDS) | st.sampled_from(parts[1::2]))
        else:
            parts[at] += draw(st.sampled_from(_SIGNS))
    return "".join(parts)


def _is_malformed(text: str) -> bool:
    try:
        parse(text)
    except DpcError:
        return True
    return False
