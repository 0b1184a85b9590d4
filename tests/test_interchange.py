"""Every form of a cell holds all of it, and what a form cannot hold, or is not one, is refused by name and place."""

from __future__ import annotations

import json
from typing import Any

import generators
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Branch,
    Cell,
    DpcError,
    Operator,
    OperatorSet,
    Slot,
    Space,
    from_deeplab,
    from_json,
    from_vector,
    parse,
    read_cell,
    read_space,
    to_deeplab,
    to_json,
    to_vector,
    zoo,
)
from dpcdsl.errors import Source
from dpcdsl.interchange import FORMS, cell_from_text, paper_space, spell
from dpcdsl.json_text import Places, parse_json

CONV = Operator.of("conv1x1")
PUBLISHED = """
[{"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1}, {"kernel": 3, "rate": [18, 15], "op": "conv", "input": 0},
{"kernel": 3, "rate": [6, 3], "op": "conv", "input": 1}, {"kernel": 3, "rate": [1, 1], "op": "conv", "input": 0},
{"kernel": 3, "rate": [6, 21], "op": "conv", "input": 0}]
"""
PAPER = zoo()["paper"].value
assert isinstance(PAPER, OperatorSet)


def refusal(call: Any, *arguments: Any) -> DpcError:
    with pytest.raises(DpcError) as caught:
        call(*arguments)
    return caught.value


# Round trips


@settings(max_examples=200)
@given(generators.cells(64, filters=st.just(256)))
def test_any_cell_of_the_papers_kinds_goes_through_every_form(cell: Cell) -> None:
    anything = Space(
        slots=(Slot(inputs=None, operators=OperatorSet.of(b.operator for b in cell.branches)),) * len(cell)
    )
    for form in FORMS:
        text = spell(cell, form, name="mine", space=anything)
        assert cell_from_text(text, space=anything) == cell
        assert cell_from_text(f"\n\t {text}\r\n", space=anything) == cell
    assert from_json(json.dumps(to_json(cell), indent=2)) == cell
    assert from_deeplab(to_deeplab(cell)) == cell
    assert from_vector(to_vector(cell, anything), anything) == cell
    assert read_cell(str(cell)) == cell


@settings(max_examples=60)
@given(generators.cells(8))
def test_filters_are_kept_or_refused(cell: Cell) -> None:
    for form in ("text", "line", "json"):
        assert cell_from_text(spell(cell, form)) == cell
    if cell.filters == 256:
        assert cell_from_text(spell(cell, "deeplab")) == cell
    else:
        assert refusal(to_deeplab, cell).codes == ("DPC052",)


def test_operators_that_deeplab_does_not_know_are_refused_all_at_once() -> None:
    with generators.registered(generators.GROUPED):
        odd = Operator.of("grouped", groups=2, size=(1, 3))
        cell = Cell.of((0, odd), (1, CONV), (0, odd), filters=8)
        error = refusal(to_deeplab, cell)
        assert error.codes == ("DPC052",) * 3
        assert [d.place for d in error.diagnostics] == ["branch 1", "branch 3", None]
        assert from_json(json.dumps(to_json(cell))) == cell


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(*(st.tuples(st.integers(0, i), st.integers(0, 80)) for i in range(n)))
    )
)
def test_vectors_of_the_papers_space(choices: Any) -> None:
    vector = [number for pair in choices for number in pair]
    cell = from_vector(vector)
    assert to_vector(cell) == vector
    assert [PAPER.operators[operator] for _, operator in choices] == [branch.operator for branch in cell.branches]
    assert [source for source, _ in choices] == [branch.input for branch in cell.branches]
    assert cell_from_text(json.dumps(vector)) == cell


@settings(max_examples=150)
@given(generators.spaces(6, conditions=st.just(generators.AT_LEAST_ONE)), st.data())
def test_vectors_of_any_space(space: Space, data: st.DataObject) -> None:
    """Random choices make a cell of the space, which lies in it by the same choices or earlier ones."""
    choices: list[tuple[int, int] | None] = []
    there = {0}
    for number, slot in enumerate(space.slots, 1):
        if slot.optional and data.draw(st.booleans()):
            choices.append(None)
            continue
        source = data.draw(st.sampled_from([i for i in space.candidates(number) if i in there]))
        choices.append((source, data.draw(st.integers(0, len(slot.operators) - 1))))
        there.add(number)
    if len(there) == 1:
        return
    cell = space.decode(choices)
    assert cell in space
    vector = to_vector(cell, space)
    assert from_vector(vector, space) == cell
    if not any(slot.optional for slot in space.slots):
        assert vector == [number for choice in choices for number in choice or ()]


def test_vectors_that_are_none() -> None:
    for wrong in ([], [0], [0, 81], [1, 0], [-1, -1], [-1, 0], [0, -1], [0.0, 1], ["0", 1], [None, 1], [10**5000, 0]):
        assert refusal(from_vector, wrong).codes == ("DPC054",), wrong
    assert refusal(from_vector, [0, 0] * 257).codes == ("DPC021",)
    for text in ("[0]", "[0, 81]", "[1, 0]", "[0, 0, 0, 99]", "[true, false]", "[0, 1" + "0" * 4000 + "]"):
        error = refusal(cell_from_text, text)
        assert error.codes == ("DPC054",)
        assert error.diagnostics[0].span is not None


def test_cells_that_are_not_in_the_space() -> None:
    other = Cell.of((0, Operator.of("avgpool", grid=(3, 3))))
    assert refusal(to_vector, other).codes == ("DPC055",)
    assert "avgpool grid 3x3" in str(refusal(to_vector, other))
    assert refusal(to_vector, Cell.of((0, CONV)), paper_space(2)).codes == ("DPC055",)
    assert refusal(to_vector, Cell.of((0, CONV), filters=8)).codes == ("DPC055",)
    narrowed = read_space("dpc(B=1) where branches > 1")
    assert "branches > 1" in str(refusal(to_vector, Cell.of((0, CONV)), narrowed))


def test_the_forms_as_they_are_written() -> None:
    cell = Cell.of((0, CONV), (1, Operator.of("avgpool", grid=(2, 4))), filters=32)
    assert spell(cell, "line") == "filters 32 (F, conv1x1, Y1) (Y1, avgpool grid 2x4, Y2)"
    assert spell(cell, "text", name="a") == (
        "cell a {\n  filters 32\n  (F,  conv1x1,          Y1)\n  (Y1, avgpool grid 2x4, Y2)\n}"
    )
    assert json.loads(spell(cell, "json")) == {
        "dpc": 1,
        "filters": 32,
        "branches": [
            {"input": "F", "operator": {"kind": "conv1x1", "parameters": {}}},
            {"input": "Y1", "operator": {"kind": "avgpool", "parameters": {"grid": [2, 4]}}},
        ],
    }
    assert to_deeplab(Cell(branches=cell.branches)) == [
        {"kernel": 1, "op": "conv", "input": -1},
        {"grid_size": [2, 4], "op": "pyramid_pooling", "input": 0},
    ]
    assert to_vector(Cell(branches=cell.branches)) == [0, 0, 1, PAPER.operators.index(cell.branches[1].operator)]
    assert refusal(spell, cell, "yaml").codes == ("DPC062",)


# DeepLab's JSON


def test_the_published_cell() -> None:
    top1 = read_cell("top1")
    assert from_deeplab(PUBLISHED) == top1
    assert cell_from_text(PUBLISHED) == top1
    assert to_deeplab(top1) == json.loads(PUBLISHED)


@settings(max_examples=150)
@given(generators.cells(6, filters=st.just(256)), st.data())
def test_what_the_authors_code_accepts(cell: Cell, data: st.DataObject) -> None:
    """The same cell, spelt with all the freedom that code leaves."""
    elements = to_deeplab(cell)
    for element in elements:
        if element["input"] == -1:
            element["input"] = data.draw(st.integers(max_value=-1))
        if "kernel" in element:
            side = element["kernel"]
            element["kernel"] = data.draw(st.sampled_from((side, [side, side])))
            if side == 1 and data.draw(st.booleans()):
                element["rate"] = data.draw(st.sampled_from(([1, 6], 3, None, "x", [[]], [0, -1])))
        elif data.draw(st.booleans()):
            element["kernel"] = data.draw(st.sampled_from(([9, 17], 3, None)))
        if data.draw(st.booleans()):
            element["target_size"] = data.draw(st.sampled_from(([33, 33], None, "any")))
    shuffled = [dict(data.draw(st.permutations(list(element.items())))) for element in elements]
    assert from_deeplab(shuffled) == cell
    assert from_deeplab(json.dumps(shuffled)) == cell
    assert cell_from_text(json.dumps(shuffled)) == cell


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"op": "conv", "kernel": 1}, "`input`"),
        ({"input": True, "op": "conv", "kernel": 1}, "`input`"),
        ({"input": -1.0, "op": "conv", "kernel": 1}, "`input`"),
        ({"input": "F", "op": "conv", "kernel": 1}, "`input`"),
        ({"input": 1, "op": "conv", "kernel": 1}, "not an earlier one"),
        ({"input": 2, "op": "conv", "kernel": 1}, "not an earlier one"),
        ({"input": -1, "kernel": 1}, "`op`"),
        ({"input": -1, "op": None}, "`op`"),
        ({"input": -1, "op": ["conv"]}, "`op`"),
        ({"input": -1, "op": "pool", "grid_size": [1, 1]}, "`op`"),
        ({"input": -1, "op": "conv"}, "`kernel`"),
        ({"input": -1, "op": "conv", "kernel": True}, "kernel"),
        ({"input": -1, "op": "conv", "kernel": 5, "rate": [1, 1]}, "kernel"),
        ({"input": -1, "op": "conv", "kernel": [3, 1], "rate": [1, 1]}, "kernel"),
        ({"input": -1, "op": "conv", "kernel": {}, "rate": [1, 1]}, "kernel"),
        ({"input": -1, "op": "conv", "kernel": 3}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": 6}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": [6]}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": [6, 0]}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": [6, 2**31]}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": [6, True]}, "`rate`"),
        ({"input": -1, "op": "conv", "kernel": 3, "rate": "16"}, "`rate`"),
        ({"input": -1, "op": "pyramid_pooling"}, "`grid_size`"),
        ({"input": -1, "op": "pyramid_pooling", "grid_size": [1, 1.5]}, "`grid_size`"),
        ({"input": -1, "op": "conv", "kernal": 1, "kernel": 1}, "did you mean `kernel`?"),
        ([], "object"),
        ("conv", "object"),
        (None, "object"),
    ],
)
def test_what_deeplab_json_cannot_be(wrong: Any, told: str) -> None:
    good = {"input": -1, "op": "conv", "kernel": 1}
    value = [good, wrong]
    error = refusal(from_deeplab, value)
    assert set(error.codes) == {"DPC051"}
    assert told in str(error)
    assert all(d.place is not None and d.place.startswith("cell[1]") for d in error.diagnostics)
    text = json.dumps(value)
    for read in (from_deeplab, cell_from_text):
        error = refusal(read, text)
        assert told in str(error)
        start = text.index(json.dumps(wrong), len(json.dumps(good)))
        for diagnostic in error.diagnostics:
            assert diagnostic.span is not None
            assert start <= diagnostic.span.start < diagnostic.span.end <= start + len(json.dumps(wrong))


def test_all_mistakes_of_deeplab_json_are_told() -> None:
    assert len(refusal(from_deeplab, '[{"input": 0, "op": "x"}, {"input": 1, "op": "conv", "kernel": 3}]').codes) == 4
    many = refusal(from_deeplab, json.dumps([{"input": 0, "op": "x"}] * 200))
    assert (len(many.codes), many.more) == (100, 101)  # branches after the first may read branch 0
    assert refusal(from_deeplab, json.dumps([{"input": -1, "op": "conv", "kernel": 1}] * 257)).codes == ("DPC021",)
    assert refusal(from_deeplab, "[]").codes == ("DPC020",)
    for wrong in ("{}", "3", "null", '"a"'):
        assert refusal(from_deeplab, wrong).codes == ("DPC051",)


# JSON


@pytest.mark.parametrize(
    ("change", "code", "at"),
    [
        ({"filters": 0}, "DPC017", "0"),
        ({"filters": 65537}, "DPC017", "65537"),
        ({"filters": "8"}, "DPC018", '"8"'),
        ({"filters": True}, "DPC018", "true"),
        ({"filters": None}, "DPC018", "null"),
        ({"filters": 256.0}, "DPC018", "256.0"),
        ({"dpc": 2}, "DPC005", "2"),
        ({"dpc": "1"}, "DPC005", '"1"'),
        ({"dpc": True}, "DPC005", "true"),
        ({"name": "a"}, "DPC053", '"a"'),
        ({"branches": []}, "DPC020", "[]"),
        ({"branches": [7]}, "DPC053", "7"),
        ({"branches": [{}]}, "DPC053", "{}"),
        ({"branches": [{"input": "F"}]}, "DPC053", '{"input": "F"}'),
        ({"branches": [{"input": 0, "operator": {"kind": "conv1x1"}}]}, "DPC010", "0"),
        ({"branches": [{"input": "Y1", "operator": {"kind": "conv1x1"}}]}, "DPC011", '"Y1"'),
        ({"branches": [{"input": "F", "operator": "conv1x1"}]}, "DPC018", '"conv1x1"'),
        ({"branches": [{"input": "F", "operator": {"kind": 1}}]}, "DPC018", '{"kind": 1}'),
        ({"branches": [{"input": "F", "operator": {"kind": "nope"}}]}, "DPC013", '{"kind": "nope"}'),
        ({"branches": [{"input": "F", "operator": {"kind": "avgpool"}}]}, "DPC014", '{"kind": "avgpool"}'),
    ],
)
def test_what_a_cell_in_json_cannot_be(change: dict[str, Any], code: str, at: str) -> None:
    value = {"dpc": 1, "filters": 256, "branches": [{"input": "F", "operator": {"kind": "conv1x1"}}], **change}
    text = json.dumps(value, indent=None)
    for read in (from_json, cell_from_text):
        error = refusal(read, text)
        assert error.codes == (code,)
        span = error.diagnostics[0].span
        assert span is not None
        assert text[span.start : span.end] == at


def test_a_cell_in_json_may_leave_out_what_has_a_default() -> None:
    short = '{"branches": [{"input": "F", "operator": {"kind": "conv1x1"}}]}'
    assert from_json(short) == cell_from_text(short) == Cell.of((0, CONV))


def test_all_mistakes_of_a_cell_in_json_are_told() -> None:
    branch = {"input": "Y9", "operator": {"kind": "nope"}}
    error = refusal(from_json, json.dumps({"dpc": 2, "name": 1, "branches": [branch, 3, {}]}))
    assert sorted(error.codes) == ["DPC005", "DPC011", "DPC013", "DPC053", "DPC053", "DPC053"]
    many = refusal(from_json, json.dumps({"branches": [branch] * 200}))
    assert len(many.codes) == 100
    assert many.more == 200 + 9 - 100  # no operator is one, and the first 9 inputs are not earlier
    too_many = {"input": "F", "operator": {"kind": "conv1x1"}}
    assert refusal(from_json, json.dumps({"branches": [too_many] * 257})).codes == ("DPC021",)


@pytest.mark.parametrize(
    ("text", "code", "start"),
    [
        ('{"a" 1}', "DPC050", 5),
        ("{", "DPC050", 1),
        ("[1, 2", "DPC050", 5),
        ("[1] 2", "DPC050", 4),
        ('["\t"]', "DPC050", 2),
        ("[" * 40 + "]" * 40, "DPC007", 0),
        ("[" * 100_000, "DPC007", 0),
        ('{"a": 1, "b": 2, "a": 3}', "DPC016", 17),
        ("[1" + "0" * 5000 + "]", "DPC017", 1),
    ],
)
def test_what_is_not_json(text: str, code: str, start: int) -> None:
    for read in (from_json, from_deeplab, cell_from_text):
        error = refusal(read, text)
        assert error.codes == (code,)
        span = error.diagnostics[0].span
        assert span is not None
        assert span.start == start


def test_the_limit_of_characters() -> None:
    assert refusal(lambda: from_json("{}" + " " * 10, max_characters=11)).codes == ("DPC004",)
    assert refusal(lambda: from_deeplab("[]" + " " * 10, max_characters=11)).codes == ("DPC004",)
    assert refusal(lambda: cell_from_text("[]" + " " * 10, max_characters=11)).codes == ("DPC004",)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=15,
    )


@given(json_values(), st.sampled_from((None, 1)), st.booleans())
def test_places_in_json(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = " \n" + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\n"
    source = Source("a.json", text)
    assert parse_json(source, 10**6) == value
    places = Places(source)

    def check(path: tuple[str | int, ...], part: Any) -> None:
        span = places[path]
        assert json.loads(text[span.start : span.end]) == part
        assert Places(source)[path] == span  # whatever was asked before
        if isinstance(part, list):
            for index, child in enumerate(part):
                check((*path, index), child)
            assert places[(*path, len(part))] == span  # as far as the path goes
        if isinstance(part, dict):
            for key, child in reversed(part.items()):
                check((*path, key), child)
        assert places[(*path, "no such key")] == span

    check((), value)


# What is neither


@pytest.mark.parametrize("text", ["", " ", "# nothing", "cell a {}", "top1", "null", '"a"', "ops a = conv1x1"])
def test_texts_that_hold_no_cell(text: str) -> None:
    refusal(cell_from_text, text)


def test_a_file_with_several_cells_is_none() -> None:
    assert refusal(cell_from_text, "cell a { (F, conv1x1, _) } cell b { (F, conv1x1, _) }").codes == ("DPC061",)


def test_forms_of_what_is_only_named() -> None:
    assert cell_from_text("from zoo import paper\ncell a { (F, conv1x1, _) }") == Cell.of((0, CONV))
    assert parse(spell(read_cell("top1"), "text", name="top1")).cells == {"top1": read_cell("top1")}
    assert read_cell(spell(read_cell("top1"), "deeplab")) == read_cell("top1")
    assert Branch.model_validate({"input": "F", "operator": {"kind": "conv1x1"}}) == Branch(input=0, operator=CONV)
