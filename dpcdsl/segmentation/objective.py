"""What a search maximizes: the proxy task, and the training of whole models that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dpcdsl.cell import Cell
from dpcdsl.isomorphism import canonical
from dpcdsl.segmentation.analysis import branch_weights
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.cache import FeatureCache, digest_of_text
from dpcdsl.segmentation.caching import data_digest, weights_digest
from dpcdsl.segmentation.checkpoints import begin_with, read_checkpoint
from dpcdsl.segmentation.datasets import DataSet
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import evaluate
from dpcdsl.segmentation.prediction import Predictor
from dpcdsl.segmentation.processes import device_of
from dpcdsl.segmentation.proxy_task import ProxySettings, proxy
from dpcdsl.segmentation.stores import at_hand
from dpcdsl.segmentation.training import TrainingSettings, train

if TYPE_CHECKING:
    from dpcdsl.search.objective import Attempt

__all__ = ["ProxyObjective", "TrainingObjective"]


class _Fields:
    """Its fields alone are pickled: what it has read, another process reads for itself."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True)
class ProxyObjective(_Fields):
    """The score of :func:`proxy` on two caches, with the seed of the study; the learning curve is kept as a note.

    train, held_out: folders, or URLs of any store that fsspec knows, of which each machine makes a copy. settings:
    their seed is not looked at. A worker opens the caches when it first evaluates a cell.
    """

    train: str | Path
    held_out: str | Path
    settings: ProxySettings
    device: str = "cpu"

    @cached_property
    def caches(self) -> tuple[FeatureCache, FeatureCache]:
        return FeatureCache(at_hand(self.train)), FeatureCache(at_hand(self.held_out))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The caches by what is in them, wherever they lie."""
        train, held_out = self.caches
        settings = self.settings.model_dump(mode="json", exclude={"seed"})
        return {
            "objective": "proxy",
            "train": train.facts.digest,
            "held_out": held_out.facts.digest,
            "settings": settings,
        }

    def __call__(self, cell: Cell, attempt: Attempt) -> float:
        settings = self.settings.model_copy(update={"seed": attempt.seed})
        result = proxy(cell, *self.caches, settings, device=self.device)
        attempt.note("stopped", result.stopped)
        attempt.note("curve", result.to_json()["curve"])
        return result.score


@dataclass(frozen=True)
class TrainingObjective(_Fields):
    """The mean intersection over union, on ``held_out``, of a whole model that is trained around the cell.

    model: the others of its fields are those of ``description``, whose cell is not looked at. settings: their seed is
    the study's. folder: each cell has one of its own in it, with the checkpoint, from which a training that was cut off
    goes on. weights: of the backbone, as for :func:`train`; None trains it from the start. save_every: steps.

    The checkpoint's path and the L1 norm of each branch's weights are kept as notes.
    """

    train: DataSet
    held_out: DataSet
    description: ModelDescription
    settings: TrainingSettings
    folder: Path
    weights: Path | str | None = None
    device: str = "cpu"
    workers: int = 0
    save_every: int = 1000

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Data and weights by what is in them, wherever they lie."""
        model = self.description.of_backbone().model_dump(mode="json")
        weights = None
        if self.weights is not None:
            backbone = Backbone(self.description.backbone, self.description.output_stride)
            begin_with(backbone, self.weights)
            weights = weights_digest(backbone)
        return {
            "objective": "training",
            "train": data_digest(self.train),
            "held_out": data_digest(self.held_out),
            "model": model | {"decoder": self.description.decoder, "pooling": self.description.pooling},
            "weights": weights,
            "settings": self.settings.model_dump(mode="json", exclude={"seed"}),
        }

    def folder_of(self, cell: Cell, seed: int) -> Path:
        """Of the checkpoint of a cell, whatever the order of its branches."""
        said = f"{canonical(cell)}\n{seed}\n{sorted(self.identity.items())}"
        return self.folder / digest_of_text(said)[:16]

    def __call__(self, cell: Cell, attempt: Attempt) -> float:
        folder = self.folder_of(cell, attempt.seed)
        folder.mkdir(parents=True, exist_ok=True)
        # One that was given up because it was not heard of may be at work yet.
        with FileLock(folder / ".lock"):
            path = train(
                self.train,
                self.description.with_cell(cell),
                self.settings.model_copy(update={"seed": attempt.seed}),
                folder,
                weights=self.weights,
                resume=True,
                device=self.device,
                workers=self.workers,
                save_every=self.save_every,
            )
        checkpoint = read_checkpoint(path)
        model = checkpoint.segmentation_model().to(device_of(self.device))
        attempt.note("checkpoint", str(path))
        attempt.note("branches", [vars(one) for one in branch_weights(model)])
        predictor = Predictor(model, checkpoint.description.preprocessing, precision=self.settings.precision)
        result = evaluate(predictor, self.held_out, checkpoint.description.labels)
        attempt.note("iou", dict(zip(result.classes, result.iou.nan_to_num(-1.0).tolist(), strict=True)))
        return result.miou
