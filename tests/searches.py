"""What tests of studies share: studies of a quick objective, and whole searches, by processes that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

import dpcdsl
from dpcdsl import Cell
from dpcdsl.search.objective import Attempt
from dpcdsl.search.records import Record
from dpcdsl.search.storage import Seen
from dpcdsl.search.study import Plan, SearchStudy, View

DPC = dpcdsl.read_space("dpc")
DPC_COMMAND = str(Path(sys.executable).with_name("dpc"))
OPEN: list[SearchStudy] = []  # is closed after each test


def score(cell: Cell, _: Attempt) -> float:
    return sum(len(str(branch.operator)) for branch in cell.branches) / 100


def plan(space: dpcdsl.Space = DPC, **others: Any) -> Plan:
    return Plan.of(space, {"objective": "of the tests"}, "dpc", **{"seed": 3, **others})


def begun(where: str, **others: Any) -> SearchStudy:
    OPEN.append(SearchStudy.begin(where, plan(**others)))
    return OPEN[-1]


def opened(where: str, name: str = "search") -> SearchStudy:
    OPEN.append(SearchStudy.open(where, name))
    return OPEN[-1]


def ends(study: SearchStudy) -> list[Seen]:
    """The trials that count: each once, by its last attempt."""
    lasting = [seen for seen in study.records() if seen.record is not None and seen.record.withdrawn is None]
    return [seen for seen in lasting if seen.state == TrialState.COMPLETE or (seen.record and seen.record.failure)]


def check_once_each(study: SearchStudy, trials: int) -> list[Record]:
    """Every trial has ended exactly once, nothing is left, and no two are of one class."""
    records = [seen.record for seen in ends(study) if seen.record is not None]
    firsts = [seen.number if seen.record.first is None else seen.record.first for seen in ends(study) if seen.record]
    assert len(records) == trials
    assert len(set(firsts)) == trials
    assert len({record.key for record in records}) == trials
    view = View(study, attempts=1000).updated()
    assert (view.finished, dict(view.unfinished), view.lost()) == (trials, {}, [])
    return records


OBJECTIVE = """
import json, time
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = json.loads((HERE / "settings.json").read_text())

def score(cell, attempt):
    time.sleep(SETTINGS["pause"] if attempt.number >= SETTINGS["since"] else 0)
    with (HERE / "log").open("a") as log:
        log.write(f"{attempt.number} {cell}\\n")
    return sum(len(str(branch.operator)) for branch in cell.branches) / 100
"""


def write_objective(folder: Path, pause: float, since: int = 0) -> None:
    """Into files, and not the environment, which not every worker shares. pause: seconds, from trial ``since`` on."""
    (folder / "objective.py").write_text(OBJECTIVE)
    (folder / "settings.json").write_text(json.dumps({"pause": pause, "since": since}))


class Run:
    """`dpc search` in a process of its own."""

    def __init__(self, folder: Path, where: str, *options: str, pause: float = 0.0, since: int = 0) -> None:
        write_objective(folder, pause, since)
        command = [DPC_COMMAND, "search", "dpc", "--objective", "objective.py:score"]
        self.process = subprocess.Popen(
            [*command, "--storage", where, "--grace", "1.5", *options],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            found = [int(one) for one in children.read_text().split()]
            return [one for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
        except OSError:
            return []

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=900)
        return self.process.returncode, out, err


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come about")


def logged(folder: Path) -> int:
    return len((folder / "log").read_text().splitlines()) if (folder / "log").exists() else 0


def killed(
    where: str,
    folder: Path,
    trials: int,
    workers: int,
    drivers: int,
    seed: int,
    others: Sequence[Callable[[], None]] = (),
    options: Sequence[str] = (),
    workers_of: Callable[[Run], list[int]] = Run.workers,
    after_progress: bool = False,
) -> None:
    """Workers, drivers, and what ``others`` do, at random moments; what ends is every trial, once. after_progress: each
    only when a trial has ended since the last one, where workers take longer to begin than to be killed.
    """
    moments = random.Random(seed)
    blows: list[str | Callable[[], None]] = ["worker"] * workers + ["driver"] * drivers
    blows += others
    moments.shuffle(blows)
    options = ("--trials", str(trials), "--workers", "3", *options)
    run = Run(folder, where, *options, pause=0.1)
    wait_for(lambda: logged(folder))
    for blow in blows:
        ended = logged(folder)
        if after_progress:
            wait_for(lambda ended=ended: logged(folder) > ended)
        time.sleep(moments.uniform(0.2, 2.0))
        assert run.process.poll() is None, f"it ended before all was over: {run.ended()}"
        if blow == "worker":
            with suppress(ProcessLookupError):  # it may end at this moment by itself
                os.kill(moments.choice(wait_for(partial(workers_of, run))), signal.SIGKILL)
        elif callable(blow):
            blow()
        else:
            run.process.kill()
            run.ended()
            run = Run(folder, where, *options, pause=0.1)
    code, _, err = run.ended()
    assert code == 0, err
    check_once_each(opened(where), trials)
