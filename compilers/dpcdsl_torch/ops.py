"""The operators ``dpcdsl::*``: schema, shapes, implementation and gradient, side by side.

They are registered with the low-level ``torch.library.Library``: the ``custom_op`` decorator would import
``torch._dynamo``, and with it Triton, at its first use.

``dpcdsl::cell``, ``cell_train`` and ``cell_train_backward`` run a :class:`~dpcdsl_torch.plan.Task`, which is their text
argument. ``dpcdsl::depthwise`` and its two gradients are a dilated depthwise convolution alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.layers import DepthwiseConvolution, Pooling
from dpcdsl_torch import aten
from dpcdsl_torch.decomposition import decomposed
from dpcdsl_torch.execution import (
    kept_shapes,
    primitives_for,
    run_backward,
    run_evaluation,
    run_training,
    side_by_side,
)
from dpcdsl_torch.plan import Form, Task, check_fusions
from dpcdsl_torch.weights import prepare

__all__ = ["check_arguments", "define", "empty_map", "library"]

#: Holds the registrations; torch drops them with it.
library: Any = torch.library.Library("dpcdsl", "DEF")  # type: ignore[no-untyped-call]


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register the operator of a schema: one implementation for every device, and the shapes of what it returns."""
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    # One implementation for every device: it looks up the primitives of the device that the maps are on.
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dpcdsl::{name}", fake, lib=library)


def empty_map(x: Tensor, shape: Sequence[int], dtype: torch.dtype, channels_last: bool = True) -> Tensor:
    """What an operator returns for x, without its numbers: a map in either memory format, or a vector."""
    if len(shape) == 4 and channels_last:
        n, c, h, w = shape
        # By hand: of a map of one position, torch would call either format contiguous.
        return x.new_empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=dtype)
    return x.new_empty(shape, dtype=dtype)


# What the arguments must be. Anyone can call an operator with anything, and the kernels check nothing.


class _Weight(NamedTuple):
    """What a weight must be. dtype: None for any floating one."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    contiguous: bool


def check_arguments(task: Task, x: Tensor, weights: Sequence[Tensor], expected: Sequence[_Weight]) -> None:
    """Raise :class:`DpcError` (DPC062) unless map and weights are those of the task: 10 us for the cell top-1."""
    if x.dim() != 4 or x.shape[1] != task.in_channels or x.shape[2] < 1 or x.shape[3] < 1:
        _refuse(f"a map of shape {tuple(x.shape)}, and not [N, {task.in_channels}, H, W]", "only N may be 0")
    if not x.is_floating_point():
        _refuse(f"a map of {x.dtype}, which is no floating type")
    if len(weights) != len(expected):
        _refuse(f"{len(weights)} weights, and not {len(expected)}", ", ".join(weight.name for weight in expected))
    device = x.device
    for weight, (name, shape, dtype, contiguous) in zip(weights, expected, strict=True):
        if weight.shape != shape:
            _refuse(f"the weight `{name}` of shape {tuple(weight.shape)}, and not {shape}")
        if weight.dtype is not dtype and (dtype is not None or not weight.is_floating_point()):
            _refuse(f"the weight `{name}` of {weight.dtype}, and not {dtype or 'a floating type'}")
        if weight.device != device:
            _refuse(f"the weight `{name}` on {weight.device}, and the map on {device}")
        if contiguous and not weight.is_contiguous():
            _refuse(f"the weight `{name}` with strides {weight.stride()}", "make it contiguous")


def _refuse(what: str, hint: str | None = None) -> NoReturn:
    raise DpcError.of("DPC062", f"the operator was given {what}", hint=hint)


@lru_cache(maxsize=256)
def _evaluation_weights(task: str, device: torch.device, dtype: torch.dtype) -> tuple[_Weight, ...]:
    """What :func:`dpcdsl_torch.weights.prepare` makes: found by preparing any weights, once."""
    known = _known(task)
    native = primitives_for(known, device, dtype) is not aten.PRIMITIVES
    # Not on the meta device: there torch's operators import torch._dynamo, which takes seconds, and Triton with it.
    blank = {name: torch.zeros(shape, device="cpu") for name, shape, _, _ in _training_weights(task)}
    with torch.inference_mode(False), torch.no_grad():
        ready = prepare(known, blank, device, dtype)
    return tuple(_Weight(name, tuple(weight.shape), weight.dtype, native) for name, weight in ready.items())


@lru_cache(maxsize=256)
def _training_weights(task: str) -> tuple[_Weight, ...]:
    known = _known(task)
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
def _known(task: str) -> Task:
    """The task of a text; DpcError (DPC062) for a text that :meth:`Task.dumps` does not write of a cell."""
    why: object
    try:
        known = Task.loads(task)
        why = _flaw(known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        _refuse(f"a text that is no task: {why}", "texts of tasks come from Task.dumps")
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


def _check_kept(x: Tensor, gradient: Tensor, kept: Sequence[Tensor], task: Task) -> None:
    expected = list(kept_shapes(task, x.shape, x.dtype))
    names = ("the gradient", *(f"`{name}`" for name in task.kept_names))
    if len(kept) != len(expected):
        _refuse(f"{len(kept)} kept tensors, and not {len(expected)}")
    for name, tensor, (shape, dtype) in zip(names, (gradient, *kept), (expected[0], *expected), strict=True):
        if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != x.device:
            found = f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"
            _refuse(f"{found}, and not of {shape} and {dtype} on {x.device}")


# dpcdsl::cell


def _cell(x: Tensor, weights: list[Tensor], task: str) -> Tensor:
    known = _known(task)
    check_arguments(known, x, weights, _evaluation_weights(task, x.device, x.dtype))
    return run_evaluation(known, x, dict(zip(known.evaluation_names, weights, strict=True)))


def _cell_fake(x: Tensor, weights: list[Tensor], task: str) -> Tensor:
    shape = (x.shape[0], _known(task).out_channels, x.shape[2], x.shape[3])
    return empty_map(x, shape, x.dtype, side_by_side(x))


define("cell(Tensor x, Tensor[] weights, str task) -> Tensor", _cell, _cell_fake)


# dpcdsl::cell_train: the concatenation, and what is kept for the gradient and for running statistics


def _train(x: Tensor, weights: list[Tensor], task: str, batch_statistics: list[bool]) -> list[Tensor]:
    known = _known(task)
    if known.projection is not None:
        _refuse("a task with a projection to train", "a projection is trained as a task of its own")
    check_arguments(known, x, weights, _training_weights(task))
    return run_training(
        known, x, dict(zip(known.training_names, weights, strict=True)), _batch(known, batch_statistics)
    )


def _train_fake(x: Tensor, weights: list[Tensor], task: str, batch_statistics: list[bool]) -> list[Tensor]:
    return [empty_map(x, shape, dtype) for shape, dtype in kept_shapes(_known(task), x.shape, x.dtype)]


def _train_backward(
    gradient: Tensor,
    x: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    task: str,
    batch_statistics: list[bool],
    needs_input: bool,
) -> list[Tensor]:
    known = _known(task)
    check_arguments(known, x, weights, _training_weights(task))
    _check_kept(x, gradient, kept, known)
    names = known.training_names
    named = dict(zip(names, weights, strict=True))
    found = run_backward(
        known,
        gradient,
        x,
        named,
        dict(zip(known.kept_names, kept, strict=True)),
        _batch(known, batch_statistics),
        needs_input,
    )
    learnt = [found[name].to(weight.dtype) for name, weight in named.items() if _is_learnt(name)]
    return [found["F"], *learnt] if needs_input else learnt


def _train_backward_fake(
    gradient: Tensor,
    x: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    task: str,
    batch_statistics: list[bool],
    needs_input: bool,
) -> list[Tensor]:
    names = _known(task).training_names
    learnt = [weight.new_empty(weight.shape) for name, weight in zip(names, weights, strict=True) if _is_learnt(name)]
    return [empty_map(x, x.shape, x.dtype), *learnt] if needs_input else learnt


def _batch(task: Task, batch_statistics: list[bool]) -> frozenset[str]:
    names = [name for name, _ in task.convolutions]
    if len(batch_statistics) != len(names):
        _refuse(f"{len(batch_statistics)} choices of statistics for {len(names)} convolutions")
    return frozenset(name for name, batch in zip(names, batch_statistics, strict=True) if batch)


def _is_learnt(name: str) -> bool:
    return not name.endswith((".mean", ".variance"))


define("cell_train(Tensor x, Tensor[] weights, str task, bool[] batch_statistics) -> Tensor[]", _train, _train_fake)
define(
    "cell_train_backward(Tensor gradient, Tensor x, Tensor[] weights, Tensor[] kept, str task, bool[] batch_statistics,"
    " bool needs_input) -> Tensor[]",
    _train_backward,
    _train_backward_fake,
)


def _train_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.task, ctx.batch_statistics = inputs
    names = _known(ctx.task).training_names
    learnt = [weight for name, weight in zip(names, weights, strict=True) if _is_learnt(name)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    # Not the running statistics: they are about to be written. What was used of them is in the output.
    # The result is kept only where a branch reads another's, so that elsewhere it may be written in place.
    kept = output if any(form.input for form in _known(ctx.task).branches) else output[1:]
    ctx.save_for_backward(x, *learnt, *kept)


def _train_gradient(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    task = _known(ctx.task)
    names = task.training_names
    gradient = gradients[0]
    if gradient is None:
        return None, [None] * len(names), None, None
    x, *rest = ctx.saved_tensors
    count = sum(map(_is_learnt, names))
    kept = rest[count:]
    if len(kept) < len(task.kept_names):
        kept = [gradient, *kept]  # in the place of the result, which nothing reads
    named = dict(zip(task.kept_names, kept, strict=True)) | dict(zip(filter(_is_learnt, names), rest, strict=False))
    weights = [named[name] for name in names]
    # A gradient of the gradient is wanted, or many at once (``is_grads_batched``).
    if torch.is_grad_enabled() or _is_batched(gradient):
        dx, found = _differentiable_gradient(ctx.task, gradient, x, weights, ctx.batch_statistics)
    else:
        needs_input = ctx.needs_input_grad[0]
        results = torch.ops.dpcdsl.cell_train_backward(
            gradient, x, weights, kept, ctx.task, ctx.batch_statistics, needs_input
        )
        dx = results[0] if needs_input else None
        found = results[1:] if needs_input else results
    in_turn = iter(found)
    return dx, [next(in_turn) if _is_learnt(name) else None for name in names], None, None


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return not torch.compiler.is_compiling() and bool(
        torch._C._are_functorch_transforms_active()
        or functorch.is_batchedtensor(gradient)
        or functorch.is_legacy_batchedtensor(gradient)
    )


def _differentiable_gradient(
    task: str, gradient: Tensor, x: Tensor, weights: list[Tensor], batch_statistics: list[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    known = _known(task)
    names = known.training_names
    with torch.enable_grad():
        # Aliases: where x is itself made from the weights, differentiation must stop at this call's own.
        x, *weights = (tensor.view_as(tensor) for tensor in (x, *weights))
        learnt = [weight for name, weight in zip(names, weights, strict=True) if _is_learnt(name)]
        wanted = [tensor for tensor in (x, *learnt) if tensor.requires_grad]
        out, _ = decomposed(known, x, dict(zip(names, weights, strict=True)), _batch(known, batch_statistics))
        found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True, allow_unused=True))
        dx, *rest = [next(found) if tensor.requires_grad else None for tensor in (x, *learnt)]
    return dx, rest


torch.library.register_autograd("dpcdsl::cell_train", _train_gradient, setup_context=_train_context, lib=library)
