"""How faithful a proxy is: the same cells are scored in several ways, and every two are compared (section 4.1).

Each way is a study in one storage, of just those cells: it is resumed, shared out and killed as any other search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.plots import write_figure
from dpcdsl.search.correlations import Agreement, agreement
from dpcdsl.search.driver import evaluate_all
from dpcdsl.search.objective import Objective, identity_of
from dpcdsl.search.proposer import Proposer, class_key
from dpcdsl.search.study import Plan, SearchStudy, last_attempts
from dpcdsl.search.trials import Trial
from dpcdsl.space import Space

__all__ = ["Fidelity", "compare", "drawn_cells", "fidelity", "plot_fidelity"]

_MANY = 1_000


@dataclass(frozen=True)
class Fidelity:
    """cells: their texts. scores: by the name of each way, those of the cells, in order; None for a failure."""

    cells: tuple[str, ...]
    scores: Mapping[str, tuple[float | None, ...]]

    def pairs(self) -> dict[tuple[str, str], Agreement]:
        """Of every two ways, on the cells that have both scores."""
        found = {}
        for one, other in combinations(self.scores, 2):
            both = self.both(one, other)
            found[one, other] = agreement([a for a, _ in both], [b for _, b in both])
        return found

    def both(self, one: str, other: str) -> list[tuple[float, float]]:
        """Of the cells that have both."""
        pairs = zip(self.scores[one], self.scores[other], strict=True)
        return [(a, b) for a, b in pairs if a is not None and b is not None]

    def to_json(self) -> dict[str, Any]:
        pairs = [{"of": [*pair], **found.to_json()} for pair, found in self.pairs().items()]
        return {"cells": [*self.cells], "scores": {name: [*of] for name, of in self.scores.items()}, "pairs": pairs}


def drawn_cells(space: Space, count: int | None = None, seed: int = 0) -> list[Cell]:
    """``count`` cells that differ in more than the order of their branches, drawn uniformly; all there are, if fewer.

    Raises :class:`DpcError` (DPC062) without a count for a space of more than 1,000 such cells.
    """
    proposer = Proposer(space, "uniform" if count else "exhaustive", seed=seed)
    cells: list[Cell] = []
    while count is None or len(cells) < count:
        rank = proposer.ask()
        if rank is None:
            break
        if count is None and len(cells) == _MANY:
            raise DpcError.of("DPC062", f"the space has more than {_MANY:,} cells", hint="say how many: --count")
        proposer.tell(Trial(len(cells), rank, 0))
        cells.append(proposer.genes.cells.unrank(rank))
    return cells


def fidelity(
    where: str,
    space: Space,
    cells: Sequence[Cell],
    objectives: Mapping[str, Objective],
    *,
    name: str = "fidelity",
    seed: int = 0,
    **options: Any,
) -> Fidelity:
    """Scores ``cells`` by each of ``objectives``, each in the study NAME.WAY, one after the other, and compares them.

    seed: of every evaluation. options: of :func:`~dpcdsl.search.driver.search`, such as ``workers`` and ``fleet``. The
    same call goes on where one has stopped.

    Raises what ``search`` raises, and :class:`DpcError` (DPC055) for a cell that is not in the space.
    """
    for way, objective in objectives.items():
        plan = Plan.of(space, identity_of(objective), seed=seed)
        evaluate_all(where, plan, objective, cells, name=f"{name}.{way}", **options)
    return compare(where, objectives.keys(), cells, name=name)


def compare(where: str, ways: Iterable[str], cells: Sequence[Cell], *, name: str = "fidelity") -> Fidelity:
    """What the studies NAME.WAY have of these cells until now. Raises :class:`DpcError` (DPC098) if one is missing."""
    keys = [class_key(cell).hex() for cell in cells]
    scores = {}
    for way in ways:
        with SearchStudy.open(where, f"{name}.{way}") as study:
            found = {
                seen.record.key: seen.record.scores["score"]
                for seen in last_attempts(study.records())
                if seen.record is not None and seen.record.scores is not None
            }
        scores[way] = tuple(found.get(key) for key in keys)
    return Fidelity(tuple(str(cell) for cell in cells), scores)


def plot_fidelity(found: Fidelity, path: Path) -> None:
    """One scatter plot for every two ways, as figure 3. The path's ending says what is written: .png, .svg or .pdf.

    Raises :class:`DpcError`: DPC062 for fewer than two ways, and what :func:`~dpcdsl.plots.write_figure` raises.
    """
    from matplotlib.figure import Figure

    pairs = found.pairs()
    if not pairs:
        raise DpcError.of("DPC062", "there is nothing to compare", hint="give two ways or more")
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.5 * rows), layout="constrained")
    for place, ((one, other), agree) in enumerate(pairs.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        both = found.both(one, other)
        axes.scatter([100 * a for a, _ in both], [100 * b for _, b in both], s=18, color="#4c72b0", alpha=0.8)
        axes.set(xlabel=f"{one}, %", ylabel=f"{other}, %")
        if agree.spearman is not None:
            axes.set_title(f"ρ = {agree.spearman:.2f}, τ = {agree.kendall:.2f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    write_figure(figure, path)
