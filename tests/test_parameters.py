"""Spaces with parameters: what is checked where they are written, and what only where they are used."""

from __future__ import annotations

import pytest

from dpcdsl import DpcError, parse, read_space, zoo

NEEDS_MORE_THAN_ONE = """\
space tall(N) {
  (F, sepconv3x3 rate {3..N} x 1, _)
}

space later(B) {
  B * (any, conv1x1, _)
  (Y3, conv1x1, _)
}
"""


def test_a_body_that_only_some_values_suit() -> None:
    document = parse(NEEDS_MORE_THAN_ONE)
    assert [len(slot.operators) for slot in document.space("tall", N=9).slots] == [7]
    assert document.space("later", B=4).slots[-1].inputs == (3,)
    assert document["tall"].value is None
    assert document["tall"].noun == "space"
    assert "tall" not in document.spaces


@pytest.mark.parametrize(
    ("name", "value", "code", "place"), [("tall", 2, "DPC024", (2, 24)), ("later", 2, "DPC011", (7, 4))]
)
def test_an_unsuitable_value_is_told_in_the_body(name: str, value: int, code: str, place: tuple[int, int]) -> None:
    parameter = "N" if name == "tall" else "B"
    with pytest.raises(DpcError) as caught:
        parse(NEEDS_MORE_THAN_ONE + f"\nspace used = {name}({parameter}={value})\n")
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert diagnostic.span is not None
    assert diagnostic.span.position == place


def test_what_no_value_mends_is_told_at_once() -> None:
    with pytest.raises(DpcError) as caught:
        parse("space s(N) {\n  (F, sepconv3x3 rat {3..N} x 1, _)\n  (Y1, conf1x1, _)\n}\n")
    assert caught.value.codes == ("DPC015", "DPC013")


def test_parameters_pass_on() -> None:
    document = parse("from zoo import dpc\nspace mine(K = 2) = dpc(B=K) where depth <= K\n")
    assert len(document.space("mine").slots) == 2
    assert document.space("mine", K=4) == read_space("dpc(B=4) where depth <= 4")
    assert document["mine"].parameters == {"K": 2}


@pytest.mark.parametrize("value", [-1, True, 2.0, "3", 2**31])
def test_a_parameter_is_a_whole_number(value: object) -> None:
    with pytest.raises(DpcError) as caught:
        zoo()["dpc"].space(B=value)  # type: ignore[arg-type]
    assert caught.value.codes == ("DPC017",)


def test_every_number_of_branches_up_to_the_limit() -> None:
    for count in (1, 2, 5, 64, 256):
        space = zoo()["dpc"].space(B=count)
        assert len(space.slots) == count
        assert all(len(slot.operators) == 81 and slot.inputs is None for slot in space.slots)
    with pytest.raises(DpcError) as caught:
        zoo()["dpc"].space(B=257)
    assert caught.value.codes == ("DPC021",)
