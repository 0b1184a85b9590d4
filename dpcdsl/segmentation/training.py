"""Training: stochastic gradient descent with momentum and a polynomial decay of the rate (section 4 of the paper).

One loop. All that is random is a function of the seed and the step, so a checkpoint holds weights, momentum and the
step, and what goes on from it is what would have been: bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from dpcdsl.errors import DpcError, shown
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.checkpoints import (
    FILE,
    Checkpoint,
    begin_with,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from dpcdsl.segmentation.datasets import DataSet
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.loading import Batch, batches, seed_dropout
from dpcdsl.segmentation.model import PresenceClassifier
from dpcdsl.segmentation.processes import Processes
from dpcdsl.segmentation.schedule import Loss, Progress, Schedule
from dpcdsl.segmentation.transforms import SCALES, Augmentation
from dpcdsl_torch import parameter_groups

__all__ = ["TrainingSettings", "train"]

_LOOK = 10  # steps between two looks at the loss, for which a GPU must be waited for


class TrainingSettings(Schedule):
    """How a model is trained. The defaults are the paper's, for its full setting on Cityscapes.

    batch: images a step, over all processes and ``accumulate`` parts. scales, mirror: of :class:`Augmentation`.
    freeze_backbone, fine_tune_batch_norm, batch_norm_momentum: of :class:`SegmentationModel`. The others are those of
    :class:`Schedule`.
    """

    steps: int = Field(90_000, ge=1)
    batch: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = SCALES
    mirror: float = Field(0.5, ge=0, le=1)
    freeze_backbone: bool = False
    fine_tune_batch_norm: bool = True
    batch_norm_momentum: float = Field(3e-4, ge=0, le=1)


def train(
    data: DataSet,
    description: ModelDescription,
    settings: TrainingSettings,
    folder: Path,
    *,
    weights: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    save_every: int = 1000,
    started: Callable[[int], None] = lambda _: None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Trains a model, writes checkpoints into ``folder``, and returns the path of the last.

    weights: of the backbone, to begin with: a file (:func:`load_backbone_weights`), the folder of another training, or
    "timm" for timm's own. resume: go on from the folder's checkpoint, if there is one; it must be of the same
    description and settings. save_every: steps between two checkpoints; there is one in the end in any case. started:
    is told after how many steps training begins. Under torchrun every process calls this; gradients are averaged, and
    the first one writes and reports.

    Raises :class:`DpcError`: DPC095 for a checkpoint that is there without ``resume``, or is of something else;
    DPC096 where the loss or a weight is no longer a number, and the last checkpoint is good; DPC062 for settings that
    do not fit together; and what reading data raises.
    """
    path = folder / FILE
    saved = _saved(path, resume, description, settings, len(data))
    with Processes.joined(device) as processes, _Board(folder, processes.first) as board:
        chunks = _Chunks(settings, processes)
        trainer = _Trainer(description, settings, processes)
        if saved is not None:
            trainer.go_on(saved)
        elif weights is not None:
            begin_with(trainer.model.backbone, weights)
        start = saved.step if saved else 0
        loader = batches(
            data,
            Augmentation(description.crop, settings.scales, settings.mirror, description.preprocessing),
            (chunks.examples(step, part) for step in range(start, settings.steps) for part in range(chunks.parts)),
            seed=settings.seed,
            workers=workers,
            pin=processes.device.type == "cuda",
        )
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(f".{FILE}.*.part"):  # of one that was killed while it wrote
                part.unlink()
            started(start)
        losses: list[Tensor] = []
        looked = time.perf_counter()
        for step in range(start, settings.steps):
            losses.append(trainer.step(step, loader, chunks))
            done = step + 1
            saves = done % save_every == 0 or done == settings.steps
            if not (saves or done % _LOOK == 0):
                continue
            means = processes.mean(torch.stack(losses)).tolist()
            for number, loss in enumerate(means, done - len(means) + 1):
                if not math.isfinite(loss):
                    raise _stopped(f"the loss is {loss}", number, path)
            took = (time.perf_counter() - looked) / len(means)
            if saves and not trainer.finite():
                raise _stopped("a weight is no longer a number", done, path)
            if processes.first:
                now = Progress(done, settings.steps, sum(means) / len(means), settings.rate_at(step), took)
                report(now)
                board.add(now, settings.batch)
                if saves:
                    write_checkpoint(path, trainer.checkpoint(done, _facts(settings, len(data))))
            losses, looked = [], time.perf_counter()
        processes.wait()
    return path


class _Board:
    """What TensorBoard shows, of the first process."""

    def __init__(self, folder: Path, first: bool) -> None:
        self.folder, self.first = folder, first

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *_: object) -> None:
        if "writer" in vars(self):
            self.writer.close()

    @cached_property
    def writer(self) -> SummaryWriter:
        return SummaryWriter(self.folder)

    def add(self, now: Progress, batch: int) -> None:
        values = {"loss": now.loss, "rate": now.rate, "images per second": batch / now.seconds_per_step}
        for name, value in values.items():
            self.writer.add_scalar(name, value, now.step)


class _Chunks:
    """Which examples a process takes: a step's are shared among the parts, and a part's among the processes."""

    def __init__(self, settings: TrainingSettings, processes: Processes) -> None:
        self.parts, self.processes = settings.accumulate, processes
        self.size, rest = divmod(settings.batch, self.parts * processes.count)
        if rest or not self.size:
            raise DpcError.of(
                "DPC062",
                f"a batch of {settings.batch} cannot be shared by {processes.count} processes in {self.parts} parts "
                "each",
                hint="make the batch a multiple of both together",
            )

    def number(self, step: int, part: int) -> int:
        return (step * self.parts + part) * self.processes.count + self.processes.index

    def examples(self, step: int, part: int) -> range:
        number = self.number(step, part)
        return range(number * self.size, (number + 1) * self.size)


class _Trainer:
    """A model with its optimizer, and one step of both."""

    def __init__(self, description: ModelDescription, settings: TrainingSettings, processes: Processes) -> None:
        self.description, self.settings, self.device = description, settings, processes.device
        torch.manual_seed(settings.seed)
        backbone = Backbone(description.backbone, description.output_stride)
        torch.manual_seed(settings.seed)  # what is on it begins as it does on cached features
        self.model = description.model(
            backbone=backbone,
            freeze_backbone=settings.freeze_backbone,
            fine_tune_batch_norm=settings.fine_tune_batch_norm,
            batch_norm_momentum=settings.batch_norm_momentum,
        ).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, settings.weight_decay), lr=settings.rate, momentum=settings.momentum
        )
        objective = _Objective(self.model, settings).train()
        self.alone = processes.count == 1
        self.objective: Any = objective if self.alone else DistributedDataParallel(objective)

    def step(self, step: int, loader: Iterator[Batch], chunks: _Chunks) -> Tensor:
        """The step after ``step`` others. Returns its loss, of this process."""
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(chunks.parts):
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in next(loader))
            seed_dropout(self.settings.seed, chunks.number(step, part))
            waits = part < chunks.parts - 1 and not self.alone  # gradients are averaged once a step
            with self.objective.no_sync() if waits else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                    loss = self.objective(images, labels) / chunks.parts
                loss.backward()
            total += loss.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_at(step)
        self.optimizer.step()
        return total

    def finite(self) -> bool:
        """Whether every weight and statistic is a number still."""
        return all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values())

    def checkpoint(self, step: int, facts: dict[str, Any]) -> Checkpoint:
        state = self.optimizer.state
        momentum = {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if state.get(parameter, {}).get("momentum_buffer") is not None
        }
        return Checkpoint(self.description, self.model.state_dict(), step, facts, momentum)

    def go_on(self, saved: Checkpoint) -> None:
        load_weights(self.model, saved.weights)
        for name, buffer in saved.momentum.items():
            self.optimizer.state[self.parameters[name]]["momentum_buffer"] = buffer.to(self.device)


class _Objective(nn.Module):
    """A model and its loss, so that both are run by one call."""

    def __init__(self, model: Any, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self.loss = Loss(settings, model.classes, next(model.parameters()).device)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(images)
        if isinstance(self.model, PresenceClassifier):
            present = torch.stack([(labels == one).flatten(1).any(1) for one in range(self.model.classes)], 1)
            return F.binary_cross_entropy_with_logits(logits.float(), present.float(), self.loss.class_weights)
        loss: Tensor = self.loss(logits, labels)
        return loss


def _facts(settings: TrainingSettings, examples: int) -> dict[str, Any]:
    return {"settings": settings.model_dump(mode="json"), "examples": examples}


def _saved(
    path: Path, resume: bool, description: ModelDescription, settings: TrainingSettings, examples: int
) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one."""
    if not path.exists():
        return None
    saved = read_checkpoint(path)
    if not resume:
        raise DpcError.of(
            "DPC095",
            f"a training of {saved.step} steps is there",
            place=str(path),
            hint="--resume goes on with it; or take another folder",
        )
    now = _flat({"description": description.model_dump(mode="json"), **_facts(settings, examples)})
    then = _flat({"description": saved.description.model_dump(mode="json"), **saved.training})
    for name in now | then:
        if now.get(name) != then.get(name):
            raise DpcError.of(
                "DPC095",
                f"the training that is there has another {name}: {shown(then.get(name))}, and not "
                f"{shown(now.get(name))}",
                place=str(path),
                hint="go on with the same command, or take another folder",
            )
    return saved


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of groups of values: the values."""
    return {
        name: value
        for key, group in facts.items()
        for name, value in (group.items() if isinstance(group, dict) else [(key, group)])
    }


def _stopped(what: str, step: int, path: Path) -> DpcError:
    good = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
    return DpcError.of("DPC096", f"{what} at step {step}; {good}", hint="a lower rate, or other data")
