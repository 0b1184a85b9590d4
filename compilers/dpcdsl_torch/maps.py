"""Maps, and what evaluation and training both do to them: which primitives run, taps worth visiting, poolings."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl.layers import Size
from dpcdsl_torch import aten, build, cuda, memory, native
from dpcdsl_torch.primitives import Primitives, Taps
from dpcdsl_torch.task import Form, Task, taps_inside

__all__ = [
    "Maps",
    "chosen_taps",
    "pool",
    "pool_backward",
    "primitives_for",
    "side_by_side",
    "taps_of",
    "vector_dtype",
]


_PAGE = 4096  # bytes
_LINE = 64


def primitives_for(task: Task, device: torch.device, dtype: torch.dtype) -> Primitives:
    """What runs a task's maps of ``dtype`` on ``device``."""
    if task.backend != "aten" and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        found = native.primitives()
        if found is None:
            build.require() if task.backend == "native" else build.warn_once()
        elif all(len(form.dy) <= native.MOST_TAPS for form in task.branches):
            return found
    if task.backend != "aten" and device.type == "cuda" and dtype in cuda.DTYPES:
        there = cuda.primitives(device, required=task.backend == "native")
        if there is not None and all(len(form.dy) <= cuda.MOST_TAPS for form in task.branches):
            return there
    return aten.PRIMITIVES


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of statistics, biases and pooled maps, for maps of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def side_by_side(x: Tensor) -> bool:
    """Whether channels lie side by side, and so whether the result is channels_last."""
    return x.stride(1) == 1


class Maps:
    """Makes maps: large ones from kept memory."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.dtype, self.batch = x.device, x.dtype, x.shape[0]
        self.size: Size = (x.shape[2], x.shape[3])

    def empty(self, channels: int, size: Size | None = None, dtype: torch.dtype | None = None) -> Tensor:
        shape = (self.batch, channels, *(size or self.size))
        if self.device.type == "cpu":
            return memory.empty(shape, dtype or self.dtype)
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device, memory_format=torch.channels_last)

    def channels_last(self, x: Tensor, primitives: Primitives) -> Tensor:
        if side_by_side(x):
            return x
        channels = x.shape[1]
        # Positions a whole page apart push each other out of a CPU's cache. With a line more between them they do not.
        apart = _LINE if channels * x.itemsize % _PAGE == 0 and x.device.type == "cpu" else 0
        copy = self.empty(channels + apart // x.itemsize)[:, :channels]
        primitives.copy(x, copy)
        return copy


def taps_of(form: Form, chosen: tuple[int, ...] | None) -> Taps:
    if chosen is None:
        return Taps(form.dy, form.dx)
    return Taps(tuple(form.dy[t] for t in chosen), tuple(form.dx[t] for t in chosen))


def chosen_taps(task: Task, form: Form, size: Size, primitives: Primitives) -> tuple[int, ...] | None:
    """The taps to visit on maps of ``size``, None for all."""
    if primitives.finds_taps or not task.does("taps"):
        return None
    inside = taps_inside(form, size)
    return inside if len(inside) < len(form.dy) else None


def _window(task: Task, form: Form, size: Size) -> Size:
    assert form.grid is not None
    return (
        task.conventions.sliding_window(0, form.grid[0], size[0]),
        task.conventions.sliding_window(1, form.grid[1], size[1]),
    )


def pool(task: Task, form: Form, x: Tensor, primitives: Primitives) -> Tensor:
    assert form.grid is not None
    if task.pooling == "paper":
        return primitives.pool(x, form.grid)
    primitives.flush()
    height, width = _window(task, form, (x.shape[2], x.shape[3]))
    # The mean of means along each axis: h + w additions a position, and not h w.
    rows = F.avg_pool2d(x.to(vector_dtype(x.dtype)), (height, 1), stride=1)
    return F.avg_pool2d(rows, (1, width), stride=1).contiguous(memory_format=torch.channels_last)


def pool_backward(task: Task, form: Form, g: Tensor, dx: Tensor, add: bool, primitives: Primitives) -> None:
    if task.pooling == "paper":
        primitives.pool_backward(g, dx, add)
        return
    primitives.flush()
    height, width = _window(task, form, (dx.shape[2], dx.shape[3]))
    # The mean of a window, backwards, is the mean over the windows that a position is in, of a map padded with zeros.
    padded = F.pad(g, (width - 1, width - 1, height - 1, height - 1))
    spread = F.avg_pool2d(F.avg_pool2d(padded, (height, 1), stride=1), (1, width), stride=1)
    if add:
        dx.add_(spread)
    else:
        dx.copy_(spread)
