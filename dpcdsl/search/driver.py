"""A search: workers on one study, wherever they run, started again if they die, until all is done."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import TrialState

from dpcdsl.cell import Cell
from dpcdsl.search.fleet import Crew, Fleet
from dpcdsl.search.jobs import Job
from dpcdsl.search.objective import Objective
from dpcdsl.search.processes import Processes
from dpcdsl.search.proposer import class_key
from dpcdsl.search.storage import Seen
from dpcdsl.search.strategies import Strategy
from dpcdsl.search.study import Plan, SearchStudy, View
from dpcdsl.search.worker import Terms

__all__ = ["SearchProgress", "evaluate_all", "search"]

_LOOKS = 0.5  # seconds between two looks at the study


@dataclass(frozen=True)
class SearchProgress:
    """Of ``trials``, ``finished`` have ended, ``complete`` of them with a score; ``running`` are being evaluated.

    best: the trial with the best score. rate: ends a second, in this run. failures: by their reason.
    """

    trials: int
    finished: int
    complete: int
    running: int
    best: Seen | None
    rate: float
    failures: Mapping[str, int]


def search(
    where: str,
    plan: Plan,
    objective: Objective,
    strategy: Strategy | str | Any = "near-best",
    *,
    trials: int,
    workers: int = 1,
    name: str = "search",
    first: Sequence[Cell] = (),
    terms: Terms | None = None,
    fleet: Fleet | None = None,
    prepare: Callable[[], object] = dict,
    report: Callable[[SearchProgress], None] = lambda _: None,
) -> SearchStudy:
    """Searches until ``trials`` trials have ended, and returns the study. The same call goes on where one has stopped.

    where: a file, or a database's URL. strategy: as in :func:`~dpcdsl.search.worker.work`; an object must be such as
    can be pickled, and so must ``objective``. workers: how many; the fleet says where: by default they are processes of
    this machine. first: cells that are evaluated before others. terms: intervals and patience; its trials and askers
    are set here. prepare: is called first in each worker, for what a plugin registers.

    Raises :class:`DpcError`: DPC098 if the study is another's, or its storage is gone; DPC099 if workers die again and
    again, or trials fail alike. KeyboardInterrupt when the workers have ended: what they were evaluating is run again.
    """
    with contextlib.ExitStack() as refused:
        study = refused.enter_context(SearchStudy.begin(where, plan, name))
        for cell in first:
            study.enqueue(cell)
        view = View(study).updated()
        given = terms or Terms(trials)
        terms = replace(given, trials=trials, askers=workers, since=max(given.since, view.count))
        began, before = time.monotonic(), view.finished

        def tell() -> None:
            view.update()
            report(_progress(view, trials, (view.finished - before) / (time.monotonic() - began)))

        if view.finished < trials or view.unfinished or view.lost():
            with fleet or Processes() as place:
                crew = Crew(place, Job(where, name, objective, strategy, terms, prepare))
                try:
                    with _interrupted_by_terminate():
                        while crew.tend(view.finished):
                            time.sleep(_LOOKS)
                            tell()
                finally:
                    crew.end()
        tell()
        refused.pop_all()  # the caller closes it
    return study


def evaluate_all(
    where: str, plan: Plan, objective: Objective, cells: Sequence[Cell], *, name: str, **options: Any
) -> None:
    """Has ``cells`` evaluated, each once, in a study of just these and what an earlier call has given. options: of
    :func:`search`, which it raises as well.
    """
    with SearchStudy.begin(where, plan, name) as study:  # what an earlier call has begun is finished, too
        records = [seen.record for seen in study.records() if seen.record and seen.record.withdrawn is None]
    trials = len({record.key for record in records} | {class_key(cell).hex() for cell in cells})
    # All are given: the strategy is never asked.
    search(where, plan, objective, "exhaustive", trials=trials, name=name, first=cells, **options).close()


def _progress(view: View, trials: int, rate: float) -> SearchProgress:
    running = sum(seen.state == TrialState.RUNNING for seen in view.unfinished.values())
    best = view.best[1] if view.best else None
    return SearchProgress(trials, view.finished, view.complete, running, best, rate, dict(view.failures))


@contextlib.contextmanager
def _interrupted_by_terminate() -> Iterator[None]:
    """SIGTERM is as Ctrl-C is, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
