"""An eager and a fused module with the same weights, and whether they say the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.operators import Operator
from dpcdsl_torch import EagerCell, compile_cell

OPERATORS = (
    Operator.of("sepconv3x3", rate=(1, 2)),
    Operator.of("avgpool", grid=(2, 2)),
    Operator.of("conv1x1"),
    Operator.of("sepconv3x3", rate=(5, 1)),
)


def enliven(module: nn.Module) -> None:
    """Weights and statistics that show in the result, each of them."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.5)
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
        for weight in part.parameters(recurse=False):
            if weight.dim() == 4:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


def pair(cell: Cell, in_channels: int = 6, **options: Any) -> tuple[Any, Any]:
    """The eager and the fused module with the same weights, in evaluation mode."""
    own = {name: options.pop(name) for name in ("backend", "without") if name in options}
    options = {"dropout": 0.0, "batch_norm_momentum": 0.3, "projection": 4} | options
    eager = EagerCell(cell, in_channels, **options)
    enliven(eager)
    compiled = compile_cell(cell, in_channels, **own, **options)
    compiled.load_state_dict(eager.state_dict())
    return eager.eval(), compiled.eval()


def features(n: int = 2, c: int = 6, h: int = 9, w: int = 7) -> Tensor:
    return torch.randn(n, c, h, w)


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    distance = float((ours.detach().double() - theirs.detach().double()).norm())
    assert distance <= tolerance * float(theirs.detach().double().norm()) + 1e-12


def all_near(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    for one, other in zip(ours, theirs, strict=True):
        near(one, other, tolerance)


def tiny(filters: int = 2) -> Cell:
    return Cell.of(*zip((0, 1, 0, 3), OPERATORS, strict=True), filters=filters)
