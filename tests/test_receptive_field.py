"""Receptive fields against three oracles: sets worked out position by position, impulses and gradients in torch."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool
from dpcdsl.operators import Operator, OperatorKind, Pair, register_operator
from dpcdsl.receptive_field import MAX_MAP, MAX_OFFSETS, receptive_field
from dpcdsl_torch.reference import EagerCell, SameConvolution


def sepconv(height: int, width: int) -> Operator:
    return Operator.of("sepconv3x3", rate=(height, width))


def avgpool(height: int, width: int) -> Operator:
    return Operator.of("avgpool", grid=(height, width))


CONV = Operator.of("conv1x1")
TOP1 = Cell.of((0, sepconv(1, 6)), (1, sepconv(18, 15)), (2, sepconv(6, 3)), (1, sepconv(1, 1)), (1, sepconv(6, 21)))

# Operators of a user's own: even kernels (SAME padding puts the smaller half before), none at all, one that shrinks.
register_operator(
    OperatorKind(
        "field_conv2x4",
        lambda filters, rate: [DepthwiseConvolution("depthwise", (2, 4), rate), Convolution("pointwise", filters)],
        (Pair("rate"),),
    )
)
register_operator(OperatorKind("field_identity", lambda filters: []))  # noqa: ARG005 (all kinds are called the same way)
register_operator(OperatorKind("field_shrink", lambda filters: [GridPool((2, 3))]))  # noqa: ARG005

pairs = st.tuples(st.integers(1, 6), st.integers(1, 6))
convolutions = st.one_of(
    st.just(CONV),
    st.just(Operator.of("field_identity")),
    pairs.map(lambda rate: sepconv(*rate)),
    pairs.map(lambda rate: Operator.of("field_conv2x4", rate=rate)),
)
operators = convolutions | pairs.map(lambda grid: avgpool(*grid)) | pairs.map(lambda grid: avgpool(*grid))


@st.composite
def cells(draw: st.DrawFn, operators: st.SearchStrategy[Operator] = operators) -> Cell:
    """Cells at most three branches deep: deeper, a true weight can be as small as a rounding error."""
    branches: list[tuple[int, Operator]] = []
    depths = [0]
    for operator in draw(st.lists(operators, min_size=1, max_size=5)):
        source = draw(st.sampled_from([index for index, depth in enumerate(depths) if depth < 3]))
        branches.append((source, operator))
        depths.append(depths[source] + 1)
    return Cell.of(*branches, filters=1)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """A cell, a size (often smaller than the rates) and conventions."""
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    pooling, stride = draw(st.sampled_from(["paper", "sliding"])), draw(st.sampled_from([16, 8]))
    crop = None
    if pooling == "sliding" and draw(st.booleans()):  # a crop at most as large as the image
        crop = (draw(st.integers(1, size[0] * stride)), draw(st.integers(1, size[1] * stride)))
    options = {"pooling": pooling, "output_stride": stride, "image_pooling_crop_size": crop}
    return {"cell": draw(cells()), "size": size, **options}


# First oracle: what the operators are, said once more and one position at a time.


def read_by(operator: Operator, at: tuple[int, int], run: dict[str, Any]) -> set[tuple[int, int]]:
    """Positions of its input that the output of ``operator`` at ``at`` reads."""
    axes = [read_along(axis, operator, at[axis], run) for axis in (0, 1)]
    return {(i, j) for i in axes[0] for j in axes[1]}


def read_along(axis: int, operator: Operator, position: int, run: dict[str, Any]) -> set[int]:
    length, times = run["size"][axis], 16 // run["output_stride"]
    match operator.kind:
        case "conv1x1" | "field_identity":
            return {position}
        case "avgpool":
            return pooled_by(position, length, operator["grid"][axis], axis, run)
        case "sepconv3x3":
            rate = times * operator["rate"][axis]
            taps = {position - rate, position, position + rate}
        case "field_conv2x4":
            # TensorFlow's SAME: of the (kernel - 1) * rate zeros that are needed, floor(half) lie before.
            rate, kernel = times * operator["rate"][axis], (2, 4)[axis]
            first = position - math.floor(Fraction((kernel - 1) * rate, 2))
            taps = set(range(first, first + kernel * rate, rate))
    return {tap for tap in taps if 0 <= tap < length}


def pooled_by(position: int, length: int, grid: int, axis: int, run: dict[str, Any]) -> set[int]:
    if run["pooling"] == "paper":
        edges = [Fraction(p * length, grid) for p in range(grid + 1)]
        bounds = [(math.floor(edges[p]), math.ceil(edges[p + 1])) for p in range(grid)]
    else:
        crop, stride = run["image_pooling_crop_size"], run["output_stride"]
        window = math.ceil(Fraction(length if crop is None else math.ceil(Fraction(crop[axis], stride)), grid))
        bounds = [(first, first + window) for first in range(length - window + 1)]
    # Aligned corners: the first and the last output lie on the first and the last pooled value.
    place = Fraction(position * (len(bounds) - 1), length - 1) if length > 1 else Fraction(0)
    return {i for p in {math.floor(place), math.ceil(place)} for i in range(*bounds[p])}


@settings(deadline=None, max_examples=60)
@given(runs())
def test_positions_one_by_one(run: dict[str, Any]) -> None:
    cell, (height, width) = run["cell"], run["size"]

    @cache
    def seen(number: int, at: tuple[int, int]) -> frozenset[tuple[int, int]]:
        if number == 0:
            return frozenset([at])
        branch = cell.branches[number - 1]
        return frozenset().union(*(seen(branch.input, below) for below in read_by(branch.operator, at, run)))

    found = receptive_field(**run)
    for at in np.ndindex(height, width):
        for number, branch in enumerate(found.branches, 1):
            assert set(zip(*map(list, np.nonzero(branch.positions(at))), strict=True)) == seen(number, at)
        union = frozenset().union(*(seen(number, at) for number in range(1, len(cell) + 1)))
        assert set(zip(*map(list, np.nonzero(found.positions(at=at))), strict=True)) == union


@settings(deadline=None)
@given(cells(convolutions), st.sampled_from([16, 8]))
def test_offsets_one_by_one(cell: Cell, output_stride: int) -> None:
    # In the middle of a map that no tap leaves, offsets and positions are the same thing.
    run = {"cell": cell, "size": (999, 999), "output_stride": output_stride}
    offsets: list[set[tuple[int, int]]] = [{(500, 500)}]
    for branch in cell.branches:
        offsets.append(set().union(*(read_by(branch.operator, at, run) for at in offsets[branch.input])))
    for found, expected in zip(receptive_field(cell, output_stride=output_stride).branches, offsets[1:], strict=True):
        rows, columns = found.offsets
        assert rows is not None
        assert columns is not None
        assert {(500 + i, 500 + j) for i in rows for j in columns} == expected
        assert (rows, columns) == (tuple(sorted(set(rows))), tuple(sorted(set(columns))))
        assert found.taps == len(expected)
        ys, xs = zip(*expected, strict=True)
        assert found.extent == (max(ys) - min(ys) + 1, max(xs) - min(xs) + 1)


# Second and third oracle: a module whose weights are all positive is linear on positive maps, and what it does not see
# has a weight of exactly 0.


def positive(run: dict[str, Any]) -> EagerCell:
    options = {name: value for name, value in run.items() if name not in ("cell", "size")}
    module = EagerCell(run["cell"], 1, **options).eval().double()
    for part in module.modules():
        if isinstance(part, SameConvolution):
            torch.nn.init.constant_(part.weight, 1 / part.weight[0].numel())
    return module


# True weights are at least 1e-12 here, (9 · 8)⁻² to the power of the depth; rounding leaves less than 1e-15.
LEAST = 1e-13


@settings(deadline=None, max_examples=60)
@given(runs())
def test_positions_are_where_an_impulse_is_felt(run: dict[str, Any]) -> None:
    height, width = run["size"]
    impulses = torch.eye(height * width, dtype=torch.double).reshape(-1, 1, height, width)
    with torch.no_grad():
        felt = positive(run)(impulses).reshape(height, width, len(run["cell"]), height, width) > LEAST
    found = receptive_field(**run)
    for at in np.ndindex(height, width):
        for index, branch in enumerate(found.branches):
            np.testing.assert_array_equal(branch.positions(at), felt[:, :, index, *at].numpy())


@settings(deadline=None, max_examples=40)
@given(runs(), st.data())
def test_positions_are_where_the_gradient_is_not_0(run: dict[str, Any], data: st.DataObject) -> None:
    height, width = run["size"]
    at = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    features = torch.ones(1, 1, height, width, dtype=torch.double, requires_grad=True)
    out = positive(run)(features)[0, :, at[0], at[1]]
    found = receptive_field(**run)
    for index, branch in enumerate(found.branches):
        (gradient,) = torch.autograd.grad(out[index], features, retain_graph=True)
        np.testing.assert_array_equal(found.positions(branch.name, at=at), gradient[0, 0].numpy() > LEAST)
    (gradient,) = torch.autograd.grad(out.sum(), features)
    np.testing.assert_array_equal(found.positions(at=at), gradient[0, 0].numpy() > LEAST)


# By hand.


def test_top1() -> None:
    found = receptive_field(TOP1)
    assert [(branch.name, branch.taps, branch.extent) for branch in found.branches] == [
        ("Y1", 9, (3, 13)),
        ("Y2", 81, (39, 43)),
        ("Y3", 27 * 17, (51, 49)),  # widths 15 + 6 and 21, and 9 and 12, fall together
        ("Y4", 5 * 9, (5, 15)),
        ("Y5", 81, (15, 55)),
    ]
    assert found.branches[0].offsets == ((-1, 0, 1), (-6, 0, 6))
    assert found.branches[3].offsets == ((-2, -1, 0, 1, 2), (-7, -6, -5, -1, 0, 1, 5, 6, 7))
    assert found.branches[1].operator == "sepconv3x3 rate 18x15"


def test_top1_at_half_the_output_stride() -> None:
    found = receptive_field(TOP1, output_stride=8)
    assert found.branches[0].offsets == ((-2, 0, 2), (-12, 0, 12))
    assert [branch.taps for branch in found.branches] == [branch.taps for branch in receptive_field(TOP1).branches]


def test_pooling_by_hand() -> None:
    image = receptive_field(Cell.of((0, avgpool(1, 1))), (5, 7)).branches[0]
    assert (image.offsets, image.taps, image.extent, image.seen) == ((None, None), None, (5, 7), 35)
    # Rows 0-1, 1-2 and so on of a grid of 4 on 5; the centre lies on 2 · 3 / 4 = 1.5, between the windows 1-2 and 2-3.
    paper = receptive_field(Cell.of((0, avgpool(4, 1))), (5, 5)).branches[0]
    assert paper.relation(0).astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    assert paper.extent == (3, 5)
    # A window of ceil(5 / 2) = 3 at 3 places.
    sliding = receptive_field(Cell.of((0, avgpool(2, 1))), (5, 5), pooling="sliding").branches[0]
    assert sliding.relation(0).astype(int).tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]


def test_a_pooling_hides_the_offsets_of_what_follows_it() -> None:
    found = receptive_field(Cell.of((0, avgpool(2, 2)), (1, sepconv(1, 1)), (0, CONV)))
    assert [branch.offsets for branch in found.branches] == [(None, None), (None, None), ((0,), (0,))]
    assert [branch.extent for branch in found.branches] == [(None, None), (None, None), (1, 1)]


def test_taps_that_only_read_padding_are_not_seen() -> None:
    # Out through the border and back again: offset 0 is seen by way of the middle tap alone.
    found = receptive_field(Cell.of((0, sepconv(7, 7)), (1, sepconv(7, 7))), (5, 5))
    assert found.branches[1].taps == 25
    assert found.branches[1].extent == (29, 29)
    assert found.branches[1].seen == 1


def test_an_axis_may_see_nothing() -> None:
    # Two taps, 100 apart and so both outside.
    found = receptive_field(Cell.of((0, Operator.of("field_conv2x4", rate=(100, 1)))), (5, 5)).branches[0]
    assert found.seen == 0
    assert not found.positions((2, 2)).any()
    assert found.extent == (101, 4)
    pooled = receptive_field(
        Cell.of((0, avgpool(1, 1)), (1, Operator.of("field_conv2x4", rate=(100, 1)))), (5, 5)
    ).branches[1]
    assert (pooled.extent, pooled.seen) == ((0, 5), 0)


# Properties.


@settings(deadline=None)
@given(runs())
def test_numbers_agree_with_positions(run: dict[str, Any]) -> None:
    found = receptive_field(**run)
    height, width = run["size"]
    centre = (height // 2, width // 2)
    for branch in found.branches:
        seen = branch.positions(centre)
        assert seen.dtype == np.bool_
        assert seen.shape == (height, width)
        assert branch.seen == seen.sum()
        assert branch.coverage == pytest.approx(seen.mean())
        np.testing.assert_array_equal(seen, np.outer(branch.relation(0)[centre[0]], branch.relation(1)[centre[1]]))
        assert branch.relation(1).shape == (width, width)
    assert found.seen == found.positions(at=centre).sum()
    assert found.coverage == pytest.approx(found.positions(at=centre).mean())
    assert max(branch.seen or 0 for branch in found.branches) <= (found.seen or 0) <= height * width


@settings(deadline=None)
@given(runs())
def test_a_size_leaves_the_offsets_alone(run: dict[str, Any]) -> None:
    without, found = receptive_field(**{**run, "size": None}), receptive_field(**run)
    assert [branch.offsets for branch in without.branches] == [branch.offsets for branch in found.branches]


@settings(deadline=None)
@given(runs())
def test_values(run: dict[str, Any]) -> None:
    found = receptive_field(**run)
    assert found == receptive_field(**run)
    assert hash(found) == hash(receptive_field(**run))
    with pytest.raises(AttributeError):
        found.branches[0].name = "Y9"  # type: ignore[misc]
    for summary in (found.summary(), receptive_field(**{**run, "size": None}).summary()):
        assert json.loads(json.dumps(summary)) == summary
        assert [branch["name"] for branch in summary["branches"]] == [f"Y{i + 1}" for i in range(len(run["cell"]))]


def test_summary() -> None:
    cell = Cell.of((0, sepconv(1, 2)), (0, avgpool(1, 1)))
    assert receptive_field(cell, (5, 10)).summary() == {
        "size": [5, 10],
        "pooling": "paper",
        "output_stride": 16,
        "image_pooling_crop_size": None,
        "seen": 50,
        "coverage": 1.0,
        "branches": [
            {
                "name": "Y1",
                "operator": "sepconv3x3 rate 1x2",
                "taps": 9,
                "extent": [3, 5],
                "seen": 9,
                "coverage": 0.18,
            },
            {
                "name": "Y2",
                "operator": "avgpool grid 1x1",
                "taps": None,
                "extent": [5, 10],
                "seen": 50,
                "coverage": 1.0,
            },
        ],
    }


# Limits and errors.


def test_the_deepest_cell_of_the_paper_s_operators() -> None:
    chain = Cell.of(*((index, sepconv(21, 20 if index % 2 else 21)) for index in range(256)))
    found = receptive_field(chain, (65, 65))
    assert found.branches[-1].extent == (2 * 256 * 21 + 1, 2 * 128 * (20 + 21) + 1)
    seen = found.branches[-1].positions((32, 32))
    assert np.flatnonzero(seen.any(axis=1)).tolist() == [11, 32, 53]  # steps of 21 that stay on the map


def test_too_many_offsets() -> None:
    chain = Cell.of(*((index, sepconv(3**index, 1)) for index in range(20)))
    with pytest.raises(DpcError, match=f"`Y9` has more than {MAX_OFFSETS} offsets") as caught:
        receptive_field(chain)
    assert caught.value.codes == ("DPC062",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (0, 3)}, "size must be (height, width)"),
        ({"size": (MAX_MAP + 1, 3)}, f"the map is {MAX_MAP + 1}x3"),
        ({"pooling": "max"}, "pooling"),
        ({"output_stride": 32}, "output_stride"),
        ({"image_pooling_crop_size": (3, 3)}, "image_pooling_crop_size"),
        ({"image_pooling_crop_size": (2048, 2048), "pooling": "sliding", "size": (9, 9)}, "window of 128"),
    ],
)
def test_wrong_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DpcError) as caught:
        receptive_field(Cell.of((0, avgpool(1, 1))), **options)
    assert caught.value.codes == ("DPC062",)
    assert said in str(caught.value)


def test_a_huge_grid_takes_no_memory() -> None:
    cell = Cell.of((0, avgpool(2**31 - 1, 1)))
    assert receptive_field(cell).branches[0].offsets == (None, None)
    with pytest.raises(DpcError, match="a map inside `avgpool grid 2147483647x1` is 2147483647x1"):
        receptive_field(cell, (3, 3))


def test_an_operator_that_loses_the_size_is_told() -> None:
    with pytest.raises(DpcError, match="`field_shrink` turns a map of 5x7 into one of 2x3") as caught:
        receptive_field(Cell.of((0, Operator.of("field_shrink"))), (5, 7))
    assert caught.value.codes == ("DPC065",)


@pytest.mark.parametrize("at", [(5, 0), (0, 7), (-1, 0), 3, (1, 2, 3), ("0", 0)])
def test_outside_of_the_map(at: Any) -> None:
    with pytest.raises(DpcError, match=r"from \(0, 0\) to \(4, 6\)"):
        receptive_field(TOP1, (5, 7)).positions("Y1", at=at)


def test_unknown_branch_and_missing_size() -> None:
    found = receptive_field(TOP1)
    assert found.branch("Y5") is found.branches[4]
    with pytest.raises(DpcError, match="the last one is `Y5`"):
        found.branch("Y6")
    with pytest.raises(DpcError, match="depends on the size of the map"):
        found.positions("Y1", at=(0, 0))
    with pytest.raises(DpcError, match="depends on the size of the map"):
        found.positions(at=(0, 0))
    with pytest.raises(DpcError, match="depends on the size of the map"):
        found.branches[0].relation(0)
    assert (found.seen, found.coverage, found.branches[0].seen, found.branches[0].coverage) == (None, None, None, None)
