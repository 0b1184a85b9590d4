"""``dpc data``: data sets looked through, and the synthetic one written."""

from __future__ import annotations

from pathlib import Path

import click

from dpcdsl.cli.common import SIZE, json_option, print_json, problems_of, progress, segmentation, tracked
from dpcdsl.errors import DpcError
from dpcdsl.layers import Size


@click.group("data")
def data_command() -> None:
    """Look through a data set, or draw a synthetic one."""


@data_command.command("check")
@click.argument("root", metavar="ROOT")
@click.option("--split", "splits", multiple=True, help="May be repeated; all that are there by default.")
@json_option
def check(root: str, splits: tuple[str, ...], as_json: bool) -> None:
    """Read every image and label map of a data set, and list what is wrong.

    ROOT is the folder of Cityscapes, PASCAL VOC 2012 or PASCAL-Person-Part, or one with images/SPLIT, labels/SPLIT and
    classes.txt; the layout is found by what is there. To name it: cityscapes:ROOT, cityscapes-coarse:ROOT, voc:ROOT,
    person-part:ROOT, folder:ROOT.
    """
    with segmentation():
        from dpcdsl.segmentation.datasets import check_data, count_data, splits_of

    title, found = splits_of(root)
    wrong: list[DpcError] = []
    counts = {}
    for split in splits or found:
        total, errors = 0, list[DpcError]()
        try:
            total = count_data(root, split)
            with progress():
                checked = tracked(check_data(root, split), total, f"checking {split}", 8)
                errors = [error for _, error in checked if error]
        except DpcError as whole:  # of the split
            errors = [whole]
        counts[split] = {"examples": total, "wrong": len(errors)}
        wrong += errors
        if not as_json:
            for error in errors:
                click.echo(str(error), err=True)
            bad = f", {len(errors):,} wrong" if errors else ", good"
            click.echo(f"{title}, {split}: {total:,} example{'s' * (total != 1)}{bad}")
    if as_json:
        print_json({"dataset": title, "splits": counts, "problems": problems_of(wrong)})
    if wrong:
        raise SystemExit(1)


@data_command.command("synthetic")
@click.argument("root", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--split", default="train", show_default=True, type=click.Choice(["train", "val", "test"]))
@click.option("-n", "--count", type=int, default=256, show_default=True, help="How many scenes.")
@click.option("--size", type=SIZE, metavar="HxW", default="193x385", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--shuffled", is_flag=True, help="The signal says nothing: the control.")
def synthetic(root: Path, split: str, count: int, size: Size, seed: int, shuffled: bool) -> None:
    """Draw street scenes into DIR, some classes of which can be told only by what is far away."""
    with segmentation():
        from dpcdsl.segmentation.synthetic import SyntheticSet, write_synthetic

    scenes = SyntheticSet(count, split, size, seed, shuffled)
    with progress():
        for _ in tracked(write_synthetic(root, scenes), count, "drawing", 8):
            pass
    click.echo(f"{count:,} scenes of {size[0]}x{size[1]} in {root}, split {split}")
