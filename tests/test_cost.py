"""Cost against numbers worked out by hand, and against torch as an oracle that counts for itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dpcdsl.cell import Cell
from dpcdsl.cost import PartCost, cost, operator_cost, paper_table1
from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.operators import Operator, OperatorKind, Pair, register_operator
from dpcdsl_torch.lowering import BatchNorm, Context, register
from dpcdsl_torch.reference import EagerCell


def sepconv(height: int, width: int) -> Operator:
    return Operator.of("sepconv3x3", rate=(height, width))


CONV = Operator.of("conv1x1")
IMAGE_POOLING = Operator.of("avgpool", grid=(1, 1))
TOP1 = Cell.of((0, sepconv(1, 6)), (1, sepconv(18, 15)), (2, sepconv(6, 3)), (1, sepconv(1, 1)), (1, sepconv(6, 21)))
ASPP = Cell.of((0, IMAGE_POOLING), (0, CONV), (0, sepconv(6, 6)), (0, sepconv(12, 12)), (0, sepconv(18, 18)))


# Operators of a user's own: an inverted bottleneck (which changes the channels and leaves out a BN), an even kernel,
# a layer without weights, and none at all.
class CostMaxPool(Layer):
    """Keeps size and channels, has no weights, but writes a map."""


@register(CostMaxPool)
def _lower_max_pool(layer: CostMaxPool, context: Context) -> nn.Module:  # noqa: ARG001 (it has no fields)
    return nn.MaxPool2d(3, stride=1, padding=1)


@dataclass(frozen=True)
class CostValidMean(Layer):
    """A dilated mean of three rows without padding: what it writes depends on its rate."""

    rate: int = 1

    def dilated(self, multiplier: int) -> Layer:
        return CostValidMean(self.rate * multiplier)

    def out_size(self, size: Size, map_size: Size, conventions: Conventions) -> Size:
        return size[0] - 2 * self.rate, size[1]


for kind in (
    OperatorKind("cost_valid", lambda filters: [CostValidMean(), Resize()]),  # noqa: ARG005 (all are called with it)
    OperatorKind(
        "cost_bottleneck",
        lambda filters, rate: [
            Convolution("expand", 2 * filters),
            DepthwiseConvolution("depthwise", (5, 3), rate, relu=False),
            Convolution("project", filters + 1, batch_norm=False),
        ],
        (Pair("rate"),),
    ),
    OperatorKind("cost_conv2x4", lambda filters: [Convolution("conv", filters, (2, 4))]),
    OperatorKind("cost_maxpool", lambda filters: [CostMaxPool()]),  # noqa: ARG005
    OperatorKind("cost_identity", lambda filters: []),  # noqa: ARG005
    OperatorKind("cost_shrink", lambda filters: [GridPool((2, 2)), Convolution("conv", filters)]),
):
    register_operator(kind)

pairs = st.tuples(st.integers(1, 6), st.integers(1, 6))
operators = st.one_of(
    st.just(CONV),
    pairs.map(lambda rate: Operator.of("sepconv3x3", rate=rate)),
    pairs.map(lambda grid: Operator.of("avgpool", grid=grid)),
    pairs.map(lambda rate: Operator.of("cost_bottleneck", rate=rate)),
    st.sampled_from(["cost_conv2x4", "cost_maxpool", "cost_identity"]).map(Operator.of),
)


@st.composite
def cells(draw: st.DrawFn, operators: st.SearchStrategy[Operator] = operators) -> Cell:
    chosen = draw(st.lists(operators, min_size=1, max_size=6))
    return Cell.of(
        *((draw(st.integers(0, index)), operator) for index, operator in enumerate(chosen)),
        filters=draw(st.integers(1, 9)),
    )


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """A cell and settings that both :func:`cost` and the eager module take."""
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    pooling, stride = draw(st.sampled_from(["paper", "sliding"])), draw(st.sampled_from([16, 8]))
    crop = None
    if pooling == "sliding" and draw(st.booleans()):  # a crop at most as large as the image
        crop = (draw(st.integers(1, size[0] * stride)), draw(st.integers(1, size[1] * stride)))
    return {
        "cell": draw(cells()),
        "features": draw(st.integers(1, 9)),
        "size": size,
        "projection": draw(st.none() | st.integers(1, 9)),
        "pooling": pooling,
        "output_stride": stride,
        "image_pooling_crop_size": crop,
    }


def eager(run: dict[str, Any]) -> tuple[EagerCell, torch.Tensor]:
    """The module of a run and a map for it, both without data (torch's meta device)."""
    options = {name: value for name, value in run.items() if name not in ("cell", "features", "size")}
    with torch.device("meta"):
        module = EagerCell(run["cell"], run["features"], **options).eval()
        return module, torch.empty(1, run["features"], *run["size"])


# Table 1 of the paper, by hand: a 3x3 separable convolution from c channels has 9 c + 256 c weights.
POSITIONS = 65 * 129


@pytest.mark.parametrize(
    ("cell", "features", "params", "madds"),
    [
        (TOP1, 320, (9 * 320 + 320 * 256) + 4 * (9 * 256 + 256 * 256), None),
        (TOP1, 2048, (9 * 2048 + 2048 * 256) + 4 * (9 * 256 + 256 * 256), None),
        # The image pooling's 1x1 runs at one position.
        (ASPP, 320, 5 * 320 * 256 + 3 * 9 * 320, (4 * 320 * 256 + 3 * 9 * 320) * POSITIONS + 320 * 256),
        (ASPP, 2048, 5 * 2048 * 256 + 3 * 9 * 2048, (4 * 2048 * 256 + 3 * 9 * 2048) * POSITIONS + 2048 * 256),
    ],
)
def test_table_1_exactly(cell: Cell, features: int, params: int, madds: int | None) -> None:
    found = cost(cell, features=features, size=(65, 129))
    assert (found.params, found.madds) == (params, params * POSITIONS if madds is None else madds)


def test_table_1_frozen() -> None:
    rows = paper_table1(TOP1, ASPP)
    assert [(row.module, row.features, row.params, row.madds, row.params_paper_fits) for row in rows] == [
        ("ASPP", 320, 418_240, 2_820_125_120, 248_640),
        ("DPC", 320, 356_160, 2_986_401_600, None),
        ("ASPP", 2048, 2_676_736, 18_048_800_768, 1_591_296),
        ("DPC", 2048, 814_080, 6_826_060_800, None),
    ]


def test_table_1_beside_what_the_paper_prints() -> None:
    for row in paper_table1(TOP1, ASPP):
        assert row.madds == pytest.approx(float(row.paper_madds.removesuffix("B")) * 1e9, rel=0.005)
        fits = row.params if row.params_paper_fits is None else row.params_paper_fits
        assert f"{fits / 1e6:.2f}M" == row.paper_params
        assert (row.note is None) == (row.params_paper_fits is None)
        if row.note:
            assert f"{fits:,}" in row.note
            assert f"{row.params:,}" in row.note


def test_paper_defaults() -> None:
    assert cost(TOP1) == cost(TOP1, features=320, size=(65, 129), batch_norm=False, projection=None)


# The oracles.


@settings(deadline=None, max_examples=40)
@given(runs())
def test_madds_are_those_of_the_flop_counter(run: dict[str, Any]) -> None:
    module, features = eager(run)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(features)
    assert 2 * cost(**run).madds == counter.get_total_flops()


@settings(deadline=None, max_examples=40)
@given(runs())
def test_params_are_those_of_the_module(run: dict[str, Any]) -> None:
    module, _ = eager(run)
    assert cost(**run, batch_norm=True).params == sum(p.numel() for p in module.parameters())
    assert cost(**run).params == sum(p.numel() for p in module.parameters() if p.dim() > 1)
    branches = cost(**run, batch_norm=True).branches
    assert [part.params for part in branches] == [sum(p.numel() for p in m.parameters()) for m in module.branches]


@settings(deadline=None, max_examples=40)
@given(runs())
def test_batch_norm_is_one_madd_for_each_normalised_element(run: dict[str, Any]) -> None:
    module, features = eager(run)
    elements: list[int] = []
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.register_forward_hook(lambda _module, _inputs, output: elements.append(output.numel()))
    with torch.no_grad():
        module(features)
    assert cost(**run, batch_norm=True).madds - cost(**run).madds == sum(elements)


@settings(deadline=None, max_examples=40)
@given(runs(), st.sampled_from([1, 2, 4, 8]))
def test_activation_bytes_are_those_of_the_maps_written(run: dict[str, Any], width: int) -> None:
    module, features = eager(run)
    written: dict[int, int] = dict.fromkeys(range(len(module.branches)), 0)
    for index, operator in enumerate(module.branches):
        for layer in operator.children():
            layer.register_forward_hook(
                lambda _module, _inputs, output, index=index: written.update({index: written[index] + output.numel()})
            )
    with torch.no_grad():
        concatenation = module.concatenate(features).numel()
        written = dict.fromkeys(written, 0)
        out = module(features).numel()
    found = cost(**run, bytes_per_element=width, batch_norm=True)
    assert [part.activation_bytes for part in found.branches] == [width * written[index] for index in sorted(written)]
    assert found.concatenation.activation_bytes == width * concatenation
    assert found.projection is None or found.projection.activation_bytes == width * out
    assert (found.projection is None) == (run["projection"] is None)


@settings(deadline=None, max_examples=30)
@given(runs())
def test_channels_are_those_of_the_module(run: dict[str, Any]) -> None:
    found = cost(**run)
    assert tuple(part.out_channels for part in found.branches) == run["cell"].out_channels(run["features"])
    assert found.parts[-1].out_channels == eager(run)[0].out_channels


# By hand.


def test_pooling_conventions_by_hand() -> None:
    cell = Cell.of((0, Operator.of("avgpool", grid=(2, 4))))
    assert cost(cell, 10, (33, 33)).madds == 10 * 256 * 2 * 4
    # Windows of ceil(33 / 2) and ceil(33 / 4): 17 and 9; so 17x25 positions.
    sliding = cost(cell, 10, (33, 33), pooling="sliding")
    assert sliding.madds == 10 * 256 * 17 * 25
    assert sliding.activation_bytes == 4 * ((10 + 256) * 17 * 25 + 2 * 256 * 33 * 33)
    # The window of a 17x17 training map: 9 and 5.
    fixed = cost(cell, 10, (33, 33), pooling="sliding", image_pooling_crop_size=(257, 257))
    assert fixed.madds == 10 * 256 * 25 * 29
    fixed = cost(cell, 10, (33, 33), pooling="sliding", output_stride=8, image_pooling_crop_size=(257, 257))
    assert fixed.madds == 10 * 256 * 17 * 25


def test_a_layer_runs_at_the_rate_of_the_output_stride() -> None:
    cell = Cell.of((0, Operator.of("cost_valid")))
    for output_stride, rate in ((16, 1), (8, 2), (4, 4)):
        part = cost(cell, 3, (9, 5), output_stride=output_stride, bytes_per_element=1).branches[0]
        assert part.activation_bytes == 3 * 5 * ((9 - 2 * rate) + 9)


def test_projection_and_batch_norm_by_hand() -> None:
    cell = Cell.of((0, CONV), (0, sepconv(2, 2)), filters=4)
    found = cost(cell, 3, (5, 7), batch_norm=True, projection=6)
    assert found.projection == PartCost(
        name="projection",
        operator="conv1x1",
        params=8 * 6 + 2 * 6,
        madds=(8 * 6 + 6) * 35,
        activation_bytes=4 * 6 * 35,
        out_channels=6,
    )
    assert found.branches[1] == PartCost(
        name="Y2",
        operator="sepconv3x3 rate 2x2",
        params=(27 + 2 * 3) + (12 + 2 * 4),
        madds=(27 + 3 + 12 + 4) * 35,
        activation_bytes=4 * (3 + 4) * 35,
        out_channels=4,
    )


def test_numbers_are_exact_beyond_64_bits() -> None:
    found = cost(Cell.of((0, CONV), filters=65536), features=2**20, size=(2**20, 2**20))
    assert found.madds == 2**76
    assert json.loads(found.model_dump_json())["madds"] == 2**76


def test_huge_parameters_cost_no_time_and_no_memory() -> None:
    grid = Operator.of("avgpool", grid=(2**31 - 1, 2**31 - 1))
    assert cost(Cell.of((0, grid), (1, sepconv(2**31 - 1, 1))), 1, (1, 1)).branches[0].madds == 256 * (2**31 - 1) ** 2


# Properties.


@settings(deadline=None)
@given(runs(), st.booleans(), st.integers(1, 16))
def test_a_cell_costs_the_sum_of_its_parts(run: dict[str, Any], batch_norm: bool, width: int) -> None:
    found = cost(**run, batch_norm=batch_norm, bytes_per_element=width)
    for number in ("params", "madds", "activation_bytes"):
        assert getattr(found, number) == sum(getattr(part, number) for part in found.parts)
    assert [part.name for part in found.branches] == [f"Y{i}" for i in range(1, len(run["cell"]) + 1)]
    assert found.activation_bytes * 4 == width * cost(**run).activation_bytes


@settings(deadline=None)
@given(runs())
def test_branches_are_operator_costs(run: dict[str, Any]) -> None:
    cell, channels = run["cell"], (run["features"], *run["cell"].out_channels(run["features"]))
    conventions = Conventions(run["pooling"], run["output_stride"], run["image_pooling_crop_size"])
    for branch, part in zip(cell.branches, cost(**run).branches, strict=True):
        found = operator_cost(
            branch.operator, channels[branch.input], run["size"], cell.filters, conventions=conventions
        )
        assert found._asdict().items() <= part.model_dump().items()


@settings(deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_order_of_branches_does_not_matter(run: dict[str, Any], random: Any) -> None:
    cell = run["cell"]
    # A random order in which every input is still earlier.
    place, order = {0: 0}, list[tuple[int, Operator]]()
    while len(order) < len(cell):
        ready = [i for i, b in enumerate(cell.branches, 1) if i not in place and b.input in place]
        chosen = random.choice(ready)
        place[chosen] = len(place)
        order.append((place[cell.branches[chosen - 1].input], cell.branches[chosen - 1].operator))
    before, after = cost(**run), cost(**{**run, "cell": Cell.of(*order, filters=cell.filters)})
    assert (before.params, before.madds, before.activation_bytes) == (after.params, after.madds, after.activation_bytes)
    assert before.projection == after.projection


@settings(deadline=None)
@given(cells(st.just(CONV) | pairs.map(lambda rate: Operator.of("sepconv3x3", rate=rate))), pairs, st.integers(1, 9))
def test_without_pooling_every_weight_runs_at_every_position(cell: Cell, size: tuple[int, int], features: int) -> None:
    found = cost(cell, features, size, projection=3)
    assert found.madds == found.params * size[0] * size[1]


@settings(deadline=None)
@given(runs())
def test_values(run: dict[str, Any]) -> None:
    found = cost(**run, batch_norm=True)
    assert found == cost(**run, batch_norm=True)
    assert hash(found) == hash(cost(**run, batch_norm=True))
    dumped = found.model_dump(mode="json")
    assert json.loads(json.dumps(dumped)) == dumped
    assert list(dumped)[:4] == ["params", "madds", "activation_bytes", "branches"]
    assert type(found).model_validate(dumped) == found
    for part in found.parts:
        assert all(type(n) is int for n in (part.params, part.madds, part.activation_bytes, part.out_channels))
    for name in run.keys() - {"cell", "projection"}:
        assert getattr(found, name) == run[name]


# Errors.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": 0}, "features must be a whole number from 1"),
        ({"features": 2**20 + 1}, "features"),
        ({"features": 1.5}, "features"),
        ({"features": True}, "features"),
        ({"features": 10**5000}, "features"),
        ({"features": "9" * 10**6}, "features"),
        ({"size": (0, 3)}, "size must be (height, width)"),
        ({"size": 65}, "size"),
        ({"projection": 0}, "projection must be a whole number from 1"),
        ({"projection": 65537}, "projection"),
        ({"projection": -(10**5000)}, "projection"),
        ({"bytes_per_element": 0}, "bytes_per_element"),
        ({"bytes_per_element": 17}, "bytes_per_element"),
        ({"pooling": "max"}, "pooling"),
        ({"output_stride": 32}, "output_stride"),
        ({"image_pooling_crop_size": (3, 3)}, "image_pooling_crop_size"),
        ({"image_pooling_crop_size": (0, 3), "pooling": "sliding"}, "image_pooling_crop_size"),
        ({"image_pooling_crop_size": (2048, 2048), "pooling": "sliding", "size": (9, 9)}, "window of 128"),
    ],
)
def test_wrong_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DpcError) as caught:
        cost(ASPP, **options)
    assert caught.value.codes == ("DPC062",)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_crop_may_be_a_list() -> None:
    found = cost(ASPP, 8, (33, 33), pooling="sliding", image_pooling_crop_size=[257, 257])  # type: ignore[arg-type]
    assert found.image_pooling_crop_size == (257, 257)


def test_an_operator_that_loses_the_size_is_told() -> None:
    cell = Cell.of((0, Operator.of("cost_shrink")))
    with pytest.raises(DpcError, match="`cost_shrink` turns a map of 5x7 into one of 2x2") as caught:
        cost(cell, 3, (5, 7))
    assert caught.value.codes == ("DPC065",)


def test_a_resize_after_it_mends_that() -> None:
    layers = [GridPool((2, 2)), Convolution("conv", 256), Resize()]
    register_operator(OperatorKind("cost_mended", lambda filters: layers))  # noqa: ARG005
    mended, pooled = Operator.of("cost_mended"), Operator.of("avgpool", grid=(2, 2))
    assert operator_cost(mended, 3, (5, 7)) == operator_cost(pooled, 3, (5, 7))


def test_costing_needs_neither_numpy_nor_torch() -> None:
    program = (
        "import sys, dpcdsl.receptive_field\n"
        "from dpcdsl.cell import Cell; from dpcdsl.cost import cost; from dpcdsl.operators import Operator\n"
        "cost(Cell.of((0, Operator.of('avgpool', grid=(2, 2)))), projection=3, pooling='sliding')\n"
        "print([name for name in ('numpy', 'torch', 'networkx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
