"""A search on one machine: so many worker processes on one study, started again if they die, until all is done."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import TrialState

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.search.objective import Objective
from dpcdsl.search.storage import OUTAGE, Seen
from dpcdsl.search.strategies import Strategy
from dpcdsl.search.study import Plan, SearchStudy, View
from dpcdsl.search.worker import Terms, work

__all__ = ["SearchProgress", "search"]

_LOOKS = 0.5  # seconds between two looks at the study
_DEATHS = 3  # of each worker in a row, between which no trial has ended, before the search gives up
_KILLED = 0.1  # of a death counts one by a signal that someone else has sent
_ASKED = 128 + signal.SIGTERM  # the exit code of a worker that was asked to end, by us or by someone else
_PATIENCE = 30.0  # seconds in which a worker has to end when it is asked to


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
    prepare: Callable[[], object] = dict,
    report: Callable[[SearchProgress], None] = lambda _: None,
) -> SearchStudy:
    """Searches until ``trials`` trials have ended, and returns the study. The same call goes on where one has stopped.

    where: a file, or a database's URL. strategy: as in :func:`~dpcdsl.search.worker.work`; an object must be such as
    can be pickled, and so must ``objective``. workers: processes; the machine's cores are divided among them. first:
    cells that are evaluated before others. terms: intervals and patience; its trials and askers are set here. prepare:
    is called first in each process, for what a plugin registers.

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
        crew = _Crew(where, name, objective, strategy, terms, prepare)
        began, before = time.monotonic(), view.finished

        def tell() -> None:
            view.update()
            report(_progress(view, trials, (view.finished - before) / (time.monotonic() - began)))

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


def _progress(view: View, trials: int, rate: float) -> SearchProgress:
    running = sum(seen.state == TrialState.RUNNING for seen in view.unfinished.values())
    best = view.best[1] if view.best else None
    return SearchProgress(trials, view.finished, view.complete, running, best, rate, dict(view.failures))


class _Crew:
    """The worker processes."""

    def __init__(
        self,
        where: str,
        name: str,
        objective: Objective,
        strategy: Any,
        terms: Terms,
        prepare: Callable[[], object],
    ) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.job = (prepare, where, name, objective, strategy)
        self.terms = terms
        self.reasons = self.context.SimpleQueue()
        self.processes: list[Any] = [None] * terms.askers  # they are started when they are first tended
        self.done = [False] * terms.askers
        self.deaths, self.finished = 0.0, -1

    def _started(self, asker: int) -> Any:
        terms = replace(self.terms, asker=asker)
        process = self.context.Process(target=_main, args=(os.getpid(), *self.job, terms, self.reasons), daemon=True)
        threads = max(1, (os.cpu_count() or 1) // self.terms.askers)
        with _environment(OMP_NUM_THREADS=str(threads)):  # is read when a process starts
            process.start()
        return process

    def tend(self, finished: int) -> bool:
        """Starts who is not there, or has died; False when all have done their work."""
        if finished != self.finished:
            self.deaths, self.finished = 0, finished
        for asker, process in enumerate(self.processes):
            if process is None:
                self.processes[asker] = self._started(asker)
                continue
            if self.done[asker] or process.is_alive():
                continue
            if process.exitcode == 0:
                self.done[asker] = True
                continue
            if not self.reasons.empty():
                raise self.reasons.get()
            self.deaths += _KILLED if process.exitcode in (-signal.SIGKILL, _ASKED) else 1
            if self.deaths > _DEATHS * len(self.processes):
                raise DpcError.of(
                    "DPC099",
                    f"workers die again and again, the last one by {_how(process.exitcode)}",
                    hint="what they have written is above; often it is memory: fewer --workers",
                )
            self.processes[asker] = self._started(asker)
        return not all(self.done)

    def end(self) -> None:
        processes = [process for process in self.processes if process is not None]
        for process in processes:
            process.terminate()
        until = time.monotonic() + _PATIENCE
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _main(
    parent: int,
    prepare: Callable[[], object],
    where: str,
    name: str,
    objective: Objective,
    strategy: Any,
    terms: Terms,
    reasons: Any,
) -> None:
    """A worker process: it ends with its parent, and in peace when it is told to terminate."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the parent says when to end
    end = _End()
    signal.signal(signal.SIGTERM, end.ask)
    _end_with(parent)
    try:
        prepare()
        with _opened(where, name) as study:
            work(study, objective, strategy, terms, stops=lambda: end.asked, interruptible=lambda: end)
    except KeyboardInterrupt:
        sys.exit(_ASKED)
    except DpcError as error:
        reasons.put(error)
        sys.exit(1)
    if end.asked:
        sys.exit(_ASKED)


class _End:
    """Whether a worker has been asked to end. While a cell is evaluated it does so at once; what it does with the
    database it finishes first.
    """

    def __init__(self) -> None:
        self.asked = self.evaluates = False

    def ask(self, *_: object) -> None:
        self.asked = True
        if self.evaluates:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self.evaluates = True
        if self.asked:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        self.evaluates = False


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


def _end_with(parent: int) -> None:
    """Has this process killed when its parent dies, however it does: two crews would ask for the same cells."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(1)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
