"""How well one score of cells stands for another: rank correlations, as in figures 3 and 4 of the paper."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from dpcdsl.errors import DpcError

__all__ = ["Agreement", "agreement"]

_RESAMPLES = 9_999
_FEW = 8  # resamples of fewer cells are too much alike: an interval of them is far too narrow


@dataclass(frozen=True)
class Agreement:
    """Of two scores of the same cells.

    spearman: ρ, the correlation of the ranks; low, high: its 95 % bootstrap interval (BCa; Efron, 1987; of percentiles
    where that is not defined), None for fewer than eight cells. kendall: τ-b. All are from -1 to 1, and None where they
    are not defined: for fewer than three cells, or a score that is the same for all. top: of the ``k`` best by one, the
    share that is among the ``k`` best by the other, by k.
    """

    cells: int
    spearman: float | None
    low: float | None
    high: float | None
    kendall: float | None
    top: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.spearman is None:
            return f"{self.cells} cells: too few, or all alike"
        between = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        tops = ", ".join(f"{share:.0%} of the best {k}" for k, share in self.top.items())
        return f"ρ = {self.spearman:.2f}{between}, τ = {self.kendall:.2f}, {self.cells} cells; both have {tops}"


def agreement(one: Sequence[float], other: Sequence[float], *, top: Sequence[int] = (), seed: int = 0) -> Agreement:
    """one, other: scores of the same cells, in the same order, the larger the better. top: how many best to compare; by
    default a tenth, a quarter and a half of them. seed: of the bootstrap.

    Raises :class:`DpcError` (DPC062) for two of different lengths.
    """
    if len(one) != len(other):
        raise DpcError.of("DPC062", f"{len(one)} scores cannot be compared with {len(other)}")
    count = len(one)
    x, y = np.array(one, np.float64), np.array(other, np.float64)
    shares = top or sorted({max(1, round(count * share)) for share in (0.1, 0.25, 0.5)})
    best = {k: len(_best(x, k) & _best(y, k)) / k for k in shares if k <= count}
    if count < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(count, None, None, None, None, best)
    low, high = _interval(x, y, seed) if count >= _FEW else (None, None)
    return Agreement(count, float(_spearman(x, y)), low, high, float(stats.kendalltau(x, y).statistic), best)


def _best(scores: npt.NDArray[np.float64], count: int) -> set[int]:
    """Of equal ones the earlier."""
    return set(np.argsort(-scores, kind="stable")[:count].tolist())


def _spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], axis: int = -1) -> Any:
    """Of many resamples at once."""
    a, b = (stats.rankdata(values, axis=axis) for values in (x, y))
    a, b = (ranks - ranks.mean(axis, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of one cell again and again has no correlation
        return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))


def _interval(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where leaving out one cell changes nothing, there is nothing to accelerate by
        found = stats.bootstrap(
            (x, y), _spearman, paired=True, vectorized=True, n_resamples=_RESAMPLES, method="BCa", rng=seed, batch=999
        )
    low, high = found.confidence_interval
    if not np.isfinite([low, high]).all():
        low, high = np.nanquantile(found.bootstrap_distribution, (0.025, 0.975))
    return float(low), float(high)
