"""Text laid out by the formatter means what it meant, keeps its comments, and is laid out once and for all; and every
value can be written as text and read back."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

import generators
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Cell,
    Document,
    DpcError,
    Operator,
    OperatorSet,
    Slot,
    Space,
    format_cell,
    format_space,
    format_text,
    parse,
    parse_cell,
    parse_condition,
)
from dpcdsl.constraints import (
    LARGEST_BOUND,
    MAX_DEPTH,
    AllOf,
    AnyOf,
    Branches,
    Comparison,
    Depth,
    Distance,
    Not,
    Uses,
)
from dpcdsl.syntax import zoo


@st.composite
def texts(draw: st.DrawFn) -> generators.Text:
    """Valid files; what there is in one comes from a seed, how much from Hypothesis, so that failures stay small."""
    items = draw(st.integers(0, 8))
    branches = draw(st.sampled_from((2, 5, 12, 64)))
    wildness = draw(st.sampled_from((0.0, 0.1, 0.5, 0.9)))
    return generators.file_text(random.Random(draw(st.integers(0, 2**32))), items, branches, wildness)


def meaning(document: Document) -> list[Any]:
    """Every value in a text, in order, the spaces with several values of their parameters."""
    found: list[Any] = []
    for definition in document:
        settings_of_it = [
            dict(zip(definition.parameters, values, strict=False))
            for values in ((2, 2), (3, 1))
            if definition.parameters
        ]
        found.append((definition.name, definition.value, dict(definition.parameters)))
        for chosen in settings_of_it:
            try:
                found.append(definition.space(**chosen))
            except DpcError as error:
                found.append([(d.code, d.message) for d in error.diagnostics])
    return found


def comments_in(text: str) -> Counter[str]:
    # The generated texts import only from the zoo, so that a `#` always starts a comment.
    return Counter(line[line.index("#") :].rstrip() for line in text.split("\n") if "#" in line)


@settings(max_examples=300)
@given(texts())
def test_formatting_keeps_values_and_comments_and_is_done_once(generated: generators.Text) -> None:
    formatted = format_text(generated.text)
    assert meaning(parse(formatted)) == meaning(parse(generated.text))
    assert comments_in(formatted) == Counter(comment.rstrip() for comment in generated.comments)
    assert format_text(formatted) == formatted


@settings(max_examples=100)
@given(texts())
def test_layout(generated: generators.Text) -> None:
    formatted = format_text(generated.text)
    assert formatted.endswith("\n")
    assert not formatted.startswith("\n")
    assert "\n\n\n" not in formatted
    for line in formatted.split("\n")[:-1]:
        code = line.partition("#")[0]
        assert "\t" not in code
        assert "\r" not in code
        assert line == line.rstrip()


@given(texts())
def test_the_layout_of_the_text_does_not_matter(generated: generators.Text) -> None:
    """The same words, apart by other white space, are the same file."""
    blank = re.sub(r"#[^\n]*", "", generated.text)
    assert meaning(parse(blank)) == meaning(parse(generated.text))
    assert meaning(parse(re.sub(r"[ \t\r\n]+", "\r\n\t", blank))) == meaning(parse(blank))


def test_the_generated_texts_hold_everything_that_the_language_has() -> None:
    words = Counter(word for seed in range(300) for word in generators.file_words(random.Random(seed), seed % 9, 6))
    sought = {
        *("dpc", "from", "import", "as", "cell", "ops", "space", "filters", "optional", "require", "where", "any"),
        *("and", "or", "not", "step", "..", "x", "|", "*", "_", "{", "depth", "branches", "params", "madds", "uses"),
        *("distance", "<=", "<", ">=", ">", "==", "!=", "B", "top1", "paper", "at", "F", "="),
    }
    assert sought - words.keys() == set()
    assert any(re.fullmatch(r"\d+\.\d+[KMGT]", word) for word in words)


# Where comments go


def formatted(*lines: str) -> list[str]:
    return format_text("\n".join(lines)).split("\n")[:-1]


def test_comments_stay_where_they_were() -> None:
    lines = [
        "# first",
        "",
        "dpc 1  # version",
        "",
        "# above the import",
        "from zoo import top1, dpc  # behind the import",
        "",
        "# above the cell",
        "",
        "# still above",
        "cell a {  # behind the brace",
        "  # above the filters",
        "  filters 32  # behind the filters",
        "  (F,  conv1x1,          Y1)  # behind a branch",
        "",
        "  # above a branch",
        "  (Y1, avgpool grid 1x1, Y2)",
        "  # above the closing brace",
        "}  # behind the closing brace",
        "",
        "space s = dpc where depth <= 3  # at most (3)",
        "space t(B = 2) = dpc(B=B)  # two (of them)",
        "# last",
    ]
    assert formatted(*lines) == lines


def test_comments_inside_a_construct_move_above_it() -> None:
    assert formatted("cell a {", "(F, # one", "conv1x1, # two (", "Y1) # three", "}") == [
        "cell a {",
        "  # one",
        "  # two (",
        "  (F, conv1x1, Y1)  # three",
        "}",
    ]
    assert formatted("space s = top1 # one", "where # two", "depth <= # three )", "3 # four") == [
        "# one",
        "# two",
        "# three )",
        "space s = top1 where depth <= 3  # four",
    ]
    assert formatted("space s(B=1 # {", ") # two", "{ # three", "(F, conv1x1, _) }") == [
        "# {",
        "# two",
        "space s(B = 1) {  # three",
        "  (F, conv1x1, _)",
        "}",
    ]


def test_comments_between_the_terms_of_an_operator_set() -> None:
    assert formatted("ops a = # one", "conv1x1 # two", "# three", "| avgpool grid 1x1 # four") == [
        "# one",
        "ops a = conv1x1  # two",
        "      # three",
        "      | avgpool grid 1x1  # four",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "space s = top1 where (depth <= 3) # (a) ) (b",
        "space s = top1 where (depth <= 3 # )\n) # b",
        "space s = top1() # )\n",
        "space s = dpc(B=3 # )\n) # b",
        "space s { (F, conv1x1, _) require not (depth <= 3) # )\n# )\n}",
        "cell a # {\n{ (F, conv1x1, _) # }\n}",
        'from "a#b.dpc" # c\nimport a',
        "(F, conv1x1, Y1) # no newline",
        "# only a comment",
        "#",
        "",
        "\ufeff# marked\n(F, conv1x1, Y1)",
    ],
)
def test_signs_in_comments_and_strings(text: str) -> None:
    once = format_text(text)
    assert format_text(once) == once
    outside_strings = re.sub(r'"[^"\n]*"', '""', once)
    assert comments_in(outside_strings) == comments_in(re.sub(r'"[^"\n]*"', '""', text))


def test_a_comment_behind_a_condition_stays_behind_it() -> None:
    text = "space s = top1 where (depth <= 3 or branches <= 2)  # at most (3)\n"
    assert format_text(text).endswith("branches <= 2  # at most (3)\n")


def test_blank_lines_are_kept_single() -> None:
    assert formatted(
        "", "", "cell a {", "", "(F, conv1x1, Y1)", "", " \t", "", "(F, conv1x1, Y2)", "", "}", "", ""
    ) == [
        "cell a {",
        "  (F, conv1x1, Y1)",
        "",
        "  (F, conv1x1, Y2)",
        "}",
    ]


def test_long_constructs_are_broken_and_stay_so() -> None:
    terms = [f"sepconv3x3 rate {i}x{i}" for i in range(1, 12)]
    lines = formatted("ops a = " + " | ".join(terms))
    assert lines[0] == "ops a = sepconv3x3 rate 1x1"
    assert lines[1:] == [f"      | {term}" for term in terms[1:]]
    lines = formatted("space s {", "2 * (any, " + " | ".join(terms) + ", _)", "}")
    assert lines[1] == "  2 * (any,"
    assert lines[-2] == "       _)"
    assert "\n".join(formatted(*lines)) == "\n".join(lines)


# Values as text


@settings(max_examples=120)
@given(generators.cells())
@example(Cell.of(*((i, Operator.of("conv1x1")) for i in range(256))))
def test_a_cell_is_read_back(cell: Cell) -> None:
    assert parse_cell(str(cell)) == cell
    assert parse_cell(format_cell(cell)) == cell
    document = parse(format_cell(cell, "mine"))
    assert document.cells == {"mine": cell}
    assert format_text(format_cell(cell, "mine")) == format_cell(cell, "mine")


@settings(max_examples=150)
@given(generators.spaces())
def test_a_space_is_read_back(space: Space) -> None:
    text = format_space(space, "s")
    assert parse(text).space("s") == space
    assert parse(f"space s {{ {space} }}").space() == space
    assert format_text(text) == text


@given(generators.constraints())
def test_a_constraint_is_read_back(constraint: Any) -> None:
    assert parse_condition(str(constraint)) == constraint


def test_operators_with_parameters_of_every_shape_are_read_back() -> None:
    with generators.registered(generators.GROUPED):

        @settings(max_examples=50, database=None)
        @given(generators.cells(5, generators.grouped_operators()))
        def check_cell(cell: Cell) -> None:
            assert parse_cell(str(cell)) == cell

        @settings(max_examples=50, database=None)
        @given(generators.operator_sets(generators.grouped_operators()))
        def check_set(chosen: OperatorSet) -> None:
            assert parse(f"ops a = {chosen}")["a"].value == chosen

        check_cell()
        check_set()
        product = [Operator.of("grouped", groups=g, size=(h, w)) for g in (1, 2, 4) for h in (1, 3, 5) for w in (2, 7)]
        chosen = OperatorSet.of(product)
        assert str(chosen) == "grouped groups {1, 2, 4} size {1..5 step 2} x {2, 7}"
        assert parse(f"ops a = {chosen}")["a"].value == chosen


@given(generators.operator_sets())
def test_an_operator_set_is_read_back(chosen: OperatorSet) -> None:
    assert parse(f"ops a = {chosen}")["a"].value == chosen
    assert len(chosen.operators) == len(set(chosen.operators))


def test_the_zoo_is_read_back() -> None:
    for name, definition in zoo().items():
        value = definition.value
        if isinstance(value, Cell):
            assert parse_cell(format_cell(value, name)) == value
        elif isinstance(value, Space):
            assert parse(format_space(value, name)).space() == value


CONV = OperatorSet.of([Operator.of("conv1x1")])
DEPTH_3 = Comparison(measure=Depth(), relation="<=", bound=3)
TWO = Comparison(measure=Branches(), relation="!=", bound=2)


def test_repeated_optional_branches() -> None:
    slot = Slot(inputs=None, operators=CONV, optional=True)
    space = Space(slots=(slot,) * 3, constraints=(generators.AT_LEAST_ONE,))
    assert str(space) == "optional 3 * (any, conv1x1, _) require branches >= 1"
    assert parse(format_space(space, "s")).space() == space


def test_conditions_inside_conditions() -> None:
    deep = AllOf(all_of=(AnyOf(any_of=(Not(negated=AllOf(all_of=(DEPTH_3, TWO))), DEPTH_3)), Not(negated=TWO)))
    assert str(deep) == "(not (depth <= 3 and branches != 2) or depth <= 3) and not branches != 2"
    assert parse_condition(str(deep)) == deep


def test_nested_alike_is_one() -> None:
    assert AllOf(all_of=(AllOf(all_of=(DEPTH_3, TWO)), TWO)) == AllOf(all_of=(DEPTH_3, TWO, TWO))
    assert AnyOf(any_of=(TWO, AnyOf(any_of=(DEPTH_3, TWO)))) == AnyOf(any_of=(TWO, DEPTH_3, TWO))


def test_the_deepest_condition_is_read_back() -> None:
    deepest: Any = DEPTH_3
    for _ in range(MAX_DEPTH - 1):
        deepest = Not(negated=deepest)
    assert parse_condition(str(deepest)) == deepest
    with pytest.raises(DpcError) as caught:
        Not(negated=deepest)
    assert caught.value.codes == ("DPC007",)


def test_bounds_of_any_size_are_read_back() -> None:
    for bound in (0, 999, 1000, 2**31, 10**12 + 1, 3 * 10**9, 10**29 + 1, LARGEST_BOUND - 1, LARGEST_BOUND):
        condition = Comparison(measure=Depth(), relation="<", bound=bound)
        assert parse_condition(str(condition)) == condition
    for bound in (-1, LARGEST_BOUND + 1):
        with pytest.raises(DpcError):
            Comparison(measure=Depth(), relation="<", bound=bound)


def test_what_a_measure_means_is_kept_in_one_way() -> None:
    conv, pool = Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))
    assert Uses(operators=(conv, pool, pool)) == Uses(kinds=("conv1x1",), operators=(pool,))
    assert Uses(kinds=("avgpool", "avgpool"), operators=(pool,)) == Uses(kinds=("avgpool",))
    assert Distance(to=Cell.of((0, conv), filters=8)) == Distance(to=Cell.of((0, conv)))
    for wrong in ({}, {"kinds": ("nothing",)}):
        with pytest.raises(DpcError):
            Uses(**wrong)  # type: ignore[arg-type]
