"""What a report says of numbers: histograms, fronts, correlations. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["beaten", "common", "front", "histogram", "kendall", "rises", "spearman"]

Floats = npt.NDArray[np.float64]

_FEWEST_BINS, _MOST_BINS = 8, 60
_BLOCK = 64  # rows that are compared with all others at once


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


def beaten(values: Sequence[tuple[float, ...]]) -> npt.NDArray[np.int64]:
    """How many beat each: are as good in every value, and better in one. The larger the better."""
    array = np.asarray(values, np.float64)
    if array.shape[1] == 1:
        ordered = np.sort(array[:, 0])
        return len(ordered) - np.searchsorted(ordered, array[:, 0], side="right")
    found = np.empty(len(array), np.int64)
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK, None]
        as_good = np.logical_and.reduce([array[:, axis] >= block[..., axis] for axis in range(array.shape[1])])
        alike = np.logical_and.reduce([array[:, axis] == block[..., axis] for axis in range(array.shape[1])])
        found[start : start + _BLOCK] = np.count_nonzero(as_good, 1) - np.count_nonzero(alike, 1)
    return found


def rises(scores: Sequence[float]) -> list[int]:
    """The places where a score is better than all before it."""
    array = np.asarray(scores, np.float64)
    before = np.r_[-np.inf, np.maximum.accumulate(array)[:-1]] if len(array) else array
    return np.flatnonzero(array > before).tolist()


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rho, equal values at their mean rank. None where it is not defined: too few, or all alike."""
    x, y = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    x, y = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else None


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b (Kendall, 1945). None where it is not defined."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    agree = x_differs = y_differs = 0
    for place in range(1, len(x)):  # a row of the pairs at a time
        dx, dy = (np.sign(values[place] - values[:place]) for values in (x, y))
        agree += int(dx @ dy)
        x_differs += int(np.count_nonzero(dx))
        y_differs += int(np.count_nonzero(dy))
    scale = math.sqrt(x_differs * y_differs)
    return agree / scale if scale else None


def common(a: Sequence[float], b: Sequence[float], count: int) -> int:
    """How many are among the ``count`` largest by both; of equals the first."""
    best = [set(np.argsort(-np.asarray(values, np.float64), kind="stable")[:count].tolist()) for values in (a, b)]
    return len(best[0] & best[1])
