"""Diagrams: what the DOT text says, what the pictures hold, and what happens where they cannot be drawn."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpcdsl.cell import Cell
from dpcdsl.constraints import Branches, Comparison, Constraint
from dpcdsl.diagram import LARGEST_SIDE, Diagram, draw, draw_receptive_field, rendering
from dpcdsl.errors import DpcError
from dpcdsl.layers import DepthwiseConvolution, Layer, Size
from dpcdsl.operators import Integer, Operator, OperatorKind, Pair
from dpcdsl.receptive_field import receptive_field
from dpcdsl.space import OperatorSet, Slot, Space

SVG = "{http://www.w3.org/2000/svg}"


def _maxpool(window: Size, times: int, **_: int) -> list[Layer]:
    return [DepthwiseConvolution("stand-in", window)] * times


def registered(*kinds: OperatorKind) -> AbstractContextManager[Any]:
    """A registry with these kinds too, for a while: other tests must not see them."""
    return patch.dict("dpcdsl.operators._registry", {kind.name: kind for kind in kinds})


def user_operator() -> Diagram:
    with registered(OperatorKind("drawn_maxpool", _maxpool, (Pair("window"), Integer("times")))):
        return draw(Cell.of((0, Operator.of("drawn_maxpool", window=(3, 5), times=2)), (1, conv())))


def conv() -> Operator:
    return Operator.of("conv1x1")


def sep(height: int, width: int) -> Operator:
    return Operator.of("sepconv3x3", rate=(height, width))


def pool(height: int, width: int) -> Operator:
    return Operator.of("avgpool", grid=(height, width))


RATES, GRIDS = (1, 3, 6, 9, 12, 15, 18, 21), (1, 2, 4, 8)
PAPER = OperatorSet.of(
    [conv(), *(sep(h, w) for h in RATES for w in RATES), *(pool(h, w) for h in GRIDS for w in GRIDS)]
)
TOP1 = Cell.of((0, sep(1, 6)), (1, sep(18, 15)), (2, sep(6, 3)), (1, sep(1, 1)), (1, sep(6, 21)))
ASPP = Cell.of((0, conv()), (0, sep(6, 6)), (0, sep(12, 12)), (0, sep(18, 18)), (0, pool(1, 1)))
FIGURE_2 = Cell.of((0, sep(1, 1)), (0, sep(6, 6)), (0, sep(6, 24)), (0, sep(24, 6)))


def paper_space(branches: int) -> Space:
    return Space(slots=(Slot(inputs=None, operators=PAPER),) * branches)


def only(operator: Operator) -> OperatorSet:
    return OperatorSet(operators=(operator,))


MIXED = Space(
    slots=(
        Slot(inputs=(0,), operators=OperatorSet.of([conv(), sep(5, 7), sep(5, 8), sep(6, 7)])),
        Slot(inputs=None, operators=PAPER, optional=True),
        Slot(inputs=(0, 1), operators=OperatorSet.of([conv(), sep(5, 7), sep(5, 8), sep(6, 7)])),
        Slot(inputs=(0, 2), operators=only(conv())),
        Slot(inputs=(0, 1, 3), operators=OperatorSet.of(pool(1, n) for n in range(1, 9))),
    ),
    filters=64,
    constraints=(Comparison(measure=Branches(), relation=">=", bound=4),),
)

DRAWN: dict[str, Callable[[], Diagram]] = {
    "top1": lambda: draw(TOP1),
    "aspp": lambda: draw(ASPP, title="ASPP"),
    "pool": lambda: draw(Cell.of((0, pool(2, 4)), filters=128)),
    "user_operator": user_operator,
    "paper_space": lambda: draw(paper_space(5)),
    "mixed_space": lambda: draw(MIXED, title="Everything at once"),
    "receptive_field": lambda: draw_receptive_field(Cell.of((0, sep(1, 2)), (1, conv()))),
    "receptive_field_on_a_map": lambda: draw_receptive_field(
        Cell.of((0, pool(2, 2))), "Y1", (4, 6), at=(0, 5), pooling="sliding", title="A corner"
    ),
}

operators = st.one_of(
    st.just(conv()),
    st.builds(sep, st.sampled_from(RATES), st.sampled_from(RATES)),
    st.builds(pool, st.sampled_from(GRIDS), st.sampled_from(GRIDS)),
)


@st.composite
def cells(draw_: st.DrawFn, most: int = 12, drawn: st.SearchStrategy[Operator] = operators) -> Cell:
    count = draw_(st.integers(1, most))
    return Cell.of(*((draw_(st.integers(0, n)), draw_(drawn)) for n in range(count)))


@st.composite
def spaces(draw_: st.DrawFn) -> Space:
    slots = []
    for number in range(1, draw_(st.integers(1, 8)) + 1):
        inputs = tuple(sorted({0, *draw_(st.sets(st.integers(0, number - 1)))}))
        slots.append(
            Slot(
                inputs=draw_(st.sampled_from([None, inputs])),
                operators=draw_(st.sampled_from([PAPER, only(conv()), only(sep(3, 6))])),
                optional=draw_(st.booleans()) and number > 1,
            )
        )
    return Space(slots=tuple(slots))


@pytest.fixture(params=["dot", "pygraphviz"])
def graphviz(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, needs: Callable[[str], str]) -> str:
    """Each way to run Graphviz, alone."""
    name: str = request.param
    if name == "dot":
        needs("dot")
        monkeypatch.setattr(rendering, "find_spec", lambda _: None)
    else:
        monkeypatch.setattr("shutil.which", lambda _: None)
    return name


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any Graphviz."""
    monkeypatch.setattr(rendering, "find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


# The DOT text


@pytest.mark.parametrize("name", DRAWN)
def test_golden(name: str, golden: Any) -> None:
    golden.check(f"diagram/{name}.dot", DRAWN[name]().dot)


def test_the_text_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.test_diagram import *; import hashlib;"
        "print(hashlib.sha256(''.join(d().dot + d().title for d in DRAWN.values()).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def edges(dot: str) -> Iterator[tuple[str, str, str]]:
    """Tail, head and attributes of each."""
    yield from re.findall(r"^\t(\w+) -> (\w+)(?::\w+:s)?(?: \[(.*)\])?$", dot, re.MULTILINE)


@given(cells(most=40))
def test_the_arrows_of_a_cell_are_its_graph(cell: Cell) -> None:
    arrows = [(tail, head) for tail, head, _ in edges(draw(cell).dot)]
    assert len(arrows) == 2 * len(cell)
    assert set(arrows) == set(cell.graph().edges)


@given(cells(most=40))
def test_what_a_branch_feeds_stands_directly_after_it(cell: Cell) -> None:
    order = [int(name) for name in re.findall(r'PORT="Y(\d+)"', draw(cell).dot)]
    assert sorted(order) == list(range(1, len(cell) + 1))
    feeds: dict[int, set[int]] = {n: {n} for n in range(len(cell) + 1)}
    for number in range(len(cell), 0, -1):
        feeds[cell.branches[number - 1].input] |= feeds[number]
    for place, number in enumerate(order):
        assert set(order[place : place + len(feeds[number])]) == feeds[number]


@given(spaces())
def test_the_dots_of_a_space_gather_its_choices(space: Space) -> None:
    into: dict[str, list[str]] = {}
    solid = set()
    for tail, head, attributes in edges(draw(space).dot):
        into.setdefault(head, []).append(tail)
        if "dashed" not in attributes:
            solid.add((tail, head))

    def gathered(name: str) -> set[str]:
        return {tensor for tail in into[name] for tensor in (gathered(tail) if tail.startswith("X") else {tail})}

    for number, slot in enumerate(space.slots, 1):
        candidates = {f"Y{i}" if i else "F" for i in space.candidates(number)}
        assert len(into[f"Y{number}"]) == 1
        assert gathered(f"Y{number}") == candidates
        assert ((into[f"Y{number}"][0], f"Y{number}") in solid) == (len(candidates) == 1)
        assert ((f"Y{number}", "Y") in solid) == (not slot.optional)
    assert sorted(into["Y"]) == sorted(f"Y{n}" for n in range(1, len(space.slots) + 1))


def test_any_needs_a_line_of_dots_and_not_a_tangle() -> None:
    assert len(list(edges(draw(paper_space(12)).dot))) == 12 + 1 + 3 * 11


def box(dot: str, name: str) -> str:
    found = re.search(rf"^\t{name} \[(.*)\]$", dot, re.MULTILINE)
    assert found
    return found[1]


def test_boxes_of_a_space() -> None:
    dot = draw(MIXED).dot
    lines = [re.sub(r"<[^>]*>", "|", box(dot, f"Y{n}").split("label=<")[1].split("> ")[0]) for n in range(1, 6)]
    assert "4 operators|conv1x1|sepconv3x3 rate 5x7|sepconv3x3 rate 5x8|sepconv3x3 rate 6x7" in lines[0]
    assert "81 operators|conv1x1|sepconv3x3|rate {1, 3..21 step 3} x {1, 3..21 step 3}|avgpool grid" in lines[1]
    assert "4 operators|as in Y1||of F or Y1" in lines[2]
    assert "Conv|1×1||of F or Y2" in lines[3]
    assert "8 operators|avgpool grid 1 x {1..8}||of F, Y1 or Y3" in lines[4]
    assert [number for number in range(1, 6) if "dashed" in box(dot, f"Y{number}")] == [2]
    assert "filters 64<BR/>require branches &gt;= 4" in dot


def test_boxes_stay_small_whatever_the_choice() -> None:
    irregular = OperatorSet.of([sep(n, n + 1) for n in range(1, 40)])
    alternating = OperatorSet.of([op for n in range(1, 40) for op in (sep(n, n), pool(n, n))])
    slots = [Slot(inputs=None, operators=choice) for choice in (irregular, alternating)]
    far = [Slot(inputs=inputs, operators=only(conv())) for inputs in ((0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4))]
    apart = Slot(inputs=(0, 1, 2, 3, 4, 5, 7), operators=only(conv()))
    dot = draw(Space(slots=(*slots, *far, *[Slot(inputs=(0,), operators=only(conv()))] * 2, apart))).dot
    assert "39 operators<BR/>39 × sepconv3x3" in box(dot, "Y1")
    assert box(dot, "Y2").count("<BR/>") <= 16
    assert "…" in box(dot, "Y2")
    assert "of F, Y1, … or Y4" in box(dot, "Y5")
    assert "of one of 7 inputs" in box(dot, "Y8")


def test_a_kind_keeps_its_colour() -> None:
    dot = draw(Cell.of((0, conv()), (0, sep(1, 6)), (1, pool(2, 2)), (2, sep(3, 3)))).dot
    colours = [re.findall(r"color=\S+", box(dot, f"Y{n}")) for n in range(1, 5)]
    assert colours[1] == colours[3]
    assert len({tuple(pair) for pair in colours}) == 3
    single = draw(Space(slots=(Slot(inputs=None, operators=OperatorSet.of([pool(1, 1), pool(2, 2)])),))).dot
    assert re.findall(r"color=\S+", box(single, "Y1")) == colours[2]


# Pictures


@pytest.mark.usefixtures("graphviz")
@pytest.mark.parametrize("name", DRAWN)
def test_svg(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    diagram = DRAWN[name]()
    svg = diagram.svg()
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox")
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text is not None
    assert diagram.title.startswith(root[0].text.removesuffix(" …"))
    assert len(list(root.iter(f"{SVG}title"))) == 1
    assert root.find(f".//{SVG}polygon").get("fill") == "white"  # type: ignore[union-attr]
    assert {text.get("font-family") for text in root.iter(f"{SVG}text")} == {rendering.FONT}
    assert {text.get("text-anchor") for text in root.iter(f"{SVG}text")} == {"middle"}
    assert "<!--" not in svg
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("graphviz")
def test_svg_holds_every_label() -> None:
    shown = texts(draw(ASPP, title="ASPP").svg())
    for number, branch in enumerate(ASPP.branches, 1):
        at = shown.index(f"Y{number}")
        lines = branch.operator.label.splitlines()
        assert shown[at + 1 : at + 1 + len(lines)] == lines
    assert {"F", "Concat", "ASPP"} < set(shown)


@pytest.mark.usefixtures("graphviz")
@pytest.mark.parametrize("diagram", [draw(TOP1), draw_receptive_field(FIGURE_2)], ids=["cell", "receptive field"])
def test_png_and_pdf(diagram: Diagram, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = []
    for dpi in (72, 144):
        png = diagram.png(dpi)
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        sizes.append(struct.unpack(">II", png[16:24]))
    assert sizes[1] == pytest.approx([2 * length for length in sizes[0]], abs=3)
    assert diagram.pdf().startswith(b"%PDF-")
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("graphviz")
def test_a_png_has_a_largest_side() -> None:
    png = draw(Cell.of(*[(0, conv())] * 64)).png(600)
    assert max(struct.unpack(">II", png[16:24])) in range(LARGEST_SIDE - 10, LARGEST_SIDE + 1)


@pytest.mark.parametrize("dpi", [0, 9, 1201, -150])
def test_dpi_out_of_range(dpi: int) -> None:
    with pytest.raises(DpcError, match=rf"dpi must be from 10 to 1200, not {dpi} \[DPC062\]"):
        draw(TOP1).png(dpi)


@pytest.mark.parametrize("branches", [1, 64])
@pytest.mark.parametrize("shape", ["chain", "parallel", "any"])
def test_small_and_large(branches: int, shape: str) -> None:
    subject: Cell | Space = paper_space(branches)
    if shape != "any":
        subject = Cell.of(*((n if shape == "chain" else 0, sep(1 + n, 6)) for n in range(branches)))
    shown = texts(draw(subject).svg())
    assert {f"Y{n}" for n in range(1, branches + 1)} < set(shown)


labels = st.text(st.one_of(st.sampled_from("\"<>&\\NGlrn{}|;'\n\t -"), st.characters()), min_size=1, max_size=60)


@settings(max_examples=25)
@given(st.lists(labels, min_size=1, max_size=12))
@example(
    ['"quoted"', "<b>bold</b>", "&amp; &#92;N", "\\N \\G \\n \\l \\", "{x} {{y}} | <p>", "line\nline", "\ud800\0\x1b["]
)
@example(
    [" ", "\n", "  two  spaces  ", "non\xa0breaking", "x" * 200, "]]>", "<!-- -->", "-->", "%s", "$(x)", "é漢字😀"]
)
def test_labels_are_shown_as_they_are(listed: list[str]) -> None:
    kinds = [
        OperatorKind(f"drawn_{n}", lambda **_: [], label=label.replace("{", "{{").replace("}", "}}"))
        for n, label in enumerate(listed)
    ]
    with registered(*kinds):
        svg = draw(Cell.of(*((0, Operator.of(kind.name)) for kind in kinds)), title=listed[0]).svg()
    groups = [[t.text or "" for t in g.iter(f"{SVG}text")] for g in ET.fromstring(svg).iter(f"{SVG}g")]
    shown = {lines[0]: lines[1:] for lines in groups[1:] if lines and lines[0].startswith("Y")}
    for number, label in enumerate(listed, 1):
        kept = (c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in label if not c.isspace())
        assert "".join("".join(shown[f"Y{number}"]).split()) == "".join(kept)


@pytest.mark.usefixtures("graphviz")
def test_threads_do_not_meet() -> None:
    diagrams = [draw(TOP1), draw(ASPP), draw_receptive_field(FIGURE_2)] * 3
    with ThreadPoolExecutor(4) as pool_:
        drawn = list(pool_.map(Diagram.svg, diagrams))
    assert drawn[:3] == drawn[3:6] == drawn[6:] == [diagram.svg() for diagram in diagrams[:3]]


def test_notebooks_show_cells_and_spaces() -> None:
    assert TOP1._repr_svg_() == draw(TOP1).svg() == draw(TOP1)._repr_svg_()
    assert paper_space(2)._repr_svg_() == draw(paper_space(2)).svg()


# Files


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG"), ("a.b.pdf", b"%PDF"), ("a.dot", b"digraph cell {")],
)
def test_save(tmp_path: Path, name: str, start: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(b"what was there before")
    draw(TOP1).save(str(path))
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]
    if name.endswith("svg"):
        ET.parse(path)


def test_save_takes_a_resolution(tmp_path: Path) -> None:
    draw(TOP1).save(tmp_path / "a.png", dpi=50)
    assert (tmp_path / "a.png").read_bytes() == draw(TOP1).png(50)


@pytest.mark.parametrize(("name", "says"), [("a.jpg", "`.jpg` is no format of diagrams"), ("a", "no suffix")])
def test_save_needs_a_known_suffix(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DpcError) as caught:
        draw(TOP1).save(tmp_path / name)
    assert caught.value.codes == ("DPC063",)
    assert says in str(caught.value)
    assert "help: end its name in .svg, .png, .pdf or .dot" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(DpcError, match=r"cannot be written.*\[DPC060\]"):
        draw(TOP1).save(tmp_path / "missing" / "a.dot")


@pytest.mark.usefixtures("nothing")
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svg"
    path.write_text("before")
    with pytest.raises(DpcError):
        draw(TOP1).save(path)

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DpcError):
        draw(TOP1).save(tmp_path / "a.dot")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"


# Without Graphviz, or with one that fails


@pytest.mark.usefixtures("nothing")
def test_without_graphviz_there_is_still_the_text(tmp_path: Path) -> None:
    diagram = draw(TOP1)
    for draw_it in (diagram.svg, diagram.png, diagram.pdf):
        with pytest.raises(DpcError) as caught:
            draw_it()
        assert caught.value.codes == ("DPC063",)
        assert "there is no Graphviz here" in str(caught.value)
        assert 'install Graphviz (the program `dot`) or `pip install "pygraphviz>=2"`' in str(caught.value)
    diagram.save(tmp_path / "a.dot")
    assert (tmp_path / "a.dot").read_text(encoding="utf-8") == diagram.dot


def fake_dot(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for `dot` is a shell script")
class TestBroken:
    def test_another_graphviz_takes_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_dot(tmp_path, "exit 3", monkeypatch)
        assert "Concat" in texts(draw(TOP1).svg())

    @pytest.mark.parametrize(
        ("script", "says"),
        [
            ("echo first >&2; echo 'Format: \"pdf\" not recognized' >&2; exit 1", '"pdf" not recognized'),
            ("exit 3", "dot failed: exit status 3"),
            ("exit 0", "dot failed"),
            ("exec sleep 60", "dot took more than 0.3 seconds"),
        ],
    )
    def test_the_reason_is_told(self, script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_dot(tmp_path, script, monkeypatch)
        monkeypatch.setattr(rendering, "find_spec", lambda _: None)
        monkeypatch.setattr(rendering, "_SECONDS", 0.3)
        with pytest.raises(DpcError) as caught:
            draw(TOP1).pdf()
        assert "no PDF could be drawn" in str(caught.value)
        assert says in str(caught.value)

    def test_a_program_that_does_not_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rendering, "_graphvizes", lambda: [("dot", [str(tmp_path / "gone")])])
        with pytest.raises(DpcError, match="dot does not start"):
            draw(TOP1).svg()


def test_importing_is_light() -> None:
    heavy = ("graphviz", "pygraphviz", "numpy", "networkx", "torch")
    program = f"import dpcdsl.diagram, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Receptive fields


def rectangles(dot: str) -> Iterator[tuple[dict[str, str], tuple[float, float, float, float]]]:
    """Attributes and left, top, right, bottom in points, in the order in which they are painted."""
    for line in re.findall(r"^\t\d+ \[(.*)\]$", dot, re.MULTILINE):
        found = dict(re.findall(r'(\w+)=("[^"]*"|<.*>|\S+)', line))
        x, y = map(float, found["pos"].strip('"').split(","))
        width, height = 72 * float(found["width"]), 72 * float(found["height"])
        yield found, (x - width / 2, -y - height / 2, x + width / 2, -y + height / 2)


def painted(dot: str, rows: int, columns: int) -> list[list[list[bool]]]:
    """For each panel, which of its squares show the colour of what is seen."""
    seen = list(rectangles(dot))
    panels = []
    for found, (left, top, right, bottom) in seen:
        if found.get("color") != '"#666666"':
            continue
        across, down = (right - left) / columns, (bottom - top) / rows
        panel = []
        for row in range(rows):
            y = top + (row + 0.5) * down
            panel.append([False] * columns)
            for attributes, (a, b, c, d) in seen:
                if b < y < d and not {"style", "shape"} & set(attributes):
                    for column in range(columns):
                        if a < left + (column + 0.5) * across < c:
                            panel[row][column] = "fillcolor" in attributes
        panels.append(panel)
    return panels


@settings(max_examples=30)
@given(cells(most=4), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_a_panel_shows_exactly_what_is_seen(cell: Cell, size: Size, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    panels = painted(draw_receptive_field(cell, size=size, at=at).dot, *size)
    field = receptive_field(cell, size)
    assert panels == [branch.positions(at).tolist() for branch in field.branches]


convolutions = st.one_of(st.just(conv()), st.builds(sep, st.integers(1, 8), st.integers(1, 8)))


@settings(max_examples=30)
@given(cells(most=4, drawn=convolutions))
def test_without_a_map_a_panel_shows_offsets(cell: Cell) -> None:
    def span(listed: Sequence[tuple[int, ...]]) -> int:
        return max(4, *(abs(offset) + 1 for offsets in listed for offset in offsets))

    listed = [branch.offsets for branch in receptive_field(cell).branches]
    down, across = span([rows or () for rows, _ in listed]), span([columns or () for _, columns in listed])
    expected = [
        [
            [r in (rows or ()) and c in (columns or ()) for c in range(-across, across + 1)]
            for r in range(-down, down + 1)
        ]
        for rows, columns in listed
    ]
    assert painted(draw_receptive_field(cell).dot, 2 * down + 1, 2 * across + 1) == expected


@pytest.mark.usefixtures("graphviz")
def test_figure_2() -> None:
    shown = texts(draw_receptive_field(FIGURE_2, title="Figure 2").svg())
    assert shown[0] == "Figure 2"
    assert shown[7:10] == ["Y3", "Conv 3×3 rate 6×24 of F", "extent 13×49, 9 taps"]


def test_one_branch_by_number_or_name() -> None:
    assert draw_receptive_field(TOP1, 3) == draw_receptive_field(TOP1, "Y3")
    dot = draw_receptive_field(TOP1, 3).dot
    assert "<B>Y3</B><BR/>Conv 3×3 rate 6×3 of Y2<BR/>extent 51×49, 459 taps" in dot
    assert "Y1</B>" not in dot


def test_the_centre_is_a_disc_and_hollow_if_it_is_not_seen() -> None:
    even = OperatorKind("drawn_even", lambda **_: [DepthwiseConvolution("even", (2, 2), (3, 3))])
    with registered(even):
        dot = draw_receptive_field(Cell.of((0, conv()), (0, Operator.of("drawn_even")))).dot
    discs = [found for found, _ in rectangles(dot) if found.get("shape") == "circle"]
    assert [(disc["color"], disc["fillcolor"]) for disc in discs] == [
        ('"#f28e1c"', '"#f28e1c"'),
        ('"#f28e1c"', "white"),
    ]


def test_large_maps_are_drawn_coarser_and_say_so() -> None:
    dot = draw_receptive_field(TOP1, size=(4096, 2048), output_stride=8).dot
    assert "map 4096×2048, output at row 2048, column 1024, output stride 8, a square is 23×23 positions" in dot
    assert len(list(rectangles(dot))) < 1000
    far = Cell.of((0, sep(2**31 - 1, 1)))
    assert len(list(rectangles(draw_receptive_field(far).dot))) < 1000


def test_many_branches_stand_in_rows() -> None:
    dot = draw_receptive_field(Cell.of(*[(0, conv())] * 14)).dot
    frames = [place for found, place in rectangles(dot) if found.get("color") == '"#666666"']
    assert len(frames) == 14
    assert len({top for _, top, _, _ in frames}) == 3
    for a, (left, top, right, bottom) in enumerate(frames):
        for other_left, other_top, other_right, other_bottom in frames[a + 1 :]:
            assert right < other_left or other_right < left or bottom < other_top or other_bottom < top


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: draw_receptive_field(ASPP), "`Y5` pools or resizes, so what it sees depends on the size of the map"),
        (lambda: draw_receptive_field(TOP1, "Y9"), "there is no branch `Y9`"),
        (lambda: draw_receptive_field(TOP1, 0), "there is no branch `F`"),
        (lambda: draw_receptive_field(TOP1, at=(0, 0)), "depends on the size of the map"),
        (lambda: draw_receptive_field(TOP1, size=(9, 9), at=(9, 0)), "at must be"),
        (lambda: draw_receptive_field(TOP1, size=(0, 9)), "size must be"),
    ],
)
def test_wrong_settings(call: Callable[[], Diagram], says: str) -> None:
    with pytest.raises(DpcError) as caught:
        call()
    assert caught.value.codes == ("DPC062",)
    assert says in str(caught.value)


def test_a_constraint_is_written_with_the_space() -> None:
    constraint: Constraint = Comparison(measure=Branches(), relation="<=", bound=2)
    space = Space(slots=paper_space(2).slots, constraints=(constraint,))
    assert "require branches <= 2" in texts(draw(space, title="small").svg())
