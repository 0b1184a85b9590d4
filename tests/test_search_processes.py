"""Whole searches, by processes: workers, drivers and databases that are killed, interrupted and told to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from searches import DPC_COMMAND, Run, check_once_each, killed, logged, opened, wait_for
from support import Postgresql

from dpcdsl.search.study import View

pytestmark = pytest.mark.usefixtures("studies_are_closed")


def test_workers_share_a_study(where: str, tmp_path: Path) -> None:
    code, out, err = Run(tmp_path, where, "--trials", "60", "--workers", "3").ended()
    assert code == 0, err
    assert all(line.startswith("trials ") for line in err.splitlines()), err  # of a slow machine
    study = opened(where)
    records = check_once_each(study, 60)
    assert len({record.asker for record in records}) == 3
    assert len((tmp_path / "log").read_text().splitlines()) == 60
    best = study.best(1)[0].record
    assert best is not None
    assert best.cell in out.splitlines()[2]
    again = Run(tmp_path, where, "--trials", "60", "--workers", "3")
    assert again.ended()[1] == out, "there is nothing to do, and it says the same"
    assert len((tmp_path / "log").read_text().splitlines()) == 60


def test_killed_workers_and_a_killed_driver_lose_nothing(where: str, tmp_path: Path) -> None:
    killed(where, tmp_path, trials=120, workers=2, drivers=1, seed=1)


def test_the_database_may_go_away_for_a_while(
    postgresql_server: Postgresql, postgresql: Callable[[], str], tmp_path: Path
) -> None:
    """And so may a worker, which is begun again while it is away."""
    runs: list[Run] = []

    def restart() -> None:
        postgresql_server.stop("immediate")  # as a crash
        os.kill(wait_for(runs[0].workers)[0], signal.SIGKILL)
        time.sleep(4)
        postgresql_server.start()

    where = postgresql()
    runs.append(Run(tmp_path, where, "--trials", "60", "--workers", "3", pause=0.1))
    wait_for(lambda: logged(tmp_path))
    restart()
    code, _, err = runs[0].ended()
    assert code == 0, err
    check_once_each(opened(where), 60)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_kills_and_two_restarts_lose_nothing(
    postgresql_server: Postgresql, postgresql: Callable[[], str], tmp_path: Path
) -> None:
    def restart() -> None:
        postgresql_server.stop("immediate")
        time.sleep(5)
        postgresql_server.start()

    killed(postgresql(), tmp_path, trials=4_000, workers=200, drivers=5, seed=2, others=[restart] * 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_kills_on_a_file_lose_nothing(tmp_path: Path) -> None:
    killed(str(tmp_path / "s.db"), tmp_path, trials=4_000, workers=200, drivers=5, seed=3)


def test_an_interrupt_ends_cleanly_and_the_same_command_goes_on(where: str, tmp_path: Path) -> None:
    run = Run(tmp_path, where, "--trials", "12", "--workers", "2", pause=99.0, since=3)
    wait_for(lambda: logged(tmp_path) == 3)
    study = opened(where)
    wait_for(lambda: len(View(study).updated().unfinished) == 2)
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.ended()
    assert code == 130
    assert err.splitlines()[-1] == "interrupted"
    view = View(study).updated()
    assert not view.unfinished
    assert len(view.lost()) == 2
    assert Run(tmp_path, where, "--trials", "12", "--workers", "2").ended()[0] == 0
    check_once_each(study, 12)


def test_failures_alike_stop_all_workers_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("def score(cell, attempt):\n    raise ValueError(f'no data {attempt.number}')\n")
    command = [DPC_COMMAND, "search", "dpc", "--objective", "fails.py:score", "--trials", "99", "--workers", "2"]
    for _ in range(2):  # and so does the next run, after as many again
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        said, hint = done.stderr.splitlines()[-2:]
        assert re.fullmatch(r"error: the last 5 trials failed alike: ValueError: no data \d+ \[DPC099\]", said)
        assert hint == "    help: see to that first"
    view = View(opened(str(tmp_path / "search.db"))).updated()
    assert 10 <= view.finished <= 16


def test_a_worker_that_someone_tells_to_end_is_begun_again(tmp_path: Path) -> None:
    """It was not done: the search goes on to its last trial."""
    where = str(tmp_path / "s.db")
    run = Run(tmp_path, where, "--trials", "40", "--workers", "2", pause=0.2)
    wait_for(lambda: logged(tmp_path) >= 4)
    os.kill(run.workers()[0], signal.SIGTERM)
    code, _, err = run.ended()
    assert code == 0, err
    records = check_once_each(opened(where), 40)
    assert {record.asker for record in records[-10:]} == {0, 1}, "its place was taken by another number"


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    run = Run(tmp_path, str(tmp_path / "s.db"), "--trials", "9", "--workers", "2", pause=99.0, since=1)
    wait_for(lambda: logged(tmp_path) == 1)
    workers = wait_for(lambda: run.workers() if len(run.workers()) == 2 else [])
    run.process.kill()
    run.ended()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=20)


def test_operators_of_a_plugin_are_known_to_workers(tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text("def score(cell, attempt):\n    return float(len(str(cell)))\n")
    (tmp_path / "mine.dpc").write_text("dpc 1\nspace mine { 2 * (any, conv1x1 | maxpool window {3, 5} x {3, 5}, _) }\n")
    plugin = str(Path(__file__).parents[1] / "examples" / "maxpool.py")
    options = ("--objective", "objective.py:score", "--trials", "4", "--storage", "s.db")
    command = [DPC_COMMAND, "--plugin", plugin, "search", "mine.dpc", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "maxpool window" in done.stdout


def test_workers_that_cannot_start_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os\ndef score(cell, attempt):\n    os._exit(7)\n")
    command = [DPC_COMMAND, "search", "dpc", "--objective", "dies.py:score", "--trials", "9"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: workers die again and again, the last one by exit code 7 [DPC099]",
        "    help: often it is memory: fewer --workers; what they have written says more",
    ]
