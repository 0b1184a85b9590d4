"""What an operator is made of: a short list of layers that knows no framework.

Cost, receptive field, diagrams and every compiler read the same list, so they cannot disagree. A layer works on each
axis of a map on its own (a convolution's taps, a pooling's windows, a bilinear resize), so everything here speaks of
one axis at a time; ``axis`` is 0 for height and 1 for width, sizes are ``(height, width)``.

Someone who needs a layer that is not here subclasses :class:`Layer`; ``examples/maxpool.py`` shows one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dpcdsl.errors import DpcError, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    BoolMatrix: TypeAlias = npt.NDArray[np.bool_]

__all__ = [
    "Conventions",
    "Convolution",
    "DepthwiseConvolution",
    "GridPool",
    "Layer",
    "Pooling",
    "Resize",
    "Size",
    "checked_size",
]

#: Height and width.
Size: TypeAlias = tuple[int, int]

#: ``paper``: the mean of each cell of a gh x gw grid. ``sliding``: the authors' code, a sliding mean of stride 1.
Pooling: TypeAlias = Literal["paper", "sliding"]

_LARGEST = 2**20


def checked_size(size: object, name: str) -> Size:
    """``size`` as (height, width) of whole numbers from 1 up, or a :class:`DpcError` that names ``name``."""
    match size:
        case (int(height), int(width)) if not isinstance(height, bool) and not isinstance(width, bool):
            if 1 <= height <= _LARGEST and 1 <= width <= _LARGEST:
                return height, width
    raise DpcError.of(
        "DPC062",
        f"{name} must be (height, width), two whole numbers from 1 to {_LARGEST}, not {shown(size)}",
        hint="at output stride 16 an image of 1025x2049 is a map of 65x129",
    )


@dataclass(frozen=True)
class Conventions:
    """How a cell is run, where the paper and its authors' code leave a choice. Never part of a cell.

    pooling: ``"paper"`` (section 3.1) or ``"sliding"`` (the published code).
    output_stride: of the backbone; rates are written for 16 and grow as it shrinks (8 doubles them).
    image_pooling_crop_size: (height, width) in pixels of the crop that fixes the sliding window; without it the
        window follows the map.
    """

    pooling: Pooling = "paper"
    output_stride: int = 16
    image_pooling_crop_size: Size | None = None

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise DpcError.of("DPC062", f'pooling must be "paper" or "sliding", not {shown(self.pooling)}')
        if type(self.output_stride) is not int or self.output_stride not in (1, 2, 4, 8, 16):
            raise DpcError.of(
                "DPC062",
                f"output_stride must be 16, 8, 4, 2 or 1, not {shown(self.output_stride)}",
                hint="rates are written for output stride 16 and are multiplied by 16 / output_stride",
            )
        if self.image_pooling_crop_size is not None:
            crop = checked_size(self.image_pooling_crop_size, "image_pooling_crop_size")
            object.__setattr__(self, "image_pooling_crop_size", crop)  # a list becomes a tuple, to be hashed
            if self.pooling == "paper":
                raise DpcError.of(
                    "DPC062",
                    "image_pooling_crop_size fixes the window of the sliding pooling; the paper's has none",
                    hint='pass pooling="sliding" as well, or leave it out',
                )

    @property
    def rate_multiplier(self) -> int:
        return 16 // self.output_stride

    def sliding_window(self, axis: int, grid: int, size: int) -> int:
        """Window of the sliding pooling along one axis of a map of ``size`` positions: ceil(map / grid)."""
        if self.image_pooling_crop_size is not None:
            size_fixed = -(-self.image_pooling_crop_size[axis] // self.output_stride)
        else:
            size_fixed = size
        window = -(-size_fixed // grid)
        if window > size:
            raise DpcError.of(
                "DPC062",
                f"the sliding pooling's window of {window} does not fit {'height' if axis == 0 else 'width'} {size}",
                hint="image_pooling_crop_size must not be larger than the image",
            )
        return window


@dataclass(frozen=True)
class Layer:
    """One step of an operator. The defaults describe a layer without weights that keeps channels and size.

    A subclass overrides what differs; a compiler looks up how to run it by its class.
    """

    def dilated(self, multiplier: int) -> Layer:
        """The same layer with its atrous rates multiplied (a smaller output stride)."""
        return self

    def out_channels(self, in_channels: int) -> int:
        return in_channels

    def out_size(self, size: Size, map_size: Size, conventions: Conventions) -> Size:
        """Size after this layer; ``map_size`` is the size of the operator's own input."""
        return size

    def weights(self, in_channels: int) -> int:
        """Number of convolution weights. Biases and batch normalisation are not among them."""
        return 0

    def madds(self, in_channels: int, positions: int) -> int:
        """Multiply-adds for an output of ``positions`` positions: every weight once at each of them."""
        return self.weights(in_channels) * positions

    def normalised_channels(self, in_channels: int) -> int:
        """Channels that batch normalisation follows; 0 without one."""
        return 0

    def taps(self, axis: int) -> tuple[int, ...] | None:
        """Offsets along ``axis`` that an output reads, or None if they depend on the map and the position."""
        return (0,)

    def reads(self, axis: int, size: int, map_size: int, conventions: Conventions) -> BoolMatrix:
        """Which inputs each output reads along ``axis``: a boolean matrix [outputs, inputs] for ``size`` inputs."""
        import numpy as np

        taps = self.taps(axis)
        assert taps is not None, f"{type(self).__name__} must override reads() as well as taps()"
        out = np.arange(size)[:, None]
        matrix = np.zeros((size, size), dtype=np.bool_)
        for tap in taps:
            matrix |= out + tap == np.arange(size)
        return matrix


@dataclass(frozen=True)
class Convolution(Layer):
    """Dense convolution to ``filters`` channels, SAME padding, no bias, then batch normalisation and ReLU."""

    name: str
    filters: int
    kernel: Size = (1, 1)
    rate: Size = (1, 1)
    batch_norm: bool = True
    relu: bool = True

    def dilated(self, multiplier: int) -> Convolution:
        return replace(self, rate=(self.rate[0] * multiplier, self.rate[1] * multiplier))

    def out_channels(self, in_channels: int) -> int:
        return self.filters

    def weights(self, in_channels: int) -> int:
        return self.kernel[0] * self.kernel[1] * in_channels * self.filters

    def normalised_channels(self, in_channels: int) -> int:
        return self.filters if self.batch_norm else 0

    def taps(self, axis: int) -> tuple[int, ...]:
        return _taps(self.kernel[axis], self.rate[axis])


@dataclass(frozen=True)
class DepthwiseConvolution(Layer):
    """One kernel a channel, SAME padding, no bias, then batch normalisation and ReLU."""

    name: str
    kernel: Size = (3, 3)
    rate: Size = (1, 1)
    batch_norm: bool = True
    relu: bool = True

    def dilated(self, multiplier: int) -> DepthwiseConvolution:
        return replace(self, rate=(self.rate[0] * multiplier, self.rate[1] * multiplier))

    def weights(self, in_channels: int) -> int:
        return self.kernel[0] * self.kernel[1] * in_channels

    def normalised_channels(self, in_channels: int) -> int:
        return in_channels if self.batch_norm else 0

    def taps(self, axis: int) -> tuple[int, ...]:
        return _taps(self.kernel[axis], self.rate[axis])


def _taps(kernel: int, rate: int) -> tuple[int, ...]:
    # SAME padding puts the smaller half before, as TensorFlow does; for odd kernels the halves are equal.
    before = (kernel - 1) * rate // 2
    return tuple(k * rate - before for k in range(kernel))


@dataclass(frozen=True)
class GridPool(Layer):
    """Average pooling over a gh x gw grid, in the way of :attr:`Conventions.pooling`."""

    grid: Size

    def out_size(self, size: Size, map_size: Size, conventions: Conventions) -> Size:
        return self._pooled(0, size[0], conventions), self._pooled(1, size[1], conventions)

    def _pooled(self, axis: int, size: int, conventions: Conventions) -> int:
        if conventions.pooling == "paper":
            return self.grid[axis]
        return size - conventions.sliding_window(axis, self.grid[axis], size) + 1

    def taps(self, axis: int) -> None:
        return None

    def reads(self, axis: int, size: int, map_size: int, conventions: Conventions) -> BoolMatrix:
        import numpy as np

        pooled, inputs = np.arange(self._pooled(axis, size, conventions))[:, None], np.arange(size)
        if conventions.pooling == "paper":
            grid = self.grid[axis]
            first, last = pooled * size // grid, -(-(pooled + 1) * size // grid) - 1
        else:
            first = pooled
            last = pooled + conventions.sliding_window(axis, self.grid[axis], size) - 1
        return (inputs >= first) & (inputs <= last)


@dataclass(frozen=True)
class Resize(Layer):
    """Bilinear resize with aligned corners, back to the size of the operator's input."""

    def out_size(self, size: Size, map_size: Size, conventions: Conventions) -> Size:
        return map_size

    def taps(self, axis: int) -> None:
        return None

    def reads(self, axis: int, size: int, map_size: int, conventions: Conventions) -> BoolMatrix:
        import numpy as np

        # Output i lies at i (size - 1) / (map_size - 1): between two inputs, or exactly on one.
        numerator, denominator = np.arange(map_size)[:, None] * (size - 1), max(map_size - 1, 1)
        inputs = np.arange(size)
        below, exact = numerator // denominator, numerator % denominator == 0
        matrix: BoolMatrix = (inputs == below) | ((inputs == below + 1) & ~exact)
        return matrix
