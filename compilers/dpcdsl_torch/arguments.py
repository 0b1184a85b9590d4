"""What the operators' arguments must be. Anyone can call an operator with anything, and the kernels check nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, NoReturn, get_args

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.layers import DepthwiseConvolution, Pooling
from dpcdsl_torch import aten
from dpcdsl_torch.maps import primitives_for
from dpcdsl_torch.task import Form, Task, check_fusions
from dpcdsl_torch.training import kept_shapes
from dpcdsl_torch.weights import prepare

__all__ = [
    "check_arguments",
    "check_kept",
    "evaluation_weights",
    "known_task",
    "refuse",
    "training_weights",
]


class _Weight(NamedTuple):
    """What a weight must be. dtype: None for any floating one."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    contiguous: bool


def check_arguments(task: Task, x: Tensor, weights: Sequence[Tensor], expected: Sequence[_Weight]) -> None:
    """Raise :class:`DpcError` (DPC062) unless map and weights are those of the task: 10 us for the cell top-1."""
    if x.dim() != 4 or x.shape[1] != task.in_channels or x.shape[2] < 1 or x.shape[3] < 1:
        refuse(f"a map of shape {tuple(x.shape)}, and not [N, {task.in_channels}, H, W]", "only N may be 0")
    if not x.is_floating_point():
        refuse(f"a map of {x.dtype}, which is no floating type")
    if len(weights) != len(expected):
        refuse(f"{len(weights)} weights, and not {len(expected)}", ", ".join(weight.name for weight in expected))
    device = x.device
    for weight, (name, shape, dtype, contiguous) in zip(weights, expected, strict=True):
        if weight.shape != shape:
            refuse(f"the weight `{name}` of shape {tuple(weight.shape)}, and not {shape}")
        if weight.dtype is not dtype and (dtype is not None or not weight.is_floating_point()):
            refuse(f"the weight `{name}` of {weight.dtype}, and not {dtype or 'a floating type'}")
        if weight.device != device:
            refuse(f"the weight `{name}` on {weight.device}, and the map on {device}")
        if contiguous and not weight.is_contiguous():
            refuse(f"the weight `{name}` with strides {weight.stride()}", "make it contiguous")


def refuse(what: str, hint: str | None = None) -> NoReturn:
    raise DpcError.of("DPC062", f"the operator was given {what}", hint=hint)


@lru_cache(maxsize=256)
def evaluation_weights(task: str, device: torch.device, dtype: torch.dtype) -> tuple[_Weight, ...]:
    """What :func:`dpcdsl_torch.weights.prepare` makes: found by preparing any weights, once."""
    known = known_task(task)
    native = primitives_for(known, device, dtype) is not aten.PRIMITIVES
    # Not on the meta device: there torch's operators import torch._dynamo, which takes seconds, and Triton with it.
    blank = {name: torch.zeros(shape, device="cpu") for name, shape, _, _ in training_weights(task)}
    with torch.inference_mode(False), torch.no_grad():
        ready = prepare(known, blank, device, dtype)
    return tuple(_Weight(name, tuple(weight.shape), weight.dtype, native) for name, weight in ready.items())


@lru_cache(maxsize=256)
def training_weights(task: str) -> tuple[_Weight, ...]:
    known = known_task(task)
    found = []
    for convolution, norm in known.convolutions:
        number, kind = convolution.split(".")
        form = known.branches[int(number) - 1]
        shape: tuple[int, ...] = (form.filters, form.in_channels)
        if kind == "depthwise":
            shape = (len(form.dy), form.in_channels)
        elif number == "0":
            shape = (known.out_channels, known.concatenated)
        found.append((convolution, shape))
        if norm:
            vector = (shape[1] if kind == "depthwise" else shape[0],)
            found += [(f"{convolution}.{part}", vector) for part in ("weight", "bias", "mean", "variance")]
    assert tuple(name for name, _ in found) == known.training_names
    return tuple(_Weight(name, shape, None, False) for name, shape in found)


@lru_cache(maxsize=256)
def known_task(task: str) -> Task:
    """The task of a text; DpcError (DPC062) for a text that :meth:`Task.dumps` does not write of a cell."""
    why: object
    try:
        known = Task.loads(task)
        why = _flaw(known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        refuse(f"a text that is no task: {why}", "texts of tasks come from Task.dumps")
    return known


_FARTHEST = 2**31  # a tap farther away is a mistake, and would overflow somewhere


def _flaw(task: Task) -> str | None:
    """What of a task a kernel would come to grief on."""
    check_fusions(task.without)
    channels = [task.in_channels]
    if not task.branches or not _whole(task.in_channels):
        return "no branches, or no channels"
    for number, form in enumerate(task.branches, 1):
        if not _whole(form.input, 0) or form.input >= number:
            return f"branch {number} reads {form.input}"
        if form.in_channels != channels[form.input] or not _whole(form.filters):
            return f"branch {number} has channels {form.in_channels} to {form.filters}"
        if form.grid is not None and not (_pair(form.grid) and form.kernel is None):
            return f"branch {number} has the grid {form.grid}"
        if not _taps_fit(form):
            return f"the taps of branch {number} are not those of its kernel"
        channels.append(form.filters)
    if task.projection is not None and not _whole(task.projection):
        return f"the projection has {task.projection} filters"
    if task.pooling not in get_args(Pooling) or not _whole(task.output_stride):
        return f"there is no pooling {task.pooling!r} at output stride {task.output_stride!r}"
    if task.image_pooling_crop_size is not None and not _pair(task.image_pooling_crop_size):
        return f"the crop size is {task.image_pooling_crop_size}"
    if len(task.epsilon) != len(task.convolutions) or not all(0 <= e < math.inf for e in task.epsilon):
        return f"the epsilons are {task.epsilon}"
    return None


def _whole(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value < _FARTHEST


def _pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_whole, value))


def _taps_fit(form: Form) -> bool:
    if form.kernel is None:
        return not form.dy and not form.dx
    if form.rate is None or not _pair(form.kernel) or not _pair(form.rate):
        return False
    if len(form.dy) != form.kernel[0] * form.kernel[1]:
        return False
    layer = DepthwiseConvolution("depthwise", form.kernel, form.rate)
    grid = [(y, x) for y in layer.taps(0) for x in layer.taps(1)]
    return list(zip(form.dy, form.dx, strict=True)) == grid and all(max(abs(y), abs(x)) < 2**40 for y, x in grid)


def check_kept(x: Tensor, gradient: Tensor, kept: Sequence[Tensor], task: Task) -> None:
    expected = list(kept_shapes(task, x.shape, x.dtype))
    names = ("the gradient", *(f"`{name}`" for name in task.kept_names))
    if len(kept) != len(expected):
        refuse(f"{len(kept)} kept tensors, and not {len(expected)}")
    for name, tensor, (shape, dtype) in zip(names, (gradient, *kept), (expected[0], *expected), strict=True):
        if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != x.device:
            found = f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"
            refuse(f"{found}, and not of {shape} and {dtype} on {x.device}")
