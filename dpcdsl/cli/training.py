"""``dpc train``: a model is trained, or a backbone, and what shows how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpcdsl.cli.common import (
    NUMBERS,
    cell_of,
    crop_option,
    device_option,
    json_option,
    names,
    preprocessing_of,
    preprocessing_options,
    print_json,
    segmentation,
    stepping,
    usual_crop,
)
from dpcdsl.layers import Size
from dpcdsl.references import read_space

if TYPE_CHECKING:
    from dpcdsl.cell import Cell
    from dpcdsl.segmentation.description import ModelDescription
    from dpcdsl.segmentation.labels import LabelSet
    from dpcdsl.segmentation.schedule import Progress
    from dpcdsl.segmentation.training import TrainingSettings

F = TypeVar("F", bound=Callable[..., Any])


def training_options(command: F) -> F:
    """How a whole model is trained: its backbone, and the fields of the settings; for :func:`described`."""
    for option in reversed(
        [
            click.option("--backbone", metavar="NAME", default="mobilenet-v2", show_default=True),
            click.option(
                "--weights",
                metavar="FILE|DIR|timm",
                help="Of the backbone: a file, a folder of training, or timm's own.",
            ),
            click.option("--output-stride", type=click.IntRange(8, 16), default=16, show_default=True, help="16 or 8."),
            click.option("--decoder", is_flag=True, help="With DeepLabv3+'s decoder."),
            click.option("--pooling", type=click.Choice(["paper", "sliding"]), default="paper", show_default=True),
            crop_option,
            click.option("--steps", type=int, default=90_000, show_default=True),
            click.option("--batch", type=int, default=16, show_default=True, help="Images a step, over all processes."),
            click.option(
                "--accumulate", type=int, default=1, show_default=True, help="Parts that a step is computed in."
            ),
            click.option("--rate", type=float, default=0.01, show_default=True, help="At the start; it falls to 0."),
            click.option("--power", type=float, default=0.9, show_default=True, help="Of the rate's polynomial decay."),
            click.option("--momentum", type=float, default=0.9, show_default=True),
            click.option("--weight-decay", type=float, default=4e-5, show_default=True),
            click.option(
                "--scales", type=NUMBERS, metavar="A,B,…", help="Of the augmentation; 0.5 to 2 by 0.25 by default."
            ),
            click.option("--no-mirror", is_flag=True, help="Do not mirror images."),
            click.option("--freeze-backbone", is_flag=True, help="Train what is on it alone, as the proxy task does."),
            click.option(
                "--frozen-batch-norm", is_flag=True, help="Keep the running statistics, and normalise with them."
            ),
            click.option(
                "--batch-norm-momentum", type=float, default=3e-4, show_default=True, help="More for short trainings."
            ),
            click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True),
            click.option("--class-weights", type=NUMBERS, metavar="A,B,…", help="Of the loss, one a class."),
            click.option(
                "--hardest", type=float, default=1.0, show_default=True, help="Share of the pixels that counts."
            ),
            preprocessing_options,
            click.option("--save-every", type=click.IntRange(1), default=1000, show_default=True, metavar="STEPS"),
            device_option,
        ]
    ):
        command = option(command)
    return command


def described(
    labels: LabelSet,
    cell: tuple[str, Cell | None] = ("", None),
    *,
    space: str | None = None,
    backbone: str = "mobilenet-v2",
    weights: str | None = None,
    output_stride: int = 16,
    decoder: bool = False,
    pooling: str = "paper",
    crop: Size | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    scales: tuple[float, ...] | None = None,
    no_mirror: bool = False,
    frozen_batch_norm: bool = False,
    **settings: Any,
) -> tuple[ModelDescription, TrainingSettings]:
    """The model, and its training, that options tell of. cell: its name and itself, where there is one."""
    from dpcdsl.segmentation.description import ModelDescription
    from dpcdsl.segmentation.training import TrainingSettings

    name, value = cell
    description = ModelDescription.of(
        value,
        name,
        backbone,
        labels,
        crop or usual_crop(labels),
        space=read_space(space) if space else None,
        output_stride=output_stride,
        decoder="deeplabv3+" if decoder else None,
        pooling=pooling,
        preprocessing=preprocessing_of(backbone, weights, mean, std),
    )
    chosen = TrainingSettings(
        mirror=0.0 if no_mirror else 0.5,
        fine_tune_batch_norm=not frozen_batch_norm,
        **settings,
        **({"scales": scales} if scales else {}),
    )
    return description, chosen


@click.command("train")
@click.argument("cell", metavar="[CELL]", required=False, shell_complete=names)
@click.option("--data", "root", required=True, metavar="ROOT", help="The data set's folder; see `dpc data check -h`.")
@click.option("--split", default="train", show_default=True)
@click.option("-o", "--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in DIR, if there is one.")
@click.option(
    "--head",
    type=click.Choice(["cell", "classifier"]),
    default="cell",
    show_default=True,
    help="A classifier, without a cell, of what is in an image trains a backbone before there is anything better.",
)
@click.option("--space", metavar="SPACE", help="The space the cell is of; the paper's by default, if it has it.")
@training_options
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images.")
@json_option
def train_command(
    cell: str | None,
    root: str,
    split: str,
    folder: Path,
    resume: bool,
    head: str,
    space: str | None,
    decoder: bool,
    weights: str | None,
    device: str,
    workers: int,
    save_every: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model around CELL, into DIR: a checkpoint, and what TensorBoard shows.

    The defaults are the paper's for Cityscapes. A training that was interrupted, however it was, goes on with the same
    command and --resume. On several GPUs: torchrun --nproc-per-node N -m dpcdsl.cli train ….
    """
    if (cell is None) != (head == "classifier"):
        raise click.UsageError("A CELL goes with --head cell, and none with --head classifier.")
    if head == "classifier" and (decoder or space):
        raise click.UsageError("--decoder and --space go with a cell.")
    with segmentation():
        from dpcdsl.segmentation.datasets import open_data
        from dpcdsl.segmentation.training import train

    named = cell_of(cell, space) if cell is not None else ("", None)
    data = open_data(root, split)
    description, chosen = described(data.labels, named, space=space, decoder=decoder, weights=weights, **options)
    begun: list[int] = []
    last: list[float] = []
    with stepping(chosen.steps) as (started, report):

        def begins(start: int) -> None:
            begun.append(start)
            started(start)

        def heard(progress: Progress) -> None:
            last[:] = [progress.loss]
            report(progress)

        path = train(
            data,
            description,
            chosen,
            folder,
            weights=weights,
            resume=resume,
            device=device,
            workers=workers,
            save_every=save_every,
            started=begins,
            report=heard,
        )
    if not begun:  # the first of torchrun's processes speaks for all
        return
    if as_json:
        print_json({"checkpoint": str(path), "steps": chosen.steps, "loss": last[0] if last else None})
    else:
        result = f"loss {last[0]:.4f}" if last else "all done before"
        click.echo(f"{path}: {chosen.steps:,} step{'s' * (chosen.steps != 1)}, {result}")
