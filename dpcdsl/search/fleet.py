"""Where the workers of a search run, and that each is started again when it dies.

A fleet starts workers and knows how they have ended; :class:`Crew` decides what then. Workers know of one another by
the study's database alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from dpcdsl.errors import DpcError
from dpcdsl.search.jobs import Job

__all__ = ["Crew", "Ended", "Fleet"]

_DEATHS = 3  # of each worker in a row, between which no trial has ended, before the search gives up
_KILLED = 0.1  # of a death counts one that came from outside


class Ended(NamedTuple):
    """How a worker has ended: with its work done; or because something is wrong with the search, whoever works on it;
    or it died: how, and whether that came from outside, as a signal, or a node that is gone.
    """

    done: bool = False
    refused: DpcError | None = None
    how: str = ""
    killed: bool = False


class Fleet(Protocol):
    """Where workers run. A context: what it needs is there within."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> Any: ...

    def start(self, job: Job) -> Any:
        """A worker, which the other methods are given."""

    def ended(self, worker: Any) -> Ended | None:
        """None while it is at work, or waits for a place to run."""

    def stop(self, workers: Sequence[Any]) -> None:
        """Asks them to end, and sees to it that they do."""


class Crew:
    """The workers of a search."""

    def __init__(self, fleet: Fleet, job: Job) -> None:
        self.fleet, self.job = fleet, job
        self.workers: list[Any] = [None] * job.terms.askers  # they are started when they are first tended
        self.done = [False] * job.terms.askers
        self.deaths, self.finished = 0.0, -1

    def tend(self, finished: int) -> bool:
        """Starts who is not there, or has died; False when all have done their work. finished: trials, until now.

        Raises :class:`DpcError`: what a worker was refused with; DPC099 if they die again and again.
        """
        if finished != self.finished:
            self.deaths, self.finished = 0.0, finished
        for asker, worker in enumerate(self.workers):
            if self.done[asker]:
                continue
            if worker is not None:
                ended = self.fleet.ended(worker)
                if ended is None:
                    continue
                if ended.done:
                    self.done[asker] = True
                    continue
                self._mourn(ended)
            self.workers[asker] = self.fleet.start(self.job.of(asker))
        return not all(self.done)

    def _mourn(self, ended: Ended) -> None:
        if ended.refused is not None:
            raise ended.refused
        self.deaths += _KILLED if ended.killed else 1
        if self.deaths > _DEATHS * len(self.workers):
            raise DpcError.of(
                "DPC099",
                f"workers die again and again, the last one by {ended.how}",
                hint="often it is memory: fewer --workers; what they have written says more",
            )

    def end(self) -> None:
        self.fleet.stop([worker for worker, done in zip(self.workers, self.done, strict=True) if worker and not done])
