"""What is to be computed: a cell's branches and settings, without a framework and without deciding how.

A :class:`Task` is also text, so that it can be an operator's argument; its names say which weight is which.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from dpcdsl.cell import Cell
from dpcdsl.errors import Diagnostic, DpcError, nearest
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Pooling, Resize, Size

__all__ = [
    "FUSIONS",
    "NORM",
    "Form",
    "Task",
    "check_fusions",
    "form_of",
    "taps_inside",
]

#: What a plan may fuse; each can be left out by name (``without``).
FUSIONS: dict[str, str] = {
    "batch_norm": "scales of batch normalisation go into the weights",
    "epilogue": "bias and ReLU are applied to a product before it leaves the cache",
    "depthwise": "a depthwise convolution feeds the product block by block, and is never a map",
    "concatenation": "branches write their channels of the concatenation in place",
    "group": "branches that read the same map (on the CPU, of up to 512 channels) are computed in one pass over it",
    "split_projection": "each branch adds its part of the projection, and the concatenation is never a map",
    "early_projection": "a pooled branch is projected at its grid's size, before it is resized",
    "taps": "taps that see only padding at the map's size are dropped",
    "shared_pooling": "branches that pool the same map to the same grid share the pooling",
    "release": "a map is given back after its last use",
    "training": "training runs in passes that gather statistics on the way, and not operator by operator",
}

#: What batch normalisation adds to a convolution's name: parameters, then running statistics.
NORM = ("weight", "bias", "mean", "variance")


def check_fusions(names: Iterable[str]) -> frozenset[str]:
    """The names as a set, or a :class:`DpcError` (DPC062) that names each unknown one."""
    names = frozenset([names] if isinstance(names, str) else names)
    unknown = sorted(names - FUSIONS.keys())
    if unknown:
        raise DpcError(
            Diagnostic(
                "DPC062",
                f"there is no fusion `{name}`"
                + (f"; did you mean `{near}`?" if (near := nearest(name, FUSIONS)) else ""),
                hint=f"fusions: {', '.join(f'`{known}`' for known in FUSIONS)}",
            )
            for name in unknown
        )
    return names


@dataclass(frozen=True)
class Form:
    """A branch that the steps can express: [pool to a grid] [depthwise] 1x1 convolution [resize back].

    input: 0 is F, i is Yi. dy, dx: the depthwise taps (empty without). *_norm, *_relu: what follows a convolution.
    kernel, rate: of the depthwise, to be shown.
    """

    input: int
    in_channels: int
    filters: int
    norm: bool
    relu: bool
    grid: Size | None = None
    dy: tuple[int, ...] = ()
    dx: tuple[int, ...] = ()
    depthwise_norm: bool = False
    depthwise_relu: bool = False
    kernel: Size | None = None
    rate: Size | None = None

    @property
    def has_depthwise(self) -> bool:
        return self.kernel is not None


def form_of(layers: Iterable[Layer], input: int, in_channels: int) -> Form | None:
    """The branch's form, its rates already multiplied; None for layers that only :mod:`lowering` can run."""
    known = list(layers)
    if any(type(layer) not in (Convolution, DepthwiseConvolution, GridPool, Resize) for layer in known):
        return None  # a subclass exists because it differs
    match known:
        case [GridPool() as pool, Convolution(kernel=(1, 1)) as last, Resize()]:
            return Form(input, in_channels, last.filters, last.batch_norm, last.relu, grid=pool.grid)
        case [Convolution(kernel=(1, 1)) as last]:
            return Form(input, in_channels, last.filters, last.batch_norm, last.relu)
        case [DepthwiseConvolution() as first, Convolution(kernel=(1, 1)) as last]:
            rows, columns = first.taps(0), first.taps(1)
            return Form(
                input,
                in_channels,
                last.filters,
                last.batch_norm,
                last.relu,
                dy=tuple(y for y in rows for _ in columns),
                dx=tuple(x for _ in rows for x in columns),
                depthwise_norm=first.batch_norm,
                depthwise_relu=first.relu,
                kernel=first.kernel,
                rate=first.rate,
            )
    return None


@dataclass(frozen=True)
class Task:
    """All that a plan depends on. It is also text (:meth:`dumps`), so that it can be an operator's argument."""

    in_channels: int
    branches: tuple[Form, ...]
    projection: int | None = None
    pooling: Pooling = "paper"
    output_stride: int = 16
    image_pooling_crop_size: Size | None = None
    align_corners: bool = True
    epsilon: tuple[float, ...] = ()
    backend: str = "auto"
    without: frozenset[str] = frozenset()

    @property
    def conventions(self) -> Conventions:
        return Conventions(self.pooling, self.output_stride, self.image_pooling_crop_size)

    @cached_property
    def convolutions(self) -> tuple[tuple[str, bool], ...]:
        """Name of each convolution, in order, and whether batch normalisation follows it."""
        found = []
        for number, form in enumerate(self.branches, 1):
            if form.has_depthwise:
                found.append((f"{number}.depthwise", form.depthwise_norm))
            found.append((f"{number}.product", form.norm))
        if self.projection is not None:
            found.append(("0.product", True))
        return tuple(found)

    @cached_property
    def epsilons(self) -> dict[str, float]:
        """What is added to the variance at each convolution (``epsilon`` has them in order)."""
        return {name: epsilon for (name, _), epsilon in zip(self.convolutions, self.epsilon, strict=True)}

    @property
    def concatenated(self) -> int:
        return sum(form.filters for form in self.branches)

    @property
    def out_channels(self) -> int:
        return self.concatenated if self.projection is None else self.projection

    def channels(self, number: int) -> slice:
        """Where branch ``number`` (from 1) is in the concatenation."""
        return self._channels[number - 1]

    @cached_property
    def _channels(self) -> tuple[slice, ...]:
        ends = tuple(accumulate(form.filters for form in self.branches))
        return tuple(slice(end - form.filters, end) for end, form in zip(ends, self.branches, strict=True))

    def readers(self, number: int) -> tuple[int, ...]:
        """Branches that read F (0) or branch ``number``."""
        return tuple(reader for reader, form in enumerate(self.branches, 1) if form.input == number)

    def grid_size(self, form: Form, size: Size) -> Size:
        """The size that a pooled branch's map of ``size`` is pooled to."""
        assert form.grid is not None
        return GridPool(form.grid).out_size(size, size, self.conventions)

    @property
    def splits(self) -> bool:
        """Whether each branch adds its part of the projection: it must leave its product finished for that."""
        wanted = ("split_projection", "epilogue", "batch_norm")
        return self.projection is not None and all(map(self.does, wanted))

    @property
    def in_place(self) -> bool:
        """Whether branches are ranges of the concatenation."""
        return self.does("concatenation") and not self.splits

    @cached_property
    def training_names(self) -> tuple[str, ...]:
        """The weights of training: matrices [taps, C] and [filters, C], then gamma, beta and the running statistics."""
        return tuple(
            name
            for convolution, norm in self.convolutions
            for name in (convolution, *(f"{convolution}.{part}" for part in NORM if norm))
        )

    @cached_property
    def evaluation_names(self) -> tuple[str, ...]:
        """The weights of an evaluation, in the order in which :func:`dpcdsl_torch.weights.prepare` makes them."""
        return tuple(self._evaluation_names())

    def _evaluation_names(self) -> Iterator[str]:
        for convolution, _ in self.convolutions:
            if convolution == "0.product" and self.splits:
                yield from (f"{number}.projection" for number in range(1, len(self.branches) + 1))
            else:
                yield convolution
            yield f"{convolution}.shift"
            if not self.does("batch_norm"):
                yield f"{convolution}.scale"

    @cached_property
    def kept_names(self) -> tuple[str, ...]:
        """What the training passes keep for the way back, in order; first the result itself."""
        return ("Y", *self._kept_names())

    def _kept_names(self) -> Iterator[str]:
        owners = set()
        for number, form in enumerate(self.branches, 1):
            if form.grid is not None:
                owner = self.pooled_by(number)
                if owner not in owners:
                    owners.add(owner)
                    yield f"G{owner}"
            if form.has_depthwise:
                yield f"D{number}"
                if form.depthwise_norm:
                    yield from (f"{number}.depthwise.mean", f"{number}.depthwise.variance")
            yield f"P{number}"
            if form.norm:
                yield from (f"{number}.product.mean", f"{number}.product.variance")

    def pooled_by(self, number: int) -> int:
        """Of the branches that share a pooling with branch ``number``, the first, which does it."""
        form = self.branches[number - 1]
        if not self.does("shared_pooling"):
            return number
        return next(
            other
            for other, candidate in enumerate(self.branches, 1)
            if (candidate.input, candidate.grid) == (form.input, form.grid)
        )

    def does(self, fusion: str) -> bool:
        return fusion not in self.without

    def dumps(self) -> str:
        return json.dumps(asdict(replace(self, without=frozenset())) | {"without": sorted(self.without)})

    @staticmethod
    @lru_cache(maxsize=256)
    def loads(text: str) -> Task:
        data: dict[str, Any] = json.loads(text)
        branches = tuple(Form(**{k: _frozen(v) for k, v in form.items()}) for form in data.pop("branches"))
        without = frozenset(data.pop("without"))
        return Task(branches=branches, without=without, **{k: _frozen(v) for k, v in data.items()})

    @classmethod
    def of(cls, cell: Cell, in_channels: int, conventions: Conventions, **rest: Any) -> Task | None:
        """The whole cell as one task; None if a branch has no form."""
        channels = (in_channels, *cell.out_channels(in_channels))
        forms = [
            form_of(
                [layer.dilated(conventions.rate_multiplier) for layer in branch.operator.layers(cell.filters)],
                branch.input,
                channels[branch.input],
            )
            for branch in cell.branches
        ]
        known = tuple(form for form in forms if form is not None)
        if len(known) != len(forms):
            return None
        return cls(
            in_channels,
            known,
            pooling=conventions.pooling,
            output_stride=conventions.output_stride,
            image_pooling_crop_size=conventions.image_pooling_crop_size,
            **rest,
        )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def taps_inside(form: Form, size: Size) -> tuple[int, ...]:
    """Taps that see more than padding somewhere on a map of ``size``."""
    return tuple(
        t for t, (y, x) in enumerate(zip(form.dy, form.dx, strict=True)) if abs(y) < size[0] and abs(x) < size[1]
    )
