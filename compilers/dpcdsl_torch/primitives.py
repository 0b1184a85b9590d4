"""What a device must be able to do for a plan to run on it: a handful of passes over maps.

Three implementations: :mod:`dpcdsl_torch.native` (C++ on the CPU), :mod:`dpcdsl_torch.cuda` (CUDA C++ on a GPU) and
:mod:`dpcdsl_torch.aten` (any device, any floating type, by torch's own operators). They follow the same formulas, so
that what holds of the one in double precision holds of the others.

Maps are tensors [N, C, H, W] whose channels lie side by side (``stride(1) == 1``: channels_last, or a range of channels
of such a map), unless it says otherwise. Vectors have one fp32 (fp64 for fp64 maps) value a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

__all__ = ["Affine", "Branch", "CrossEntropy", "Moments", "NormGradient", "Primitives", "Projection", "Taps"]


class Taps(NamedTuple):
    """Where a depthwise kernel reads, row by row: (y + dy[t], x + dx[t]), zero outside the map."""

    dy: tuple[int, ...]
    dx: tuple[int, ...]


class Moments(NamedTuple):
    """Mean by channel and variance (the mean of squared deviations from it), [C]."""

    mean: Tensor
    variance: Tensor


class Affine(NamedTuple):
    """``scale * x + shift`` by channel, then a ReLU if ``relu``."""

    scale: Tensor
    shift: Tensor
    relu: bool


class NormGradient(NamedTuple):
    """A normalisation backwards: its input x has the gradient ``a * g + b * (x - mean) + c``.

    g is what has passed the ReLU of ``affine``. Centred, so that nothing cancels where the mean is far from 0.
    """

    affine: Affine
    a: Tensor
    b: Tensor
    mean: Tensor
    c: Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of :meth:`Primitives.evaluate`.

    depthwise: taps, weight [taps, C], bias [C] and whether a ReLU follows; None for a plain 1x1 convolution.
    weight: prepared by :meth:`Primitives.prepare` from [filters, C]; ``filters`` and ``bias`` [filters] are its.
    out: map [N, filters, H, W] that takes the result; None if only the projection needs it.
    projection: prepared part of the projection's weight, [P, filters], for these filters; None without.
    """

    depthwise: tuple[Taps, Tensor, Tensor | None, bool] | None
    weight: Tensor
    filters: int
    bias: Tensor | None
    relu: bool
    out: Tensor | None
    projection: Tensor | None = None


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """What :meth:`Primitives.cross_entropy` sums up: weight of the label times cross-entropy of the resized logits.

    logits: map [N, classes, h, w] of any strides. labels: uint8 or int64 [N, H, W], contiguous. weights: [classes], or
    None. ignored: the label that counts for nothing. chosen: bool [N, H, W], the pixels that count, or None for all.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor | None
    ignored: int
    align_corners: bool
    chosen: Tensor | None = None


Grid: TypeAlias = Tensor


@dataclass(frozen=True, eq=False)
class Projection:
    """The projection to P filters, split over the branches; every call of ``evaluate`` adds its branches' part.

    bias: [P], added by the first call. relu: applied by the last.
    sum: fp32 (fp64) map [N, P, H, W] with what earlier calls summed up; not read by the first, nor written by the last.
    out: map [N, P, H, W] of any strides, written by the last call.
    grids: branches that were pooled, and projected at their grid's size, fp32 (fp64) maps [N, P, gh, gw]; the call
        adds their bilinear resize. Any call may bring some, the first or a later one; it may have no branch besides.
    """

    filters: int
    bias: Tensor
    relu: bool
    first: bool
    last: bool
    sum: Tensor | None
    out: Tensor
    grids: tuple[Grid, ...]
    align_corners: bool


class Primitives(Protocol):
    """The passes. Nothing is returned where ``out`` is written; gradients are added to where ``add`` is set."""

    @property
    def finds_taps(self) -> bool:
        """Whether a depthwise convolution leaves out taps outside the map by itself, at no cost."""

    @property
    def grouped_channels(self) -> int:
        """Channels of the widest map that several branches are to read in one pass (one call of ``evaluate``)."""

    def deferred(self) -> Primitives:
        """The same passes, which need not run before :meth:`flush`: they may be noted, and run one after the other.

        What they return or write is not to be read before, but by other passes.
        """

    def flush(self) -> None:
        """Run what was deferred."""

    def prepare(self, weight: Tensor, dtype: object) -> Tensor:
        """The weight [filters, depth] of a product on maps of ``dtype`` in the layout that :meth:`evaluate` reads.

        Made of torch operators alone, so that it can be traced.
        """

    def copy(self, source: Tensor, out: Tensor) -> None:
        """Any map into any map of the same shape and type: the change of memory format."""

    def evaluate(self, x: Tensor, branches: list[Branch], projection: Projection | None) -> None:
        """Branches that read x: depthwise, bias, ReLU, product, bias, ReLU; results to ``out`` and the projection."""

    def depthwise(self, x: Tensor, weight: Tensor, taps: Taps, out: Tensor, moments: bool) -> Moments | None:
        """out = depthwise convolution of x with weight [taps, C], and the moments of out (as stored)."""

    def pointwise(self, x: Tensor, before: Affine | None, weight: Tensor, out: Tensor, moments: bool) -> Moments | None:
        """out = product of the weight [filters, C] and max(scale x + shift, 0); and the moments of out (as stored)."""

    def normalisation(
        self, moments: Moments, weight: Tensor, bias: Tensor, epsilon: float, single: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(inverse, scale, shift): 1 / sqrt(variance + epsilon), and y = scale x + shift.

        single: the moments are those of one value a channel, which is its own mean. ``inverse`` is then 0, and not
        what is left of rounding the value.
        """

    def normalisation_gradient(
        self, scale: Tensor, inverse: Tensor, sums: tuple[Tensor, Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        """The factors b and c of :class:`NormGradient`; ``sums`` over ``count`` positions as :meth:`gradient_sums`."""

    def affine(self, x: Tensor, affine: Affine, out: Tensor) -> None:
        """out = scale x + shift, through the ReLU."""

    def gradient_sums(
        self, gradients: tuple[Tensor, ...], x: Tensor, affine: Affine, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sums by channel of g and of g (x - mean) inverse; g is the gradients' sum after the ReLU."""

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
        """Back through a product p = weight [filters, C] times x' = max(scale x + shift, 0).

        The gradient of p is ``norm`` of the one or two ``gradients``. dx takes (or is added) the gradient of x' after
        x's ReLU, without the factor ``scale``. Returns the gradient of the weight [filters, C] and, with
        ``statistics`` (mean, inverse) of x, the two sums of :meth:`gradient_sums` for what was written to dx.
        """

    def affine_backward(self, g: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, c: Tensor) -> None:
        """g becomes a g + b (x - mean) + c, in place."""

    def depthwise_backward(
        self, g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps, dx: Tensor | None, add: bool
    ) -> Tensor | None:
        """dx takes (or is added) the gradient of the input; needs weight. Returns that of the weight; needs x."""

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """fp32 (fp64) map [N, C, gh, gw], channels_last: the mean of each cell of a grid (adaptive average pooling)."""

    def pool_backward(self, g: Tensor, dx: Tensor, add: bool) -> None:
        """dx takes (or is added) the gradient of what :meth:`pool` averaged; g as :meth:`pool` returns."""

    def resize(self, source: Tensor, out: Tensor, align_corners: bool) -> None:
        """out = bilinear resize of an fp32 (fp64) map, channels_last."""

    def cross_entropy(self, loss: CrossEntropy, losses: Tensor | None, gradient: Tensor | None) -> Tensor:
        """The sum of the pixels' losses, how many labels are not ignored, and how many of these are no class: fp64 [3].

        losses: fp32 (fp64) [N, H, W], takes the loss of each pixel. gradient: fp32 (fp64) map like the logits,
        channels_last, takes the gradient of the sum. Pixels whose label is no class have no part in either.
        """

    def resize_backward(self, gradients: tuple[Tensor, ...], size: tuple[int, int], align_corners: bool) -> Tensor:
        """fp32 (fp64) map [N, C, *size], channels_last: the gradient of what :meth:`resize` read."""
