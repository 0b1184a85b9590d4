"""Text against the library: what is valid survives every form unchanged, and nothing else does any harm."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
import texts
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Cell,
    Document,
    DpcError,
    Space,
    format_cell,
    format_space,
    format_text,
    from_deeplab,
    from_json,
    from_vector,
    parse,
    parse_cell,
    parse_condition,
    parse_space,
    read_cell,
    read_space,
    to_deeplab,
    to_json,
    to_vector,
)
from dpcdsl.interchange import FORMS, cell_from_text, spell

randoms = st.randoms(use_true_random=False)


def values(document: Document) -> list[tuple[str, object]]:
    return [(definition.name, definition.value) for definition in document]


@given(randoms)
@settings(max_examples=400)
def test_formatting_keeps_meaning_and_comments_and_is_idempotent(rng: Random) -> None:
    text, comments = texts.valid_file(rng)
    formatted = format_text(text)
    assert format_text(formatted) == formatted
    assert values(parse(formatted)) == values(parse(text))
    found = re.findall(r"#[^\n]*", re.sub(r'"[^"\n]*"', "", formatted)) if '"' not in "".join(comments) else None
    if found is not None:
        assert Counter(found) == Counter(comments)
    assert not re.search(r"[ \t]\n|\n\n\n|\r|\t", formatted)
    assert formatted == "" or (formatted.endswith("\n") and not formatted.endswith("\n\n"))


@given(randoms)
@settings(max_examples=200)
def test_every_value_survives_text(rng: Random) -> None:
    text, _ = texts.valid_file(rng)
    for name, value in values(parse(text)):
        if isinstance(value, Cell):
            assert parse(format_cell(value, name)).cell(name) == value
            assert parse_cell(str(value)) == value
        if isinstance(value, Space):
            again = parse(format_space(value, "again")).space("again")
            assert again == value
            assert hash(again) == hash(value)
            assert Space.model_validate(json.loads(value.model_dump_json())) == value
        assert pickle.loads(pickle.dumps(value)) == value


@given(randoms, st.integers(1, 64))
@settings(max_examples=150)
def test_a_cell_survives_every_form(rng: Random, branches: int) -> None:
    cell = parse_cell(texts.bare_cell(rng, branches))
    assert len(cell) == branches
    assert from_json(json.dumps(to_json(cell))) == cell
    assert Cell.model_validate(cell.model_dump()) == cell
    if cell.filters != 256:
        with pytest.raises(DpcError) as caught:
            to_deeplab(cell)
        assert caught.value.codes == ("DPC052",)
        cell = Cell(branches=cell.branches)
    assert from_deeplab(json.dumps(to_deeplab(cell))) == cell
    assert from_deeplab(to_deeplab(cell)) == cell
    assert from_vector(to_vector(cell)) == cell
    for form in FORMS:
        assert cell_from_text(spell(cell, form, name="c")) == cell


def readers() -> list[Callable[[str], object]]:
    return [
        parse,
        format_text,
        cell_from_text,
        parse_condition,
        parse_space,
        read_cell,
        read_space,
        from_json,
        from_deeplab,
    ]


def survives(text: str, reader: Callable[[str], object], within: float = 1.0) -> None:
    """``text`` is read, or refused by a :class:`DpcError` that says where; nothing else, and soon."""
    began = time.perf_counter()
    told = None
    try:
        reader(text)
    except DpcError as error:
        told = error
    assert time.perf_counter() - began < within, reader
    if told is not None:
        assert told.diagnostics
        assert len(str(told)) < 200_000
        for diagnostic in told.diagnostics:
            assert diagnostic.message
            if reader not in (read_cell, read_space):  # a name has no place
                assert diagnostic.span is not None or diagnostic.place is not None, str(diagnostic)


def hostile(rng: Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return texts.nonsense(rng)
    if kind == 1:
        cell = parse_cell(texts.bare_cell(rng, rng.randint(1, 4)))
        forms = ["json", "line", "vector"] + (["deeplab"] if cell.filters == 256 else [])
        base = Cell(branches=cell.branches) if cell.filters != 256 else cell
        return texts.mutated(rng, spell(base, rng.choice(forms)))
    return texts.mutated(rng, texts.valid_file(rng)[0])


def run_hostile(seed: int, count: int) -> None:
    rng = Random(seed)
    for number in range(count):
        text = hostile(rng)
        try:
            for reader in readers()[:2] if number % 4 else readers():
                survives(text, reader)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {text!r}") from error


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_hostile_inputs(seed: int) -> None:
    run_hostile(seed, 1000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_a_million_hostile_inputs(seed: int) -> None:
    run_hostile(seed, 10_000)


UNITS = {
    "parentheses": "(",
    "brackets": "[",
    "objects": '{"a":',
    "braces": "{}",
    "open cells": "cell a {",
    "empty cells": "cell a {}\n",
    "one long word": "x",
    "comments": "#\n",
    "digits": "9",
    "negations": "not ",
    "wrong inputs": "(F, conv1x1, Y7) ",
    "self-union": "ops a = a | a\n",
    "same name": "space s = s where depth <= 1\n",
    "nothing": "\0",
    "quotes": '"',
    "bars": "|",
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_ten_megabytes_are_refused_at_once(unit: str) -> None:
    text = unit * (10_000_000 // len(unit))
    for reader in (parse, format_text, cell_from_text):
        survives(text, reader, within=5.0)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_what_the_limit_lets_through_ends(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    for reader in (parse, format_text, cell_from_text):
        survives(text, reader, within=20.0)


def test_ten_thousand_unions_and_derivations_are_bounded() -> None:
    unions = "ops a0 = sepconv3x3 rate {1..200} x {1..200}\n" + "".join(
        f"ops a{i} = a{i - 1} | conv1x1\n" for i in range(1, 10_000)
    )
    survives(unions, parse, within=20.0)
    chain = "space s0 { (F, conv1x1, _) }\n" + "".join(
        f"space s{i} = s{i - 1} where depth <= {i}\n" for i in range(1, 10_000)
    )
    survives(chain, parse, within=20.0)
    doubling = "space s0(B = 1) { (F, conv1x1, _) }\n" + "".join(
        f"space s{i}(B = 1) = s{i - 1}(B=B) where depth <= B\n" for i in range(1, 2000)
    )
    survives(doubling, parse, within=20.0)


def test_a_broken_tuple_is_told_where_it_breaks() -> None:
    with pytest.raises(DpcError) as caught:
        parse("cell a {\n  (F, conv1x1, Y1)\n  (Y1, conv1x1 # ) no end\n  , Y2\n}\n")
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.span is not None
    assert diagnostic.span.position == (5, 1)
