"""Searchers on a tabulated objective, whose every score is known: trials that they take, and what a proposal costs."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna

import dpcdsl
from dpcdsl.search.objective import Attempt
from dpcdsl.search.proposer import Proposer
from dpcdsl.search.sampler import CellSampler, suggest_cell
from dpcdsl.search.strategies import STRATEGIES
from dpcdsl.search.study import SearchStudy
from dpcdsl.search.trials import Trial

SEEDS, FEWER = 100, 20  # the models of TPE and the like take seconds a hundred trials
MOST = 2_000  # trials; who has not come there by then counts as so many
PLOT = Path(__file__).parents[1] / "docs" / "images" / "searchers.svg"

SPACE = dpcdsl.read_space("dpc")
CELLS = dpcdsl.enumerator(SPACE)
Floats = npt.NDArray[np.float64]


class Table:
    """Random scores: u of an operator on F or a branch, v of one and the one it reads, less 0.3 a step of depth."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.u = rng.normal(size=(2, 81))
        self.v = 0.5 * rng.normal(size=(81, 81))

    def scores(self, vectors: npt.NDArray[np.int32]) -> Floats:
        inputs, operators = vectors[:, 0::2], vectors[:, 1::2]
        rows = np.arange(len(vectors))
        total, depth = np.zeros(len(vectors)), np.zeros((len(vectors), 6), int)
        for branch in range(5):
            source, operator = inputs[:, branch], operators[:, branch]
            reads_branch = source > 0
            total += self.u[reads_branch.astype(int), operator]
            read = operators[rows, np.maximum(source - 1, 0)]
            total += np.where(reads_branch, self.v[read, operator], 0)
            depth[:, branch + 1] = depth[rows, source] + 1
        return total - 0.3 * depth.max(1)

    def score(self, rank: int) -> float:
        return float(self.scores(CELLS.vectors([rank]))[0])


@cache
def target(seed: int) -> float:
    """The 99.9th percentile of a million uniform cells."""
    table = Table(seed)
    scores = [table.scores(CELLS.vectors(CELLS.sample_ranks(100_000, seed=1_000 * seed + part))) for part in range(10)]
    return float(np.quantile(np.concatenate(scores), 0.999))


def ours(strategy: str, seed: int) -> int:
    """Trials until one reaches the target."""
    table, proposer = Table(seed), Proposer(SPACE, strategy, seed=seed)
    for number in range(MOST):
        rank = proposer.ask()
        assert rank is not None
        score = table.score(rank)
        if score >= target(seed):
            return number + 1
        proposer.tell(Trial(number, rank, 0, True, (score,)))
    return MOST


def uniform(seed: int) -> int:
    """The same by drawing all at once, and further than :data:`MOST`."""
    scores = Table(seed).scores(CELLS.vectors(CELLS.sample_ranks(20_000, seed=seed)))
    return int(np.argmax(scores >= target(seed))) + 1


def optunas(sampler: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> int:
    table = Table(seed)
    study = optuna.create_study(direction="maximize", sampler=sampler(seed))
    for number in range(MOST):
        trial = study.ask()
        score = table.score(CELLS.rank(suggest_cell(trial, SPACE)))
        if score >= target(seed):
            return number + 1
        study.tell(trial, score)
    return MOST


def searchers() -> list[list[str]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    taken: dict[str, list[int]] = {"uniform": [uniform(seed) for seed in range(SEEDS)]}
    for name in STRATEGIES:
        if name not in ("uniform", "exhaustive"):
            taken[name] = [ours(name, seed) for seed in range(SEEDS)]
            print(name, statistics.median(taken[name]), flush=True)
    for name, sampler in {
        "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
        "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    }.items():
        taken[name] = [optunas(sampler, seed) for seed in range(FEWER)]
        print(name, statistics.median(taken[name]), flush=True)
    _plot(taken)
    rows = [["searcher", "seeds", "median", "of which 10 % and 90 %", "÷ uniform", "95 %", "first 20", "bar"]]
    bars = {"near-best": "≤ 0.20, interval < 0.30, first 20 no worse than TPE's"}
    for name, counts in sorted(taken.items(), key=lambda item: statistics.median(item[1][:FEWER])):
        low, high = np.quantile(counts, (0.1, 0.9))
        ratio, interval = _ratio(counts, taken["uniform"])
        rows.append(
            [
                *(name, f"{len(counts)}", f"{statistics.median(counts):.0f}", f"{low:.0f}, {high:.0f}"),
                *(f"{ratio:.2f}", interval, f"{statistics.median(counts[:FEWER]):.0f}", bars.get(name, "")),
            ]
        )
    return rows


def _ratio(counts: list[int], others: list[int]) -> tuple[float, str]:
    """Of the medians, and its bootstrap interval over seeds."""
    rng, mine, theirs = np.random.default_rng(0), np.array(counts), np.array(others)
    draws = [np.median(rng.choice(mine, len(mine))) / np.median(rng.choice(theirs, len(theirs))) for _ in range(10_000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.median(mine) / np.median(theirs)), f"{low:.2f} to {high:.2f}"


def _plot(taken: dict[str, list[int]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "searchers"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, counts in taken.items():
        reached = np.sort(counts)
        shares = np.arange(1, len(reached) + 1) / len(reached)
        axes.step(np.r_[1, reached], np.r_[0, shares], where="post", label=name, lw=2.2 if name == "near-best" else 1.2)
    axes.set(
        xscale="log", xlim=(1, MOST), ylim=(0, 1), xlabel="trials", ylabel="seeds that have reached the best 0.1 %"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)


FINISHED = 28_000


def proposals() -> list[list[str]]:
    """Median milliseconds of a proposal, when so many trials have finished."""
    rows = [["proposal", "finished trials", "median", "99 %", "bar"]]
    table = Table(0)
    for name in ("near-best", "uniform", "evolution", "policy"):
        proposer = Proposer(SPACE, name, seed=0)
        ranks = CELLS.sample_ranks(FINISHED, seed=1).tolist()
        scores = table.scores(CELLS.vectors(ranks)).tolist()
        for number, (rank, score) in enumerate(zip(ranks, scores, strict=True)):
            proposer.tell(Trial(number, rank, None, True, (score,)))
        rows.append(
            [f"`Proposer`, {name}", f"{FINISHED:,}", *_times(_asked(proposer, table)), "≤ 5 ms" if not rows[1:] else ""]
        )
    study = optuna.create_study(direction="maximize", sampler=CellSampler(SPACE, seed=0))
    study.add_trials(_finished(FINISHED, table))
    rows.append(["`CellSampler`, study in memory", f"{FINISHED:,}", *_times(_sampled(study, table)), "≤ 5 ms"])
    return rows


def _asked(proposer: Proposer, table: Table) -> Iterator[float]:
    for number in range(FINISHED, FINISHED + 300):
        began = time.perf_counter()
        rank = proposer.ask()
        yield time.perf_counter() - began
        assert rank is not None
        proposer.tell(Trial(number, rank, 0, True, (table.score(rank),)))


def _finished(count: int, table: Table) -> Iterator[optuna.trial.FrozenTrial]:
    from dpcdsl.search.genes import Genes

    genes = Genes(SPACE)
    distributions = {name: optuna.distributions.CategoricalDistribution(v) for name, v in genes.choices.items()}
    for rank in CELLS.sample_ranks(count, seed=1).tolist():
        values = genes.of(CELLS.unrank(rank))
        yield optuna.trial.create_trial(params=values, distributions=dict(distributions), value=table.score(rank))


def _sampled(study: optuna.Study, table: Table) -> Iterator[float]:
    """From a trial to its cell, the reading of the study in it."""
    for _ in range(100):
        trial = study.ask()
        began = time.perf_counter()
        cell = suggest_cell(trial, SPACE)
        yield time.perf_counter() - began
        study.tell(trial, table.score(CELLS.rank(cell)))


def _times(seconds: Iterator[float]) -> tuple[str, str]:
    taken = sorted(seconds)[:-1]  # the first reads all that there is
    return f"{1000 * statistics.median(taken):.2f} ms", f"{1000 * taken[int(0.99 * len(taken))]:.1f} ms"


def throughput() -> list[list[str]]:
    """Whole searches of a trivial objective, by processes on a database of this machine."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support import Postgresql

    rates = ("trials a second: first thousand", "last thousand")
    rows = [["database", "workers", "trials", *rates, "memory of a worker: then", "in the end", "classes twice", "bar"]]
    with tempfile.TemporaryDirectory() as name:
        rows.append([*_throughput("SQLite", str(Path(name) / "search.db"), 2, 5_000), "≥ 10 a second"])
    server = Postgresql(max(Path("/usr/lib/postgresql").glob("*/bin")))
    try:
        rows.append([*_throughput("PostgreSQL", server.database(), 8, FINISHED), "≥ 20 a second throughout"])
    finally:
        server.remove()
    return rows


def trivial(cell: dpcdsl.Cell, _: Attempt) -> float:
    return float(sum(len(str(branch.operator)) for branch in cell.branches))


def _throughput(kind: str, where: str, workers: int, trials: int) -> list[str]:
    objective = f"{Path(__file__).resolve()}:trivial"
    options = ("--objective", objective, "--storage", where, "--trials", str(trials), "--workers", str(workers))
    dpc = Path(sys.executable).with_name("dpc")
    with subprocess.Popen(
        [dpc, "search", "dpc", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        sizes = []
        while run.poll() is None:
            time.sleep(2)
            sizes.append(_memory(run.pid, workers))
    assert run.returncode == 0
    sizes = [size for size in sizes if size]
    with SearchStudy.open(where) as study:
        records = [seen.record for seen in study.records() if seen.record and seen.record.scores]
        loaded = optuna.load_study(study_name="search", storage=study.storage).get_trials(deepcopy=False)
    ends = sorted(trial.datetime_complete for trial in loaded if trial.datetime_complete is not None)
    assert len(records) == trials
    first, last = ((ends[at + 999] - ends[at]).total_seconds() for at in (0, trials - 1_000))
    twice = len(records) - len({record.key for record in records})
    assert not twice, "a class of cells was evaluated twice"
    return [
        *(kind, f"{workers}", f"{trials:,}", f"{999 / first:.0f}", f"{999 / last:.0f}"),
        *(f"{sizes[min(10, len(sizes) - 1)]:.0f} MB", f"{sizes[-1]:.0f} MB", f"{twice}"),
    ]


def _memory(driver: int, workers: int) -> float:
    """Megabytes that a worker holds, by the median of them; 0 while not all are there."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{driver}/task/{driver}/children").read_text(encoding="ascii").split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                status = Path(f"/proc/{child}/status").read_text(encoding="ascii")
                found.append(int(status.split("VmRSS:")[1].split()[0]) / 1e3)
    return statistics.median(found) if len(found) == workers else 0.0
