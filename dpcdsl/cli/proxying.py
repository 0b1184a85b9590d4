"""``dpc cache`` and ``dpc proxy``: features kept once, and cells scored on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    problems_of,
    progress,
    proxy_options,
    segmentation,
    stepping,
    tracked,
    usual_crop,
)
from dpcdsl.errors import DpcError
from dpcdsl.explain import table
from dpcdsl.files import write_whole
from dpcdsl.layers import Size

if TYPE_CHECKING:
    from dpcdsl.segmentation.caching import CachePlan


@click.group("cache")
def cache_command() -> None:
    """Keep a frozen backbone's features, on which `dpc proxy` trains cells."""


@cache_command.command("build")
@click.argument("root", metavar="ROOT")
@click.option("-o", "--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", "trains", default="train", show_default=True, metavar="SPLIT", help="Kept as crops.")
@click.option("--held-out", default="val", show_default=True, metavar="SPLIT", help="Kept as whole images.")
@click.option("--backbone", metavar="NAME", default="mobilenet-v2", show_default=True)
@click.option(
    "--weights",
    required=True,
    metavar="FILE|DIR|timm",
    help="Of the backbone: a file, a folder of training, or timm's own.",
)
@click.option("--output-stride", type=click.IntRange(8, 16), default=16, show_default=True, help="16 or 8.")
@click.option("--views", type=int, default=4, show_default=True, help="Random crops of each image.")
@crop_option
@click.option("--scales", type=NUMBERS, metavar="A,B,…", help="Of the crops; 0.5 to 2 by 0.25 by default.")
@click.option("--no-mirror", is_flag=True, help="Do not mirror images.")
@preprocessing_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of the crops.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read images.")
@device_option
@json_option
def build(
    root: str,
    folder: Path,
    trains: str,
    held_out: str,
    backbone: str,
    weights: str,
    output_stride: int,
    views: int,
    crop: Size | None,
    scales: tuple[float, ...] | None,
    no_mirror: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    seed: int,
    dtype: str,
    workers: int,
    device: str,
    as_json: bool,
) -> None:
    """Run a backbone once over the data set in ROOT, and keep its features in DIR/SPLIT.

    An interrupted build goes on with the same command. On several GPUs: torchrun --nproc-per-node N -m dpcdsl.cli
    cache build …. ROOT is as in `dpc data check`.
    """
    with segmentation():
        from dpcdsl.segmentation.cache import Views
        from dpcdsl.segmentation.caching import build_cache
        from dpcdsl.segmentation.datasets import open_data
        from dpcdsl.segmentation.description import ModelDescription

    drawn = Views(count=views, mirror=0.0 if no_mirror else 0.5, seed=seed, **({"scales": scales} if scales else {}))
    splits = {trains: drawn, held_out: None}
    found = {}
    for split, data in [(split, open_data(root, split)) for split in splits]:
        description = ModelDescription.of(
            None,
            "",
            backbone,
            data.labels,
            crop or usual_crop(data.labels),
            output_stride=output_stride,
            preprocessing=preprocessing_of(backbone, weights, mean, std),
        )
        with progress():
            told = _Told(split)
            cache = build_cache(
                data,
                description,
                folder / split,
                weights=weights,
                split=split,
                views=splits[split],
                dtype=dtype,
                device=device,
                workers=workers,
                planned=told.planned,
                report=told.report,
            )
        if told.plan is None:  # the first of torchrun's processes speaks for all
            continue
        size = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
        found[split] = {"folder": str(cache.folder), "examples": len(cache), "bytes": size}
        if not as_json:
            click.echo(f"{cache.folder}: {len(cache):,} examples, {size / 2**20:,.1f} MiB")
    if as_json and found:
        print_json(found)


class _Told:
    """What is said of a build: what it is going to do, and how far it is."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.plan: CachePlan | None = None

    def planned(self, plan: CachePlan) -> None:
        self.plan = plan
        left = f"{plan.done:,} of them are there; " if plan.done else ""
        click.echo(
            f"{self.split}: {plan.examples:,} examples, about {plan.bytes / 2**20:,.1f} MiB; {left}about "
            f"{plan.seconds:,.0f} s",
            err=True,
        )

    def report(self, done: int) -> None:
        from dpcdsl.enumeration import report

        assert self.plan is not None
        report(f"keeping {self.split}", done, self.plan.examples)


@cache_command.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--weights", metavar="FILE|DIR|timm", help="Also that it is of these weights.")
@click.option("--data", "root", metavar="ROOT", help="Also that it is of this data set, by names and sizes of files.")
@json_option
def verify(folder: Path, weights: str | None, root: str | None, as_json: bool) -> None:
    """Read a cache whole, and list what is not as it was written. DIR is one split's, or holds those of several."""
    with segmentation():
        from dpcdsl.segmentation.cache import MANIFEST, read_manifest
        from dpcdsl.segmentation.caching import verify_cache
        from dpcdsl.segmentation.datasets import open_data

    folders = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) or [folder]
    wrong: list[DpcError] = []
    counts = {}
    for one in folders:
        facts = read_manifest(one).facts
        data = open_data(root, facts.split) if root else None
        shards = verify_cache(one, data=data, weights=weights)
        with progress():
            errors = [error for _, found in tracked(shards, facts.shards, f"reading {one.name}", 1) for error in found]
        counts[str(one)] = {"examples": facts.examples, "wrong": len(errors)}
        wrong += errors
        if not as_json:
            for error in errors:
                click.echo(str(error), err=True)
            model = facts.model
            click.echo(
                f"{one}: {facts.examples:,} examples, {model.backbone} at output stride {model.output_stride}, "
                + facts.dtype
                + (f", {len(errors):,} wrong" if errors else ", good")
            )
    if as_json:
        print_json({"caches": counts, "problems": problems_of(wrong)})
    if wrong:
        raise SystemExit(1)


@click.command("proxy")
@click.argument("cells", metavar="CELL...", nargs=-1, required=True, shell_complete=names)
@click.option("--cache", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path))
@proxy_options
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--curve", metavar="FILE", type=click.Path(path_type=Path), help="Write the learning curves, as JSON.")
@device_option
@json_option
def proxy_command(
    cells: tuple[str, ...],
    folder: Path,
    trains: str,
    held_out: str,
    curve: Path | None,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score each CELL by a short training on cached features: its best mIoU on the held-out split.

    Several cells are trained side by side over one pass of the cache, to the same scores as alone.
    """
    with segmentation():
        from dpcdsl.segmentation.cache import FeatureCache
        from dpcdsl.segmentation.proxy_task import ProxySettings, proxy_many

    chosen = ProxySettings(**settings)
    named = [cell_of(reference) for reference in cells]
    cache, other = FeatureCache(folder / trains), FeatureCache(folder / held_out)
    with stepping(chosen.steps) as (started, report):
        started(0)
        results = proxy_many([cell for _, cell in named], cache, other, chosen, device=device, report=report)
    rows = [["cell", "mIoU %", "steps", "ended by", "seconds"]]
    said: list[dict[str, Any]] = []
    for reference, (name, _), result in zip(cells, named, results, strict=True):
        if isinstance(result, DpcError):
            reason = "; ".join(one.message for one in result.diagnostics)
            rows.append([name or reference, "", "", reason, ""])
            said.append({"cell": reference, "error": reason})
            continue
        last = result.curve[-1]
        rows.append(
            [name or reference, f"{100 * result.score:.2f}", f"{last.step:,}", result.stopped, f"{last.seconds:.1f}"]
        )
        said.append({"cell": reference, **result.to_json()})
    if curve is not None:
        write_whole(curve, json.dumps({"settings": chosen.model_dump(mode="json"), "cells": said}, indent=1) + "\n")
    if as_json:
        print_json(said)
    else:
        click.echo(table(rows, right=(1, 2, 4)))
    if any(isinstance(result, DpcError) for result in results):
        raise SystemExit(1)
