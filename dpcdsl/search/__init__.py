"""The search for cells: who proposes them, and the study that keeps what was found. Free of torch.

An objective is a callable; the proxy task of :mod:`dpcdsl.segmentation` is one.
"""

from typing import TYPE_CHECKING

from dpcdsl.later import read_later
from dpcdsl.search.proposer import Proposer
from dpcdsl.search.strategies import Evolution, Exhaustive, NearBest, PolicyGradient, Uniform
from dpcdsl.search.trials import Trial

if TYPE_CHECKING:
    from dpcdsl.search.driver import SearchProgress, search
    from dpcdsl.search.objective import Attempt, identity_of
    from dpcdsl.search.sampler import CellSampler, suggest_cell
    from dpcdsl.search.study import Plan, SearchStudy
    from dpcdsl.search.worker import Terms, work

# Read when they are asked for: they bring Optuna.
__getattr__, __dir__ = read_later(
    __name__,
    {
        "driver": ["SearchProgress", "search"],
        "objective": ["Attempt", "identity_of"],
        "sampler": ["CellSampler", "suggest_cell"],
        "study": ["Plan", "SearchStudy"],
        "worker": ["Terms", "work"],
    },
)

__all__ = [
    "Attempt",
    "CellSampler",
    "Evolution",
    "Exhaustive",
    "NearBest",
    "Plan",
    "PolicyGradient",
    "Proposer",
    "SearchProgress",
    "SearchStudy",
    "Terms",
    "Trial",
    "Uniform",
    "identity_of",
    "search",
    "suggest_cell",
    "work",
]
