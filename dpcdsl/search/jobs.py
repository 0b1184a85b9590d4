"""What a worker is given to do, wherever it runs, and how it is told to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dpcdsl.errors import DpcError, shown
from dpcdsl.search.objective import Objective
from dpcdsl.search.records import environment
from dpcdsl.search.storage import OUTAGE
from dpcdsl.search.study import SearchStudy
from dpcdsl.search.worker import Terms, work

__all__ = ["END_CODE", "End", "Job", "serve"]

END_CODE = 143  # of a process that has ended because it was asked to, as by SIGTERM


@dataclass(frozen=True)
class Job:
    """One worker's part of a search. All of it can be pickled.

    where, name: the study's, which is there. strategy: as in :func:`~dpcdsl.search.worker.work`. terms: with the
    worker's number. prepare: is called first, for what a plugin registers.
    """

    where: str
    name: str
    objective: Objective
    strategy: Any
    terms: Terms
    prepare: Callable[[], object] = dict

    def of(self, asker: int) -> Job:
        """The same for another worker."""
        return replace(self, terms=replace(self.terms, asker=asker))


class End:
    """Whether a worker has been asked to end. While a cell is evaluated it does so at once, by a KeyboardInterrupt;
    what it does with the database it finishes first.
    """

    def __init__(self) -> None:
        self.asked = self.evaluates = False

    def ask(self, *_: object) -> None:
        """Of a signal, too; more often than once does no more."""
        first, self.asked = not self.asked, True
        if first and self.evaluates:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self.evaluates = True
        if self.asked:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        self.evaluates = False


def serve(job: Job, end: End) -> None:
    """Works until the search is at its end, or this worker is asked to end, which may raise KeyboardInterrupt.

    Raises :class:`DpcError`: DPC098 if the objective is another than the study's, as with a cache that is not the same
    on every machine, and what :func:`~dpcdsl.search.worker.work` raises.
    """
    job.prepare()
    with _opened(job.where, job.name) as study:
        _check(job.objective, study)
        work(study, job.objective, job.strategy, job.terms, stops=lambda: end.asked, interruptible=lambda: end)


def _opened(where: str, name: str) -> SearchStudy:
    """The study, which is there: if it cannot be opened, the database is away for a while."""
    until = time.monotonic() + OUTAGE
    while True:
        try:
            return SearchStudy.open(where, name)
        except DpcError as error:
            if error.codes != ("DPC098",) or time.monotonic() > until:
                raise
            time.sleep(1)


def _check(objective: Objective, study: SearchStudy) -> None:
    """Before the first trial: what an objective reads from files may be something else on another machine."""
    found = getattr(objective, "identity", None)
    if not isinstance(found, dict) or found == study.plan.objective:
        return
    host = environment()["host"]
    for name in found.keys() | study.plan.objective.keys():
        then, now = study.plan.objective.get(name), found.get(name)
        if then != now:
            raise DpcError.of(
                "DPC098",
                f"the objective is not the study's on {host}: its {name} is {shown(now)}, and not {shown(then)}",
                hint="give every machine the same files: the same caches, or one store for all",
            )
