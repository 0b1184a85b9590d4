"""The search for cells: who proposes them, the study that keeps what was found, and what it is worth. Free of torch.

An objective is a callable; the proxy task of :mod:`dpcdsl.segmentation` is one.
"""

from typing import TYPE_CHECKING

from dpcdsl.later import read_later
from dpcdsl.search.proposer import Proposer
from dpcdsl.search.strategies import Evolution, Exhaustive, NearBest, PolicyGradient, Uniform
from dpcdsl.search.trials import Trial

if TYPE_CHECKING:
    from dpcdsl.search.comparison import Fidelity, drawn_cells, fidelity, plot_fidelity
    from dpcdsl.search.correlations import Agreement, agreement
    from dpcdsl.search.driver import SearchProgress, search
    from dpcdsl.search.objective import Attempt, identity_of
    from dpcdsl.search.ray_fleet import RayFleet
    from dpcdsl.search.reporting import report
    from dpcdsl.search.reranking import Finalist, Reranking, finals, rerank
    from dpcdsl.search.sampler import CellSampler, suggest_cell
    from dpcdsl.search.study import Plan, SearchStudy
    from dpcdsl.search.worker import Terms, work

# Read when they are asked for: they bring Optuna.
__getattr__, __dir__ = read_later(
    __name__,
    {
        "comparison": ["Fidelity", "drawn_cells", "fidelity", "plot_fidelity"],
        "correlations": ["Agreement", "agreement"],
        "driver": ["SearchProgress", "search"],
        "objective": ["Attempt", "identity_of"],
        "ray_fleet": ["RayFleet"],
        "reporting": ["report"],
        "reranking": ["Finalist", "Reranking", "finals", "rerank"],
        "sampler": ["CellSampler", "suggest_cell"],
        "study": ["Plan", "SearchStudy"],
        "worker": ["Terms", "work"],
    },
)

__all__ = [
    "Agreement",
    "Attempt",
    "CellSampler",
    "Evolution",
    "Exhaustive",
    "Fidelity",
    "Finalist",
    "NearBest",
    "Plan",
    "PolicyGradient",
    "Proposer",
    "RayFleet",
    "Reranking",
    "SearchProgress",
    "SearchStudy",
    "Terms",
    "Trial",
    "Uniform",
    "agreement",
    "drawn_cells",
    "fidelity",
    "finals",
    "identity_of",
    "plot_fidelity",
    "report",
    "rerank",
    "search",
    "suggest_cell",
    "work",
]
