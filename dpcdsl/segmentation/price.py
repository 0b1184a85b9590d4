"""What a whole model costs: parameters and multiply-adds of its convolutions, from shapes alone.

Shapes come from a pass on the meta device, which has no numbers and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Size
from dpcdsl.segmentation.model import SegmentationModel

__all__ = ["ModelCost", "ModelPart", "model_cost"]


@dataclass(frozen=True)
class ModelPart:
    """params: weights and biases of the part's convolutions. madds: multiplications and additions, as one, an image."""

    name: str
    params: int
    madds: int


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model by part, and the map (height, width) that its cell has."""

    parts: tuple[ModelPart, ...]
    features: Size

    @property
    def params(self) -> int:
        return sum(part.params for part in self.parts)

    @property
    def madds(self) -> int:
        return sum(part.madds for part in self.parts)


def model_cost(
    cell: Cell | str,
    backbone: str = "mobilenet-v2",
    image: Size = (1025, 2049),
    *,
    classes: int = 19,
    output_stride: int = 16,
    decoder: str | None = None,
) -> ModelCost:
    """Parameters and multiply-adds of the model's convolutions; batch normalisation, resizing and ReLU do not count.

    image: (height, width) in pixels. The other arguments are those of :class:`SegmentationModel`, and what it raises is
    raised here; DPC062 for an image that is too small.
    """
    with torch.device("meta"):
        model = SegmentationModel(
            backbone, cell, classes, output_stride=output_stride, decoder=decoder, eager=True
        ).eval()
        images = torch.empty(1, 3, *image)
    with _counted(model) as counts, torch.no_grad():
        try:
            features = model.backbone(images).high.shape
            model(images)
        except (RuntimeError, DpcError) as error:
            raise DpcError.of(
                "DPC062",
                f"an image of {image[0]}x{image[1]} is no input of this model: {error}",
                hint="images of 16 k + 1 pixels along each axis, such as 513x513 or 1025x2049",
            ) from None
    parts = {"backbone": model.backbone, **dict(model.head.named_children())}
    return ModelCost(
        tuple(
            ModelPart(
                name,
                sum(sum(p.numel() for p in one.parameters(False)) for one in _convolutions(part)),
                sum(madds for path, madds in counts.items() if path.removeprefix("head.").split(".")[0] == name),
            )
            for name, part in parts.items()
        ),
        (features[2], features[3]),
    )


def _convolutions(part: nn.Module) -> Iterator[nn.Module]:
    for module in part.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:
            yield module


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """By module: the multiply-adds of its last call."""
    counts: dict[str, int] = {}
    handles = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:

            def count(module: nn.Module, _: object, result: Tensor, path: str = path) -> None:
                weight = module.weight
                assert isinstance(weight, Tensor)
                counts[path] = result.numel() * prod(weight.shape[1:])

            handles.append(module.register_forward_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
