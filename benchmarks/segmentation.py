"""What surrounds a cell in training: the loss alone, and a step of cell, logits and loss."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from compiler_peers import CHANNELS_LAST, COMPILE, CROP, LAST, NCHW, OURS, Case, forget, in_turns, ours, two_threads
from compiler_peers import weights as eager_cell
from language import in_process, resident
from torch import Tensor, nn

import dpcdsl
from dpcdsl_torch import CompiledCell, upsampled_cross_entropy

CLASSES, IMAGE, BATCH, PROJECTION = 19, (769, 769), 2, 256
PLAIN, PLAIN_LAST = "plain NCHW", "plain channels_last"
MB = 1e6

Step = Callable[[], Tensor]


def logits_and_labels(layout: torch.memory_format = LAST) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, *CROP, generator=generator).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (BATCH, *IMAGE), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.requires_grad_(), labels


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    large = F.interpolate(logits, tuple(labels.shape[1:]), mode="bilinear", align_corners=True)
    return F.cross_entropy(large, labels, ignore_index=255)


def backward(loss: Callable[[Tensor, Tensor], Tensor], layout: torch.memory_format) -> Step:
    logits, labels = logits_and_labels(layout)

    def run() -> Tensor:
        logits.grad = None
        loss(logits, labels).backward()
        assert logits.grad is not None
        return logits.grad

    return run


def loss() -> list[list[str]]:
    """Forward and backward, and the memory that they need above what they are given."""
    with two_threads():
        entries = {
            PLAIN: backward(plain, torch.contiguous_format),
            PLAIN_LAST: backward(plain, LAST),
            COMPILE: backward(torch.compile(plain, dynamic=False), torch.contiguous_format),
            OURS: backward(upsampled_cross_entropy, LAST),
        }
        _check(entries)
        taken = in_turns(entries)
    forget()
    best = min(seconds for name, seconds in taken.items() if name != OURS)
    memory = {name: _extra(name) for name in ("plain", "upsampled_cross_entropy")}
    share = memory["upsampled_cross_entropy"] / memory["plain"]
    head = ["19 classes, 2x769x769 from 49x49", *entries, "÷ best", "bar", "memory: plain", OURS, "share", "bar"]
    return [
        head,
        [
            "forward and backward",
            *(f"{1000 * taken[name]:.0f} ms" for name in entries),
            *(f"{taken[OURS] / best:.2f}", "≤ 0.25"),
            *(f"{memory['plain'] / MB:.0f} MB", f"{memory['upsampled_cross_entropy'] / MB:.1f} MB"),
            *(f"{100 * share:.1f} %", "≤ 5 %"),
        ],
    ]


def _check(entries: dict[str, Step]) -> None:
    wanted = entries[PLAIN]().clone()
    for name, run in entries.items():
        apart = float((run() - wanted).norm() / wanted.norm())
        assert apart <= 1e-3, f"{name} is wrong by {apart:.1g}"


def _extra(name: str) -> float:
    """Bytes at the peak of one call above what was there before, in a process of its own."""
    (found,) = in_process(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r});"
        f"import segmentation; print(segmentation.extra(segmentation.{name}))"
    )
    return found


def extra(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    logits, labels = logits_and_labels()
    with two_threads():
        for first in (plain, upsampled_cross_entropy):  # what a first call takes once
            first(logits[..., :9, :9], labels[..., :769:96, :769:96]).backward()
        logits.grad = None
        gc.collect()
        before = resident("RssAnon")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        loss(logits, labels).backward()
        return resident("VmHWM") - resident("RssFile") - resident("RssShmem") - before


class Head(nn.Module):
    """A cell with its projection, and the logits."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.logits = nn.Conv2d(PROJECTION, CLASSES, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            nn.init.normal_(self.logits.weight, std=0.01)
            nn.init.zeros_(self.logits.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.cell(features))  # type: ignore[no-any-return]


def steps() -> dict[str, Step]:
    """A step of training on given features, by each: forward with dropout, backward, and the update."""
    case = Case("top-1", dpcdsl.zoo()["top1"].value, 320, BATCH, CROP, projection=PROJECTION)
    module = eager_cell(case).train()
    labels = logits_and_labels()[1]
    dropouts: list[nn.Dropout] = []

    def trains(cell: nn.Module, layout: torch.memory_format, compiled: bool) -> Step:
        head = Head(cell).to(memory_format=layout)
        dropouts.extend(part for part in head.modules() if isinstance(part, nn.Dropout))
        x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
        optimizer = torch.optim.SGD(head.parameters(), lr=1e-6, momentum=0.9)
        fused = isinstance(cell, CompiledCell)

        def of_features(features: Tensor) -> Tensor:
            return (upsampled_cross_entropy if fused else plain)(head(features), labels)

        call = torch.compile(of_features, dynamic=False) if compiled else of_features

        def run() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            value = call(x)
            value.backward()
            optimizer.step()
            return value.detach()

        return run

    entries = {
        NCHW: trains(copy.deepcopy(module), torch.contiguous_format, False),
        CHANNELS_LAST: trains(copy.deepcopy(module), LAST, False),
        COMPILE: trains(copy.deepcopy(module), LAST, True),
        OURS: trains(ours(case, module), LAST, False),
    }
    shares = [part.p for part in dropouts]
    for part in dropouts:
        part.p = 0.0  # each would drop other values
    first = {name: float(run()) for name, run in entries.items()}
    assert max(first.values()) - min(first.values()) <= 1e-3, first
    for part, share in zip(dropouts, shares, strict=True):
        part.p = share
    return entries


def step() -> list[list[str]]:
    with two_threads():
        entries = steps()
        taken = in_turns(entries)
    forget()
    best = min(seconds for name, seconds in taken.items() if name != OURS)
    return [
        ["top-1, 320 ch, 19 classes, crop 769, N = 2", *entries, "÷ best", "bar"],
        [
            "a step: cell, logits, loss, update",
            *(f"{1000 * taken[name]:.0f} ms" for name in entries),
            *(f"{taken[OURS] / best:.2f}", "≤ 0.33"),
        ],
    ]


if __name__ == "__main__":
    for row in (*loss(), *step()):
        print(*row, sep=" | ", file=sys.stdout)
