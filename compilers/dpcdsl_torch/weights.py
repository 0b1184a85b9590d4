"""From a module's parameters to the tensors that a plan runs with, by torch operators alone: they can be traced.

A task's weights have names: ``I.depthwise`` and ``I.product`` for branch I (from 1), ``0.product`` for the projection,
each followed by what belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dpcdsl_torch.maps import primitives_for, vector_dtype
from dpcdsl_torch.task import NORM, Task

__all__ = ["prepare"]


def prepare(task: Task, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Batch normalisation folded into weights and shifts, and weights laid out as the kernels read them.

    weights: as ``task.training_names`` names them. dtype: of the maps.
    """
    primitives = primitives_for(task, device, dtype)
    vectors = vector_dtype(dtype)
    ready: dict[str, Tensor] = {}
    for convolution, norm in task.convolutions:
        weight = weights[convolution].to(vectors)
        depthwise = convolution.endswith("depthwise")
        number = int(convolution.split(".")[0])
        if norm:
            gamma, beta, mean, variance = (weights[f"{convolution}.{part}"].to(vectors) for part in NORM)
            scale = gamma * torch.rsqrt(variance + task.epsilons[convolution])
            shift = beta - mean * scale
        else:
            scale = torch.ones(weight.shape[1 if depthwise else 0], dtype=vectors, device=weight.device)
            shift = torch.zeros_like(scale)
        if task.does("batch_norm"):
            weight = weight * (scale if depthwise else scale[:, None])
        else:
            ready[f"{convolution}.scale"] = scale
        ready[f"{convolution}.shift"] = shift
        # Pooled maps are kept in fp32 whatever the map is: they are small, and everything is added up from them.
        pooled = number > 0 and task.branches[number - 1].grid is not None
        if depthwise:
            ready[convolution] = weight.contiguous()
        elif number == 0 and task.splits:
            for branch, form in enumerate(task.branches, 1):
                small = form.grid is not None and task.does("early_projection")
                part = weight[:, task.channels(branch)]
                ready[f"{branch}.projection"] = primitives.prepare(part, vectors if small else dtype)
        else:
            ready[convolution] = primitives.prepare(weight, vectors if pooled else dtype)
    return {name: ready[name] for name in task.evaluation_names}
