"""Random cells, spaces, texts and hostile inputs for the tests.

Values come from :mod:`dpcdsl.strategies`. Texts come from plain functions of a ``random.Random``, so that the long runs
can make millions of them: :func:`file_text` writes a valid file from its parts, with a layout of its own that owes
nothing to the formatter; :func:`hostile_text` writes what nobody should have to read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import get_args

from hypothesis import strategies as st

from dpcdsl import operators as registry
from dpcdsl import strategies
from dpcdsl.cell import Cell
from dpcdsl.constraints import Branches, Comparison, Constraint, Relation
from dpcdsl.layers import Convolution
from dpcdsl.operators import LARGEST_INTEGER, Integer, Operator, OperatorKind, Pair
from dpcdsl.space import OperatorSet, Space

RELATIONS: tuple[Relation, ...] = get_args(Relation)

#: The paper's kinds. Other tests register kinds too, which no strategy below may draw.
PAPER = ("conv1x1", "sepconv3x3", "avgpool")

#: A kind with a parameter of each shape; only inside ``with registered(GROUPED)``.
GROUPED = OperatorKind(
    "grouped", lambda filters, **_: [Convolution("conv", filters)], (Integer("groups"), Pair("size"))
)


@contextmanager
def registered(kind: OperatorKind) -> Iterator[OperatorKind]:
    """Make ``kind`` known for a while; messages that list the operators stay as they are elsewhere."""
    registry.register_operator(kind)
    try:
        yield kind
    finally:
        del registry._registry[kind.name]


# Values: the library's own strategies, over the paper's kinds and with the largest numbers


def paper_operators() -> st.SearchStrategy[Operator]:
    return strategies.operators(PAPER) | strategies.operators(PAPER, largest=LARGEST_INTEGER)


def grouped_operators() -> st.SearchStrategy[Operator]:
    return strategies.operators(("grouped",)) | strategies.operators(("grouped",), largest=LARGEST_INTEGER)


def cells(
    largest: int = 64,
    operators: st.SearchStrategy[Operator] | None = None,
    filters: st.SearchStrategy[int] | None = None,
) -> st.SearchStrategy[Cell]:
    filters = st.sampled_from((256, 256, 256, 1, 48, 65536)) if filters is None else filters
    return strategies.cells(
        operators=paper_operators() if operators is None else operators, max_branches=largest, filters=filters
    )


def operator_sets(operators: st.SearchStrategy[Operator] | None = None) -> st.SearchStrategy[OperatorSet]:
    if operators is not None:
        return strategies.operator_sets(operators)
    return strategies.operator_sets(PAPER) | strategies.operator_sets(paper_operators())


def constraints() -> st.SearchStrategy[Constraint]:
    return strategies.constraints(operators=PAPER) | strategies.constraints(operators=paper_operators())


AT_LEAST_ONE = Comparison(measure=Branches(), relation=">=", bound=1)


def spaces(
    largest: int = 8,
    operators: st.SearchStrategy[Operator] | None = None,
    conditions: st.SearchStrategy[Constraint] | None = None,
    filters: st.SearchStrategy[int] | None = None,
) -> st.SearchStrategy[Space]:
    """Spaces whose conditions may leave no cell."""
    return strategies.spaces(
        operators=PAPER if operators is None else operators,
        max_branches=largest,
        constraints=constraints() if conditions is None else conditions,
        filters=st.sampled_from((256, 256, 16)) if filters is None else filters,
    )


# Texts: a list of words and signs, then a layout for them

_COMMENTS = (
    "",
    " a comment",
    "# twice",
    " (not, a, tuple)",
    " ) } ] { [ (",
    ' "quoted" and "not closed',
    " cell a { (F, conv1x1, Y1) }",
    "\ta tab\t",
    " ends in spaces   ",
    " Zürich, 東京, 🚀, ´\u00a0",
    " require depth <= 3 # at most (3)",
    "|",
    "dpc 1",
)


@dataclass
class Text:
    """A generated text, and the comments in it."""

    text: str
    comments: list[str] = field(default_factory=list)


def laid_out(r: random.Random, words: Sequence[str], wildness: float) -> Text:
    """``words`` with white space and comments between them: one blank at 0, the wildest layout at 1."""
    newline = "\r\n" if r.random() < 0.2 else "\n"
    found: list[str] = []
    parts: list[str] = []

    def gap(last: str, following: str) -> str:
        touching = _may_touch(last, following)
        if r.random() >= wildness:
            return "" if touching and r.random() < 0.3 else " "
        pieces = []
        for _ in range(r.choice((1, 1, 1, 2, 3))):
            kind = r.random()
            if kind < 0.35:
                pieces.append(r.choice((" ", "  ", "\t", " \t ")))
            elif kind < 0.6:
                pieces.append(newline * r.choice((1, 1, 2, 3, 4)))
            elif kind < 0.8:
                comment = "#" + r.choice(_COMMENTS) + (str(len(found)) if r.random() < 0.5 else "")
                found.append(comment)
                pieces.append(r.choice(("", " ", "    ")) + comment + newline)
            elif touching:
                pieces.append("")
            else:
                pieces.append(" ")
        return "".join(pieces)

    for last, following in zip(["", *words], words, strict=False):
        parts += [gap(last, following), following]
    parts.append(gap(words[-1] if words else "", ""))
    if r.random() < wildness * 0.5:  # a comment at the very end, without a newline
        comment = "# the end" + r.choice(_COMMENTS)
        found.append(comment)
        parts.append(comment)
    return Text("".join(parts), found)


def _may_touch(last: str, following: str) -> bool:
    """Whether two words are read as the same two without anything between them."""
    if not last or not following:
        return True
    if (last == "x" and following.isdigit()) or (following == "x" and last.isdigit()):
        return True
    return not ((last[-1].isalnum() or last[-1] == "_") and (following[0].isalnum() or following[0] == "_"))


_NAMES = (
    "a",
    "b2",
    "mine",
    "Best",
    "dpc",
    "_x",
    "deep_one",
    "spaces",
    "Y",
    "y1",
    "rate",
    "X",
    "K",
    "ops_of_mine",
    "B9",
)


@dataclass
class _Known:
    """What a file that is being written has defined."""

    cells: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    spaces: dict[str, dict[str, int | None]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def new_name(self, r: random.Random) -> str:
        name = r.choice(_NAMES)
        while name in self.taken:
            name = f"{r.choice(_NAMES)}{r.randrange(1000)}_"
        self.taken.add(name)
        return name


def file_words(r: random.Random, items: int, branches: int = 8) -> list[str]:
    """The words of a valid file of ``items`` definitions, or of one bare cell for 0."""
    known = _Known()
    words = ["dpc", "1"] if r.random() < 0.6 else []
    if items == 0:
        return words + _body_of_cell(r, branches)
    for _ in range(items):
        kind = r.random()
        if kind < 0.15:
            words += _import(r, known)
        elif kind < 0.35:
            words += ["ops", name := known.new_name(r), "=", *_alternatives(r, known, {}, 4)]
            known.sets.append(name)
        elif kind < 0.6:
            words += ["cell", name := known.new_name(r), "{", *_body_of_cell(r, branches), "}"]
            known.cells.append(name)
        elif kind < 0.8 or not (known.spaces or known.cells):
            words += _space(r, known, branches)
        else:
            words += _derived(r, known)
    return words


def file_text(r: random.Random, items: int, branches: int = 8, wildness: float = 0.3) -> Text:
    """A valid file."""
    return laid_out(r, file_words(r, items, branches), wildness)


def _import(r: random.Random, known: _Known) -> list[str]:
    words = ["from", "zoo", "import"]
    for name in r.sample(("top1", "aspp", "paper", "dpc", "aspp_subsets", "pspnet"), r.choice((1, 1, 2, 3))):
        own = name if name not in known.taken and r.random() < 0.6 else known.new_name(r)
        known.taken.add(own)
        words += [*([","] if words[-1] != "import" else []), name, *(["as", own] if own != name else [])]
        if name == "paper":
            known.sets.append(own)
        elif name == "dpc":
            known.spaces[own] = {"B": 5}
        elif name == "aspp_subsets":
            known.spaces[own] = {}
        else:
            known.cells.append(own)
    return words


def _pair(r: random.Random) -> list[str]:
    height, width = str(r.choice((1, 3, 6, 18, 40))), str(r.choice((1, 2, 6, 21)))
    return [f"{height}x{width}"] if r.random() < 0.6 else [height, "x", width]


def _operator(r: random.Random) -> list[str]:
    kind = r.choice(("conv1x1", "sepconv3x3", "avgpool"))
    if kind == "conv1x1":
        return [kind]
    return [kind, "rate" if kind == "sepconv3x3" else "grid", *_pair(r)]


def _axis(r: random.Random, env: dict[str, int]) -> list[str]:
    def count() -> str:
        return r.choice([*env]) if env and r.random() < 0.3 else str(r.randint(1, 24))

    if r.random() < 0.3:
        return [count()]
    words = ["{"]
    for number in range(r.choice((1, 2, 2, 3))):
        words += [","] if number else []
        if r.random() < 0.5:
            words.append(count())
        else:
            first = r.randint(1, 9)
            words += [str(first), "..", str(first + r.randint(0, 12))]
            words += ["step", str(r.randint(1, 4))] if r.random() < 0.5 else []
    return [*words, "}"]


def _alternatives(r: random.Random, known: _Known, env: dict[str, int], most: int) -> list[str]:
    words: list[str] = []
    for number in range(r.randint(1, most)):
        words += ["|"] if number else []
        kind = r.random()
        if kind < 0.4 or (kind < 0.6 and not known.sets):
            words += _operator(r)
        elif kind < 0.6:
            words.append(r.choice(known.sets))
        else:
            words += r.choice((["sepconv3x3", "rate"], ["avgpool", "grid"]))
            words += [*_axis(r, env), "x", *_axis(r, env)]
    return words


def _tensor(number: int) -> str:
    return f"Y{number}" if number else "F"


def _body_of_cell(r: random.Random, branches: int) -> list[str]:
    count = r.randint(1, branches)
    filters_at = r.randrange(count + 1) if r.random() < 0.4 else -1
    words: list[str] = []
    for number in range(1, count + 1):
        if filters_at == number - 1:
            words += ["filters", str(r.choice((1, 48, 256, 65536)))]
        words += _tuple_words(r, _tensor(r.randrange(number)), _operator(r), number)
    if filters_at == count:
        words += ["filters", "128"]
    return words


def _tuple_words(r: random.Random, source: str, operator: list[str], number: int) -> list[str]:
    inputs = ["{", source, "}"] if r.random() < 0.1 else [source]
    return ["(", *inputs, ",", *operator, ",", "_" if r.random() < 0.3 else f"Y{number}", ")"]


def _space(r: random.Random, known: _Known, branches: int) -> list[str]:
    env, formals, words = _formals(r)
    name = known.new_name(r)
    body: list[str] = []
    optional: list[bool] = []
    filters_at = r.randrange(branches) if r.random() < 0.4 else -1
    counted = False
    for place in range(r.randint(1, min(branches, 12))):
        number = len(optional) + 1
        if place == filters_at:
            body += ["filters", r.choice([*env, "32"])]
        leave_out, repeat = r.random() < 0.3, r.random() < 0.3
        count = r.choice([*env, "1", "3"]) if repeat else "1"
        times = env.get(count) or int(count)
        body += [*(["optional"] if leave_out else []), *([count, "*"] if repeat else [])]
        # Where a parameter has counted branches, a later one cannot be named: its number changes with the parameter.
        counted |= count in env
        inputs = ["any"] if counted else _inputs(r, optional)
        output = "_" if repeat or counted or r.random() < 0.3 else f"Y{number}"
        body += ["(", *inputs, ",", *_alternatives(r, known, env, 3), ",", output, ")"]
        optional += [leave_out] * times
    demands = [["branches", ">=", "1"]] if all(optional) else []
    demands += [_condition(r, known, env, 2) for _ in range(r.choice((0, 0, 1, 2)))]
    for demand in demands:
        body += ["require", *demand]
    known.spaces[name] = formals
    return ["space", name, *words, "{", *body, "}"]


def _inputs(r: random.Random, optional: list[bool]) -> list[str]:
    if r.random() < 0.4:
        return ["any"] if r.random() < 0.8 else ["{", "any", "}"]
    sure = [0, *(i for i, left_out in enumerate(optional, 1) if not left_out)]
    chosen = {r.choice(sure), *(r.randrange(len(optional) + 1) for _ in range(r.choice((0, 0, 1, 2))))}
    listed = r.sample(sorted(chosen), len(chosen))
    if len(listed) == 1 and r.random() < 0.8:
        return [_tensor(listed[0])]
    return ["{", *[word for i in listed for word in (_tensor(i), ",")][:-1], "}"]


def _formals(r: random.Random) -> tuple[dict[str, int], dict[str, int | None], list[str]]:
    """Parameters with the values they have where the space is defined, with their defaults, and as words."""
    env: dict[str, int] = {}
    formals: dict[str, int | None] = {}
    words: list[str] = []
    for name in r.sample(("B", "C", "N", "name", "self"), r.choice((0, 0, 0, 1, 2))):
        default = r.choice((None, 1, 2, 4))
        env[name], formals[name] = default or 1, default
        words += [*([","] if words else []), name, *([] if default is None else ["=", str(default)])]
    return env, formals, ["(", *words, ")"] if words or r.random() < 0.1 else []


def _derived(r: random.Random, known: _Known) -> list[str]:
    env, formals, words = _formals(r)
    base = r.choice([*known.spaces, *known.cells])
    theirs = known.spaces.get(base, {})
    given: list[str] = []
    for name, default in theirs.items():
        if default is None or r.random() < 0.5:
            given += [*([","] if given else []), name, "=", r.choice([*env, "2", "3"])]
    reference = [base, *(["(", *given, ")"] if given or r.random() < 0.1 else [])]
    where = ["where", *_condition(r, known, env, 3)] if r.random() < 0.7 else []
    name = known.new_name(r)
    known.spaces[name] = formals
    return ["space", name, *words, "=", *reference, *where]


def _condition(r: random.Random, known: _Known, env: dict[str, int], depth: int) -> list[str]:
    kind = r.random()
    if depth == 0 or kind < 0.4:
        return [*_measure(r, known, env), r.choice(RELATIONS), _bound(r, env)]
    if kind < 0.55:
        return ["not", *_bracketed(_condition(r, known, env, depth - 1), r, "and", "or")]
    joiner = r.choice(("and", "or"))
    words: list[str] = []
    for _ in range(r.choice((2, 2, 3))):
        part = _condition(r, known, env, depth - 1)
        words += [*([joiner] if words else []), *_bracketed(part, r, *(["or"] if joiner == "and" else []))]
    return words


def _bracketed(condition: list[str], r: random.Random, *weaker: str) -> list[str]:
    """The condition in parentheses, where it needs them against what stands around it, and sometimes where not."""
    for _ in range(r.choice((1, 1, 2)) if set(weaker) & set(condition) else r.choice((0, 0, 0, 1))):
        condition = ["(", *condition, ")"]
    return condition


def _bound(r: random.Random, env: dict[str, int]) -> str:
    return r.choice(
        (
            str(r.randint(0, 9)),
            str(r.randint(0, 10**12)),
            f"{r.randint(0, 999)}{r.choice('KMGT')}",
            f"{r.randint(0, 99)}.{r.randint(0, 999):03}{r.choice('KMGT')}",
            f"{r.randint(0, 99)}.0",
            *env,
        )
    )


def _measure(r: random.Random, known: _Known, env: dict[str, int]) -> list[str]:
    features = r.choice(("1", "320", "2048", *env))
    match r.choice(("depth", "branches", "params", "madds", "uses", "uses", "distance", "distance")):
        case "params":
            return ["params", "(", "F", "=", features, ")"]
        case "madds":
            first, second = ["F", "=", features], ["at", "=", f"{r.randint(1, 129)}x{r.randint(1, 129)}"]
            if r.random() < 0.3:
                first, second = second, first
            return ["madds", "(", *first, ",", *second, ")"]
        case "uses":
            bare = [r.choice(("conv1x1", "avgpool", "sepconv3x3"))] if r.random() < 0.5 else []
            rest = _alternatives(r, known, {}, 2) if not bare or r.random() < 0.3 else []
            return ["uses", "(", *bare, *(["|"] if bare and rest else []), *rest, ")"]
        case "distance":
            if known.cells and r.random() < 0.6:
                return ["distance", "(", r.choice(known.cells), ")"]
            inline = [
                word
                for number in range(1, r.choice((2, 2, 3, 4)))
                for word in _tuple_words(r, _tensor(r.randrange(number)), _operator(r), number)
            ]
            return ["distance", "(", *inline, ")"]
        case name:
            return [name, *(["(", ")"] if r.random() < 0.1 else [])]


# Hostile texts

_WORDS = (
    *("dpc", "1", "cell", "ops", "space", "from", "zoo", "import", "as", "where", "require", "filters", "optional"),
    *("any", "and", "or", "not", "x", "step", "F", "Y1", "Y2", "Y9", "Y0", "Y999999999999", "_", "a", "b", "top1"),
    *("paper", "conv1x1", "sepconv3x3", "avgpool", "rate", "grid", "params", "madds", "depth", "branches", "uses"),
    *("distance", "at", "B", "0", "2", "1x6", "18x15", "0x0", "400K", "0.4M", "0.0001", "99999999999999999999", "1..9"),
    *("(", ")", "{", "}", ",", "|", "=", "==", "<=", ">=", "<", ">", "!=", "*", "..", "...", '"', '"a.dpc"', '"/"'),
    *("#", "\n", " ", "\t", "\r", ";", "-1", "+", "×", "²", "٣", "\x00", "\ufeff", "\u2028", "\ud800", "é", "'", "\\"),
    *(
        "(F, conv1x1, Y1)",
        "(any, paper, _)",
        "cell a {",
        "space s(B = 3) {",
        "B * (any, conv1x1, _)",
        "=>",
        "//",
        "[1]",
    ),
)
_JSON_WORDS = (
    *("{", "}", "[", "]", ",", ":", '"input"', '"op"', '"kernel"', '"rate"', '"grid_size"', '"target_size"', '"conv"'),
    *('"pyramid_pooling"', '"branches"', '"operator"', '"kind"', '"parameters"', '"filters"', '"dpc"', '"F"', '"Y1"'),
    *("0", "1", "-1", "3", "1.0", "1e999", "-0", "NaN", "Infinity", "null", "true", "[1, 6]", "[3, 3]", '"\\ud800"'),
    *('"\\u0000"', '"', "\\", "99999999999999999999999", '"sepconv3x3"', '"conv1x1"', '"avgpool"', " ", "\n"),
)


def _random_text(r: random.Random) -> str:
    length = r.choice((0, 1, 3, 20, 200))
    kind = r.randrange(4)
    if kind == 0:
        return bytes(r.randrange(256) for _ in range(length)).decode("latin-1")
    if kind == 1:
        return "".join(chr(r.randrange(0x110000)) for _ in range(length))
    if kind == 2:
        return "".join(chr(r.randrange(32, 127)) for _ in range(length))
    return "".join(r.choice('(){},|=<>*.#"_xFY019 \n\t') for _ in range(length))


def _glued(r: random.Random) -> str:
    words = [r.choice(_WORDS) for _ in range(r.choice((1, 3, 8, 30, 100)))]
    return r.choice(("", " ", " ", "\n")).join(words)


def _glued_json(r: random.Random) -> str:
    return r.choice("[{") + "".join(r.choice(_JSON_WORDS) for _ in range(r.choice((1, 3, 8, 30, 100))))


def _mutated(r: random.Random, text: str, words: Sequence[str]) -> str:
    for _ in range(r.choice((1, 1, 2, 5))):
        unit = r.randrange(3)
        if unit == 0:
            parts = list(text)
        elif unit == 1:
            parts = text.split(" ")
        else:
            parts = text.split("\n")
        joiner = ("", " ", "\n")[unit]
        if not parts:
            return r.choice(words)
        at, other = r.randrange(len(parts)), r.randrange(len(parts))
        match r.randrange(6):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, parts[other])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts.insert(at, r.choice(words))
            case 4:
                parts[at] = r.choice(words)
            case _:
                del parts[min(at, other) : max(at, other)]
        text = joiner.join(parts)
    return text


def _mutated_file(r: random.Random) -> str:
    text = file_text(r, r.choice((0, 1, 2, 4)), r.choice((1, 3, 6)), r.choice((0.0, 0.1, 0.4))).text
    return _mutated(r, text, _WORDS)


def random_cell(r: random.Random, largest: int = 6) -> Cell:
    """Of the paper's operators, with 256 filters."""

    def operator() -> Operator:
        pair = r.randint(1, 24), r.randint(1, 24)
        return r.choice(
            (Operator.of("conv1x1"), Operator.of("sepconv3x3", rate=pair), Operator.of("avgpool", grid=pair))
        )

    return Cell.of(*((r.randrange(number), operator()) for number in range(1, r.randint(2, largest + 1))))


def _mutated_json(r: random.Random) -> str:
    from dpcdsl import to_deeplab, to_json

    cell = random_cell(r)
    value = (
        r.choice((to_json, to_deeplab))(cell)
        if r.random() < 0.8
        else [r.randint(-2, 90) for _ in range(r.randint(1, 12))]
    )
    text = json.dumps(value, indent=r.choice((None, None, 1)))
    return _mutated(r, text, _JSON_WORDS) if r.random() < 0.9 else text


def _nested(r: random.Random) -> str:
    depth = r.choice((5, 49, 50, 51, 300, 1500))
    inner = "depth <= 3"
    return r.choice(
        (
            "space s = top1 where " + "(" * depth + inner + ")" * depth,
            "space s = top1 where " + "not " * depth + inner,
            "space s = top1 where " + "depth < 9 and (" * depth + inner + ")" * depth,
            "space s = top1 where " + "depth < 9 or (not (" * depth + inner + "))" * depth,
            "not (depth <= 1 or " * depth + inner + ")" * depth,
            "{" * depth + "}" * depth,
            "cell a " + "{" * depth + "(F, conv1x1, Y1)",
            "(F, " + "{" * depth + "1" + "}" * depth + ", Y1)",
            "[" * depth + "]" * depth,
            '{"a":' * depth + "1" + "}" * depth,
            '{"branches": [{"input": "F", "operator": ' + "[" * depth + "]" * depth + "}]}",
            '[{"op": "conv", "input": -1, "kernel": ' + "[" * depth + "]" * depth + "}]",
            '[{"op": ' + '{"a": ' * depth + "1" + "}" * depth + "}]",
        )
    )


def _huge(r: random.Random) -> str:
    digits = "9" * r.choice((9, 10, 19, 20, 30, 31, 40, 41, 4299, 4300, 4301, 20000))
    name = "a" * r.choice((40, 64, 65, 255, 256, 5000))
    return r.choice(
        (
            f"dpc {digits}",
            digits,
            f"(F, avgpool grid {digits}x1, Y1)",
            f"(F, avgpool grid {{1..{digits}}} x 1, Y1)",
            f"(F, avgpool grid {{{digits}..{digits}}} x {{1..{digits} step {digits}}}, Y1)",
            f"(Y{digits}, conv1x1, Y{digits})",
            f"space s {{ {digits} * (any, conv1x1, _) }}",
            f"space s(B = {digits}) {{ B * (any, conv1x1, _) }}",
            f"space s = top1 where params(F={digits}) <= {digits}.{digits}K",
            f"params(F={digits}) <= {digits}",
            f"madds(F=1, at={digits}x{digits}) <= {digits}T",
            f"filters {digits} (F, conv1x1, _)",
            f"[{digits}, 0]",
            f"[-{digits}, {digits}]",
            f'{{"branches": [], "filters": {digits}}}',
            f'[{{"input": {digits}, "op": "conv", "kernel": {digits}}}]',
            f'{{"branches": [{{"input": "Y{digits}", "operator": {{"kind": "{name}"}}}}]}}',
            '{"branches": [{"input": "F", "operator": {"kind": "avgpool", "parameters": {"grid": [1, '
            + digits
            + "]}}}]}",
            f"cell {name} {{ (F, {name}, {name}) }} cell {name} {{ }}",
            f"from zoo import {name}, top1 as {name}",
            f'from "{name}" import {name}',
            f'from "{"a/" * 3000}b" import c',
            f"({name}, {name} {name} 1x1, {name})",
            f"{name}",
            f"{name}(B={digits})",
            f"{name}.dpc:{name}",
            f"space {name}({name}, {name}) {{ {name} * (any, {name}, _) filters {name} }}",
            f"space a {{ (any, conv1x1, _) require {name}({name}={name}) < {name} }}",
            f"{name}({name}) <= 1",
            f'{{"{name}": 1, "{name}": 2}}',
            f'{{"branches": [], "{name}": 2}}',
            f'[{{"{name}": 1, "op": "{name}"}}]',
        )
    )


def _many(r: random.Random) -> str:
    n = r.choice((50, 300, 800))
    few = min(n, 300)
    return r.choice(
        (
            "".join(f"cell c{i} {{ (F, conv1x1, _) }}\n" for i in range(n)),
            "".join(f"space c{i} = z{i}\n" for i in range(n)),
            "cell a { (F, conv1x1, _) }\n" * n,
            "ops c0 = conv1x1\n"
            + "".join(f"ops c{i + 1} = c{i} | c{i} | avgpool grid {i + 1}x1\n" for i in range(few)),
            "ops a = avgpool grid {1..99} x {1..99}\n" + "".join(f"ops b{i} = a | a | a\n" for i in range(few)),
            "space c0(B = 1) { B * (any, conv1x1, _) }\n"
            + "".join(f"space c{i + 1}(B = 1) = c{i}(B = B)\n" for i in range(few)),
            "space c0 { 9 * (any, conv1x1, _) }\n"
            + "".join(f"space c{i + 1} = c{i} where depth <= {i}\n" for i in range(few)),
            "space s { (F, conv1x1, _)" + " require depth <= 3" * n + " }",
            "space s { (F, conv1x1, _) require depth <= 3" + " and branches <= 3" * n + " }",
            "space s { (F, conv1x1, _) require distance(" + "(F, conv1x1, _)" * n + ") <= 3 }",
            "space s {" + "(any, conv1x1, _) " * n + "}",
            "space s {" + "9 * (any, avgpool grid {1..9} x {1..99}, _) " * few + "}",
            "space s {" + "({F}, conv1x1, Y1) " * n + "}",
            "cell s {" + "({F, Y1}, cnv1x1, Y1) " * n + "}",
            "cell s {" + "(X) " * n + "}",
            "(F, conv1x1, _)\n" * n,
            "(F, " + "conv1x1 | " * n + "conv1x1, Y1)",
            "(F, sepconv3x3" + " rate 1x1" * n + ", Y1)",
            "({F" + ", F" * n + "}, conv1x1, Y1)",
            "from zoo import top1\n" * n,
            "from zoo import top1" + ", top1" * n,
            'from "nowhere.dpc" import a\n' * n,
            "space s(" + ", ".join(f"p{i}" for i in range(n)) + ") { (F, conv1x1, _) }\nspace t = s(q = 1)",
            "# a comment\n" * n + "(F, conv1x1, _)" + "# b\n" * n,
            "[" + "0, " * n + "0]",
            "[" + "{}, " * n + "{}]",
            '{"branches": [' + "{}, " * n + "{}]}",
            '{"branches": [], ' + ", ".join(f'"k{i}": 1' for i in range(n)) + "}",
            "[{" + ", ".join(f'"k{i}": 1' for i in range(n)) + "}]",
            '{"branches": [{"input": "F", "operator": {"kind": "conv1x1", "parameters": {'
            + ", ".join(f'"k{i}": 1' for i in range(n))
            + "}}}]}",
        )
    )


_HOSTILE: tuple[tuple[float, Callable[[random.Random], str]], ...] = (
    (0.14, _random_text),
    (0.36, _glued),
    (0.44, _glued_json),
    (0.80, _mutated_file),
    (0.955, _mutated_json),
    (0.97, _nested),
    (0.99, _huge),
    (1.0, _many),
)


def hostile_text(r: random.Random) -> str:
    """What nobody should have to read: noise, words of the language glued together, valid texts with something amiss,
    and too much of everything."""
    at = r.random()
    return next(make for until, make in _HOSTILE if at < until)(r)


# Too much of one thing, in texts of any size


def _repeat(unit: str, before: str = "", after: str = "") -> Callable[[int], str]:
    return lambda size: before + unit * ((size - len(before) - len(after)) // len(unit)) + after


def _numbered(unit: str, before: str = "", after: str = "") -> Callable[[int], str]:
    """``unit`` again and again, with N as its number and M as the next one."""

    def text(size: int) -> str:
        parts, length, number = [before], len(before) + len(after), 0
        while length < size:
            parts.append(unit.replace("N", str(number)).replace("M", str(number + 1)))
            length += len(parts[-1])
            number += 1
        return "".join(parts[:-1]) + after

    return text


def _around(before: str, inner: str, after: str, start: str = "") -> Callable[[int], str]:
    """``inner`` between as many of ``before`` as of ``after``."""

    def text(size: int) -> str:
        times = (size - len(start) - len(inner)) // (len(before) + len(after))
        return start + before * times + inner + after * times

    return text


_SPACE = "space a { (F, conv1x1, _) require "
OVERSIZED: dict[str, Callable[[int], str]] = {
    "one word": _repeat("a"),
    "one line": _repeat("cell a { (F, conv1x1, _) } "),
    "blanks": _repeat(" "),
    "lines": _repeat("\n", "", "cell a { (F, conv1x1, _) }\n# end"),
    "zeros": _repeat("\0"),
    "parentheses": _repeat("("),
    "parentheses in a condition": _repeat("(", "space s = a where "),
    "balanced parentheses": _around("(", "depth < 1", ")", "space s = a where "),
    "braces": _repeat("{"),
    "empty cells": _repeat("cell a{}"),
    "comments": _repeat("#\n"),
    "one comment": _repeat("#"),
    "comments before a cell": _repeat("#\n", "", "cell a { (F, conv1x1, _) }"),
    "a comment at the end": _repeat("(F,conv1x1,_)", "space a {", "} # end"),
    "cells": _numbered("cell cN{(F,conv1x1,_)}\n"),
    "cells of one name": _repeat("cell c{(F,conv1x1,_)}\n"),
    "operator sets": _numbered("ops cN=conv1x1\n"),
    "spaces": _numbered("space cN{(F,conv1x1,_)}\n"),
    "spaces of one set": _numbered("space cN{(F,p,_)}\n", "ops p=conv1x1\n"),
    "derived spaces": _numbered("space cN=a\n", "space a{(F,conv1x1,_)}\n"),
    "a chain of derived spaces": _numbered("space cM=cN where depth<9\n", "space c0{(F,conv1x1,_)}\n"),
    "spaces made anew": _numbered("space cN=a(B=2)\n", "space a(B=1){B*(any,conv1x1,_)}\n"),
    "large spaces made anew": _numbered(
        "space cN=a(B=2)\n", "space a(B=1){255*(any,conv1x1,_)(any,avgpool grid {1..99}xB,_)}\n"
    ),
    "a chain of parameters": _numbered("space cM(B=1)=cN(B=B)\n", "space c0(B=1){B*(any,conv1x1,_)}\n"),
    "unknown bases": _numbered("space cN=zN\n"),
    "unknown operators": _numbered("ops cN=zN\n"),
    "one unknown operator": _numbered("ops cN=z\n"),
    "broken tuples alike": _repeat("(x)", "cell a{", "}"),
    "broken tuples": _numbered("(N)", "cell a{", "}"),
    "cells of broken tuples": _numbered("cell cN{(N)}"),
    "unknown inputs": _numbered("(XN,conv1x1,_)", "cell a{", "}"),
    "cells of unknown inputs": _numbered("cell cN{(XN,conv1x1,_)}"),
    "unusual branches": _repeat("({F},conv1x1,_)", "cell a{", "}"),
    "branches": _repeat("(F,conv1x1,_)"),
    "branches of a space": _repeat("(F,conv1x1,_)", "space a{", "}"),
    "filters": _repeat("filters 1 ", "cell a{", "}"),
    "digits": _repeat("1"),
    "a version of digits": _repeat("1", "dpc "),
    "a bound of digits": _repeat("1", "space s=a where depth<"),
    "a height of digits": _repeat("1", "ops a=avgpool grid ", "x1"),
    "not": _repeat("not ", "space s=a where ", "depth<1"),
    "unions": _repeat("|conv1x1", "ops a=conv1x1"),
    "bars": _repeat("|a", "ops a=a"),
    "unions of a large set": _repeat("|p", "ops p=avgpool grid {1..99}x{1..99}\nops q=p"),
    "numbers of a set": _repeat(",1", "ops a=avgpool grid {1", "}x1"),
    "ranges": _repeat(",1..9", "ops a=avgpool grid {1", "}x1"),
    "parameters given again": _repeat(" rate 1x1", "ops a=sepconv3x3"),
    "and": _repeat(" and depth<1", f"{_SPACE}depth<1", "}"),
    "or": _repeat(" or depth<1", f"{_SPACE}depth<1", "}"),
    "conditions": _repeat(" require depth<1", "space a{(F,conv1x1,_)", "}"),
    "wrong conditions": _repeat(" require depht<1", "space a{(F,conv1x1,_)", "}"),
    "and in and": _around("depth<1and(", "depth<1", ")", "space s=a where "),
    "or in or": _around("depth<1or(", "depth<1", ")", "space s=a where "),
    "and in or": _around("depth<1or(depth<1and(", "depth<1", "))", "space s=a where "),
    "a long cell in a condition": _repeat("(F,conv1x1,_)", f"{_SPACE}distance(", ")<1}"),
    "cells in conditions": _repeat(" require distance((F,conv1x1,_))<1", "space a{(F,conv1x1,_)", "}"),
    "kinds in a condition": _repeat("|avgpool", f"{_SPACE}uses(avgpool", ")<1}"),
    "arguments": _repeat("F=1,", f"{_SPACE}params(", "F=1)<1}"),
    "imports": _repeat("from zoo import dpc\n"),
    "imports under new names": _numbered("from zoo import dpc as dN\n"),
    "names of one import": _numbered(",dpc as dN", "from zoo import top1"),
    "imports of nothing": _repeat('from "nowhere.dpc" import a\n'),
    "parameters": _numbered("aN,", "space s(", "b){(F,conv1x1,_)}"),
    "parameters alike": _repeat("a,", "space s(", "b){(F,conv1x1,_)}"),
    "arguments of a space": _numbered("aN=1,", "from zoo import dpc\nspace s=dpc(", "b=1)"),
    "a long name": _repeat("a", "cell ", "{(F,conv1x1,_)}"),
    "unions of unions": _numbered("ops cM=cN|conv1x1\n", "ops c0=conv1x1\n"),
    "lists in lists": _repeat("["),
    "balanced lists": _around("[", "", "]"),
    "objects in objects": _repeat('{"a":'),
    "empty lists": _repeat("[],", "[", "[]]"),
    "empty objects": _repeat("{},", "[", "{}]"),
    "empty branches": _repeat("{},", '{"branches":[', "{}]}"),
    "wrong operators": _repeat('{"input":"F","operator":{"kind":"x"}},', '{"branches":[', "{}]}"),
    "branches of DeepLab": _repeat('{"input":-1,"op":"conv","kernel":1},', "[", "{}]"),
    "wrong branches of DeepLab": _repeat('{"input":9,"op":"pool"},', "[", "{}]"),
    "keys": _numbered('"kN":0,', "{", '"z":1}'),
    "a key twice": _numbered('"kN":0,', "{", '"z":1,"z":2}'),
    "keys of a cell": _numbered('"kN":0,', '{"branches":[],', '"z":1}'),
    "keys of a branch": _numbered('"kN":0,', "[{", '"z":1}]'),
    "parameters in JSON": _numbered(
        '"kN":0,', '{"branches":[{"input":"F","operator":{"kind":"conv1x1","parameters":{', '"z":1}}}]}'
    ),
    "a vector": _repeat("0,0,", "[", "0,0]"),
    "a number in JSON": _repeat("1", "[", "]"),
    "a string in JSON": _repeat("a", '["', '"]'),
}

#: The same, where the whole text is one branch tuple.
OVERSIZED_TUPLES: dict[str, Callable[[int], str]] = {
    "a tuple that does not end": _repeat("a", "(F,"),
    "a tuple of one word": _repeat("a", "(F,", ",_)"),
    "a tuple of digits": _repeat("1", "(F,avgpool grid 1x", ",_)"),
    "a tuple of comments": _repeat("#\n", "(F,", "conv1x1,_)"),
    "a tuple of blanks": _repeat(" ", "(F,", "conv1x1,_)"),
    "a tuple of bars": _repeat("|a", "(F,a", ",_)"),
    "a tuple of inputs": _repeat(",Y1", "({F", "},conv1x1,_)"),
}
