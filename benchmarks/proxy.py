"""The proxy task: what a step costs beside others, and how random crops and cached features go together."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from compiler_peers import COMPILE, OURS, forget, in_turns, two_threads
from segmentation import steps
from torch import Tensor

import dpcdsl
from dpcdsl.segmentation import proxy_task as proxying
from dpcdsl.segmentation.cache import FeatureCache, Views
from dpcdsl.segmentation.caching import build_cache
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, read_checkpoint, write_checkpoint
from dpcdsl.segmentation.datasets import DataSet, Example, open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import evaluate
from dpcdsl.segmentation.labels import CITYSCAPES
from dpcdsl.segmentation.prediction import Predictor
from dpcdsl.segmentation.processes import Processes
from dpcdsl.segmentation.proxy_task import ProxySettings, proxy, proxy_many
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.training import TrainingSettings, _Chunks, _Trainer, train
from dpcdsl.segmentation.transforms import Preprocessing

CPU = torch.device("cpu")


class Noise:
    """Images that show nothing, of Cityscapes' classes."""

    labels = CITYSCAPES

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self.side, self.side), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 19, (self.side, self.side), generator=generator, dtype=torch.uint8)
        return Example(f"{index}", image, labels)

    def __repr__(self) -> str:
        return f"noise {self.count} {self.side}"


@contextmanager
def noise(side: int) -> Iterator[tuple[FeatureCache, ModelDescription]]:
    """Features of MobileNet-v2 at a crop, kept, and the model of top-1 on it."""
    with tempfile.TemporaryDirectory() as name:
        crop = (side, side)
        described = ModelDescription.of(
            dpcdsl.read_cell("top1"), "top1", "mobilenet-v2", CITYSCAPES, crop, preprocessing=Preprocessing()
        )
        weights = Path(name) / FILE
        write_checkpoint(weights, Checkpoint(described, described.model().state_dict()))
        yield build_cache(Noise(8, side), described, Path(name) / "cache", weights=weights), described


def costs() -> list[list[str]]:
    """A step of the proxy, with the reading of its features, beside what it stands for and beside what others take."""
    with two_threads():
        rows = [_beside_training(), _beside_peers(), *_several()]
    forget()
    return [["what", "time", "beside", "time", "ratio", "bar"], *rows]


def _proxy_step(cache: FeatureCache) -> Any:
    settings = ProxySettings(steps=10**6, batch=2, rate=1e-6)
    candidate = proxying._Candidate(0, "top1", cache, settings, CPU)
    batches = proxying._batches(cache, settings, CPU)
    count = 0

    def run() -> None:
        nonlocal count
        candidate.learn(count, *next(batches))
        count += 1

    return run


def _beside_training() -> list[str]:
    with noise(513) as (cache, described):
        settings = TrainingSettings(steps=10**6, batch=2, rate=1e-6)
        processes = Processes(1, 0, CPU)
        trainer, chunks = _Trainer(described, settings, processes), _Chunks(settings, processes)
        trainer.model.train()
        data = Noise(2, 513)
        batch = (
            torch.stack([Preprocessing()(data[index].image) for index in range(2)]),
            torch.stack([data[index].labels for index in range(2)]),
        )

        def whole() -> Tensor:
            return trainer.step(0, iter([batch]), chunks)

        taken = in_turns({"proxy": _proxy_step(cache), "training": whole}, rounds=3)
    return [
        "a step of the proxy: MobileNet-v2, top-1, crop 513, N = 2",
        f"{1000 * taken['proxy']:.0f} ms",
        "of training, images given",
        f"{1000 * taken['training']:.0f} ms",
        f"{taken['training'] / taken['proxy']:.1f} times",
        "≥ 5 times",
    ]


def _beside_peers() -> list[str]:
    with noise(769) as (cache, _):
        entries = {name: run for name, run in steps().items() if name != OURS}
        taken = in_turns({**entries, "proxy": _proxy_step(cache)})
    best = min(entries, key=lambda name: taken[name])
    return [
        "a step of the proxy: 320 ch, top-1, crop 769, N = 2",
        f"{1000 * taken['proxy']:.0f} ms",
        f"the best of eager and {COMPILE}, features given",
        f"{1000 * taken[best]:.0f} ms",
        f"{taken['proxy'] / taken[best]:.2f}",
        "≤ 0.33",
    ]


#: As in `make demo`.
DEMO = ProxySettings(steps=400, batch=8, rate=0.05, evaluate_every=100)
CROP = (193, 385)


def _several() -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        described = ModelDescription.of(None, "", "test_resnet", STREET, CROP, preprocessing=Preprocessing())
        write_checkpoint(folder / FILE, Checkpoint(described, described.model().state_dict()))
        caches = [
            build_cache(
                SyntheticSet(count, split, CROP), described, folder / split, weights=folder, split=split, views=v
            )
            for count, split, v in ((100, "train", Views(count=2)), (40, "val", None))
        ]
        took = time.perf_counter()
        proxy("top1", *caches, DEMO)
        took = time.perf_counter() - took
        yield ["a proxy evaluation as in `make demo`", f"{took:.0f} s", "", "", "", "≤ 60 s"]
        short = DEMO.model_copy(update={"steps": 60, "evaluate_every": 60})
        cells = ["top1", "aspp", "top1", "aspp"]
        alone, together = [], []
        for _ in range(3):
            began = time.perf_counter()
            for cell in cells:
                proxy(cell, *caches, short)
            alone.append(time.perf_counter() - began)
            began = time.perf_counter()
            proxy_many(cells, *caches, short)
            together.append(time.perf_counter() - began)
        one, other = statistics.median(together), statistics.median(alone)
        yield [
            "four cells at once, 60 steps",
            f"{one:.1f} s",
            "one after the other",
            f"{other:.1f} s",
            f"{one / other:.2f}",
            "",
        ]


SCENES, UNSEEN, SEED = 300, 64, 0
SCALES = (0.75, 1.0, 1.25, 1.5)
CELLS = ("top1", "aspp")
NORM: dict[str, Any] = {"batch_norm_momentum": 0.1}
TRAINED = ProxySettings(steps=600, batch=8, rate=0.05, evaluate_every=600, seed=SEED)


def views() -> list[list[str]]:
    """Scores of cells on features of whole images, of so many crops an image, and of new crops each step, online."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, count in (("train", SCENES), ("val", UNSEEN)):  # drawn once, as each is seen many times
            for _ in write_synthetic(folder / "data", SyntheticSet(count, split, CROP)):
                pass
        scenes, unseen = open_data(folder / "data", "train"), open_data(folder / "data", "val")
        described = ModelDescription.of(
            dpcdsl.read_cell("top1"), "top1", "test_resnet", STREET, CROP, preprocessing=Preprocessing()
        )
        common: dict[str, Any] = {"batch": 4, "rate": 0.03, **NORM}
        train(scenes, described.of_backbone(), TrainingSettings(steps=140, scales=(1.0,), **common), folder / "first")
        train(
            scenes,
            described,
            TrainingSettings(steps=420, scales=(1.0,), **common),
            folder / "whole",
            weights=folder / "first",
        )
        weights = folder / "whole"
        held_out = build_cache(unseen, described, folder / "val", weights=weights, split="val")
        rows = [["features", "examples", "kept in", *(f"{cell}: mIoU %" for cell in CELLS)]]
        kinds: dict[str, Views | None] = {"whole images": None}
        kinds |= {f"{count} crops an image": Views(count=count, scales=SCALES) for count in (1, 4, 8)}
        for kind, crops in kinds.items():
            cache = build_cache(scenes, described, folder / kind, weights=weights, views=crops)
            size = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
            scores = [proxy(cell, cache, held_out, TRAINED).score for cell in CELLS]
            rows.append([kind, f"{len(cache):,}", f"{size / 1e6:.0f} MB", *map(_percent, scores)])
            print(" | ".join(rows[-1]), flush=True)
        online = [_online(cell, scenes, unseen, held_out, weights, folder / cell) for cell in CELLS]
        rows.append(["new crops each step, online", "", "", *map(_percent, online)])
    return rows


def _online(cell: str, scenes: DataSet, unseen: DataSet, held_out: FeatureCache, weights: Path, out: Path) -> float:
    settings = TrainingSettings(
        steps=TRAINED.steps,
        batch=TRAINED.batch,
        rate=TRAINED.rate,
        scales=SCALES,
        freeze_backbone=True,
        seed=SEED,
        **NORM,
    )
    model = held_out.describe(dpcdsl.read_cell(cell))
    checkpoint = read_checkpoint(train(scenes, model, settings, out, weights=weights))
    return evaluate(Predictor(checkpoint.segmentation_model(), Preprocessing()), unseen, STREET).miou


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"
