"""One worker: takes what waits to be run again, or asks for a new cell, evaluates it, and writes down how it ended.

Workers of a study know of one another by its database alone, and any of them may be killed at any moment. Each step is
one transaction, and who comes to know that a trial of a lower number has the better right withdraws its own: a cell is
evaluated for one trial, a lost trial is run again once, and no trial begins beyond the number that is wanted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from dpcdsl.errors import DpcError
from dpcdsl.search.objective import Attempt, Objective
from dpcdsl.search.proposer import Proposer
from dpcdsl.search.records import ATTRIBUTE, Record, environment
from dpcdsl.search.storage import Pulse, Seen, patiently, stale
from dpcdsl.search.strategies import Strategy
from dpcdsl.search.study import SearchStudy, View
from dpcdsl.search.trials import Trial

__all__ = ["SAMPLERS", "Terms", "work"]

#: Optuna's samplers that a search takes by name, made of a seed. Several at once think of what the others have asked.
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}


@dataclass(frozen=True)
class Terms:
    """How a study is worked on.

    trials: how many in all. asker, askers: which of how many workers this is. interval: seconds between two signs of
    life; grace: without one for so long a trial is given up and run again; attempts: how often before it counts as a
    failure. repeats: so many trials in a row that fail alike stop the search; since: those below this number do not
    count, which are of an earlier run.
    """

    trials: int
    asker: int = 0
    askers: int = 1
    interval: float = 10.0
    grace: float = 60.0
    attempts: int = 5
    repeats: int = 5
    since: int = 0


def work(
    study: SearchStudy,
    objective: Objective,
    strategy: Strategy | str | optuna.samplers.BaseSampler,
    terms: Terms,
    *,
    stops: Callable[[], bool] = lambda: False,
    interruptible: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Works until all trials have ended, or ``stops`` says so, or no cell is left.

    strategy: where cells come from: a strategy of ours by name or by its settings, or a sampler of Optuna's, itself or
    by its name in :data:`SAMPLERS`. interruptible: is entered while a cell is evaluated.

    Raises :class:`DpcError`: DPC098 if the storage is gone for minutes; DPC099 for a failure that repeats itself.
    KeyboardInterrupt gives up the trial, so that it is run again, and goes on to the caller.
    """
    _Worker(study, objective, strategy, terms, interruptible).run(stops)


class _Worker:
    def __init__(
        self, study: SearchStudy, objective: Objective, strategy: Any, terms: Terms, interruptible: Callable[[], Any]
    ) -> None:
        self.study, self.objective, self.terms, self.interruptible = study, objective, terms, interruptible
        self.view = View(study, terms.attempts)
        self.sampled: optuna.Study | None = None
        self.proposer: Proposer | None = None
        if isinstance(strategy, str) and strategy in SAMPLERS:
            strategy = SAMPLERS[strategy](study.plan.seed + terms.asker)
        if isinstance(strategy, optuna.samplers.BaseSampler):
            self.sampled = optuna.load_study(study_name=study.name, storage=study.storage, sampler=strategy)
        else:
            seed, asker, askers = study.plan.seed, terms.asker, terms.askers
            self.proposer = Proposer(study.space, strategy, seed=seed, asker=asker, askers=askers)
        self.checked = -math.inf
        self.silent: set[int] = set()  # trials that had not been heard of when this worker last looked

    def run(self, stops: Callable[[], bool]) -> None:
        while not stops():
            self.look()
            failure = self.view.repeated_failure(self.terms.since, self.terms.repeats)
            if failure is not None:
                raise DpcError.of(
                    "DPC099", f"the last {self.terms.repeats} trials failed alike: {failure}", hint="see to that first"
                )
            if time.monotonic() - self.checked > 2 * self.terms.interval:
                self.recover()
            mine = self.waiting() or self.begun()
            if mine is not None:
                self.evaluate(*mine)
            elif self.view.unfinished or self.view.lost():
                time.sleep(min(0.5, self.terms.interval))  # others may be lost yet
            else:
                return

    def look(self) -> None:
        for seen in self.view.update():
            if self.proposer is not None:
                self.proposer.tell(self.as_trial(seen))

    def as_trial(self, seen: Seen) -> Trial:
        record, finished = seen.record, seen.state.is_finished()
        if record is None or (record.withdrawn is not None and finished):
            return Trial(seen.number, None, None, finished)
        counts = record.withdrawn is None and seen.state == TrialState.COMPLETE and record.scores is not None
        scores = self.study.plan.larger_is_better(record.scores) if counts and record.scores is not None else None
        return Trial(seen.number, record.rank, record.asker if record.attempt == 1 else None, finished, scores)

    # Lost trials

    def recover(self) -> None:
        """Gives up trials whose workers are not heard of any more, and has them run again."""
        self.checked = time.monotonic()
        storage = self.study.storage
        silent = patiently(lambda: stale(storage, self.study.id, self.terms.grace))
        # In two looks: after an outage of the database all have been silent, and those who live are heard of again.
        for trial_id in self.silent.intersection(silent):
            self.study.give_up(trial_id)
        self.silent = set(silent)
        self.look()
        for seen in self.view.lost():
            record = seen.record
            assert record is not None
            first = seen.number if record.first is None else record.first
            again = record.but(first=first, attempt=record.attempt + 1, scores=None, environment=None, seconds=None)
            patiently(lambda again=again: self.study.add(again, TrialState.WAITING))  # type: ignore[misc]
        self.look()

    def waiting(self) -> tuple[int, int, Record] | None:
        """A trial that waited, and is this worker's now."""
        for seen in self.view.waiting():
            if seen.record is None:  # of Optuna's own making, which says of no cell
                self.study.give_up(seen.id)
                continue
            try:
                mine = patiently(lambda id=seen.id: self.study.storage.set_trial_state_values(id, TrialState.RUNNING))  # type: ignore[misc]
            except UpdateFinishedTrialError:
                mine = False
            if not mine:
                continue
            record = seen.record
            self.look()
            if record.attempt > 1 and not self.view.attempt_is_first(seen):
                self.study.withdraw(seen.id, record, "another one runs it again")
            elif record.attempt == 1 and (why := self.unrightful(seen.number, record)):
                self.study.withdraw(seen.id, record, why)
            else:
                return seen.id, seen.number, record
        return None

    # New trials

    def begun(self) -> tuple[int, int, Record] | None:
        """A new trial, unless there are enough, or no cell is left."""
        while self.view.started < self.terms.trials:
            trial_id = self.proposed() if self.proposer is not None else self.asked()
            if trial_id is None:
                return None
            self.look()
            seen = self.view.unfinished.get(trial_id)
            if seen is None or seen.record is None:  # given up by another while this one was held
                continue
            why = self.unrightful(seen.number, seen.record)
            if why is None:
                return trial_id, seen.number, seen.record
            self.study.withdraw(trial_id, seen.record, why)
            self.look()
        return None

    def proposed(self) -> int | None:
        assert self.proposer is not None
        rank = self.proposer.ask()
        if rank is None:
            return None
        record = self.study.record_of(rank, self.terms.asker).but(environment=environment())
        return patiently(lambda: self.study.add(record, TrialState.RUNNING))

    def asked(self) -> int:
        assert self.sampled is not None
        sampled = self.sampled
        trial = patiently(lambda: sampled.ask(self.study.distributions))
        record = self.study.record_of(self.study.genes.rank(trial.params), self.terms.asker)
        record = record.but(environment=environment())
        patiently(lambda: self.study.write(trial._trial_id, record))
        return trial._trial_id

    def unrightful(self, number: int, record: Record) -> str | None:
        """Why a trial does not count."""
        if self.view.place(number) >= self.terms.trials:
            return "there are enough trials"
        if self.proposer is not None and self.view.number_of(record.key) != number:
            return f"its cell is that of trial {self.view.number_of(record.key)}"
        return None

    # A trial

    def evaluate(self, trial_id: int, number: int, record: Record) -> None:
        try:
            with Pulse(self.study.storage, trial_id, self.terms.interval), self.interruptible():
                ended = self.known(number, record) or self.ended(number, record)
        except BaseException:  # interrupted: it is given up at once, and not when it has been silent for long
            self.study.give_up(trial_id)
            raise
        self.study.finish(trial_id, ended)

    def known(self, number: int, record: Record) -> Record | None:
        """With the scores of an earlier trial of the same cell, as Optuna's samplers may propose."""
        if self.sampled is None or self.view.number_of(record.key) == number:
            return None
        for trial in self.sampled.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            there = trial.user_attrs.get(ATTRIBUTE, {})
            if there.get("key") == record.key and there.get("reused") is None:
                return record.but(scores=there["scores"], reused=trial.number, seconds=0.0)
        return None

    def ended(self, number: int, record: Record) -> Record:
        attempt = Attempt(number, record.seed)
        began = time.perf_counter()
        score, failure = math.nan, None
        try:
            score = float(self.objective(self.study.genes.cells.unrank(record.rank), attempt))
        except DpcError as error:
            failure = "; ".join(f"{one.message} [{one.code}]" for one in error.diagnostics)
        except (Exception, SystemExit) as error:
            failure = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
        if failure is None and not math.isfinite(score):
            failure = f"the score is {score}"
        costs = {name: float(record.costs[name]) for name in self.study.plan.minimize}
        return record.but(
            scores=None if failure else {"score": score, **costs},
            failure=failure,
            seconds=time.perf_counter() - began,
            environment=environment(),
            notes=attempt.notes,
        )
