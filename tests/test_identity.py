"""IDs of cells: frozen for good, bound to what they mean, and refused where they mean something else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import generators
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl import (
    Cell,
    Convolution,
    DepthwiseConvolution,
    DpcError,
    Layer,
    Operator,
    OperatorKind,
    OperatorSet,
    Slot,
    Space,
    operators,
    parse,
    parse_cell,
    read_cell,
    read_space,
    strategies,
)
from dpcdsl.enumeration import enumerator
from dpcdsl.identity import CellId, cell_id, cell_of_id, fingerprint, is_id, read_id
from dpcdsl.interchange import paper_space

BOUND = "dpc where params(F=320) <= 400K and depth <= 3"


def space_of(text: str) -> Space:
    return parse(f"space s {{ {text} }}").space("s")


# Whoever has noted down an ID must find the same cell again. The numbers of this section may never change: where they
# would, RANKING_VERSION has to.


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("dpc(B=1)", "342398317f9c"),
        ("dpc(B=2)", "664080ef6b6a"),
        ("dpc(B=3)", "0a751a916388"),
        ("dpc(B=4)", "dbd725b8b505"),
        ("dpc(B=5)", "60b395906dd8"),
        ("dpc(B=8)", "5c0d4fb670ae"),
        ("aspp_subsets", "5923d7eae7dc"),
        (BOUND, "f49d149ecc78"),
        ("top1", "f68f73a4e236"),
    ],
)
def test_fingerprints_that_may_never_change(space: str, expected: str) -> None:
    assert fingerprint(read_space(space)) == expected


@pytest.mark.parametrize(
    ("cell", "space", "expected"),
    [
        ("top1", "dpc(B=5)", "dpc(B=5)@60b395906dd8:19825144575"),
        ("aspp", "dpc(B=5)", "dpc(B=5)@60b395906dd8:335766932020"),
        ("top1", BOUND, BOUND + "@f49d149ecc78:15827472032"),
        ("(F, conv1x1, _)", "dpc(B=1)", "dpc(B=1)@342398317f9c:0"),
        ("(F, avgpool grid 8x8, _)", "dpc(B=1)", "dpc(B=1)@342398317f9c:80"),
        (
            "(F, conv1x1, _) (F, sepconv3x3 rate 18x18, _) (F, avgpool grid 1x1, _)",
            "aspp_subsets",
            "aspp_subsets@5923d7eae7dc:18",
        ),
    ],
)
def test_ids_that_may_never_change(cell: str, space: str, expected: str) -> None:
    value = read_cell(cell)
    assert str(cell_id(value, read_space(space), space)) == expected
    assert cell_of_id(read_id(expected), read_space(space)) == value


def test_the_rank_of_the_best_cell_by_hand() -> None:
    """Digits from the first branch to the last: place of the input times 81, and the number of the operator."""
    rates = {rate: place for place, rate in enumerate((1, 3, 6, 9, 12, 15, 18, 21))}

    def operator(height: int, width: int) -> int:
        return 1 + 8 * rates[height] + rates[width]

    rank = 0
    for number, (source, rate) in enumerate(((0, (1, 6)), (1, (18, 15)), (2, (6, 3)), (1, (1, 1)), (1, (6, 21))), 1):
        rank = rank * 81 * number + 81 * source + operator(*rate)
    assert rank == 19_825_144_575
    # Of the subsets of ASPP, conv1x1 being the most significant bit: 10011, and the empty one is not counted.
    assert 0b10011 - 1 == 18


# What the fingerprint depends on

BASE = "2 * (any, conv1x1 | avgpool grid {1, 2} x 1, _)"
ELSE = {
    "the order of the operators": "2 * (any, avgpool grid {1, 2} x 1 | conv1x1, _)",
    "the order within a set": "2 * (any, conv1x1 | avgpool grid 2x1 | avgpool grid 1x1, _)",
    "one parameter": "2 * (any, conv1x1 | avgpool grid {1, 3} x 1, _)",
    "height and width": "2 * (any, conv1x1 | avgpool grid 1 x {1, 2}, _)",
    "one operator less": "2 * (any, conv1x1 | avgpool grid 1x1, _)",
    "another kind": "2 * (any, conv1x1 | sepconv3x3 rate {1, 2} x 1, _)",
    "filters": "filters 64 " + BASE,
    "a constraint": BASE + " require depth <= 1",
    "another constraint": BASE + " require depth <= 2",
    "another relation": BASE + " require depth < 2",
    "another measure": BASE + " require branches <= 2",
    "other features": BASE + " require params(F=320) <= 10M",
    "features": BASE + " require params(F=321) <= 10M",
    "a size": BASE + " require madds(F=320, at=2x3) <= 10M",
    "another size": BASE + " require madds(F=320, at=3x2) <= 10M",
    "uses": BASE + " require uses(conv1x1) <= 1",
    "uses another": BASE + " require uses(avgpool) <= 1",
    "uses an operator": BASE + " require uses(avgpool grid 1x1) <= 1",
    "near a cell": BASE + " require distance((F, conv1x1, _)) <= 3",
    "near another cell": BASE + " require distance((F, avgpool grid 1x1, _)) <= 3",
    "more branches": BASE.replace("2 *", "3 *"),
    "fewer branches": BASE.replace("2 *", "1 *"),
    "an optional branch": BASE.replace("2 *", "1 *") + " optional" + BASE.removeprefix("2 *"),
    "the first one optional": "optional" + BASE.removeprefix("2 *") + " " + BASE.replace("2 *", "1 *"),
    "inputs": BASE.replace("2 *", "1 *") + BASE.removeprefix("2 *").replace("any", "F"),
    "other inputs": BASE.replace("2 *", "1 *") + BASE.removeprefix("2 *").replace("any", "Y1"),
}


def test_whatever_a_rank_depends_on_changes_the_fingerprint() -> None:
    found = {name: fingerprint(space_of(text)) for name, text in (ELSE | {"nothing": BASE}).items()}
    assert len(set(found.values())) == len(found), found


def test_the_order_of_ranks_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of("filters 77 " + BASE)
    before = fingerprint(space)
    monkeypatch.setattr("dpcdsl.identity.RANKING_VERSION", 2)
    fingerprint.cache_clear()
    try:
        assert fingerprint(space) != before
    finally:
        monkeypatch.undo()
        fingerprint.cache_clear()
    assert fingerprint(space) == before


SAME = {
    "layout": "2*(any,conv1x1|avgpool grid{1,2}x 1,_)# a comment\n",
    "one by one": "(any, conv1x1 | avgpool grid 1x1 | avgpool grid 2x1, _) (any, conv1x1 | avgpool grid {1..2} x 1, _)",
    "names of tensors": "(F, conv1x1 | avgpool grid {1, 2} x 1, Y1) ({F, Y1}, conv1x1 | avgpool grid {1, 2} x 1, Y2)",
    "inputs backward": "(F, conv1x1 | avgpool grid {1, 2} x 1, _) ({Y1, F}, conv1x1 | avgpool grid {1, 2} x {1}, _)",
    "filters, which are the default": "filters 256 " + BASE,
    "an operator twice": "2 * (any, conv1x1 | avgpool grid {1, 2} x 1 | conv1x1, _)",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_how_a_space_is_written_does_not_change_the_fingerprint(text: str) -> None:
    assert fingerprint(space_of(text)) == fingerprint(space_of(BASE))


def test_how_a_space_is_come_by_does_not_change_the_fingerprint() -> None:
    operators = OperatorSet.of(
        [Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1)), Operator.of("avgpool", grid=(2, 1))]
    )
    made = Space(slots=(Slot(inputs=(0,), operators=operators), Slot(inputs=(0, 1), operators=operators)))
    expected = fingerprint(space_of(BASE))
    assert fingerprint(made) == expected
    assert fingerprint(Space.model_validate(made.model_dump())) == expected
    named = "ops few = avgpool grid {1, 2} x 1\nspace other(B) { B * (any, conv1x1 | few, _) }\nspace s = other(B=2)"
    assert fingerprint(parse(named).space("s")) == expected
    limited = space_of(BASE + " require params(F=320) <= 400K and depth <= 1")
    for text in ("params(F=320) <= 0.4M and (depth <= 1)", "params( F = 320 ) <= 400000 and depth<=1"):
        assert fingerprint(space_of(BASE + " require " + text)) == fingerprint(limited)
    assert fingerprint(paper_space(5)) == fingerprint(read_space("dpc")) == fingerprint(read_space("dpc(B=5)"))


def run(code: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return found.stdout.strip()


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_fingerprints_and_ids_are_the_same_in_every_process(seed: str) -> None:
    code = f"""
from dpcdsl import read_cell, read_space
from dpcdsl.identity import cell_id, fingerprint
print(fingerprint(read_space("aspp_subsets")), cell_id(read_cell("top1"), read_space({BOUND!r}), "x"))
"""
    assert run(code, PYTHONHASHSEED=seed) == "5923d7eae7dc x@f49d149ecc78:15827472032"


def test_an_operator_that_another_process_knows_otherwise_changes_the_fingerprint() -> None:
    """The same text in two processes in which the user's kind has other layers."""
    code = """
import dpcdsl
from dpcdsl.identity import fingerprint
layers = [dpcdsl.Convolution("conv", 8, kernel=({kernel}))]
dpcdsl.register_operator(dpcdsl.OperatorKind("own", lambda filters: layers))
print(fingerprint(dpcdsl.parse("space s {{ filters 8 2 * (any, own | conv1x1, _) }}").space("s")))
"""
    assert run(code.format(kernel="1, 1")) == "de32f87aa00b"
    assert run(code.format(kernel="3, 3")) == "44732f79868a"


@dataclass(frozen=True)
class Window(Layer):
    window: int


@pytest.mark.usefixtures("shipped_operators")
def test_what_an_operator_stands_for_changes_the_fingerprint() -> None:
    @dataclass(frozen=True)
    class Grown(Window):
        more: int = 0

    Grown.__name__ = "Window"  # the same layer in a later version of the user's code
    forget = (fingerprint.cache_clear, operators._layers.cache_clear)

    def found(*layers: Layer, label: str = "") -> str:
        with generators.registered(OperatorKind("identity_own", lambda **_: layers, label=label)):
            for clear in forget:
                clear()
            found = fingerprint(space_of("filters 8 2 * (any, identity_own | conv1x1, _)"))
        for clear in forget:
            clear()
        return found

    convolution = Convolution("conv", 8)
    prints = [
        found(convolution),
        found(Convolution("conv", 4)),
        found(Convolution("other", 8)),
        found(Convolution("conv", 8, kernel=(3, 3))),
        found(Convolution("conv", 8, kernel=(3, 3), rate=(2, 1))),
        found(Convolution("conv", 8, relu=False)),
        found(Convolution("conv", 8, batch_norm=False)),
        found(DepthwiseConvolution("conv", (1, 1))),
        found(Window(3)),
        found(Window(5)),
        found(Window(3), convolution),
        found(convolution, Window(3)),
        found(convolution, convolution),
        found(Grown(3, 1)),
    ]
    assert len(set(prints)) == len(prints)
    # What a diagram says is no matter, and neither is a field that a layer has grown since, at its default.
    assert found(Window(3), label="another") == found(Grown(3)) == prints[8]


@pytest.mark.usefixtures("shipped_operators")
def test_an_operator_counts_only_where_it_is_used() -> None:
    before = fingerprint(space_of("filters 31 " + BASE))
    with generators.registered(OperatorKind("identity_other", lambda filters: [Convolution("conv", filters)])):
        fingerprint.cache_clear()
        assert fingerprint(space_of("filters 31 " + BASE)) == before


@dataclass(frozen=True)
class _Wide(Layer):
    sizes: tuple[int, ...] = (1, 2)


@pytest.mark.usefixtures("shipped_operators")
def test_filters_are_in_the_layers() -> None:
    kind = OperatorKind("identity_filters", lambda filters: [_Wide((filters,))])
    with generators.registered(kind):
        texts = [f"filters {filters} (F, identity_filters, _)" for filters in (1, 2, 3)]
        assert len({fingerprint(space_of(text)) for text in texts}) == 3


# There and back

SPACES = [
    "dpc(B=1)",
    "dpc",
    "dpc(B=8)",
    "dpc(B=20)",
    "aspp_subsets",
    BOUND,
    "top1",
]


@given(st.sampled_from(SPACES), st.data())
@settings(max_examples=150)
def test_from_a_cell_to_its_id_and_back(name: str, data: st.DataObject) -> None:
    space = read_space(name)
    ranks = enumerator(space)
    rank = data.draw(st.integers(0, ranks.count - 1))
    cell = ranks.unrank(rank)
    identifier = cell_id(cell, space, name)
    assert identifier == CellId(name, fingerprint(space), rank)
    text = str(identifier)
    assert text == f"{name}@{fingerprint(space)}:{rank}"
    assert is_id(text)
    assert read_id(text) == identifier
    assert cell_of_id(read_id(text), read_space(read_id(text).space)) == cell


@given(strategies.spaces(max_branches=4, operators=generators.PAPER), st.data())
@settings(max_examples=80)
def test_from_a_cell_of_any_space_to_its_id_and_back(space: Space, data: st.DataObject) -> None:
    cell = data.draw(strategies.cells(space))
    text = str(cell_id(cell, space))
    assert text.startswith("@" + fingerprint(space))
    assert cell_of_id(read_id(text), space) == cell
    again = parse(f"space s {{ {space} }}").space("s")
    assert fingerprint(again) == fingerprint(space)
    assert cell_of_id(read_id(text), again) == cell


@given(st.text(max_size=30).map(str.strip), st.integers(0, 2**48 - 1), st.integers(0, 10**300))
def test_any_name_can_stand_before_it(name: str, digits: int, rank: int) -> None:
    identifier = CellId(name, f"{digits:012x}", rank)
    assert read_id(str(identifier)) == identifier
    assert read_id(f"  {identifier}\n") == identifier


def test_ids_are_read_with_white_space_around_their_parts() -> None:
    assert read_id(" dpc(B=5) @60b395906dd8:42 ") == CellId("dpc(B=5)", "60b395906dd8", 42)
    assert read_id("@60b395906dd8:042") == CellId("", "60b395906dd8", 42)
    assert read_id("a@b@60b395906dd8:1") == CellId("a@b", "60b395906dd8", 1)


# What is refused


def test_an_id_of_another_space() -> None:
    space = read_space("dpc")
    identifier = cell_id(read_cell("top1"), space, "dpc")
    for other in ("dpc(B=4)", "dpc(B=6)", "aspp_subsets", BOUND):
        with pytest.raises(DpcError) as caught:
            cell_of_id(identifier, read_space(other))
        assert caught.value.codes == ("DPC072",)
        assert identifier.fingerprint in str(caught.value)
        assert fingerprint(read_space(other)) in str(caught.value)
    assert cell_of_id(identifier._replace(space="whatever it is called"), space) == read_cell("top1")


@pytest.mark.parametrize("beyond", [0, 1, 10**30, 10**4000])
def test_an_id_beyond_the_last(beyond: int) -> None:
    for name in ("dpc", "aspp_subsets", BOUND, "top1"):
        space = read_space(name)
        ranks = enumerator(space)
        with pytest.raises(DpcError) as caught:
            cell_of_id(CellId(name, fingerprint(space), ranks.count + beyond), space)
        assert caught.value.codes == ("DPC071",)
        last = CellId(name, fingerprint(space), ranks.count - 1)
        assert cell_id(cell_of_id(last, space), space, name) == last


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dpc",
        "dpc:42",
        "dpc@60b395906dd8",
        "dpc@60b395906dd8:",
        "dpc@60b395906dd:42",
        "dpc@60b395906dd80:42",
        "dpc@60B395906DD8:42",
        "dpc@60b395906dg8:42",
        "dpc@60b395906dd8:-1",
        "dpc@60b395906dd8:+1",
        "dpc@60b395906dd8:4_2",
        "dpc@60b395906dd8:4.2",
        "dpc@60b395906dd8:0x2a",
        "dpc@60b395906dd8:٤٢",
        "dpc@60b395906dd8: 42",
        "dpc@ 60b395906dd8:42",
        "dpc@60b395906dd8:42x",
        "(F, conv1x1, _)",
        "dpc@60b395906dd8:" + "9" * 10_001,
        "\0",
    ],
    ids=range(21),
)
def test_what_is_not_an_id(text: str) -> None:
    assert not is_id(text)
    with pytest.raises(DpcError) as caught:
        read_id(text)
    assert caught.value.codes == ("DPC073",)
    assert "SPACE@FINGERPRINT:RANK" in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"[a-z]{0,3}@[0-9a-g]{11,13}:[0-9x]{0,3}", fullmatch=True))
@settings(max_examples=200)
def test_a_text_is_an_id_or_is_refused(text: str) -> None:
    if is_id(text):
        identifier = read_id(text)
        assert str(identifier).replace(" ", "").endswith(f"{identifier.fingerprint}:{identifier.rank}")
        assert len(identifier.fingerprint) == 12
    else:
        with pytest.raises(DpcError) as caught:
            read_id(text)
        assert caught.value.codes == ("DPC073",)


def test_a_cell_that_is_not_in_the_space_has_no_id_there() -> None:
    for cell, space in (
        ("pspnet", "dpc(B=4)"),
        ("top1", "dpc(B=4)"),
        ("top1", "aspp_subsets"),
        ("top1", "dpc where depth <= 1"),
    ):
        with pytest.raises(DpcError) as caught:
            cell_id(read_cell(cell), read_space(space))
        assert caught.value.codes == ("DPC055",)
    with pytest.raises(DpcError) as caught:
        cell_id(parse_cell("filters 3 (F, conv1x1, _)"), paper_space(1))
    assert caught.value.codes == ("DPC055",)


def test_an_id_is_a_plain_value() -> None:
    identifier = cell_id(Cell.of((0, Operator.of("conv1x1"))), paper_space(1))
    assert identifier == ("", "342398317f9c", 0)
    assert str(identifier) == "@342398317f9c:0"
    assert hash(identifier) == hash(read_id(str(identifier)))
