"""What conditions mean: each measure against its own count, each relation against Python's."""

from __future__ import annotations

import operator as builtin_operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcdsl import Cell, DpcError, Operator, cost, distance, parse_cell, parse_condition, read_cell, read_space
from dpcdsl.constraints import LARGEST_BOUND, AllOf, AnyOf, Branches, Comparison, Depth, Not, Params, implies_a_branch

CELL = parse_cell(
    "(F, conv1x1, Y1) (Y1, sepconv3x3 rate 18x3, Y2) (F, avgpool grid 2x4, Y3) (Y2, sepconv3x3 rate 6x6, Y4)"
)
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "<=": builtin_operator.le,
    "<": builtin_operator.lt,
    ">=": builtin_operator.ge,
    ">": builtin_operator.gt,
    "==": builtin_operator.eq,
    "!=": builtin_operator.ne,
}


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations(relation: str) -> None:
    for bound in (3, 4, 5):
        condition = parse_condition(f"branches {relation} {bound}")
        assert condition.holds(CELL) == RELATIONS[relation](4, bound)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("branches", 4),
        ("depth", 3),
        ("params(F=320)", cost(CELL, 320, (1, 1)).params),
        ("madds(F=320, at=5x7)", cost(CELL, 320, (5, 7)).madds),
        ("madds(at=5x7, F=320)", cost(CELL, 320, (5, 7)).madds),
        ("uses(sepconv3x3)", 2),
        ("uses(sepconv3x3 rate {6, 18} x {3, 9})", 1),
        ("uses(conv1x1 | avgpool)", 2),
        ("uses(avgpool | sepconv3x3 rate 6x6)", 2),
        ("uses(paper)", 4),
        ("distance(top1)", distance(CELL, read_cell("top1"))),
        ("distance((F, conv1x1, Y1) (F, sepconv3x3 rate 18x3, _))", 5),
    ],
)
def test_measures(measure: str, value: int) -> None:
    assert parse_condition(f"{measure} == {value}").holds(CELL)
    assert not parse_condition(f"{measure} != {value}").holds(CELL)


def test_params_count_convolutions_only() -> None:
    assert parse_condition("params(F=320) == 356160").holds(read_cell("top1"))
    assert parse_condition("madds(F=320, at=65x129) == 2986401600").holds(read_cell("top1"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.40M", 400_000), ("400K", 400_000), ("3.0G", 3 * 10**9), ("1.5T", 15 * 10**11), ("0.001K", 1), ("7", 7)],
)
def test_numbers_are_exact(text: str, number: int) -> None:
    condition = parse_condition(f"branches < {text}")
    assert isinstance(condition, Comparison)
    assert condition.bound == number
    assert parse_condition(str(condition)) == condition


TRUE, FALSE = Comparison(measure=Depth(), relation="==", bound=3), Comparison(measure=Depth(), relation="==", bound=2)
CONDITIONS = st.recursive(
    st.sampled_from([TRUE, FALSE]),
    lambda inner: st.one_of(
        inner.map(lambda c: Not(negated=c)),
        st.lists(inner, min_size=2, max_size=3).map(lambda cs: AllOf(all_of=tuple(cs))),
        st.lists(inner, min_size=2, max_size=3).map(lambda cs: AnyOf(any_of=tuple(cs))),
    ),
    max_leaves=12,
)


@given(CONDITIONS)
def test_logic_is_pythons_and_survives_text(condition: Comparison | AllOf | AnyOf | Not) -> None:
    text = str(condition)
    expression = text.replace("depth == 3", "True").replace("depth == 2", "False")
    assert condition.holds(CELL) == eval(expression)
    assert parse_condition(text) == condition


@pytest.mark.parametrize(
    ("text", "implied"),
    [
        ("branches >= 1", True),
        ("branches > 0", True),
        ("depth != 0", True),
        ("branches >= 0", False),
        ("branches <= 3", False),
        ("branches >= 1 and params(F=3) <= 5", True),
        ("branches >= 1 or params(F=3) <= 5", False),
        ("branches >= 1 or depth >= 1", True),
        ("not branches == 0", False),
    ],
)
def test_whether_a_branch_is_implied(text: str, implied: bool) -> None:
    assert implies_a_branch(parse_condition(text)) == implied


def test_bounds_are_checked() -> None:
    for bound in (-1, LARGEST_BOUND + 1, 1.5, True):
        with pytest.raises(DpcError):
            Comparison(measure=Branches(), relation="<", bound=bound)
    for features in (0, 2**20 + 1, "3"):
        with pytest.raises(DpcError):
            Params(features=features)
    with pytest.raises(DpcError):
        AllOf(all_of=(TRUE,))


def test_a_space_is_what_its_conditions_leave() -> None:
    space = read_space("dpc(B=2) where uses(conv1x1) >= 1 and depth == 2")
    conv, pool = Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))
    assert Cell.of((0, conv), (1, pool)) in space
    assert Cell.of((0, conv), (0, pool)) not in space
    assert Cell.of((0, pool), (1, pool)) not in space
