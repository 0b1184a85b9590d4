"""What a report tells of a study, gathered once as plain data: the page is a function of it."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from optuna.trial import TrialState

from dpcdsl.diagram import draw
from dpcdsl.layers import Size
from dpcdsl.search.records import Record
from dpcdsl.search.storage import Seen
from dpcdsl.search.study import SearchStudy, View
from dpcdsl.search.trials import beaten
from dpcdsl.syntax import parse_cell

__all__ = ["Findings", "Share", "TopCell", "best_groups", "finals_of", "gather"]

# A branch as a cell's one line has it: input, kind and parameters. Cells that the library itself has written are
# counted by their text: to read them takes fifty times as long.
_BRANCH = re.compile(r"\((\w+), (\w+)([^,]*), \w+\)")


@dataclass(frozen=True)
class Share:
    """What part of all branches has an operator, or reads an input: among the best 1 %, the best 10 % and all cells."""

    name: str
    best: float
    tenth: float
    all: float


@dataclass(frozen=True)
class TopCell:
    """A cell that is shown. place: 1 is the best; number: its trial's; diagram: an ``<svg>`` element."""

    place: int
    number: int
    cell: str
    diagram: str
    score: float
    final: float | None
    params: int
    madds: int


@dataclass(frozen=True)
class Findings:
    """All that a report tells.

    objective: in words. measures: what was searched for, ``score`` first; the others were minimized. features, size: of
    the map that costs are counted on. again: complete trials of a cell that an earlier one had. failures: reasons, and
    how often. numbers, scores, params, madds, finals: of one trial for each class of cells, by number. order: places in
    these, the best first. kinds, operators, inputs: how often in the best cells. top: the best. best_final: of all that
    have a final score.
    """

    name: str
    space: str
    objective: str
    measures: tuple[str, ...]
    seed: int
    features: int
    size: Size
    again: int
    running: int
    waiting: int
    failures: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    params: tuple[int, ...]
    madds: tuple[int, ...]
    finals: tuple[float | None, ...]
    order: tuple[int, ...]
    kinds: tuple[Share, ...]
    operators: tuple[Share, ...]
    inputs: tuple[Share, ...]
    top: tuple[TopCell, ...]
    best_final: TopCell | None

    @property
    def failed(self) -> int:
        return sum(count for _, count in self.failures)


def best_groups(count: int) -> tuple[int, int, int]:
    """How many of so many cells are the best 1 %, the best 10 %, and all; at least one, where there is one."""
    return math.ceil(count / 100), math.ceil(count / 10), count


def finals_of(study: SearchStudy) -> dict[str, float]:
    """The scores of a study, by the class of the cell."""
    return {record.key: record.scores["score"] for _, record in _once_each(study.records()) if record.scores}


def gather(study: SearchStudy, finals: Mapping[str, float] | None = None, top: int = 100) -> Findings:
    """What is to be told. finals: final scores by the record's ``key``. top: how many cells are shown.

    Raises :class:`~dpcdsl.errors.DpcError` (DPC063) if there is no Graphviz to draw them.
    """
    view = View(study)
    seen = view.update()
    trials = _once_each(seen)
    records = [record for _, record in trials]
    order = _best_first(study, trials)
    final = [(finals or {}).get(record.key) for record in records]
    known = [place for place, score in enumerate(final) if score is not None]
    best_final = max(known, key=lambda place: (final[place], -place), default=None)

    shown = order[:top]
    places = shown if best_final is None or best_final in shown else [*shown, best_final]
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each diagram is drawn by a process of its own
        diagrams = dict(zip(places, threads.map(lambda place: _drawn(records[place]), places), strict=True))

    standing = {place: number for number, place in enumerate(order, 1)}

    def told(place: int) -> TopCell:
        number, record = trials[place]
        return TopCell(
            place=standing[place],
            number=number,
            cell=record.cell,
            diagram=diagrams[place],
            score=_score(record),
            final=final[place],
            params=record.costs["params"],
            madds=record.costs["madds"],
        )

    kinds, operators, inputs = _shares([records[place].cell for place in order])
    waiting = sum(each.state == TrialState.WAITING for each in view.unfinished.values()) + len(view.lost())
    return Findings(
        name=study.name,
        space=f"{study.plan.name}: {study.plan.space}" if study.plan.name else study.plan.space,
        objective=_in_words(study.plan.objective),
        measures=study.plan.scores,
        seed=study.plan.seed,
        features=study.plan.features,
        size=study.plan.size,
        again=view.complete - len(trials),
        running=sum(each.state == TrialState.RUNNING for each in view.unfinished.values()),
        waiting=waiting,
        failures=tuple(view.failures.most_common()),
        numbers=tuple(number for number, _ in trials),
        scores=tuple(map(_score, records)),
        params=tuple(record.costs["params"] for record in records),
        madds=tuple(record.costs["madds"] for record in records),
        finals=tuple(final),
        order=tuple(order),
        kinds=kinds,
        operators=operators,
        inputs=inputs,
        top=tuple(map(told, shown)),
        best_final=None if best_final is None else told(best_final),
    )


def _once_each(seen: Iterable[Seen]) -> list[tuple[int, Record]]:
    """Complete trials, the first of each class of cells, by number: a further attempt has that of the first attempt."""
    found: dict[str, tuple[int, Record]] = {}
    for each in seen:
        record = each.record
        if each.state == TrialState.COMPLETE and record is not None and record.scores is not None:
            found.setdefault(record.key, (each.number if record.first is None else record.first, record))
    return sorted(found.values(), key=lambda trial: trial[0])


def _score(record: Record) -> float:
    assert record.scores is not None
    return record.scores["score"]


def _best_first(study: SearchStudy, trials: Sequence[tuple[int, Record]]) -> list[int]:
    """Places, those first that the fewest beat in every score; of equals the earlier."""
    values = [study.plan.larger_is_better(record.scores) for _, record in trials if record.scores]
    order: list[int] = np.argsort(beaten(values), kind="stable").tolist()
    return order


def _drawn(record: Record) -> str:
    return draw(parse_cell(record.cell)).svg()


def _in_words(objective: Mapping[str, object]) -> str:
    if list(objective) == ["objective"]:
        return str(objective["objective"])
    return json.dumps(objective, ensure_ascii=False)


def _shares(cells: Sequence[str]) -> tuple[tuple[Share, ...], tuple[Share, ...], tuple[Share, ...]]:
    """Of the kinds of operators, of operators and of inputs. cells: their texts, the best first."""
    found: list[tuple[Share, ...]] = []
    branches = [_BRANCH.findall(text) for text in cells]
    for read in (itemgetter(1), lambda branch: "".join(branch[1:]), itemgetter(0)):
        groups = [
            Counter(read(branch) for cell in branches[:count] for branch in cell) for count in best_groups(len(cells))
        ]
        found.append(_told(*groups))
    kinds, operators, inputs = found
    return kinds, operators, inputs


def _told(best: Counter[str], tenth: Counter[str], everything: Counter[str]) -> tuple[Share, ...]:
    """By their share among the best."""
    totals = best.total(), tenth.total(), everything.total()
    found = [
        Share(name, best[name] / totals[0], tenth[name] / totals[1], count / totals[2])
        for name, count in everything.items()
    ]
    return tuple(sorted(found, key=lambda share: (-share.best, -share.tenth, -share.all, share.name)))
