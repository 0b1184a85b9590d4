"""Questions to the enumerator that have no answer, odd ones, and progress while an answer is worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import comb, factorial
from typing import Any

import numpy as np
import pytest
from brute_force import (
    EMPTY,
    as_choices,
    code_of,
    dpc,
    operators_of_ones_own,
    space_of,
)

from dpcdsl import Cell, DpcError, Operator, Space, read_cell, read_space
from dpcdsl.constraints import (
    Branches,
    Depth,
    Params,
)
from dpcdsl.enumeration import count, distribution, enumerator, enumerator_of, reporting, tally
from dpcdsl.neighbourhood import crossover, mutate, neighbours


@pytest.fixture(autouse=True, scope="module")
def own() -> Iterator[None]:
    with operators_of_ones_own():
        yield


# What cannot be answered

NOT_RANKS = [True, False, np.bool_(True), 1.0, np.float64(1), "1", b"1", None, (1,), [1], 1j, float("nan")]


@pytest.mark.parametrize("space", [dpc(5), dpc(12), read_space("aspp_subsets")], ids=["5", "12", "31"])
def test_what_is_not_a_rank(space: Space) -> None:
    found = enumerator(space)
    for wrong in NOT_RANKS:
        for ask in (found.unrank, lambda rank: found.vectors([rank])):
            with pytest.raises(DpcError) as caught:
                ask(wrong)
            assert code_of(caught) == "DPC071", wrong
    with pytest.raises(DpcError, match=f"ranks go from 0 to {found.count - 1}, and this is {found.count}") as caught:
        found.unrank(found.count)
    assert code_of(caught) == "DPC071"
    for array in (
        np.array([1.0]),
        np.array([True]),
        np.array(["1"]),
        np.array([1], "datetime64[s]"),
        np.array([[1, 2]]),
        np.zeros((0, 2), int),
        np.array(1),
        np.array([-1]),
        np.array([-1, found.count], object),
        np.array([0, 1.0], object),
        [[0, 1]],
        [0, 1.0],
        [0, "1"],
        [found.count],
        [0, -1],
        "01",
        {0, 1},
        None,
        [2**200],
    ):
        with pytest.raises(DpcError) as caught:
            found.vectors(array)
        assert code_of(caught) == "DPC071", array
    for integer in (np.int8, np.int64, np.uint8, np.uint64):
        assert found.unrank(integer(3)) == found.unrank(3)
        assert np.array_equal(found.vectors(np.array([3], integer)), found.vectors([3]))


@pytest.mark.parametrize("space", [dpc(5), dpc(12), dpc(5, "depth <= 2")], ids=["5", "12", "constrained"])
def test_what_is_not_a_vector(space: Space) -> None:
    found = enumerator(space)
    width = 2 * len(space.slots)
    for array in (
        [0] * width,
        [[0] * (width - 1)],
        [[0] * (width + 2)],
        [[0.0] * width],
        [[True] * width],
        [["0"] * width],
        [[2**70] * width],
        [[0] * width, [0]],
        [],
        None,
        "0",
        np.zeros((1, 1, width), int),
    ):
        with pytest.raises(DpcError, match=f"an array of {width} columns") as caught:
            found.ranks(array)
        assert code_of(caught) == "DPC054"
    for column, number, message in (
        (0, 1, "branch 1 cannot read tensor 1"),
        (0, -1, "branch 1 cannot read tensor -1"),
        (1, 81, "branch 1 has operators 0 to 80, not 81"),
        (1, -1, "branch 1 has operators 0 to 80, not -1"),
        (8, 5, "branch 5 cannot read tensor 5"),
        (8, 2**62, f"branch 5 cannot read tensor {2**62}"),
        (9, 2**62, f"not {2**62}"),
        (9, 2**32, f"not {2**32}"),
        (9, 2**31 + 80, f"not {2**31 + 80}"),
    ):
        rows = np.zeros((4, width), np.int64)
        rows[2, column] = number
        with pytest.raises(DpcError, match=f"row 2: .*{message}") as caught:
            found.ranks(rows)
        assert code_of(caught) == "DPC054"
    for dtype in (np.int8, np.uint8, np.int16, np.uint64):
        rows = np.zeros((2, width), dtype)
        rows[1, 1] = 80
        assert found.ranks(rows).tolist() == [0, found.rank_of(as_choices(rows[1].tolist()))]


def test_vectors_with_branches_left_out() -> None:
    found = enumerator(space_of("(F, conv1x1, _) optional (F, conv1x1, _) ({F, Y2}, conv1x1 | wide, _)"))
    assert found.count == 6
    assert found.ranks([[0, 0, -1, -1, 0, 1]]).tolist() == [1]
    for row, message in (
        ([0, 0, -1, -1, 2, 0], "branch 3 cannot read tensor 2"),
        ([0, 0, 0, 0, 1, 0], "branch 3 cannot read tensor 1"),
        ([0, 0, -1, 0, 0, 0], "branch 2 cannot read tensor -1"),
        ([0, 0, 0, -1, 0, 0], "branch 2 has operators 0 to 0, not -1"),
        ([0, 0, 0, 0, -1, -1], "branch 3 of the space cannot be left out"),
    ):
        with pytest.raises(DpcError, match=f"row 1: .*{message}") as caught:
            found.ranks([[0, 0, 0, 0, 0, 0], row])
        assert code_of(caught) == "DPC054"


def test_a_cell_outside_is_told_why() -> None:
    cheap = enumerator(dpc(5, "params(F=320) <= 0.40M and depth <= 2"))
    conv, pool = Operator.of("conv1x1"), Operator.of("avgpool", grid=(1, 1))
    for cell, reason in (
        (read_cell("top1"), "it breaks `depth <= 2`"),
        (Cell.of((0, conv), (0, conv)), "it has 2 branches, the space 5"),
        (Cell.of(*((0, conv) for _ in range(6))), "it has 6 branches, the space 5"),
        (Cell.of(*((0, conv) for _ in range(5)), filters=64), "it has 64 filters, the space 256"),
        (
            Cell.of(*((0, conv) for _ in range(4)), (1, Operator.of("avgpool", grid=(3, 3)))),
            "`avgpool grid 3x3` is not among the operators of branch 5",
        ),
    ):
        assert cell not in cheap
        with pytest.raises(DpcError, match=reason) as caught:
            cheap.rank(cell)
        assert code_of(caught) == "DPC055"
    named = enumerator(space_of("(F, conv1x1, _) (F, conv1x1, _) ({F, Y2}, conv1x1, _)"))
    with pytest.raises(DpcError, match="branch 3 cannot read `Y1`"):
        named.rank(Cell.of((0, conv), (0, conv), (1, conv)))
    optional = enumerator(space_of("(F, conv1x1, _) optional (F, conv1x1, _)"))
    with pytest.raises(DpcError, match="no choice of its optional branches gives it"):
        optional.rank(Cell.of((0, conv), (0, pool)))
    assert "(F, conv1x1, Y1)" not in optional
    assert 0 not in optional


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_space(text: str) -> None:
    space = space_of(text)
    found = enumerator(space)
    assert found.count == count(space) == 0
    assert list(found) == list(found.cells()) == list(found.walk()) == list(found.walk(shuffle=1)) == []
    assert distribution(space, Depth()) == {}
    assert found.sample(0, 1) == []
    assert found.sample(0, 1, replacement=False) == []
    for ask in (
        lambda: found.sample(1, 1),
        lambda: found.sample(1, 1, replacement=False),
        lambda: found.sample_ranks(3),
        lambda: found.unrank(0),
        lambda: found.vectors([0]),
    ):
        with pytest.raises(DpcError) as caught:
            ask()
        assert code_of(caught) == "DPC074"
    with pytest.raises(DpcError) as caught:
        found.rank(Cell.of(*((0, Operator.of("conv1x1")) for _ in space.slots)))
    assert code_of(caught) == "DPC055"


def test_too_many_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_STATES", 50)
    space = dpc(5, "params(F=321) <= 0.40M and madds(F=322, at=17x19) <= 1M and depth == 3")
    for ask in (
        lambda: count(space),
        lambda: enumerator(space).unrank(0),
        lambda: distribution(dpc(5), Params(features=320), Depth()),
    ):
        with pytest.raises(DpcError, match="more than 50 states") as caught:
            ask()
        assert code_of(caught) == "DPC070"
    assert count(dpc(7)) == factorial(7) * 81**7  # choices that are free of each other need none


@pytest.mark.parametrize(
    "settings_of",
    [{"up_to": "cells"}, {"up_to": None}, {"at": (3, 3)}, {"up_to": "function"}, {"up_to": "function", "at": (0, 3)}],
)
def test_wrong_settings(settings_of: dict[str, Any]) -> None:
    for ask in (enumerator, count):
        with pytest.raises(DpcError) as caught:
            ask(dpc(2), **settings_of)
        assert code_of(caught) == "DPC062"


# Progress


def test_progress_is_reported_while_somebody_listens() -> None:
    heard: list[tuple[str, int, int]] = []
    inner: list[tuple[str, int, int]] = []
    with reporting(lambda *said: heard.append(said)):
        count(dpc(5, "params(F=323) <= 0.40M"))
        assert heard == [("counting", done, 5) for done in range(1, 6)]
        with reporting(lambda *said: inner.append(said)):
            distribution(dpc(4), Depth())
        assert inner == [("counting", done, 4) for done in range(1, 5)]
        assert len(heard) == 5
        enumerator(dpc(5, "params(F=323) <= 0.40M")).unrank(0)
        assert len(heard) > 5
        assert all(what == "counting" and 1 <= done <= total == 5 for what, done, total in heard)
    so_far = len(heard)
    count(dpc(3, "params(F=323) <= 0.40M"))
    assert len(heard) == so_far


def test_what_a_listener_raises_arrives() -> None:
    def stop(*said: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(stop):
        distribution(dpc(3), Depth())
    assert distribution(dpc(1), Depth()) == {(1,): 81}


# Odd questions


def test_odd_questions() -> None:
    study, paper = enumerator(read_space("aspp_subsets")), enumerator(dpc(12))
    with pytest.raises(DpcError, match="at least one branch"):
        study.ranks([[-1] * 10])
    assert len(study.sample_ranks(1, 1, replacement=False, shard=(0, 2**65))) == 1
    assert len(list(study.walk(shard=(0, 2**65), shuffle=3))) == 1
    assert list(study.walk(shard=(np.int64(1), np.int64(16)))) == [1, 17]
    twice = distribution(study.space, Branches(), Depth(), Branches())
    assert twice == {(n, 1, n): comb(5, n) for n in range(1, 6)}
    assert enumerator(space_of("9 * (F, avgpool grid {1..16} x {1..16}, _)")).vectors([]).shape == (0, 18)
    wrong: list[Callable[[], Any]] = [
        *(lambda stop=stop: study.walk(stop=stop) for stop in ("x", 2.5, True, -1)),
        lambda: paper.walk(np.bool_(True)),
        lambda: paper.walk(0.5),
        lambda: study.vectors([np.zeros((2, 3)), np.zeros((2, 4))]),
    ]
    for ask in wrong:
        with pytest.raises(DpcError) as caught:
            ask()
        assert code_of(caught) == "DPC071"


def test_many_measures_of_one_cell_are_answered_or_refused_soon() -> None:
    condition = "distance(top1) >= 12 and uses(avgpool) < 4 and not depth == 5"
    assert count(dpc(9, condition)) < count(dpc(9))


def test_many_threads_ask_one_enumerator() -> None:
    space = dpc(5, "madds(F=320, at=65x129) <= 3G")
    wanted = enumerator(space).sample_ranks(40, 1).tolist()
    for _ in range(3):
        found = enumerator_of(space)
        with ThreadPoolExecutor(8) as pool:
            counts = [pool.submit(getattr, found, "count") for _ in range(4)]
            ranks = [pool.submit(lambda e, r: e.rank(e.unrank(r)), found, rank) for rank in wanted]
            assert {future.result() for future in counts} == {enumerator(space).count}
            assert [future.result() for future in ranks] == wanted


def test_what_is_not_a_space_or_a_cell() -> None:
    cells = enumerator(dpc(5))
    for ask in (
        lambda: count("dpc"),  # type: ignore[arg-type]
        lambda: enumerator(read_cell("top1")),  # type: ignore[arg-type]
        lambda: cells.rank("top1"),  # type: ignore[arg-type]
        lambda: neighbours(read_cell("top1"), "dpc"),  # type: ignore[arg-type]
        lambda: mutate("top1", dpc(5)),  # type: ignore[arg-type]
        lambda: crossover("top1", read_cell("top1")),  # type: ignore[arg-type]
        lambda: distribution(dpc(5), "depth"),  # type: ignore[arg-type]
    ):
        with pytest.raises(DpcError, match="is wanted, not") as caught:
            ask()
        assert code_of(caught) == "DPC062"
    assert "top1" not in cells


def test_a_question_out_of_reach_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_STATES", 1000)
    cells = enumerator_of(dpc(12, "depth <= 6"))
    cell = enumerator(dpc(12)).unrank(0)
    assert cell in cells.space
    with pytest.raises(DpcError) as caught:
        assert cell in cells
    assert code_of(caught) == "DPC070"
