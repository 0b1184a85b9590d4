"""Making a cache of features: the frozen backbone sees every example once, and what it makes of it is kept.

Examples are numbered view by view: of n images, example v n + i is view v of image i. Each is computed alone, so that
it does not depend on the others, on how many are read beside it, or on where an interrupted build goes on.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpcdsl.errors import DpcError, shown
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.cache import (
    DTYPES,
    MANIFEST,
    CacheFacts,
    FeatureCache,
    Manifest,
    Shard,
    Views,
    digest_of,
    read_manifest,
    shard_path,
    unusable,
    write_manifest,
    write_shard,
)
from dpcdsl.segmentation.checkpoints import begin_with
from dpcdsl.segmentation.datasets import DataSet, FileSet
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.loading import seed_of
from dpcdsl.segmentation.processes import Processes
from dpcdsl.segmentation.transforms import Augmentation, enclosing, padded

__all__ = ["CachePlan", "build_cache", "data_digest", "verify_cache", "weights_digest"]

_VIEW = 3  # beside the streams of loading.py


@dataclass(frozen=True)
class CachePlan:
    """What a build is going to do: ``examples``, of which ``done`` are there.

    bytes: of all; seconds: of the rest: estimates, from one example.
    """

    examples: int
    done: int
    bytes: int
    seconds: float


def build_cache(
    data: DataSet,
    description: ModelDescription,
    folder: Path,
    *,
    weights: Path | str,
    split: str = "train",
    views: Views | None = None,
    dtype: str = "bf16",
    device: str = "cpu",
    workers: int = 0,
    shard_bytes: int = 2**27,
    planned: Callable[[CachePlan], None] = lambda _: None,
    report: Callable[[int], None] = lambda _: None,
) -> FeatureCache:
    """Keeps a backbone's features of a data set in ``folder``, and returns them.

    description: of any model of this backbone, crop, preprocessing and classes; a cell in it is not looked at.
    weights: of the backbone: a file, the folder of a training, or "timm". views: random crops; None keeps each image
    whole, padded to 16 k + 1. dtype: "bf16" or "fp32", of what is kept; it is computed in fp32. workers: processes that
    read images. shard_bytes: of a file, about. planned: is told what will be done before it is; report: how many
    examples are there.

    A build that was interrupted, however it was, goes on where it was. Under torchrun every process calls this; each
    makes its share of the shards. Raises :class:`DpcError`: DPC097 where another cache is in the folder, or another
    build is at work, or there is not enough room; and what reading data and weights raises.
    """
    if dtype not in DTYPES:
        raise DpcError.of("DPC062", f"features are kept as {' or '.join(DTYPES)}, not as {dtype!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with Processes.joined(device) as processes, _alone(folder) if processes.first else nullcontext():
        backbone = Backbone(description.backbone, description.output_stride)
        begin_with(backbone, weights)
        backbone.eval().requires_grad_(False)
        backbone.to(processes.device)
        source = _Viewed(data, description, views)
        first = _timed(backbone, source, dtype)
        if processes.first:
            facts = CacheFacts(
                model=description.of_backbone(),
                weights=weights_digest(backbone),
                split=split,
                images=len(data),
                data=data_digest(data),
                views=views,
                dtype=dtype,
                channels=backbone.channels,
                shard=max(1, shard_bytes // first.bytes),
            )
            facts = _begun(folder, facts)
            for part in folder.glob(".*.part"):  # of a build that was killed while it wrote
                part.unlink()
        processes.wait()
        facts = read_manifest(folder).facts
        missing = [number for number in range(facts.shards) if not _is_whole(folder, facts, number)]
        left = sum(len(facts.examples_of(number)) for number in missing)
        done = facts.examples - left
        if processes.first:
            planned(
                CachePlan(facts.examples, done, facts.examples * first.bytes, left * first.seconds / processes.count)
            )
            room = shutil.disk_usage(folder).free
            if room < left * first.bytes:
                hint = f"make room, keep fewer views{', or --dtype bf16' * (dtype == 'fp32')}"
                need = f"{left * first.bytes / 2**20:,.0f} MiB are needed, and {room / 2**20:,.0f} are free"
                raise unusable(folder, need, hint)
        processes.wait()
        own = missing[processes.index :: processes.count]
        features = _features(backbone, source, DTYPES[facts.dtype], [facts.examples_of(n) for n in own], workers)
        for number in own:
            examples = []
            for _ in facts.examples_of(number):
                examples.append(next(features))
                done += processes.count
                if processes.first:
                    report(min(done, facts.examples))
            write_shard(shard_path(folder, number), facts, number, examples)
        processes.wait()
        if processes.first:
            digests = [Shard(shard_path(folder, number), facts, number).digest for number in range(facts.shards)]
            write_manifest(folder, Manifest(facts=facts, shards=digests))
        processes.wait()
    return FeatureCache(folder)


def verify_cache(
    folder: str | Path, *, data: DataSet | None = None, weights: Path | str | None = None
) -> Iterator[tuple[str, list[DpcError]]]:
    """Every shard of a cache in turn, its examples read and compared with their checksums: its name, and what is wrong.

    data, weights: what it should be of. Raises :class:`DpcError` (DPC097) where it is of something else, or no cache.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    facts = manifest.facts
    if data is not None:
        source = data_digest(data)
        _compare(folder, facts, facts.model_copy(update={"data": source, "images": len(data)}))
    if weights is not None:
        backbone = Backbone(facts.model.backbone, facts.model.output_stride)
        begin_with(backbone, weights)
        _compare(folder, facts, facts.model_copy(update={"weights": weights_digest(backbone)}))
    if manifest.shards is None:
        raise unusable(folder, "it is not whole", "go on with `dpc cache build`, with what it was begun with")
    for number, expected in enumerate(manifest.shards):
        path = shard_path(folder, number)
        try:
            yield path.name, list(Shard(path, facts, number, expected).problems())
        except DpcError as error:
            yield path.name, [error]


def _alone(folder: Path) -> Any:
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise unusable(folder, "another build is at work there", "wait for it, or take another folder") from None


def _begun(folder: Path, facts: CacheFacts) -> CacheFacts:
    """The facts of the cache that is there, which must be these, or of a new one."""
    if (folder / MANIFEST).exists():
        there = read_manifest(folder).facts
        _compare(folder, there, facts.model_copy(update={"shard": there.shard}))
        return there
    if stray := next(folder.glob("*.safetensors"), None):
        raise unusable(folder, f"it has {stray.name}, and no {MANIFEST}", "take an empty folder")
    write_manifest(folder, Manifest(facts=facts))
    return facts


def _compare(folder: Path, there: CacheFacts, wanted: CacheFacts) -> None:
    for name, then, now in _differences("", there.model_dump(mode="json"), wanted.model_dump(mode="json")):
        raise unusable(
            folder,
            f"the cache that is there has other {name}: {shown(then)}, and not {shown(now)}",
            "go on with what it was begun with, or take another folder",
        )


def _differences(name: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then | now:
            yield from _differences(f"{name}.{key}".lstrip("."), then.get(key), now.get(key))
    elif then != now:
        yield name, then, now


def weights_digest(backbone: Backbone) -> str:
    state = sorted(backbone.network.state_dict().items())
    return digest_of(*(value.cpu() for _, value in state))


def data_digest(data: DataSet) -> str:
    """Of the names and sizes of a data set's files, or of how it says what it is."""
    if isinstance(data, FileSet):
        said = str([(one.name, _size(one.image), _size(one.labels)) for one in data.files])
    else:
        said = re.sub(r" at 0x[0-9a-f]+", "", repr(data))
    return digest_of(torch.tensor(list(said.encode()), dtype=torch.uint8))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _is_whole(folder: Path, facts: CacheFacts, number: int) -> bool:
    """Whether a shard is there and nothing is wrong with it; if something is, it will be made again."""
    try:
        return next(Shard(shard_path(folder, number), facts, number).problems(), None) is None
    except DpcError:
        return False


@dataclass(frozen=True)
class _Viewed(Dataset[Any]):
    """What the backbone sees: preprocessed images and their labels, by the number of the example."""

    data: DataSet
    description: ModelDescription
    views: Views | None

    def __getitem__(self, number: int) -> Any:
        """Or the error that reading it raised: an exception could not cross from a worker as it is."""
        try:
            example = self.data[number % len(self.data)]
        except DpcError as error:
            return error
        preprocessing = self.description.preprocessing
        if self.views is None:
            height, width = example.labels.shape
            return padded(preprocessing(example.image), example.labels, enclosing((height, width)))
        views = self.views
        generator = torch.Generator().manual_seed(seed_of(views.seed, _VIEW, number))
        draw = Augmentation(self.description.crop, views.scales, views.mirror, preprocessing)
        return draw(example.image, example.labels, generator)


def _features(
    backbone: Backbone, source: _Viewed, dtype: torch.dtype, numbers: Iterable[range], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [h, w, C] and labels [H, W], on the CPU, of examples by their numbers."""
    device = next(backbone.parameters()).device
    loader: DataLoader[Any] = DataLoader(
        source,
        sampler=[number for some in numbers for number in some],
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for example in loader:
        if isinstance(example, DpcError):
            raise example
        image, labels = example
        with torch.no_grad():
            high = backbone(image[None].to(device, non_blocking=True)).high[0]
        yield high.permute(1, 2, 0).to(dtype).contiguous().cpu(), labels


@dataclass(frozen=True)
class _Timed:
    bytes: int
    seconds: float


def _timed(backbone: Backbone, source: _Viewed, dtype: str) -> _Timed:
    """Of one example: how much it takes to keep it, and how long."""
    for _ in range(2):  # the first call of a network is slower than the others
        began = time.perf_counter()
        features, labels = next(_features(backbone, source, DTYPES[dtype], [range(1)], 0))
        took = time.perf_counter() - began
    return _Timed(features.nbytes + labels.nbytes, took)
