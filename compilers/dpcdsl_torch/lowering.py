"""How a layer of an operator becomes a torch module: one registry, and the door through which a user's layer enters.

A lowering is looked up by the layer's class. It is called as ``lowering(layer, context)``, once while a cell is
built, and returns the ``nn.Module`` that runs the layer on a map [N, C, H, W]::

    @dpcdsl_torch.lowering.register(MaxPool)
    def lower_max_pool(layer: MaxPool, context: Context) -> nn.Module:
        return nn.MaxPool2d(layer.window, stride=1, padding=layer.window // 2)

The layers of :mod:`dpcdsl.layers` come in through the same door (:mod:`dpcdsl_torch.reference`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor, nn

from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Layer, Size

__all__ = ["BatchNorm", "Context", "Lowering", "MapSized", "Settings", "layer_names", "lower", "register"]


@dataclass(frozen=True)
class Settings:
    """What holds for every layer of a compiled cell. :class:`dpcdsl_torch.EagerCell` says what each of them means."""

    conventions: Conventions
    batch_norm_momentum: float
    batch_norm_epsilon: float
    fine_tune_batch_norm: bool
    align_corners: bool


@dataclass(frozen=True)
class Context:
    """Where a layer stands, for its lowering.

    in_channels: of the map that reaches the layer.
    previous: the layer before it in the same operator, None for the first.
    """

    in_channels: int
    settings: Settings
    previous: Layer | None = None

    def batch_norm(self, channels: int) -> BatchNorm:
        """Batch normalisation as the settings want it, for a lowering that needs one."""
        return BatchNorm(
            channels,
            momentum=self.settings.batch_norm_momentum,
            epsilon=self.settings.batch_norm_epsilon,
            fine_tune=self.settings.fine_tune_batch_norm,
        )


class MapSized(nn.Module):
    """Base of a module that needs the size of its operator's own input: it is called as ``forward(x, map_size)``.

    ``map_size`` is (height, width), and never a constant: it follows the map of each call.
    """

    def forward(self, x: Tensor, map_size: Size) -> Tensor:
        raise NotImplementedError


LayerT = TypeVar("LayerT", bound=Layer)
Lowering: TypeAlias = Callable[[LayerT, Context], nn.Module]

_registry: dict[type[Layer], Lowering[Any]] = {}


def register(layer_class: type[LayerT], *, replace: bool = False) -> Callable[[Lowering[LayerT]], Lowering[LayerT]]:
    """Decorator: the function below says how layers of exactly ``layer_class`` run.

    A subclass needs a lowering of its own: it exists because it differs. Raises :class:`DpcError` (DPC065) if the
    class has another lowering already, unless ``replace`` is set.
    """

    def enter(function: Lowering[LayerT]) -> Lowering[LayerT]:
        if not replace and _registry.get(layer_class, function) is not function:
            raise DpcError.of(
                "DPC065",
                f"a lowering of `{layer_class.__name__}` is registered already",
                hint="pass `replace=True` if the new one is meant to take its place",
            )
        _registry[layer_class] = function
        return function

    return enter


def lower(layer: Layer, context: Context) -> nn.Module:
    """The module that runs ``layer``, or a :class:`DpcError` (DPC064) if its class has no lowering."""
    name = type(layer).__name__
    function = _registry.get(type(layer))
    if function is None:
        raise DpcError.of(
            "DPC064",
            f"no lowering of the layer `{name}` to torch is registered",
            hint=f"write a function (layer, context) -> nn.Module under `@dpcdsl_torch.lowering.register({name})`",
        )
    module = function(layer, context)
    if not isinstance(module, nn.Module):
        raise DpcError.of(
            "DPC064",
            f"the lowering of `{name}` returned {type(module).__name__}, not a torch module",
            hint="return an nn.Module that is called with a map [N, C, H, W]",
        )
    return module


def layer_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Under which name each layer of an operator is kept, and so the middle of its ``state_dict`` keys.

    It is the layer's ``name`` where it has one, or else its class in snake case (``GridPool`` is ``grid_pool``).
    A name that comes again is numbered: ``conv``, ``conv_2``.
    """
    names: list[str] = []
    for layer in layers:
        stem = getattr(layer, "name", None) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}_{count}"
        names.append(name)
    return tuple(names)


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with the two habits of TensorFlow's that a cell depends on.

    - Batch statistics are used, and the running ones updated, only in training *and* with ``fine_tune``. Scale and
      shift (``weight`` and ``bias``) are trainable either way.
    - One value a channel is legal in training (batch 1 and a map pooled to 1x1, which PyTorch refuses): its mean is
      itself, so the result is ``bias``. The running variance then takes up 0, as in TensorFlow's fused kernel, which
      divides by max(n - 1, 1). No value at all (batch 0) leaves the running statistics alone.

    With more values it is PyTorch's: the biased variance normalises, the unbiased one is remembered.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, momentum: float, epsilon: float, fine_tune: bool) -> None:
        super().__init__(channels, eps=epsilon, momentum=momentum)
        self.fine_tune = fine_tune

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.fine_tune):
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        if input.shape[0] * input.shape[2] * input.shape[3] > 1:
            return super().forward(input)
        return self._forward_without_spread(input)

    def _forward_without_spread(self, input: Tensor) -> Tensor:
        if input.shape[0]:
            assert self.momentum is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(input.flatten().to(self.running_mean.dtype), self.momentum)
                self.running_var.mul_(1 - self.momentum)
        # Minus its own mean: 0, but connected, so that the input and the scale have a gradient (of 0).
        centred = (input - input) * self.weight[:, None, None] + self.bias[:, None, None]
        return centred.to(input.dtype)
