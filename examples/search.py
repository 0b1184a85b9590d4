"""A small search, as the paper's: random search near the best so far, scored by the proxy task on cached features; the
best three are then trained as whole models and ranked again, and a report tells of it all.

It begins with the backbone that `segment.py` has trained, or trains one; about four minutes on two cores.
"""

from __future__ import annotations

import shutil
import time
from argparse import ArgumentParser
from pathlib import Path

import dpcdsl
from dpcdsl.explain import table
from dpcdsl.search import Plan, SearchProgress, identity_of, report, rerank, search
from dpcdsl.segmentation import (
    STREET,
    ModelDescription,
    Preprocessing,
    ProxySettings,
    SyntheticSet,
    TrainingSettings,
    Views,
    build_cache,
    train,
)
from dpcdsl.segmentation.objective import ProxyObjective, TrainingObjective

OUT = Path("demo/search")
TRAINED = Path("demo/street/top1")  # by segment.py
CROP = (193, 385)
BEST = 3


def backbone(description: ModelDescription, scenes: SyntheticSet, steps: int) -> Path:
    if TRAINED.is_dir():
        return TRAINED
    print("The backbone, as a classifier of what is in a scene", flush=True)
    settings = TrainingSettings(steps=steps, batch=4, rate=0.03, scales=(1.0,), batch_norm_momentum=0.1)
    train(scenes, description, settings, OUT / "backbone")
    return OUT / "backbone"


class Told:
    """A line for each trial that has ended."""

    last = 0

    def __call__(self, progress: SearchProgress) -> None:
        if progress.finished == self.last:
            return
        self.last = progress.finished
        record = progress.best.record if progress.best else None
        best = f", the best {100 * record.scores['score']:.1f} %" if record and record.scores else ""
        print(f"  {progress.finished} of {progress.trials} cells{best}", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150, help="of each cell's training")
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    began = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)

    scenes, unseen = SyntheticSet(chosen.scenes, "train", CROP), SyntheticSet(max(1, chosen.scenes // 4), "val", CROP)
    description = ModelDescription.of(None, "", "test_resnet", STREET, CROP, preprocessing=Preprocessing())
    weights = backbone(description, scenes, chosen.steps)
    print(f"Features of {len(scenes)} scenes to train on, and of {len(unseen)} others", flush=True)
    views = Views(count=2, scales=(0.75, 1.0, 1.25))
    build_cache(scenes, description, OUT / "train", weights=weights, views=views)
    held_out = build_cache(unseen, description, OUT / "val", weights=weights, split="val")

    settings = ProxySettings(steps=chosen.steps, batch=4, rate=0.05, evaluate_every=chosen.steps)
    objective = ProxyObjective(OUT / "train", OUT / "val", settings)
    space = dpcdsl.read_space("dpc")
    size = ((CROP[0] - 1) // 16 + 1, (CROP[1] - 1) // 16 + 1)
    plan = Plan.of(space, identity_of(objective), "dpc", features=held_out.facts.channels, size=size)
    print(f"\n{chosen.trials} of {dpcdsl.count(space):,} cells, ASPP first", flush=True)
    first = [dpcdsl.read_cell("aspp")]
    where, workers = str(OUT / "search.db"), chosen.workers
    study = search(where, plan, objective, trials=chosen.trials, workers=workers, first=first, report=Told())

    with study:
        for seen in study.best(BEST):
            assert seen.record is not None
            dpcdsl.draw(dpcdsl.parse_cell(seen.record.cell)).save(OUT / f"cell{seen.number}.png")

    print(f"\nThe best {BEST} as whole models", flush=True)
    trained = TrainingSettings(steps=2 * chosen.steps, batch=4, rate=0.03, scales=(1.0,), batch_norm_momentum=0.1)
    whole = TrainingObjective(scenes, unseen, description, trained, OUT / "trained", weights)
    found = rerank(where, whole, top=BEST, workers=workers, report=Told())
    rows = [["mIoU %", "by the proxy", "place", "trial", "parameters", "cell"]]
    for one in found.finalists:
        (proxy, final), record = one.scores, one.proxy.record
        assert record is not None
        rows.append(
            [
                "none" if final is None else f"{100 * final:.1f}",
                *(f"{100 * proxy:.1f}", str(one.proxy_place), str(one.proxy.number)),
                *(f"{record.costs['params']:,}", record.cell),
            ]
        )
    print("\n" + table(rows, right=(0, 1, 2, 3, 4)))

    (OUT / "report.html").write_text(report(where), encoding="utf-8")
    print("\n".join(str(path) for path in sorted(OUT.glob("*.png"))))
    print(f"{OUT / 'report.html'}: open it in a browser")
    print(f"{where}: go on, or look, with `dpc search`")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
