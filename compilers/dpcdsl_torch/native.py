"""The passes of :mod:`dpcdsl_torch.primitives` on the CPU, by the C++ kernels: fp32 and bf16 maps.

This module is the kernels' one caller, and they check nothing: what a kernel takes for granted about its arguments is
made so here, or asserted. An input whose strides a kernel cannot read is copied first. Kernels run without the GIL, in
as many threads as torch has, and come out the same in every run with the same number of threads.
"""

from __future__ import annotations

import copy
import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl_torch import memory
from dpcdsl_torch.build import Native, load
from dpcdsl_torch.plan import GROUPED_CHANNELS
from dpcdsl_torch.primitives import Affine, Branch, CrossEntropy, Moments, NormGradient, Projection, Taps
from dpcdsl_torch.structures import NO_FLOOR, Map, address_of, floor_of, map_of, vector_of

__all__ = ["DTYPES", "MOST_TAPS", "NativePrimitives", "primitives"]

#: How many taps a depthwise kernel may have here (kMostTaps of depthwise.h).
MOST_TAPS = 1024

_NOWHERE = Taps((1 << 40,), (0,))  # a tap that is outside every map

#: The types of maps.
DTYPES = frozenset({torch.float32, torch.bfloat16})


# The structures of the kernels. Pointers are plain addresses; ``kept`` holds the tensors that they point into.


class _Taps(ctypes.Structure):
    _fields_ = (("count", c_int64), ("dy", c_void_p), ("dx", c_void_p))
    kept: Any


class _Depthwise(ctypes.Structure):
    _fields_ = (("taps", _Taps), ("weight", c_void_p), ("bias", c_void_p), ("floor", c_float))
    kept: Any


class _Affine(ctypes.Structure):
    _fields_ = (("scale", c_void_p), ("shift", c_void_p), ("floor", c_float))
    kept: Any


class _NormGradient(ctypes.Structure):
    _fields_ = (("affine", _Affine), *((name, c_void_p) for name in ("a", "b", "mean", "c")))
    kept: Any


class _Branch(ctypes.Structure):
    _fields_ = (
        ("depthwise", _Depthwise),
        ("weight", c_void_p),
        ("filters", c_int64),
        ("bias", c_void_p),
        ("floor", c_float),
        ("y", Map),
        ("projection", c_void_p),
    )
    kept: Any


class _Projection(ctypes.Structure):
    _fields_ = (
        ("filters", c_int64),
        ("bias", c_void_p),
        ("floor", c_float),
        ("first", c_int32),
        ("last", c_int32),
        ("sum", Map),
        ("out", Map),
        ("grids", c_int64),
        ("grid", c_void_p),
        ("align_corners", c_int32),
    )
    kept: Any


class _CrossEntropy(ctypes.Structure):
    _fields_ = (
        ("logits", Map),
        ("labels", c_void_p),
        *(("height", c_int64), ("width", c_int64), ("bytes", c_int32), ("ignored", c_int64)),
        *(("weights", c_void_p), ("chosen", c_void_p), ("align_corners", c_int32)),
        *((name, c_void_p) for name in ("losses", "gradient", "sums")),
    )


_MapP, _DepthwiseP, _AffineP = ctypes.POINTER(Map), ctypes.POINTER(_Depthwise), ctypes.POINTER(_Affine)
_NormGradientP, _BranchP, _ProjectionP = (
    ctypes.POINTER(_NormGradient),
    ctypes.POINTER(_Branch),
    ctypes.POINTER(_Projection),
)

#: The arguments of every kernel; a number of threads follows.
_ARGUMENTS = {
    "dpc_evaluate": (_MapP, c_int64, _BranchP, _ProjectionP, c_int),
    "dpc_depthwise": (_MapP, _DepthwiseP, _MapP, c_void_p, c_void_p),
    "dpc_depthwise_backward": (_MapP, _MapP, _DepthwiseP, _MapP, c_int, c_void_p),
    "dpc_pointwise": (_MapP, _AffineP, c_void_p, _MapP, c_void_p, c_void_p),
    "dpc_pointwise_backward": (
        *(_MapP, _MapP, _MapP, _NormGradientP, _MapP, _AffineP, c_void_p, _MapP, c_int, c_void_p),
        *(c_void_p, c_void_p, c_void_p, c_void_p),
    ),
    "dpc_normalisation": (c_int64, *[c_void_p] * 4, c_float, c_int, *[c_void_p] * 3),
    "dpc_normalisation_gradient": (c_int64, *[c_void_p] * 4, c_int64, *[c_void_p] * 2),
    "dpc_affine": (_MapP, _AffineP, _MapP),
    "dpc_affine_backward": (_MapP, _MapP, c_void_p, c_void_p, c_void_p, c_void_p),
    "dpc_gradient_sums": (_MapP, _MapP, _MapP, _AffineP, c_void_p, c_void_p, c_void_p, c_void_p),
    "dpc_pool": (_MapP, _MapP),
    "dpc_pool_backward": (_MapP, _MapP, c_int),
    "dpc_resize": (_MapP, _MapP, c_int),
    "dpc_resize_backward": (_MapP, _MapP, _MapP, c_int),
    "dpc_copy": (_MapP, _MapP),
    "dpc_cross_entropy": (ctypes.POINTER(_CrossEntropy),),
    "dpc_dropout": (c_void_p, c_void_p, c_int64, c_int, c_int64, c_int64),
}


def _checked(status: int, kernel: Any, _: Any) -> None:
    if status:
        raise MemoryError(f"{kernel.__name__}: no memory for what the kernel keeps between its steps")


def _declare(library: ctypes.CDLL) -> None:
    library.dpc_has_pairs.argtypes = library.dpc_panel.argtypes = ()
    for name, arguments in _ARGUMENTS.items():
        kernel = getattr(library, name)
        kernel.argtypes = (*arguments, c_int)
        kernel.restype = c_int
        kernel.errcheck = _checked


def _is_matrix(view: Map) -> bool:
    """Whether positions are evenly apart (is_matrix of taps.h; size-1 dimensions have fitting strides already)."""
    stride_h: int = view.stride_h
    return bool(stride_h == view.w * view.stride_w and view.stride_n == view.h * stride_h)


@cache
def _taps(taps: Taps) -> _Taps:
    """Kept for good, since only addresses of it go on; a process knows few kernels."""
    count = len(taps.dy)
    assert count <= MOST_TAPS
    dy, dx = (c_int64 * count)(*taps.dy), (c_int64 * count)(*taps.dx)
    structure = _Taps(count, ctypes.addressof(dy), ctypes.addressof(dx))
    structure.kept = dy, dx
    return structure


_NO_DEPTHWISE = _Depthwise(_Taps(0, None, None), None, None, NO_FLOOR)
_NO_MAP = Map()


def _depthwise(taps: Taps, weight: Tensor | None, bias: Tensor | None, relu: bool) -> _Depthwise:
    weight = None if weight is None else vector_of(weight)
    bias = None if bias is None else vector_of(bias)
    structure = _Depthwise(_taps(taps), address_of(weight), address_of(bias), floor_of(relu))
    structure.kept = weight, bias
    return structure


def _affine(affine: Affine | None) -> _Affine:
    if affine is None:
        return _Affine(None, None, NO_FLOOR)
    scale, shift = vector_of(affine.scale), vector_of(affine.shift)
    structure = _Affine(scale.data_ptr(), shift.data_ptr(), floor_of(affine.relu))
    structure.kept = scale, shift
    return structure


def _norm_gradient(norm: NormGradient) -> _NormGradient:
    affine, factors = _affine(norm.affine), tuple(map(vector_of, norm[1:]))
    structure = _NormGradient(affine, *(factor.data_ptr() for factor in factors))
    structure.kept = affine, factors
    return structure


def _branch(branch: Branch, x: Tensor) -> _Branch:
    depthwise = _NO_DEPTHWISE
    if branch.depthwise is not None:
        taps, before, shift, relu = branch.depthwise
        # No taps at all is how the kernel knows a plain product; no tap inside the map is something else.
        depthwise = _depthwise(taps if taps.dy else _NOWHERE, before, shift, relu)
    bias = None if branch.bias is None else vector_of(branch.bias)
    out = _NO_MAP if branch.out is None else _output(branch.out, (x.shape[0], branch.filters, *x.shape[2:]), x.dtype)
    weight, projection = branch.weight, branch.projection
    assert weight.is_contiguous()
    assert weight.dtype is torch.float32 or weight.dtype is x.dtype
    assert projection is None or (projection.is_contiguous() and projection.dtype is weight.dtype)
    structure = _Branch(
        *(depthwise, weight.data_ptr(), branch.filters, address_of(bias), floor_of(branch.relu), out),
        address_of(projection),
    )
    structure.kept = depthwise, bias, weight, projection
    return structure


def _output(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, matrix: bool = False) -> Map:
    """A map that a kernel writes: where it is, since the executor reads it there."""
    view = map_of(tensor)
    assert tensor.shape == shape
    assert tensor.dtype is dtype
    assert view.stride_c == 1
    assert not matrix or _is_matrix(view)
    return view


_Sums: TypeAlias = tuple[Tensor, Tensor]


def _vectors(channels: int) -> _Sums:
    """Each its own, since an operator may return them."""
    return _flat(channels), _flat(channels)


def _flat(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _zeros(channels: int) -> _Sums:
    one, two = _vectors(channels)
    return one.zero_(), two.zero_()


def _empty(n: int, c: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty((n, c, *size), dtype=dtype, device="cpu", memory_format=torch.channels_last)


class NativePrimitives:
    """The passes on the CPU, for torch.float32 and torch.bfloat16; :class:`dpcdsl_torch.primitives.Primitives`.

    Depthwise kernels have at most :data:`MOST_TAPS` taps.
    """

    finds_taps = True
    grouped_channels = GROUPED_CHANNELS  # a block of a wider map does not stay in the cache

    def __init__(self, library: ctypes.CDLL) -> None:
        _declare(library)
        self._library = library
        self._has_pairs = bool(library.dpc_has_pairs())
        self._panel = int(library.dpc_panel())
        self._noted: list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]] | None = None

    def deferred(self) -> NativePrimitives:
        """Passes that are noted until :meth:`flush`: a kernel leaves nothing in the cache for what is between two."""
        other = copy.copy(self)
        other._noted = []
        return other

    def flush(self) -> None:
        noted, self._noted = self._noted, None if self._noted is None else []
        for kernel, arguments, _ in noted or ():
            kernel(*arguments)

    def _call(self, name: str, *arguments: Any) -> None:
        """A kernel now, or noted with all that its arguments point to; tensors go as their addresses."""
        kernel = getattr(self._library, name)
        plain = tuple(address_of(given) if isinstance(given, Tensor) else given for given in arguments)
        if self._noted is None:
            kernel(*plain, torch.get_num_threads())
        else:
            self._noted.append((kernel, (*plain, torch.get_num_threads()), arguments))

    def prepare(self, weight: Tensor, dtype: object) -> Tensor:
        """Panels of as many filters as a tile of the product has, zeros after the last: [panels, depth, panel] in fp32;
        or, for bf16 where the processor multiplies pairs, [panels, depth / 2, panel, 2] in bf16.
        """
        if dtype is torch.bfloat16 and self._has_pairs:
            return self._panels(weight.to(torch.bfloat16), 2)
        return self._panels(weight.to(torch.float32), 1)

    def _panels(self, weight: Tensor, together: int) -> Tensor:
        filters, depth = weight.shape
        wide = F.pad(weight, (0, -depth % together, 0, -filters % self._panel))
        panels = wide.reshape(-1, self._panel, wide.shape[1] // together, together)
        return panels.transpose(1, 2).contiguous()

    def copy(self, source: Tensor, out: Tensor) -> None:
        assert source.shape == out.shape
        assert source.dtype is out.dtype
        if out.numel():
            self._call("dpc_copy", map_of(source), map_of(out))

    def evaluate(self, x: Tensor, branches: list[Branch], projection: Projection | None) -> None:
        if x.shape[0] == 0:
            return
        view = self._input(x)
        parts = [_branch(branch, x) for branch in branches]
        pairs = bool(branches) and branches[0].weight.dtype is torch.bfloat16
        array: Any = (_Branch * len(parts))(*parts)
        array.kept = parts
        self._call(
            "dpc_evaluate",
            view,
            len(parts),
            array,
            None if projection is None else self._projection(projection, x),
            pairs,
        )

    def depthwise(self, x: Tensor, weight: Tensor, taps: Taps, out: Tensor, moments: bool) -> Moments | None:
        n, c, h, w = x.shape
        if n == 0:
            return Moments(*_zeros(c)) if moments else None
        y = _output(out, (n, c, h, w), x.dtype, matrix=True)
        mean, variance = _vectors(c) if moments else (None, None)
        self._call("dpc_depthwise", self._input(x), _depthwise(taps, weight, None, False), y, mean, variance)
        return None if mean is None or variance is None else Moments(mean, variance)

    def pointwise(self, x: Tensor, before: Affine | None, weight: Tensor, out: Tensor, moments: bool) -> Moments | None:
        (n, _, h, w), filters = x.shape, weight.shape[0]
        if n == 0:
            return Moments(*_zeros(filters)) if moments else None
        p = _output(out, (n, filters, h, w), x.dtype, matrix=True)
        mean, variance = _vectors(filters) if moments else (None, None)
        self._call("dpc_pointwise", self._matrix(x), _affine(before), vector_of(weight), p, mean, variance)
        return None if mean is None or variance is None else Moments(mean, variance)

    def normalisation(
        self, moments: Moments, weight: Tensor, bias: Tensor, epsilon: float, single: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels = moments.mean.shape[0]
        inverse, scale, shift = _flat(3, channels)
        vectors = (vector_of(given) for given in (moments.mean, moments.variance, weight, bias))
        self._call("dpc_normalisation", channels, *vectors, epsilon, single, inverse, scale, shift)
        return inverse, scale, shift

    def normalisation_gradient(
        self, scale: Tensor, inverse: Tensor, sums: tuple[Tensor, Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        b, c = _flat(2, scale.shape[0])
        vectors = (vector_of(given) for given in (scale, inverse, *sums))
        self._call("dpc_normalisation_gradient", scale.shape[0], *vectors, count, b, c)
        return b, c

    def affine(self, x: Tensor, affine: Affine, out: Tensor) -> None:
        if x.shape[0]:
            y = _output(out, x.shape, x.dtype, matrix=True)
            self._call("dpc_affine", self._matrix(x), _affine(affine), y)

    def gradient_sums(
        self, gradients: tuple[Tensor, ...], x: Tensor, affine: Affine, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        if x.shape[0] == 0:
            return _zeros(x.shape[1])
        one, two = self._incoming(gradients, x)
        sums = _vectors(x.shape[1])
        given = (one, two, self._matrix(x), _affine(affine), vector_of(mean), vector_of(inverse))
        self._call("dpc_gradient_sums", *given, *sums)
        return sums

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
        assert dx is not None or statistics is None
        assert p.shape[2:] == x.shape[2:]
        filters, depth = weight.shape
        if x.shape[0] == 0:
            return _flat(filters, depth).zero_(), None if statistics is None else _zeros(depth)
        one, two = self._incoming(gradients, p)
        target = None if dx is None else _output(dx, x.shape, x.dtype, matrix=True)
        of_x = (None, None) if statistics is None else (vector_of(statistics[0]), vector_of(statistics[1]))
        sums = None if statistics is None else _vectors(depth)
        dw = _flat(filters, depth)
        self._call(
            "dpc_pointwise_backward",
            *(one, two, self._matrix(p), _norm_gradient(norm), self._matrix(x), _affine(before)),
            *(vector_of(weight), target, add, dw, *of_x, *(sums or (None, None))),
        )
        return dw, sums

    def affine_backward(self, g: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, c: Tensor) -> None:
        if x.shape[0]:
            target = _output(g, x.shape, x.dtype, matrix=True)
            self._call("dpc_affine_backward", target, self._matrix(x), *map(vector_of, (a, b, mean, c)))

    def depthwise_backward(
        self, g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps, dx: Tensor | None, add: bool
    ) -> Tensor | None:
        assert dx is None or weight is not None
        assert x is None or x.shape == g.shape
        size = len(taps.dy), g.shape[1]
        if g.shape[0] == 0:
            return None if x is None else _flat(*size).zero_()
        gradient = self._input(g)
        dw = None if x is None else _flat(*size)
        target = None if dx is None else _output(dx, g.shape, g.dtype)
        self._call(
            "dpc_depthwise_backward",
            *(gradient, gradient if x is None else self._input(x), _depthwise(taps, weight, None, False)),
            *(target, add and dx is not None, dw),
        )
        return dw

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        means = _empty(x.shape[0], x.shape[1], grid, torch.float32)
        if x.shape[0]:
            self._call("dpc_pool", self._input(x), map_of(means))
        return means

    def pool_backward(self, g: Tensor, dx: Tensor, add: bool) -> None:
        if dx.shape[0]:
            assert g.dtype is torch.float32
            target = _output(dx, dx.shape, dx.dtype)
            self._call("dpc_pool_backward", self._input(g), target, add)

    def resize(self, source: Tensor, out: Tensor, align_corners: bool) -> None:
        if out.shape[0]:
            assert source.dtype is torch.float32
            target = _output(out, out.shape, out.dtype)
            self._call("dpc_resize", self._input(source), target, align_corners)

    def cross_entropy(self, loss: CrossEntropy, losses: Tensor | None, gradient: Tensor | None) -> Tensor:
        labels, weights, chosen = loss.labels, loss.weights, loss.chosen
        n, height, width = labels.shape
        assert n == loss.logits.shape[0]
        assert labels.dtype in (torch.uint8, torch.int64)
        assert labels.is_contiguous()
        weights = None if weights is None else vector_of(weights)
        assert chosen is None or (
            chosen.shape == labels.shape and chosen.dtype is torch.bool and chosen.is_contiguous()
        )
        assert losses is None or (losses.shape == labels.shape and losses.dtype is torch.float32)
        assert losses is None or losses.is_contiguous()
        if gradient is not None:
            _output(gradient, loss.logits.shape, torch.float32)
            assert gradient.is_contiguous(memory_format=torch.channels_last)
        sums = torch.zeros(3, dtype=torch.float64, device="cpu")
        if n == 0:
            return sums
        structure = _CrossEntropy(
            *(map_of(loss.logits), labels.data_ptr(), height, width, labels.itemsize, loss.ignored),
            *(address_of(weights), address_of(chosen), loss.align_corners),
            *map(address_of, (losses, gradient, sums)),
        )
        self._call("dpc_cross_entropy", structure)
        return sums

    def dropout(self, x: Tensor, kept: int, seed: int) -> Tensor:
        """``x`` without what a hash of ``seed`` and of the place in memory drops; ``kept`` of 65536 stay, scaled.

        The result is channels_last, and the places are those of such a map.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        result = memory.empty((n, c, h, w), x.dtype)
        self._call("dpc_dropout", x, result, x.numel(), x.dtype is torch.float32, kept, seed)
        return result

    def resize_backward(self, gradients: tuple[Tensor, ...], size: tuple[int, int], align_corners: bool) -> Tensor:
        n, c = gradients[0].shape[:2]
        result = _empty(n, c, size, torch.float32)
        if n:
            one, two = self._incoming(gradients, gradients[0])
            self._call("dpc_resize_backward", one, two, map_of(result), align_corners)
        return result

    def _input(self, tensor: Tensor) -> Map:
        """A map whose channels lie side by side: the tensor, or a copy of it."""
        view = map_of(tensor)
        return view if view.stride_c == 1 else self._copied(view)

    def _matrix(self, tensor: Tensor) -> Map:
        """A map whose channels lie side by side and whose positions are evenly apart: the tensor, or a copy of it."""
        view = map_of(tensor)
        return view if view.stride_c == 1 and _is_matrix(view) else self._copied(view)

    def _copied(self, view: Map) -> Map:
        target = map_of(torch.empty_like(view.kept, memory_format=torch.channels_last))
        self._call("dpc_copy", view, target)
        return target

    def _incoming(self, gradients: tuple[Tensor, ...], like: Tensor) -> tuple[Map, Map | None]:
        """One or two gradients, which autograd hands over in any strides."""
        assert all(g.shape == like.shape and g.dtype is like.dtype for g in gradients)
        one, *others = map(self._matrix, gradients)
        assert len(others) <= 1
        return one, others[0] if others else None

    def _projection(self, projection: Projection, x: Tensor) -> _Projection:
        filters, bias = projection.filters, vector_of(projection.bias)
        shape = x.shape[0], filters, *x.shape[2:]
        out = map_of(projection.out)
        assert projection.out.shape == shape
        assert projection.out.dtype is x.dtype
        total = _NO_MAP if projection.sum is None else _output(projection.sum, shape, torch.float32)
        assert projection.sum is not None or (projection.first and projection.last)
        grids = [self._input(grid) for grid in projection.grids]
        assert all(grid.kept.dtype is torch.float32 for grid in grids)
        array = (Map * len(grids))(*grids)
        structure = _Projection(
            *(filters, bias.data_ptr(), floor_of(projection.relu)),
            *(projection.first, projection.last, total, out),
            *(len(grids), ctypes.addressof(array), projection.align_corners),
        )
        structure.kept = bias, grids, array
        return structure


class _Loaded:
    """What :func:`primitives` found, once it has looked."""

    looked = False
    found: NativePrimitives | None = None


def primitives() -> NativePrimitives | None:
    """The native passes; None where there is no library (:func:`dpcdsl_torch.build.load` says why)."""
    if not _Loaded.looked:
        native = load()
        _Loaded.found = NativePrimitives(native.library) if isinstance(native, Native) else None
        _Loaded.looked = True
    return _Loaded.found
