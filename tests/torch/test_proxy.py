"""The proxy task: the same as training on a frozen backbone, the same each time, and what ends it."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from support import Dpc
from torch import Tensor, nn

from dpcdsl import DpcError, parse_cell
from dpcdsl.segmentation import proxy_task as module
from dpcdsl.segmentation.cache import FeatureCache, Views
from dpcdsl.segmentation.caching import build_cache
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, begin_with, write_checkpoint
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import Evaluation, evaluate
from dpcdsl.segmentation.model import Head, SegmentationModel
from dpcdsl.segmentation.prediction import Predictor
from dpcdsl.segmentation.proxy_task import CurvePoint, ProxyResult, ProxySettings, proxy, proxy_many
from dpcdsl.segmentation.schedule import Progress
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet
from dpcdsl.segmentation.training import TrainingSettings, train
from dpcdsl.segmentation.transforms import Preprocessing

CROP = (65, 129)
SCENES, UNSEEN = SyntheticSet(6, size=CROP), SyntheticSet(4, "val", (70, 129))
DESCRIPTION = ModelDescription.of(None, "", "test_resnet", STREET, CROP, preprocessing=Preprocessing())
CELL = parse_cell("filters 16\n(F, sepconv3x3 rate 1x3, Y1) (Y1, conv1x1, Y2)")
OTHER = parse_cell("filters 16\n(F, avgpool grid 1x1, Y1) (F, sepconv3x3 rate 3x6, Y2)")
SHORT = ProxySettings(steps=12, batch=2, rate=0.05, evaluate_every=4, statistics=3)


class Caches:
    """Of crops, of whole images, and of whole training images, as they are, in fp32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.val, self.whole = (FeatureCache(folder / name) for name in ("train", "val", "whole"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a training leaves it."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(7)
    write_checkpoint(folder / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    return folder


@pytest.fixture(scope="session")
def caches(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    folder = tmp_path_factory.mktemp("caches")
    views = Views(count=2, scales=(1.0, 1.25))
    build_cache(SCENES, DESCRIPTION, folder / "train", weights=backbone, views=views)
    build_cache(UNSEEN, DESCRIPTION, folder / "val", weights=backbone, split="val", dtype="fp32")
    build_cache(SCENES, DESCRIPTION, folder / "whole", weights=backbone, dtype="fp32")
    return Caches(folder)


def changed(settings: ProxySettings = SHORT, **fields: Any) -> ProxySettings:
    return ProxySettings(**{**settings.model_dump(), **fields})


def scored(cell: Any, caches: Caches, settings: ProxySettings = SHORT, **options: Any) -> ProxyResult:
    return proxy(cell, caches.train, caches.val, settings, **options)


def without_time(result: ProxyResult | DpcError) -> Any:
    assert isinstance(result, ProxyResult)
    return result.score, result.stopped, [(one.step, one.loss, one.miou) for one in result.curve]


# What it computes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_training_with_the_frozen_backbone_online(
    precision: str, caches: Caches, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, by the loop that trains whole models: initial weights, order, dropout, rate and decay."""
    fields = {"steps": 9, "batch": 2, "rate": 0.05, "weight_decay": 0.01, "seed": 5, "precision": precision}
    online: list[float] = []
    settings = TrainingSettings(freeze_backbone=True, scales=(1.0,), mirror=0.0, **fields)
    train(
        SCENES,
        caches.train.describe(CELL),
        settings,
        tmp_path,
        weights=backbone,
        save_every=1,
        report=lambda now: online.append(now.loss),
    )
    monkeypatch.setattr(module, "_LOOK", 1)
    cached: list[float] = []
    proxy(
        CELL,
        caches.whole,
        caches.val,
        ProxySettings(evaluate_every=9, **fields),
        report=lambda now: cached.append(now.loss),
    )
    assert len(cached) == 9
    assert cached == pytest.approx(online, rel=1e-5 if precision == "fp32" else 2e-2)
    assert cached[-1] < cached[0]


def kept_head(monkeypatch: pytest.MonkeyPatch) -> list[Head]:
    """The heads as they are when they are evaluated."""
    heads: list[Head] = []
    ends = module._Candidate.ends

    def spy(self: Any, *rest: Any) -> None:
        heads.append(self.head)
        ends(self, *rest)

    monkeypatch.setattr(module._Candidate, "ends", spy)
    return heads


def test_the_score_is_the_whole_models(caches: Caches, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dpc eval` finds it, on images that have to be padded."""
    heads = kept_head(monkeypatch)
    result = scored(CELL, caches, changed(evaluate_every=12))
    model = caches.train.describe(CELL).model()
    assert isinstance(model, SegmentationModel)
    begin_with(model.backbone, backbone)
    model.head = heads[-1]
    found = evaluate(Predictor(model.eval(), Preprocessing()), UNSEEN, STREET)
    assert result.score == pytest.approx(found.miou, abs=2e-3)
    assert result.score == result.curve[-1].miou


def test_the_statistics_are_those_of_the_weights(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the batches' means and unbiased variances, without dropout, by plain torch."""
    heads = kept_head(monkeypatch)
    scored(CELL, caches, changed(steps=5, evaluate_every=5))
    (head,) = heads
    eager = head.cell.eager().train()
    eager.dropout.eval()
    seen: dict[str, list[Tensor]] = {}
    for name, part in eager.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None

            def hook(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                seen.setdefault(name, []).append(inputs[0].transpose(0, 1).flatten(1))

            part.register_forward_pre_hook(hook)
    for step in range(3):
        features, _ = module._batch(caches.train, SHORT, step, torch.device("cpu"))
        with torch.no_grad():
            eager(features)
    assert len(seen) == 4
    for name, values in seen.items():
        norm = head.cell.get_submodule(name)
        mean = torch.stack([one.mean(1) for one in values]).mean(0)
        variance = torch.stack([one.var(1) for one in values]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-6)
        assert norm.momentum == 3e-4


def test_evaluations_change_nothing_that_follows(caches: Caches) -> None:
    often, once = (scored(CELL, caches, changed(evaluate_every=every)) for every in (1, 12))
    assert often.curve[-1].miou == once.curve[-1].miou
    assert once.curve[-1].loss == pytest.approx(sum(one.loss for one in often.curve) / 12)


def test_the_curve_says_what_has_been(caches: Caches) -> None:
    result = scored(CELL, caches, changed(steps=10))
    assert [one.step for one in result.curve] == [4, 8, 10]
    assert result.score == max(one.miou for one in result.curve)
    assert all(0 <= one.miou <= 1 and math.isfinite(one.loss) for one in result.curve)
    seconds = [one.seconds for one in result.curve]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert json.loads(json.dumps(result.to_json()))["curve"][2]["step"] == 10


def test_class_weights_and_hard_pixels_count(caches: Caches) -> None:
    plain = without_time(scored(CELL, caches))
    weighted = changed(class_weights=tuple(1.0 + n for n in range(STREET.count)))
    assert without_time(scored(CELL, caches, weighted)) != plain
    assert without_time(scored(CELL, caches, changed(hardest=0.25))) != plain
    with pytest.raises(DpcError, match=r"2 class weights for 11 classes \[DPC062\]"):
        scored(CELL, caches, changed(class_weights=(1.0, 2.0)))


def test_pooling_as_the_authors_code_has_it(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = kept_head(monkeypatch)
    scored(OTHER, caches, changed(steps=1, pooling="sliding"))
    conventions = heads[0].cell.settings.conventions
    assert (conventions.pooling, conventions.image_pooling_crop_size) == ("sliding", CROP)


# The same each time


def test_a_seed_is_a_score(caches: Caches) -> None:
    one, same, other = (without_time(scored(CELL, caches, changed(seed=seed))) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_text_is_a_cell(caches: Caches) -> None:
    short = changed(steps=1)
    assert without_time(scored("(F, conv1x1, Y1)", caches, short)) == without_time(
        scored(parse_cell("(F, conv1x1, Y1)"), caches, short)
    )


def test_many_at_once_are_each_alone(caches: Caches) -> None:
    """Two of the same, one that ends before the others, and one between."""
    patient = changed(steps=20, patience=1, evaluate_every=2)
    cells = [CELL, OTHER, CELL]
    alone = [without_time(scored(cell, caches, patient)) for cell in (CELL, OTHER)]
    together = [without_time(one) for one in proxy_many(cells, caches.train, caches.val, patient)]
    assert together == [alone[0], alone[1], alone[0]]
    assert {stopped for _, stopped, _ in alone} != {"steps"}


def _alone(folder: Path, seed: int) -> Any:
    torch.set_num_threads(1)
    return without_time(scored(CELL, Caches(folder), changed(seed=seed)))


def test_others_on_the_machine_change_nothing(caches: Caches) -> None:
    with ProcessPoolExecutor(2, get_context("forkserver")) as pool:
        beside = list(pool.map(_alone, [caches.folder] * 3, [1, 2, 1]))
    assert beside[0] == beside[2]
    assert beside[:2] == [_alone(caches.folder, 1), _alone(caches.folder, 2)]


# What ends it


class Scores:
    """Evaluations that find what is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
        coming = iter(scores)
        monkeypatch.setattr(Evaluation, "miou", property(lambda _: next(coming)))


def test_patience(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    Scores(monkeypatch, 0.3, 0.2, 0.4, 0.4, 0.1, 0.9)
    result = scored(CELL, caches, changed(steps=20, evaluate_every=1, patience=2))
    assert (result.score, result.stopped, len(result.curve)) == (0.4, "patience", 5)


def test_without_patience_it_goes_to_the_end(caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    Scores(monkeypatch, 0.9, 0.2, 0.1)
    result = scored(CELL, caches)
    assert (result.score, result.stopped, len(result.curve)) == (0.9, "steps", 3)


def test_a_watch_stops_its_candidate_alone(caches: Caches) -> None:
    seen: list[tuple[int, int]] = []

    def watch(index: int, point: CurvePoint) -> bool:
        seen.append((index, point.step))
        return index == 1 and point.step == 8

    results = proxy_many([CELL, OTHER], caches.train, caches.val, SHORT, watch=watch)
    assert seen == [(0, 4), (1, 4), (0, 8), (1, 8), (0, 12)]
    assert [one.stopped for one in results if isinstance(one, ProxyResult)] == ["steps", "watch"]
    assert without_time(results[0]) == without_time(scored(CELL, caches))


def test_an_optuna_pruner_is_a_watch(caches: Caches) -> None:
    """Successive trials of the same cell: the better ones before prune a later one that is worse."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(2, 0))
    stopped = []

    def objective(trial: optuna.Trial) -> float:
        bad = trial.number == 2

        def watch(_: int, point: CurvePoint) -> bool:
            trial.report(point.miou - bad, point.step)
            return trial.should_prune()

        result = scored(CELL, caches, watch=watch)
        stopped.append((result.stopped, len(result.curve)))
        if result.stopped == "watch":
            raise optuna.TrialPruned
        return result.score

    study.optimize(objective, n_trials=3)
    assert stopped == [("steps", 3), ("steps", 3), ("watch", 1)]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_not_a_number_is_that_candidates_result(value: str, caches: Caches, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = module._Candidate.learn

    def wild(self: Any, step: int, *rest: Any) -> None:
        if self.index == 1 and step == 5:
            losses = self.losses.fresh
            learn(self, step, *rest)
            losses[-1].fill_(float(value))
        else:
            learn(self, step, *rest)

    monkeypatch.setattr(module._Candidate, "learn", wild)
    good, bad, same = proxy_many([CELL, OTHER, CELL], caches.train, caches.val, SHORT)
    assert isinstance(bad, DpcError)
    assert str(bad) == f"error: the loss is {value} at step 6 [DPC096]\n    help: a lower rate"
    assert without_time(good) == without_time(same) == without_time(scored(CELL, caches))


def test_a_rate_that_is_too_high_is_told(caches: Caches) -> None:
    with pytest.raises(DpcError, match=r"the loss is (nan|inf) at step \d+ \[DPC096\]"):
        scored(CELL, caches, changed(rate=1e5, steps=40, evaluate_every=40))


def test_progress_is_told(caches: Caches) -> None:
    told: list[Progress] = []
    scored(CELL, caches, changed(steps=25, evaluate_every=15), report=told.append)
    assert [(one.step, one.steps) for one in told] == [(10, 25), (15, 25), (20, 25), (25, 25)]
    assert all(one.seconds_per_step > 0 and math.isfinite(one.loss) for one in told)
    assert told[0].rate == SHORT.rate_at(0) * (1 - 9 / 25) ** 0.9


# Refused


def test_caches_that_do_not_belong_together(caches: Caches, backbone: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    write_checkpoint(tmp_path / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    others = build_cache(UNSEEN, DESCRIPTION, tmp_path / "other", weights=tmp_path)
    with pytest.raises(DpcError, match=r"other: error: its weights are not those of \S+train \[DPC097\]"):
        proxy(CELL, caches.train, others, SHORT)
    darker = DESCRIPTION.model_copy(update={"preprocessing": Preprocessing(mean=(0.0, 0.0, 0.0))})
    others = build_cache(UNSEEN, darker, tmp_path / "darker", weights=backbone)
    with pytest.raises(DpcError, match="its preprocessing is not that of"):
        proxy(CELL, caches.train, others, SHORT)
    finer = DESCRIPTION.model_copy(update={"output_stride": 8})
    others = build_cache(UNSEEN, finer, tmp_path / "finer", weights=backbone)
    with pytest.raises(DpcError, match="its output_stride is not that of"):
        proxy(CELL, caches.train, others, SHORT)
    named = replace(STREET, names=(*STREET.names[:-1], "something else"))
    renamed = ModelDescription.of(None, "", "test_resnet", named, CROP, preprocessing=Preprocessing())
    others = build_cache(UNSEEN, renamed, tmp_path / "renamed", weights=backbone)
    with pytest.raises(DpcError, match="its classes is not that of"):
        proxy(CELL, caches.train, others, SHORT)


def test_a_damaged_example_stops_with_its_name(caches: Caches, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(caches.folder / "train", tmp_path / "train"))
    shard = folder / "00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DpcError, match=r"00000.safetensors: error: example 11 is damaged \[DPC097\]"):
        proxy(CELL, FeatureCache(folder), caches.val, SHORT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "proxysettings.steps: error: input should be greater than or equal to 1"),
        ({"patience": 0}, "proxysettings.patience"),
        ({"rate": 0}, "proxysettings.rate"),
        ({"pooling": "max"}, "proxysettings.pooling"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DpcError, match=re.escape(message)):
        changed(**fields)


def test_there_is_no_such_device(caches: Caches) -> None:
    with pytest.raises(DpcError, match="there is no device `abacus`"):
        scored(CELL, caches, device="abacus")


# The command line


def test_cells_are_scored(dpc: Dpc, caches: Caches) -> None:
    options = ("--cache", caches.folder, "--steps", "6", "--batch", "2", "--evaluate-every", "3", "--device", "cpu")
    done = dpc("proxy", "(F, conv1x1, Y1)", "aspp", *options, "--curve", "curve.json")
    assert done.code == 0
    assert re.fullmatch(
        r"cell +mIoU %  steps  ended by  seconds\n[─ ]+\n"
        r"\(F, conv1x1, Y1\)? +\d+\.\d\d +6  steps +\d+\.\d\naspp +\d+\.\d\d +6  steps +\d+\.\d\n",
        done.out,
    ), done.out
    assert re.fullmatch(r"step 6 of 6: loss \d+\.\d+, rate \S+, 0 s left\n", done.err)
    said = json.loads(Path("curve.json").read_text())
    assert said["settings"]["steps"] == 6
    assert [[point["step"] for point in one["curve"]] for one in said["cells"]] == [[3, 6], [3, 6]]
    again = json.loads(dpc("proxy", "aspp", *options, "--json").out)
    assert again[0]["score"] == said["cells"][1]["score"]
    assert again[0]["cell"] == "aspp"


def test_a_cell_that_fails_is_told(dpc: Dpc, caches: Caches) -> None:
    done = dpc("proxy", "aspp", "--cache", caches.folder, "--steps", "30", "--rate", "1e5", "--batch", "2")
    assert done.code == 1
    assert re.search(r"aspp +the loss is (nan|inf) at step \d+", done.out)
    done = dpc("proxy", "aspp", "--cache", "nowhere")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "nowhere/train: error: there is no manifest.json [DPC097]\n"
        "    help: name a folder that `dpc cache build` has written\n"
    )
