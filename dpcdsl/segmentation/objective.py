"""The proxy task as what a search maximizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpcdsl.cell import Cell
from dpcdsl.segmentation.cache import FeatureCache
from dpcdsl.segmentation.proxy_task import ProxySettings, proxy

if TYPE_CHECKING:
    from dpcdsl.search.objective import Attempt

__all__ = ["ProxyObjective"]


@dataclass(frozen=True)
class ProxyObjective:
    """The score of :func:`proxy` on two caches, with the seed of the study; the learning curve is kept as a note.

    settings: their seed is not looked at. A worker opens the caches when it first evaluates a cell.
    """

    train: Path
    held_out: Path
    settings: ProxySettings
    device: str = "cpu"

    @cached_property
    def caches(self) -> tuple[FeatureCache, FeatureCache]:
        return FeatureCache(self.train), FeatureCache(self.held_out)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The caches by what is in them, wherever they lie."""
        train, held_out = self.caches
        settings = self.settings.model_dump(mode="json", exclude={"seed"})
        return {
            "objective": "proxy",
            "train": train.facts.digest,
            "held_out": held_out.facts.digest,
            "settings": settings,
        }

    def __call__(self, cell: Cell, attempt: Attempt) -> float:
        settings = self.settings.model_copy(update={"seed": attempt.seed})
        result = proxy(cell, *self.caches, settings, device=self.device)
        attempt.note("stopped", result.stopped)
        attempt.note("curve", result.to_json()["curve"])
        return result.score

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("train", "held_out", "settings", "device")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
