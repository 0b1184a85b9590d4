"""The paper's system, whole, at a size for two cores: is the proxy faithful, and what does a small search find?

Both are kept in demo/fidelity, and go on from there when they are cut off.
"""

from __future__ import annotations

import functools
import statistics
from pathlib import Path

import dpcdsl
from dpcdsl.search import Plan, SearchProgress, identity_of, search
from dpcdsl.search.comparison import drawn_cells, fidelity, plot_fidelity
from dpcdsl.search.reranking import rerank
from dpcdsl.segmentation.cache import Views
from dpcdsl.segmentation.caching import build_cache
from dpcdsl.segmentation.datasets import DataSet, open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.objective import ProxyObjective, TrainingObjective
from dpcdsl.segmentation.proxy_task import ProxySettings
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic
from dpcdsl.segmentation.training import TrainingSettings, train
from dpcdsl.segmentation.transforms import Preprocessing

OUT = Path("demo/fidelity")
STORAGE = str(OUT / "studies.db")
PLOT = Path(__file__).parents[1] / "docs" / "images" / "fidelity.svg"
CROP, WORKERS = (193, 385), 2
SMALL, LARGE = "test_resnet", "mobilenet-v2"
SCENES, UNSEEN = 240, 48
#: Of backbones as classifiers, of whole models, and of cells on cached features.
PRETRAINING, STEPS, LONG, SHORT = 160, 100, 400, 50
TRIALS, RERANKED, SEEDS = 60, 5, range(3)


def settings(steps: int) -> TrainingSettings:
    return TrainingSettings(steps=steps, batch=4, rate=0.03, scales=(1.0,), batch_norm_momentum=0.1)


def described(backbone: str) -> ModelDescription:
    return ModelDescription.of(None, "", backbone, STREET, CROP, preprocessing=Preprocessing())


@functools.cache
def data() -> tuple[DataSet, DataSet]:
    for split, count in (("train", SCENES), ("val", UNSEEN)):
        for _ in write_synthetic(OUT / "data", SyntheticSet(count, split, CROP)):
            pass
    return open_data(OUT / "data", "train"), open_data(OUT / "data", "val")


@functools.cache
def weights(backbone: str) -> Path:
    train(data()[0], described(backbone), settings(PRETRAINING), OUT / f"{backbone}-weights", resume=True)
    return OUT / f"{backbone}-weights"


def cached(backbone: str, steps: int) -> ProxyObjective:
    folder = OUT / f"{backbone}-features"
    for split, scenes, views in zip(("train", "val"), data(), (Views(count=2, scales=(1.0,)), None), strict=True):
        build_cache(scenes, described(backbone), folder / split, weights=weights(backbone), split=split, views=views)
    chosen = ProxySettings(steps=steps, batch=4, rate=0.05, evaluate_every=steps)
    return ProxyObjective(folder / "train", folder / "val", chosen, "cpu")


def end_to_end(backbone: str) -> TrainingObjective:
    model, below = described(backbone), weights(backbone)
    return TrainingObjective(*data(), model, settings(STEPS), OUT / "trained", below, "cpu", save_every=100)


def measure() -> list[list[str]]:
    """Of the 31 subsets of ASPP, as section 4.1 of the paper has it."""
    space = dpcdsl.read_space("aspp_subsets")
    ways = {
        "short, cached": cached(SMALL, SHORT),
        "cached": cached(SMALL, LONG),
        "large backbone, cached": cached(LARGE, LONG),
        "end to end": end_to_end(SMALL),
    }
    found = fidelity(STORAGE, space, drawn_cells(space), ways, workers=WORKERS, report=_Told("fidelity"))
    plot_fidelity(found, PLOT)
    rows = [["score", "against", "Spearman's ρ", "95 %", "Kendall's τ", "of the best 3", "of the best 8"]]
    for (one, other), agree in found.pairs().items():
        between = "" if agree.low is None else f"{agree.low:.2f} to {agree.high:.2f}"
        top = [f"{agree.top[k]:.0%}" for k in (3, 8)]
        rows.append([one, other, f"{agree.spearman:.2f}", between, f"{agree.kendall:.2f}", *top])
    return rows


def found() -> list[list[str]]:
    """The best of a small search by the proxy, reranked, beside ASPP and top-1 trained alike; mIoU in percent."""
    objective, space = cached(SMALL, 150), dpcdsl.read_space("dpc")
    plan = Plan.of(space, identity_of(objective), "dpc", features=objective.caches[0].facts.channels)
    search(STORAGE, plan, objective, trials=TRIALS, workers=WORKERS, name="found", report=_Told("search")).close()
    dear = end_to_end(SMALL)
    reranked = rerank(STORAGE, dear, top=RERANKED, name="found", workers=WORKERS, report=_Told("reranking"))
    winner = reranked.winner
    assert winner is not None
    assert winner.proxy.record is not None
    cells = {
        f"found: `{winner.proxy.record.cell}`": dpcdsl.parse_cell(winner.proxy.record.cell),
        "ASPP": dpcdsl.read_cell("aspp"),
        "top-1": dpcdsl.read_cell("top1"),
    }
    scores: dict[str, list[float]] = {name: [] for name in cells}
    for seed in SEEDS:  # the seed that chose the winner is none of them
        way = f"seed {seed + 1}"
        trained = fidelity(
            STORAGE,
            space,
            [*cells.values()],
            {way: dear},
            name="found beside others",
            seed=seed + 1,
            workers=WORKERS,
            report=_Told(way),
        )
        for name, score in zip(cells, trained.scores[way], strict=True):
            assert score is not None
            scores[name].append(100 * score)
    ahead = {name: statistics.mean(values) - statistics.mean(scores["ASPP"]) for name, values in scores.items()}
    return [
        ["cell", "mIoU %", "seeds", "ahead of ASPP"],
        *(
            [
                name,
                f"{statistics.mean(values):.1f}",
                ", ".join(f"{value:.1f}" for value in values),
                "" if name == "ASPP" else f"{ahead[name]:+.1f}",
            ]
            for name, values in scores.items()
        ),
    ]


class _Told:
    """A line for each trial that has ended."""

    def __init__(self, what: str) -> None:
        self.what, self.last = what, -1

    def __call__(self, progress: SearchProgress) -> None:
        if progress.finished != self.last:
            self.last = progress.finished
            print(f"  {self.what}: {progress.finished} of {progress.trials}", flush=True)
