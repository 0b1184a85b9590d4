"""What a report says of numbers: histograms and fronts. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["front", "histogram", "rises"]

_FEWEST_BINS, _MOST_BINS = 8, 60


def histogram(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges and counts: bins as wide as Freedman and Diaconis (1981) advise, but for round edges; none of nothing."""
    array = np.asarray(values, np.float64)
    if not len(array):
        return [], []
    low, high = float(array.min()), float(array.max())
    spread = high - low
    if not math.isfinite(spread):
        return [low, high], [len(array)]
    if spread <= max(1e-300, 1e-12 * max(abs(low), abs(high))):  # all alike
        half = abs(low) / 20 or 0.5
        return [low - half, low + half], [len(array)]
    first, third = np.quantile(array, (0.25, 0.75))
    width = 2 * float(third - first) / len(array) ** (1 / 3)
    width = _round_up(min(max(width, spread / _MOST_BINS), spread / _FEWEST_BINS))
    start = math.floor(low / width)
    places = np.arange(start, math.floor(high / width) + 2) - start
    # Rounded to what the width can tell, so that an edge is 0.3 and not 0.30000000000000004.
    digits = max(0, 2 - math.floor(math.log10(width)))
    edges = [round(float((start + place) * width), digits) for place in places]
    counts = np.bincount(np.clip(np.searchsorted(edges, array, side="right") - 1, 0, len(edges) - 2))
    return edges[: len(counts) + 1], counts.tolist()


def _round_up(width: float) -> float:
    """1, 2, 2.5 or 5 times a power of ten, and no less than ``width``."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= width * (1 - 1e-9))


def front(scores: Sequence[float], costs: Sequence[float]) -> list[int]:
    """The places of those than which no other is as good in both and better in one; by cost, of equals the first."""
    array = np.asarray(scores, np.float64)
    found: list[int] = []
    best = -math.inf
    for place in np.lexsort((-array, np.asarray(costs, np.float64))).tolist():
        if array[place] > best:
            best = float(array[place])
            found.append(place)
    return found


def rises(scores: Sequence[float]) -> list[int]:
    """The places where a score is better than all before it."""
    array = np.asarray(scores, np.float64)
    before = np.r_[-np.inf, np.maximum.accumulate(array)[:-1]] if len(array) else array
    return np.flatnonzero(array > before).tolist()
