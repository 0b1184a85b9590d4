"""From an image and its label map to what a model trains on: the paper's augmentation (section 4, and its code).

Images are scaled by a random factor, padded, cropped, and mirrored half of the time; labels go with them. Sizes of
crops are 16 k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from pydantic import Field
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.layers import Size
from dpcdsl.segmentation.labels import IGNORED
from dpcdsl.values import Value

__all__ = ["SCALES", "Augmentation", "Preprocessing", "enclosing", "padded"]

#: The paper's: 0.5 to 2.0 by 0.25.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)

_Share = Annotated[float, Field(ge=0, le=1)]
_Scale = Annotated[float, Field(gt=0, le=1e3)]


class Preprocessing(Value):
    """From pixels to what a backbone reads: (pixel / 255 - mean) / std, by channel. By default [-1, 1], the paper's."""

    mean: tuple[_Share, _Share, _Share] = (0.5, 0.5, 0.5)
    std: tuple[_Scale, _Scale, _Scale] = (0.5, 0.5, 0.5)

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] to fp32."""
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (image.to(torch.float32) / 255 - mean) / std


_PAPER = Preprocessing()


def enclosing(size: Size) -> Size:
    """The smallest size of 16 k + 1 by 16 k + 1 pixels that has ``size`` in it."""
    height, width = (max(1, -(-(side - 1) // 16) * 16 + 1) for side in size)
    return height, width


def padded(image: Tensor, labels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Down and to the right to at least ``size``: a preprocessed image by its mean pixel, labels by 255."""
    more = max(0, size[0] - image.shape[1]), max(0, size[1] - image.shape[2])
    beside = (0, more[1], 0, more[0])
    return F.pad(image, beside), F.pad(labels, beside, value=IGNORED)


@dataclass(frozen=True)
class Augmentation:
    """Scale, pad, crop, mirror. All that is random comes from the generator of the call.

    crop: (height, width) of the result. scales: one of them is drawn, each as likely. mirror: how often. preprocessing:
    of the image; the padding is its mean.
    Raises :class:`DpcError` (DPC062) for values that cannot be.
    """

    crop: Size
    scales: tuple[float, ...] = SCALES
    mirror: float = 0.5
    preprocessing: Preprocessing = _PAPER

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise DpcError.of("DPC062", f"there is no crop of {self.crop[0]}x{self.crop[1]}")
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise DpcError.of("DPC062", f"scales are numbers above 0 and at most 16, not {self.scales}")
        if not 0 <= self.mirror <= 1:
            raise DpcError.of("DPC062", f"mirror is a probability, not {self.mirror}")

    def __call__(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """image: uint8 [3, H, W]. labels: uint8 [H, W], train ids.

        Returns the image, fp32 [3, *crop], and the labels, uint8 [*crop].
        """
        scale = self.scales[self._below(len(self.scales), generator)]
        if scale != 1:
            # Takes over a second to import, and those that read cached features do without.
            from torchvision.transforms.v2 import InterpolationMode
            from torchvision.transforms.v2.functional import resize

            size = [max(1, round(scale * side)) for side in labels.shape]
            image = resize(image, size, InterpolationMode.BILINEAR, antialias=False)
            labels = resize(labels[None], size, InterpolationMode.NEAREST)[0]
        value, labels = padded(self.preprocessing(image), labels, self.crop)
        top, left = (
            self._below(have - want + 1, generator) for have, want in zip(labels.shape, self.crop, strict=True)
        )
        rows, columns = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        value, labels = value[:, rows, columns], labels[rows, columns]
        if float(torch.rand((), generator=generator)) < self.mirror:
            value, labels = value.flip(2), labels.flip(1)
        return value.contiguous(), labels.contiguous()

    @staticmethod
    def _below(count: int, generator: torch.Generator) -> int:
        return int(torch.randint(count, (), generator=generator))
