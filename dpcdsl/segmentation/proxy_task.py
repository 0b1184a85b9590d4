"""The proxy task: how good a cell is, from a short training on cached features (section 3.3 of the paper).

A small backbone's features stand in for a large one's; they are computed once, so the backbone is frozen; and training
is stopped early. What is left is a cell with its projection and logits. The score is the mean intersection over union
on a held-out split, the best of the learning curve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Pooling
from dpcdsl.references import read_cell
from dpcdsl.segmentation.cache import FeatureCache, unusable
from dpcdsl.segmentation.evaluation import Pixels
from dpcdsl.segmentation.loading import example_at, seed_dropout
from dpcdsl.segmentation.prediction import label_map
from dpcdsl.segmentation.processes import device_of
from dpcdsl.segmentation.schedule import Loss, Progress, Schedule
from dpcdsl_torch import parameter_groups

__all__ = ["CurvePoint", "ProxyResult", "ProxySettings", "proxy", "proxy_many"]

_LOOK = 10  # steps between two looks at the loss


class ProxySettings(Schedule):
    """How a candidate is trained. The defaults are the paper's.

    evaluate_every: steps between two evaluations; there is one in the end in any case. patience: evaluations without a
    better one after which training stops; None for none. statistics: batches from which those of the batch
    normalisations are computed before an evaluation: running ones, at a decay of 0.9997, would be those of the
    beginning. pooling: of the cells. The others are those of :class:`Schedule`.
    """

    steps: int = Field(30_000, ge=1)
    batch: int = Field(8, ge=1)
    evaluate_every: int = Field(3_000, ge=1)
    patience: int | None = Field(None, ge=1)
    statistics: int = Field(16, ge=1)
    pooling: Pooling = "paper"


@dataclass(frozen=True)
class CurvePoint:
    """After ``step`` steps: mean loss since the last point, and the held-out mIoU, from 0 to 1.

    seconds: of training until then; on a GPU, those in which its work is given to it.
    """

    step: int
    loss: float
    miou: float
    seconds: float


@dataclass(frozen=True)
class ProxyResult:
    """score: the best mIoU of the curve, from 0 to 1. stopped: why training ended: "steps", "patience" or "watch"."""

    score: float
    stopped: str
    curve: tuple[CurvePoint, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


#: Is told, after each evaluation, which candidate it was and the new point of its curve; True stops that candidate.
Watch = Callable[[int, CurvePoint], bool]


def proxy(
    cell: Cell | str,
    cache: FeatureCache,
    held_out: FeatureCache,
    settings: ProxySettings | None = None,
    *,
    device: str = "cpu",
    watch: Watch = lambda _, __: False,
    report: Callable[[Progress], None] = lambda _: None,
) -> ProxyResult:
    """Trains a cell with its projection and logits on ``cache``, and scores it on ``held_out``.

    cell: anything that :func:`dpcdsl.read_cell` reads. The result is a function of the cell, the two caches and the
    settings: on a CPU bit for bit, with the same number of threads, whatever runs beside it. watch: an Optuna pruner,
    for one: ``lambda _, point: trial.report(point.miou, point.step) or trial.should_prune()``.

    Raises :class:`DpcError`: DPC096 where the loss is no longer a number; DPC097 for two caches that do not belong
    together, or a damaged one; DPC062 for settings that do not fit.
    """
    (result,) = proxy_many([cell], cache, held_out, settings, device=device, watch=watch, report=report)
    if isinstance(result, DpcError):
        raise result
    return result


def proxy_many(
    cells: Sequence[Cell | str],
    cache: FeatureCache,
    held_out: FeatureCache,
    settings: ProxySettings | None = None,
    *,
    device: str = "cpu",
    watch: Watch = lambda _, __: False,
    report: Callable[[Progress], None] = lambda _: None,
) -> list[ProxyResult | DpcError]:
    """Several cells over one pass of the cache, each with its own optimizer and end: each result is :func:`proxy`'s.

    A cell that fails has its error (DPC096) in the place of a result, and does not stop the others.
    """
    settings = settings or ProxySettings()
    _check_pair(cache, held_out)
    place = device_of(device)
    candidates = [_Candidate(index, cell, cache, settings, place) for index, cell in enumerate(cells)]
    running, since, looked = candidates, 0, time.perf_counter()
    for step, (features, labels) in enumerate(_batches(cache, settings, place)):
        for one in running:
            one.learn(step, features, labels)
        done, since = step + 1, since + 1
        evaluates = done % settings.evaluate_every == 0 or done == settings.steps
        if not (evaluates or done % _LOOK == 0):
            continue
        running = [one for one in running if one.is_sound(done)]
        took = (time.perf_counter() - looked) / since
        if evaluates and running:
            _evaluate(running, cache, held_out, done, watch)
        if running:
            mean = sum(one.losses.last for one in running) / len(running)
            report(Progress(done, settings.steps, mean, settings.rate_at(step), took))
        running = [one for one in running if one.result is None]
        if not running:
            break
        since, looked = 0, time.perf_counter()
    return [one.result for one in candidates if one.result is not None]


@dataclass
class _Losses:
    """Of one candidate. fresh: those that have not been looked at, which a GPU may still be computing. known: those
    since the last evaluation. last: NaN if there is none.
    """

    fresh: list[Tensor] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    last: float = math.nan

    def look(self) -> list[float]:
        """The fresh ones, which are known then."""
        found: list[float] = torch.stack(self.fresh).tolist() if self.fresh else []
        self.known, self.fresh = self.known + found, []
        self.last = found[-1] if found else self.last
        return found

    def mean(self) -> float:
        """Of the known ones, which are forgotten then."""
        mean, self.known = sum(self.known) / len(self.known), []
        return mean


class _Candidate:
    """A cell that is being trained: a head with its optimizer, and what has been found of it."""

    def __init__(
        self, index: int, cell: Cell | str, cache: FeatureCache, settings: ProxySettings, device: torch.device
    ) -> None:
        self.index, self.settings, self.device = index, settings, device
        value = read_cell(cell) if isinstance(cell, str) else cell
        description = cache.describe(value, pooling=settings.pooling)
        torch.manual_seed(settings.seed)
        self.head = description.head_on(cache.facts.channels).to(device).train()
        self.loss = Loss(settings, self.head.classes, device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.head, settings.weight_decay), lr=settings.rate, momentum=settings.momentum
        )
        self.losses = _Losses()
        self.seconds = 0.0
        self.curve: list[CurvePoint] = []
        self.result: ProxyResult | DpcError | None = None

    def learn(self, step: int, features: Tensor, labels: Tensor) -> None:
        """The step after ``step`` others."""
        began = time.perf_counter()
        seed_dropout(self.settings.seed, step)
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.loss(self.head(features), labels)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(step)
        self.optimizer.step()
        self.losses.fresh.append(loss.detach())
        self.seconds += time.perf_counter() - began

    def is_sound(self, step: int) -> bool:
        """Whether every loss until now was a number; if not, that is the result."""
        for number, loss in enumerate(fresh := self.losses.look(), step - len(fresh) + 1):
            if not math.isfinite(loss):
                self.result = DpcError.of("DPC096", f"the loss is {loss} at step {number}", hint="a lower rate")
                return False
        return True

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """While the statistics of the batch normalisations are gathered anew, by :meth:`see`; then in evaluation."""
        norms = [part for part in self.head.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        before = [part.momentum for part in norms]
        for part in norms:
            part.reset_running_stats()
            part.momentum = None  # the mean of all batches
        for module in self.head.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        yield
        for part, momentum in zip(norms, before, strict=True):
            part.momentum = momentum
        self.head.eval()

    def see(self, features: Tensor) -> None:
        with torch.no_grad(), self._precision():
            self.head.cell(features)

    def logits(self, features: Tensor) -> Tensor:
        with torch.no_grad(), self._precision():
            found: Tensor = self.head(features).float()
        return found

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def ends(self, point: CurvePoint, stops: bool) -> None:
        """After an evaluation: whether it was the last."""
        self.curve.append(point)
        scores = [one.miou for one in self.curve]
        patience = self.settings.patience
        if point.step == self.settings.steps:
            why = "steps"
        elif stops:
            why = "watch"
        elif patience is not None and len(scores) - 1 - scores.index(max(scores)) >= patience:
            why = "patience"
        else:
            self.head.train()
            return
        self.result = ProxyResult(max(scores), why, tuple(self.curve))


def _evaluate(running: list[_Candidate], cache: FeatureCache, held_out: FeatureCache, step: int, watch: Watch) -> None:
    """All candidates over one pass of the held-out split."""
    settings, device = running[0].settings, running[0].device
    with ExitStack() as stack:
        for one in running:
            stack.enter_context(one.gathering())
        for number in range(settings.statistics):
            features, _ = _batch(cache, settings, number, device)
            for one in running:
                one.see(features)
    counted = [Pixels(cache.facts.model.labels.names) for _ in running]
    for features, labels in held_out:
        whole = features[None].to(device).float()
        height, width = labels.shape
        for one, pixels in zip(running, counted, strict=True):
            pixels.add(label_map([one.logits(whole)[0]], (height, width)), labels)
    for one, pixels in zip(running, counted, strict=True):
        point = CurvePoint(step, one.losses.mean(), pixels.evaluation().miou, one.seconds)
        one.ends(point, watch(one.index, point))


def _batches(cache: FeatureCache, settings: ProxySettings, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch a step; the next is read while one is computed with."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_batch, cache, settings, 0, device)
        for step in range(settings.steps):
            now = coming.result()
            if step + 1 < settings.steps:
                coming = reader.submit(_batch, cache, settings, step + 1, device)
            yield now


def _batch(cache: FeatureCache, settings: ProxySettings, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What the step after ``step`` others sees: a function of the seed and the step."""
    places = range(step * settings.batch, (step + 1) * settings.batch)
    features, labels = cache.batch([example_at(settings.seed, place, len(cache)) for place in places])
    return features.to(device).float(), labels.to(device)


def _check_pair(cache: FeatureCache, held_out: FeatureCache) -> None:
    """Two splits of one data set on one backbone."""
    one, other = cache.facts, held_out.facts
    for name in ("weights", "channels"):
        if getattr(one, name) != getattr(other, name):
            raise unusable(held_out.folder, f"its {name} are not those of {cache.folder}", _PAIR)
    for name in ("backbone", "output_stride", "preprocessing", "dataset", "classes"):
        if getattr(one.model, name) != getattr(other.model, name):
            raise unusable(held_out.folder, f"its {name} is not that of {cache.folder}", _PAIR)


_PAIR = "both splits are kept with the same weights and options"
