"""``dpc eval``, ``dpc predict`` and ``dpc analyze``: what a trained model is worth, gives, and is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpcdsl.cli.common import NUMBERS, device_option, json_option, print_json, progress, segmentation, tracked
from dpcdsl.errors import DpcError
from dpcdsl.explain import table

if TYPE_CHECKING:
    from dpcdsl.segmentation.checkpoints import Checkpoint
    from dpcdsl.segmentation.prediction import Predictor

F = TypeVar("F", bound=Callable[..., Any])

_checkpoint_argument = click.argument("checkpoint", metavar="CHECKPOINT")


def _prediction_options(command: F) -> F:
    for option in reversed(
        [
            click.option("--scales", type=NUMBERS, default="1", show_default=True, metavar="A,B,…"),
            click.option("--flip", is_flag=True, help="Average over the mirrored image, too."),
            click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True),
            device_option,
        ]
    ):
        command = option(command)
    return command


def _opened(checkpoint: str, scales: tuple[float, ...], flip: bool, precision: str, device: str) -> Any:
    with segmentation():
        from dpcdsl.segmentation.checkpoints import read_checkpoint
        from dpcdsl.segmentation.prediction import Predictor
        from dpcdsl.segmentation.processes import device_of

    found: Checkpoint = read_checkpoint(checkpoint)
    model = found.segmentation_model().to(device_of(device))
    predictor: Predictor = Predictor(model, found.description.preprocessing, scales, flip, precision=precision)
    return found, predictor


@click.command("eval")
@_checkpoint_argument
@click.option("--data", "root", required=True, metavar="ROOT", help="The data set's folder; see `dpc data check -h`.")
@click.option("--split", default="val", show_default=True)
@_prediction_options
@json_option
def eval_command(checkpoint: str, root: str, split: str, as_json: bool, **options: Any) -> None:
    """Intersection over union, by class and on average, of a trained model on a data set.

    CHECKPOINT is the file that `dpc train` wrote, or its folder. Several scales: --scales 0.5,0.75,1,1.25,1.5,1.75
    --flip, as the paper has them.
    """
    found, predictor = _opened(checkpoint, **options)
    from dpcdsl.enumeration import report
    from dpcdsl.segmentation.datasets import open_data
    from dpcdsl.segmentation.evaluation import evaluate

    data = open_data(root, split)
    with progress():
        result = evaluate(predictor, data, found.description.labels, lambda done: report("evaluating", done, len(data)))
    ious = result.iou.tolist()
    if as_json:
        by_class = {name: None if math.isnan(iou) else iou for name, iou in zip(result.classes, ious, strict=True)}
        print_json(
            {
                "miou": None if math.isnan(result.miou) else result.miou,
                "pixel_accuracy": None if math.isnan(result.pixel_accuracy) else result.pixel_accuracy,
                "iou": by_class,
                "images": len(data),
                "step": found.step,
            }
        )
        return
    rows = [["class", "IoU %"]]
    rows += [[name, _percent(iou)] for name, iou in zip((*result.classes, "mean"), (*ious, result.miou), strict=True)]
    click.echo(table(rows, right=(1,)))
    accuracy = f"{_percent(result.pixel_accuracy)} %" if result.confusion.any() else "no pixel is labelled: none"
    click.echo(f"\n{accuracy} of the pixels right, {len(data):,} images, {found.step:,} steps")


def _percent(share: float) -> str:
    return "not there" if math.isnan(share) else f"{100 * share:.2f}"


@click.command("predict")
@_checkpoint_argument
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--no-overlay", is_flag=True, help="Label maps alone.")
@_prediction_options
def predict_command(checkpoint: str, images: tuple[Path, ...], folder: Path, no_overlay: bool, **options: Any) -> None:
    """Label maps of images, and the images under the classes' colours with a legend.

    An IMAGE is a PNG or a JPEG, or a folder of them. DIR/NAME.png is the label map as the data set's server wants it:
    Cityscapes' label ids, or PASCAL's palette; DIR/NAME_overlay.png is for people.
    """
    found, predictor = _opened(checkpoint, **options)
    from dpcdsl.segmentation.pictures import write_prediction

    paths = [path for given in images for path in _images_of(given)]
    targets = [folder / f"{path.stem}{end}" for path in paths for end in _ends(no_overlay)]
    _check_targets(paths, targets)
    folder.mkdir(parents=True, exist_ok=True)
    with progress():
        for path in tracked(paths, len(paths), "predicting", every=1):
            write_prediction(predictor, path, folder, found.description.labels, with_overlay=not no_overlay)
    click.echo(f"{len(targets):,} files in {folder}")


def _ends(no_overlay: bool) -> tuple[str, ...]:
    return (".png",) if no_overlay else (".png", "_overlay.png")


def _images_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise DpcError.of("DPC094", "there is no PNG or JPEG in the folder", place=str(path))
    return found


def _check_targets(paths: list[Path], targets: list[Path]) -> None:
    """Nothing is written over an image that is read, or over another result."""
    read = {path.resolve() for path in paths}
    written: set[Path] = set()
    for target in targets:
        if target.resolve() in read:
            reason, hint = f"{target} is one of the images", "write into another folder"
        elif target in written:
            reason, hint = f"two results would be {target.name}", "predict images of the same name one at a time"
        else:
            written.add(target)
            continue
        raise DpcError.of("DPC060", reason, hint=hint)


@click.command("analyze")
@_checkpoint_argument
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="A plot: .png, .svg or .pdf.")
@json_option
def analyze_command(checkpoint: str, output: Path | None, as_json: bool) -> None:
    """What each branch of a trained cell contributes: the L1 norm of the projection's weights that read it."""
    with segmentation():
        from dpcdsl.segmentation.analysis import branch_weights, plot_branch_weights
        from dpcdsl.segmentation.checkpoints import read_checkpoint

    found = read_checkpoint(checkpoint)
    weights = branch_weights(found.segmentation_model())
    if output is not None:
        plot_branch_weights(weights, output, f"{found.description.name} after {found.step:,} steps")
    if as_json:
        print_json({"step": found.step, "branches": [vars(one) for one in weights]})
        return
    rows = [["branch", "operator", "L1 norm", "mean |w|", "share"]]
    rows += [[w.name, w.operator, f"{w.norm:,.1f}", f"{w.mean:.5f}", f"{100 * w.share:.1f} %"] for w in weights]
    click.echo(table(rows, right=(2, 3, 4)))
