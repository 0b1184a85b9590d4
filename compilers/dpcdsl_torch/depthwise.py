"""``dpcdsl::depthwise``: a dilated depthwise convolution, and its two gradients, each an operator of its own.

The convolution is linear in the map and in the weight. So each of the three operators has the other two as its
gradient, and derivatives of any order come out of the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl.layers import DepthwiseConvolution
from dpcdsl_torch import aten, cuda, native
from dpcdsl_torch.maps import Maps, side_by_side
from dpcdsl_torch.ops import define, empty_map, library
from dpcdsl_torch.primitives import Primitives, Taps

__all__ = ["depthwise_conv2d"]

_FARTHEST = 2**31  # a tap farther away is a mistake, and would overflow somewhere


def depthwise_conv2d(x: Tensor, weight: Tensor, rate: Sequence[int] = (1, 1)) -> Tensor:
    """Dilated depthwise convolution with SAME padding and stride 1: no bias, normalisation or ReLU.

    x: map [N, C, H, W], any strides, any floating type; N may be 0.
    weight: [C, 1, kh, kw], as of ``nn.Conv2d(C, C, (kh, kw), groups=C)``; type and device of x.
    rate: (down, along), each at least 1.

    Returns a map of x's shape, channels_last if x's channels lie side by side, else contiguous. The smaller half of the
    padding comes before the map, as TensorFlow and torch's ``padding="same"`` have it. Under autocast, computed in its
    type, as ``F.conv2d`` is. Differentiable any number of times, and under :func:`torch.vmap`; not under
    ``torch.func.grad``, which refuses (torch 2.15) every operator whose gradient is registered.

    It is the first half of the paper's separable atrous convolution (:class:`dpcdsl.layers.DepthwiseConvolution`): by
    the C++ kernels for fp32 and bf16 on the CPU and the CUDA ones for these and fp16 on a GPU, which visit only taps
    that are inside the map; else by ATen.

    Raises :class:`DpcError` (DPC062) on arguments that do not fit together.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = (t if t.dtype is torch.float64 else t.to(dtype) for t in (x, weight))
    result: Tensor = torch.ops.dpcdsl.depthwise(x, weight, tuple(rate))
    return result


# What the arguments must be: nothing reaches the kernels unchecked.


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DpcError.of("DPC062", f"depthwise: {message}", hint=hint)


def _check_map(x: Tensor, name: str) -> None:
    if x.dim() != 4:
        _refuse(f"the {name} has {x.dim()} dimensions, and not the four of a map [N, C, H, W]")
    if not x.is_floating_point():
        _refuse(f"the {name} is of {x.dtype}, which is no floating type")
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        _refuse(f"the {name} of shape {_shape(x)} is empty", "only N may be 0")


def _check_alike(one: Tensor, name: str, other: Tensor, of: str) -> None:
    if one.dtype is not other.dtype:
        _refuse(f"the {name} is of {one.dtype}, the {of} of {other.dtype}", "convert one of them")
    if one.device != other.device:
        _refuse(f"the {name} is on {one.device}, the {of} on {other.device}", "move one of them")


def _check_kernel(kernel: Sequence[int], rate: Sequence[int]) -> None:
    if len(kernel) != 2 or kernel[0] < 1 or kernel[1] < 1:
        _refuse(f"there is no kernel of size {tuple(kernel)}", "two whole numbers from 1 up")
    if len(rate) != 2 or rate[0] < 1 or rate[1] < 1:
        _refuse(f"there is no rate {tuple(rate)}", "two whole numbers from 1 up: down and along")
    if kernel[0] * rate[0] >= _FARTHEST or kernel[1] * rate[1] >= _FARTHEST:
        _refuse(f"a kernel of size {tuple(kernel)} at rate {tuple(rate)} reaches too far")


def _check_weight(x: Tensor, name: str, weight: Tensor, rate: Sequence[int]) -> None:
    _check_map(x, name)
    if weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1:
        _refuse(
            f"the weight is of shape {_shape(weight)}, and the {name} has {x.shape[1]} channels",
            f"({x.shape[1]}, 1, kh, kw)",
        )
    _check_alike(weight, "weight", x, name)
    _check_kernel(weight.shape[2:], rate)


def _check_maps(gradient: Tensor, x: Tensor, kernel: Sequence[int], rate: Sequence[int]) -> None:
    _check_map(gradient, "gradient")
    if gradient.shape != x.shape:
        _refuse(f"the gradient is of shape {_shape(gradient)}, the map of {_shape(x)}", "they are of one shape")
    _check_alike(gradient, "gradient", x, "map")
    _check_kernel(kernel, rate)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


# How it is computed


@lru_cache(maxsize=256)
def _taps(kernel: tuple[int, int], rate: tuple[int, int]) -> Taps:
    layer = DepthwiseConvolution("depthwise", kernel, rate)
    rows, columns = layer.taps(0), layer.taps(1)
    return Taps(tuple(y for y in rows for _ in columns), tuple(x for _ in rows for x in columns))


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    return int(numbers[0]), int(numbers[1])


def _inside(kernel: Sequence[int], rate: Sequence[int], x: Tensor) -> tuple[Primitives, Taps, list[int] | None]:
    """The primitives, the taps that see more than padding somewhere on the map, and which they are; None for all.

    A tap outside is not only slow: ATen pads a map by how far its taps reach. The kernels leave it out by themselves.
    """
    taps, (height, width) = _taps(_pair(kernel), _pair(rate)), x.shape[2:]
    primitives = _primitives(x, taps)
    if primitives.finds_taps:
        return primitives, taps, None
    chosen = [t for t, (y, x) in enumerate(zip(*taps, strict=True)) if abs(y) < height and abs(x) < width]
    if len(chosen) == len(taps.dy):
        return primitives, taps, None
    return primitives, Taps(tuple(taps.dy[t] for t in chosen), tuple(taps.dx[t] for t in chosen)), chosen


def _matrix(weight: Tensor, chosen: list[int] | None) -> Tensor:
    """The weight as [taps, C]."""
    matrix = weight.reshape(weight.shape[0], -1).t()
    return matrix if chosen is None else matrix[chosen]


def _primitives(x: Tensor, taps: Taps) -> Primitives:
    if x.device.type == "cpu" and x.dtype in native.DTYPES and len(taps.dy) <= native.MOST_TAPS:
        return native.primitives() or aten.PRIMITIVES
    if x.device.type == "cuda" and x.dtype in cuda.DTYPES and len(taps.dy) <= cuda.MOST_TAPS:
        return cuda.primitives(x.device, required=False) or aten.PRIMITIVES
    return aten.PRIMITIVES


def _computed(like: Tensor, primitives: Primitives, compute: Callable[[Tensor], Any]) -> Tensor:
    """A map of ``like``'s shape, type and format, written by ``compute``: for native kernels, a channels_last one."""
    channels_last = side_by_side(like)
    if primitives is aten.PRIMITIVES:
        result = empty_map(like, like.shape, like.dtype, channels_last)
        compute(result)
        return result
    n, c, h, w = like.shape
    whole = Maps(like).empty(c)
    compute(whole)
    if channels_last:
        return whole.as_strided((n, c, h, w), (h * w * c, 1, w * c, c))  # the strides that the fake has, also of size 1
    result = empty_map(like, like.shape, like.dtype, False)
    primitives.copy(whole, result)
    return result


# The operators


def _depthwise(x: Tensor, weight: Tensor, rate: Sequence[int]) -> Tensor:
    _check_weight(x, "map", weight, rate)
    primitives, taps, chosen = _inside(weight.shape[2:], rate, x)
    return _computed(x, primitives, lambda y: primitives.depthwise(x, _matrix(weight, chosen), taps, y, False))


def _depthwise_fake(x: Tensor, weight: Tensor, rate: Sequence[int]) -> Tensor:
    _check_weight(x, "map", weight, rate)
    return empty_map(x, x.shape, x.dtype, side_by_side(x))


def _backward_input(gradient: Tensor, weight: Tensor, rate: Sequence[int]) -> Tensor:
    _check_weight(gradient, "gradient", weight, rate)
    primitives, taps, chosen = _inside(weight.shape[2:], rate, gradient)
    matrix = _matrix(weight, chosen)
    return _computed(
        gradient, primitives, lambda dx: primitives.depthwise_backward(gradient, None, matrix, taps, dx, False)
    )


def _backward_input_fake(gradient: Tensor, weight: Tensor, rate: Sequence[int]) -> Tensor:
    _check_weight(gradient, "gradient", weight, rate)
    return empty_map(gradient, gradient.shape, gradient.dtype, side_by_side(gradient))


def _backward_weight(gradient: Tensor, x: Tensor, kernel: Sequence[int], rate: Sequence[int]) -> Tensor:
    _check_maps(gradient, x, kernel, rate)
    primitives, taps, chosen = _inside(kernel, rate, x)
    dw = primitives.depthwise_backward(gradient, x, None, taps, None, False)
    assert dw is not None
    channels = x.shape[1]
    result = x.new_empty((channels, 1, *kernel)) if chosen is None else x.new_zeros((channels, 1, *kernel))
    matrix = result.view(channels, -1)
    if chosen is None:
        matrix.copy_(dw.t())
    else:
        matrix[:, chosen] = dw.t().to(x.dtype)
    return result


def _backward_weight_fake(gradient: Tensor, x: Tensor, kernel: Sequence[int], rate: Sequence[int]) -> Tensor:
    _check_maps(gradient, x, kernel, rate)
    return x.new_empty((x.shape[1], 1, *kernel))


define("depthwise(Tensor x, Tensor weight, int[2] rate) -> Tensor", _depthwise, _depthwise_fake)
define(
    "depthwise_backward_input(Tensor gradient, Tensor weight, int[2] rate) -> Tensor",
    _backward_input,
    _backward_input_fake,
)
define(
    "depthwise_backward_weight(Tensor gradient, Tensor x, SymInt[2] kernel, int[2] rate) -> Tensor",
    _backward_weight,
    _backward_weight_fake,
)


# Their gradients. With <h, .> the sum of products with the incoming gradient h:
#   <h, depthwise(x, w)> = <depthwise_backward_input(h, w), x> = <depthwise_backward_weight(h, x), w>


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    one, two, *rest = inputs
    ctx.rate = rest[-1]
    ctx.save_for_backward(one, two)


def _depthwise_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    ops, needed = torch.ops.dpcdsl, ctx.needs_input_grad
    dx = ops.depthwise_backward_input(gradient, weight, ctx.rate) if needed[0] else None
    dw = ops.depthwise_backward_weight(gradient, x, weight.shape[2:], ctx.rate) if needed[1] else None
    return dx, dw, None


def _backward_input_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    first, weight = ctx.saved_tensors
    ops, needed = torch.ops.dpcdsl, ctx.needs_input_grad
    dfirst = ops.depthwise(gradient, weight, ctx.rate) if needed[0] else None
    dw = ops.depthwise_backward_weight(first, gradient, weight.shape[2:], ctx.rate) if needed[1] else None
    return dfirst, dw, None


def _backward_weight_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    first, x = ctx.saved_tensors
    ops, needed = torch.ops.dpcdsl, ctx.needs_input_grad
    dfirst = ops.depthwise(x, gradient, ctx.rate) if needed[0] else None
    dx = ops.depthwise_backward_input(first, gradient, ctx.rate) if needed[1] else None
    return dfirst, dx, None, None


for _name, _gradient in (
    ("depthwise", _depthwise_gradient),
    ("depthwise_backward_input", _backward_input_gradient),
    ("depthwise_backward_weight", _backward_weight_gradient),
):
    torch.library.register_autograd(f"dpcdsl::{_name}", _gradient, setup_context=_context, lib=library)


# Under vmap, a dimension more is folded into the images, or into the channels where the weight has it too.


def _outermost(tensor: Tensor, at: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if at is None else tensor.movedim(at, 0)


def _into_channels(x: Tensor) -> Tensor:
    """[B, N, C, H, W] as [N, B C, H, W]."""
    return x.transpose(0, 1).flatten(1, 2)


def _vmapped(name: str) -> Callable[..., tuple[Tensor, int]]:
    def run(
        info: Any, dims: tuple[int | None, ...], x: Tensor, weight: Tensor, rate: Sequence[int]
    ) -> tuple[Tensor, int]:
        operator, size = getattr(torch.ops.dpcdsl, name), info.batch_size
        whole = _outermost(x, dims[0], size)
        if dims[1] is None:
            return operator(whole.flatten(0, 1), weight, rate).unflatten(0, (size, -1)), 0
        wide = operator(_into_channels(whole), _outermost(weight, dims[1], size).flatten(0, 1), rate)
        return wide.unflatten(1, (size, -1)), 1

    return run


def _vmapped_weight(
    info: Any, dims: tuple[int | None, ...], gradient: Tensor, x: Tensor, kernel: Sequence[int], rate: Sequence[int]
) -> tuple[Tensor, int]:
    maps = (_into_channels(_outermost(t, at, info.batch_size)) for t, at in zip((gradient, x), dims, strict=False))
    wide = torch.ops.dpcdsl.depthwise_backward_weight(*maps, kernel, rate)
    return wide.unflatten(0, (info.batch_size, -1)), 0


for _name in ("depthwise", "depthwise_backward_input"):
    torch.library.register_vmap(f"dpcdsl::{_name}", _vmapped(_name), lib=library)
torch.library.register_vmap("dpcdsl::depthwise_backward_weight", _vmapped_weight, lib=library)
