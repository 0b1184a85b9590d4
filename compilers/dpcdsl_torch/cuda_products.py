"""Launches of the kernel of products (product.cu): what it is told, and how its work is shared among blocks.

:class:`Launch` gathers the inputs and results of products that run together; :func:`tiling` is the one place where the
shape of a launch is decided, from sizes alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl_torch.launch import Kernels
from dpcdsl_torch.primitives import Affine, Taps
from dpcdsl_torch.structures import NO_FLOOR, Map, address_of, floor_of, vector_of

__all__ = [
    "ACCESS",
    "CHUNK_BYTES",
    "MOST_PARTS",
    "MOST_TAPS",
    "NAMES",
    "ROWS",
    "THREADS",
    "Launch",
    "above",
    "arithmetic",
    "is_aligned",
    "offsets",
    "positions",
    "tiling",
]

#: How many taps a depthwise kernel may have here (kMostTaps of device.cuh).
MOST_TAPS = 1024

#: The types of maps, as the kernels' names have them.
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

#: Bytes of an access.
ACCESS = 16

# Constants of the kernels, by the same names: matrix.cuh, product.cu.
THREADS, ROWS, CHUNK_BYTES = 256, 64, 64
MOST_PARTS, STRIDE, BAND, GROUP = 8, 80, 16, 4


class _Source(ctypes.Structure):
    _fields_ = (
        ("x", Map),
        ("weight", c_void_p),
        ("depth", c_int64),
        *((name, c_void_p) for name in ("scale", "shift")),
        *((name, c_int32) for name in ("is_depthwise", "first_tap", "taps")),
        *((name, c_void_p) for name in ("depthwise", "bias")),
        ("floor", c_float),
        ("aligned", c_int32),
    )


class _Target(ctypes.Structure):
    _fields_ = (
        ("y", Map),
        *((name, c_int32) for name in ("first_source", "sources", "first_grid", "grids")),
        ("bias", c_void_p),
        ("more", Map),
        ("mask", Map),
        *((name, c_void_p) for name in ("mask_scale", "mask_shift")),
        ("floor", c_float),
        *((name, c_void_p) for name in ("mean", "deviations", "sums", "center", "inverse")),
        ("aligned", c_int32),
    )


class _Products(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("tiles", "parts", "share", "align_corners")),
        ("partial", c_void_p),
        ("source", _Source * MOST_PARTS),
        ("target", _Target * MOST_PARTS),
        ("grid", Map * MOST_PARTS),
        ("dy", c_int32 * MOST_TAPS),
        ("dx", c_int32 * MOST_TAPS),
    )


def positions(view: Map) -> int:
    count: int = view.n * view.h * view.w
    if count >= 2**31:
        raise DpcError.of(
            "DPC062", f"a map of {count} positions", hint="the CUDA kernels take less than 2^31: split it"
        )
    return count


def above(number: int, step: int) -> int:
    return -(-number // step)


def is_aligned(views: Sequence[Map], vectors: Sequence[Tensor | None], together: int) -> bool:
    """Whether ``together`` channels side by side are whole accesses, in every map and vector."""
    for view in views:
        bytes_each = view.kept.itemsize
        strides = (view.stride_n, view.stride_h, view.stride_w)
        if view.c % together or (view.data or 0) % ACCESS or any(s * bytes_each % ACCESS for s in strides):
            return False
    return all(vector is None or vector.data_ptr() % ACCESS == 0 for vector in vectors)


def offsets(offsets: tuple[int, ...], sign: int = 1) -> list[int]:
    """As 32 bits have them: what is farther away is outside every map, whichever side it is on."""
    most = 2**30
    return [sign * max(-most, min(most, offset)) for offset in offsets]


class Launch:
    """Products of positions alike that run together: sources, then their target, and so on."""

    def __init__(self, kernels: Kernels, dtype: torch.dtype, align_corners: bool = False) -> None:
        self._kernels, self._dtype = kernels, dtype
        self._all = _Products(align_corners=align_corners)
        self._sources = self._targets = self._grids = self._taps = self._first = 0
        self._kept: list[Any] = []

    def has_room(self, taps: Taps | None) -> bool:
        """For one more source with these taps, and its target."""
        return self._sources < MOST_PARTS and self._taps + len(taps.dy if taps else ()) <= MOST_TAPS

    def source(
        self,
        x: Map,
        weight: Tensor,
        depthwise: tuple[Taps, Tensor, Tensor | None, bool] | None,
        before: Affine | None = None,
    ) -> None:
        assert weight.is_contiguous()
        assert weight.dtype is self._dtype is x.kept.dtype
        assert weight.shape[1] * weight.itemsize % ACCESS == 0
        weight = weight if weight.data_ptr() % ACCESS == 0 else weight.clone()
        source = self._all.source[self._sources]
        source.x, source.weight, source.depth, source.floor = x, weight.data_ptr(), weight.shape[1], NO_FLOOR
        vectors: tuple[Tensor | None, ...] = ()
        if depthwise is not None:
            taps, matrix, bias, relu = depthwise
            vectors = matrix, bias = vector_of(matrix), None if bias is None else vector_of(bias)
            end = self._taps + len(taps.dy)
            self._all.dy[self._taps : end], self._all.dx[self._taps : end] = offsets(taps.dy), offsets(taps.dx)
            source.is_depthwise, source.first_tap, source.taps = True, self._taps, len(taps.dy)
            source.depthwise, source.bias, source.floor = matrix.data_ptr(), address_of(bias), floor_of(relu)
            self._taps = end
        elif before is not None:
            vectors = scale, shift = vector_of(before.scale), vector_of(before.shift)
            source.scale, source.shift, source.floor = scale.data_ptr(), shift.data_ptr(), floor_of(before.relu)
        source.aligned = is_aligned((x,), vectors, ACCESS // self._dtype.itemsize)
        self._kept += [x, weight, vectors]
        self._sources += 1

    def target(
        self,
        y: Map,
        bias: Tensor | None,
        relu: bool,
        *,
        more: Map | None = None,
        grids: Sequence[Map] = (),
        mask: Map | None = None,
        masked_by: Affine | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        sums: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Where the product of the sources since the last target goes, and by what way (Target of product.cu)."""
        target = self._all.target[self._targets]
        vectors = [None if vector is None else vector_of(vector) for vector in (bias, *(masked_by or ())[:2])]
        target.y, target.floor, target.bias = y, floor_of(relu), address_of(vectors[0])
        target.first_source, target.sources = self._first, self._sources - self._first
        target.first_grid, target.grids = self._grids, len(grids)
        for grid in grids:
            assert grid.kept.dtype is torch.float32
            self._all.grid[self._grids] = grid
            self._grids += 1
        if more is not None:
            target.more = more
        if mask is not None:
            target.mask = mask
        if masked_by is not None:
            _, target.mask_scale, target.mask_shift = map(address_of, vectors)
        if moments is not None:
            target.mean, target.deviations = map(address_of, moments)
        if sums is not None:
            partial, center, inverse = sums[0], vector_of(sums[1]), vector_of(sums[2])
            target.sums, target.center, target.inverse = map(address_of, (partial, center, inverse))
            self._kept += [center, inverse]
        maps = [view for view in (y, more, mask) if view is not None]
        target.aligned = is_aligned(maps, vectors, GROUP)
        self._kept += [y, grids, more, mask, vectors]
        self._first = self._sources
        self._targets += 1

    def run(self) -> None:
        if not self._targets:
            return
        every = self._all
        targets = every.target[: self._targets]
        y, name = targets[0].y, arithmetic(self._dtype)
        chunk = CHUNK_BYTES // self._dtype.itemsize
        rows = above(positions(y), ROWS)
        filters = max(target.y.c for target in targets)
        chunks = sum(above(source.x.c, chunk) for source in every.source[: self._sources])
        columns, parts = tiling(rows, filters, len(targets), chunks, self._kernels.multiprocessors)
        every.tiles, every.share = above(filters, columns), max(1, above(chunks, parts))
        every.parts = every.tiles * len(targets)
        partial = None
        if parts > 1:
            size = (parts, positions(y), y.c)
            partial = torch.empty(size, dtype=torch.float32, device=self._kept[0].kept.device)
            every.partial = partial.data_ptr()
        self._kernels.launch(
            f"dpc_product_{name}_{columns}",
            (rows * every.parts, 1, parts),
            (THREADS, 1, 1),
            every,
            shared=2 * (ROWS + columns) * STRIDE,
        )
        if partial is not None:
            self._kernels.launch(
                f"dpc_add_up_{NAMES[self._dtype]}",
                (rows, above(filters, 128), 1),
                (THREADS, 1, 1),
                *(every, parts),
                shared=4 * BAND * (128 + 4),
            )


def tiling(rows: int, filters: int, products: int, chunks: int, multiprocessors: int) -> tuple[int, int]:
    """Filters of a block, and how many blocks share the depth of a product.

    With 256 filters a block computes each position's depthwise convolution once for all of a branch of the paper; with
    128 there are twice as many blocks. Where even these leave multiprocessors without one, and there is a lot of depth,
    it is shared: but every part has 4 chunks, since it also has its sums to write.
    """
    columns = 256 if filters > 128 and rows * products * above(filters, 256) >= multiprocessors else 128
    blocks = rows * products * above(filters, columns)
    if products > 1 or 2 * blocks > multiprocessors:
        return columns, 1
    return columns, max(1, min(chunks // 4, multiprocessors // blocks, 16))


def arithmetic(dtype: torch.dtype) -> str:
    """fp32 is multiplied as torch's convolutions would: in full, or by TF32 where the setting allows it."""
    cudnn: Any = torch.backends.cudnn
    return "tf32" if dtype is torch.float32 and cudnn.conv.fp32_precision == "tf32" else NAMES[dtype]
