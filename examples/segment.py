"""A model trained from nothing on a synthetic street, evaluated, and its predictions as pictures: about three minutes.

Whether a car waits or moves, and a person crosses or waits, is what a signal at the other end of the street says:
further away than the backbone sees, so it is the cell that must find out. Pretrained weights have to be fetched; here
the backbone is first trained, as a classifier, on the same scenes.
"""

from __future__ import annotations

import shutil
import time
from argparse import ArgumentParser
from pathlib import Path

import dpcdsl
from dpcdsl.explain import table
from dpcdsl.segmentation import (
    STREET,
    ModelDescription,
    Predictor,
    Preprocessing,
    Progress,
    SyntheticSet,
    TrainingSettings,
    branch_weights,
    evaluate,
    open_data,
    read_checkpoint,
    train,
    write_prediction,
    write_synthetic,
)
from dpcdsl.segmentation.analysis import plot_branch_weights

OUT = Path("demo/street")
CROP = (193, 385)


def described(cell: dpcdsl.Cell | None) -> ModelDescription:
    """A model of a small backbone, or its classifier: everything that the checkpoint will say."""
    return ModelDescription.of(cell, "top1", "test_resnet", STREET, CROP, preprocessing=Preprocessing())


def told(progress: Progress) -> None:
    left = (progress.steps - progress.step) * progress.seconds_per_step
    print(f"  step {progress.step} of {progress.steps}: loss {progress.loss:.3f}, {left:.0f} s left", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=420, help="of training; a third as many of the backbone")
    parser.add_argument("--scenes", type=int, default=300)
    chosen = parser.parse_args()
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)

    print(f"{chosen.scenes} street scenes to train on, and {chosen.scenes // 10} others")
    for split, count in (("train", chosen.scenes), ("val", max(1, chosen.scenes // 10))):
        for _ in write_synthetic(OUT / "data", SyntheticSet(count, split, CROP)):
            pass
    scenes, unseen = open_data(OUT / "data", "train"), open_data(OUT / "data", "val")

    settings = {"batch": 4, "rate": 0.03, "scales": (1.0,), "batch_norm_momentum": 0.1}
    print("\nThe backbone, as a classifier of what is in a scene")
    steps = max(1, chosen.steps // 3)
    train(scenes, described(None), TrainingSettings(steps=steps, **settings), OUT / "backbone", report=told)
    print("\nThe model: backbone, top1, and its projection")
    top1 = dpcdsl.read_cell("top1")
    train(
        scenes,
        described(top1),
        TrainingSettings(steps=chosen.steps, **settings),
        OUT / "top1",
        weights=OUT / "backbone",
        report=told,
    )

    checkpoint = read_checkpoint(OUT / "top1")
    model = checkpoint.segmentation_model()
    predictor = Predictor(model, checkpoint.description.preprocessing)
    result = evaluate(predictor, unseen, checkpoint.description.labels)
    print(f"\nOn {len(unseen)} scenes that it has not seen:\n")
    rows = [["class", "IoU %"]]
    rows += [[name, f"{100 * iou:.1f}"] for name, iou in zip(result.classes, result.iou.tolist(), strict=True)]
    print(table([*rows, ["mean", f"{100 * result.miou:.1f}"]], right=(1,)))

    plot_branch_weights(branch_weights(model), OUT / "branches.png", "top1: what each branch contributes")
    for files in unseen.files[:4]:
        write_prediction(predictor, files.image, OUT, STREET)
    print("\n" + "\n".join(str(path) for path in sorted(OUT.glob("*.png"))))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
