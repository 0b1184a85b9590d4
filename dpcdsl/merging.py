"""Which operators are the same function on a map of a given size.

On a small map operators that are written differently compute the same. A tap as far away as the map is long reads
nothing but padding, so ``sepconv3x3 rate 40x3`` is ``sepconv3x3 rate 33x3`` at 33x33; an average over a grid as fine
as the map is no average, so ``avgpool grid 8x8`` is ``conv1x1`` at 8x8.

Two operators are the same if they agree on every input of that size once the weights of one are given to the other,
weight by weight and tap by tap; weights of taps that only read padding count for nothing. That is meant in exact
arithmetic and for evaluation: in training, batch normalisation takes its statistics from the pooled map, which may
hold a position twice. Operators that agree only on some inputs (the constant map that a global pooling in an earlier
branch leaves, say) are not the same.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import chain
from operator import sub
from typing import TypeGuard

from dpcdsl.cell import DEFAULT_FILTERS
from dpcdsl.layers import (
    Conventions,
    Convolution,
    DepthwiseConvolution,
    GridPool,
    Layer,
    Pooling,
    Resize,
    Size,
    checked_size,
)
from dpcdsl.operators import Operator, check_size_kept

__all__ = ["function_key", "merge_operators"]

_PAPER = Conventions()


def function_key(
    operator: Operator, size: Size, filters: int = DEFAULT_FILTERS, conventions: Conventions = _PAPER
) -> Hashable:
    """What ``operator`` computes on a map of ``size``: equal keys are the same function.

    size: (height, width) of the map, each from 1 to 2**20.
    filters: of each convolution, a whole number from 1 up.
    conventions: how pooling is run, and the output stride that rates are multiplied for.

    A key means something only beside others of the same size, filters and conventions, and in the same process. For
    the paper's kinds of operators the converse holds as well: keys that differ are different functions. Of other
    operators keys may differ where the functions do not: layers between a pooling and its resize are seen through
    only if they are pointwise convolutions on the pooled map, and a layer that is not of :mod:`dpcdsl.layers` is the
    same as another only if the two are equal. Resizing is bilinear with aligned corners.

    Raises :class:`DpcError`: DPC062 on a size outside its range or if the sliding pooling's window does not fit,
    DPC065 if the operator's last layer does not come back to ``size``.
    """
    return _key(operator, checked_size(size, "size"), filters, conventions)


def merge_operators(
    operators: Sequence[Operator], size: Size, filters: int = DEFAULT_FILTERS, conventions: Conventions = _PAPER
) -> tuple[tuple[Operator, ...], ...]:
    """``operators`` in groups that are one function each on a map of ``size``; see :func:`function_key`.

    Each operator is in one group, as often as it is given. A group keeps the order of ``operators``, and groups are
    ordered by their first members, which can so stand for them.

    Raises :class:`DpcError` as :func:`function_key` does.

    >>> rates = [(3, 3), (9, 3), (40, 3)]
    >>> merge_operators([Operator.of("sepconv3x3", rate=rate) for rate in rates], (9, 9))
    ((Operator('sepconv3x3 rate 3x3'),), (Operator('sepconv3x3 rate 9x3'), Operator('sepconv3x3 rate 40x3')))
    """
    size = checked_size(size, "size")
    groups: dict[Hashable, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(_key(operator, size, filters, conventions), []).append(operator)
    return tuple(tuple(group) for group in groups.values())


def _key(operator: Operator, map_size: Size, filters: int, conventions: Conventions) -> Hashable:
    layers = [layer.dilated(conventions.rate_multiplier) for layer in operator.layers(filters)]
    steps: list[Hashable] = []
    size, done = map_size, 0
    while done < len(layers):
        # Each step says what is computed on a map of the current size, and so which size comes next: of two keys that
        # agree up to a step, the sizes agree as well, and a step need not name the size it starts from.
        layer = layers[done]
        out_size = layer.out_size(size, map_size, conventions)
        done += 1
        if type(layer) is GridPool:
            end = done
            while end < len(layers) and _is_pointwise(layers[end], out_size):
                end += 1
            if end < len(layers) and type(layers[end]) is Resize:
                between = [_step(each, out_size) for each in layers[done:end]]
                forms = tuple(_form(conventions.pooling, size[a], out_size[a], map_size[a]) for a in (0, 1))
                steps += between if forms == (None, None) else [(GridPool, forms, tuple(between))]
                out_size, done = map_size, end + 1
            elif out_size != size:
                # The pooled size tells everything, in both ways: it is the grid, or map - window + 1. A pooling that
                # keeps the size takes the mean of one position each, its own, and is no step at all.
                steps.append((GridPool, out_size))
        elif type(layer) is Resize:
            if out_size != size:
                steps.append((Resize,))
        else:
            steps.append(_step(layer, size))
        size = out_size
    check_size_kept(operator, map_size, size)
    key = tuple(steps)
    try:
        hash(key)
    except TypeError:  # a user's layer with a list in it: its operator is the same as itself alone
        return operator
    return key


def _is_convolution(layer: Layer) -> TypeGuard[Convolution | DepthwiseConvolution]:
    # Not a subclass, which exists because it differs.
    return type(layer) in (Convolution, DepthwiseConvolution)


def _is_pointwise(layer: Layer, size: Size) -> bool:
    # Not a user's layer that says so: it may still compute something else from position to position.
    return _is_convolution(layer) and _taps(layer, size) == ((0,), (0,))


def _step(layer: Layer, size: Size) -> Hashable:
    """What a layer that is neither a pooling nor a resize computes on a map of ``size``."""
    if not _is_convolution(layer):
        return type(layer), layer
    filters = layer.filters if isinstance(layer, Convolution) else None
    return type(layer), filters, layer.batch_norm, layer.relu, _taps(layer, size)


def _taps(layer: Convolution | DepthwiseConvolution, size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The offsets along height and width that some output reads inside a map of ``size``."""
    rows, columns = (tuple(tap for tap in layer.taps(a) if abs(tap) < size[a]) for a in (0, 1))
    # The taps are pairs: where one axis has none left (even kernels have no centre), those of the other read nothing.
    return (rows, columns) if rows and columns else ((), ())


# Cached: the grids of an operator set are few, and their pairs many.
@lru_cache(maxsize=4096)
def _form(pooling: Pooling, size: int, pooled: int, map_size: int) -> bytes | None:
    """What pooling ``size`` positions to ``pooled`` and resizing those to ``map_size`` does along one axis.

    The form is the same for the same windows, with the same weights, at each output. None if output i is input i.

    Between the two, a pointwise f works on each pooled position, so an output is the sum of c f(mean over w) over the
    windows w that it reads, at most two, with weights c that add up to 1. Behind a ReLU, with weights in general
    position, the f(mean over w) of different windows are linearly independent: their kinks lie elsewhere. So an
    output is the same function where the weights of each window are, and not otherwise. The two axes do not mix:
    windows are products of theirs and so are weights, and two products of factors that add up to 1 are equal only
    if the factors are.
    """
    denominator = max(map_size - 1, 1)
    length = size - pooled + 1  # of a sliding window
    starts, ends, next_starts, next_ends, weights = columns = [array("q") for _ in range(5)]
    for output in range(map_size):
        # Only pooled positions that an output lies between are looked at: a grid may be far finer than the map.
        below, weight = divmod(output * (pooled - 1), denominator)
        if pooling == "paper":
            start, end = below * size // pooled, -(-(below + 1) * size // pooled)
        else:
            start, end = below, below + length
        next_start, next_end = start, end
        if weight:
            if pooling == "paper":
                next_start, next_end = (below + 1) * size // pooled, -(-(below + 2) * size // pooled)
            else:
                next_start, next_end = start + 1, end + 1
            if (next_start, next_end) == (start, end):
                weight = 0  # the two weights of one window add up to 1
        starts.append(start)
        ends.append(end)
        next_starts.append(next_start)
        next_ends.append(next_end)
        weights.append(weight)  # of the second window; all are fractions of one denominator, so it is left out
    alone = size == map_size and not any(weights)
    if alone and all(starts[i] == i and ends[i] == i + 1 for i in range(map_size)):
        return None
    # Packed without loss, so that keys are small: on a map of 2**20 positions 40 MiB become well below one.
    steps = (array("q", map(sub, column, chain((0,), column))) for column in columns)
    return zlib.compress(b"".join(step.tobytes() for step in steps), 1)
