"""A study on one page: a report as a single file of HTML, which needs nothing else and no network."""

from __future__ import annotations

from dpcdsl.search.reporting.findings import Findings, finals_of, gather
from dpcdsl.search.reporting.page import page
from dpcdsl.search.reranking import FINAL
from dpcdsl.search.storage import patiently
from dpcdsl.search.study import SearchStudy

__all__ = ["Findings", "finals_of", "findings_of", "gather", "page", "report"]


def report(where: str, name: str = "search", *, final: str | None = None, top: int = 100) -> str:
    """The page about a study, as HTML. where: a file, or a database's URL.

    final: the study that has the cells' final scores; by default that of :func:`~dpcdsl.search.reranking.rerank`, if
    there is one. top: how many of the best cells are shown.

    Raises :class:`~dpcdsl.errors.DpcError`: DPC098 if there is no such study, DPC063 if no Graphviz draws the cells.
    """
    return page(findings_of(where, name, final=final, top=top))


def findings_of(where: str, name: str = "search", *, final: str | None = None, top: int = 100) -> Findings:
    """What the page tells, as data."""
    with SearchStudy.open(where, name) as study:
        known = {one.study_name for one in patiently(study.storage.get_all_studies)}
        if final is None and name + FINAL not in known:
            return gather(study, top=top)
        with SearchStudy.open(where, final or name + FINAL) as last:
            return gather(study, finals_of(last), top)
