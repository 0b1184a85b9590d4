"""The passes of :mod:`dpcdsl_torch.primitives` on a GPU, by the CUDA kernels: fp32, bf16 and fp16 maps.

This module is the kernels' one caller, and they check nothing: what a kernel takes for granted about its arguments is
made so here, or asserted. How a launch shares its work among blocks is decided here, too, from the sizes alone: by
:func:`_share` for sums over positions, and by :func:`tiling` for products.

Every pass comes out the same in every run: no sum depends on which block is first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl_torch import launch
from dpcdsl_torch.cuda_products import (
    ACCESS,
    CHUNK_BYTES,
    MOST_PARTS,
    MOST_TAPS,
    NAMES,
    ROWS,
    THREADS,
    Launch,
    above,
    arithmetic,
    is_aligned,
    offsets,
    positions,
)
from dpcdsl_torch.launch import Kernels
from dpcdsl_torch.primitives import Affine, Branch, CrossEntropy, Moments, NormGradient, Projection, Taps
from dpcdsl_torch.structures import NO_FLOOR, Map, address_of, floor_of, map_of, vector_of

__all__ = ["DTYPES", "MOST_CLASSES", "MOST_TAPS", "CudaPrimitives", "forget", "primitives"]

#: How many classes a cross-entropy may have here: what a block keeps of each is in its shared memory.
MOST_CLASSES = 1024

#: The types of maps.
DTYPES = frozenset(NAMES)

# Constants of the kernels, by the same names: device.cuh, outer.cu, normalise.cu, loss.cu.
_LANES_X, _LANES_Y, _POSITIONS, _SUM_LANES_Y = 32, 4, 4, 8
_OUTER_COLUMNS, _VECTOR_THREADS, _TOTAL_LANES_Y = 128, 128, 32
_PIXELS, _CLASSES = 256, 32

_EACH = (_LANES_X, _LANES_Y, 1)
_SUMMING = (_LANES_X, _SUM_LANES_Y, 1)
_TOTALLING = (_LANES_X, _TOTAL_LANES_Y, 1)
_POOLING, _ALIGNED_CORNERS, _ALIGNED_EDGES = 0, 1, 2


class _Taps(ctypes.Structure):
    _fields_ = (("count", c_int32), ("dy", c_int32 * MOST_TAPS), ("dx", c_int32 * MOST_TAPS))


class _CrossEntropy(ctypes.Structure):
    _fields_ = (
        ("logits", Map),
        ("labels", c_void_p),
        *((name, c_int32) for name in ("height", "width", "bytes", "align_corners")),
        ("ignored", c_int64),
        *((name, c_void_p) for name in ("weights", "chosen", "losses", "partial", "sums")),
    )


_NO_MAP = Map()


def _together(dtype: torch.dtype, views: Sequence[Map], vectors: Sequence[Tensor | None] = ()) -> int:
    """How many channels a thread of an elementwise kernel has."""
    several = ACCESS // dtype.itemsize
    return several if is_aligned(views, vectors, several) else 1


def _tap_list(taps: Taps, sign: int = 1) -> _Taps:
    assert len(taps.dy) <= MOST_TAPS
    structure = _Taps(len(taps.dy))
    structure.dy[: len(taps.dy)], structure.dx[: len(taps.dx)] = offsets(taps.dy, sign), offsets(taps.dx, sign)
    return structure


class CudaPrimitives:
    """The passes on a GPU, for :data:`DTYPES`; :class:`dpcdsl_torch.primitives.Primitives`.

    Depthwise kernels have at most :data:`MOST_TAPS` taps, maps less than 2^31 positions (DPC062).
    """

    finds_taps = True
    grouped_channels = 2**31  # branches of any map fill the multiprocessors together

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def deferred(self) -> CudaPrimitives:
        return self  # a launch does not wait for the kernel

    def flush(self) -> None:
        pass

    def prepare(self, weight: Tensor, dtype: object) -> Tensor:
        """The weight [filters, depth] in the maps' type, with zeros up to a whole access after each filter."""
        assert isinstance(dtype, torch.dtype)
        return F.pad(weight.to(dtype), (0, -weight.shape[1] % (ACCESS // dtype.itemsize))).contiguous()

    def copy(self, source: Tensor, out: Tensor) -> None:
        out.copy_(source)

    # Launches

    def _each(self, kind: str, view: Map, together: int, *arguments: Any) -> None:
        """A kernel that does the same for all positions and channels."""
        grid = (above(positions(view), _LANES_Y * _POSITIONS), above(view.c, _LANES_X * together), 1)
        self._kernels.launch(f"{kind}_{NAMES[view.kept.dtype]}_{together}", grid, _EACH, *arguments)

    def _share(self, view: Map, together: int, least: int = 64) -> int:
        """Positions of a block that sums over them: four blocks a multiprocessor, but ``least`` positions each."""
        columns = above(view.c, _LANES_X * together)
        blocks = max(1, 4 * self._kernels.multiprocessors // columns)
        return above(max(least, above(positions(view), blocks)), least) * least

    def _add_up(self, partial: Tensor, *totals: Tensor) -> None:
        """The sum over the blocks of ``partial`` to one tensor, or to two that lie in it one after the other."""
        if partial is totals[0]:  # of one block
            return
        values = sum(total.numel() for total in totals)
        one, two = totals if len(totals) == 2 else (totals[0], None)
        sizes = (len(partial), c_int64(values), c_int64(one.numel()))
        self._kernels.launch("dpc_total", (above(values, _LANES_X), 1, 1), _TOTALLING, partial, *sizes, one, two)

    def _partial(self, total: Tensor, blocks: int) -> Tensor:
        """Where blocks write their part of a sum: the sum itself, if there is one block."""
        return total if blocks == 1 else total.new_empty((blocks, *total.shape))

    def _moments_total(self, mean: Tensor, deviations: Tensor, share: int, count: int) -> Moments:
        channels = mean.shape[1]
        found = Moments(*_vectors(mean))
        grid = (above(channels, _LANES_X), 1, 1)
        sizes = (share, c_int64(count), c_int64(channels))
        self._kernels.launch("dpc_moments_total", grid, _TOTALLING, mean, deviations, *sizes, *found)
        return found

    # Depthwise

    def depthwise(self, x: Tensor, weight: Tensor, taps: Taps, out: Tensor, moments: bool) -> Moments | None:
        if x.shape[0] == 0:
            return Moments(*_zeros(x)) if moments else None
        weight = vector_of(weight)
        source, y = _input(x), _output(out, x.shape, x.dtype)
        together = _together(x.dtype, (source, y), (weight,))
        if not moments:
            listed = _tap_list(taps)
            self._each("dpc_depthwise", source, together, source, y, listed, weight, None, NO_FLOOR, 0)
            return None
        count, share = positions(source), self._share(source, together)
        blocks = above(count, share)
        mean, deviations = x.new_empty((2, blocks, source.c), dtype=torch.float64)
        self._kernels.launch(
            f"dpc_depthwise_moments_{NAMES[x.dtype]}_{together}",
            (blocks, above(source.c, _LANES_X * together), 1),
            _EACH,
            *(source, y, _tap_list(taps), weight, share, mean, deviations),
        )
        return self._moments_total(mean, deviations, share, count)

    def depthwise_backward(
        self, g: Tensor, x: Tensor | None, weight: Tensor | None, taps: Taps, dx: Tensor | None, add: bool
    ) -> Tensor | None:
        assert dx is None or weight is not None
        assert x is None or x.shape == g.shape
        if g.shape[0] == 0:
            return None if x is None else g.new_zeros((len(taps.dy), g.shape[1]), dtype=torch.float32)
        gradient = _input(g)
        if dx is not None and weight is not None:
            weight, target = vector_of(weight), _output(dx, g.shape, g.dtype)
            together = _together(g.dtype, (gradient, target), (weight,))
            arguments = (gradient, target, _tap_list(taps, -1), weight, None, NO_FLOOR, add)
            self._each("dpc_depthwise", gradient, together, *arguments)
        if x is None:
            return None
        source = _input(x)
        together = _together(g.dtype, (gradient, source))
        share = self._share(source, together)
        blocks = above(positions(source), share)
        dw = g.new_empty((len(taps.dy), source.c), dtype=torch.float32)
        partial = self._partial(dw, blocks)
        if taps.dy:
            self._kernels.launch(
                f"dpc_depthwise_weight_{NAMES[g.dtype]}_{together}",
                (blocks, above(source.c, _LANES_X * together), 1),
                _SUMMING,
                *(gradient, source, _tap_list(taps), share, partial),
            )
            self._add_up(partial, dw)
        return dw

    # Products

    def evaluate(self, x: Tensor, branches: list[Branch], projection: Projection | None) -> None:
        if x.shape[0] == 0:
            return
        view = _input(x)
        results = []
        launch = Launch(self._kernels, x.dtype)
        for branch in branches:
            out = branch.out
            if out is None:  # the projection alone needs it
                out = _empty(x, branch.filters, (x.shape[2], x.shape[3]), x.dtype)
            if branch.projection is not None:
                results.append((out, branch.projection))
            taps = branch.depthwise[0] if branch.depthwise else None
            if not launch.has_room(taps):
                launch.run()
                launch = Launch(self._kernels, x.dtype)
            launch.source(view, branch.weight, branch.depthwise)
            launch.target(_output(out, (x.shape[0], branch.filters, *x.shape[2:]), x.dtype), branch.bias, branch.relu)
        launch.run()
        if projection is not None:
            self._project(x, results, projection)

    def _project(self, x: Tensor, results: list[tuple[Tensor, Tensor]], projection: Projection) -> None:
        """Each result times its part of the projection, and the grids, added to the sum: as many at once as one launch
        takes.
        """
        shape = (x.shape[0], projection.filters, *x.shape[2:])
        pieces = max(1, *(above(len(parts), MOST_PARTS) for parts in (results, projection.grids)))
        total = projection.sum
        if total is None and pieces > 1:
            total = _empty(x, projection.filters, (x.shape[2], x.shape[3]), torch.float32)
        written = projection.out
        if projection.last and written.stride(1) != 1:
            written = _empty(x, projection.filters, (x.shape[2], x.shape[3]), x.dtype)
        for piece in range(pieces):
            first, last = projection.first and piece == 0, projection.last and piece == pieces - 1
            some = slice(MOST_PARTS * piece, MOST_PARTS * (piece + 1))
            launch = Launch(self._kernels, x.dtype, projection.align_corners)
            for result, weight in results[some]:
                launch.source(map_of(result), weight, None)
            assert total is not None or (first and last)
            sums = None if total is None else _output(total, shape, torch.float32)
            y = _output(written, shape, x.dtype) if last else sums
            assert y is not None
            launch.target(
                y,
                projection.bias if first else None,
                last and projection.relu,
                more=None if first else sums,
                grids=[_input(grid) for grid in projection.grids[some]],
            )
            launch.run()
        if written is not projection.out:
            projection.out.copy_(written)

    def pointwise(self, x: Tensor, before: Affine | None, weight: Tensor, out: Tensor, moments: bool) -> Moments | None:
        filters = weight.shape[0]
        if x.shape[0] == 0:
            return Moments(*_zeros(out)) if moments else None
        launch = Launch(self._kernels, x.dtype)
        launch.source(_input(x), self.prepare(weight, x.dtype), None, before)
        y = _output(out, (x.shape[0], filters, *x.shape[2:]), x.dtype)
        if not moments:
            launch.target(y, None, False)
            launch.run()
            return None
        count = positions(y)
        mean, deviations = x.new_empty((2, above(count, ROWS), filters), dtype=torch.float64)
        launch.target(y, None, False, moments=(mean, deviations))
        launch.run()
        return self._moments_total(mean, deviations, ROWS, count)

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
            empty = x.new_zeros((filters, depth), dtype=torch.float32)
            return empty, None if statistics is None else _zeros(x)
        g, source = self._norm_gradient(gradients, p, norm), _input(x)
        dw = self._weight_gradient(g, source, before)
        if dx is None:
            return dw, None
        launch = Launch(self._kernels, x.dtype)
        launch.source(g, self.prepare(weight.t(), x.dtype), None)
        target = _output(dx, x.shape, x.dtype)
        blocks = above(positions(source), ROWS)
        sums = None if statistics is None else x.new_empty((blocks, 2, depth), dtype=torch.float32)
        launch.target(
            target,
            None,
            False,
            more=target if add else None,
            mask=source,
            masked_by=before if before is not None and before.relu else None,
            sums=None if sums is None or statistics is None else (sums, *statistics),
        )
        launch.run()
        if sums is None:
            return dw, None
        found = _vectors(x)
        self._add_up(sums, *found)
        return dw, found

    def _norm_gradient(self, gradients: tuple[Tensor, ...], p: Tensor, norm: NormGradient) -> Map:
        one, two = _incoming(gradients, p)
        view, to = _input(p), map_of(torch.empty_like(p, memory_format=torch.channels_last))
        vectors = [vector_of(vector) for vector in (*norm.affine[:2], *norm[1:])]
        together = _together(p.dtype, (one, two or one, view, to), vectors)
        scale, shift, *factors = vectors
        floor = floor_of(norm.affine.relu)
        arguments = (one, two or _NO_MAP, view, scale, shift, floor, *factors, to)
        self._each("dpc_norm_gradient", view, together, *arguments)
        return to

    def _weight_gradient(self, g: Map, x: Map, before: Affine | None) -> Tensor:
        """The product's weight's, [filters, depth]: blocks have a tile of it and a range of positions."""
        dtype, count = x.kept.dtype, positions(x)
        scale, shift = (None, None) if before is None else (vector_of(before.scale), vector_of(before.shift))
        columns, rows = above(x.c, _OUTER_COLUMNS), above(g.c, ROWS)
        chunk = CHUNK_BYTES // dtype.itemsize
        blocks = max(1, 2 * self._kernels.multiprocessors // (columns * rows))
        share = max(4, above(above(count, blocks), chunk)) * chunk
        dw = x.kept.new_empty((g.c, x.c), dtype=torch.float32)
        partial = self._partial(dw, above(count, share))
        apart = 8 * dtype.itemsize
        self._kernels.launch(
            f"dpc_outer_{arithmetic(dtype)}",
            (above(count, share), columns, rows),
            (THREADS, 1, 1),
            *(g, x, scale, shift, floor_of(before is not None and before.relu), share),
            *(is_aligned((g, x), (scale, shift), ACCESS // dtype.itemsize), partial),
            shared=2 * chunk * ((ROWS + _OUTER_COLUMNS) * dtype.itemsize + 2 * apart),
        )
        self._add_up(partial, dw)
        return dw

    # Normalisation

    def normalisation(
        self, moments: Moments, weight: Tensor, bias: Tensor, epsilon: float, single: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = [vector_of(vector) for vector in (*moments, weight, bias)]
        inverse, scale, shift = self._vectors("dpc_normalisation", 3, given, float(epsilon), single)
        return inverse, scale, shift

    def normalisation_gradient(
        self, scale: Tensor, inverse: Tensor, sums: tuple[Tensor, Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        given = [vector_of(vector) for vector in (scale, inverse, *sums)]
        b, c = self._vectors("dpc_normalisation_gradient", 2, given, float(count))
        return b, c

    def _vectors(self, name: str, results: int, given: list[Tensor], *numbers: Any) -> tuple[Tensor, ...]:
        """A kernel from vectors to vectors, which it writes one after the other."""
        channels = given[0].shape[0]
        found = given[0].new_empty((results, channels))
        grid = (above(channels, _VECTOR_THREADS), 1, 1)
        self._kernels.launch(name, grid, (_VECTOR_THREADS, 1, 1), *given, *numbers, c_int64(channels), found)
        return tuple(found)

    def affine(self, x: Tensor, affine: Affine, out: Tensor) -> None:
        if x.shape[0] == 0:
            return
        source, y = _input(x), _output(out, x.shape, x.dtype)
        scale, shift = vector_of(affine.scale), vector_of(affine.shift)
        together = _together(x.dtype, (source, y), (scale, shift))
        self._each("dpc_affine", source, together, source, scale, shift, floor_of(affine.relu), y)

    def gradient_sums(
        self, gradients: tuple[Tensor, ...], x: Tensor, affine: Affine, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        if x.shape[0] == 0:
            return _zeros(x)
        one, two = _incoming(gradients, x)
        view = _input(x)
        scale, shift, mean, inverse = map(vector_of, (affine.scale, affine.shift, mean, inverse))
        together = _together(x.dtype, (one, two or one, view), (scale, shift, mean))
        share = self._share(view, together)
        blocks = above(positions(view), share)
        partial = x.new_empty((blocks, 2, view.c), dtype=torch.float32)
        self._kernels.launch(
            f"dpc_gradient_sums_{NAMES[x.dtype]}_{together}",
            (blocks, above(view.c, _LANES_X * together), 1),
            _SUMMING,
            *(one, two or _NO_MAP, view, scale, shift, floor_of(affine.relu), mean, inverse, share, partial),
        )
        sums = _vectors(x)
        self._add_up(partial, *sums)
        return sums

    def affine_backward(self, g: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, c: Tensor) -> None:
        if x.shape[0] == 0:
            return
        target, source = _output(g, x.shape, x.dtype), _input(x)
        factors = [vector_of(vector) for vector in (a, b, mean, c)]
        together = _together(x.dtype, (target, source), factors)
        self._each("dpc_affine_backward", source, together, target, source, *factors)

    # Grids

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if x.shape[0] == 0:
            return _empty(x, x.shape[1], grid, torch.float32)
        return self._gather(_input(x), None, grid, _POOLING)

    def pool_backward(self, g: Tensor, dx: Tensor, add: bool) -> None:
        self._spread("dpc_pool_backward", g, dx, add)

    def resize(self, source: Tensor, out: Tensor, align_corners: bool) -> None:
        self._spread("dpc_resize", source, out, align_corners)

    def resize_backward(self, gradients: tuple[Tensor, ...], size: tuple[int, int], align_corners: bool) -> Tensor:
        if gradients[0].shape[0] == 0:
            return _empty(gradients[0], gradients[0].shape[1], size, torch.float32)
        one, two = _incoming(gradients, gradients[0])
        return self._gather(one, two, size, _ALIGNED_CORNERS if align_corners else _ALIGNED_EDGES)

    # The loss

    def cross_entropy(self, loss: CrossEntropy, losses: Tensor | None, gradient: Tensor | None) -> Tensor:
        logits, labels, chosen = loss.logits, loss.labels, loss.chosen
        n, classes, h, w = logits.shape
        sums = logits.new_zeros(3, dtype=torch.float64)
        if n == 0:
            return sums
        assert classes <= MOST_CLASSES
        assert labels.dtype in (torch.uint8, torch.int64)
        assert labels.is_contiguous()
        assert chosen is None or (
            chosen.shape == labels.shape and chosen.dtype is torch.bool and chosen.is_contiguous()
        )
        assert losses is None or (losses.shape == labels.shape and losses.dtype is torch.float32)
        assert losses is None or losses.is_contiguous()
        assert gradient is None or gradient.is_contiguous(memory_format=torch.channels_last)
        weights = None if loss.weights is None else vector_of(loss.weights)
        cells, view = n * h * w, map_of(logits)
        positions(view)
        partial = None if gradient is None else logits.new_empty((cells, 4, classes), dtype=torch.float32)
        of_cells = logits.new_empty((cells, 3), dtype=torch.float64)
        structure = _CrossEntropy(
            *(view, labels.data_ptr(), *labels.shape[1:], labels.itemsize, loss.align_corners, loss.ignored),
            *map(address_of, (weights, chosen, losses, partial, of_cells)),
        )
        floats = 12 * classes + _PIXELS * (_CLASSES + 1) + 4 * _PIXELS
        self._kernels.launch(
            f"dpc_cross_entropy_{NAMES[logits.dtype]}",
            (cells, 1, 1),
            (_PIXELS, 1, 1),
            structure,
            shared=4 * floats + 8 * 3 * _PIXELS,
        )
        block = (_PIXELS, 1, 1)
        self._kernels.launch("dpc_cross_entropy_sums", (1, 1, 1), block, of_cells, c_int64(cells), sums)
        if gradient is not None:
            values = cells * classes
            self._kernels.launch(
                "dpc_cross_entropy_gradient",
                (above(values, _PIXELS), 1, 1),
                block,
                *(partial, h, w, classes, c_int64(values), gradient),
            )
        return sums

    def _gather(self, one: Map, two: Map | None, grid: tuple[int, int], relation: int) -> Tensor:
        """For each cell of a grid, the sum over the positions that it has to do with."""
        dtype, cells = one.kept.dtype, one.n * grid[0] * grid[1]
        assert grid[0] * one.h < 2**31
        assert grid[1] * one.w < 2**31
        together = _together(dtype, (one, two or one))
        columns = above(one.c, _LANES_X * together)
        # At most (span of grids.cu): of a resize, a cell reaches to its neighbours on both sides.
        reach = [
            min(size, above(size, count) + 1 if relation == _POOLING else 2 * above(size, max(1, count - 1)) + 6)
            for size, count in zip((one.h, one.w), grid, strict=True)
        ]
        blocks = max(1, 4 * self._kernels.multiprocessors // (cells * columns))
        share = max(64, above(reach[0] * reach[1], blocks))
        blocks = above(reach[0] * reach[1], share)
        total = _empty(one.kept, one.c, grid, torch.float32)
        partial = self._partial(total, blocks)
        self._kernels.launch(
            f"dpc_gather_{NAMES[dtype]}_{together}",
            (cells, columns, blocks),
            _SUMMING,
            *(one, two or _NO_MAP, *grid, relation, share, partial),
        )
        self._add_up(partial, total)
        return total

    def _spread(self, kind: str, cells: Tensor, out: Tensor, how: bool) -> None:
        if out.shape[0] == 0:
            return
        assert cells.dtype is torch.float32
        source, y = _input(cells), _output(out, out.shape, out.dtype)
        self._each(kind, y, _together(out.dtype, (y,)), source, y, how)


def _input(tensor: Tensor) -> Map:
    """A map whose channels lie side by side: the tensor, or a copy of it."""
    view = map_of(tensor)
    return view if view.stride_c == 1 else map_of(tensor.contiguous(memory_format=torch.channels_last))


def _output(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Map:
    """A map that a kernel writes: where it is, since the executor reads it there."""
    view = map_of(tensor)
    assert tensor.shape == tuple(shape)
    assert tensor.dtype is dtype
    assert view.stride_c == 1
    return view


def _incoming(gradients: tuple[Tensor, ...], like: Tensor) -> tuple[Map, Map | None]:
    """One or two gradients, which autograd hands over in any strides."""
    assert all(g.shape == like.shape and g.dtype is like.dtype for g in gradients)
    one, *others = map(_input, gradients)
    assert len(others) <= 1
    return one, others[0] if others else None


def _empty(like: Tensor, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _vectors(like: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors of a map's channels, each its own, since an operator may return them."""
    channels = like.shape[1]
    return like.new_empty(channels, dtype=torch.float32), like.new_empty(channels, dtype=torch.float32)


def _zeros(like: Tensor) -> tuple[Tensor, Tensor]:
    one, two = _vectors(like)
    return one.zero_(), two.zero_()


class _Loaded:
    """By device, what :func:`primitives` found: a compiler that traces a call cannot enter :mod:`launch`'s lock."""

    found: ClassVar[dict[torch.device, CudaPrimitives]] = {}


def primitives(device: torch.device, required: bool) -> CudaPrimitives | None:
    """The passes of a GPU. Where they cannot be: raises (DPC080) if they are ``required``, else warns once; None."""
    found = _Loaded.found.get(device)
    if found is not None:
        return found
    outcome = launch.require(device) if required else launch.load(device)
    if isinstance(outcome, Kernels):
        _Loaded.found[device] = CudaPrimitives(outcome)
        return _Loaded.found[device]
    launch.warn_once(outcome)
    return None


def forget() -> None:
    """Let the next call look again."""
    _Loaded.found.clear()
    launch.forget()
