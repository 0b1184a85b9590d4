"""Reranking and fidelity: whether cells are scored again, once each, and whether what is said of two scores is so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from searches import DPC, begun, check_once_each, opened, score
from support import Dpc

import dpcdsl
from dpcdsl import DpcError
from dpcdsl.search.comparison import Fidelity, drawn_cells, fidelity, plot_fidelity
from dpcdsl.search.correlations import agreement
from dpcdsl.search.objective import Attempt, NamedObjective
from dpcdsl.search.proposer import class_key
from dpcdsl.search.reranking import finals, rerank
from dpcdsl.search.study import SearchStudy
from dpcdsl.search.worker import Terms, work

pytestmark = pytest.mark.usefixtures("studies_are_closed")

FINAL = """
import os

def final(cell, attempt):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{cell}\\n")
    if "grid 8x8" in str(cell):
        raise ValueError("too coarse")
    return -float(len(str(cell)))

def noisy(cell, attempt):
    return float(len(str(cell)) + hash(str(cell)[-9:-6] == "1x1"))
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "final.py").write_text(FINAL)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))


@pytest.fixture
def final(tmp_path: Path) -> NamedObjective:
    return NamedObjective(f"{tmp_path}/final.py:final")


def searched(where: str, trials: int = 30) -> SearchStudy:
    study = begun(where)
    work(study, score, "near-best", Terms(trials))
    return study


# Agreement


@pytest.mark.parametrize("seed", range(20))
def test_agreement_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(5, 60))
    x = rng.normal(size=count)
    y = (x + rng.normal(size=count) * seed / 5).round(1 if seed % 2 else 9)  # with ties, and without
    found = agreement(x.tolist(), y.tolist())
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.spearman is not None
    assert (found.low is None) == (found.high is None) == (count < 8)
    if found.low is not None and found.high is not None:
        assert found.low - 1e-9 <= found.spearman <= found.high + 1e-9


def test_the_interval_holds_what_it_says() -> None:
    """Of a known correlation, in about 57 of 60 draws."""
    rho, held = 0.5, 0
    known = 6 / math.pi * math.asin(rho / 2)  # Spearman's, of a normal pair
    rng = np.random.default_rng(0)
    for _ in range(60):
        x = rng.normal(size=40)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=40)
        found = agreement(x.tolist(), y.tolist())
        assert found.low is not None
        assert found.high is not None
        held += found.low <= known <= found.high
    assert 52 <= held <= 59


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.data())
def test_agreement_of_anything(x: list[float], data: Any) -> None:
    y = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=len(x), max_size=len(x)))
    found, swapped = agreement(x, y), agreement(y, x)
    assert found.cells == len(x)
    assert found.spearman == (swapped.spearman if swapped.spearman is None else pytest.approx(swapped.spearman))
    assert all(0 <= share <= 1 for share in found.top.values())
    assert str(found)
    if len(set(x)) < 2 or len(x) < 3:
        assert found.spearman is None
    else:
        same = agreement(x, x)
        assert same.spearman == pytest.approx(1)
        assert set(same.top.values()) == {1.0}


def test_agreement_says() -> None:
    found = agreement([1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7])
    assert found.top == {1: 0.0, 2: 1.0, 4: 1.0}
    assert str(found).startswith("ρ = 0.90 (")
    assert str(found).endswith("τ = 0.71, 8 cells; both have 0% of the best 1, 100% of the best 2, 100% of the best 4")
    few = agreement([1, 2, 3], [1, 2, 3])
    assert (few.spearman, few.low, few.high) == (1, None, None), "whatever is drawn again of three is as well ordered"
    assert str(few).startswith("ρ = 1.00, τ = 1.00, 3 cells; ")
    assert str(agreement([1, 1], [2, 3])) == "2 cells: too few, or all alike"
    with pytest.raises(DpcError, match="3 scores cannot be compared with 2"):
        agreement([1, 2, 3], [1, 2])


# Reranking


def test_the_best_are_scored_again_and_ranked(where: str, final: NamedObjective, tmp_path: Path) -> None:
    study = searched(where)
    found = rerank(where, final, top=8)
    best = [seen.record for seen in study.best(8)]
    assert sorted(one.proxy_place for one in found.finalists) == list(range(1, 9))
    for one in found.finalists:
        assert one.proxy.record is not None
        assert one.proxy.record == best[one.proxy_place - 1]
        proxy, last = one.scores
        assert proxy == pytest.approx(score(dpcdsl.parse_cell(one.proxy.record.cell), Attempt(0, 0)))
        assert (last is None) == ("grid 8x8" in one.proxy.record.cell) == (one.final_place is None)
        assert last is None or last == -len(one.proxy.record.cell)
    scores = [one.scores[1] for one in found.finalists if one.scores[1] is not None]
    assert scores == sorted(scores, reverse=True)
    assert [one.final_place for one in found.finalists if one.final_place] == list(range(1, len(scores) + 1))
    assert found.winner == found.finalists[0]
    proxies = [one.scores[0] for one in found.finalists if one.scores[1] is not None]
    assert found.agreement == agreement(proxies, scores)
    check_once_each(opened(where, "search.final"), 8)
    assert len((tmp_path / "log").read_text().splitlines()) == 8


def test_it_goes_on_and_more_are_added(final: NamedObjective, tmp_path: Path) -> None:
    where = str(tmp_path / "s.db")
    searched(where)
    rerank(where, final, top=3)
    rerank(where, final, top=3)
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    searched(where, 60)  # and others may be best by then
    found = rerank(where, final, top=6)
    keys = [one.proxy.record.key for one in found.finalists if one.proxy.record]
    assert {seen.record.key for seen in opened(where).best(6) if seen.record} <= set(keys)
    assert len((tmp_path / "log").read_text().splitlines()) == len(keys) == len(set(keys))
    assert finals(where) == found


def test_what_cannot_be_reranked(final: NamedObjective, tmp_path: Path) -> None:
    where = str(tmp_path / "s.db")
    begun(where)
    with pytest.raises(DpcError, match="the study search has no trial with a score yet"):
        rerank(where, final)
    work(opened(where), score, "near-best", Terms(3))
    with pytest.raises(DpcError, match=r"there is no study search\.final"):
        finals(where)
    rerank(where, final, top=2)
    with pytest.raises(DpcError, match="begun with another objective"):
        rerank(where, NamedObjective(f"{tmp_path}/final.py:noisy"), top=2)
    other = rerank(where, NamedObjective(f"{tmp_path}/final.py:noisy"), top=2, final="other")
    assert len(other.finalists) == 2


def test_rerank_command(dpc: Dpc, tmp_path: Path) -> None:
    study = searched(str(tmp_path / "s.db"))
    options = ("--objective", "final.py:final", "--top", "4", "-o", "out", "--workers", "2")
    done = dpc("rerank", "s.db", *options)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["final", "score", "proxy", "score", "trial", "params", "madds", "cell"]
    assert any(line.startswith("proxy against final: ") for line in lines)
    card = (tmp_path / "out" / "winner.txt").read_text()
    assert card in done.out
    assert (tmp_path / "out" / "winner.svg").read_text().startswith("<?xml")
    found = json.loads(dpc("rerank", "s.db", *options, "--json").out)
    assert found["finalists"][0]["final"]["place"] == 1
    assert dpcdsl.format_cell(dpcdsl.parse_cell(found["finalists"][0]["cell"]), "winner") in card
    assert len(found["finalists"]) == 4
    assert study.plan.name in found["finalists"][0]["id"]
    refused = dpc("rerank", "s.db")
    assert (refused.code, "A training needs --data ROOT and -o DIR." in refused.err) == (2, True)


# Fidelity


def test_cells_are_drawn_once_each() -> None:
    cells = drawn_cells(DPC, 40, seed=3)
    assert len({class_key(cell) for cell in cells}) == 40
    assert cells == drawn_cells(DPC, 40, seed=3) != drawn_cells(DPC, 40, seed=4)
    subsets = dpcdsl.read_space("aspp_subsets")
    assert len(drawn_cells(subsets)) == len({class_key(cell) for cell in drawn_cells(subsets, 99)}) == 31
    with pytest.raises(DpcError, match="more than 1,000 cells"):
        drawn_cells(DPC)


def test_ways_are_compared_on_the_same_cells(final: NamedObjective, tmp_path: Path) -> None:
    where, subsets = str(tmp_path / "s.db"), dpcdsl.read_space("aspp_subsets")
    cells = drawn_cells(subsets)
    ways = {"a": final, "b": NamedObjective(f"{tmp_path}/final.py:noisy")}
    for _ in range(2):
        found = fidelity(where, subsets, cells, ways, workers=2)
        assert len((tmp_path / "log").read_text().splitlines()) == 31
    assert found.scores["a"] == tuple(-float(len(str(cell))) for cell in cells)
    (agree,) = found.pairs().values()
    assert agree == agreement(found.scores["a"], found.scores["b"])  # type: ignore[arg-type]
    assert found.to_json()["pairs"][0]["of"] == ["a", "b"]


def test_a_failure_is_left_out() -> None:
    found = Fidelity(("x", "y", "z", "w"), {"a": (1.0, None, 2.0, 3.0), "b": (1.0, 5.0, None, 2.0), "c": (1, 2, 3, 4)})
    assert [agree.cells for agree in found.pairs().values()] == [2, 3, 3]


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_plots(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = Fidelity(tuple("abcdefgh"), {name: tuple(rng.random(8).tolist()) for name in ("small", "large", "whole")})
    plot_fidelity(found, tmp_path / f"p.{kind}")
    assert (tmp_path / f"p.{kind}").stat().st_size > 3000
    with pytest.raises(DpcError, match="DPC063"):
        plot_fidelity(found, tmp_path / "p.txt")


def test_fidelity_command(dpc: Dpc, tmp_path: Path) -> None:
    ways = '[one]\nobjective = "final.py:final"\n[two]\nobjective = "final.py:noisy"\n'
    (tmp_path / "ways.toml").write_text(ways)
    command = ("fidelity", "dpc", "ways.toml", "--count", "12", "--storage", "f.db", "--workers", "2")
    refused = dpc(*command, "-o", "plot.txt")
    assert (refused.code, "DPC063" in refused.err, (tmp_path / "f.db").exists()) == (1, True, False)
    done = dpc(*command, "-o", "plot.svg")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["one", "two", "cell"]
    assert lines[-1].startswith("one against two: ρ = ")
    assert (tmp_path / "plot.svg").is_file()
    found = json.loads(dpc(*command, "--json").out)
    assert len(found["cells"]) == 12
    assert found["scores"].keys() == {"one", "two"}
    assert {seen.record.seed for seen in opened("f.db", "fidelity.one").records() if seen.record} == {0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nobjective = 'final.py:final'\n", "there is nothing to compare"),
        ("a = 1\n", "a is no table"),
        ("[a\n", "this is no TOML: "),
        ("['a/b']\n", "this is no name of a way"),
        ("[a]\n", "None is not an objective"),
        ("[a]\nobjective = 'prox'\n", "prox is not an objective"),
        ("[a]\nobjective = 'proxy'\n", "it needs cache"),
        ("[a]\nobjective = 'proxy'\ncache = 'x'\nstep = 3\n", "do you mean steps?"),
        ("[a]\nobjective = 'training'\ndata = 'x'\n", "it needs out"),
        ("[a]\nobjective = 'final.py:final'\nsteps = 3\n", "steps is not an option of it"),
    ],
)
def test_ways_that_cannot_be(text: str, message: str, dpc: Dpc, tmp_path: Path) -> None:
    (tmp_path / "ways.toml").write_text(text)
    refused = dpc("fidelity", "aspp_subsets", "ways.toml")
    assert refused.code == 1
    assert message in refused.err
    assert not (tmp_path / "search.db").exists()
