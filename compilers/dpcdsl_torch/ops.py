"""The operators ``dpcdsl::*``: schema, shapes, implementation and gradient, side by side.

They are registered with the low-level ``torch.library.Library``: the ``custom_op`` decorator would import
``torch._dynamo``, and with it Triton, at its first use.

``dpcdsl::cell``, ``cell_train`` and ``cell_train_backward`` run a :class:`~dpcdsl_torch.task.Task`, which is their text
argument. ``dpcdsl::depthwise`` and its two gradients are a dilated depthwise convolution alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpcdsl_torch.arguments import (
    check_arguments,
    check_kept,
    evaluation_weights,
    known_task,
    refuse,
    training_weights,
)
from dpcdsl_torch.decomposition import decomposed
from dpcdsl_torch.evaluation import run_evaluation
from dpcdsl_torch.maps import side_by_side
from dpcdsl_torch.task import Task
from dpcdsl_torch.training import kept_shapes, run_backward, run_training

__all__ = ["define", "empty_map", "library"]

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


# dpcdsl::cell


def _cell(x: Tensor, weights: list[Tensor], task: str) -> Tensor:
    known = known_task(task)
    check_arguments(known, x, weights, evaluation_weights(task, x.device, x.dtype))
    return run_evaluation(known, x, dict(zip(known.evaluation_names, weights, strict=True)))


def _cell_fake(x: Tensor, weights: list[Tensor], task: str) -> Tensor:
    shape = (x.shape[0], known_task(task).out_channels, x.shape[2], x.shape[3])
    return empty_map(x, shape, x.dtype, side_by_side(x))


define("cell(Tensor x, Tensor[] weights, str task) -> Tensor", _cell, _cell_fake)


# dpcdsl::cell_train: the concatenation, and what is kept for the gradient and for running statistics


def _train(x: Tensor, weights: list[Tensor], task: str, batch_statistics: list[bool]) -> list[Tensor]:
    known = known_task(task)
    if known.projection is not None:
        refuse("a task with a projection to train", "a projection is trained as a task of its own")
    check_arguments(known, x, weights, training_weights(task))
    return run_training(
        known, x, dict(zip(known.training_names, weights, strict=True)), _batch(known, batch_statistics)
    )


def _train_fake(x: Tensor, weights: list[Tensor], task: str, batch_statistics: list[bool]) -> list[Tensor]:
    return [empty_map(x, shape, dtype) for shape, dtype in kept_shapes(known_task(task), x.shape, x.dtype)]


def _train_backward(
    gradient: Tensor,
    x: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    task: str,
    batch_statistics: list[bool],
    needs_input: bool,
) -> list[Tensor]:
    known = known_task(task)
    check_arguments(known, x, weights, training_weights(task))
    check_kept(x, gradient, kept, known)
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
    names = known_task(task).training_names
    learnt = [weight.new_empty(weight.shape) for name, weight in zip(names, weights, strict=True) if _is_learnt(name)]
    return [empty_map(x, x.shape, x.dtype), *learnt] if needs_input else learnt


def _batch(task: Task, batch_statistics: list[bool]) -> frozenset[str]:
    names = [name for name, _ in task.convolutions]
    if len(batch_statistics) != len(names):
        refuse(f"{len(batch_statistics)} choices of statistics for {len(names)} convolutions")
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
    names = known_task(ctx.task).training_names
    learnt = [weight for name, weight in zip(names, weights, strict=True) if _is_learnt(name)]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    # Not the running statistics: they are about to be written. What was used of them is in the output.
    # The result is kept only where a branch reads another's, so that elsewhere it may be written in place.
    kept = output if any(form.input for form in known_task(ctx.task).branches) else output[1:]
    ctx.save_for_backward(x, *learnt, *kept)


def _train_gradient(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    task = known_task(ctx.task)
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
    known = known_task(task)
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
