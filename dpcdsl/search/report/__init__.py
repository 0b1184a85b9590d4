"""A study on one page: a report as a single file of HTML, which needs nothing else and no network."""

from __future__ import annotations

from collections.abc import Mapping

from dpcdsl.search.report.findings import Findings, finals_of, gather
from dpcdsl.search.report.page import page
from dpcdsl.search.study import SearchStudy

__all__ = ["Findings", "finals_of", "gather", "page", "report"]


def report(study: SearchStudy, finals: Mapping[str, float] | None = None, top: int = 100) -> str:
    """The page about a study, as HTML.

    finals: final scores of cells by the ``key`` of their records, if there are any; :func:`finals_of` reads them from
    a study of their own. top: how many of the best cells are shown.

    Raises :class:`~dpcdsl.errors.DpcError` (DPC063) if there is no Graphviz to draw them.
    """
    return page(gather(study, finals, top))
