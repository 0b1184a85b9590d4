"""The sampler in Optuna: Optuna's own tests of samplers, and that the cells are those of our strategies."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

import dpcdsl
from dpcdsl import Cell, Space
from dpcdsl.search.proposer import Proposer, class_key
from dpcdsl.search.sampler import CellSampler, suggest_cell
from dpcdsl.search.trials import Trial

DPC = dpcdsl.read_space("dpc")
TIGHT = dpcdsl.read_space("dpc where depth <= 2 and params(F=320) <= 0.36M")

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _OfCells:
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CellSampler(DPC, seed=1)


class TestBasic(_OfCells, BasicSamplerTestCase):
    pass


class TestRelative(_OfCells, RelativeSamplerTestCase):
    pass


class TestMultiObjective(_OfCells, MultiObjectiveSamplerTestCase):
    pass


def score(cell: Cell) -> float:
    return float(sum(hash(class_key(cell)[i]) for i in range(4)))


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("space", [DPC, TIGHT], ids=["dpc", "tight"])
def test_the_cells_are_the_proposers(space: Space, direction: str) -> None:
    study = optuna.create_study(direction=direction, sampler=CellSampler(space, seed=4))
    proposer, seen = Proposer(space, "near-best", seed=4), []

    def objective(trial: optuna.Trial) -> float:
        cell = suggest_cell(trial, space)
        seen.append(cell)
        return score(cell)

    study.optimize(objective, n_trials=40)
    for number, cell in enumerate(seen):
        rank = proposer.ask()
        assert rank is not None
        assert proposer.genes.cells.unrank(rank) == cell
        value = score(cell) if direction == "maximize" else -score(cell)
        proposer.tell(Trial(number, rank, 0, True, (value,)))
    assert all(cell in space for cell in seen)


@pytest.mark.parametrize("jobs", [1, 4])
def test_threads_ask_for_other_cells(jobs: int) -> None:
    study = optuna.create_study(sampler=CellSampler(DPC, seed=1))
    seen, lock = [], Lock()

    def objective(trial: optuna.Trial) -> float:
        cell = suggest_cell(trial, DPC)
        with lock:
            seen.append(class_key(cell))
        return score(cell)

    study.optimize(objective, n_trials=60, n_jobs=jobs)
    assert len(set(seen)) == 60


def test_askers_ask_for_other_cells_and_go_on_with_the_study() -> None:
    """In turns on one study; each as if it had been there from the start."""
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    for _ in range(3):
        for asker in range(2):
            study = optuna.load_study(study_name="s", storage=storage, sampler=CellSampler(DPC, asker=asker, askers=2))
            study.optimize(lambda trial: score(suggest_cell(trial, DPC)), n_trials=8)
    keys = [class_key(suggest_cell(optuna.trial.FixedTrial(trial.params), DPC)) for trial in study.trials]  # type: ignore[arg-type]
    assert len(set(keys)) == 48


def test_a_space_that_is_empty_of_new_cells_stops_the_study() -> None:
    space = dpcdsl.read_space("aspp_subsets")
    study = optuna.create_study(sampler=CellSampler(space))
    study.optimize(lambda trial: score(suggest_cell(trial, space)), n_trials=100)
    keys = {class_key(suggest_cell(optuna.trial.FixedTrial(trial.params), space)) for trial in study.trials}  # type: ignore[arg-type]
    assert len(keys) == 31
    assert len(study.trials) == 32


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_samplers_of_optuna_keep_to_the_space(sampler: Any) -> None:
    study = optuna.create_study(sampler=sampler(seed=1))
    seen = []

    def objective(trial: optuna.Trial) -> float:
        cell = suggest_cell(trial, TIGHT)
        seen.append(cell)
        return score(cell)

    study.optimize(objective, n_trials=30)
    assert all(cell in TIGHT for cell in seen)


def test_trials_that_end_in_another_order_are_all_learned_from() -> None:
    """What a trial is known to have scored does not depend on which others run meanwhile; a pruned one has no score."""
    study = optuna.create_study(direction="maximize", sampler=CellSampler(DPC, "evolution", seed=4))
    proposer, ranks = Proposer(DPC, "evolution", seed=4), {}

    def asked() -> optuna.Trial:
        trial = study.ask()
        rank = ranks[trial.number] = proposer.genes.cells.rank(suggest_cell(trial, DPC))
        assert rank == proposer.ask()
        proposer.tell(Trial(trial.number, rank, 0))
        return trial

    open_trials = [asked() for _ in range(3)]
    for number in range(60):
        open_trials.append(asked())
        trial = open_trials.pop((7 * number) % len(open_trials) if number % 3 else -1)  # the first ones stay long
        pruned = number % 5 == 0
        value = score(proposer.genes.cells.unrank(ranks[trial.number]))
        study.tell(trial, None if pruned else value, state=TrialState.PRUNED if pruned else None)
        proposer.tell(Trial(trial.number, ranks[trial.number], 0, True, None if pruned else (value,)))


def test_threads_ask_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = CellSampler(DPC, seed=1)
    ask, inside, most = sampler._proposer.ask, 0, 0

    def watched() -> int | None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return ask()

    monkeypatch.setattr(sampler._proposer, "ask", watched)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: score(suggest_cell(trial, DPC)), n_trials=20, n_jobs=4)
    assert most == 1


def test_parameters_of_other_values_are_someone_elses() -> None:
    """As when a study was begun on another space."""
    study = optuna.create_study(sampler=CellSampler(DPC, seed=1))
    genes = Proposer(DPC).genes
    values = dict.fromkeys(genes.choices, "mine")
    known = {name: optuna.distributions.CategoricalDistribution(["mine"]) for name in values}
    study.add_trial(optuna.trial.create_trial(params=values, distributions=known, value=1.0))
    proposer = Proposer(DPC, seed=1)
    proposer.tell(Trial(0, None, finished=True))
    for number in range(1, 4):
        trial = study.ask()
        cell, rank = suggest_cell(trial, DPC), proposer.ask()
        assert rank == proposer.genes.cells.rank(cell)
        study.tell(trial, score(cell))
        proposer.tell(Trial(number, rank, 0, True, (-score(cell),)))


def test_it_can_be_pickled() -> None:
    """And proposes what it would have."""
    found = []
    for again in (False, True):
        study = optuna.create_study(sampler=CellSampler(DPC, seed=4))
        study.optimize(lambda trial: score(suggest_cell(trial, DPC)), n_trials=12)
        if again:
            study.sampler = pickle.loads(pickle.dumps(study.sampler))
        found.append(suggest_cell(study.ask(), DPC))
    assert found[0] == found[1]
