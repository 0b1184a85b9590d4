"""The paper's sampler for Optuna: `optuna.create_study(sampler=CellSampler(space))`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.search.genes import Genes
from dpcdsl.search.proposer import Proposer
from dpcdsl.search.strategies import Strategy
from dpcdsl.search.trials import Trial
from dpcdsl.space import Space

__all__ = ["CellSampler", "suggest_cell"]

_ASKER = "dpcdsl:asker"


def suggest_cell(trial: optuna.Trial, space: Space) -> Cell:
    """A cell of ``space``, whatever the study's sampler: an input and an operator for each branch.

    Values that the space's constraints leave out stand for the next cell in order: every trial has a cell of the space.
    """
    genes = _genes_of(space)
    values = {name: trial.suggest_categorical(name, choices) for name, choices in genes.choices.items()}
    return genes.cells.unrank(genes.rank(values))


class CellSampler(BaseSampler):
    """Proposes cells of a space by a strategy of :mod:`dpcdsl.search.strategies`, distinct up to isomorphism.

    Parameters that are not the space's are sampled uniformly. Threads of one study may share it; processes are each
    given a number of their own, ``asker`` of ``askers``, and then propose different cells without talking. Where a
    strategy has nothing left, which only a small space comes to, the study is stopped; trials that it is asked for all
    the same have uniform cells.

    >>> import dpcdsl
    >>> study = optuna.create_study(direction="maximize", sampler=CellSampler(dpcdsl.read_space("dpc"), seed=1))
    >>> dpcdsl.cost(suggest_cell(study.ask(), dpcdsl.read_space("dpc"))).params > 0
    True
    """

    def __init__(
        self, space: Space, strategy: Strategy | str = "near-best", *, seed: int = 0, asker: int = 0, askers: int = 1
    ) -> None:
        self._settings = (space, strategy, seed, asker, askers)
        self._proposer = Proposer(space, strategy, seed=seed, asker=asker, askers=askers)
        self._others = RandomSampler(seed=seed)
        self._distributions = {
            name: CategoricalDistribution(values) for name, values in self._proposer.genes.choices.items()
        }
        self._next = 0  # trials below this number have finished, and been told
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """What it knows is the study's, which it will read anew."""
        return _sampler, self._settings

    def reseed_rng(self) -> None:
        self._others.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = {name: known for name, known in search_space.items() if name not in self._distributions}
        found = {name: self._others.sample_independent(study, trial, name, known) for name, known in others.items()}
        if not self._distributions.keys() & search_space.keys():
            return found
        with self._lock:
            self._read(study)
            rank = self._proposer.ask()
            if rank is not None:
                # Told at once: what another thread asks for must be another cell, and the study knows this one only
                # when its parameters have been suggested.
                self._proposer.tell(Trial(trial.number, rank, self._proposer.asker))
        if rank is None:
            _stop(study)
            return found
        study._storage.set_trial_system_attr(trial._trial_id, _ASKER, self._proposer.asker)
        genes = self._proposer.genes
        values = genes.of(genes.cells.unrank(rank))
        return found | {name: value for name, value in values.items() if name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def _read(self, study: Study) -> None:
        signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
        trials = study.get_trials(deepcopy=False)
        for trial in trials[self._next :]:
            if trial.state.is_finished() and trial.number == self._next:
                self._next += 1
            rank = self._rank(trial.params)
            finished = trial.state.is_finished()
            if rank is None and not finished:
                continue  # not yet suggested
            scored = trial.state == TrialState.COMPLETE and rank is not None
            scores = tuple(s * v for s, v in zip(signs, trial.values, strict=True)) if scored else None
            self._proposer.tell(Trial(trial.number, rank, trial.system_attrs.get(_ASKER), finished, scores))

    def _rank(self, values: Mapping[str, Any]) -> int | None:
        if not self._distributions.keys() <= values.keys():
            return None
        try:
            return self._proposer.genes.rank(values)
        except DpcError:  # parameters of these names that are someone else's
            return None


def _sampler(space: Space, strategy: Strategy | str, seed: int, asker: int, askers: int) -> CellSampler:
    return CellSampler(space, strategy, seed=seed, asker=asker, askers=askers)


def _stop(study: Study) -> None:
    with contextlib.suppress(RuntimeError):  # outside of `optimize`: who asks sees that there is nothing new
        study.stop()


@lru_cache(maxsize=16)
def _genes_of(space: Space) -> Genes:
    return Genes(space)
