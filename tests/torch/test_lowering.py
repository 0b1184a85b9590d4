"""A user's own layer comes in through the same door as the paper's, and the door says what is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpcdsl import operators
from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.operators import Integer, Operator, OperatorKind, register_operator
from dpcdsl_torch import EagerCell, eager, load_deeplab_variables, lowering, parameter_groups
from dpcdsl_torch.lowering import Context, MapSized, layer_names


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_registry", dict(operators._registry))
    monkeypatch.setattr(lowering, "_registry", dict(lowering._registry))
    operators._layers.cache_clear()


def cell_of(layers: Callable[..., Sequence[Layer]], filters: int = 4, **parameters: Any) -> Cell:
    kind = OperatorKind("mine", layers, tuple(Integer(name) for name in parameters))
    register_operator(kind)
    return Cell.of((0, Operator.of("mine", **parameters)), (1, Operator.of("conv1x1")), filters=filters)


@dataclass(frozen=True)
class MaxPool(Layer):
    window: int

    def dilated(self, multiplier: int) -> MaxPool:
        return MaxPool(1 + (self.window - 1) * multiplier)


def test_a_max_pooling_in_five_lines() -> None:
    @lowering.register(MaxPool)
    def lower_max_pool(layer: MaxPool, context: Context) -> nn.Module:  # noqa: ARG001
        return nn.MaxPool2d(layer.window, stride=1, padding=layer.window // 2)

    cell = cell_of(lambda filters, window: [MaxPool(window)], window=3)  # noqa: ARG005
    module = eager.compile(cell, in_channels=5, output_stride=8).eval()
    assert module.out_channels == 9  # an operator without a convolution keeps the channels of its input
    x = torch.randn(2, 5, 6, 7)
    y = module(x)
    torch.testing.assert_close(y[:, :5], nn.functional.max_pool2d(x, 5, stride=1, padding=2))
    assert y.shape == (2, 9, 6, 7)
    copy.deepcopy(module).load_state_dict(module.state_dict(), strict=True)


@dataclass(frozen=True)
class Gate(Layer):
    name: str

    def normalised_channels(self, in_channels: int) -> int:
        return in_channels


class GateModule(MapSized):
    def __init__(self, context: Context) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(context.in_channels, 1, 1))
        self.bn = context.batch_norm(context.in_channels)

    def forward(self, x: Tensor, map_size: Size) -> Tensor:
        return self.bn(x * self.scale).expand(-1, -1, *map_size)


def test_a_layer_with_weights_that_needs_the_map() -> None:
    lowering.register(Gate)(lambda _, context: GateModule(context))
    cell = cell_of(lambda filters: [GridPool((1, 1)), Gate("gate"), Gate("gate"), Convolution("conv", filters)])
    module = EagerCell(cell, 3, batch_norm_momentum=0.5, fine_tune_batch_norm=False)
    assert {name.rpartition(".")[0] for name in module.state_dict()} >= {"branches.0.gate", "branches.0.gate_2.bn"}
    assert (module.branches[0].gate.bn.momentum, module.branches[0].gate.bn.fine_tune) == (0.5, False)
    module(torch.randn(1, 3, 4, 5)).sum().backward()
    assert module.branches[0].gate_2.scale.grad is not None
    assert any(p is module.branches[0].gate.scale for p in parameter_groups(module)[0]["params"])
    with pytest.raises(DpcError) as error:
        load_deeplab_variables(module, {})
    assert "the authors' code has no variable for `branches.0.gate.scale`" in str(error.value)


def test_a_dense_kernel_loads_with_its_axes_in_order() -> None:
    module = EagerCell(cell_of(lambda filters: [Convolution("conv", filters, (3, 2), batch_norm=False)]), 3)
    variables = {
        "meta_architecture/branch0/weights": torch.randn(3, 2, 3, 4),
        "meta_architecture/branch1/weights": torch.randn(1, 1, 4, 4),
        **{f"meta_architecture/branch1/BatchNorm/{part}": torch.ones(4) for part in ("gamma", "beta")},
        **{f"meta_architecture/branch1/BatchNorm/moving_{part}": torch.ones(4) for part in ("mean", "variance")},
    }
    load_deeplab_variables(module, variables)
    expected = variables["meta_architecture/branch0/weights"].permute(3, 2, 0, 1)
    assert torch.equal(module.branches[0].conv.weight, expected)


def test_an_operator_of_no_layers_is_the_identity() -> None:
    module = EagerCell(cell_of(lambda filters: []), 3)  # noqa: ARG005
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(module(x)[:, :3], x)


def test_what_a_lowering_is_told() -> None:
    seen: list[Context] = []

    @lowering.register(MaxPool)
    def lower_max_pool(layer: MaxPool, context: Context) -> nn.Module:  # noqa: ARG001
        seen.append(context)
        return nn.Identity()

    first = DepthwiseConvolution("depthwise")
    EagerCell(cell_of(lambda filters: [first, Convolution("pointwise", filters), MaxPool(3), Resize()], filters=7), 3)
    (context,) = seen
    assert context.in_channels == 7
    assert context.previous == Convolution("pointwise", 7)
    assert context.settings.batch_norm_epsilon == 1e-5
    assert context.settings.conventions.pooling == "paper"


def test_where_a_convolution_starts_depends_on_its_place() -> None:
    def layers(filters: int) -> list[Layer]:
        return [
            DepthwiseConvolution("depthwise"),
            Convolution("pointwise", filters),
            Convolution("mix", filters),
            DepthwiseConvolution("again"),
            Convolution("dense", filters, (3, 3)),
        ]

    (operator, _) = EagerCell(cell_of(layers), 3).branches
    stds = {name: part.std for name, part in operator.named_children()}
    assert stds == {"depthwise": 0.33, "pointwise": 0.06, "mix": None, "again": 0.33, "dense": None}


def test_names() -> None:
    layers = [Convolution("conv", 4), GridPool((1, 1)), Convolution("conv_2", 4), Convolution("conv", 4), Resize()]
    assert layer_names(layers) == ("conv", "grid_pool", "conv_2", "conv_3", "resize")


# Messages


def test_an_unknown_layer() -> None:
    cell = cell_of(lambda filters, window: [MaxPool(window)], window=3)  # noqa: ARG005
    with pytest.raises(DpcError) as error:
        eager.compile(cell, in_channels=5)
    assert str(error.value) == (
        "error: no lowering of the layer `MaxPool` to torch is registered [DPC064]\n"
        "    help: write a function (layer, context) -> nn.Module under `@dpcdsl_torch.lowering.register(MaxPool)`"
    )


def test_a_subclass_is_another_layer() -> None:
    class Ring(Convolution):
        pass

    with pytest.raises(DpcError, match="no lowering of the layer `Ring`"):
        EagerCell(cell_of(lambda filters: [Ring("ring", filters)]), 3)


def test_registered_twice() -> None:
    def first(layer: MaxPool, context: Context) -> nn.Module:  # noqa: ARG001
        return nn.Identity()

    def second(layer: MaxPool, context: Context) -> nn.Module:  # noqa: ARG001
        return nn.MaxPool2d(1)

    lowering.register(MaxPool)(first)
    lowering.register(MaxPool)(first)
    with pytest.raises(DpcError) as error:
        lowering.register(MaxPool)(second)
    assert str(error.value) == (
        "error: a lowering of `MaxPool` is registered already [DPC065]\n"
        "    help: pass `replace=True` if the new one is meant to take its place"
    )
    lowering.register(MaxPool, replace=True)(second)
    (operator, _) = EagerCell(cell_of(lambda filters, w: [MaxPool(w)], w=3), 3).branches  # noqa: ARG005
    assert isinstance(operator.max_pool, nn.MaxPool2d)


def test_a_lowering_that_gives_no_module() -> None:
    lowering.register(MaxPool)(lambda layer, _: layer)  # type: ignore[arg-type, return-value]
    with pytest.raises(DpcError) as error:
        EagerCell(cell_of(lambda filters, w: [MaxPool(w)], w=3), 3)  # noqa: ARG005
    assert str(error.value) == (
        "error: the lowering of `MaxPool` returned MaxPool, not a torch module [DPC064]\n"
        "    help: return an nn.Module that is called with a map [N, C, H, W]"
    )


def test_a_module_that_breaks_the_layers_word() -> None:
    lowering.register(MaxPool)(lambda layer, _: nn.MaxPool2d(layer.window))
    module = EagerCell(cell_of(lambda filters, w: [MaxPool(w)], w=3), 3)  # noqa: ARG005
    with pytest.raises(DpcError) as error:
        module(torch.zeros(2, 3, 6, 9))
    assert str(error.value) == (
        "error: branch 1 (mine w 3) gives a map [2, 3, 2, 3]; its layers and its input say [2, 3, 6, 9] [DPC064]\n"
        "    help: see that the lowering's module agrees with the layer's out_channels and out_size"
    )


def test_a_name_that_torch_cannot_keep() -> None:
    with pytest.raises(DpcError) as error:
        EagerCell(cell_of(lambda filters: [Convolution("forward", filters)]), 3)
    assert str(error.value) == (
        "error: a layer of `mine` cannot be called `forward` [DPC064]\n    help: choose a plain word"
    )
