"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dpcdsl.errors import DpcError
from dpcdsl.search.fleet import Ended
from dpcdsl.search.jobs import END_CODE, End, Job, serve

__all__ = ["Processes"]

_PATIENCE = 30.0  # seconds in which a worker has to end when it is asked to


class Processes:
    """A fleet: the machine's cores are divided among its workers, which end with the process that has started them."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Processes:
        self.reasons: Any = self.context.SimpleQueue()
        return self

    def __exit__(self, *_: object) -> None:
        self.reasons.close()

    def start(self, job: Job) -> Any:
        process = self.context.Process(target=_main, args=(os.getpid(), job, self.reasons), daemon=True)
        threads = max(1, (os.cpu_count() or 1) // job.terms.askers)
        with _environment(OMP_NUM_THREADS=str(threads)):  # is read when a process starts
            process.start()
        return process

    def ended(self, worker: Any) -> Ended | None:
        if worker.is_alive():
            return None
        if worker.exitcode == 0:
            return Ended(done=True)
        if not self.reasons.empty():
            return Ended(refused=self.reasons.get())
        return Ended(how=_how(worker.exitcode), killed=worker.exitcode in (-signal.SIGKILL, END_CODE))

    def stop(self, workers: Sequence[Any]) -> None:
        for process in workers:
            process.terminate()
        until = time.monotonic() + _PATIENCE
        for process in workers:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _main(parent: int, job: Job, reasons: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the parent says when to end
    end = End()
    signal.signal(signal.SIGTERM, end.ask)
    _end_with(parent)
    try:
        serve(job, end)
    except KeyboardInterrupt:
        sys.exit(END_CODE)
    except DpcError as error:
        reasons.put(error)
        sys.exit(1)
    if end.asked:
        sys.exit(END_CODE)


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


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
