"""What context beyond the backbone is worth: heads of equal budget on the synthetic street, and on its control."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import dpcdsl
from dpcdsl.segmentation.checkpoints import read_checkpoint
from dpcdsl.segmentation.datasets import open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import evaluate
from dpcdsl.segmentation.prediction import Predictor
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.training import TrainingSettings, train
from dpcdsl.segmentation.transforms import Preprocessing

BACKBONE, CROP = "test_resnet", (193, 385)
HEADS = {"1x1": "(F, conv1x1, Y1)", "ASPP": "aspp", "top-1": "top1"}
SEEDS = range(3)
SCENES, UNSEEN = 400, 64
#: Of the backbone as a classifier, and then of each head with it.
PRETRAINING, STEPS = 160, 600


def settings(steps: int, seed: int) -> TrainingSettings:
    return TrainingSettings(steps=steps, batch=4, rate=0.03, scales=(1.0,), batch_norm_momentum=0.1, seed=seed)


def described(cell: str | None) -> ModelDescription:
    value = None if cell is None else dpcdsl.read_cell(cell)
    return ModelDescription.of(value, "head", BACKBONE, STREET, CROP, preprocessing=Preprocessing())


def mious(folder: Path, seed: int, shuffled: bool) -> dict[str, float]:
    """Of each head, in percent."""
    data = folder / "data"
    for split, count in (("train", SCENES), ("val", UNSEEN)):
        for _ in write_synthetic(data, SyntheticSet(count, split, CROP, seed, shuffled)):
            pass
    scenes, unseen = open_data(data, "train"), open_data(data, "val")
    train(scenes, described(None), settings(PRETRAINING, seed), folder / "backbone")
    found = {}
    for name, cell in HEADS.items():
        path = train(scenes, described(cell), settings(STEPS, seed), folder / name, weights=folder / "backbone")
        model = read_checkpoint(path).segmentation_model()
        found[name] = 100 * evaluate(Predictor(model, Preprocessing()), unseen, STREET).miou
        print(f"  seed {seed}, {'shuffled' if shuffled else 'far context'}, {name}: {found[name]:.2f}", flush=True)
    return found


def measure() -> list[list[str]]:
    """Mean mIoU of the seeds, in percent, its range, and how far ahead of the 1x1 head."""
    rows = [["scenes", "head", "mIoU %", "seeds", "ahead of 1x1"]]
    for shuffled in (False, True):
        with tempfile.TemporaryDirectory() as name:
            each = [mious(Path(name) / str(seed), seed, shuffled) for seed in SEEDS]
        for head in HEADS:
            values = [one[head] for one in each]
            ahead = statistics.mean(one[head] - one["1x1"] for one in each)
            rows.append(
                [
                    "shuffled (control)" if shuffled else "far context",
                    head,
                    f"{statistics.mean(values):.1f}",
                    ", ".join(f"{value:.1f}" for value in values),
                    "" if head == "1x1" else f"{ahead:+.1f}",
                ]
            )
    return rows
