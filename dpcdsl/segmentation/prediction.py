"""From an image of any size to its label map, at one scale or several, without logits of the image's size.

An image is padded to 16 k + 1 pixels along each axis. Logits are kept as the model gives them; they are resized to the
image, and their largest is taken, one band of rows after the other: a pixel's value does not depend on the bands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.layers import Size
from dpcdsl.segmentation.transforms import Preprocessing, enclosing

__all__ = ["EVALUATION_SCALES", "Predictor", "label_map", "upsampled_rows"]

#: The paper's for several scales (its Cityscapes test set: 0.75 to 2).
EVALUATION_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

_BAND = 64  # rows at a time


@dataclass(frozen=True)
class Predictor:
    """A model that is asked for label maps.

    model: a :class:`SegmentationModel` in evaluation mode. scales, flip: the softmax is averaged over the image at each
    scale and, with ``flip``, mirrored, too. band: rows at a time. precision: "bf16" runs the model in bfloat16 where
    autocast does.
    """

    model: Any
    preprocessing: Preprocessing
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    band: int = _BAND
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise DpcError.of("DPC062", f"scales are numbers above 0 and at most 16, not {self.scales}")
        if self.precision not in ("fp32", "bf16"):
            raise DpcError.of("DPC062", f"precision is fp32 or bf16, not {self.precision}")
        if self.band < 1:
            raise DpcError.of("DPC062", f"a band has one row or more, not {self.band}")

    def __call__(self, image: Tensor) -> Tensor:
        """image: uint8 [3, H, W]. Returns uint8 [H, W], train ids, on the CPU."""
        device = next(self.model.parameters()).device
        height, width = image.shape[1:]
        size = enclosing((height, width))
        # The padding is the mean pixel, which is 0 once it is preprocessed.
        pixels = F.pad(self.preprocessing(image), (0, size[1] - width, 0, size[0] - height)).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            views = [view for scale in self.scales for view in self._logits(pixels, scale)]
        return label_map(views, size, self.band)[:height, :width]

    def _logits(self, pixels: Tensor, scale: float) -> Iterator[Tensor]:
        """Of preprocessed pixels [3, H, W], scaled with aligned corners: fp32 [classes, h, w] that cover them whole."""
        size = [16 * max(1, round((side - 1) * scale / 16)) + 1 for side in pixels.shape[1:]]
        images = pixels[None]
        if scale != 1:
            images = F.interpolate(images, size, mode="bilinear", align_corners=True)
        yield self.model(images)[0].float()
        if self.flip:
            yield self.model(images.flip(3))[0].float().flip(2)


def label_map(views: Sequence[Tensor], size: Size, band: int = _BAND) -> Tensor:
    """views: logits, fp32 [classes, h, w] each, of one image. Returns uint8 [*size], train ids, on the CPU.

    They are resized to ``size``, and their softmax is averaged. band: rows at a time, which changes nothing.
    """
    labels = torch.empty(size, dtype=torch.uint8)
    for start in range(0, size[0], band):
        stop = min(size[0], start + band)
        # Logits that are not averaged have their largest where their softmax has it.
        bands = [upsampled_rows(logits, size, start, stop) for logits in views]
        if len(bands) > 1:
            bands = [sum((_softmax(one) for one in bands[1:]), _softmax(bands[0]))]
        labels[start:stop] = bands[0].argmax(0).to(torch.uint8).cpu()
    return labels


def upsampled_rows(logits: Tensor, size: Size, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of [classes, h, w], resized bilinearly to ``size`` with aligned corners.

    The same numbers whatever the rows are asked for with.
    """
    rows, columns = (_places(have, want, logits.device) for have, want in zip(logits.shape[1:], size, strict=True))
    low, high, share = (part[start:stop] for part in rows)
    above, below = logits[:, low], logits[:, high]
    band = above + (below - above) * share[:, None]
    low, high, share = columns
    left, right = band[..., low], band[..., high]
    return left + (right - left) * share


def _softmax(logits: Tensor) -> Tensor:
    """Over the classes, one after the other: torch's own rounds a pixel as the number of its neighbours has it."""
    powers = (logits - logits.amax(0)).exp()
    return powers / sum(powers[1:], powers[0])


def _places(have: int, want: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Between which two of ``have`` positions each of ``want`` lies, and how far on the way to the second."""
    step = (have - 1) / (want - 1) if want > 1 else 0.0
    at = torch.arange(want, dtype=torch.float64, device=device) * step
    low = at.long().clamp(max=have - 1)
    return low, (low + 1).clamp(max=have - 1), (at - low).float()
