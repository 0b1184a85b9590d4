"""A study: what was searched for, in which space, and all that was found. It is kept in a database, and only there."""

from __future__ import annotations

import bisect
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from pydantic import Field

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, shown
from dpcdsl.identity import fingerprint
from dpcdsl.layers import Size
from dpcdsl.search.genes import Genes
from dpcdsl.search.records import ATTRIBUTE, Record
from dpcdsl.search.storage import Seen, changes, open_storage, patiently
from dpcdsl.search.trials import beaten
from dpcdsl.space import Space
from dpcdsl.syntax import parse
from dpcdsl.values import Value

__all__ = ["COSTS", "Plan", "SearchStudy", "View", "last_attempts"]

#: Costs that can be minimized beside the score.
COSTS = ("params", "madds")

_BEGINS = 5.0  # seconds that who makes a study has to say of what: others wait for it, and then do so themselves


class Plan(Value):
    """What a study searches for; it goes on with the same alone.

    space: its text in one line, and name: what it is called in IDs. objective: what
    :func:`~dpcdsl.search.objective.identity_of` says. minimize: costs that are searched for beside the score. features,
    size: of the map, for costs. seed: of the proposals, and of every evaluation.
    """

    version: int = 1
    name: str
    space: str
    fingerprint: str
    objective: dict[str, Any]
    minimize: tuple[str, ...] = ()
    features: int = 320
    size: Size = (65, 129)
    seed: int = Field(0, ge=0, lt=2**63)

    @classmethod
    def of(cls, space: Space, objective: dict[str, Any], name: str = "", **others: Any) -> Plan:
        """Raises :class:`DpcError` (DPC062) for a cost that is not one of :data:`COSTS`."""
        plan = cls(name=name, space=str(space), fingerprint=fingerprint(space), objective=objective, **others)
        for cost in plan.minimize:
            if cost not in COSTS:
                raise DpcError.of("DPC062", f"{shown(cost)} is not a cost", hint=f"take {' or '.join(COSTS)}")
        return plan

    @property
    def scores(self) -> tuple[str, ...]:
        return ("score", *self.minimize)

    @property
    def directions(self) -> list[StudyDirection]:
        return [StudyDirection.MAXIMIZE, *(StudyDirection.MINIMIZE for _ in self.minimize)]

    def larger_is_better(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """The values of a trial, as a strategy compares them."""
        return tuple(scores[name] if name == "score" else -scores[name] for name in self.scores)


class SearchStudy:
    """A study in its database. Make one with :meth:`begin`, or :meth:`open` one that is there."""

    def __init__(self, storage: RDBStorage, name: str, study_id: int, plan: Plan) -> None:
        self.storage, self.name, self.id, self.plan = storage, name, study_id, plan
        self.space = parse(f"space s {{ {plan.space} }}").space()
        self.genes = Genes(self.space)
        self.distributions: dict[str, BaseDistribution] = {
            gene: CategoricalDistribution(values) for gene, values in self.genes.choices.items()
        }

    @classmethod
    def begin(cls, where: str, plan: Plan, name: str = "search") -> SearchStudy:
        """The study of this name in a storage: a new one, or the one that is there.

        Raises :class:`DpcError` (DPC098) if that one is of another plan, or the storage cannot be used.
        """
        storage = open_storage(where)
        with _closed_if_refused(storage):
            is_new = True
            try:
                study_id = patiently(lambda: storage.create_new_study(plan.directions, name))
            except optuna.exceptions.DuplicatedStudyError:
                is_new = False
                study_id = patiently(lambda: storage.get_study_id_from_name(name))
            there = _plan_of(storage, study_id)
            if there is None:
                if storage.get_n_trials(study_id) or storage.get_study_directions(study_id) != plan.directions:
                    raise DpcError.of("DPC098", f"{shown(name)} is a study, but no search of cells", place=where)
                until = time.monotonic() + _BEGINS
                while not is_new and there is None and time.monotonic() < until:
                    time.sleep(0.1)
                    there = _plan_of(storage, study_id)
            if there is None:  # it is this one's, or its maker was killed
                patiently(lambda: storage.set_study_user_attr(study_id, ATTRIBUTE, plan.model_dump(mode="json")))
                there = plan
            mine = plan.model_dump(mode="json")
            for field, value in there.model_dump(mode="json").items():
                if field != "name" and value != mine[field]:
                    then, now = shown(value), shown(mine[field])
                    raise DpcError.of(
                        "DPC098",
                        f"the study {name} was begun with another {field}: {then}, and not {now}",
                        place=where,
                        hint="go on with what it was begun with, or give this search another --name",
                    )
            return cls(storage, name, study_id, there)

    @classmethod
    def open(cls, where: str, name: str = "search") -> SearchStudy:
        """Raises :class:`DpcError` (DPC098) if there is none."""
        storage = open_storage(where, new=False)
        with _closed_if_refused(storage):
            try:
                study_id = patiently(lambda: storage.get_study_id_from_name(name))
            except KeyError:
                names = ", ".join(study.study_name for study in storage.get_all_studies()) or "there is none"
                raise DpcError.of(
                    "DPC098", f"there is no study {shown(name)}", place=where, hint=f"--name one of: {names}"
                ) from None
            plan = _plan_of(storage, study_id)
            if plan is None:
                raise DpcError.of("DPC098", f"{shown(name)} is a study, but no search of cells", place=where)
            return cls(storage, name, study_id, plan)

    def close(self) -> None:
        """Gives back the connections to the database."""
        _close(self.storage)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Trials

    def record_of(self, rank: int, asker: int | None = None) -> Record:
        plan = self.plan
        return Record.of(rank, self.genes, plan.name, plan.features, plan.size, plan.seed, asker)

    def add(self, record: Record, state: TrialState) -> int:
        """A new trial, all of it in one transaction. Its ID."""
        cell = self.genes.cells.unrank(record.rank)
        trial = create_trial(
            state=state,
            params=self.genes.of(cell),
            distributions=self.distributions,
            user_attrs={ATTRIBUTE: record.model_dump(mode="json")},
        )
        return self.storage.create_new_trial(self.id, trial)

    def enqueue(self, cell: Cell) -> None:
        """Has a cell evaluated before others are proposed; one that is in the study already is not run again.

        Raises :class:`DpcError` (DPC055) if it is not in the space.
        """
        record = self.record_of(self.genes.cells.rank(cell))
        if View(self).updated().number_of(record.key) is None:
            patiently(lambda: self.add(record, TrialState.WAITING))

    def write(self, trial_id: int, record: Record) -> None:
        self.storage.set_trial_user_attr(trial_id, ATTRIBUTE, record.model_dump(mode="json"))

    def finish(self, trial_id: int, record: Record) -> bool:
        """Writes how a trial ended. False if it is not this one's any more: it was given up, and is run again."""
        state = TrialState.FAIL if record.scores is None else TrialState.COMPLETE
        values = None if record.scores is None else [record.scores[name] for name in self.plan.scores]

        def write() -> bool:
            try:
                self.write(trial_id, record)
                return self.storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:  # or the answer to what was written before was lost
                there = self.storage.get_trial(trial_id)
                return there.state == state and there.user_attrs.get(ATTRIBUTE) == record.model_dump(mode="json")

        return patiently(write)

    def withdraw(self, trial_id: int, record: Record, why: str) -> None:
        self.finish(trial_id, record.but(withdrawn=why, scores=None))

    def give_up(self, trial_id: int) -> bool:
        """Says that a running trial's worker has gone, so that it is run again. False if it had ended before."""
        try:
            return patiently(lambda: self.storage.set_trial_state_values(trial_id, TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False

    def records(self) -> Iterator[Seen]:
        """All trials, by their numbers."""
        yield from patiently(lambda: changes(self.storage, self.id, -1, ()))

    def best(self, count: int = 1) -> list[Seen]:
        """The complete trials that the fewest others beat in every score, best first; of equal ones the earlier."""
        found: dict[str, Seen] = {}  # by the class
        for seen in self.records():
            if seen.state == TrialState.COMPLETE and seen.record and seen.record.scores:
                found.setdefault(seen.record.key, seen)
        trials = [*found.values()]
        scores = [seen.record.scores for seen in trials if seen.record and seen.record.scores]
        places = np.argsort(beaten([self.plan.larger_is_better(one) for one in scores]), kind="stable")
        return [trials[place] for place in places[:count].tolist()]


def last_attempts(trials: Iterable[Seen]) -> list[Seen]:
    """Of the trials of a study those that count and have ended, each once, by how it has ended in the end."""
    return [
        seen
        for seen in trials
        if seen.record is not None
        and seen.record.withdrawn is None
        and (seen.state == TrialState.COMPLETE or (seen.state == TrialState.FAIL and seen.record.failure is not None))
    ]


class View:
    """What one worker knows of a study. It is brought up to date by what has changed, and keeps little of a trial."""

    def __init__(self, study: SearchStudy, attempts: int = 5) -> None:
        self.study, self.attempts = study, attempts
        self.unfinished: dict[int, Seen] = {}
        self.finished = 0  # trials that have an end, each once however many attempts it took
        self.complete = 0
        self.failures: Counter[str] = Counter()
        self.last: deque[tuple[int, str | None]] = deque(maxlen=1024)  # the latest ends: number, and failure
        self.best: tuple[float, Seen] | None = None
        self.count = 0  # all trials, whatever became of them; their numbers are below it
        self._after = -1
        # Numbers of what is not a trial of its own: further attempts, and what is withdrawn.
        self._apart: list[int] = []
        self._first_of_class: dict[str, int] = {}
        self._attempts: dict[tuple[int, int], int] = {}
        self._lost: dict[int, Seen] = {}

    def update(self) -> list[Seen]:
        """What has changed since the last time, by number."""
        changed = patiently(lambda: changes(self.study.storage, self.study.id, self._after, self.unfinished.keys()))
        return [seen for seen in changed if self._take(seen)]

    def updated(self) -> View:
        self.update()
        return self

    def _take(self, seen: Seen) -> bool:
        known = self.unfinished.get(seen.id)
        if known == seen:
            return False
        is_new = seen.id > self._after
        self._after = max(self._after, seen.id)
        if is_new:
            self.count += 1
        record = seen.record
        if record is not None and (known is None or known.record is None):
            self._meet(seen, record)
        if seen.state.is_finished():
            self.unfinished.pop(seen.id, None)
            self._end(seen)
        else:
            self.unfinished[seen.id] = seen
        return True

    def _meet(self, seen: Seen, record: Record) -> None:
        """A trial whose cell is known now."""
        if record.attempt > 1:
            assert record.first is not None
            bisect.insort(self._apart, seen.number)
            self._attempts.setdefault((record.first, record.attempt), seen.number)
            before = self._lost.get(record.first)
            if before is not None and before.record is not None and before.record.attempt < record.attempt:
                del self._lost[record.first]
        elif record.withdrawn is None:
            first = self._first_of_class.get(record.key, seen.number)
            self._first_of_class[record.key] = min(first, seen.number)

    def _end(self, seen: Seen) -> None:
        record = seen.record
        if record is None or record.withdrawn is not None:
            if record is None or record.attempt == 1:
                bisect.insort(self._apart, seen.number)
                if record is not None and self._first_of_class.get(record.key) == seen.number:
                    del self._first_of_class[record.key]
            return
        failure = record.failure
        if seen.is_lost:
            first = seen.number if record.first is None else record.first
            if record.attempt < self.attempts:
                if (first, record.attempt + 1) not in self._attempts:
                    self._lost[first] = seen
                return
            failure = f"its worker died {record.attempt} times"
        self.finished += 1
        self.last.append((seen.number, failure))
        if failure is not None:
            self.failures[failure] += 1
            return
        self.complete += 1
        assert record.scores is not None
        score = record.scores["score"]
        if self.best is None or score > self.best[0]:
            self.best = (score, seen)

    # What follows from it

    @property
    def started(self) -> int:
        """Trials, each once, that count or may do so."""
        return self.count - len(self._apart)

    def place(self, number: int) -> int:
        """How many trials that count, or may do so, have a lower number."""
        return number - bisect.bisect_left(self._apart, number)

    def number_of(self, key: str) -> int | None:
        """The lowest number of a trial of this class."""
        return self._first_of_class.get(key)

    def attempt_is_first(self, seen: Seen) -> bool:
        """Whether no other trial has begun the same attempt before."""
        assert seen.record is not None
        assert seen.record.first is not None
        return self._attempts[seen.record.first, seen.record.attempt] == seen.number

    def waiting(self) -> list[Seen]:
        found = [seen for seen in self.unfinished.values() if seen.state == TrialState.WAITING]
        return sorted(found, key=lambda seen: seen.number)

    def lost(self) -> list[Seen]:
        """Trials whose worker has gone, and that are to be run again."""
        return list(self._lost.values())

    def repeated_failure(self, since: int, times: int) -> str | None:
        """A failure that the latest ``times`` ends all had, those of trials below number ``since`` not counted."""
        ends = [failure for number, failure in self.last if number >= since][-times:]
        alike = {None if failure is None else re.sub(r"\d+", "#", failure) for failure in ends}
        return ends[-1] if len(ends) == times and len(alike) == 1 else None


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def _closed_if_refused(storage: RDBStorage) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _close(storage)
        raise


def _plan_of(storage: RDBStorage, study_id: int) -> Plan | None:
    given = patiently(lambda: storage.get_study_user_attrs(study_id)).get(ATTRIBUTE)
    return None if given is None else Plan.model_validate(given)
