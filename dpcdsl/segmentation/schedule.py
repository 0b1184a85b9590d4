"""What every training here shares: how far, how fast, from which seed, and by which loss (section 4 of the paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dpcdsl.errors import DpcError
from dpcdsl.segmentation.labels import IGNORED
from dpcdsl.values import Value
from dpcdsl_torch import upsampled_cross_entropy

__all__ = ["Loss", "Progress", "Schedule"]


class Schedule(Value):
    """Stochastic gradient descent with momentum, at a rate that falls to 0 with ``(1 - step / steps) ** power``.

    batch: examples a step. rate: at the start. weight_decay: of the weights of dense convolutions. precision: "bf16"
    computes in bfloat16 where autocast does. class_weights, hardest: of :func:`dpcdsl_torch.upsampled_cross_entropy`.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    rate: float = Field(0.01, gt=0, lt=1e6)
    power: float = Field(0.9, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(4e-5, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    class_weights: tuple[float, ...] | None = None
    hardest: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)

    def rate_at(self, step: int) -> float:
        """Of the step that comes after ``step`` others."""
        return self.rate * math.pow(1 - step / self.steps, self.power)


@dataclass(frozen=True)
class Progress:
    """After ``step`` of ``steps``: the rate, the mean loss since the last time, and how long a step took."""

    step: int
    steps: int
    loss: float
    rate: float
    seconds_per_step: float


class Loss(nn.Module):
    """Logits [N, ``classes``, h, w] and labels [N, H, W] to the mean cross-entropy of what is not ignored.

    Raises :class:`DpcError` (DPC062) for class weights of another number of classes.
    """

    def __init__(self, settings: Schedule, classes: int, device: torch.device) -> None:
        super().__init__()
        weights = settings.class_weights
        if weights is not None and len(weights) != classes:
            raise DpcError.of("DPC062", f"{len(weights)} class weights for {classes} classes")
        self.class_weights = None if weights is None else torch.tensor(weights, device=device)
        self.hardest = settings.hardest

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return upsampled_cross_entropy(
            logits, labels, class_weights=self.class_weights, ignore_label=IGNORED, hardest=self.hardest
        )
