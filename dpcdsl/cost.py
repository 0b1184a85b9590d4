"""What a cell costs: parameters, multiply-adds and activation memory, in closed form and without a framework.

Everything is one fold over ``operator.layers(filters)``, in exact whole numbers. The defaults count as Table 1 of the
paper does: the weights of the branches' convolutions and their multiply-adds, no batch normalisation, no projection.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from dpcdsl.cell import DEFAULT_FILTERS, MAX_FILTERS, Cell
from dpcdsl.errors import DpcError, shown
from dpcdsl.layers import Conventions, Pooling, Size, checked_size
from dpcdsl.operators import Operator, check_size_kept
from dpcdsl.values import Value

__all__ = [
    "MAX_FEATURES",
    "TABLE_1_FEATURES",
    "TABLE_1_SIZE",
    "Cost",
    "OperatorCost",
    "PartCost",
    "TableRow",
    "cost",
    "operator_cost",
    "paper_table1",
]

#: Most channels F may have here.
MAX_FEATURES = 2**20
#: Channels of F in Table 1's MobileNet-v2 rows.
TABLE_1_FEATURES = 320
#: The map of Table 1: an image of 1025x2049 at output stride 16.
TABLE_1_SIZE: Size = (65, 129)

_PAPER = Conventions()


class OperatorCost(NamedTuple):
    """Cost of one operator on one map; the numbers are those of :class:`PartCost`."""

    params: int
    madds: int
    activation_bytes: int
    out_channels: int


class PartCost(Value):
    """Cost of a part of a cell: a branch, the concatenation, or the projection.

    name: ``Y1``, ``Y2``, … for a branch, ``Y`` for the concatenation, ``projection``.
    operator: as it is written in text (``sepconv3x3 rate 1x6``); ``concatenation`` and ``conv1x1`` for the last two.
    params: convolution weights; with ``batch_norm`` gamma and beta as well, 2 for each normalised channel. Running
        statistics are buffers, not parameters.
    madds: multiply-adds for one image, 2 FLOPs each. A convolution has one for each weight and position of its output;
        taps that read padding count, as in all published tables. With ``batch_norm`` one more for each element of the
        normalised map: in evaluation batch normalisation is ``a x + b``, and ``a`` and ``b`` are known beforehand.
        The additions of pooling, bilinear resizing, ReLU and the concatenation never count.
    activation_bytes: bytes, for one image, of every map that the part writes, each counted once: what eager execution
        allocates when batch normalisation and ReLU work in place on the convolution's output. F is not counted.
    out_channels: channels of the part's output.
    """

    name: str
    operator: str
    params: int
    madds: int
    activation_bytes: int
    out_channels: int


class Cost(Value):
    """Cost of a cell and the settings it holds for, as :func:`cost` returns it.

    ``params``, ``madds`` and ``activation_bytes`` are the sums over :attr:`parts`; see :class:`PartCost` for what they
    count.
    """

    params: int
    madds: int
    activation_bytes: int
    branches: tuple[PartCost, ...]
    concatenation: PartCost
    projection: PartCost | None
    features: int
    size: Size
    filters: int
    batch_norm: bool
    pooling: Pooling
    output_stride: int
    image_pooling_crop_size: Size | None
    bytes_per_element: int

    @property
    def parts(self) -> tuple[PartCost, ...]:
        """The branches, the concatenation and, where there is one, the projection."""
        return *self.branches, self.concatenation, *([self.projection] if self.projection else [])


def cost(
    cell: Cell,
    features: int = TABLE_1_FEATURES,
    size: Size = TABLE_1_SIZE,
    *,
    batch_norm: bool = False,
    projection: int | None = None,
    pooling: Pooling = "paper",
    output_stride: int = 16,
    image_pooling_crop_size: Size | None = None,
    bytes_per_element: int = 4,
) -> Cost:
    """What ``cell`` costs on a feature map of ``features`` channels and ``size`` (height, width) positions.

    features: channels of F, 1 to :data:`MAX_FEATURES`.
    size: of the map, not of the image.
    batch_norm: count it (see :class:`PartCost`).
    projection: filters of a 1×1 convolution after the concatenation, followed by batch normalisation; None for none.
    pooling, output_stride, image_pooling_crop_size: see :class:`~dpcdsl.layers.Conventions`. The 1×1 convolution of a
        pooling runs at the pooled size: the grid in the paper's way, map - window + 1 in the sliding one.
    bytes_per_element: of an activation, 1 to 16: 4 for float32, 2 for float16 and bfloat16.

    Raises :class:`DpcError` (DPC062) on a setting outside these ranges.

    >>> from dpcdsl.operators import Operator, check_size_kept
    >>> cost(Cell.of((0, Operator.of("conv1x1")))).params
    81920
    """
    _check_whole("features", features, MAX_FEATURES)
    size = checked_size(size, "size")
    if projection is not None:
        _check_whole("projection", projection, MAX_FILTERS)
    _check_whole("bytes_per_element", bytes_per_element, 16)
    if image_pooling_crop_size is not None:
        image_pooling_crop_size = checked_size(image_pooling_crop_size, "image_pooling_crop_size")
    conventions = Conventions(pooling, output_stride, image_pooling_crop_size)
    batch_norm = bool(batch_norm)

    def part(name: str, operator: Operator, in_channels: int, filters: int) -> PartCost:
        found = operator_cost(
            operator,
            in_channels,
            size,
            filters,
            conventions=conventions,
            batch_norm=batch_norm,
            bytes_per_element=bytes_per_element,
        )
        return PartCost(name=name, operator=str(operator), **found._asdict())

    channels = [features]
    branches = []
    for number, branch in enumerate(cell.branches, 1):
        branches.append(part(f"Y{number}", branch.operator, channels[branch.input], cell.filters))
        channels.append(branches[-1].out_channels)
    concatenated = sum(channels[1:])
    concatenation = PartCost(
        name="Y",
        operator="concatenation",
        params=0,
        madds=0,
        activation_bytes=concatenated * size[0] * size[1] * bytes_per_element,
        out_channels=concatenated,
    )
    projected = part("projection", Operator.of("conv1x1"), concatenated, projection) if projection else None
    parts = [*branches, concatenation, *([projected] if projected else [])]
    return Cost(
        params=sum(part.params for part in parts),
        madds=sum(part.madds for part in parts),
        activation_bytes=sum(part.activation_bytes for part in parts),
        branches=tuple(branches),
        concatenation=concatenation,
        projection=projected,
        features=features,
        size=size,
        filters=cell.filters,
        batch_norm=batch_norm,
        pooling=pooling,
        output_stride=output_stride,
        image_pooling_crop_size=image_pooling_crop_size,
        bytes_per_element=bytes_per_element,
    )


# Cached: a space asks for the same few operators again and again.
@lru_cache(maxsize=2**16)
def operator_cost(
    operator: Operator,
    in_channels: int,
    size: Size,
    filters: int = DEFAULT_FILTERS,
    *,
    conventions: Conventions = _PAPER,
    batch_norm: bool = False,
    bytes_per_element: int = 4,
) -> OperatorCost:
    """Cost of ``operator`` on a map of ``in_channels`` and ``size`` with ``filters`` filters to a convolution.

    The summand of :func:`cost` for one branch, without its checks: the numbers are whole and from 1 up, ``size`` is a
    tuple. Raises :class:`DpcError`: DPC062 if the sliding pooling's window does not fit, DPC065 if the operator's last
    layer does not come back to ``size``.
    """
    params = madds = written = 0
    channels, out_size = in_channels, size
    for plain in operator.layers(filters):
        layer = plain.dilated(conventions.rate_multiplier)
        out_size = layer.out_size(out_size, size, conventions)
        positions = out_size[0] * out_size[1]
        normalised = layer.normalised_channels(channels) if batch_norm else 0
        params += layer.weights(channels) + 2 * normalised
        madds += layer.madds(channels, positions) + normalised * positions
        channels = layer.out_channels(channels)
        written += channels * positions
    check_size_kept(operator, size, out_size)
    return OperatorCost(params, madds, written * bytes_per_element, channels)


def _check_whole(name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise DpcError.of("DPC062", f"{name} must be a whole number from 1 to {largest}, not {shown(value)}")


class TableRow(Value):
    """A row of the paper's Table 1: what it prints and what we count.

    paper_params, paper_madds: as printed (``0.36M``, ``3.00B``).
    params, madds: ours, by the same conventions.
    params_paper_fits: a count that does round to ``paper_params`` where ``params`` does not; ``note`` says what of.
    """

    backbone: str
    module: str
    features: int
    paper_params: str
    paper_madds: str
    params: int
    madds: int
    params_paper_fits: int | None = None
    note: str | None = None


def paper_table1(dpc: Cell, aspp: Cell) -> tuple[TableRow, ...]:
    """Table 1 of the paper, in its order, beside our counts for the published cell ``dpc`` and for ``aspp``.

    The multiply-adds agree within 0.5 %. So do DPC's parameters; the paper's parameters of ASPP fit only a count of
    its 1×1 convolution, its image pooling and *one* of its three separable convolutions.
    """
    printed = [
        ("MobileNet-v2", "ASPP", 320, "0.25M", "2.82B"),
        ("MobileNet-v2", "DPC", 320, "0.36M", "3.00B"),
        ("Modified Xception", "ASPP", 2048, "1.59M", "18.12B"),
        ("Modified Xception", "DPC", 2048, "0.81M", "6.84B"),
    ]
    rows = []
    for backbone, module, features, paper_params, paper_madds in printed:
        cell = aspp if module == "ASPP" else dpc
        ours = cost(cell, features, TABLE_1_SIZE)
        fits = note = None
        if module == "ASPP":
            # ASPP's separable convolutions differ only in their rates: keep one branch of each kind.
            of_kind = {b.operator.kind: part.params for b, part in zip(cell.branches, ours.branches, strict=True)}
            fits = sum(of_kind.values())
            note = (
                f"the paper's {paper_params} fits only 1x1 + image pooling + one of the three separable convolutions: "
                f"{fits:,} parameters; all of them have {ours.params:,}"
            )
        rows.append(
            TableRow(
                backbone=backbone,
                module=module,
                features=features,
                paper_params=paper_params,
                paper_madds=paper_madds,
                params=ours.params,
                madds=ours.madds,
                params_paper_fits=fits,
                note=note,
            )
        )
    return tuple(rows)
