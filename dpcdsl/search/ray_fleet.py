"""Workers as tasks of a Ray cluster: on any of its nodes, and on another one when a node is lost."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

import ray
from ray import exceptions as lost
from sqlalchemy.engine import make_url

from dpcdsl.errors import DpcError
from dpcdsl.search.fleet import Ended
from dpcdsl.search.jobs import End, Job, serve

__all__ = ["RayFleet"]

_PATIENCE = 30.0  # seconds in which workers have to end when they are asked to


class RayFleet:
    """A fleet on the cluster at ``address``: ``host:port``, "auto" for the one this machine is of, or "local" for a new
    one of this machine alone, for as long as the search takes. A program that is in a cluster already stays in it.

    cpus, gpus: what each worker takes of a node. A worker for which there is no room waits until there is.
    """

    def __init__(self, address: str, cpus: float = 1, gpus: float = 0) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def __enter__(self) -> RayFleet:
        """Raises :class:`DpcError` (DPC099) if there is no such cluster."""
        options: dict[str, Any] = {}
        self.joins = not ray.is_initialized()
        if self.address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, math.ceil(self.cpus))}
        try:
            if self.joins:
                _knock(self.address)
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError, lost.RayError) as error:
            raise DpcError.of(
                "DPC099",
                f"there is no Ray cluster at {self.address}: {str(error).strip().splitlines()[0]}",
                hint="`ray start --head` begins one, and tells its address",
            ) from None
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_serve)
        return self

    def __exit__(self, *_: object) -> None:
        if self.joins:
            ray.shutdown()

    def start(self, job: Job) -> Any:
        _check_reach(job.where)
        return self.task.options(name=f"dpcdsl {job.name} {job.terms.asker}").remote(job)

    def ended(self, worker: Any) -> Ended | None:
        ready, _ = ray.wait([worker], timeout=0)
        if not ready:
            return None
        try:
            refused = ray.get(worker)
        except (lost.TaskCancelledError, lost.NodeDiedError, lost.WorkerCrashedError, lost.ObjectLostError) as error:
            return Ended(how=type(error).__name__, killed=True)
        except lost.RayError as error:
            said = str(error).strip().splitlines() or [""]
            return Ended(how=f"{type(error).__name__}: {said[-1]}"[:500])
        if isinstance(refused, DpcError):
            return Ended(refused=refused)
        return Ended(done=refused is None, how="an interrupt", killed=True)

    def stop(self, workers: Sequence[Any]) -> None:
        for force in (False, True):
            for worker in workers:
                ray.cancel(worker, force=force)
            _, workers = ray.wait(list(workers), num_returns=len(workers), timeout=_PATIENCE) if workers else ([], [])


def _serve(job: Job) -> DpcError | str | None:
    """In a process of the cluster. Returns why it ended, if not because all is done."""
    end = End()
    with _told(end):
        try:
            serve(job, end)
        except DpcError as error:
            return error
        except KeyboardInterrupt:
            return "asked"
    return "asked" if end.asked else None


@contextmanager
def _told(end: End) -> Iterator[None]:
    """Ray cancels a task by an interrupt within Python, and blocks the system's SIGINT: a main thread that sleeps, or
    waits for a library, would not wake. So another signal is sent after it.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    main = threading.get_ident()

    def listen() -> None:
        while heard := ours.recv(1):  # of any signal; nothing when the other end is closed
            if heard == bytes([signal.SIGINT]):
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    before = [(one, signal.signal(one, end.ask)) for one in (signal.SIGINT, signal.SIGUSR1)]
    wakes = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakes)
        theirs.close()
        for one, handler in before:
            signal.signal(one, handler)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, for which Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and "://" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _nodes() -> list[dict[str, Any]]:
    found: Any = ray.nodes  # it has no types
    return found()  # type: ignore[no-any-return]


def _check_reach(where: str) -> None:
    """Raises :class:`DpcError` (DPC098) for a storage that the nodes of other machines cannot reach."""
    machines = {node["NodeManagerAddress"] for node in _nodes() if node["Alive"]}
    if len(machines) < 2:
        return
    url = make_url(where) if "://" in where else None
    if url is None or url.get_backend_name() == "sqlite" or url.host in ("localhost", "127.0.0.1", "::1", None):
        raise DpcError.of(
            "DPC098",
            f"the cluster has {len(machines)} machines, and only this one can reach that storage",
            place=where,
            hint="a database that all of them reach: --storage postgresql+psycopg://USER@HOST/NAME",
        )
