"""What a search, a reranking and a fidelity study score with torch: and that it is the same wherever it runs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from searches import wait_for
from support import Dpc

import dpcdsl
from dpcdsl import DpcError, parse_cell
from dpcdsl.search import Attempt, Plan, SearchStudy, Terms, identity_of, work
from dpcdsl.search.jobs import End, Job, serve
from dpcdsl.segmentation.cache import FeatureCache, Views
from dpcdsl.segmentation.caching import build_cache
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, read_checkpoint, write_checkpoint
from dpcdsl.segmentation.datasets import open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import evaluate
from dpcdsl.segmentation.objective import ProxyObjective, TrainingObjective
from dpcdsl.segmentation.prediction import Predictor
from dpcdsl.segmentation.proxy_task import ProxySettings, proxy
from dpcdsl.segmentation.stores import at_hand
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.training import TrainingSettings, train
from dpcdsl.segmentation.transforms import Preprocessing
from dpcdsl_torch.cache import folder as kernels

CROP = (65, 129)
DESCRIPTION = ModelDescription.of(None, "", "test_resnet", STREET, CROP, preprocessing=Preprocessing())
CELL = parse_cell("filters 16\n(F, sepconv3x3 rate 1x3, Y1) (F, conv1x1, Y2)")
SWAPPED = parse_cell("filters 16\n(F, conv1x1, Y1) (F, sepconv3x3 rate 1x3, Y2)")
SETTINGS = TrainingSettings(steps=6, batch=2, rate=0.03, scales=(1.0,), batch_norm_momentum=0.1)
SHORT = ProxySettings(steps=4, batch=2, rate=0.05, evaluate_every=2, statistics=2)
#: Small cells.
SPACE = "dpc 1\nspace small { filters 16 2 * (any, conv1x1 | sepconv3x3 rate {1, 3} x {1, 3}, _) }\n"
TRAINING = ("--backbone", "test_resnet", "--crop", "65x129", "--batch", "2", "--device", "cpu", "--scales", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as it lies on a disk, weights as a training leaves them, and caches of both splits."""
    found = tmp_path_factory.mktemp("objectives")
    for split, count in (("train", 4), ("val", 2)):
        for _ in write_synthetic(found / "data", SyntheticSet(count, split, CROP)):
            pass
    torch.manual_seed(7)
    (found / "weights").mkdir()
    write_checkpoint(found / "weights" / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    for split, views in (("train", Views(count=2, scales=(1.0,))), ("val", None)):
        data = open_data(found / "data", split)
        build_cache(data, DESCRIPTION, found / "features" / split, weights=found / "weights", split=split, views=views)
    return found


def training(
    folder: Path, out: Path, settings: TrainingSettings = SETTINGS, save_every: int = 1000
) -> TrainingObjective:
    data = open_data(folder / "data", "train"), open_data(folder / "data", "val")
    return TrainingObjective(*data, DESCRIPTION, settings, out, folder / "weights", save_every=save_every)


# Whole models


def test_it_is_training_and_evaluation(folder: Path, tmp_path: Path) -> None:
    objective, attempt = training(folder, tmp_path / "out"), Attempt(0, 5)
    score = pickle.loads(pickle.dumps(objective))(CELL, attempt)
    settings = SETTINGS.model_copy(update={"seed": 5})
    path = train(
        open_data(folder / "data", "train"),
        DESCRIPTION.with_cell(CELL),
        settings,
        tmp_path / "own",
        weights=folder / "weights",
    )
    model = read_checkpoint(path).segmentation_model()
    result = evaluate(Predictor(model, Preprocessing()), open_data(folder / "data", "val"), STREET)
    assert score == result.miou
    assert read_checkpoint(attempt.notes["checkpoint"]).step == 6
    assert [one["name"] for one in attempt.notes["branches"]] == ["Y1", "Y2"]
    assert sum(one["share"] for one in attempt.notes["branches"]) == pytest.approx(1)
    assert attempt.notes["iou"].keys() == set(STREET.names)


def test_each_class_and_seed_has_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    objective = training(folder, tmp_path)
    assert objective.folder_of(CELL, 1) == objective.folder_of(SWAPPED, 1)
    others = training(folder, tmp_path, SETTINGS.model_copy(update={"steps": 7}))
    found = {objective.folder_of(CELL, 1), objective.folder_of(CELL, 2), others.folder_of(CELL, 1)}
    found.add(objective.folder_of(parse_cell("filters 16\n(F, conv1x1, Y1)"), 1))
    assert len(found) == 4


def test_what_it_computes_is_its_identity(folder: Path, tmp_path: Path) -> None:
    """Wherever the same files lie; and nothing else has the same."""
    objective = training(folder, tmp_path)
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert training(copied, tmp_path / "elsewhere").identity == objective.identity
    assert json.loads(json.dumps(objective.identity)) == objective.identity
    torch.manual_seed(8)
    write_checkpoint(copied / "weights" / FILE, Checkpoint(DESCRIPTION, DESCRIPTION.model().state_dict()))
    assert training(copied, tmp_path).identity != objective.identity
    assert training(folder, tmp_path, SETTINGS.model_copy(update={"rate": 0.1})).identity != objective.identity
    assert training(folder, tmp_path, SETTINGS.model_copy(update={"seed": 9})).identity == objective.identity


def test_a_training_that_was_killed_goes_on_where_it_was(dpc: Dpc, folder: Path, tmp_path: Path) -> None:
    """`dpc rerank`, killed as a whole and given again: bit for bit what it would have been."""
    where, space = str(tmp_path / "search.db"), dpcdsl.parse(SPACE).space("small")
    with SearchStudy.begin(where, Plan.of(space, {"objective": "of the tests"}, seed=3)) as study:
        work(study, lambda cell, _: -float(len(str(cell))), "uniform", Terms(3))
        best = [dpcdsl.parse_cell(seen.record.cell) for seen in study.best(2) if seen.record]
    command = ["rerank", "search.db", "--top", "2", "-o", "out", "--workers", "2", "--grace", "1", "--json"]
    command += ["--data", str(folder / "data"), "--weights", str(folder / "weights"), *TRAINING, "--rate", "0.03"]
    command += ["--steps", "16", "--batch-norm-momentum", "0.1", "--save-every", "1"]
    program = Path(sys.executable).with_name("dpc")
    run = subprocess.Popen([program, *command], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: [path for path in tmp_path.glob(f"out/*/{FILE}") if read_checkpoint(path).step > 1])
    run.send_signal(signal.SIGKILL)
    run.wait()
    steps = {path: read_checkpoint(path).step for path in tmp_path.glob(f"out/*/{FILE}")}
    assert all(step < 16 for step in steps.values())
    found = json.loads(dpc(*command).out)["finalists"]
    assert [one["final"]["place"] for one in found] == [1, 2]
    whole = training(folder, tmp_path / "whole", SETTINGS.model_copy(update={"steps": 16}))
    expected = [whole(cell, Attempt(0, 3)) for cell in best]
    assert sorted(one["final"]["score"] for one in found) == sorted(expected)
    card = (tmp_path / "out" / "winner.txt").read_text()
    assert re.search(r"branch +operator +L1 norm +share", card)
    assert (tmp_path / "out" / "winner.svg").is_file()


# Caches, wherever they lie


def test_a_cache_in_a_store_is_copied_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path / "home"))
    store = f"file://{folder}/features"
    objective = ProxyObjective(f"{store}/train", f"{store}/val", SHORT)
    near = ProxyObjective(folder / "features" / "train", folder / "features" / "val", SHORT)
    assert objective.identity == near.identity
    assert objective(CELL, Attempt(0, 0)) == near(CELL, Attempt(0, 0)) == proxy(CELL, *near.caches, SHORT).score
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "home").glob("features/*/*")}
    assert len([path for path in copies if path.name == "manifest.json"]) == 2
    again = ProxyObjective(f"{store}/train", f"{store}/val", SHORT)
    assert again.caches[0].folder.parent == tmp_path / "home" / "features"
    assert copies == {path: path.stat().st_mtime_ns for path in (tmp_path / "home").glob("features/*/*")}


def test_a_copy_that_was_cut_off_is_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path))
    copy = at_hand(f"file://{folder}/features/train")
    shutil.copytree(copy, part := copy.with_suffix(".part"))
    next(part.glob("*.safetensors")).write_bytes(b"half")
    shutil.rmtree(copy)
    assert at_hand(f"file://{folder}/features/train") == copy
    assert len(FeatureCache(copy)) == 8
    assert not part.exists()


def test_many_may_copy_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path))
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(at_hand(f"file://{folder}/features/train"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_stores_that_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path / "home"))
    for where, message in [
        (f"file://{folder}/nowhere", "there is no manifest.json"),
        ("nosuch://x/y", "the store cannot be read: Protocol not known"),
        ("http://127.0.0.1:1/x", "the store cannot be read"),
    ]:
        with pytest.raises(DpcError, match=re.escape(message)):
            at_hand(where)
    damaged = Path(shutil.copytree(folder / "features" / "train", tmp_path / "damaged"))
    next(damaged.glob("*.safetensors")).write_bytes(b"no shard")
    with pytest.raises(DpcError, match="it is damaged"):
        at_hand(f"file://{damaged}")
    assert not [path for path in (tmp_path / "home" / "features").iterdir() if path.is_dir() and not path.suffix]


def test_a_worker_with_other_files_is_refused_before_its_first_trial(folder: Path, tmp_path: Path) -> None:
    """As where a machine has another cache at the same path."""
    objective = ProxyObjective(folder / "features" / "train", folder / "features" / "val", SHORT)
    where = str(tmp_path / "s.db")
    plan = Plan.of(dpcdsl.read_space("aspp_subsets"), identity_of(objective))
    SearchStudy.begin(where, plan).close()
    other = tmp_path / "other"
    build_cache(open_data(folder / "data", "train"), DESCRIPTION, other, weights=folder / "weights")
    for wrong in (
        ProxyObjective(other, folder / "features" / "val", SHORT),
        ProxyObjective(
            folder / "features" / "train", folder / "features" / "val", SHORT.model_copy(update={"steps": 5})
        ),
    ):
        with pytest.raises(DpcError, match=rf"the objective is not the study's on {socket.gethostname()}: its \w+ is"):
            serve(Job(where, "search", wrong, "uniform", Terms(2)), End())
    with pytest.raises(DpcError, match=r"there is no manifest\.json"):
        serve(Job(where, "search", ProxyObjective(tmp_path / "a", tmp_path / "b", SHORT), "uniform", Terms(2)), End())
    with SearchStudy.open(where) as study:
        assert not list(study.records())
    serve(Job(where, "search", objective, "uniform", Terms(2)), End())
    with SearchStudy.open(where) as study:
        assert len(study.best(9)) == 2


# The command line


def test_a_search_by_the_proxy_from_a_store(
    dpc: Dpc, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "kernels").symlink_to(kernels())  # the workers need not compile them
    monkeypatch.setenv("DPCDSL_CACHE", str(tmp_path / "home"))
    options = ("--steps", "3", "--batch", "2", "--evaluate-every", "3", "--device", "cpu", "--trials", "2")
    (tmp_path / "small.dpc").write_text(SPACE)
    done = dpc("search", "small.dpc", "--cache", f"file://{folder}/features", *options)
    assert done.code == 0, done.err
    assert dpc("search", "small.dpc", "--cache", folder / "features", *options).code == 0  # the same, so it goes on
    assert json.loads(dpc("search", "status", "--json").out)["complete"] == 2


def test_fidelity_of_the_proxy(dpc: Dpc, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ways.toml").write_text(
        f"""
        [cached]
        objective = "proxy"
        cache = "{folder}/features"
        steps = 2
        batch = 2
        device = "cpu"

        [end-to-end]
        objective = "training"
        data = "{folder}/data"
        out = "trained"
        backbone = "test_resnet"
        weights = "{folder}/weights"
        crop = [65, 129]
        scales = [1.0]
        steps = 2
        batch = 2
        device = "cpu"
        save-every = 1
        """
    )
    (tmp_path / "small.dpc").write_text(SPACE)
    command = ("fidelity", "small.dpc", "ways.toml", "--count", "3", "-o", "plot.png")
    done = dpc(*command)
    assert done.code == 0, done.err
    assert "cached against end-to-end: " in done.out
    assert (tmp_path / "plot.png").stat().st_size > 3000
    assert len(list((tmp_path / "trained").glob(f"*/{FILE}"))) == 3
    found = json.loads(dpc(*command, "--json").out)
    assert all(0 <= score <= 1 for scores in found["scores"].values() for score in scores)
    wrong = (tmp_path / "ways.toml").read_text().replace("steps = 2", "steps = 0", 1)
    (tmp_path / "ways.toml").write_text(wrong)
    refused = dpc(*command)
    assert (refused.code, "proxysettings.steps" in refused.err) == (1, True)
