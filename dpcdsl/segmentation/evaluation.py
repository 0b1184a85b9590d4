"""How good a model is: intersection over union, class by class, over a data set that is never held in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.segmentation.datasets import DataSet
from dpcdsl.segmentation.labels import IGNORED, LabelSet
from dpcdsl.segmentation.prediction import Predictor

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassConfusionMatrix

__all__ = ["Evaluation", "Pixels", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """classes: their names. confusion: int64 [classes, classes], pixels by label and by prediction, without ignored."""

    classes: tuple[str, ...]
    confusion: Tensor

    @property
    def iou(self) -> Tensor:
        """By class, from 0 to 1; NaN for a class that is neither labelled nor predicted anywhere."""
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        return torch.where(either > 0, both / either, torch.nan)

    @property
    def miou(self) -> float:
        """The mean over the classes that are there, from 0 to 1; NaN if none is."""
        return float(self.iou.nanmean())

    @property
    def pixel_accuracy(self) -> float:
        """From 0 to 1; NaN if every pixel is ignored."""
        return float(self.confusion.diagonal().double().sum() / self.confusion.sum())


class Pixels:
    """Counts them, by label and by prediction. classes: their names."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # takes over a second

        self.classes = classes
        self._matrix: MulticlassConfusionMatrix = MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Both integers, of one shape, of one image or many."""
        self._matrix.update(predicted.flatten().long(), labels.flatten().long())

    def evaluation(self) -> Evaluation:
        """Of all until now."""
        return Evaluation(self.classes, self._matrix.compute().long())


def evaluate(
    predictor: Predictor,
    data: DataSet,
    labels: LabelSet,
    report: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """labels: the model's; the data set's must be the same by name and order. report: is told how many are done.

    Raises :class:`DpcError` (DPC092) for a data set with other classes, and what reading it raises.
    """
    if data.labels.names != labels.names:
        raise DpcError.of(
            "DPC092",
            f"the model knows {labels.count} classes ({_some(labels)}), and the data set has {data.labels.count} "
            f"({_some(data.labels)})",
            hint="evaluate it on the data set that it was trained on",
        )
    pixels = Pixels(labels.names)
    for index in range(len(data)):
        example = data[index]
        pixels.add(predictor(example.image), example.labels)
        report(index + 1)
    return pixels.evaluation()


def _some(labels: LabelSet) -> str:
    return ", ".join(labels.names[:3]) + (", …" if labels.count > 3 else "")
