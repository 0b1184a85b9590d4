"""A task as a differentiable function of torch's own operators: what the passes cannot do goes through here.

That is: a second derivative, and ``torch.func``'s transforms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl_torch.maps import vector_dtype
from dpcdsl_torch.task import Form, Task

__all__ = ["decomposed"]


Statistics: TypeAlias = dict[str, tuple[Tensor, Tensor]]


def decomposed(
    task: Task, x: Tensor, weights: Mapping[str, Tensor], batch: frozenset[str]
) -> tuple[Tensor, Statistics]:
    """The concatenation of the task's branches, and the batch's mean and variance at each convolution of ``batch``.

    weights: as ``task.training_names`` names them.
    batch: the convolutions whose normalisation takes its statistics from the batch.
    """
    statistics: Statistics = {}
    maps = [x]
    for number, form in enumerate(task.branches, 1):
        maps.append(_branch(task, number, form, maps[form.input], weights, batch, statistics))
    return torch.cat(maps[1:], dim=1), statistics


def _branch(
    task: Task,
    number: int,
    form: Form,
    x: Tensor,
    weights: Mapping[str, Tensor],
    batch: frozenset[str],
    statistics: Statistics,
) -> Tensor:
    size = x.shape[2:]
    if form.grid is not None:
        if task.pooling == "paper":
            x = F.adaptive_avg_pool2d(x, form.grid)
        else:
            window = [task.conventions.sliding_window(axis, form.grid[axis], size[axis]) for axis in (0, 1)]
            x = F.avg_pool2d(x, window, stride=1)
    if form.has_depthwise:
        assert form.kernel is not None
        assert form.rate is not None
        key = f"{number}.depthwise"
        weight = weights[key].to(x.dtype).t().reshape(form.in_channels, 1, *form.kernel)
        padding = (max(form.dy), max(form.dx))
        if (-min(form.dy), -min(form.dx)) != padding:  # an even kernel
            x, padding = F.pad(x, (-min(form.dx), max(form.dx), -min(form.dy), max(form.dy))), (0, 0)
        x = F.conv2d(x, weight, padding=padding, dilation=form.rate, groups=form.in_channels)
        x = _normalised(task, x, key, form.depthwise_norm, form.depthwise_relu, weights, batch, statistics)
    key = f"{number}.product"
    x = F.conv2d(x, weights[key].to(x.dtype)[:, :, None, None])
    x = _normalised(task, x, key, form.norm, form.relu, weights, batch, statistics)
    if form.grid is not None:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=task.align_corners)
    return x


def _normalised(
    task: Task,
    x: Tensor,
    key: str,
    norm: bool,
    relu: bool,
    weights: Mapping[str, Tensor],
    batch: frozenset[str],
    statistics: Statistics,
) -> Tensor:
    if norm:
        wide = x.to(vector_dtype(x.dtype))
        if key in batch:
            variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
            statistics[key] = (mean.detach(), variance.detach())
        else:
            mean, variance = weights[f"{key}.mean"], weights[f"{key}.variance"]
        scale = weights[f"{key}.weight"] * torch.rsqrt(variance + task.epsilons[key])
        x = ((wide - mean[:, None, None]) * scale[:, None, None] + weights[f"{key}.bias"][:, None, None]).to(x.dtype)
    return F.relu(x) if relu else x
