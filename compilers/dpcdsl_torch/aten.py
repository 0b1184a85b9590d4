"""The passes of :mod:`dpcdsl_torch.primitives` by torch's own operators: any device, any floating type, any strides.

The formulas are those of the native kernels, pass by pass; autograd has no part in them. Products and convolutions are
computed in the maps' type, everything else in fp32 (fp64 for fp64 maps).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl_torch.plan import GROUPED_CHANNELS
from dpcdsl_torch.primitives import Affine, Branch, CrossEntropy, Moments, NormGradient, Projection, Taps

__all__ = ["PRIMITIVES", "AtenPrimitives"]

_POSITIONS = (0, 2, 3)


class _Kernel(NamedTuple):
    """Taps as torch's convolutions have them."""

    size: tuple[int, int]
    rate: tuple[int, int]
    padding: tuple[int, int]


def _steps(offsets: list[int]) -> int | None:
    """How far offsets are apart if they are evenly so, and reach as far down as up."""
    steps = {after - before for before, after in pairwise(offsets)}
    return next(iter(steps), 1) if len(steps) <= 1 and offsets[0] == -offsets[-1] else None


@lru_cache(maxsize=256)
def _kernel(taps: Taps) -> _Kernel | None:
    """None if no convolution of torch's reads there: an even kernel pads one side more."""
    if not taps.dy:
        return None
    rows, columns = sorted(set(taps.dy)), sorted(set(taps.dx))
    down, along = _steps(rows), _steps(columns)
    grid = [(dy, dx) for dy in rows for dx in columns]
    if down is None or along is None or grid != list(zip(taps.dy, taps.dx, strict=True)):
        return None
    return _Kernel((len(rows), len(columns)), (down, along), (rows[-1], columns[-1]))


def _overlap(offset: int, size: int) -> tuple[slice, slice]:
    """Positions whose tap is inside the map, and where their taps are."""
    first, last = max(0, -offset), max(0, min(size, size - offset))
    return slice(first, max(first, last)), slice(first + offset, max(first, last) + offset)


def _shifts(taps: Taps, h: int, w: int) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """Each tap that is inside anywhere: its number, the positions that it serves, and those that it reads."""
    found = []
    for t, (dy, dx) in enumerate(zip(*taps, strict=True)):
        if abs(dy) < h and abs(dx) < w:
            (to_y, from_y), (to_x, from_x) = _overlap(dy, h), _overlap(dx, w)
            found.append((t, (to_y, to_x), (from_y, from_x)))
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _widened(x: Tensor) -> Tensor:
    return x.to(_wide(x.dtype))


def _by_channel(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _normalised(x: Tensor, affine: Affine, relu: bool) -> Tensor:
    value = _widened(x) * _by_channel(affine.scale) + _by_channel(affine.shift)
    return value.relu_() if relu else value


def _activated(x: Tensor, before: Affine | None) -> Tensor:
    return x if before is None else _normalised(x, before, before.relu).to(x.dtype)


def _passed(gradient: Tensor, value: Tensor, relu: bool) -> Tensor:
    """The gradient where a ReLU lets the value through: above 0, and NaN."""
    return gradient.masked_fill(value <= 0, 0) if relu else gradient


def _sum(gradients: tuple[Tensor, ...]) -> Tensor:
    one, *others = map(_widened, gradients)
    return sum(others, one)


def _moments(out: Tensor) -> Moments:
    if out.numel() == 0:
        nothing = torch.zeros(out.shape[1], dtype=_wide(out.dtype), device=out.device)
        return Moments(nothing, torch.zeros_like(nothing))
    variance, mean = torch.var_mean(_widened(out), _POSITIONS, correction=0)
    return Moments(mean, variance)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype)[:, :, None, None], None if bias is None else bias.to(x.dtype))


def _convolved(x: Tensor, weight: Tensor, taps: Taps, bias: Tensor | None) -> Tensor:
    kernel = _kernel(taps)
    if kernel is not None:
        bias = None if bias is None else bias.to(x.dtype)
        square = _square(weight, kernel, x.dtype)
        return F.conv2d(x, square, bias, padding=kernel.padding, dilation=kernel.rate, groups=x.shape[1])
    total = torch.zeros_like(x, dtype=_wide(x.dtype))
    for t, to, source in _shifts(taps, *x.shape[2:]):
        total[..., *to] += _by_channel(weight[t]) * x[..., *source]
    return (total if bias is None else total + _by_channel(bias)).to(x.dtype)


def _square(weight: Tensor, kernel: _Kernel, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).t().reshape(weight.shape[1], 1, *kernel.size)


def _convolution_gradients(
    g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps, kernel: _Kernel
) -> tuple[Tensor | None, Tensor | None]:
    """Of the input and of the weight [taps, C]; torch wants both in any case, and looks at the sizes of one."""
    size = len(taps.dy), g.shape[1]
    square = _square(g.new_empty(size) if weight is None else weight, kernel, g.dtype)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *(g, g if x is None else x, square, None, (1, 1), kernel.padding, kernel.rate, False, (0, 0), g.shape[1]),
        (weight is not None, x is not None, False),
    )
    return dx, None if dw is None else dw.reshape(size[1], size[0]).t()


def _shifted_gradients(
    g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps
) -> tuple[Tensor | None, Tensor | None]:
    dtype = _wide(g.dtype)
    dx = None if weight is None else torch.zeros_like(g, dtype=dtype)
    dw = None if x is None else g.new_zeros((len(taps.dy), g.shape[1]), dtype=dtype)
    for t, to, source in _shifts(taps, *g.shape[2:]):
        if dx is not None and weight is not None:
            dx[..., *source] += _by_channel(weight[t]) * g[..., *to]
        if dw is not None and x is not None:
            dw[t] = (_widened(x[..., *source]) * g[..., *to]).sum(_POSITIONS)
    return dx, dw


def _written(gradient: Tensor, dx: Tensor, add: bool) -> None:
    dx.copy_(gradient + dx if add else gradient)


class AtenPrimitives:
    """The passes by torch's operators; :class:`dpcdsl_torch.primitives.Primitives`."""

    finds_taps = False
    grouped_channels = GROUPED_CHANNELS

    def deferred(self) -> AtenPrimitives:
        return self

    def flush(self) -> None:
        pass

    def prepare(self, weight: Tensor, dtype: object) -> Tensor:
        """The weight [filters, depth] itself, in the maps' type."""
        assert isinstance(dtype, torch.dtype)
        return weight.to(dtype)

    def copy(self, source: Tensor, out: Tensor) -> None:
        out.copy_(source)

    def evaluate(self, x: Tensor, branches: list[Branch], projection: Projection | None) -> None:
        total = None if projection is None else self._begun(projection, x)
        for branch in branches:
            value = x
            if branch.depthwise is not None:
                taps, weight, bias, relu = branch.depthwise
                value = _convolved(x, weight, taps, bias)
                value = value.relu_() if relu else value
            value = _product(value, branch.weight, branch.bias)
            value = value.relu_() if branch.relu else value
            if branch.out is not None:
                branch.out.copy_(value)
            if total is not None and branch.projection is not None:
                total += _product(value, branch.projection)
        if projection is None or total is None:
            return
        if projection.last:
            projection.out.copy_(total.relu_() if projection.relu else total)
        elif projection.sum is not None:
            projection.sum.copy_(total)

    def _begun(self, projection: Projection, x: Tensor) -> Tensor:
        """A projection's sum before a call adds its part; its own memory."""
        n, _, h, w = x.shape
        if projection.first:
            total = _by_channel(projection.bias.to(_wide(x.dtype))).repeat(n, 1, h, w)
        else:
            assert projection.sum is not None
            total = projection.sum.clone()
        for grid in projection.grids:
            total += F.interpolate(grid, (h, w), mode="bilinear", align_corners=projection.align_corners)
        return total

    def depthwise(self, x: Tensor, weight: Tensor, taps: Taps, out: Tensor, moments: bool) -> Moments | None:
        out.copy_(_convolved(x, weight, taps, None))
        return _moments(out) if moments else None

    def pointwise(self, x: Tensor, before: Affine | None, weight: Tensor, out: Tensor, moments: bool) -> Moments | None:
        out.copy_(_product(_activated(x, before), weight))
        return _moments(out) if moments else None

    def normalisation(
        self, moments: Moments, weight: Tensor, bias: Tensor, epsilon: float, single: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        inverse = torch.zeros_like(moments.variance) if single else torch.rsqrt(moments.variance + epsilon)
        scale = weight * inverse
        return inverse, scale, torch.addcmul(bias, moments.mean, scale, value=-1)

    def normalisation_gradient(
        self, scale: Tensor, inverse: Tensor, sums: tuple[Tensor, Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        plain, by_value = sums
        share = scale * (-1 / count)
        return share * inverse * by_value, share * plain

    def affine(self, x: Tensor, affine: Affine, out: Tensor) -> None:
        out.copy_(_normalised(x, affine, affine.relu))

    def gradient_sums(
        self, gradients: tuple[Tensor, ...], x: Tensor, affine: Affine, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        g = _passed(_sum(gradients), _normalised(x, affine, False), affine.relu)
        return self._sums(g, x, mean, inverse)

    def _sums(self, g: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        standard = (_widened(x) - _by_channel(mean)) * _by_channel(inverse)
        return g.sum(_POSITIONS), (g * standard).sum(_POSITIONS)

    def pointwise_backward(
        self,
        gradients: tuple[Tensor, ...],
        p: Tensor,
        norm: NormGradient,
        x: Tensor,
        before: Affine | None,
        weight: Tensor,
        dx: Tensor | None,
        add: bool,
        statistics: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        g = _passed(_sum(gradients), _normalised(p, norm.affine, False), norm.affine.relu)
        g = _by_channel(norm.a) * g + _by_channel(norm.b) * (_widened(p) - _by_channel(norm.mean)) + _by_channel(norm.c)
        value = _activated(x, before)
        gradient, dw, _ = torch.ops.aten.convolution_backward(
            *(g.to(x.dtype), value, weight.to(x.dtype)[:, :, None, None], None),
            *((1, 1), (0, 0), (1, 1), False, (0, 0), 1, (dx is not None, True, False)),
        )
        dw = dw.reshape(weight.shape).to(_wide(x.dtype))
        if dx is None:
            return dw, None
        _written(_passed(gradient, value, before is not None and before.relu), dx, add)
        return dw, None if statistics is None else self._sums(_widened(dx), x, *statistics)

    def affine_backward(self, g: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, c: Tensor) -> None:
        away = _widened(x) - _by_channel(mean)
        g.copy_(_by_channel(a) * _widened(g) + _by_channel(b) * away + _by_channel(c))

    def depthwise_backward(
        self, g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps, dx: Tensor | None, add: bool
    ) -> Tensor | None:
        kernel = _kernel(taps)
        needed = None if dx is None else weight
        if kernel is None:
            gradient, dw = _shifted_gradients(g, x, needed, taps)
        else:
            gradient, dw = _convolution_gradients(g, x, needed, taps, kernel)
        if dx is not None and gradient is not None:
            _written(gradient, dx, add)
        return None if dw is None else dw.to(_wide(g.dtype)).contiguous()

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        means = F.adaptive_avg_pool2d(_widened(x), grid)
        return means.contiguous(memory_format=torch.channels_last)

    def pool_backward(self, g: Tensor, dx: Tensor, add: bool) -> None:
        if dx.shape[0]:
            like = torch.empty_like(dx, dtype=g.dtype)  # only its size matters
            _written(torch.ops.aten._adaptive_avg_pool2d_backward(g, like), dx, add)

    def resize(self, source: Tensor, out: Tensor, align_corners: bool) -> None:
        if out.shape[0]:
            out.copy_(F.interpolate(source, tuple(out.shape[2:]), mode="bilinear", align_corners=align_corners))

    def cross_entropy(self, loss: CrossEntropy, losses: Tensor | None, gradient: Tensor | None) -> Tensor:
        logits, size = _widened(loss.logits), tuple(loss.labels.shape[1:])
        classes = logits.shape[1]
        labels = loss.labels.long()
        counted = labels != loss.ignored
        known = counted & (labels >= 0) & (labels < classes)
        sums = torch.stack([known.new_zeros((), dtype=torch.long), counted.sum(), (counted & ~known).sum()]).double()
        if logits.shape[0] == 0:
            return sums
        taken = known if loss.chosen is None else known & loss.chosen
        index = torch.where(known, labels, 0)
        weights = taken.to(logits.dtype)
        if loss.weights is not None:
            weights = torch.where(taken, loss.weights.to(logits.dtype)[index], 0)
        large = F.interpolate(logits, size, mode="bilinear", align_corners=loss.align_corners).log_softmax(1)
        each = torch.where(taken, -large.gather(1, index[:, None])[:, 0] * weights, 0)
        sums[0] = each.sum(dtype=torch.float64)
        if losses is not None:
            losses.copy_(each)
        if gradient is not None:
            slope = large.exp()
            slope.scatter_add_(1, index[:, None], torch.full_like(slope[:, :1], -1))
            slope = torch.where(taken[:, None], slope * weights[:, None], 0)
            found = torch.ops.aten.upsample_bilinear2d_backward(
                slope, size, tuple(logits.shape), loss.align_corners, None, None
            )
            gradient.copy_(found)
        return sums

    def resize_backward(self, gradients: tuple[Tensor, ...], size: tuple[int, int], align_corners: bool) -> Tensor:
        g = _sum(gradients)
        shape = (*g.shape[:2], *size)
        if g.shape[0] == 0:
            return g.new_empty(shape).contiguous(memory_format=torch.channels_last)
        gradient: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
            g, tuple(g.shape[2:]), shape, align_corners, None, None
        )
        return gradient.contiguous(memory_format=torch.channels_last)


PRIMITIVES = AtenPrimitives()
