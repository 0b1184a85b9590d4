"""The model around a cell: backbone, cell, projection, decoder, logits (sections 4 and the appendix of the paper)."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.operators import Operator
from dpcdsl.references import read_cell
from dpcdsl.segmentation.backbone import Backbone, freeze_batch_norm, set_momentum
from dpcdsl_torch import EagerCell, compile_cell

__all__ = ["Head", "PresenceClassifier", "SegmentationModel"]

PROJECTION = 256
LOW_CHANNELS, DECODER_FILTERS = 48, 256
BATCH_NORM_MOMENTUM = 3e-4  # a decay of 0.9997


class _OnBackbone(nn.Module):
    """What keeps a backbone as it is in training: its statistics, or all of it."""

    backbone: Backbone
    fine_tunes: bool
    frozen: bool

    def keep(self, frozen: bool, fine_tunes: bool) -> None:
        """frozen: nothing of the backbone is trained. fine_tunes: batch statistics are used and followed."""
        self.frozen, self.fine_tunes = frozen, fine_tunes and not frozen
        self.backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif not self.fine_tunes:
            freeze_batch_norm(self.backbone)
        return self


class Head(nn.Module):
    """A backbone's features [N, ``channels``, h, w] to logits [N, ``classes``, h, w]: cell, decoder, logits.

    cell: anything that :func:`dpcdsl.read_cell` reads. low_channels: of the features at stride 4, which the call then
    takes as ``low``, for DeepLabv3+'s decoder; None for no decoder. The others are those of
    :class:`SegmentationModel`. Raises :class:`DpcError` as it does.
    """

    def __init__(
        self,
        cell: Cell | str,
        channels: int,
        classes: int,
        *,
        output_stride: int = 16,
        low_channels: int | None = None,
        eager: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if type(classes) is not int or not 1 <= classes <= 2**16:
            raise DpcError.of("DPC062", f"classes must be a whole number from 1 to {2**16}, not {classes!r}")
        value = read_cell(cell) if isinstance(cell, str) else cell
        make = EagerCell if eager else compile_cell
        options = {"projection": PROJECTION, "output_stride": output_stride} | options
        options.setdefault("batch_norm_momentum", BATCH_NORM_MOMENTUM)
        self.classes = classes
        self.cell: Any = make(value, channels, **options)
        norm = {name: options[name] for name in _NORM if name in options}
        found: int = self.cell.out_channels
        self.decoder = None if low_channels is None else _Decoder(low_channels, found, make, norm)
        self.logits = nn.Conv2d(found if low_channels is None else DECODER_FILTERS, classes, 1)
        nn.init.trunc_normal_(self.logits.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, low: Tensor | None = None) -> Tensor:
        found = self.cell(features)
        if self.decoder is not None:
            found = self.decoder(low, found)
        logits: Tensor = self.logits(found)
        return logits


class SegmentationModel(_OnBackbone):
    """Images [N, 3, H, W], scaled to [-1, 1], to logits [N, ``classes``, h, w] at the output stride, or at 4.

    backbone: a :class:`Backbone`, or the name of one. cell: anything that :func:`dpcdsl.read_cell` reads.
    classes: how many, without the ignored one. output_stride: 16 or 8, of a backbone that is given by name; the cell's
        rates are doubled at 8. decoder: ``"deeplabv3+"`` resizes the cell's result to stride 4, joins it with the
        backbone's features there (1x1 to 48), and adds two separable convolutions of 256; None for none.
    eager: the cell as plain PyTorch modules, and not fused. Both have the same ``state_dict``.
    freeze_backbone: nothing of the backbone is trained, as if its features had been kept: the proxy task, online.
    fine_tune_batch_norm: False keeps all running statistics, the backbone's too, and normalises with them in training.
    batch_norm_momentum: of the backbone's, too; the paper's by default.
    options: those of :class:`dpcdsl_torch.EagerCell`; ``projection`` is 256 by default.

    The logits are to be resized to the images' size with aligned corners; in training
    :func:`dpcdsl_torch.upsampled_cross_entropy` does it. Raises :class:`DpcError` as its parts do.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        cell: Cell | str,
        classes: int,
        *,
        output_stride: int = 16,
        decoder: str | None = None,
        eager: bool = False,
        freeze_backbone: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if decoder not in (None, "deeplabv3+"):
            raise DpcError.of("DPC062", f'decoder must be "deeplabv3+" or None, not {decoder!r}')
        self.backbone = Backbone(backbone, output_stride) if isinstance(backbone, str) else backbone
        self.classes = classes
        self.head = Head(
            cell,
            self.backbone.channels,
            classes,
            output_stride=self.backbone.output_stride,
            low_channels=self.backbone.low_channels if decoder else None,
            eager=eager,
            **options,
        )
        set_momentum(self.backbone, options.get("batch_norm_momentum", BATCH_NORM_MOMENTUM))
        self.keep(freeze_backbone, options.get("fine_tune_batch_norm", True))

    def forward(self, images: Tensor) -> Tensor:
        low, high = self.backbone(images)
        logits: Tensor = self.head(high, low)
        return logits


class PresenceClassifier(_OnBackbone):
    """A backbone, the mean of its last map, and a linear layer: images [N, 3, H, W] to logits [N, ``classes``].

    Whether a class is anywhere in the image: what a backbone can be trained on before there is anything better.
    The options are those of :class:`SegmentationModel`.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        classes: int,
        *,
        output_stride: int = 16,
        freeze_backbone: bool = False,
        fine_tune_batch_norm: bool = True,
        batch_norm_momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, output_stride) if isinstance(backbone, str) else backbone
        self.classes = classes
        set_momentum(self.backbone, batch_norm_momentum)
        self.keep(freeze_backbone, fine_tune_batch_norm)
        self.logits = nn.Linear(self.backbone.channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.logits(self.backbone(images).high.mean((2, 3)))
        return found


_NORM = ("batch_norm_momentum", "batch_norm_epsilon", "fine_tune_batch_norm")


class _Decoder(nn.Module):
    """DeepLabv3+'s: cells of one branch each, so that they are fused, or eager, as the cell is."""

    def __init__(self, low_channels: int, channels: int, make: Any, norm: dict[str, Any]) -> None:
        super().__init__()
        reduced = Cell.of((0, Operator.of("conv1x1")), filters=LOW_CHANNELS)
        refined = Cell.of((0, Operator.of("sepconv3x3", rate=(1, 1))), filters=DECODER_FILTERS)
        self.reduce = make(reduced, low_channels, **norm)
        self.refine1 = make(refined, channels + LOW_CHANNELS, **norm)
        self.refine2 = make(refined, DECODER_FILTERS, **norm)

    def forward(self, low: Tensor, found: Tensor) -> Tensor:
        large = F.interpolate(found, low.shape[2:], mode="bilinear", align_corners=True)
        refined: Tensor = self.refine2(self.refine1(torch.cat([large, self.reduce(low)], 1)))
        return refined
