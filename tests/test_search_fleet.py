"""Searches on many machines: on a real Ray cluster of several nodes, and by workers of their own, that are killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster
from searches import DPC_COMMAND, Run, check_once_each, killed, logged, opened, wait_for, write_objective
from support import Dpc, Postgresql

from dpcdsl import DpcError
from dpcdsl.cli import searching
from dpcdsl.search import ray_fleet
from dpcdsl.search.study import View

pytestmark = pytest.mark.usefixtures("studies_are_closed")

NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


class Nodes:
    """A Ray cluster whose head has no room for work, and nodes with room for two workers each."""

    def __init__(self, count: int) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()
        self.address: str = self.cluster.address

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(**{**NODE, "include_dashboard": None}))

    def lose(self) -> None:
        """One node with all on it, as when a machine goes down; another comes."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.add()

    def workers(self, _: Any = None) -> list[int]:
        """The processes that are at work on a search."""
        found = []
        for process in psutil.process_iter(["cmdline", "pid"]):
            command = " ".join(process.info["cmdline"] or [])
            if command.startswith("ray::dpcdsl"):
                found.append(process.info["pid"])
        return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")  # a lost node is found lost soon
        patch.setenv("RAY_health_check_timeout_ms", "1000")
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # processes that no one asks for
        made = Nodes(2)
        try:
            yield made
        finally:
            made.cluster.shutdown()


def test_workers_on_a_cluster_share_a_study(postgresql: Callable[[], str], nodes: Nodes, tmp_path: Path) -> None:
    where = postgresql()
    code, out, err = Run(tmp_path, where, "--trials", "40", "--workers", "3", "--ray", nodes.address).ended()
    assert code == 0, err
    assert all(line.startswith("trials ") for line in err.splitlines()), err  # of a slow machine
    study = opened(where)
    records = check_once_each(study, 40)
    assert {record.asker for record in records} == {0, 1, 2}
    assert len((tmp_path / "log").read_text().splitlines()) == 40
    best = study.best(1)[0].record
    assert best is not None
    assert best.cell in out.splitlines()[2]
    wait_for(lambda: not nodes.workers())


def test_killed_workers_a_lost_node_and_a_killed_driver_lose_nothing(
    postgresql: Callable[[], str],
    nodes: Nodes,
    tmp_path: Path,
) -> None:
    where = postgresql()
    killed(
        where,
        tmp_path,
        trials=80,
        workers=1,
        drivers=1,
        seed=1,
        others=[nodes.lose],
        options=("--ray", nodes.address),
        workers_of=nodes.workers,
        after_progress=True,
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_kills_five_drivers_two_nodes_and_two_restarts_lose_nothing(
    postgresql_server: Postgresql,
    postgresql: Callable[[], str],
    nodes: Nodes,
    tmp_path: Path,
) -> None:
    where = postgresql()

    def restart() -> None:
        postgresql_server.stop("immediate")
        time.sleep(5)
        postgresql_server.start()

    killed(
        where,
        tmp_path,
        trials=6_000,
        workers=200,
        drivers=5,
        seed=4,
        others=[restart, restart, nodes.lose, nodes.lose],
        options=("--ray", nodes.address),
        workers_of=nodes.workers,
        after_progress=True,
    )


def test_an_interrupt_ends_it_and_the_same_command_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    where, options = str(tmp_path / "s.db"), ("--trials", "12", "--workers", "2", "--ray", nodes.address)
    run = Run(tmp_path, where, *options, pause=99.0, since=3)
    wait_for(lambda: logged(tmp_path) == 3)
    study = opened(where)
    wait_for(lambda: len(View(study).updated().unfinished) == 2)
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.ended()
    assert code == 130, err
    view = View(study).updated()
    assert not view.unfinished, "what a worker was at when it was interrupted waits for it to be heard of"
    assert len(view.lost()) == 2
    assert Run(tmp_path, where, *options).ended()[0] == 0
    check_once_each(study, 12)


def test_failures_alike_stop_a_search_on_a_cluster_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("def score(cell, attempt):\n    raise ValueError(f'no data {attempt.number}')\n")
    command = [DPC_COMMAND, "search", "dpc", "--objective", "fails.py:score", "--trials", "99", "--ray", "local"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "the last 5 trials failed alike: ValueError: no data" in done.stderr.splitlines()[-2]


def test_no_cluster(dpc: Dpc, tmp_path: Path) -> None:
    write_objective(tmp_path, 0)
    options = ("--objective", "objective.py:score", "--trials", "3")
    refused = dpc("search", "dpc", *options, "--ray", "127.0.0.1:1")
    assert refused.code == 1
    assert "there is no Ray cluster at 127.0.0.1:1" in refused.err
    assert "Traceback" not in refused.err
    refused = dpc("search", "dpc", *options, "--gpus", "1")
    assert (refused.code, "they go with --ray" in refused.err) == (1, True)


# Workers of their own


class Worker:
    """`dpc search worker` in a process of its own."""

    def __init__(self, folder: Path, where: str, index: int, workers: int, trials: int, pause: float = 0.05) -> None:
        write_objective(folder, pause)
        options = ("--objective", "objective.py:score", "--storage", where, "--grace", "1.5", "--workers", str(workers))
        self.index = index
        self.process = subprocess.Popen(
            [DPC_COMMAND, "search", "worker", "dpc", *options, "--trials", str(trials)],
            cwd=folder,
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=300)
        return self.process.returncode, err


def test_workers_of_their_own_share_a_study_and_may_be_killed(where: str, tmp_path: Path) -> None:
    """They begin it at once; one is killed, one is told to end, and both come again, as a requeued job does."""
    workers = [Worker(tmp_path, where, index, 3, 90) for index in range(3)]
    wait_for(lambda: logged(tmp_path) >= 6)
    workers[0].process.kill()
    workers[1].process.send_signal(signal.SIGTERM)
    assert workers[1].ended() == (143, "")
    workers[0].ended()
    workers[:2] = [Worker(tmp_path, where, index, 3, 90) for index in range(2)]
    assert [one.ended() for one in workers] == [(0, "")] * 3
    records = check_once_each(opened(where), 90)
    assert {record.asker for record in records} == {0, 1, 2}
    withdrawn = [seen for seen in opened(where).records() if seen.record and seen.record.withdrawn]
    assert len(withdrawn) <= 6, "they propose the same cells"


def test_a_worker_of_another_plan_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "s.db")
    assert Worker(tmp_path, where, 0, 1, 2).ended() == (0, "")
    command = [DPC_COMMAND, "search", "worker", "dpc", "--objective", "objective.py:score", "--storage", where]
    for options, message in [
        (["--workers", "2", "--index", "2"], "2 workers are numbered from 0 to 1, not 2"),
        (["--workers", "2", "--index", "1", "--seed", "7"], "was begun with another seed"),
    ]:
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr


# What is shown in the docs


EXAMPLES = Path(__file__).parents[1] / "examples"


def arguments_of_slurm() -> list[str]:
    text = (EXAMPLES / "slurm_search.sh").read_text()
    assert subprocess.run(["bash", "-n", EXAMPLES / "slurm_search.sh"], check=False).returncode == 0
    command = text[text.index("exec dpc") :].removeprefix("exec ").split("  #")[0]
    defaults = dict(re.findall(r'"\$\{(\w+):=(.*?)\}"', text))
    return shlex.split(re.sub(r"\$(\w+)", lambda match: defaults[match[1]], command.replace("\\\n", " ")))


def arguments_of_kubernetes() -> list[str]:
    job = yaml.safe_load((EXAMPLES / "kubernetes_search.yaml").read_text())
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (workers,) = (argument for argument in container["args"] if argument.startswith("--workers="))
    assert int(workers.split("=")[1]) == job["spec"]["completions"]
    return list(container["args"])


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [(arguments_of_slurm, "SLURM_ARRAY_TASK_ID"), (arguments_of_kubernetes, "JOB_COMPLETION_INDEX")],
)
def test_commands_of_the_jobs_are_commands(
    arguments: Callable[[], list[str]], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "63")
    program, group, command, *rest = arguments()
    assert (program, group, command) == ("dpc", "search", "worker")
    found = searching.worker.make_context("worker", rest).params
    assert (found["space"], found["index"], found["workers"], found["device"]) == ("dpc", 63, 64, "cuda")
    assert found["storage"]
    assert found["cache"]


@pytest.mark.parametrize(
    ("where", "refused"),
    [
        ("search.db", True),
        ("sqlite:////shared/search.db", True),
        ("postgresql+psycopg://me@localhost/x", True),
        ("postgresql+psycopg://me@database/x", False),
    ],
)
def test_a_storage_that_other_machines_cannot_reach(where: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are said to be of two machines, which a test has not."""
    for addresses, hears in ((["10.0.0.1", "10.0.0.1"], False), (["10.0.0.1", "10.0.0.2"], refused)):
        monkeypatch.setattr(
            ray_fleet, "_nodes", lambda of=addresses: [{"NodeManagerAddress": one, "Alive": True} for one in of]
        )
        with pytest.raises(DpcError, match="only this one can reach that storage") if hears else nullcontext():
            ray_fleet._check_reach(where)
