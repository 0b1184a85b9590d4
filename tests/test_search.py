"""Genes, standings, strategies, and who proposes what: by brute force, and against properties of all spaces."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpcdsl
from dpcdsl import DpcError, Space, parse
from dpcdsl.search.genes import LEFT_OUT, Genes
from dpcdsl.search.proposer import Proposer, class_key
from dpcdsl.search.strategies import STRATEGIES, Evolution, NearBest, PolicyGradient, strategy_of
from dpcdsl.search.trials import Standings, Trial


def space_of(text: str) -> Space:
    return parse(f"space s {{ {text} }}").space()


DPC = dpcdsl.read_space("dpc")
CELLS = dpcdsl.enumerator(DPC)
SMALL = space_of(
    "(F, conv1x1 | avgpool grid {1, 2} x {1, 2}, Y1) optional (any, conv1x1 | sepconv3x3 rate {1, 6} x {1, 6}, Y2)"
)
TIGHT = space_of(
    "3 * (any, conv1x1 | sepconv3x3 rate {1, 7} x {1, 7}, _) require depth <= 2 require uses(conv1x1) == 1"
)
SPACES = [DPC, SMALL, TIGHT, dpcdsl.read_space("aspp_subsets"), dpcdsl.read_space("dpc where params(F=320) <= 0.36M")]

spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: str(space)[:24])


# Genes


@spaces
@given(st.data())
def test_genes_of_a_cell_are_its_cell(space: Space, data: st.DataObject) -> None:
    genes = Genes(space)
    rank = data.draw(st.integers(0, genes.cells.count - 1))
    values = genes.of(genes.cells.unrank(rank))
    assert values.keys() == genes.choices.keys()
    assert all(values[name] in choices for name, choices in genes.choices.items())
    assert genes.cells.unrank(genes.rank(values)) == genes.cells.unrank(rank)


@pytest.mark.parametrize("space", [SMALL, TIGHT])
def test_every_choice_of_values_is_a_cell_and_the_next_one_in_order(space: Space) -> None:
    """By going through all of them: the first genome whose vector is not before, or the first of all."""
    genes = Genes(space)
    vectors = [tuple(row) for row in genes.cells.vectors(range(genes.cells.count)).tolist()]
    assert vectors == sorted(vectors)
    names = list(genes.choices)
    for chosen in product(*genes.choices.values()):
        values = dict(zip(names, chosen, strict=True))
        wanted: list[int] = []
        for number, _ in enumerate(space.slots, 1):
            source = values.get(f"Y{number}.input", space.candidates(number)[0])
            operator = values.get(f"Y{number}.operator", 0)
            wanted += [LEFT_OUT, LEFT_OUT] if operator == LEFT_OUT else [source, operator]
        expected = next((rank for rank, vector in enumerate(vectors) if vector >= tuple(wanted)), 0)
        assert genes.rank(values) == expected


def test_genes_that_are_not_the_spaces() -> None:
    genes = Genes(DPC)
    values = genes.of(dpcdsl.read_cell("top1"))
    with pytest.raises(DpcError, match=r"Y2.input is 7, which is none of its 2 values \[DPC054\]"):
        genes.rank(values | {"Y2.input": 7})
    with pytest.raises(DpcError, match=r"Y1.operator is None"):
        genes.rank({})
    with pytest.raises(DpcError, match="DPC074"):
        _ = Genes(space_of("(F, conv1x1, Y1) require depth >= 2")).cells


# Standings


@given(
    st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[st.integers(0, 4)] * width), min_size=1, max_size=70)),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_standings_are_by_how_many_are_better(scores: list[tuple[int, ...]], count: int, shuffle: Any) -> None:
    def is_better(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    better = [sum(is_better(other, one) for other in scores) for one in scores]
    order = sorted(range(len(scores)), key=lambda number: (better[number], number))
    added = list(range(len(scores)))
    shuffle.shuffle(added)
    standings = Standings()
    for number in added:
        standings.add(Trial(number, 1000 + number, None, True, tuple(map(float, scores[number]))))
    assert standings.best(count) == [1000 + number for number in order[:count]]
    latest = range(max(0, len(scores) - count), len(scores))
    assert standings.latest(count) == [(better[number], 1000 + number) for number in latest]


# Who proposes what


def test_what_is_told_late_or_twice_or_withdrawn() -> None:
    """A class is taken once its cell is known, learned once, and free again when its trial is withdrawn."""
    top1 = dpcdsl.read_cell("top1")
    proposer = Proposer(DPC, "near-best", seed=1)
    proposer.tell(Trial(0, None, 0))
    assert not proposer.knows(top1)
    proposer.tell(Trial(0, CELLS.rank(top1), 0))
    assert proposer.knows(top1)
    assert proposer.ask() != Proposer(DPC, "near-best", seed=1).ask()  # one of its own has been before
    for finished in (True, False, True):
        proposer.tell(Trial(0, CELLS.rank(top1), 0, finished, (1.0,) if finished else None))
    assert len(proposer.search.standings) == 1  # type: ignore[attr-defined]
    aspp = dpcdsl.read_cell("aspp")
    proposer.tell(Trial(1, CELLS.rank(aspp), 0))
    proposer.tell(Trial(2, CELLS.rank(aspp), None))
    proposer.tell(Trial(2, None, None, True))
    assert proposer.knows(aspp)
    proposer.tell(Trial(1, None, 0, True))
    assert not proposer.knows(aspp)
    assert proposer.knows(top1)


def test_a_policy_learns_on_after_failures_and_from_nothing_that_is_alike() -> None:
    proposer = Proposer(DPC, PolicyGradient(batch=4), seed=1)
    ranks = CELLS.sample_ranks(12, seed=1).tolist()
    for number, rank in enumerate(ranks[:4]):
        proposer.tell(Trial(number, rank, 0, True, (1.0,)))
    logits = proposer.search.logits  # type: ignore[attr-defined]
    assert all((values == 0).all() for values in logits.values())
    for number, rank in enumerate(ranks[4:], 4):
        proposer.tell(Trial(number, rank, 0, True, None if number == 5 else (float(number),)))
    assert any((values != 0).any() for values in logits.values())
    assert proposer.search.learned == 12  # type: ignore[attr-defined]


def score_of(cell: dpcdsl.Cell) -> float:
    return float(sum(len(str(branch.operator)) * (1 + branch.input) for branch in cell.branches))


def run(proposers: list[Proposer], rounds: int, learn: bool = True) -> list[tuple[int, int]]:
    """(asker, rank): all askers ask, and then all are told, until there is nothing. As when many ask at once."""
    made: list[tuple[int, int]] = []
    for _ in range(rounds):
        asked = [(proposer.asker, proposer.ask()) for proposer in proposers]
        if all(rank is None for _, rank in asked):
            break
        for asker, rank in asked:
            if rank is None:
                continue
            made.append((asker, rank))
            cell = proposers[0].genes.cells.unrank(rank)
            for proposer in proposers:
                proposer.tell(Trial(len(made) - 1, rank, asker, learn, (score_of(cell),) if learn else None))
    return made


@pytest.mark.parametrize("strategy", STRATEGIES)
@spaces
def test_proposals_are_distinct_and_in_the_space(space: Space, strategy: str) -> None:
    proposers = [Proposer(space, strategy, seed=3, asker=asker, askers=3) for asker in range(3)]
    made = run(proposers, 20)
    cells = [proposers[0].genes.cells.unrank(rank) for _, rank in made]
    assert all(cell in space for cell in cells)
    assert len({class_key(cell) for cell in cells}) == len(cells)
    classes = dpcdsl.count(space, "isomorphism") if space is not DPC else 10**9
    assert len(cells) == min(60, classes) or len(cells) >= 20


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("space", [SMALL, TIGHT, dpcdsl.read_space("aspp_subsets")])
def test_a_small_space_is_gone_through_to_its_end(space: Space, strategy: str) -> None:
    """Each class once, by several askers together, and then nothing."""
    proposers = [Proposer(space, strategy, seed=1, asker=asker, askers=4) for asker in range(4)]
    count = dpcdsl.count(space, "isomorphism")
    made = run(proposers, count + 1)
    assert len(made) == count
    assert all(proposer.ask() is None for proposer in proposers)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_proposal_is_a_function_of_what_was_told(strategy: str) -> None:
    """Whatever the order in which it was told, and by whom else."""
    made = run([Proposer(DPC, strategy, seed=5, asker=asker, askers=2) for asker in range(2)], 30)
    trials = [
        Trial(number, rank, asker, True, (score_of(CELLS.unrank(rank)),)) for number, (asker, rank) in enumerate(made)
    ]
    asked = []
    for order in (1, -1):
        again = Proposer(DPC, strategy, seed=5, asker=1, askers=2)
        for trial in trials[::order]:
            again.tell(trial._replace(finished=False, scores=None))
        for trial in trials[::order]:
            again.tell(trial)
            again.tell(trial)
        asked.append(again.ask())
        assert again.ask() == asked[-1]  # and nothing else has been told since
    assert asked[0] == asked[1]
    other = Proposer(DPC, strategy, seed=6, asker=1, askers=2)
    for trial in trials:
        other.tell(trial)
    if strategy != "exhaustive":
        assert other.ask() != asked[0]


def test_near_best_mixes_as_it_says() -> None:
    """Neighbours of the best at each distance as often, and uniform ones as often as the setting says."""
    best = dpcdsl.read_cell("top1")
    rank = CELLS.rank(best)
    settings_of = {"uniform": 0.25, "best": 1, "radius": 3, "first": 0}
    distances: Counter[int] = Counter()
    for seed in range(600):
        proposer = Proposer(DPC, NearBest(**settings_of), seed=seed)  # type: ignore[arg-type]
        proposer.tell(Trial(0, rank, None, True, (1.0,)))
        proposer.tell(Trial(1, 7, None, True, (0.0,)))
        found = proposer.ask()
        assert found is not None
        distances[dpcdsl.distance(best, CELLS.unrank(found))] += 1
    for distance in (1, 2, 3):
        assert 100 < distances[distance] < 200
    assert 100 < sum(count for distance, count in distances.items() if distance > 3) < 200


def test_the_first_are_uniform_and_the_best_are_several() -> None:
    ranks = [CELLS.rank(cell) for cell in CELLS.sample(6, seed=2)]
    proposer = Proposer(DPC, NearBest(uniform=0.0, best=3, radius=1, first=6), seed=1)
    for number, rank in enumerate(ranks[:5]):
        proposer.tell(Trial(number, rank, None, True, (float(number),)))
    near = CELLS.unrank(proposer.ask() or 0)
    assert min(dpcdsl.distance(near, CELLS.unrank(rank)) for rank in ranks) > 2
    proposer.tell(Trial(5, ranks[5], None, True, (5.0,)))
    parents: Counter[int] = Counter()
    for number in range(6, 66):
        proposed = proposer.ask()
        assert proposed is not None
        proposer.tell(Trial(number, proposed, 0, True, (-1.0,)))
        cell = CELLS.unrank(proposed)
        parents.update(i for i, rank in enumerate(ranks) if dpcdsl.distance(cell, CELLS.unrank(rank)) == 1)
    assert parents.keys() == {3, 4, 5}
    assert min(parents.values()) >= 10


def test_evolution_changes_one_of_the_living() -> None:
    strategy = Evolution(population=4, tournament=50)
    proposer = Proposer(DPC, strategy, seed=1)
    ranks = [CELLS.rank(cell) for cell in CELLS.sample(6, seed=2)]
    for number, rank in enumerate(ranks):
        proposer.tell(Trial(number, rank, None, True, (float(-number),)))
    child = CELLS.unrank(proposer.ask() or 0)
    # The best of all has died; of the four youngest the oldest is the best.
    assert dpcdsl.distance(child, CELLS.unrank(ranks[2])) == 1


def test_a_policy_learns_what_scores() -> None:
    """That it is paid for inputs that are branches, of which at most two in three can be."""
    space = space_of("3 * (any, conv1x1 | sepconv3x3 rate {1..21 step 2} x {1..21 step 2}, _)")
    paid: dict[str, list[float]] = {"policy": [], "uniform": []}
    for strategy, scores in paid.items():
        proposer = Proposer(space, strategy, seed=1)
        for number in range(300):
            rank = proposer.ask()
            assert rank is not None
            cell = proposer.genes.cells.unrank(rank)
            scores.append(sum(branch.input > 0 for branch in cell.branches) / 3)
            proposer.tell(Trial(number, rank, 0, True, (scores[-1],)))
    assert sum(paid["uniform"][-100:]) / 100 < 0.45
    assert sum(paid["policy"][-100:]) / 100 > 0.6


def test_a_policy_has_one_score() -> None:
    proposer = Proposer(DPC, "policy")
    with pytest.raises(DpcError, match=r"a policy gradient has one score \[DPC062\]"):
        proposer.tell(Trial(0, 1, 0, True, (1.0, 2.0)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: NearBest(uniform=1.5), "uniform is from 0 to 1, not 1.5"),
        (lambda: NearBest(best=0), "best is at least 1, not 0"),
        (lambda: NearBest(radius=0), "radius is at least 1, not 0"),
        (lambda: NearBest(first=-1), "first is at least 0, not -1"),
        (lambda: Evolution(tournament=0), "tournament is at least 1, not 0"),
        (lambda: PolicyGradient(batch=1), "batch is at least 2, not 1"),
        (lambda: PolicyGradient(rate=0), "rate is above 0, not 0"),
        (lambda: strategy_of("annealing"), "no strategy is called annealing"),
        (lambda: Proposer(DPC, asker=2, askers=2), "askers are numbered from 0 to 1, not 2"),
    ],
)
def test_wrong_settings(wrong: Any, message: str) -> None:
    with pytest.raises(DpcError, match=message + r".* \[DPC062\]"):
        wrong()


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_classes_have_one_key(seed: int) -> None:
    (cell,) = CELLS.sample(1, seed)
    assert class_key(cell) == class_key(dpcdsl.canonical(cell))


def test_every_public_name_is_what_it_says_and_brings_no_torch() -> None:
    script = """
import sys, types
import dpcdsl.search as room
assert "optuna" not in sys.modules
for name in room.__all__:
    assert not isinstance(getattr(room, name), types.ModuleType), name
assert set(room.__all__) <= set(dir(room))
assert "optuna" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
