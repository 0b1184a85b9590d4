"""Caches of features: what is kept, what an interruption leaves, and that nothing else than what was kept is served."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Dpc
from torch import Tensor
from torch.nn.functional import pad

from dpcdsl import DpcError
from dpcdsl.segmentation import caching
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.cache import MANIFEST, FeatureCache, Views, digest_of, write_shard
from dpcdsl.segmentation.caching import CachePlan, build_cache, verify_cache
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, read_checkpoint, write_checkpoint
from dpcdsl.segmentation.datasets import DataSet, Example, open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.labels import IGNORED
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.transforms import Augmentation, Preprocessing

CROP = (33, 65)
SCENES = SyntheticSet(5, size=CROP)
DESCRIPTION = ModelDescription.of(None, "", "test_resnet", STREET, CROP, preprocessing=Preprocessing())
VIEWS = Views(count=2, scales=(0.75, 1.25), seed=3)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a backbone, as a training leaves them."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(7)
    write_checkpoint(folder / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    return folder


@pytest.fixture(scope="session")
def backbone(weights: Path) -> Backbone:
    from dpcdsl.segmentation.checkpoints import begin_with

    found = Backbone("test_resnet").eval()
    begin_with(found, weights)
    return found


@pytest.fixture(scope="session")
def built(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache of several shards, the last of which is not full; not to be written to."""
    folder = tmp_path_factory.mktemp("cache")
    build_cache(SCENES, DESCRIPTION, folder, weights=weights, views=VIEWS, shard_bytes=16_000)
    assert len(list(folder.glob("*.safetensors"))) == 4
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def build(folder: Path, weights: Path, data: DataSet = SCENES, **options: Any) -> FeatureCache:
    options = {"views": VIEWS, "shard_bytes": 16_000, "description": DESCRIPTION} | options
    return build_cache(data, options.pop("description"), folder, weights=weights, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def read(folder: Path) -> list[tuple[Tensor, Tensor]]:
    return list(FeatureCache(folder))


# What is kept


@pytest.mark.parametrize(("dtype", "kept"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_view_is_the_backbones_of_an_augmented_image(
    dtype: str, kept: torch.dtype, backbone: Backbone, weights: Path, tmp_path: Path
) -> None:
    cache = build(tmp_path, weights, dtype=dtype)
    assert len(cache) == 10
    draw = Augmentation(CROP, VIEWS.scales, VIEWS.mirror)
    for number, (features, labels) in enumerate(cache):
        example = SCENES[number % 5]
        generator = torch.Generator().manual_seed(caching.seed_of(3, 3, number))
        image, expected = draw(example.image, example.labels, generator)
        with torch.no_grad():
            high = backbone(image[None]).high[0]
        assert torch.equal(features, high.to(kept))
        assert torch.equal(labels, expected)


def test_the_views_of_an_image_differ(built: Path) -> None:
    kept = read(built)
    same = [torch.equal(kept[index][0], kept[5 + index][0]) for index in range(5)]
    assert sum(same) < 3  # one of two scales, mirrored or not: some are drawn twice


class Sized:
    """Images of two sizes, neither of 16 k + 1."""

    labels = STREET

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Example:
        height, width = (40, 70) if index < 2 else (50, 81)
        example = SyntheticSet(3, size=(64, 128))[index]
        return Example(example.name, example.image[:, :height, :width], example.labels[:height, :width])

    def __repr__(self) -> str:
        return "two sizes"


def test_whole_images_are_padded(backbone: Backbone, weights: Path, tmp_path: Path) -> None:
    cache = build(tmp_path, weights, Sized(), views=None, dtype="fp32")
    for number, more in ((0, (9, 11)), (2, (15, 0))):
        (features, labels), example = cache[number], Sized()[number]
        image = pad(Preprocessing()(example.image), (0, more[1], 0, more[0]))
        with torch.no_grad():
            assert torch.equal(features, backbone(image[None]).high[0])
        assert torch.equal(labels, pad(example.labels, (0, more[1], 0, more[0]), value=IGNORED))
    assert cache.batch([0, 1])[0].shape == (2, cache.facts.channels, 4, 6)
    with pytest.raises(DpcError, match=r"whole images of several sizes, which make no batch \[DPC097\]"):
        cache.batch([0, 2])


def test_a_batch_is_its_examples_with_channels_innermost(built: Path) -> None:
    cache = FeatureCache(built)
    features, labels = cache.batch([7, 0, 7])
    assert features.is_contiguous(memory_format=torch.channels_last)
    for place, number in enumerate((7, 0, 7)):
        assert torch.equal(features[place], cache[number].features)
        assert torch.equal(labels[place], cache[number].labels)
    for wrong in (-1, 10):
        with pytest.raises(IndexError):
            cache[wrong]


def test_it_is_told_beforehand(weights: Path, tmp_path: Path) -> None:
    plans: list[CachePlan] = []
    done: list[int] = []

    def planned(plan: CachePlan) -> None:
        assert not list(tmp_path.glob("*.safetensors"))
        plans.append(plan)

    build(tmp_path, weights, planned=planned, report=done.append)
    (plan,) = plans
    assert (plan.examples, plan.done) == (10, 0)
    kept = sum(features.nbytes + labels.nbytes for features, labels in read(tmp_path))
    assert plan.bytes == kept
    assert 0 < plan.seconds < 60
    assert done == list(range(1, 11))
    build(tmp_path, weights, planned=plans.append, report=lambda _: pytest.fail("there is nothing to do"))
    assert (plans[1].done, plans[1].seconds) == (10, 0)


@pytest.mark.parametrize("workers", [2])
def test_workers_and_shards_change_nothing(workers: int, built: Path, weights: Path, tmp_path: Path) -> None:
    build(tmp_path / "a", weights, workers=workers)
    assert contents(tmp_path / "a") == contents(built)
    one = build(tmp_path / "b", weights, shard_bytes=2**27)
    for (features, labels), (others, theirs) in zip(one, FeatureCache(built), strict=True):
        assert torch.equal(features, others)
        assert torch.equal(labels, theirs)


def test_two_processes_share_the_work(built: Path, weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    list(write_synthetic(data, SCENES))
    list(write_synthetic(data, SyntheticSet(3, "val", CROP)))
    options = "--backbone test_resnet --crop 33x65 --views 2 --scales 0.75,1.25 --seed 3 --device cpu".split()  # noqa: SIM905
    command = ["cache", "build", str(data), "-o", str(tmp_path / "c"), "--weights", str(weights), *options]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "dpcdsl.cli", *command]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S+/c/train: 10 examples, 0.1 MiB\n\S+/c/val: 3 examples, 0.0 MiB\n", done.stdout)
    for (features, labels), (others, theirs) in zip(read(tmp_path / "c" / "train"), read(built), strict=True):
        assert torch.equal(features, others)
        assert torch.equal(labels, theirs)


def test_processes_may_join_again(tmp_path: Path) -> None:
    """As for one split and then another: none looks for the others where they were before."""
    script = tmp_path / "join.py"
    script.write_text(
        "from dpcdsl.segmentation.processes import Processes\n"
        "for _ in range(6):\n"
        "    with Processes.joined('cpu') as processes:\n"
        "        processes.wait()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_processes_share_its_pages(weights: Path, tmp_path: Path) -> None:
    """What two processes have read is in memory once."""
    big = ModelDescription.of(None, "", "test_resnet", STREET, (513, 1025), preprocessing=Preprocessing())
    build(tmp_path, weights, SyntheticSet(4, size=(513, 1025)), views=None, dtype="fp32", description=big)
    program = (
        "import sys; from dpcdsl.segmentation.cache import FeatureCache\n"
        "kept = list(FeatureCache(sys.argv[1])); sum(one.features.sum() + one.labels.sum() for one in kept)\n"
        "print('read', flush=True); sys.stdin.readline()\n"
        "rows = open('/proc/self/smaps').read().split('.safetensors')[1:]\n"
        "print(sum(int(row.split('Rss:')[1].split()[0]) for row in rows), "
        "sum(int(row.split('Pss:')[1].split()[0]) for row in rows), flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "read\n"
        size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) / 1024
        for reader in readers:
            reader.stdin.write("\n")
            reader.stdin.flush()
            resident, shared = map(int, reader.stdout.readline().split())
            assert resident > 0.9 * size
            assert shared < 0.6 * resident
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


# Interrupted


class Stop(Exception):  # noqa: N818
    pass


def test_it_goes_on_where_it_was(built: Path, weights: Path, tmp_path: Path) -> None:
    def report(done: int) -> None:
        if done == 8:
            raise Stop

    with pytest.raises(Stop):
        build(tmp_path, weights, report=report)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(first) == 2
    with pytest.raises(DpcError, match=r"it is not whole \[DPC097\]\n    help: go on with `dpc cache build`"):
        FeatureCache(tmp_path)
    (tmp_path / ".00002.safetensors.0123.part").write_bytes(b"half")
    plans: list[CachePlan] = []
    build(tmp_path, weights, planned=plans.append)
    assert plans[0].done == 6
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in first} == first
    assert contents(tmp_path) == contents(built)
    assert list(tmp_path.glob(".*.part")) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_shard_is_made_again(whole: bool, built: Path, weights: Path, copied: Path) -> None:
    shard = copied / "00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (copied / "00002.safetensors").unlink()
    if not whole:
        (copied / "00003.safetensors").write_bytes(b"")
    plans: list[CachePlan] = []
    build(copied, weights, planned=plans.append)
    assert plans[0].done == (4 if whole else 3)
    assert contents(copied) == contents(built)


def test_a_full_disk_loses_nothing(built: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    def full(_: int) -> None:
        nonlocal written
        written += 1
        if written > 3:  # the manifest and two shards
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dpcdsl.files.os.fsync", full)
        with pytest.raises(DpcError, match=r"00002.safetensors cannot be written: no space left on device \[DPC060\]"):
            build(tmp_path, weights)
    assert sorted(contents(tmp_path)) == ["00000.safetensors", "00001.safetensors", MANIFEST]
    assert list(tmp_path.glob(".*.part")) == []
    build(tmp_path, weights)
    assert contents(tmp_path) == contents(built)


def test_too_little_room_is_told_before_anything_is_done(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 2**14)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DpcError, match=r"0 MiB are needed, and 0 are free \[DPC097\]\n    help: make room"):
        build(tmp_path, weights)
    assert list(tmp_path.glob("*.safetensors")) == []


def test_two_builds_at_once_are_refused(weights: Path, tmp_path: Path) -> None:
    def planned(_: CachePlan) -> None:
        with pytest.raises(DpcError, match=r"another build is at work there \[DPC097\]"):
            build(tmp_path, weights)

    build(tmp_path, weights, planned=planned)
    build(tmp_path, weights)


def _build(folder: str, weights: str) -> None:
    torch.set_num_threads(1)
    build(Path(folder), Path(weights), shard_bytes=1)


def killed(built: Path, weights: Path, tmp_path: Path, kills: int, seed: int) -> None:
    """What ends is what it is without a kill, and no shard that was whole is made again."""
    context = multiprocessing.get_context("forkserver")  # what is imported is imported once
    context.set_forkserver_preload(["dpcdsl.segmentation.caching", "timm"])

    def start(folder: Path) -> Any:
        process = context.Process(target=_build, args=(str(folder), str(weights)))
        process.start()
        return process

    start(tmp_path / "warm").join()
    begun = time.monotonic()
    start(tmp_path / "whole").join()
    took = time.monotonic() - begun
    whole = contents(tmp_path / "whole")
    moments, folder, hit = random.Random(seed), tmp_path / "run0", 0
    while hit < kills:
        before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        process = start(folder)
        process.join(moments.uniform(0, took))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hit += 1
        process.join()
        after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        assert after | before == after
        if process.exitcode == 0:
            assert contents(folder) == whole
            folder = tmp_path / f"run{hit}"
        else:
            assert process.exitcode == -signal.SIGKILL
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    assert contents(folder) == whole
    assert list(folder.glob(".*.part")) == []
    for (features, labels), (others, theirs) in zip(read(folder), read(built), strict=True):
        assert torch.equal(features, others)
        assert torch.equal(labels, theirs)


def test_killed_at_random_moments_it_ends_the_same(built: Path, weights: Path, tmp_path: Path) -> None:
    killed(built, weights, tmp_path, 3, seed=1)


@pytest.mark.soak
def test_killed_fifty_times_it_ends_the_same(built: Path, weights: Path, tmp_path: Path) -> None:
    killed(built, weights, tmp_path, 50, seed=2)


# Refused


def other_weights(folder: Path) -> Path:
    torch.manual_seed(8)
    write_checkpoint(folder / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    return folder


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "views": ({"views": Views(count=3, scales=VIEWS.scales, seed=3)}, r"views\.count: 2, and not 3"),
    "seed": ({"views": Views(count=2, scales=VIEWS.scales, seed=4)}, r"views\.seed: 3, and not 4"),
    "scales": ({"views": Views(count=2, seed=3)}, r"views\.scales: "),
    "whole": ({"views": None}, r"views: \{.*, and not None"),
    "dtype": ({"dtype": "fp32"}, "dtype: bf16, and not fp32"),
    "split": ({"split": "val"}, "split: train, and not val"),
    "data": ({"data": SyntheticSet(5, size=CROP, seed=1)}, "data: "),
    "images": ({"data": SyntheticSet(6, size=CROP)}, "images: 5, and not 6"),
    "crop": (
        {"description": DESCRIPTION.model_copy(update={"crop": (33, 33)})},
        r"model\.crop: \[33, 65\], and not \[33, 33\]",
    ),
    "stride": ({"description": DESCRIPTION.model_copy(update={"output_stride": 8})}, r"model\.output_stride: 16"),
    "preprocessing": (
        {"description": DESCRIPTION.model_copy(update={"preprocessing": Preprocessing(mean=(0, 0, 0))})},
        r"model\.preprocessing\.mean: \[0\.5",
    ),
}


@pytest.mark.parametrize(("changed", "message"), CHANGES.values(), ids=CHANGES)
def test_another_cache_is_not_gone_on_with(
    changed: dict[str, Any], message: str, built: Path, weights: Path, copied: Path
) -> None:
    with pytest.raises(DpcError, match=f"the cache that is there has other {message}"):
        build(copied, weights, **changed)
    assert contents(copied) == contents(built)


def test_other_weights_are_refused(built: Path, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    others = other_weights(tmp_path / "other")
    with pytest.raises(DpcError, match="the cache that is there has other weights: "):
        build(copied, others)
    with pytest.raises(DpcError, match="the cache that is there has other weights: "):
        list(verify_cache(copied, weights=others))
    assert contents(copied) == contents(built)


def test_a_folder_of_something_else_is_not_written_to(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(DpcError, match=r"it has model.safetensors, and no manifest.json \[DPC097\]"):
        build(tmp_path, weights)
    assert list(contents(tmp_path)) == ["model.safetensors"]


def test_a_cell_in_the_description_is_not_looked_at(built: Path, weights: Path, copied: Path) -> None:
    from dpcdsl import read_cell

    other = ModelDescription.of(
        read_cell("top1"), "top1", "test_resnet", STREET, CROP, preprocessing=Preprocessing(), decoder="deeplabv3+"
    )
    build(copied, weights, description=other)
    assert contents(copied) == contents(built)


@given(data=st.data())
@settings(max_examples=150)
def test_nothing_but_what_was_kept_is_served(built: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """After any damage to any file: what was kept, or a refusal that names the file."""
    expected = read(built)
    folder = tmp_path_factory.mktemp("damaged") / "cache"
    shutil.copytree(built, folder)
    path = folder / data.draw(st.sampled_from(sorted(contents(folder))))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["bit", "header", "cut", "more", "zeros"]))
    place = data.draw(st.integers(0, (min(len(content), 2000) if kind == "header" else len(content)) - 1))
    if kind in ("bit", "header"):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[place:]
    elif kind == "more":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    path.write_bytes(content)
    with may_be_refused(str(path)):
        for (features, labels), (others, theirs) in zip(read(folder), expected, strict=True):
            assert torch.equal(features, others)
            assert torch.equal(labels, theirs)
    shutil.rmtree(folder.parent)


@contextmanager
def may_be_refused(place: str) -> Iterator[None]:
    try:
        yield
    except DpcError as error:
        if error.codes != ("DPC097",) or place not in str(error):
            raise


def test_shards_that_have_changed_places_are_refused(copied: Path) -> None:
    one, other = copied / "00000.safetensors", copied / "00001.safetensors"
    one.rename(copied / "x")
    other.rename(one)
    (copied / "x").rename(other)
    with pytest.raises(DpcError, match=r"00000.safetensors: error: it is of another cache \[DPC097\]"):
        FeatureCache(copied)


def test_a_shard_of_another_cache_is_refused(copied: Path, weights: Path, tmp_path: Path) -> None:
    build(tmp_path / "b", weights, views=Views(count=2, scales=VIEWS.scales, seed=4))
    shutil.copy(tmp_path / "b" / "00000.safetensors", copied)
    with pytest.raises(DpcError, match="it is of another cache"):
        FeatureCache(copied)


MANIFESTS: dict[str, Callable[[Any], Any]] = {
    "no JSON": lambda _: "{",
    "a list": lambda _: [],
    "no facts": lambda said: {"cache": {}, "checksum": said["checksum"]},
    "another mean": lambda said: _with(said, "model", {"preprocessing": {"mean": [0.25] * 3, "std": [0.5] * 3}}),
    "another backbone": lambda said: _with(said, "model", {"backbone": "xception65"}),
    "very many images": lambda said: _with(said, None, {"images": 2**39}),
    "no images": lambda said: _with(said, None, {"images": 0}),
    "a path for a split": lambda said: _with(said, None, {"split": "../../x"}),
    "fewer shards": lambda said: {**said, "cache": {**said["cache"], "shards": said["cache"]["shards"][1:]}},
    "not whole": lambda said: {**said, "cache": {**said["cache"], "shards": None}},
    "more": lambda said: _with(said, None, {"more": 1}),
}


def _with(said: Any, group: str | None, changed: dict[str, Any]) -> Any:
    facts = dict(said["cache"]["facts"])
    if group is None:
        facts |= changed
    else:
        facts[group] = {**facts[group], **changed}
    return {**said, "cache": {**said["cache"], "facts": facts}}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_is_not_as_it_was_written_is_refused(change: Callable[[Any], Any], copied: Path) -> None:
    path = copied / MANIFEST
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DpcError, match=r"manifest.json: error: it is (damaged|not as it was written) \[DPC097\]"):
        FeatureCache(copied)


def test_nothing_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DpcError, match=r"there is no manifest.json \[DPC097\]\n    help: name a folder that"):
        FeatureCache(tmp_path)


def test_an_image_that_cannot_be_read_stops_with_its_name(weights: Path, tmp_path: Path) -> None:
    list(write_synthetic(tmp_path / "data", SCENES))
    data = open_data(tmp_path / "data", "train")
    build(tmp_path / "good", weights, data)
    data.files[3].image.write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(DpcError, match=r"train_00003.png: error: .* \[DPC094\]"):
            build(tmp_path / "c", weights, data, workers=workers)
    with pytest.raises(DpcError, match="the cache that is there has other data: "):
        list(verify_cache(tmp_path / "good", data=data))


# The command line


def test_a_cache_is_built_and_verified(dpc: Dpc, weights: Path, tmp_path: Path) -> None:
    list(write_synthetic(tmp_path / "data", SCENES))
    list(write_synthetic(tmp_path / "data", SyntheticSet(3, "val", CROP)))
    options = ("--backbone", "test_resnet", "--weights", weights, "--crop", "33x65", "--views", "2", "--device", "cpu")
    done = dpc("cache", "build", "data", "-o", "c", *options)
    assert (done.code, done.out) == (0, "c/train: 10 examples, 0.1 MiB\nc/val: 3 examples, 0.0 MiB\n")
    assert re.match(r"train: 10 examples, about 0\.0 MiB; about [01] s\nval: 3 ex", done.err)
    said = json.loads(dpc("cache", "build", "data", "-o", "c", *options, "--json").out)
    assert said["train"]["examples"] == 10
    done = dpc("cache", "verify", "c", "--data", "data", "--weights", weights)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "c/train: 10 examples, test_resnet at output stride 16, bf16, good\n"
        "c/val: 3 examples, test_resnet at output stride 16, bf16, good\n"
    )
    shard = Path("c/val/00000.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    done = dpc("cache", "verify", "c/val")
    assert (done.code, done.out) == (1, "c/val: 3 examples, test_resnet at output stride 16, bf16, 1 wrong\n")
    assert done.err == (
        "c/val/00000.safetensors: error: example 2 is damaged [DPC097]\n"
        "    help: `dpc cache build`, with what it was built with, makes it again\n"
    )
    problems = json.loads(dpc("cache", "verify", "c", "--json").out)["problems"]
    assert [(one["code"], one["message"]) for one in problems] == [("DPC097", "example 2 is damaged")]
    done = dpc("cache", "build", "data", "-o", "c", *options, "--dtype", "fp32")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("c/train: error: the cache that is there has other dtype: bf16, and not fp32 [DPC097]")


def test_every_shard_is_listed(copied: Path) -> None:
    (copied / "00001.safetensors").unlink()
    (copied / "00002.safetensors").write_bytes(b"no")
    found = [(name, [error.diagnostics[0].message for error in errors]) for name, errors in verify_cache(copied)]
    assert found == [
        ("00000.safetensors", []),
        ("00001.safetensors", ["it is missing"]),
        ("00002.safetensors", ["it is damaged"]),
        ("00003.safetensors", []),
    ]


# What must not slip through


def test_a_shard_that_was_written_by_the_rules_but_of_other_numbers_is_refused(copied: Path) -> None:
    """Its own checksums fit; the manifest's does not."""
    facts = FeatureCache(copied).facts
    others = [(features.permute(1, 2, 0) + 1, labels) for features, labels in read(copied)[: facts.shard]]
    write_shard(copied / "00000.safetensors", facts, 0, others)
    with pytest.raises(DpcError, match=r"00000.safetensors: error: it is damaged \[DPC097\]"):
        FeatureCache(copied)


def test_a_damaged_example_is_refused_every_time(copied: Path) -> None:
    shard = copied / "00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    cache = FeatureCache(copied)
    for _ in range(3):
        with pytest.raises(DpcError, match="example 9 is damaged"):
            cache[9]
        with pytest.raises(DpcError, match="example 9 is damaged"):
            cache.batch([9])


def test_what_is_written_into_a_batch_is_not_served_later(built: Path) -> None:
    cache = FeatureCache(built)
    before = [tensor.clone() for tensor in cache[3]]
    for tensor in cache.batch([3]):
        tensor.zero_()
    assert all(torch.equal(tensor, then) for tensor, then in zip(cache[3], before, strict=True))


def test_a_digest_is_of_types_and_shapes_too() -> None:
    one = torch.arange(4, dtype=torch.uint8)
    found = {digest_of(one), digest_of(one.view(2, 2)), digest_of(one.view(torch.int8)), digest_of(one, one)}
    assert len(found) == 4


def test_weights_that_differ_in_a_running_mean_are_others(weights: Path, copied: Path, tmp_path: Path) -> None:
    state = dict(read_checkpoint(weights).weights)
    name = next(name for name in state if name.endswith("running_mean"))
    state[name] = state[name] + 1e-3
    write_checkpoint(tmp_path / FILE, Checkpoint(DESCRIPTION, state))
    with pytest.raises(DpcError, match=r"other weights"):
        build(copied, tmp_path)


def test_labels_of_another_size_are_other_data(weights: Path, tmp_path: Path) -> None:
    for _ in write_synthetic(tmp_path / "data", SyntheticSet(2, size=CROP)):
        pass
    data = open_data(tmp_path / "data", "train")
    build(tmp_path / "cache", weights, data)
    with next((tmp_path / "data" / "labels").rglob("*.png")).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DpcError, match=r"other data"):
        build(tmp_path / "cache", weights, open_data(tmp_path / "data", "train"))


def test_the_size_of_shards_is_that_of_what_is_there(built: Path, weights: Path, copied: Path) -> None:
    (copied / "00001.safetensors").unlink()
    build(copied, weights, shard_bytes=2**20)
    assert contents(copied) == contents(built)


def test_room_is_wanted_for_what_is_left_alone(weights: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "00001.safetensors").unlink()
    size = (copied / "00002.safetensors").stat().st_size
    usage = namedtuple("usage", "total used free")(10**9, 0, 2 * size)
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: usage)
    assert len(build(copied, weights)) == 10
