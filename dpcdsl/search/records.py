"""What a study keeps of a trial, in one attribute, as JSON."""

from __future__ import annotations

import os
import platform
import socket
from functools import cache
from typing import Any, Literal

from pydantic import Field

from dpcdsl.cell import Cell
from dpcdsl.cost import cost
from dpcdsl.identity import CellId, fingerprint
from dpcdsl.isomorphism import canonical
from dpcdsl.layers import Size
from dpcdsl.search.genes import Genes
from dpcdsl.search.proposer import class_key
from dpcdsl.values import Value

__all__ = ["ATTRIBUTE", "Record", "environment"]

#: The name of the attribute.
ATTRIBUTE = "dpcdsl"


class Record(Value):
    """All that is known of a trial.

    cell, id, fingerprint, canonical: the cell's text, its ID in the study's space, the space's fingerprint, and what
    stands for all orders of its branches; rank, key: its rank among the space's genomes, and a digest of the canonical
    text. asker: whose proposal; None for a user's. first, attempt: a trial whose worker died is run again as another
    trial, and this is the number of the first one, and which attempt. scores: the objective's, and costs where they are
    searched for. seconds: of the evaluation. failure: why it has no score. withdrawn: why it does not count.
    reused: the number of the trial of the same cell whose scores these are. notes: of the objective.
    """

    version: Literal[1] = 1
    cell: str
    id: str
    fingerprint: str
    canonical: str
    rank: int
    key: str
    seed: int
    asker: int | None = None
    first: int | None = None
    attempt: int = 1
    costs: dict[str, int]
    scores: dict[str, float] | None = None
    seconds: float | None = None
    environment: dict[str, str] | None = None
    failure: str | None = None
    withdrawn: str | None = None
    reused: int | None = None
    notes: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, rank: int, genes: Genes, name: str, features: int, size: Size, seed: int, asker: int | None = None
    ) -> Record:
        """Of a cell not evaluated yet. name: of the space, in the ID. features, size: of the map, for costs."""
        cell: Cell = genes.cells.unrank(rank)
        known = fingerprint(genes.space)
        priced = cost(cell, features, size)
        return cls(
            cell=str(cell),
            id=str(CellId(name, known, rank)),
            fingerprint=known,
            canonical=str(canonical(cell)),
            rank=rank,
            key=class_key(cell).hex(),
            seed=seed,
            asker=asker,
            costs={"params": priced.params, "madds": priced.madds},
        )

    def but(self, **fields: Any) -> Record:
        return self.model_copy(update=fields)


@cache
def environment() -> dict[str, str]:
    """Of this process: what a result may depend on."""
    import sys
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }
    for package in ("dpcdsl", "torch", "numpy", "optuna"):
        if package in sys.modules:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found
