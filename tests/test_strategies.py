"""The public strategies: what they draw is valid, reaches everything, and shrinks to the example one would write."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

import dpcdsl
from dpcdsl import Cell, DpcError, Integer, Operator, OperatorKind, Pair, Space, register_operator, strategies
from dpcdsl.constraints import MEASURES, AllOf, AnyOf, Comparison, Not

pytestmark = pytest.mark.usefixtures("shipped_operators")

T = TypeVar("T")
QUICK = settings(
    max_examples=400,
    database=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],  # explaining takes longer than both
    suppress_health_check=list(HealthCheck),
)


def smallest(strategy: st.SearchStrategy[T], that: Callable[[T], Any] = lambda _: True) -> T:
    return find(strategy, lambda value: bool(that(value)), settings=QUICK)


def uses(cell: Cell, kind: str) -> bool:
    return any(branch.operator.kind == kind for branch in cell.branches)


def compares(constraint: object, measure: str) -> bool:
    return isinstance(constraint, Comparison) and constraint.measure.name == measure


@pytest.mark.parametrize(
    ("strategy", "that", "expected"),
    [
        (strategies.operators(), None, "conv1x1"),
        (strategies.operators(), lambda o: o.kind == "sepconv3x3", "sepconv3x3 rate 1x1"),
        (strategies.operators(("avgpool",)), lambda o: o["grid"][1] > 4, "avgpool grid 1x5"),
        (strategies.operator_sets(), None, "conv1x1"),
        (strategies.operator_sets(), lambda s: len(s) > 1, "conv1x1 | sepconv3x3 rate 1x1"),
        (strategies.operator_sets(("avgpool",)), lambda s: len(s) > 2, "avgpool grid 1 x {1..3}"),
        (strategies.cells(), None, "(F, conv1x1, Y1)"),
        (strategies.cells(), lambda c: len(c) == 2, "(F, conv1x1, Y1) (F, conv1x1, Y2)"),
        (strategies.cells(min_branches=2), None, "(F, conv1x1, Y1) (F, conv1x1, Y2)"),
        (strategies.cells(), lambda c: c.depth == 3, "(F, conv1x1, Y1) (Y1, conv1x1, Y2) (Y2, conv1x1, Y3)"),
        (strategies.cells(), lambda c: uses(c, "avgpool"), "(F, avgpool grid 1x1, Y1)"),
        (strategies.cells(), lambda c: c.filters != 256, "filters 1 (F, conv1x1, Y1)"),
        (strategies.cells("dpc(B=2)"), None, "(F, conv1x1, Y1) (F, conv1x1, Y2)"),
        (strategies.cells("dpc(B=2) where depth > 1"), None, "(F, conv1x1, Y1) (Y1, conv1x1, Y2)"),
        (strategies.cells("aspp_subsets"), None, "(F, avgpool grid 1x1, Y1)"),
        (strategies.cells("aspp_subsets where uses(conv1x1) == 1"), None, "(F, conv1x1, Y1)"),
        (strategies.spaces(), None, "(F, conv1x1, _)"),
        (strategies.spaces(), lambda s: len(s.slots) == 2, "(F, conv1x1, _) (F, conv1x1, _)"),
        (strategies.spaces(optional=False), lambda s: s.constraints, "(F, conv1x1, _) require depth <= 1"),
        (strategies.spaces(), lambda s: s.slots[0].optional, "optional (F, conv1x1, _) require branches >= 1"),
        (strategies.constraints(), None, "depth <= 1"),
        (strategies.constraints(dpcdsl.read_cell("top1")), None, "depth <= 3"),
        (strategies.constraints(), lambda c: isinstance(c, Not), "not depth < 1"),
        (strategies.constraints(), lambda c: isinstance(c, AllOf), "depth <= 1 and depth <= 1"),
        (strategies.constraints(), lambda c: isinstance(c, AnyOf), "depth <= 1 or depth <= 1"),
        (strategies.constraints(), lambda c: compares(c, "uses"), "uses(conv1x1) <= 1"),
        (strategies.constraints(), lambda c: compares(c, "params"), "params(F=1) <= 256"),
        (strategies.texts(), None, "(F, conv1x1, Y1)"),
        (strategies.texts(), lambda t: "ops" in t, "ops a = conv1x1"),
        (strategies.texts(), lambda t: "space " in t and "where" not in t, "space a { (F, conv1x1, _) }"),
        (strategies.texts(), lambda t: "#" in t, " #\n(F, conv1x1, Y1)"),
        (strategies.malformed_texts(), None, "0"),
        (strategies.malformed_texts(), lambda t: "conv1x1" in t, "conv1x1"),
    ],
)
def test_the_smallest_example(strategy: st.SearchStrategy[Any], that: Any, expected: str) -> None:
    assert str(smallest(strategy, that or (lambda _: True))) == expected


# Validity


@given(strategies.operators(largest=5))
def test_parameters_stay_in_their_range(operator: Operator) -> None:
    assert all(1 <= number <= 5 for _, pair in operator.parameters for number in pair)


@given(strategies.cells(operators=("conv1x1", "avgpool"), min_branches=2, max_branches=9, filters=st.just(7)))
def test_cells_are_as_they_were_asked_for(cell: Cell) -> None:
    assert 2 <= len(cell) <= 9
    assert cell.filters == 7
    assert not uses(cell, "sepconv3x3")
    assert dpcdsl.parse_cell(str(cell)) == cell


def test_cells_of_the_most_branches() -> None:
    assert max(len(cell) for cell in drawn(strategies.cells(min_branches=249, max_branches=256), 4)) > 248


@settings(max_examples=50)
@given(strategies.spaces(), st.data())
def test_a_cell_of_a_space_is_in_it(space: Space, data: st.DataObject) -> None:
    assert data.draw(strategies.cells(space)) in space


@pytest.mark.parametrize("reference", ["dpc(B=3) where depth <= 2", "aspp_subsets where branches > 1", "top1"])
def test_a_cell_of_a_reference_is_in_its_space(reference: str) -> None:
    space = dpcdsl.read_space(reference)
    assert all(cell in space for cell in drawn(strategies.cells(reference), 60))


def test_all_cells_of_a_space_are_drawn() -> None:
    assert len(set(drawn(strategies.cells("aspp_subsets"), 400))) == 31
    space = dpcdsl.parse(
        "space s { (F, conv1x1, _) optional (any, avgpool grid 1 x {1, 2}, _) (any, conv1x1, _) }"
    ).space()
    # Left out: two inputs. There: two operators and two inputs for it, three inputs behind it.
    assert len(set(drawn(strategies.cells(space), 250))) == 2 + 2 * 2 * 3


def test_a_space_of_ones_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.dpc"
    path.write_text("space mine { filters 8 (F, avgpool grid 2x2, _) }", encoding="utf-8")
    assert str(smallest(strategies.cells(path))) == "filters 8 (F, avgpool grid 2x2, Y1)"


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(InvalidArgument, match="give it alone"):
        strategies.cells("dpc", max_branches=3)
    with pytest.raises(DpcError) as caught:
        strategies.cells("dcp")
    assert caught.value.codes == ("DPC061",)


@settings(max_examples=50)
@given(strategies.spaces(optional=False, constraints=False, max_branches=3, filters=st.just(5)))
def test_spaces_are_as_they_were_asked_for(space: Space) -> None:
    assert len(space.slots) <= 3
    assert space.filters == 5
    assert not space.constraints
    assert not any(slot.optional for slot in space.slots)


@settings(max_examples=50)
@given(strategies.spaces())
def test_a_space_is_read_back(space: Space) -> None:
    assert dpcdsl.parse(dpcdsl.format_space(space, "s")).space("s") == space


@settings(max_examples=50)
@given(st.data(), strategies.cells(max_branches=4))
def test_a_constraint_holds_for_its_cell(data: st.DataObject, cell: Cell) -> None:
    assert data.draw(strategies.constraints(cell)).holds(cell)


@settings(max_examples=50)
@given(strategies.texts())
def test_a_text_is_read_and_formatted(text: str) -> None:
    document = dpcdsl.parse(text)
    assert [d.value for d in dpcdsl.parse(dpcdsl.format_text(text))] == [d.value for d in document]


@given(strategies.malformed_texts())
def test_a_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(DpcError):
        dpcdsl.parse(text)


# Coverage


@cache
def _drawn(strategy: st.SearchStrategy[T], count: int) -> Sequence[T]:
    found: list[T] = []

    @settings(QUICK, max_examples=count, phases=[Phase.generate])
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found


def drawn(strategy: st.SearchStrategy[T], count: int = 220) -> Sequence[T]:
    return _drawn(strategy, count)


def test_cells_reach_every_shape() -> None:
    found = drawn(strategies.cells())
    assert {cell.depth for cell in found} == {1, 2, 3, 4, 5, 6} == {len(cell) for cell in found}
    assert max(sum(branch.input == 0 for branch in cell.branches) for cell in found) >= 5
    assert {branch.operator.kind for cell in found for branch in cell.branches} == {"conv1x1", "sepconv3x3", "avgpool"}
    assert {cell.filters for cell in found} == {256, 1, 48, 65536}
    alike = [cell for cell in found if len(set(cell.branches)) < len(cell)]
    assert any(uses(cell, "sepconv3x3") for cell in alike)
    assert any(len({branch.input for branch in cell.branches}) not in (1, len(cell)) for cell in found)


def test_cells_of_a_space_reach_every_shape() -> None:
    found = drawn(strategies.cells("dpc"))
    assert {cell.depth for cell in found} == {1, 2, 3, 4, 5}
    assert len({branch.operator for cell in found for branch in cell.branches}) > 40  # of 81


def test_spaces_reach_everything() -> None:
    # Hypothesis draws with numbers that it reads in whatever modules are imported, so what comes early differs.
    found = drawn(strategies.spaces(), 800)
    slots = [slot for space in found for slot in space.slots]
    assert {len(space.slots) for space in found} == {1, 2, 3, 4, 5}
    assert {len(space.constraints) for space in found} >= {0, 1, 2, 3}
    assert {slot.optional for slot in slots} == {True, False}
    assert any(all(slot.optional for slot in space.slots) and len(space.slots) > 1 for space in found)
    assert any(slot.inputs is None for slot in slots)
    assert max(len(slot.inputs or ()) for slot in slots) > 2
    assert any(slot.inputs and 0 not in slot.inputs for slot in slots)
    assert max(len({slot.operators for slot in space.slots}) for space in found) == 3
    assert max(len(slot.operators) for slot in slots) > 10


def test_constraints_reach_everything() -> None:
    found = drawn(strategies.constraints())
    assert {type(constraint) for constraint in found} == {Comparison, Not, AllOf, AnyOf}
    comparisons = [constraint for constraint in found if isinstance(constraint, Comparison)]
    assert {comparison.measure.name for comparison in comparisons} == set(MEASURES)
    assert {comparison.relation for comparison in comparisons} == {"<=", "<", ">=", ">", "==", "!="}
    assert {constraint.levels for constraint in found} == {1, 2, 3}
    # They tell cells apart: most do not hold for all of a few.
    few = drawn(strategies.cells(), 60)
    assert sum(0 < sum(constraint.holds(cell) for cell in few) < len(few) for constraint in found) > 60


def test_texts_hold_everything_that_the_language_has() -> None:
    found = drawn(strategies.texts())
    words = Counter(word for text in found for word in re.findall(r"\w+|\.\.|[<>=!]+|\S|\r\n", text))
    sought = {
        *("dpc", "from", "import", "as", "cell", "ops", "space", "filters", "optional", "require", "where", "any"),
        *("and", "or", "not", "step", "..", "x", "|", "*", "_", "{", "depth", "branches", "params", "madds", "uses"),
        *("distance", "<=", "<", ">=", ">", "==", "!=", "B", "top1", "paper", "at", "F", "=", "#", "\r\n"),
    }
    assert sought - words.keys() == set()
    assert any(re.search(r"\d\.0[KMG]\b", text) for text in found)


def test_malformed_texts_make_many_mistakes() -> None:
    codes: set[str] = set()
    for text in drawn(strategies.malformed_texts(), 500):
        with pytest.raises(DpcError) as caught:
            dpcdsl.parse(text)
        codes |= set(caught.value.codes)
    assert len(codes) >= 10, codes


# Kinds of one's own


def test_ones_own_kinds_take_part() -> None:
    cells, texts = strategies.cells(), strategies.texts()  # made before the kind is known
    register_operator(OperatorKind("mine", lambda **_: [], (Integer("n", minimum=30), Pair("size", minimum=2))))
    assert str(smallest(cells, lambda cell: uses(cell, "mine"))) == "(F, mine n 30 size 2x2, Y1)"
    assert str(smallest(strategies.cells(operators=("mine",)))) == "(F, mine n 30 size 2x2, Y1)"
    assert any("mine n" in text for text in drawn(texts, 60))
    assert any("mine" in str(space) for space in drawn(strategies.spaces(constraints=False), 60))
    sets = drawn(strategies.operator_sets(("mine",)), 100)
    assert max(len(chosen) for chosen in sets) > 8  # products of three sets
    for chosen in sets:
        assert dpcdsl.parse(f"ops a = {chosen}")["a"].value == chosen


def test_a_strategy_of_operators_is_kept_to() -> None:
    few = st.sampled_from([Operator.of("conv1x1"), Operator.of("avgpool", grid=(3, 1))])
    allowed = {"conv1x1", "avgpool grid 3x1"}
    for space in drawn(strategies.spaces(operators=few), 100):
        assert {str(operator) for slot in space.slots for operator in slot.operators.operators} <= allowed
    for text in drawn(strategies.texts(operators=few), 60):
        assert "sepconv3x3" not in text


def test_without_hypothesis_one_is_told_what_to_install() -> None:
    program = "import sys; sys.modules['hypothesis'] = None; import dpcdsl; import dpcdsl.strategies"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip().endswith("ImportError: dpcdsl.strategies needs Hypothesis: pip install 'dpcdsl[testing]'")
    assert "During handling" not in run.stderr
