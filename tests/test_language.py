"""What a text means: documents, names, parameters, imports, the zoo, and the values that come of them."""

from __future__ import annotations

import copy
import operator
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import generators
import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dpcdsl import (
    Branch,
    Cell,
    Document,
    DpcError,
    Operator,
    OperatorSet,
    Slot,
    Source,
    Space,
    Span,
    distance,
    load,
    parse,
    parse_cell,
    parse_condition,
    parse_space,
    read_cell,
    read_space,
    zoo,
)
from dpcdsl.constraints import Comparison, Constraint, Depth
from dpcdsl.errors import Diagnostic
from dpcdsl.operators import OperatorKind, kind_named, register_operator

CONV = Operator.of("conv1x1")
POOL = Operator.of("avgpool", grid=(1, 1))


def refusal(text: str) -> DpcError:
    with pytest.raises(DpcError) as caught:
        parse(text)
    return caught.value


# Texts and their values


def test_a_small_file_means_what_it_says() -> None:
    document = parse("""
        dpc 1
        ops few = conv1x1 | sepconv3x3 rate {1, 3..7 step 2} x {6} | avgpool grid 2 x 4
        cell a { filters 32 (F, conv1x1, Y1) (Y1, sepconv3x3 rate 1x6, _) }
        space s(B = 2) { (F, few, Y1) B * ({Y1, F}, conv1x1, _) optional (any, few, _) require depth <= 2 }
    """)
    few = [
        CONV,
        *(Operator.of("sepconv3x3", rate=(height, 6)) for height in (1, 3, 5, 7)),
        Operator.of("avgpool", grid=(2, 4)),
    ]
    assert document.operator_sets["few"].operators == tuple(few)
    assert document.cells["a"] == Cell.of((0, CONV), (1, Operator.of("sepconv3x3", rate=(1, 6))), filters=32)
    chosen, only = OperatorSet.of(few), OperatorSet.of([CONV])
    assert document.spaces["s"] == Space(
        slots=(
            Slot(inputs=(0,), operators=chosen),
            Slot(inputs=(0, 1), operators=only),
            Slot(inputs=(0, 1), operators=only),
            Slot(inputs=None, operators=chosen, optional=True),
        ),
        constraints=(Comparison(measure=Depth(), relation="<=", bound=2),),
    )


@settings(max_examples=150)
@given(st.integers(0, 2**32), generators.cells(6))
def test_conditions_bind_as_in_python(seed: int, cell: Cell) -> None:
    r = random.Random(seed)

    def condition(depth: int) -> str:
        kind = r.random()
        if depth == 0 or kind < 0.3:
            return f"{r.choice(('depth', 'branches'))} {r.choice(generators.RELATIONS)} {r.randint(0, 6)}"
        if kind < 0.5:
            return f"not {condition(depth - 1)}"
        if kind < 0.7:
            return f"({condition(depth - 1)})"
        return f"{condition(depth - 1)} {r.choice(('and', 'or'))} {condition(depth - 1)}"

    text = condition(4)
    expected = eval(text, {"depth": cell.depth, "branches": len(cell)})
    assert parse_condition(text).holds(cell) == expected


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("0", 0),
        ("400000", 400_000),
        ("400K", 400_000),
        ("0.40M", 400_000),
        ("2.986G", 2_986_000_000),
        ("3G", 3 * 10**9),
        ("3000000001", 3_000_000_001),
        ("1T", 10**12),
        ("5.0", 5),
        ("0.1K", 100),
        ("999999999999999999999999999999", 10**30 - 1),
    ],
)
def test_numbers_of_conditions_are_exact(written: str, number: int) -> None:
    condition = parse_condition(f"params(F=320) <= {written}")
    assert isinstance(condition, Comparison)
    assert condition.bound == number


def test_measures() -> None:
    top1 = zoo()["top1"].value
    assert isinstance(top1, Cell)
    measured = {
        "params(F=320)": 356_160,
        "madds(F=320, at=65x129)": 356_160 * 65 * 129,
        "depth": 3,
        "branches": 5,
        "uses(sepconv3x3)": 5,
        "uses(sepconv3x3 rate {1, 18} x {6, 15})": 2,
        "uses(conv1x1 | sepconv3x3 rate 1x1)": 1,
        "uses(paper)": 5,
        "distance(top1)": 0,
        "distance(aspp)": 9,
        "distance((F, sepconv3x3 rate 1x6, _) (F, conv1x1, _))": 8,
    }
    for measure, value in measured.items():
        assert parse_condition(f"{measure} == {value}").holds(top1), measure
        assert not parse_condition(f"{measure} != {value}").holds(top1), measure
        assert parse_condition(f"{measure} > {value - 1}" if value else f"{measure} < 1").holds(top1), measure


def test_a_set_of_choices_has_no_order_of_writing_among_its_numbers() -> None:
    assert parse("ops a = avgpool grid {4, 1, 2, 1} x {2..1000000000 step 999999999, 2}")["a"].value == OperatorSet.of(
        Operator.of("avgpool", grid=(h, w)) for h in (1, 2, 4) for w in (2,)
    )


def test_an_operator_listed_twice_counts_once_at_its_first_place() -> None:
    chosen = parse("ops a = avgpool grid 1x1 | conv1x1\nops b = conv1x1 | a | avgpool grid {1} x 1")["b"].value
    assert chosen == OperatorSet.of([CONV, POOL])


def test_words_of_the_language_are_names_where_no_keyword_fits() -> None:
    document = parse(
        "cell spaces { (F, conv1x1, _) }\ncell rate { (F, conv1x1, _) }\nspace depth = rate where depth <= 1"
    )
    assert list(document.cells) == ["spaces", "rate"]
    assert len(document.space("depth").slots) == 1


# Documents


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_spans_point_at_the_text(seed: int) -> None:
    text = generators.file_text(random.Random(seed), 6, 5, 0.4).text
    document = parse(text, name="a.dpc")
    own_names = re.findall(r"\b(?:cell|ops|space)\s+(\w+)", re.sub(r"#[^\n]*", "", text))
    assert [d.name for d in document] == own_names
    assert len(document) == len(own_names)
    for definition in document:
        span = definition.span
        assert span.source.text[span.start : span.end] == definition.name
        line, column = span.position
        assert text.split("\n")[line - 1][column - 1 :].startswith(definition.name)
        assert str(span) == f"a.dpc:{line}:{column}"
        if isinstance(definition.value, Cell):
            assert len(definition.branch_spans) == len(definition.value)
            for number, (branch, place) in enumerate(
                zip(definition.value.branches, definition.branch_spans, strict=True)
            ):
                written = text[place.start : place.end]
                earlier = "(F, conv1x1, _)" * number
                assert parse_cell(earlier + written).branches[-1] == branch


def test_a_document_by_name() -> None:
    document = parse("cell a { (F, conv1x1, Y1) }\nops o = conv1x1\nspace s(B) { B * (any, o, _) }")
    assert [d.name for d in document] == ["a", "o", "s"]
    assert [d.noun for d in document] == ["cell", "operator set", "space"]
    assert document.cell() == document.cell("a") == document["a"].value
    assert document.space("a") == Space.only(document.cell())
    assert document["s"].value is None
    assert document["s"].parameters == {"B": None}
    assert len(document.space("s", B=8).slots) == 8
    assert document.space(B=3) == document["s"].space(B=3)
    assert document.spaces == {}


def test_bare_tuples_are_one_cell_without_a_name() -> None:
    document = parse("filters 8\n(F, conv1x1, Y1)\n(Y1, conv1x1, _)")
    assert document.cells == {"": Cell.of((0, CONV), (1, CONV), filters=8)}
    assert document.space() == Space.only(document.cell())


def codes(call: Any) -> tuple[str, ...]:
    with pytest.raises(DpcError) as caught:
        call()
    return caught.value.codes


def test_what_a_document_does_not_have() -> None:
    document = parse("cell a { (F, conv1x1, Y1) }\nops o = conv1x1\nspace s(B) { B * (any, o, _) }\nspace t = a")
    assert codes(lambda: document["b"]) == ("DPC061",)
    assert codes(lambda: document.cell("s")) == ("DPC032",)
    assert codes(lambda: document.space("o")) == ("DPC032",)
    assert codes(lambda: document.space("a", B=3)) == ("DPC032",)
    assert codes(document.space) == ("DPC061",)
    assert codes(lambda: document.space("s")) == ("DPC034",)
    assert codes(lambda: document.space("s", C=3)) == ("DPC034",)
    assert codes(lambda: document.space("t", C=3)) == ("DPC034",)
    assert codes(lambda: parse("ops o = conv1x1").cell()) == ("DPC061",)
    assert codes(lambda: parse("").space()) == ("DPC061",)
    for wrong in (-1, 2**31, 10**5000, True, "3", 2.0):
        assert codes(lambda wrong=wrong: document.space("s", B=wrong)) == ("DPC017",)
    assert codes(lambda: document.space("s", B=0)) == ("DPC017",)
    assert codes(lambda: document.space("s", B=257)) == ("DPC021",)


def test_parameters_may_have_any_name() -> None:
    document = parse(
        "space s(self = 2, name = 3) { self * (any, conv1x1, _) name * (any, conv1x1, _) }\nspace t = s(self=4)"
    )
    assert len(document.spaces["t"].slots) == 7
    assert len(document["s"].space(self=1, name=1).slots) == 2
    assert len(document.space("s", self=1, name=1).slots) == 2


def test_parameters_reach_everything() -> None:
    document = parse(
        "space s(B = 2, C) { filters C B * (any, avgpool grid {1..B} x C, _) require params(F=C) <= B and depth < C }"
    )
    space = document.space("s", C=3)
    assert space.filters == 3
    assert [slot.operators for slot in space.slots] == [
        OperatorSet.of(Operator.of("avgpool", grid=(h, 3)) for h in (1, 2))
    ] * 2
    assert [str(condition) for condition in space.constraints] == ["params(F=3) <= 2", "depth < 3"]


def test_a_space_of_a_space_passes_its_parameters_on() -> None:
    lines = ["space s0(B = 1) { B * (any, conv1x1, _) }"]
    lines += [f"space s{i}(B = 1) = s{i - 1}(B=B)" for i in range(1, 50)]
    document = parse("\n".join(lines))
    assert len(document.space("s49", B=7).slots) == 7
    longer = [*lines, "space t(B = 1) = s49(B=B)", "space u(B = 1) = t(B=B)"]
    assert refusal("\n".join(longer)).codes == ("DPC007",)
    # A chain that passes nothing on may be as long as it likes.
    plain = ["space s0 { (any, conv1x1, _) }", *(f"space s{i} = s{i - 1}" for i in range(1, 2000))]
    assert len(parse("\n".join(plain)).space("s1999").slots) == 1


def test_a_template_keeps_the_names_it_was_written_with() -> None:
    document = parse(
        """
        ops mine = conv1x1
        cell near { (F, mine, _) }
        space s(B = 1) { B * (any, mine | avgpool grid Bx B, _) require distance(near) <= B }
    """.replace("Bx B", "B x B")
    )
    assert document.space("s", B=2).slots[0].operators == OperatorSet.of([CONV, Operator.of("avgpool", grid=(2, 2))])


def test_all_mistakes_are_told_and_a_hundred_are_shown() -> None:
    error = refusal("\n".join(f"cell c{i} {{ (X, nope, Y7) }}" for i in range(100)))
    assert len(error.diagnostics) == DpcError.limit
    assert error.more == 200
    assert "200 more mistakes" in str(error)
    error = refusal("\n".join(f"cell c{i} {{ (X, nope, Y7) }}" for i in range(1000)))
    assert error.more == DpcError.most_counted
    assert "1000 or more mistakes" in str(error)


def test_what_is_quoted_is_one_short_printable_line() -> None:
    diagnostic = Diagnostic("DPC013", "a\nb\x1b[31m\ud800" + "c" * 10_000, hint="d\te" * 1000, place="f\x00")
    for part in (diagnostic.message, diagnostic.hint, diagnostic.place):
        assert part is not None
        assert part.isprintable()
        assert len(part) <= 501
    name = "n" * 100_000
    assert len(str(refusal(f"cell {name} {{ }} cell {name} {{ ({name}, {name}, {name}) }}"))) < 10_000


def test_white_space_that_is_none_is_told() -> None:
    for sign in ("\x0b", "\x0c", "\u00a0", "\u2028"):
        error = refusal(f"(F, conv1x1, Y1){sign}")
        assert error.codes == ("DPC001",)
        span = error.diagnostics[0].span
        assert span is not None
        assert (span.start, span.end) == (16, 17)


# The border


def test_the_largest_numbers() -> None:
    assert parse("(F, avgpool grid 2147483647x1, Y1)").cell().branches[0].operator["grid"] == (2**31 - 1, 1)
    assert refusal("(F, avgpool grid 2147483648x1, Y1)").codes == ("DPC017",)
    assert len(parse("space s { 256 * (any, conv1x1, _) }").space().slots) == 256
    assert refusal("space s { 257 * (any, conv1x1, _) }").codes == ("DPC021",)
    assert refusal("(F, conv1x1, _)" * 257).codes == ("DPC021",)
    assert refusal("space s {" + "(F, conv1x1, _)" * 257 + "}").codes == ("DPC021",)
    assert len(parse("ops a = avgpool grid {1..256} x {1..256}").operator_sets["a"]) == 65536
    assert refusal("ops a = avgpool grid {1..256} x {1..256} | conv1x1").codes == ("DPC025",)
    conditions = [f" require depth <= {i}" for i in range(1, 258)]
    assert len(parse("space s { (F, conv1x1, _)" + "".join(conditions[:256]) + "}").space().constraints) == 256
    assert refusal("space s { (F, conv1x1, _)" + "".join(conditions) + "}").codes == ("DPC025",)


def test_a_text_spells_out_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpcdsl.syntax.context._BUDGET", 5000)
    ten = "avgpool grid {1..10} x {1..9}"  # 90 operators, and 19 numbers on the way to them
    start = f"ops few = {ten}\nspace two(B = 1) {{ (F, avgpool grid {{1..90}} x B, _) B * (any, few, _) }}\n"
    for unit, times in (
        (f"ops aN = {ten}\n", 60),
        ("ops aN = few | few\n", 40),
        ("space aN = two(B=2)\n", 40),  # made anew each time
        ("space aN { 100 * (any, few, _) }\n", 60),
        ("space bN = two where depth <= N\n", 2000),
        ("space aN { (F, few, _) require depth <= 3 and depth <= 2 or depth <= 1 }\n", 1500),
        ("space aN { (F, " + "conv1x1 | " * 100 + "few, _) }\n", 40),
    ):
        assert len(parse(start + "".join(unit.replace("N", str(i + 1)) for i in range(3)))) == 5
        error = refusal(start + "".join(unit.replace("N", str(i + 1)) for i in range(times)))
        assert error.codes[-1] == "DPC025", unit
        assert len(error.diagnostics) < 3
        assert error.diagnostics[-1].span is not None


def test_the_limits_of_a_text() -> None:
    cell = "(F, conv1x1, Y1)"
    assert parse(cell, max_characters=len(cell)).cell() == parse(cell).cell()
    for text, limit in ((cell, len(cell) - 1), ("(F, conv1x1, _)" * 5000, 8000)):
        with pytest.raises(DpcError) as caught:
            parse(text, max_characters=limit)
        assert caught.value.codes == ("DPC004",)
    with pytest.raises(DpcError) as caught:  # many words in few characters
        parse("ops a = " + "a|" * 3000 + "a", max_characters=8000)
    assert caught.value.codes == ("DPC004",)
    assert caught.value.diagnostics[0].span is not None


# Imports


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".dpc").write_text(text, encoding="utf-8")


def load_error(path: Path) -> DpcError:
    with pytest.raises(DpcError) as caught:
        load(path)
    return caught.value


def test_imports_of_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        main='from "lib/ops.dpc" import few as mine, s\nfrom "lib/cells.dpc" import a\nfrom zoo import top1\n'
        "space t { (F, mine, _) require distance(a) <= 3 or distance(top1) <= 1 }\nspace u = s(B=3)",
        lib__ops="ops few = conv1x1\nspace s(B) { B * (any, few, _) }",
        lib__cells='from "ops.dpc" import few\ncell a { (F, few, Y1) }',
    )
    document = load(tmp_path / "main.dpc")
    assert [d.name for d in document] == ["t", "u"]
    assert document.spaces["t"].slots[0].operators == OperatorSet.of([CONV])
    assert len(document.spaces["u"].slots) == 3
    text = (tmp_path / "main.dpc").read_text(encoding="utf-8")
    assert parse(text, folder=tmp_path).spaces == document.spaces


def test_a_chain_of_imports(tmp_path: Path) -> None:
    def chain(length: int) -> None:
        write(tmp_path, f0="cell a { (F, conv1x1, Y1) }")
        for i in range(1, length):
            write(
                tmp_path, **{f"f{i}": f'from "f{i - 1}.dpc" import a\ncell b{i} {{ (F, conv1x1, Y1) }}\nspace a{i} = a'}
            )
            if i > 1:
                write(tmp_path, **{f"f{i}": f'from "f{i - 1}.dpc" import a{i - 1} as a\nspace a{i} = a'})

    chain(32)
    assert len(load(tmp_path / "f31.dpc").space().slots) == 1
    chain(34)
    assert "DPC036" in load_error(tmp_path / "f33.dpc").codes


def test_a_diamond_of_imports_is_read_once_each(tmp_path: Path) -> None:
    """Each file imports the next one twice: 2^31 ways down."""
    write(tmp_path, f0="cell a { (F, conv1x1, Y1) }")
    for i in range(1, 31):
        write(
            tmp_path,
            **{f"f{i}": f'from "f{i - 1}.dpc" import a as b\nfrom "./f{i - 1}.dpc" import a as c\nspace a = b'},
        )
    assert len(load(tmp_path / "f30.dpc").space("a").slots) == 1


def test_a_mistake_in_an_imported_file_is_told_once_and_there(tmp_path: Path) -> None:
    write(
        tmp_path,
        main='from "b.dpc" import b\nfrom "c.dpc" import c\nspace s = b',
        b='from "d.dpc" import d\nspace b = d',
        c='from "d.dpc" import d\nfrom "d.dpc" import d as e\nspace c = d',
        d="\ncell d { (Y9, conv1x1, Y1) }",
    )
    error = load_error(tmp_path / "main.dpc")
    assert error.codes == ("DPC011",)
    span = error.diagnostics[0].span
    assert span is not None
    assert span.source.name == str(tmp_path / "d.dpc")
    assert span.position == (2, 11)
    assert str(error).startswith(f"{tmp_path / 'd.dpc'}:2:11: error: ")


def test_imports_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, a='from "b.dpc" import b\ncell a { (F, conv1x1, Y1) }', b='from "a.dpc" import a\nspace b = a')
    error = load_error(tmp_path / "a.dpc")
    assert error.codes == ("DPC036",)
    assert "a.dpc → b.dpc → a.dpc" in str(error)


def test_imports_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.dpc").mkdir()
    (tmp_path / "latin.dpc").write_bytes("# Zürich".encode("latin-1"))
    (tmp_path / "deep").mkdir()
    names = ("nowhere.dpc", "folder.dpc", "latin.dpc", "", ".", "a\x00b.dpc", "n" * 300, "deep/../../nowhere", "/")
    for name in names:
        write(tmp_path, main=f'from "{name}" import a\nspace s = a')
        error = load_error(tmp_path / "main.dpc")
        assert error.codes == ("DPC035",), name
        span = error.diagnostics[0].span
        assert span is not None
        assert span.source.text[span.start : span.end] == f'"{name}"'


def test_imports_of_names_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, main='from "b.dpc" import aa\nspace s = aa', b="cell a { (F, conv1x1, Y1) }")
    error = load_error(tmp_path / "main.dpc")
    assert error.codes == ("DPC037",)
    assert "did you mean `a`?" in str(error)


def test_what_a_file_imports_it_does_not_pass_on(tmp_path: Path) -> None:
    write(
        tmp_path, main='from "b.dpc" import top1\nspace s = top1', b="from zoo import top1\ncell a { (F, conv1x1, Y1) }"
    )
    assert load_error(tmp_path / "main.dpc").codes == ("DPC037",)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.dpc").write_bytes(b"\xff\xfe(\x00F\x00")
    assert load_error(tmp_path / "a.dpc").codes == ("DPC006",)
    assert load_error(tmp_path).codes == ("DPC060",)
    assert load_error(tmp_path / "nowhere").codes == ("DPC060",)
    assert load_error(Path("a\x00b")).codes == ("DPC060",)
    assert load_error(tmp_path / ("n" * 300)).codes == ("DPC060",)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.dpc")
        assert load_error(tmp_path / "pipe.dpc").codes == ("DPC060",)
    (tmp_path / "b.dpc").write_bytes("\ufeff(F, conv1x1, Y1)\r\n".encode())
    assert load(tmp_path / "b.dpc").cell() == Cell.of((0, CONV))
    (tmp_path / "c.dpc").write_text("(F, conv1x1, Y1)" * 10, encoding="utf-8")
    with pytest.raises(DpcError) as caught:
        load(tmp_path / "c.dpc", max_characters=100)
    assert caught.value.codes == ("DPC004",)


# References


def test_references(tmp_path: Path) -> None:
    write(
        tmp_path,
        one="cell a { (F, conv1x1, Y1) }",
        two="cell a { (F, conv1x1, Y1) }\nspace s(B = 2) { B * (any, conv1x1, _) }",
    )
    cell = Cell.of((0, CONV))
    assert read_cell("top1") == zoo()["top1"].value
    assert read_cell("(F, conv1x1, Y1)") == cell
    assert read_cell(tmp_path / "one.dpc") == cell
    assert read_cell(f"{tmp_path}/two.dpc:a") == cell
    assert len(read_space(f"{tmp_path}/two.dpc:s").slots) == 2
    assert len(read_space(f"{tmp_path}/two.dpc:s(B=4) where depth <= 2").slots) == 4
    assert read_space(f"{tmp_path}/one.dpc") == Space.only(cell)
    assert len(read_space("dpc(B=8)").slots) == 8
    assert read_space("top1") == Space.only(read_cell("top1"))
    for wrong in (
        "tpo1",
        "dpc",
        "paper",
        "nowhere.dpc",
        "n" * 5000,
        "n" * 300,
        "",
        "a\x00b",
        "." * 100_000,
        "(",
        "dpc(B=8)",
    ):
        with pytest.raises(DpcError):
            read_cell(wrong)
    for wrong in ("tpo1", "paper", "nowhere.dpc", "n" * 5000, "", "dpc(B=0)", "dpc(B=8", "dpc where", "." * 100_000):
        with pytest.raises(DpcError):
            read_space(wrong)


def test_expressions() -> None:
    assert parse_space("dpc(B=3)") == zoo()["dpc"].space(B=3)
    narrowed = parse_space("dpc where depth <= 3 and branches > 1")
    assert [str(c) for c in narrowed.constraints] == ["depth <= 3", "branches > 1"]
    own = parse("cell mine { (F, conv1x1, Y1) }").definitions
    assert parse_space("mine", own) == Space.only(Cell.of((0, CONV)))
    for wrong in ("mine", "dpc(B=3", "dpc dpc", "dpc(C=3)", "paper"):
        with pytest.raises(DpcError):
            parse_space(wrong)


# The zoo


def test_a_conjunction_is_as_many_constraints() -> None:
    together = parse_space("dpc where depth <= 3 and branches > 1 and depth <= 3")
    one_by_one = parse("from zoo import paper space s { 5 * (any, paper, _) require depth <= 3 require branches > 1 }")
    assert together == one_by_one.space()


def test_the_zoo() -> None:
    found = zoo()
    assert list(found) == ["top1", "aspp", "pspnet", "denseaspp", "paper", "dpc", "aspp_subsets"]
    top1 = found["top1"].value
    rates = ((0, 1, 6), (1, 18, 15), (2, 6, 3), (1, 1, 1), (1, 6, 21))
    assert top1 == Cell.of(*((i, Operator.of("sepconv3x3", rate=(h, w))) for i, h, w in rates))
    aspp = found["aspp"].value
    atrous = [Operator.of("sepconv3x3", rate=(r, r)) for r in (6, 12, 18)]
    assert aspp == Cell.of((0, POOL), (0, CONV), *((0, o) for o in atrous))
    pspnet = found["pspnet"].value
    assert pspnet == Cell.of(*((0, Operator.of("avgpool", grid=(g, g))) for g in (1, 2, 3, 6)))
    denseaspp = found["denseaspp"].value
    assert denseaspp == Cell.of(
        *((i, Operator.of("sepconv3x3", rate=(r, r))) for i, r in enumerate((3, 6, 12, 18, 24)))
    )
    paper = found["paper"].value
    sides = (1, 3, 6, 9, 12, 15, 18, 21)
    assert isinstance(paper, OperatorSet)
    assert paper.operators == (
        CONV,
        *(Operator.of("sepconv3x3", rate=(h, w)) for h in sides for w in sides),
        *(Operator.of("avgpool", grid=(h, w)) for h in (1, 2, 4, 8) for w in (1, 2, 4, 8)),
    )
    assert len(paper) == 81
    space = found["dpc"].value
    assert space == Space(slots=(Slot(inputs=None, operators=paper),) * 5)
    assert len(found["dpc"].space(B=8).slots) == 8
    subsets = found["aspp_subsets"].value
    assert isinstance(subsets, Space)
    assert [slot.optional for slot in subsets.slots] == [True] * 5
    assert top1 in space
    assert pspnet not in space


# Values


def everything() -> st.SearchStrategy[Any]:
    return st.one_of(
        generators.paper_operators(),
        generators.cells(5),
        generators.operator_sets(),
        generators.spaces(4),
        generators.constraints(),
    )


@settings(max_examples=200)
@given(everything())
def test_values_are_equal_by_content_and_hashable(value: Any) -> None:
    again = type(value).model_validate(value.model_dump(mode="json"))
    assert again == value
    assert again is not value
    assert hash(again) == hash(value)
    assert {value: 1}[again] == 1
    assert len({value, again}) == 1
    assert (value != again) is False
    assert value != object()


@settings(max_examples=100)
@given(everything(), everything())
def test_values_that_differ_are_unequal(a: Any, b: Any) -> None:
    same = type(a) is type(b) and a.model_dump(mode="json") == b.model_dump(mode="json")
    assert (a == b) == same


@settings(max_examples=150)
@given(everything())
def test_values_survive_copying_pickling_and_json(value: Any) -> None:
    str(value), hash(value)  # whatever is kept beside the fields must do no harm
    for copied in (
        pickle.loads(pickle.dumps(value)),
        copy.copy(value),
        copy.deepcopy(value),
        type(value).model_validate_json(value.model_dump_json()),
        value.model_copy(),
    ):
        assert copied == value
        assert hash(copied) == hash(value)
        assert str(copied) == str(value)
    assert type(value).model_json_schema()


@given(everything())
def test_values_cannot_be_changed(value: BaseModel) -> None:
    for name in type(value).model_fields:
        with pytest.raises(Exception, match="frozen"):
            setattr(value, name, None)
        with pytest.raises(Exception, match="frozen"):
            delattr(value, name)
    with pytest.raises(Exception, match=r"frozen|no field"):
        value.new = 1  # type: ignore[attr-defined]


def schema_accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """As much of JSON Schema as the values' schemas use; an unknown keyword fails."""
    known = {"title", "description", "default", "discriminator", "$defs"}
    checks = {
        "$ref": lambda ref: schema_accepts(root["$defs"][ref.removeprefix("#/$defs/")], value, root),
        "type": lambda kind: {
            "object": isinstance(value, dict),
            "array": isinstance(value, list),
            "string": isinstance(value, str),
            "boolean": isinstance(value, bool),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "null": value is None,
        }[kind],
        "const": lambda const: value == const,
        "enum": lambda listed: value in listed,
        "anyOf": lambda options: any(schema_accepts(option, value, root) for option in options),
        "oneOf": lambda options: sum(schema_accepts(option, value, root) for option in options) == 1,
        "properties": lambda fields: all(schema_accepts(s, value[k], root) for k, s in fields.items() if k in value),
        "required": lambda names: all(name in value for name in names),
        "additionalProperties": lambda rest: all(
            rest is not False and schema_accepts(rest, v, root)
            for k, v in value.items()
            if k not in schema.get("properties", {})
        ),
        "items": lambda items: all(schema_accepts(items, v, root) for v in value[len(schema.get("prefixItems", ())) :]),
        "prefixItems": lambda items: all(schema_accepts(s, v, root) for s, v in zip(items, value, strict=False)),
        "minItems": lambda n: len(value) >= n,
        "maxItems": lambda n: len(value) <= n,
        "minimum": lambda n: value >= n,
        "maximum": lambda n: value <= n,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
    }
    assert schema.keys() <= checks.keys() | known, schema.keys()
    ordered = sorted(schema.keys() & checks.keys(), key=lambda key: key != "type")
    return all(checks[key](schema[key]) for key in ordered)


@settings(max_examples=80)
@given(generators.cells(5) | generators.spaces(4))
def test_the_json_schema_accepts_the_json(value: Any) -> None:
    for mode in ("validation", "serialization"):
        schema = type(value).model_json_schema(mode=mode)
        assert schema_accepts(schema, value.model_dump(mode="json"), schema)


def test_the_json_schema_refuses_what_is_no_cell() -> None:
    schema = Cell.model_json_schema()
    good = Cell.of((0, POOL)).model_dump(mode="json")
    assert schema_accepts(schema, good, schema)
    for wrong in (
        {},
        {"branches": {}},
        {**good, "more": 1},
        {**good, "filters": "256"},
        {"branches": [{"input": 0, "operator": {"kind": "conv1x1"}}]},
        {"branches": [{"input": "Y0", "operator": {"kind": "conv1x1"}}]},
        {"branches": [{"input": "F", "operator": {"kind": "avgpool", "parameters": {"grid": [1]}}}]},
        {"branches": [{"input": "F", "operator": {"kind": "avgpool", "parameters": {"grid": 0}}}]},
    ):
        assert not schema_accepts(schema, wrong, schema), wrong


def test_pickles_go_to_other_processes() -> None:
    """Hashes of strings differ from process to process, so none may travel."""
    space = zoo()["dpc"].value
    assert isinstance(space, Space)
    hash(space), space.embed(read_cell("top1"))
    child = "import sys, pickle, dpcdsl; space = pickle.load(sys.stdin.buffer); same = dpcdsl.zoo()['dpc'].value; " + (
        "print(space == same, hash(space) == hash(same), len({space, same}), dpcdsl.read_cell('top1') in space)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", child],
        input=pickle.dumps(space),
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
    )
    assert answer.stdout.decode().split() == ["True", "True", "1", "True"]


def test_errors_and_documents_survive_copying_and_pickling() -> None:
    error = refusal("cell a { (Y9, nope, Y1) }\nspace s = b")
    document = parse("from zoo import paper\nspace s(B = 2) { B * (any, paper, _) }\ncell a { (F, conv1x1, Y1) }")
    error.more = 7
    for copied in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error), copy.copy(error)):
        assert copied.diagnostics == error.diagnostics
        assert copied.codes == error.codes
        assert str(copied) == str(error)
        assert copied.more == 7
    for again in (pickle.loads(pickle.dumps(document)), copy.deepcopy(document)):
        assert isinstance(again, Document)
        assert again.cells == document.cells
        assert again.spaces == document.spaces
        assert again.space("s", B=3) == document.space("s", B=3)
        assert again["a"].span == document["a"].span


def test_positions() -> None:
    source = Source("a.dpc", "one\r\ntwo\n\nfour")
    offsets = [(0, (1, 1)), (3, (1, 4)), (5, (2, 1)), (8, (2, 4)), (9, (3, 1)), (10, (4, 1)), (14, (4, 5))]
    for offset, position in offsets:
        assert source.position(offset) == position
        assert Span(source, offset, offset + 1).position == position
    assert [source.line(number) for number in (1, 2, 3, 4)] == ["one", "two", "", "four"]


# Values made in Python


def test_wrong_values_are_refused_by_name() -> None:
    slot = Slot(inputs=None, operators=OperatorSet.of([CONV]))
    refused: list[tuple[Any, str]] = [
        (lambda: Operator.of("nope"), "DPC013"),
        (lambda: Operator.of("conv1x1", rate=(1, 1)), "DPC015"),
        (lambda: Operator.of("avgpool"), "DPC014"),
        (lambda: Operator.of("avgpool", grid=2), "DPC018"),
        (lambda: Operator.of("avgpool", grid=(2, True)), "DPC018"),
        (lambda: Operator.of("avgpool", grid=(True, 2)), "DPC018"),
        (lambda: Operator.of("avgpool", grid=(1, 2, 3)), "DPC018"),
        (lambda: Operator.of("avgpool", grid=(0, 2)), "DPC017"),
        (lambda: Operator.of("avgpool", grid=(2, 10**5000)), "DPC017"),
        (lambda: Operator.of("avgpool", grid=10**5000), "DPC018"),
        (lambda: Operator(kind=3), "DPC018"),
        (lambda: Branch(input=-1, operator=CONV), "DPC018"),
        (lambda: Branch(input=True, operator=CONV), "DPC018"),
        (lambda: Branch(input="Y0", operator=CONV), "DPC010"),
        (lambda: Cell(branches=()), "DPC020"),
        (lambda: Cell.of((1, CONV)), "DPC011"),
        (lambda: Cell.of(*[(0, CONV)] * 257), "DPC021"),
        (lambda: Cell.of((0, CONV), filters=0), "DPC017"),
        (lambda: Cell.of((0, CONV), filters=10**5000), "DPC017"),
        (lambda: Cell.of((0, CONV), filters=True), "DPC018"),
        (lambda: OperatorSet.of([]), "DPC025"),
        (lambda: OperatorSet(operators=(CONV, CONV)), "DPC016"),
        (lambda: Space(slots=()), "DPC020"),
        (lambda: Space(slots=(slot,) * 257), "DPC021"),
        (lambda: Space(slots=(slot.model_copy(update={"optional": True}),)), "DPC023"),
        (lambda: Space(slots=(slot, slot.model_copy(update={"inputs": (2,)}))), "DPC011"),
        (lambda: Space(slots=(slot, slot.model_copy(update={"inputs": (1, 0)}))), "DPC016"),
        (lambda: Space(slots=(slot, slot.model_copy(update={"inputs": ()}))), "DPC016"),
        (
            lambda: Space(
                slots=(slot.model_copy(update={"optional": True}), Slot(inputs=(1,), operators=slot.operators))
            ),
            "DPC022",
        ),
        (lambda: Space.model_validate_json("{"), "DPC018"),
        (lambda: Space.model_validate({"slots": [], "constraints": [{"no": 1}, 3]}), "DPC018"),
    ]
    for call, code in refused:
        assert set(codes(call)) == {code}


def test_a_kind_with_parameters_of_any_name() -> None:
    kind = OperatorKind("odd", lambda **_: [], (generators.Integer("kind"), generators.Integer("cls")))
    with generators.registered(kind):
        made = Operator.of("odd", kind=3, cls=4)
        assert made["kind"] == 3
        assert str(made) == "odd kind 3 cls 4"
        assert kind_named("odd") is kind
        assert register_operator(kind) is kind
    assert codes(lambda: kind_named("odd")) == ("DPC013",)


# The graph


@settings(max_examples=60)
@given(generators.cells(12))
def test_the_graph(cell: Cell) -> None:
    graph = cell.graph()
    names = ["F", *(f"Y{i}" for i in range(1, len(cell) + 1))]
    assert set(graph) == {*names, "Y"}
    assert nx.is_directed_acyclic_graph(graph)
    expected = {(names[branch.input], names[i]) for i, branch in enumerate(cell.branches, 1)}
    assert set(graph.edges) == expected | {(name, "Y") for name in names[1:]}
    assert {name: data.get("operator") for name, data in graph.nodes.items()} == {
        "F": None,
        "Y": None,
        **{names[i]: branch.operator for i, branch in enumerate(cell.branches, 1)},
    }
    assert nx.dag_longest_path_length(graph) == cell.depth + 1
    assert max(cell.depths) == cell.depth


@given(generators.cells(5), generators.cells(5), generators.cells(5))
def test_distance_is_a_metric(a: Cell, b: Cell, c: Cell) -> None:
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a.branches == b.branches)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert distance(a, b) <= 2 * max(len(a), len(b))


def test_distance_counts_inputs_and_operators() -> None:
    cell = parse_cell("(F, conv1x1, Y1) (F, conv1x1, Y2)")
    assert distance(cell, parse_cell("(F, conv1x1, Y1) (Y1, conv1x1, Y2)")) == 1
    assert distance(cell, parse_cell("(F, conv1x1, Y1) (Y1, avgpool grid 1x1, Y2)")) == 2
    assert distance(cell, parse_cell("(F, conv1x1, Y1)")) == 2
    assert distance(cell, parse_cell("filters 3 (F, conv1x1, Y1) (F, conv1x1, Y2)")) == 0


RELATION = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


@given(st.sampled_from(generators.RELATIONS), st.integers(0, 9), st.integers(0, 9))
def test_comparisons(relation: Any, value: int, bound: int) -> None:
    made: Constraint = Comparison(measure=Depth(), relation=relation, bound=bound)
    assert made.compare(value) == RELATION[relation](value, bound)
