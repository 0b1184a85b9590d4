"""Studies in real databases: what is kept, what is refused, and what is lost and run again."""

from __future__ import annotations

import json
import pickle
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from searches import DPC, begun, check_once_each, ends, opened, plan, score
from sqlalchemy.exc import OperationalError
from support import Dpc

import dpcdsl
from dpcdsl import Cell, DpcError
from dpcdsl.search.objective import Attempt, NamedObjective, identity_of
from dpcdsl.search.storage import Pulse, open_storage, patiently, stale
from dpcdsl.search.strategies import STRATEGIES, NearBest
from dpcdsl.search.study import COSTS, Plan, SearchStudy, View
from dpcdsl.search.worker import SAMPLERS, Terms, _Worker, work

pytestmark = pytest.mark.usefixtures("studies_are_closed")
TIGHT = dpcdsl.read_space("dpc where depth <= 2 and params(F=320) <= 0.36M")
QUICK = Terms(20, interval=0.2, grace=1.0)


# What is kept


def test_a_trial_keeps_all_that_is_known_of_it(where: str) -> None:
    study = begun(where)

    def noting(cell: Cell, attempt: Attempt) -> float:
        assert attempt.seed == 3
        attempt.note("length", len(cell))
        return score(cell, attempt)

    work(study, noting, "near-best", QUICK)
    records = check_once_each(study, 20)
    for record in records:
        cell = dpcdsl.parse_cell(record.cell)
        assert dpcdsl.read_cell(record.id) == cell
        assert record.fingerprint == study.plan.fingerprint
        assert record.canonical == str(dpcdsl.canonical(cell))
        assert record.scores == {"score": score(cell, Attempt(0, 0))}
        assert record.costs == {"params": dpcdsl.cost(cell).params, "madds": dpcdsl.cost(cell).madds}
        assert record.notes == {"length": 5}
        assert (record.seed, record.asker, record.attempt, record.failure) == (3, 0, 1, None)
        assert record.seconds is not None
        assert record.seconds >= 0
        assert record.environment is not None
        assert record.environment["optuna"] == optuna.__version__
    trials = optuna.load_study(study_name="search", storage=study.storage).trials
    assert [trial.value for trial in trials] == [record.scores["score"] for record in records if record.scores]
    assert study.genes.cells.unrank(study.genes.rank(trials[0].params)) == dpcdsl.parse_cell(records[0].cell)
    best = study.best(3)
    assert [seen.record.scores["score"] for seen in best if seen.record and seen.record.scores] == sorted(
        (record.scores["score"] for record in records if record.scores), reverse=True
    )[:3]


def test_it_goes_on_and_proposes_what_it_would_have(where: str, tmp_path: Path) -> None:
    """In two runs as in one."""
    study = begun(where)
    work(study, score, "near-best", Terms(12))
    work(begun(where), score, "near-best", Terms(30))
    other = begun(str(tmp_path / "other.db"))
    work(other, score, "near-best", Terms(30))
    assert [record.cell for record in check_once_each(study, 30)] == [r.cell for r in check_once_each(other, 30)]


@pytest.mark.parametrize(
    ("field", "others"),
    [
        ("space", {"space": TIGHT}),
        ("seed", {"seed": 4}),
        ("minimize", {"minimize": ("madds",)}),
        ("features", {"features": 32}),
    ],
)
def test_another_plan_is_refused(field: str, others: dict[str, Any], tmp_path: Path) -> None:
    begun(str(tmp_path / "s.db"))
    with pytest.raises(DpcError, match=rf"the study search was begun with another {field}: .* \[DPC098\]"):
        begun(str(tmp_path / "s.db"), **others)


def test_two_that_begin_at_once_begin_one(where: str) -> None:
    """Who comes to a study whose maker has not yet said of what it is waits for that."""
    ready = Barrier(4)

    def begin(seed: int) -> int | None:
        ready.wait()
        try:
            with SearchStudy.begin(where, plan(seed=seed)) as study:
                return study.plan.seed
        except DpcError:
            return None

    with ThreadPoolExecutor(4) as threads:
        seeds = [seed for seed in threads.map(begin, range(4)) if seed is not None]
    assert seeds == [opened(where).plan.seed]
    with pytest.raises(DpcError, match="begun with another seed"):
        SearchStudy.begin(where, plan(seed=(seeds[0] + 1) % 4))


def test_a_study_whose_maker_was_killed_is_begun_again(tmp_path: Path) -> None:
    where = str(tmp_path / "s.db")
    storage = open_storage(where)
    storage.create_new_study(plan().directions, "search")
    assert begun(where).plan == plan()


def test_a_database_of_another_optuna(tmp_path: Path) -> None:
    begun(str(tmp_path / "s.db")).close()
    with sqlite3.connect(tmp_path / "s.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(
        DpcError, match=r"no longer compatible(.|\n)*optuna storage upgrade(.|\n)*copy the database first"
    ):
        open_storage(str(tmp_path / "s.db"))


def test_another_objective_is_refused(tmp_path: Path) -> None:
    begun(str(tmp_path / "s.db"))
    other = Plan.of(DPC, identity_of(score), "dpc", seed=3)
    with pytest.raises(DpcError, match=r"another objective: \{'objective': 'of the tests'\}, and not"):
        SearchStudy.begin(str(tmp_path / "s.db"), other)


def test_what_is_no_study(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    begun(str(file))
    with pytest.raises(DpcError, match=r"there is no study other \[DPC098\]\n.*one of: search"):
        SearchStudy.open(str(file), "other")
    optuna.create_study(study_name="mine", storage=f"sqlite:///{file}")
    with pytest.raises(DpcError, match="mine is a study, but no search of cells"):
        SearchStudy.open(str(file), "mine")
    with pytest.raises(DpcError, match=r"there is no such file \[DPC098\]"):
        SearchStudy.open(str(tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()
    for bad in (str(tmp_path / "missing" / "s.db"), "nosuch://x/y", "postgresql+psycopg://127.0.0.1:1/x"):
        with pytest.raises(DpcError, match=r"\[DPC098\]"):
            open_storage(bad)
    file.write_bytes(b"no database, but long enough to be looked at as one" * 99)
    with pytest.raises(DpcError, match="cannot be opened: file is not a database"):
        open_storage(str(file))


# A user's cells


def test_a_users_cells_come_first_and_once(where: str) -> None:
    study = begun(where)
    top1, aspp = dpcdsl.read_cell("top1"), dpcdsl.read_cell("aspp")
    for cell in (top1, aspp, top1, dpcdsl.canonical(top1)):
        study.enqueue(cell)
    seen: list[Cell] = []

    def objective(cell: Cell, attempt: Attempt) -> float:
        seen.append(cell)
        return score(cell, attempt)

    work(study, objective, "near-best", Terms(5))
    assert seen[:2] == [top1, aspp]
    assert [record.asker for record in check_once_each(study, 5)] == [None, None, 0, 0, 0]
    study.enqueue(aspp)
    work(study, objective, "near-best", Terms(6))
    assert len(seen) == 6
    with pytest.raises(DpcError, match="DPC055"):
        study.enqueue(dpcdsl.parse_cell("(F, conv1x1, Y1)"))


# Failures


def test_a_failure_is_kept_with_its_reason_and_blocks_nothing(where: str) -> None:
    study = begun(where)
    reasons: list[Callable[[], Any]] = [
        lambda: 1 / 0,
        lambda: float("nan"),
        lambda: (_ for _ in ()).throw(MemoryError("7 GB are not there")),
        lambda: dpcdsl.parse_cell("(F, conv1x1, Y7)"),
        lambda: "much",
        lambda: float("inf"),
        lambda: sys.exit(0),
    ]

    def objective(cell: Cell, attempt: Attempt) -> Any:
        return reasons[attempt.number // 2]() if attempt.number % 2 else score(cell, attempt)

    work(study, objective, "near-best", Terms(14))
    records = check_once_each(study, 14)
    assert [record.failure for record in records[1::2]] == [
        "ZeroDivisionError: division by zero",
        "the score is nan",
        "MemoryError: 7 GB are not there",
        "branch 1 writes `Y1`, not `Y7` [DPC012]",
        "ValueError: could not convert string to float: 'much'",
        "the score is inf",
        "SystemExit: 0",
    ]
    assert all(record.failure is None for record in records[::2])
    assert [seen.state for seen in ends(study)][1::2] == [TrialState.FAIL] * 7


def test_failures_alike_stop_the_search_and_the_next_run_tries_again(tmp_path: Path) -> None:
    study = begun(str(tmp_path / "s.db"))

    def failing(cell: Cell, attempt: Attempt) -> float:
        if attempt.number >= 3:
            raise ValueError(f"no data at {attempt.number}")
        return score(cell, attempt)

    with pytest.raises(DpcError, match=r"the last 5 trials failed alike: ValueError: no data at 7 \[DPC099\]"):
        work(study, failing, "near-best", Terms(50))
    check_once_each(study, 8)
    work(study, score, "near-best", Terms(10, since=8))
    check_once_each(study, 10)


def test_a_note_is_json(tmp_path: Path) -> None:
    study = begun(str(tmp_path / "s.db"))

    def noting(cell: Cell, attempt: Attempt) -> float:
        attempt.note("thing", object() if attempt.number else [1, 2])
        return score(cell, attempt)

    work(study, noting, "near-best", Terms(2))
    first, second = check_once_each(study, 2)
    assert first.notes == {"thing": [1, 2]}
    assert second.failure == "TypeError: Object of type object is not JSON serializable"


def test_trials_of_optunas_own_making_do_no_harm(tmp_path: Path) -> None:
    study = begun(str(tmp_path / "s.db"))
    optuna.load_study(study_name="search", storage=study.storage).enqueue_trial({"Y1.operator": 3})
    work(study, score, "near-best", Terms(3))
    check_once_each(study, 3)


def test_a_users_own_study_is_not_taken_over(tmp_path: Path) -> None:
    for name, direction, asks in (("a", "minimize", 0), ("b", "maximize", 1)):
        mine = optuna.create_study(study_name=name, storage=f"sqlite:///{tmp_path}/s.db", direction=direction)
        for _ in range(asks):
            mine.ask()
        mine._storage.remove_session()
        with pytest.raises(DpcError, match=f"{name} is a study, but no search of cells"):
            SearchStudy.begin(str(tmp_path / "s.db"), plan(), name)


@pytest.mark.parametrize("name", ["a?b.db", "a%20b.db", "a b#c.db"])
def test_any_name_of_a_file(name: str, tmp_path: Path) -> None:
    work(begun(str(tmp_path / name)), score, "near-best", Terms(1))
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()} == {name}
    check_once_each(opened(str(tmp_path / name)), 1)
    check_once_each(opened(f"sqlite+pysqlite:///{tmp_path}/{name.replace('%', '%25').replace('?', '%3F')}"), 1)


# Several scores, and others' samplers


def test_costs_beside_the_score(tmp_path: Path) -> None:
    study = begun(str(tmp_path / "s.db"), minimize=("madds",))
    work(study, score, NearBest(best=6), Terms(60))
    records = check_once_each(study, 60)
    points = [(record.scores["score"], -record.scores["madds"]) for record in records if record.scores]
    front = [p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)]
    best = [seen.record.scores for seen in study.best(len(front)) if seen.record]
    assert sorted((one["score"], -one["madds"]) for one in best if one) == sorted(front)
    loaded = optuna.load_study(study_name="search", storage=study.storage)
    assert {trial.number for trial in loaded.best_trials} == {seen.number for seen in study.best(len(front))}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_of_optuna(sampler: str, tmp_path: Path) -> None:
    """In the space, whatever its constraints; a cell that comes again has the scores that it had."""
    small = dpcdsl.parse("space s { 2 * (any, conv1x1 | avgpool grid {1, 2} x {1, 2}, _) require depth <= 1 }").space()
    for space, trials in ((TIGHT, 14), (small, 25)):
        study = begun(str(tmp_path / f"{trials}.db"), space=space)
        evaluated: Counter[str] = Counter()

        def objective(cell: Cell, attempt: Attempt, evaluated: Counter[str] = evaluated) -> float:
            evaluated[str(dpcdsl.canonical(cell))] += 1
            return score(cell, attempt)

        work(study, objective, sampler, Terms(trials))
        records = [seen.record for seen in ends(study) if seen.record is not None]
        assert len(records) == trials
        assert all(dpcdsl.parse_cell(record.cell) in space for record in records)
        assert set(evaluated.values()) == {1}
        for record in records:
            if record.reused is not None:
                assert record.scores == records[record.reused].scores
        assert space is TIGHT or any(record.reused is not None for record in records)


# What is lost


def lost(study: SearchStudy, rank: int) -> None:
    """As a worker leaves it that dies before it was ever heard of."""
    study.add(study.record_of(rank, 0), TrialState.RUNNING)


def test_a_trial_that_waits_is_taken_once(where: str) -> None:
    """By one of several workers that see it wait; SQLite has no rows to lock."""
    study = begun(where)
    for rank in range(15):
        study.add(study.record_of(rank), TrialState.WAITING)
    waiting, ready = [seen.id for seen in study.records()], Barrier(4)

    def take(_: int) -> list[int]:
        with SearchStudy.open(where) as mine:
            found = []
            for trial in waiting:
                ready.wait()
                try:
                    if patiently(lambda id=trial: mine.storage.set_trial_state_values(id, TrialState.RUNNING)):  # type: ignore[misc]
                        found.append(trial)
                except UpdateFinishedTrialError:
                    continue
            return found

    with ThreadPoolExecutor(4) as threads:
        taken = [trial for found in threads.map(take, range(4)) for trial in found]
    assert sorted(taken) == waiting


def test_a_lost_trial_is_run_again_and_counts_once(where: str) -> None:
    study = begun(where)
    for rank in (5, 10**9, 10**10):
        lost(study, rank)
    began = time.monotonic()
    work(study, score, "near-best", Terms(8, interval=0.2, grace=1.0))
    assert time.monotonic() - began > 1
    records = check_once_each(study, 8)
    again = [record for record in records if record.attempt == 2]
    assert {record.rank for record in again} == {5, 10**9, 10**10}
    assert {record.first for record in again} == {0, 1, 2}


def test_one_that_is_heard_of_is_not_lost(where: str) -> None:
    study = begun(where)
    lost(study, 5)
    (trial,) = study.records()
    for _ in range(6):
        study.storage.record_heartbeat(trial.id)
        assert stale(study.storage, study.id, 1.5) == []
        time.sleep(0.4)
    time.sleep(2.7)
    assert stale(study.storage, study.id, 1.5) == [trial.id]


def test_a_late_result_is_refused(where: str) -> None:
    study = begun(where)
    lost(study, 5)
    (trial,) = study.records()
    assert trial.record is not None
    assert study.give_up(trial.id)
    assert not study.give_up(trial.id)
    assert not study.finish(trial.id, trial.record.but(scores={"score": 1.0}))
    work(study, score, "near-best", Terms(1))
    (record,) = check_once_each(study, 1)
    assert record.scores != {"score": 1.0}
    (last,) = ends(study)
    done = last.record
    assert done is not None
    assert study.finish(last.id, done)  # the same once more, as when an answer was lost


def test_who_sees_a_lost_trial_at_once_runs_it_once(where: str) -> None:
    study = begun(where)
    lost(study, 5)
    (trial,) = study.records()
    assert trial.record is not None
    study.give_up(trial.id)
    for _ in range(3):
        study.add(trial.record.but(first=0, attempt=2), TrialState.WAITING)
    work(study, score, "near-best", Terms(1))
    check_once_each(study, 1)
    withdrawn = [seen.record.withdrawn for seen in study.records() if seen.record and seen.record.withdrawn]
    assert withdrawn == ["another one runs it again"] * 2


def test_a_trial_whose_workers_die_again_and_again_is_a_failure(where: str) -> None:
    study = begun(where)
    record = study.record_of(5, 0)
    study.add(record, TrialState.RUNNING)
    for attempt in (2, 3):
        study.give_up(list(study.records())[-1].id)
        study.add(record.but(first=0, attempt=attempt), TrialState.RUNNING)
    study.give_up(list(study.records())[-1].id)
    work(study, score, "near-best", Terms(3, attempts=3))
    view = View(study, attempts=3).updated()
    assert (view.finished, view.complete, dict(view.failures)) == (3, 2, {"its worker died 3 times": 1})


def test_a_proposal_that_another_has_made_before_is_withdrawn(where: str) -> None:
    """As when two crews are at work on one study."""
    study = begun(where)
    first = View(study)
    work(study, score, "near-best", Terms(1))
    (before,) = ends(study)
    assert before.record is not None
    study.add(before.record.but(scores=None), TrialState.WAITING)
    work(study, score, "near-best", Terms(2))
    check_once_each(study, 2)
    assert [one.record.withdrawn for one in first.update() if one.record and one.record.withdrawn] == [
        "its cell is that of trial 0"
    ]


def test_there_are_never_more_than_enough(where: str) -> None:
    """And what was one too many is not lost to a longer search."""
    space = dpcdsl.read_space("aspp_subsets")
    study = begun(where, space=space)
    for rank in range(4):
        study.add(study.record_of(rank), TrialState.WAITING)
    work(study, score, "near-best", Terms(2))
    check_once_each(study, 2)
    work(study, score, "exhaustive", Terms(1000))
    check_once_each(study, 31)


def test_after_an_outage_those_who_live_are_not_given_up(where: str) -> None:
    """All have been silent for longer than the grace; only who is silent at the next look too is given up."""
    study = begun(where)
    for rank in (5, 10**9):
        lost(study, rank)
    alive, dead = study.records()
    assert stale(study.storage, study.id, 0.5) == []
    time.sleep(4.1)
    worker = _Worker(study, score, "near-best", Terms(2, grace=0.5), nullcontext)
    worker.recover()
    assert {seen.state for seen in study.records()} == {TrialState.RUNNING}
    study.storage.record_heartbeat(alive.id)
    worker.terms = Terms(2, grace=3.0)
    worker.recover()
    states = {seen.number: seen.state for seen in study.records() if seen.record and seen.record.attempt == 1}
    assert states == {alive.number: TrialState.RUNNING, dead.number: TrialState.FAIL}


def test_the_command_line_knows_all_strategies_and_costs() -> None:
    """It names them by itself, so that it need not import what they bring."""
    from dpcdsl.cli import searching

    assert (set(searching._OURS), set(searching._OPTUNAS)) == (set(STRATEGIES), set(SAMPLERS))
    (minimize,) = (option for option in searching.run.params if option.name == "minimize")
    assert tuple(minimize.type.choices) == COSTS  # type: ignore[attr-defined]


# Commands


def test_commands(dpc: Dpc, tmp_path: Path) -> None:
    db = str(tmp_path / "s.db")
    study = begun(db)
    work(study, score, "near-best", Terms(9))
    found = json.loads(dpc("search", "status", "--storage", db, "--json").out)
    assert {key: found[key] for key in ("finished", "complete", "failed", "running", "waiting")} == {
        "finished": 9,
        "complete": 9,
        "failed": 0,
        "running": 0,
        "waiting": 0,
    }
    assert "finished   9" in dpc("search", "status", "--storage", db).out
    rows = json.loads(dpc("search", "best", "-n", "2", "--storage", db, "--json").out)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert len(rows) == 2
    lines = dpc("search", "best", "-n", "2", "--storage", db).out.splitlines()
    assert lines[0].split() == ["trial", "score", "params", "madds", "cell"]
    for kind in ("json", "csv", "parquet"):
        out = tmp_path / f"all.{kind}"
        assert dpc("search", "export", "--storage", db, "-o", str(out)).out == f"{out}: 9 trials\n"
        assert out.stat().st_size > 1000
    assert len(json.loads((tmp_path / "all.json").read_text())) == 9
    assert (tmp_path / "all.csv").read_text().count("\n") == 10
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "all.parquet").num_rows == 9
    refused = dpc("search", "export", "--storage", db, "-o", "x.xls")
    assert (refused.code, "x.xls is no .json, .csv or .parquet" in refused.err) == (1, True)


def test_objectives_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given.py").write_text("def f(cell, attempt):\n    return 1.0\nx = 3\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    named = NamedObjective("given.py:f")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(named))
    assert again(dpcdsl.read_cell("top1"), Attempt(0, 0)) == 1.0
    assert identity_of(again) == identity_of(named) == {"objective": "given:f"}
    monkeypatch.chdir(tmp_path)
    for wrong, message in [
        ("f", r"f is not an objective"),
        ("given.py:g", "given.py has no function g"),
        ("given.py:x", "given.py has no function x"),
        ("missing.py:f", "there is no such file"),
        ("broken.py:f", "broken.py cannot be imported: ZeroDivisionError"),
        ("no.such.module:f", "no.such.module cannot be imported: ModuleNotFoundError"),
    ]:
        with pytest.raises(DpcError, match=message):
            NamedObjective(wrong)


@pytest.mark.parametrize(
    "error", [optuna.exceptions.StorageInternalError("gone"), OperationalError("", {}, Exception("gone"))]
)
def test_an_outage_is_waited_out(error: Exception) -> None:
    errors = [error, error]

    def away_twice() -> int:
        if errors:
            raise errors.pop()
        return 7

    assert patiently(away_twice) == 7


def test_signs_of_life_go_on_after_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begun(str(tmp_path / "s.db"))
    lost(study, 5)
    (trial,) = study.records()
    record, calls = study.storage.record_heartbeat, Event()
    errors: list[Exception] = [
        optuna.exceptions.StorageInternalError("gone"),
        OperationalError("", {}, Exception("gone")),
    ]

    def heard(trial_id: int) -> None:
        if errors:
            raise errors.pop()
        record(trial_id)
        calls.set()

    monkeypatch.setattr(study.storage, "record_heartbeat", heard)
    with Pulse(study.storage, trial.id, 0.05):
        assert calls.wait(30)


def test_patience_ends() -> None:
    def away() -> None:
        raise optuna.exceptions.StorageInternalError("gone")

    with pytest.raises(DpcError, match=r"the study's storage does not answer: gone \[DPC098\]"):
        patiently(away, outage=0.2)
