"""Where the next cell is looked for: near the best so far (the paper's), and what it is compared with.

A strategy draws genomes from what it has learned; it may draw what is known already, which
:class:`~dpcdsl.search.proposer.Proposer` then leaves out. What it draws depends on the set of trials that it has
learned, never on their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dpcdsl.cell import Cell
from dpcdsl.enumeration import Enumerator, Stream
from dpcdsl.errors import DpcError, shown
from dpcdsl.neighbourhood import exactly_at
from dpcdsl.search.genes import Genes
from dpcdsl.search.trials import Standings, Trial

__all__ = ["STRATEGIES", "Evolution", "Exhaustive", "NearBest", "PolicyGradient", "Strategy", "Uniform", "strategy_of"]


class Search(ABC):
    """A strategy at work in a space."""

    def __init__(self, genes: Genes) -> None:
        self.genes = genes
        self.cells = genes.cells

    @abstractmethod
    def learn(self, trial: Trial) -> None:
        """A finished trial, whichever way it ended."""

    @abstractmethod
    def draw(self, stream: Stream) -> int | None:
        """The rank of a genome; None to go through the space in order."""


class Strategy(ABC):
    """A way to search, by its settings."""

    name: ClassVar[str]

    @abstractmethod
    def begin(self, genes: Genes) -> Search:
        """Without any trial yet."""


@dataclass(frozen=True)
class NearBest(Strategy):
    """Random search as in section 3.2 of the paper (and its reference [30]): "sample uniformly at random or sample
    some points near the currently best observed point".

    uniform: the probability of a uniform sample. best: how many of the best so far have neighbours drawn, each as
    often as the others; with several scores, those that the fewest others beat. radius: the distance of a neighbour is
    1, 2, … ``radius`` inputs and operators (:func:`dpcdsl.distance`), each as often, and it is uniform among all at
    that distance. first: trials that are uniform before any neighbour is drawn. How the paper mixes is not told; the
    defaults are the best on a tabulated objective (docs/search.md).
    """

    name: ClassVar[str] = "near-best"
    uniform: float = 0.1
    best: int = 4
    radius: int = 2
    first: int = 10

    def __post_init__(self) -> None:
        _check(0 <= self.uniform <= 1, "uniform", self.uniform, "from 0 to 1")
        for name in ("best", "radius"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.first >= 0, "first", self.first, "at least 0")

    def begin(self, genes: Genes) -> Search:
        return _NearBest(genes, self)


class _Standing(Search):
    """What looks near those that stand well."""

    def __init__(self, genes: Genes) -> None:
        super().__init__(genes)
        self.standings = Standings()
        self.around = _Neighbourhoods(genes)

    def learn(self, trial: Trial) -> None:
        if trial.scores is not None:
            self.standings.add(trial)


class _NearBest(_Standing):
    def __init__(self, genes: Genes, settings: NearBest) -> None:
        super().__init__(genes)
        self.settings = settings

    def draw(self, stream: Stream) -> int:
        settings = self.settings
        if len(self.standings) < max(1, settings.first) or _uniform(stream) < settings.uniform:
            return stream.one_below(self.cells.count)
        best = self.standings.best(settings.best)
        near = best[stream.one_below(len(best))]
        return self.around.draw(near, 1 + stream.one_below(settings.radius), stream)


@dataclass(frozen=True)
class Uniform(Strategy):
    """Every genome as likely as any other."""

    name: ClassVar[str] = "uniform"

    def begin(self, genes: Genes) -> Search:
        return _NearBest(genes, NearBest(uniform=1.0))


@dataclass(frozen=True)
class Evolution(Strategy):
    """Regularised evolution (Real et al., 2019): the best of ``tournament`` random ones of the latest ``population``
    trials is changed in one input or operator.
    """

    name: ClassVar[str] = "evolution"
    population: int = 100
    tournament: int = 25

    def __post_init__(self) -> None:
        for name in ("population", "tournament"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def begin(self, genes: Genes) -> Search:
        return _Evolution(genes, self)


class _Evolution(_Standing):
    def __init__(self, genes: Genes, settings: Evolution) -> None:
        super().__init__(genes)
        self.settings = settings

    def draw(self, stream: Stream) -> int:
        if len(self.standings) < self.settings.population:
            return stream.one_below(self.cells.count)
        living = self.standings.latest(self.settings.population)
        chosen = stream.below(len(living), self.settings.tournament).tolist()
        _, parent = min(living[place] for place in chosen)
        return self.around.draw(parent, 1, stream)


@dataclass(frozen=True)
class PolicyGradient(Strategy):
    """REINFORCE (Williams, 1992) on a table: a softmax for each input and operator, all independent.

    After each ``batch`` trials, by number, the logarithm of the probability of each of their choices moves by ``rate``
    times its trial's advantage: its score less the batch's mean, in units of the batch's standard deviation.
    One score only.
    """

    name: ClassVar[str] = "policy"
    batch: int = 10
    rate: float = 0.3

    def __post_init__(self) -> None:
        _check(self.batch >= 2, "batch", self.batch, "at least 2")
        _check(0 < self.rate < 1e6, "rate", self.rate, "above 0")

    def begin(self, genes: Genes) -> Search:
        return _PolicyGradient(genes, self)


class _PolicyGradient(Search):
    def __init__(self, genes: Genes, settings: PolicyGradient) -> None:
        super().__init__(genes)
        self.settings = settings
        self.logits = {name: np.zeros(len(values)) for name, values in genes.choices.items()}
        self.learned = 0  # the number up to which all trials have been learned
        self.waiting: dict[int, Trial] = {}

    def learn(self, trial: Trial) -> None:
        if trial.scores is not None and len(trial.scores) > 1:
            raise DpcError.of("DPC062", "a policy gradient has one score", hint="take another strategy for several")
        self.waiting[trial.number] = trial
        batch = range(self.learned, self.learned + self.settings.batch)
        while all(number in self.waiting for number in batch):
            self._move([self.waiting.pop(number) for number in batch])
            self.learned = batch.stop
            batch = range(self.learned, self.learned + self.settings.batch)

    def _move(self, trials: list[Trial]) -> None:
        scored = [(trial.rank, trial.scores[0]) for trial in trials if trial.scores and trial.rank is not None]
        values = np.array([score for _, score in scored])
        if len(values) < 2 or not values.std() > 0:
            return
        gradient = {name: np.zeros_like(logits) for name, logits in self.logits.items()}
        for (rank, _), advantage in zip(scored, (values - values.mean()) / values.std(), strict=True):
            for name, value in self.genes.of(self.cells.unrank(rank)).items():
                gradient[name] -= advantage * _softmax(self.logits[name])
                gradient[name][self.genes.choices[name].index(value)] += advantage
        for name, moves in gradient.items():
            self.logits[name] += self.settings.rate * moves

    def draw(self, stream: Stream) -> int:
        found = {}
        for name, values in self.genes.choices.items():
            chances = np.cumsum(_softmax(self.logits[name]))
            place = int(np.searchsorted(chances, _uniform(stream) * chances[-1], side="right"))
            found[name] = values[min(place, len(values) - 1)]
        return self.genes.rank(found)


@dataclass(frozen=True)
class Exhaustive(Strategy):
    """Every cell of the space, in the order of the ranks."""

    name: ClassVar[str] = "exhaustive"

    def begin(self, genes: Genes) -> Search:
        return _Exhaustive(genes)


class _Exhaustive(Search):
    def learn(self, trial: Trial) -> None:
        pass

    def draw(self, stream: Stream) -> None:
        return None


class _Neighbourhoods:
    """Of the cells that neighbours were drawn of last: making one takes longer than drawing from it."""

    def __init__(self, genes: Genes) -> None:
        self.genes = genes
        self._known: OrderedDict[tuple[int, int], Enumerator] = OrderedDict()

    def draw(self, rank: int, distance: int, stream: Stream) -> int:
        """The rank of a neighbour; of the nearest lower distance where there is none at this one."""
        for nearer in range(distance, 0, -1):
            around = self._at(rank, nearer)
            if around.count:
                return self.genes.cells.rank_of(around.choices(stream.one_below(around.count)))
        return rank

    def _at(self, rank: int, distance: int) -> Enumerator:
        key = (rank, distance)
        if key in self._known:
            self._known.move_to_end(key)
        else:
            cell: Cell = self.genes.cells.unrank(rank)
            self._known[key] = exactly_at(cell, self.genes.space, distance)
            if len(self._known) > 256:
                self._known.popitem(last=False)
        return self._known[key]


def _uniform(stream: Stream) -> float:
    """From 0 up to 1."""
    return int(stream.words(1)[0] >> np.uint64(11)) / 2.0**53


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits - logits.max())
    found: npt.NDArray[np.float64] = shifted / shifted.sum()
    return found


def _check(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise DpcError.of("DPC062", f"{name} is {what}, not {shown(value)}")


def _or(names: object) -> str:
    *first, last = [f'"{name}"' for name in names]  # type: ignore[attr-defined]
    return f"{', '.join(first)} or {last}"


#: The ways to search that are built in, by name, with their default settings.
STRATEGIES: dict[str, Strategy] = {
    one.name: one for one in (NearBest(), Uniform(), Evolution(), PolicyGradient(), Exhaustive())
}


def strategy_of(strategy: Strategy | str) -> Strategy:
    """Raises :class:`DpcError` (DPC062) for a name that is not built in."""
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise DpcError.of("DPC062", f"no strategy is called {shown(strategy)}", hint=f"take {_or(STRATEGIES)}")
        return STRATEGIES[strategy]
    return strategy
