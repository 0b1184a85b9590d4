"""The eager cell as a module: shapes, batch normalisation, dropout, keys, copies, exports, messages."""

from __future__ import annotations

import copy
import pickle
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Resize
from dpcdsl.operators import Operator
from dpcdsl_torch import EagerCell, eager, parameter_groups, weight_decay_parameters
from dpcdsl_torch.lowering import BatchNorm, Context, MapSized, Settings, lower

PAPER = Conventions()
SLIDING = Conventions(pooling="sliding")

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))
pairs = st.tuples(st.integers(1, 9), st.integers(1, 9))
operators = st.one_of(
    st.just(Operator.of("conv1x1")),
    pairs.map(lambda rate: Operator.of("sepconv3x3", rate=rate)),
    pairs.map(lambda grid: Operator.of("avgpool", grid=grid)),
)


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    count = draw(st.integers(1, 5))
    branches = [(draw(st.integers(0, i)), draw(operators)) for i in range(count)]
    return Cell.of(*branches, filters=draw(st.integers(1, 5)))


def context(conventions: Conventions = PAPER, in_channels: int = 1) -> Context:
    return Context(in_channels, Settings(conventions, 0.1, 1e-5, True, True))


def message(error: pytest.ExceptionInfo[DpcError]) -> str:
    return str(error.value)


# What a cell computes


@settings(max_examples=60, deadline=None)
@given(
    cell=cells(),
    size=sizes,
    batch=st.integers(0, 3),
    in_channels=st.integers(1, 4),
    projection=st.none() | st.integers(1, 3),
    pooling=st.sampled_from(["paper", "sliding"]),
    output_stride=st.sampled_from([16, 8]),
    training=st.booleans(),
)
def test_any_cell_on_any_map(
    cell: Cell, size: Any, batch: int, in_channels: int, projection: int | None, training: bool, **options: Any
) -> None:
    module = EagerCell(cell, in_channels, projection=projection, **options).train(training)
    x = torch.randn(batch, in_channels, *size, requires_grad=True)
    y = module(x)
    assert y.shape == (batch, module.out_channels, *size)
    concatenated = sum(cell.out_channels(in_channels))
    assert module.out_channels == (projection or concatenated)
    assert module.concatenate(x).shape == (batch, concatenated, *size)
    assert (y >= 0).all()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
plain = {"batch_norm": False, "relu": False}
layers = st.one_of(
    st.builds(lambda k, r: Convolution("conv", 1, k, r, **plain), kernels, pairs),
    st.builds(lambda k, r: DepthwiseConvolution("depthwise", k, r, **plain), kernels, pairs),
    st.builds(GridPool, pairs),
    st.just(Resize()),
)


@settings(max_examples=150, deadline=None)
@given(layer=layers, size=sizes, map_size=sizes, sliding=st.booleans())
def test_a_module_reads_what_its_layer_says(layer: Layer, size: Any, map_size: Any, sliding: bool) -> None:
    conventions = SLIDING if sliding else PAPER
    module = lower(layer, context(conventions)).double()
    for weight in module.parameters():
        nn.init.ones_(weight)

    def run(x: Tensor) -> Tensor:
        y = module(x[None, None], map_size) if isinstance(module, MapSized) else module(x[None, None])
        return y[0, 0]

    x = torch.zeros(size, dtype=torch.float64)
    assert tuple(run(x).shape) == layer.out_size(size, map_size, conventions)
    read = torch.autograd.functional.jacobian(run, x).numpy() > 1e-9
    rows, columns = (layer.reads(axis, size[axis], map_size[axis], conventions) for axis in (0, 1))
    np.testing.assert_array_equal(read, rows[:, None, :, None] & columns[None, :, None, :])


@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (4, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("rate", [(1, 1), (2, 3), (9, 1)])
def test_same_padding_of_any_kernel(kernel: tuple[int, int], rate: tuple[int, int]) -> None:
    layer = Convolution("conv", 3, kernel, rate, **plain)
    module = lower(layer, context(in_channels=2)).double()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    expected = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    for i, dy in enumerate(layer.taps(0)):
        for j, dx in enumerate(layer.taps(1)):
            for y in range(max(0, -dy), min(5, 5 - dy)):
                for z in range(max(0, -dx), min(4, 4 - dx)):
                    expected[:, :, y, z] += x[:, :, y + dy, z + dx] @ module.weight[:, :, i, j].T
    torch.testing.assert_close(module(x), expected)


def test_the_sliding_window_of_a_training_crop() -> None:
    cell = Cell.of((0, Operator.of("avgpool", grid=(4, 2))), filters=2)
    module = EagerCell(cell, 3, pooling="sliding", image_pooling_crop_size=(129, 97)).eval()
    x = torch.randn(1, 3, 17, 9)
    pooled = module.branches[0].grid_pool(x)  # the crop is a map of 9x7, so the window is 3x4
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(x, (3, 4), stride=1))
    assert module(x).shape == (1, 2, 17, 9)
    with pytest.raises(DpcError, match="window of 3 does not fit height 2") as error:
        module(x[:, :, :2])
    assert error.value.codes == ("DPC062",)


def test_gradients_are_right(mixed: Cell) -> None:
    cell = Cell(branches=mixed.branches, filters=2)
    for training in (True, False):
        module = EagerCell(cell, 2, projection=2, dropout=0.0).double().train(training)
        x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


@pytest.mark.parametrize("rate", [(1, 10**6), (2**31 - 1, 2**31 - 1)])
def test_a_rate_beyond_the_map_leaves_the_centre(rate: tuple[int, int]) -> None:
    module = EagerCell(Cell.of((0, Operator.of("sepconv3x3", rate=rate)), filters=2), 3).eval()
    near = EagerCell(Cell.of((0, Operator.of("sepconv3x3", rate=(min(rate[0], 50), 50))), filters=2), 3).eval()
    near.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(module(x), near(x))


def test_output_stride_multiplies_rates(mixed: Cell) -> None:
    module = EagerCell(mixed, 3, output_stride=4)
    assert module.branches[0].depthwise.rate == (4, 24)
    assert module.branches[0].pointwise.rate == (4, 4)  # of no effect: the kernel is 1x1


@pytest.mark.parametrize("training", [True, False])
def test_memory_formats_and_strides(mixed: Cell, training: bool) -> None:
    module = EagerCell(mixed, 6, projection=4, dropout=0.0).train(training)
    x = torch.randn(2, 6, 9, 7)
    expected = module(x)
    last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 12, 9, 14)
    strided[:, ::2, :, 1::2] = x
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (last, strided[:, ::2, :, 1::2], turned):
        torch.testing.assert_close(module(other), expected, rtol=1e-4, atol=1e-5)
    in_last = copy.deepcopy(module).to(memory_format=torch.channels_last)(last)
    torch.testing.assert_close(in_last, expected, rtol=1e-4, atol=1e-5)
    if not training:
        assert in_last.is_contiguous(memory_format=torch.channels_last)


def test_types(mixed: Cell) -> None:
    module = EagerCell(mixed, 6, projection=4, dropout=0.0)
    x = torch.randn(2, 6, 9, 7)
    exact = copy.deepcopy(module).double()(x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(module(x).double(), exact, rtol=1e-3, atol=1e-4)
    for training in (True, False):
        rough = copy.deepcopy(module).bfloat16().train(training)
        y = rough(x.bfloat16())
        assert y.dtype == torch.bfloat16
        near = copy.deepcopy(module).train(training)(x)
        assert (y.float() - near).norm() < 0.1 * near.norm()
        y.sum().backward()
        assert rough(x[:1].bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x[:1])
    assert (y.float() - module(x[:1])).norm() < 0.2 * y.float().norm()


def test_no_maps_at_all(mixed: Cell) -> None:
    module = EagerCell(mixed, 6, projection=4)
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(0, 6, 9, 7, requires_grad=True)
    for training in (True, False):
        y = module.train(training)(x)
        assert y.shape == (0, 4, 9, 7)
        y.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Batch normalisation


def test_one_value_a_channel_in_training() -> None:
    cell = Cell.of((0, Operator.of("avgpool", grid=(1, 1))), filters=4)
    module = EagerCell(cell, 3, batch_norm_momentum=0.25)
    norm = module.branches[0].conv.bn
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-1.0, 0.5, 2.0, 0.0]))
        norm.weight.fill_(3.0)
    x = torch.randn(1, 3, 5, 6, requires_grad=True)
    y = module(x)
    assert torch.equal(y, norm.bias.relu()[None, :, None, None].expand(1, 4, 5, 6))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.count_nonzero() == 0
    assert norm.weight.grad.count_nonzero() == 0
    torch.testing.assert_close(norm.bias.grad, torch.tensor([0.0, 30.0, 30.0, 0.0]))
    value = nn.functional.conv2d(x.mean((2, 3), keepdim=True), module.branches[0].conv.weight).flatten()
    torch.testing.assert_close(norm.running_mean, 0.25 * value.detach())
    torch.testing.assert_close(norm.running_var, torch.full((4,), 0.75))
    assert norm.num_batches_tracked == 1


def test_batch_statistics_are_biased_and_remembered_ones_are_not() -> None:
    norm = BatchNorm(2, momentum=0.5, epsilon=1e-3, fine_tune=True)
    x = torch.randn(2, 2, 1, 2) * 3 + 1
    mean, biased = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    expected = (x - mean[:, None, None]) / (biased[:, None, None] + 1e-3).sqrt()
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.running_mean, mean / 2)
    torch.testing.assert_close(norm.running_var, 0.5 + biased * 4 / 3 / 2)


def test_defaults_are_the_authors(mixed: Cell) -> None:
    module = EagerCell(mixed, 6, projection=4)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.0003, 1e-5)}
    assert module.dropout.p == 0.1


def test_frozen_statistics(mixed: Cell) -> None:
    frozen = EagerCell(mixed, 6, projection=4, dropout=0.0, fine_tune_batch_norm=False)
    before = copy.deepcopy(frozen.state_dict())
    x = torch.randn(2, 6, 9, 7)
    y = frozen(x)
    assert torch.equal(y, copy.deepcopy(frozen).eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in frozen.parameters())
    tuned = EagerCell(mixed, 6, projection=4, dropout=0.0)
    tuned.load_state_dict(before)
    assert not torch.allclose(tuned(x), y)


# Dropout


def test_dropout_before_the_projection(mixed: Cell) -> None:
    module = EagerCell(mixed, 6, projection=4, dropout=0.5, fine_tune_batch_norm=False)
    seen: list[Tensor] = []
    module.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 6, 9, 7)
    module(x)
    concatenated = module.concatenate(x)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * concatenated[kept])
    assert kept.sum() / (concatenated != 0).sum() == pytest.approx(0.5, abs=0.05)


def test_dropout_after_the_projection(mixed: Cell) -> None:
    options: dict[str, Any] = {"projection": 4, "dropout": 0.5, "fine_tune_batch_norm": False}
    module = EagerCell(mixed, 6, dropout_place="after_projection", **options)
    x = torch.randn(2, 6, 9, 7)
    dropped, whole = module(x), module.eval()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert kept.sum() / (whole != 0).sum() == pytest.approx(0.5, abs=0.1)


# Weights: names, start, decay


def test_names_of_the_state(mixed: Cell) -> None:
    norm = ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    convolutions = [
        "branches.0.depthwise",
        "branches.0.pointwise",
        "branches.1.conv",
        "branches.2.conv",
        "branches.3.conv",
        "branches.4.depthwise",
        "branches.4.pointwise",
        "projection",
    ]
    expected = [f"{c}.{rest}" for c in convolutions for rest in (*(f"bn.{n}" for n in norm), "weight")]
    module = EagerCell(mixed, 6, projection=4)
    assert sorted(module.state_dict()) == sorted(expected)
    others = EagerCell(mixed, 6, projection=4, pooling="sliding", output_stride=8, fine_tune_batch_norm=False)
    others.load_state_dict(module.state_dict(), strict=True)
    without = {name: value for name, value in module.state_dict().items() if not name.startswith("projection")}
    EagerCell(mixed, 6).load_state_dict(without, strict=True)
    assert tuple(module.state_dict()["branches.0.depthwise.weight"].shape) == (6, 1, 3, 3)
    assert tuple(module.state_dict()["projection.weight"].shape) == (4, 40, 1, 1)


def test_weights_start_as_the_authors_do() -> None:
    operators = [Operator.of("sepconv3x3", rate=(1, 1)), Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))]
    module = EagerCell(Cell.of(*((0, operator) for operator in operators), filters=200), 2000, projection=100)
    separable, conv, pool = module.branches
    truncated = 0.8796  # the standard deviation of a standard normal that is cut at twice its own
    for weight, std in ((separable.depthwise.weight, 0.33), (separable.pointwise.weight, 0.06)):
        assert weight.std().item() == pytest.approx(truncated * std, rel=0.02)
        assert weight.abs().max().item() == pytest.approx(2 * std, rel=0.01)
        assert abs(weight.mean().item()) < 0.01 * std + 3 * std / weight.numel() ** 0.5
    for weight, fans in ((conv.conv.weight, 2200), (pool.conv.weight, 2200), (module.projection.weight, 700)):
        bound = (6 / fans) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()


def test_a_seed_decides_the_weights(mixed: Cell) -> None:
    def fresh() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return EagerCell(mixed, 6, projection=4).state_dict()

    first, second = fresh(), fresh()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parameter_groups(mixed: Cell) -> None:
    module = EagerCell(mixed, 1, projection=4)  # of one channel, where shapes alone tell no depthwise weight
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, rest = parameter_groups(module)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (4e-5, 0.0)
    assert [names[id(p)] for p in decayed["params"]] == [
        "branches.0.pointwise.weight",
        "branches.1.conv.weight",
        "branches.2.conv.weight",
        "branches.3.conv.weight",
        "branches.4.pointwise.weight",
        "projection.weight",
    ]
    assert len(decayed["params"]) + len(rest["params"]) == len(list(module.parameters()))
    torch.optim.SGD(parameter_groups(module), lr=0.1)


def test_weight_decay_of_a_whole_model(mixed: Cell) -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.GroupNorm(2, 6))
    model = nn.Sequential(backbone, EagerCell(mixed, 6, projection=4), nn.Conv2d(4, 5, 1))
    chosen = weight_decay_parameters(model)
    assert chosen[0] is backbone[0].weight
    assert chosen[-1] is model[2].weight
    assert len(chosen) == 8
    assert all(p is not backbone[1].weight for p in chosen)


# A module like any other


def test_copies(mixed: Cell) -> None:
    module = EagerCell(mixed, 6, projection=4).eval()
    x = torch.randn(2, 6, 9, 7)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.cell == mixed
        assert torch.equal(other(x), module(x))
    with torch.device("meta"):
        assert EagerCell(mixed, 6, projection=4)(torch.empty(2, 6, 9, 7)).shape == (2, 4, 9, 7)


@pytest.mark.parametrize("projection", [None, 4])
def test_export(mixed: Cell, projection: int | None) -> None:
    module = EagerCell(mixed, 6, projection=projection).eval()
    free = torch.export.Dim.AUTO
    exported = torch.export.export(module, (torch.randn(2, 6, 9, 11),), dynamic_shapes=({0: free, 2: free, 3: free},))
    for shape in ((2, 6, 9, 11), (3, 6, 25, 17)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize("batch", [1, 2])
def test_torch_compile_sees_one_graph(mixed: Cell, batch: int) -> None:
    module = EagerCell(mixed, 6, projection=4, dropout=0.0)
    other = copy.deepcopy(module)
    x = torch.randn(batch, 6, 9, 7)
    torch.testing.assert_close(torch.compile(other, backend="eager", fullgraph=True)(x), module(x))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[name])


def test_it_shows_itself(mixed: Cell) -> None:
    text = repr(EagerCell(mixed, 6, projection=4))
    assert "(F, sepconv3x3 rate 1x6, Y1) (Y1, avgpool grid 1x1, Y2)" in text
    assert "(depthwise): SameConvolution(\n" in text
    assert "6, kernel=(3, 3), rate=(1, 6), relu=True" in text


def test_the_entry_point(mixed: Cell) -> None:
    (entry,) = entry_points(group="dpcdsl.compilers", name="eager")
    assert entry.load() is eager
    module = eager.compile(mixed, in_channels=6, projection=4, pooling="sliding")
    assert isinstance(module, EagerCell)
    assert module.settings.conventions == SLIDING


# Messages


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"in_channels": 0}, "error: in_channels must be a whole number from 1 up, not 0 [DPC062]"),
        ({"in_channels": 2.0}, "error: in_channels must be a whole number from 1 up, not 2.0 [DPC062]"),
        ({"in_channels": True}, "error: in_channels must be a whole number from 1 up, not True [DPC062]"),
        ({"projection": 0}, "error: projection must be a whole number from 1 up, not 0 [DPC062]"),
        ({"dropout": 1}, "error: dropout must be a number from 0 up to, but not including, 1, not 1 [DPC062]"),
        (
            {"dropout": "much"},
            "error: dropout must be a number from 0 up to, but not including, 1, not 'much' [DPC062]",
        ),
        (
            {"dropout_place": "before"},
            'error: dropout_place must be "before_projection" or "after_projection", not \'before\' [DPC062]',
        ),
        ({"batch_norm_momentum": 1.5}, "error: batch_norm_momentum must be a number from 0 to 1, not 1.5 [DPC062]"),
        ({"batch_norm_momentum": None}, "error: batch_norm_momentum must be a number from 0 to 1, not None [DPC062]"),
        ({"batch_norm_epsilon": 0}, "error: batch_norm_epsilon must be a number above 0, not 0 [DPC062]"),
        ({"fine_tune_batch_norm": 1}, "error: fine_tune_batch_norm must be True or False, not 1 [DPC062]"),
        ({"align_corners": None}, "error: align_corners must be True or False, not None [DPC062]"),
        ({"pooling": "max"}, 'error: pooling must be "paper" or "sliding", not max [DPC062]'),
        (
            {"poling": "paper"},
            "error: the compiler `eager` has no option `poling`; did you mean `pooling`? [DPC062]\n"
            "    help: options: `pooling`, `output_stride`, `image_pooling_crop_size`, `projection`, `dropout`, "
            "`dropout_place`, `batch_norm_momentum`, `batch_norm_epsilon`, `fine_tune_batch_norm`, `align_corners`",
        ),
    ],
)
def test_wrong_settings(mixed: Cell, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(DpcError) as error:
        eager.compile(mixed, **({"in_channels": 6} | options))
    assert message(error) == expected


def test_wrong_settings_are_told_together() -> None:
    with pytest.raises(DpcError) as error:
        eager.compile("(F, conv1x1, Y1)", in_channels=0, output_stride=32, projection=-1)  # type: ignore[arg-type]
    assert message(error) == (
        "error: the cell must be a dpcdsl.Cell, not str [DPC062]\n"
        "    help: text is read by `parse_cell`\n"
        "error: in_channels must be a whole number from 1 up, not 0 [DPC062]\n"
        "error: projection must be a whole number from 1 up, not -1 [DPC062]\n"
        "error: output_stride must be 16, 8, 4, 2 or 1, not 32 [DPC062]\n"
        "    help: rates are written for output stride 16 and are multiplied by 16 / output_stride"
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            (6, 9, 7),
            "error: a cell runs on a map [N, C, H, W], not on a tensor of 3 dimensions [DPC062]\n"
            "    help: a single map becomes a batch of one by `features.unsqueeze(0)`",
        ),
        ((6,), "error: a cell runs on a map [N, C, H, W], not on a tensor of 1 dimensions [DPC062]"),
        (
            (2, 5, 9, 7),
            "error: the cell was built for 6 channels, and the map has 5 [DPC062]\n"
            "    help: in_channels is the number of channels of the backbone's last feature map",
        ),
        (
            (2, 9, 7, 6),
            "error: the cell was built for 6 channels, and the map has 9 [DPC062]\n"
            "    help: the map looks like [N, H, W, C]; turn it by `features.permute(0, 3, 1, 2)`",
        ),
        ((2, 6, 0, 7), "error: the map has no positions: its size is 0x7 [DPC062]"),
    ],
)
def test_wrong_input(mixed: Cell, shape: tuple[int, ...], expected: str) -> None:
    with pytest.raises(DpcError) as error:
        EagerCell(mixed, 6)(torch.zeros(shape))
    assert message(error) == expected
