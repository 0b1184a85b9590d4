"""Label maps as servers want them, and as people do: over the image, with a legend (figures 7 to 9 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dpcdsl.segmentation.images import read_image, write_png
from dpcdsl.segmentation.labels import LabelSet, voc_palette

__all__ = ["overlay", "write_labels", "write_prediction"]

_Bytes = npt.NDArray[np.uint8]

_MARGIN, _SWATCH = 8, 14


def write_prediction(
    predictor: Callable[[Tensor], Tensor], image: Path, folder: Path, labels: LabelSet, *, with_overlay: bool = True
) -> None:
    """Of an image NAME.*: NAME.png, the label map, and NAME_overlay.png, in a folder."""
    pixels = read_image(image)
    train_ids = predictor(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).numpy()
    write_labels(folder / f"{image.stem}.png", train_ids, labels)
    if with_overlay:
        write_png(folder / f"{image.stem}_overlay.png", overlay(pixels, train_ids, labels))


def write_labels(path: Path, train_ids: _Bytes, labels: LabelSet) -> None:
    """A label map [H, W] as a PNG: ids of its data set's files, in grey where these are not the train ids (Cityscapes'
    label ids), else with its colours as a palette (PASCAL's).
    """
    ids = labels.file_ids(train_ids)
    palette = () if labels.ids else (*labels.colours, *voc_palette()[labels.count :])
    write_png(path, ids, palette)


def overlay(image: _Bytes, train_ids: _Bytes, labels: LabelSet, opacity: float = 0.6) -> _Bytes:
    """An image [H, W, 3] under its labels' colours, and below it a legend of the classes that are there."""
    colours = labels.coloured(train_ids)
    known = (train_ids < labels.count)[..., None]
    mixed = np.where(known, (1 - opacity) * image + opacity * colours, image)
    return np.concatenate([mixed.astype(np.uint8), _legend(image.shape[1], np.unique(train_ids), labels)])


def _legend(width: int, present: _Bytes, labels: LabelSet) -> _Bytes:
    font = ImageFont.load_default(_SWATCH - 2)
    placed, x, y = [], _MARGIN, _MARGIN
    for one in (int(label) for label in present if label < labels.count):
        needs = _SWATCH + 6 + round(font.getlength(labels.names[one])) + 2 * _MARGIN
        if x > _MARGIN and x + needs > width:
            x, y = _MARGIN, y + _SWATCH + _MARGIN
        placed.append((one, x, y))
        x += needs
    legend = Image.new("RGB", (width, y + _SWATCH + _MARGIN), "white")
    pen = ImageDraw.Draw(legend)
    for one, left, top in placed:
        pen.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=labels.colours[one], outline="black")
        pen.text((left + _SWATCH + 6, top + _SWATCH / 2), labels.names[one], fill="black", font=font, anchor="lm")
    return np.asarray(legend)
