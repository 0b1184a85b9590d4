"""Reranking: the best cells by a cheap score are scored again by a dear one (section 4.2 of the paper).

It is a search of its own, of just those cells, in the same storage: it is resumed, shared out and killed as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dpcdsl.errors import DpcError, shown
from dpcdsl.search.correlations import Agreement, agreement
from dpcdsl.search.driver import evaluate_all
from dpcdsl.search.objective import Objective, identity_of
from dpcdsl.search.storage import Seen
from dpcdsl.search.study import Plan, SearchStudy, last_attempts

__all__ = ["FINAL", "Finalist", "Reranking", "finals", "rerank"]

#: What is added to a study's name for that of its reranking.
FINAL = ".final"


class Finalist(NamedTuple):
    """A cell of both. proxy, final: its trials, and its places by their scores, from 1; None without a score."""

    proxy: Seen
    proxy_place: int
    final: Seen
    final_place: int | None

    @property
    def scores(self) -> tuple[float, float | None]:
        """By the proxy, and in the end."""
        assert self.proxy.record is not None
        assert self.proxy.record.scores is not None
        last = self.final.record.scores if self.final.record else None
        return self.proxy.record.scores["score"], None if last is None else last["score"]


class Reranking(NamedTuple):
    """finalists: by final score, best first, those without one last. agreement: of both scores of all that have two.

    plan: of the search.
    """

    plan: Plan
    finalists: list[Finalist]
    agreement: Agreement

    @property
    def winner(self) -> Finalist | None:
        return next((one for one in self.finalists if one.final_place is not None), None)


def rerank(
    where: str,
    objective: Objective,
    *,
    top: int = 50,
    name: str = "search",
    final: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> Reranking:
    """Scores the ``top`` best cells of a study by ``objective``, in another study, and compares the scores.

    final: that one's name, by default NAME.final. seed: of the evaluations; by default the study's. options: of
    :func:`~dpcdsl.search.driver.search`, such as ``workers`` and ``fleet``. The same call goes on where one has
    stopped, and a larger ``top`` adds to what is there.

    Raises :class:`DpcError`: DPC098 for a study without a scored trial, and what ``search`` raises.
    """
    with SearchStudy.open(where, name) as study:
        best = [seen.record for seen in study.best(top) if seen.record is not None]
        if not best:
            raise DpcError.of("DPC098", f"the study {shown(name)} has no trial with a score yet", place=where)
        plan = Plan.of(
            study.space,
            identity_of(objective),
            study.plan.name,
            features=study.plan.features,
            size=study.plan.size,
            seed=study.plan.seed if seed is None else seed,
        )
        cells = [study.genes.cells.unrank(record.rank) for record in best]
    final = final or name + FINAL
    evaluate_all(where, plan, objective, cells, name=final, **options)
    return finals(where, name, final)


def finals(where: str, name: str = "search", final: str | None = None) -> Reranking:
    """What a reranking has found until now. Raises :class:`DpcError` (DPC098) if there is none."""
    with SearchStudy.open(where, name) as study, SearchStudy.open(where, final or name + FINAL) as last:
        proxies = {seen.record.key: seen for seen in study.best(study.storage.get_n_trials(study.id)) if seen.record}
        ends = [seen for seen in last_attempts(last.records()) if seen.record and seen.record.key in proxies]
    places = {key: place for place, key in enumerate(proxies, 1)}
    order = sorted(ends, key=_final_order)
    finalists = []
    for place, seen in enumerate(order, 1):
        assert seen.record is not None
        key = seen.record.key
        finalists.append(Finalist(proxies[key], places[key], seen, place if seen.record.scores else None))
    both = [one.scores for one in finalists]
    scored: Sequence[tuple[float, float]] = [(proxy, last) for proxy, last in both if last is not None]
    return Reranking(study.plan, finalists, agreement([proxy for proxy, _ in scored], [last for _, last in scored]))


def _final_order(seen: Seen) -> tuple[float, int]:
    assert seen.record is not None
    scores = seen.record.scores
    return (float("inf") if scores is None else -scores["score"]), seen.number
