"""Training: what a step computes, what goes on after an interruption, and what is told when it cannot go on."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support import Dpc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dpcdsl import DpcError, parse_cell, read_space
from dpcdsl.cli import main
from dpcdsl.segmentation import training
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, read_checkpoint, write_checkpoint
from dpcdsl.segmentation.datasets import Example
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.labels import IGNORED
from dpcdsl.segmentation.loading import batches, seed_dropout, seed_of
from dpcdsl.segmentation.schedule import Progress
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.training import TrainingSettings, train
from dpcdsl.segmentation.transforms import Augmentation, Preprocessing

CELL = "(F, sepconv3x3 rate 1x3, Y1) (Y1, conv1x1, Y2)"
CROP = (33, 65)
SCENES = SyntheticSet(6, size=CROP)
#: Short, and without anything that is drawn but the order.
SHORT = TrainingSettings(steps=4, batch=2, rate=0.05, scales=(1.0,), mirror=0.0, batch_norm_momentum=0.1)


def described(cell: str | None = CELL, **others: Any) -> ModelDescription:
    value = None if cell is None else parse_cell("filters 16\n" + cell)
    others = {"preprocessing": Preprocessing()} | others
    return ModelDescription.of(value, "tiny", "test_resnet", STREET, CROP, **others)


def trained(folder: Path, settings: TrainingSettings = SHORT, **options: Any) -> dict[str, Tensor]:
    description = options.pop("description", None) or described()
    return dict(read_checkpoint(train(SCENES, description, settings, folder, **options)).weights)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def changed(settings: TrainingSettings = SHORT, **fields: Any) -> TrainingSettings:
    return TrainingSettings(**{**settings.model_dump(), **fields})


# What a step sees


def seen(chunks: list[range], **options: Any) -> list[tuple[Tensor, Tensor]]:
    return list(batches(SCENES, Augmentation(CROP), chunks, seed=3, **options))


def test_every_example_comes_once_a_turn_each_time_in_another_order() -> None:
    plain = Augmentation(CROP, scales=(1.0,), mirror=0.0)
    order = []
    known = [SCENES[index].labels for index in range(6)]
    for _, labels in batches(SCENES, plain, [range(n, n + 1) for n in range(24)], seed=1):
        order.append(next(index for index, one in enumerate(known) if torch.equal(one, labels[0])))
    turns = [tuple(order[n : n + 6]) for n in range(0, 24, 6)]
    assert all(sorted(turn) == list(range(6)) for turn in turns)
    assert len(set(turns)) == 4


def test_what_a_step_sees_depends_on_its_number_alone() -> None:
    whole = seen([range(n, n + 2) for n in range(0, 12, 2)])
    later = seen([range(n, n + 2) for n in range(6, 12, 2)])
    for (images, labels), (others, theirs) in zip(whole[3:], later, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, theirs)


def test_workers_change_nothing() -> None:
    chunks = [range(0, 3), range(3, 6)]
    for (images, labels), (others, theirs) in zip(seen(chunks), seen(chunks, workers=2), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, theirs)


class Broken:
    labels = STREET

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Example:
        raise DpcError.of("DPC094", "the image cannot be read", place=f"{index}.png", hint="fetch it again")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_told(workers: int) -> None:
    with pytest.raises(
        DpcError, match=r"^\d\.png: error: the image cannot be read \[DPC094\]\n    help: fetch it again$"
    ):
        list(batches(Broken(), Augmentation(CROP), [range(2)], seed=0, workers=workers))


def test_seeds_of_neighbours_are_unlike() -> None:
    assert len({seed_of(a, b, c) for a in range(9) for b in range(3) for c in range(9)}) == 243
    assert all(0 <= seed_of(n) < 2**63 for n in range(99))


# What a step computes


def test_the_rate_is_torchs_polynomial() -> None:
    settings = TrainingSettings(steps=30, rate=0.02)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=30, power=0.9)
    for step in range(30):
        assert settings.rate_at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


def test_training_is_the_plain_formula(tmp_path: Path) -> None:
    """Against torch's own loss at the image's size, and a decay that is written out."""
    class_weights = tuple(1 + n / 10 for n in range(STREET.count))
    settings = changed(class_weights=class_weights, weight_decay=0.01)
    found = trained(tmp_path, settings)
    torch.manual_seed(settings.seed)
    backbone = Backbone("test_resnet")
    torch.manual_seed(settings.seed)
    model = described().model(backbone=backbone, batch_norm_momentum=0.1)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    plain = Augmentation(CROP, scales=(1.0,), mirror=0.0)
    chunks = [range(n, n + 2) for n in range(0, 8, 2)]
    for step, (images, labels) in enumerate(batches(SCENES, plain, chunks, seed=0)):
        seed_dropout(0, step)
        large = F.interpolate(model(images), CROP, mode="bilinear", align_corners=True)
        losses = F.cross_entropy(
            large, labels.long(), torch.tensor(class_weights), ignore_index=IGNORED, reduction="none"
        )
        loss = losses.sum() / (labels != IGNORED).sum()
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 4 and weight.shape[1] > 1:  # dense
                loss = loss + 0.01 / 2 * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 4) ** 0.9
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if "running_" in name}


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    frozen = trained(tmp_path / "a", changed(fine_tune_batch_norm=False, steps=2))
    fresh = statistics(described().model().state_dict())
    assert_same(statistics(frozen), fresh)
    tuned = trained(tmp_path / "b", changed(steps=2))
    assert all(not torch.equal(value, fresh[name]) for name, value in statistics(tuned).items())


def test_a_frozen_backbone_is_not_trained(tmp_path: Path) -> None:
    begun = described().model()
    before = {f"backbone.{name}": value.clone() for name, value in begun.backbone.state_dict().items()}
    write_checkpoint(tmp_path / FILE, Checkpoint(described(), begun.state_dict()))
    after = trained(tmp_path / "a", changed(freeze_backbone=True, weight_decay=0.1), weights=tmp_path)
    assert_same({name: after[name] for name in before}, before)
    assert not torch.equal(after["head.cell.projection.bn.running_mean"], torch.zeros(256))
    assert not torch.equal(after["head.logits.weight"], begun.state_dict()["head.logits.weight"])


def test_bfloat16_is_near(tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for precision, found in losses.items():
        settings = changed(precision=precision, steps=10)
        weights = trained(tmp_path / precision, settings, report=lambda now, found=found: found.append(now.loss))
        assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_a_classifier_trains_a_backbone_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    weights = trained(
        tmp_path / "a",
        changed(steps=20),
        description=described(None),
        report=lambda now: losses.append(now.loss),
    )
    assert losses[-1] < losses[0]
    begun: dict[str, Tensor] = {}

    class Stop(Exception):  # noqa: N818
        pass

    def first_step(self: Any, *_: Any) -> Tensor:
        begun.update({name: value.clone() for name, value in self.model.state_dict().items()})
        raise Stop

    monkeypatch.setattr(training._Trainer, "step", first_step)
    with pytest.raises(Stop):
        trained(tmp_path / "b", weights=tmp_path / "a")
    for name, value in weights.items():
        if name.startswith("backbone."):
            assert torch.equal(begun[name], value), name
    with pytest.raises(DpcError, match="classifier, which has no cell"):
        read_checkpoint(tmp_path / "a").segmentation_model()


def test_the_hardest_pixels_alone(tmp_path: Path) -> None:
    every, hard = (trained(tmp_path / str(share), changed(hardest=share, steps=1)) for share in (1.0, 0.25))
    assert not torch.equal(every["head.logits.weight"], hard["head.logits.weight"])


# Going on


def interrupted(folder: Path, at: int, **options: Any) -> None:
    def report(now: Progress) -> None:
        if now.step >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder, report=report, **options)


def test_what_goes_on_is_what_would_have_been(tmp_path: Path) -> None:
    """Bit for bit: weights, statistics and momentum, whatever is drawn by chance."""
    settings = TrainingSettings(steps=7, batch=4, accumulate=2, rate=0.05)
    whole = trained(tmp_path / "a", settings, save_every=2)
    interrupted(tmp_path / "b", 4, settings=settings, save_every=2)
    (tmp_path / "b" / f".{FILE}.0123456789ab.part").write_bytes(b"half")
    assert read_checkpoint(tmp_path / "b").step == 2  # it was told before it was written
    started: list[int] = []
    again = trained(tmp_path / "b", settings, save_every=3, resume=True, started=started.append)
    assert started == [2]
    assert list((tmp_path / "b").glob(".*.part")) == []
    assert_same(whole, again)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    finished = trained(tmp_path / "b", settings, resume=True, report=lambda _: pytest.fail("there is nothing to do"))
    assert_same(whole, finished)


def test_a_training_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    trained(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(DpcError, match=r"a training of 4 steps is there \[DPC095\]\n    help: --resume"):
        trained(tmp_path)
    for settings, description, name in (
        (changed(rate=0.06), described(), "rate: 0.05, and not 0.06"),
        (SHORT, described("(F, conv1x1, Y1)"), "cell: "),
        (SHORT, described(output_stride=8), "output_stride: 16, and not 8"),
    ):
        with pytest.raises(DpcError, match=f"another {name}"):
            trained(tmp_path, settings, description=description, resume=True)
    with pytest.raises(DpcError, match="another examples: 6, and not 5"):
        train(SyntheticSet(5, size=CROP), described(), SHORT, tmp_path, resume=True)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, 2, save_every=1)
    before = (tmp_path / FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dpcdsl.files.os.fsync", full)
    with pytest.raises(DpcError, match=r"cannot be written: no space left on device \[DPC060\]"):
        trained(tmp_path, resume=True, save_every=1)
    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("begin", [0, 2])
def test_not_a_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path, begin: int) -> None:
    if begin:
        trained(tmp_path, changed(steps=2))
    step = training._Trainer.step

    def wild(self: Any, number: int, *rest: Any) -> Tensor:
        loss = step(self, number, *rest)
        return loss * float("nan") if number == 2 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Trainer, "step", wild)
        patch.setattr(training, "_saved", lambda path, *_: read_checkpoint(path) if begin else None)
        with pytest.raises(
            DpcError, match=r"the loss is nan at step 3; (the last good|there is no) checkpoint"
        ) as error:
            trained(tmp_path, changed(steps=9), resume=True)
    assert (str(tmp_path / FILE) in str(error.value)) == bool(begin)
    assert not begin or read_checkpoint(tmp_path).step == 2


def test_a_weight_that_is_no_number_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = training._Trainer.step

    def wild(self: Any, number: int, *rest: Any) -> Tensor:
        loss = step(self, number, *rest)
        if number == 2:
            self.model.head.logits.bias.data[0] = float("nan")
        return loss

    monkeypatch.setattr(training._Trainer, "step", wild)
    with pytest.raises(DpcError, match="a weight is no longer a number at step 3; the last good checkpoint"):
        trained(tmp_path, save_every=1)
    assert read_checkpoint(tmp_path).step == 2


def test_the_momentum_of_statistics_is_the_backbones_too() -> None:
    model = described().model(batch_norm_momentum=0.25)
    norms = [part for part in model.modules() if "BatchNorm" in type(part).__name__]
    assert len(norms) > 10
    assert {part.momentum for part in norms} == {0.25}


def test_a_rate_that_is_too_high_stops(tmp_path: Path) -> None:
    with pytest.raises(
        DpcError, match=r"(the loss is (nan|inf)|a weight is no longer a number) at step \d+; the last good"
    ):
        trained(tmp_path, changed(rate=1e5, steps=30), save_every=1)
    saved = read_checkpoint(tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in saved.weights.values())


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(DpcError, match="a batch of 2 cannot be shared by 1 processes in 3 parts"):
        trained(tmp_path, changed(accumulate=3))
    with pytest.raises(DpcError, match="3 class weights for 11 classes"):
        trained(tmp_path, changed(class_weights=(1.0, 2.0, 3.0)))
    with pytest.raises(DpcError, match="there is no device `abacus`"):
        trained(tmp_path, device="abacus")


def test_tensorboard_shows_loss_and_rate(tmp_path: Path) -> None:
    interrupted(tmp_path, 3, save_every=1)
    trained(tmp_path, resume=True, save_every=1)
    events = EventAccumulator(str(tmp_path))  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    assert set(events.Tags()["scalars"]) == {"loss", "rate", "images per second"}  # type: ignore[no-untyped-call]
    rates = {event.step: event.value for event in events.Scalars("rate")}  # type: ignore[no-untyped-call]
    assert sorted(rates) == [1, 2, 3, 4]
    assert rates[3] == pytest.approx(SHORT.rate_at(2))


# Killed, and in company: whole processes


@dataclass(frozen=True)
class Runs:
    """Trainings by the command line, each in a process of its own."""

    data: Path
    context: Any

    def command(self, folder: Path, *more: str) -> list[str]:
        settings = "--backbone test_resnet --crop 33x65 --steps 12 --batch 2 --save-every 1 --batch-norm-momentum 0.1"
        return ["train", CELL, "--data", str(self.data), "-o", str(folder), *settings.split(), *more]

    def start(self, folder: Path) -> Any:
        process = self.context.Process(target=main, args=(self.command(folder, "--resume"),))
        process.start()
        return process


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    data = tmp_path_factory.mktemp("scenes")
    list(write_synthetic(data, SCENES))
    context = multiprocessing.get_context("forkserver")  # what is imported is imported once
    context.set_forkserver_preload(["dpcdsl.segmentation.training", "dpcdsl.segmentation.datasets", "timm"])
    return Runs(data, context)


def killed(runs: Runs, tmp_path: Path, kills: int, seed: int) -> None:
    """After every kill the checkpoint is whole or not there, and what ends is what it is without a kill."""
    process = runs.start(tmp_path / "whole")
    process.join()
    begun = time.monotonic()
    process = runs.start(tmp_path / "timed")
    process.join()
    took = time.monotonic() - begun
    whole = (tmp_path / "whole" / FILE).read_bytes()
    moments, folder, hit = random.Random(seed), tmp_path / "run0", 0
    while hit < kills:
        process = runs.start(folder)
        process.join(moments.uniform(0, took))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hit += 1
        process.join()
        if (folder / FILE).exists():
            read_checkpoint(folder)
        if process.exitcode == 0:
            assert (folder / FILE).read_bytes() == whole
            folder = tmp_path / f"run{hit}"
        else:
            assert process.exitcode == -signal.SIGKILL
    process = runs.start(folder)
    process.join()
    assert process.exitcode == 0
    assert (folder / FILE).read_bytes() == whole
    assert list(folder.glob(".*.part")) == []


def test_killed_at_random_moments_it_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    killed(runs, tmp_path, 3, seed=1)


@pytest.mark.soak
def test_killed_fifty_times_it_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    killed(runs, tmp_path, 50, seed=2)


def test_two_processes_compute_what_one_does_in_two_parts(runs: Runs, tmp_path: Path) -> None:
    """Gradients are averaged over what a single process accumulates. (Statistics of batches are the first one's.)"""
    frozen = ["--frozen-batch-norm", "--steps", "3"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "dpcdsl.cli", *runs.command(tmp_path / "two", *frozen)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps, loss") == 1
    with pytest.raises(SystemExit) as left:
        main(runs.command(tmp_path / "one", *frozen, "--accumulate", "2"))
    assert left.value.code in (0, None)
    one, two = (read_checkpoint(tmp_path / name).weights for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


# The command line


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    list(write_synthetic(tmp_path / "scenes", SCENES))
    return tmp_path / "scenes"


def test_the_command_line_trains(dpc: Dpc, scenes: Path) -> None:
    common = ["--data", scenes, "--backbone", "test_resnet", "--crop", "33x65", "--steps", 2, "--batch", 2]
    outcome = dpc("train", CELL, "-o", "a", *common, "--space", "dpc(B=2)", "--decoder", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["steps"] == 2
    saved = read_checkpoint("a")
    assert saved.description.decoder == "deeplabv3+"
    assert saved.description.space is not None
    assert saved.description.id is not None
    assert saved.description.id.startswith("dpc@")
    assert read_space("dpc(B=2)") is not None
    outcome = dpc("train", "--head", "classifier", "-o", "b", *common)
    assert outcome.code == 0, outcome.err
    outcome = dpc("train", CELL, "-o", "c", *common, "--weights", "b", "--mean", "0.4,0.4,0.4", "--scales", "0.5,1")
    assert outcome.code == 0, outcome.err
    assert read_checkpoint("c").description.preprocessing.mean == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "-o", "a"], 2, "Missing option '--data'"),
        (["train", "--data", "{}", "-o", "a"], 2, "A CELL goes with --head cell"),
        (["train", CELL, "--head", "classifier", "--data", "{}", "-o", "a"], 2, "A CELL goes with"),
        (["train", CELL, "--data", "nowhere", "-o", "a"], 1, "[DPC093]"),
        (["train", CELL, "--data", "{}", "--split", "vla", "-o", "a"], 1, "no split `vla`"),
        (["train", CELL, "--data", "{}", "-o", "a", "--backbone", "xception56"], 1, "did you mean `xception65`?"),
        (["train", CELL, "--data", "{}", "-o", "a", "--space", "aspp_subsets"], 1, "[DPC055]"),
        (["train", CELL, "--data", "{}", "-o", "a", "--rate", "-1"], 1, "rate"),
        (["train", CELL, "--data", "{}", "-o", "a", "--output-stride", "12"], 1, "output_stride"),
        (["train", CELL, "--data", "{}", "-o", "a", "--mean", "1,2"], 1, "mean"),
        (["train", CELL, "--data", "{}", "-o", "a", "--scales", "one"], 2, "is not a list of numbers"),
    ],
)
def test_what_the_command_line_refuses(
    dpc: Dpc, scenes: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    outcome = dpc(*(str(scenes) if argument == "{}" else argument for argument in arguments))
    assert outcome.code == code
    assert says in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "a").exists() or list((tmp_path / "a").iterdir()) == []


def test_timms_weights_without_a_network(dpc: Dpc, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = dpc("train", CELL, "--data", scenes, "-o", "a", "--backbone", "mobilenet-v2", "--weights", "timm")
    assert outcome.code == 1
    assert outcome.err.startswith("error: timm's weights of `mobilenet-v2` cannot be had: ")
    assert "[DPC091]" in outcome.err
