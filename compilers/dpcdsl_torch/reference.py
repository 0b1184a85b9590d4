"""The eager oracle: a cell as plain torch modules, one a layer, nothing fused, nothing planned.

Every other way to run a cell is judged by this one, so it shares no code with them and is written to be read beside
the authors' TensorFlow code, whose numbers it matches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor, nn

from dpcdsl.cell import Cell, tensor_name
from dpcdsl.errors import Diagnostic, DpcError
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Pooling, Resize, Size
from dpcdsl.operators import Operator
from dpcdsl_torch.lowering import Context, MapSized, Settings, layer_names, lower, register

__all__ = [
    "DropoutPlace",
    "EagerCell",
    "EagerOperator",
    "MapResize",
    "SameConvolution",
    "SlidingMean",
    "check_features",
    "parameter_groups",
    "weight_decay_parameters",
]

#: The cell's code drops before the projection, the ASPP code of the same authors after it.
DropoutPlace: TypeAlias = Literal["before_projection", "after_projection"]

# Standard deviations of the authors' separable convolutions, before the truncation at twice their value.
_DEPTHWISE_STD = 0.33
_POINTWISE_STD = 0.06


class SameConvolution(nn.Module):
    """Convolution of stride 1 and SAME padding without bias; batch normalisation and ReLU where the layer has them.

    ``weight`` is [out, in, kh, kw], or [channels, 1, kh, kw] if ``depthwise``; ``bn`` is the batch normalisation.
    ``std`` is that of the truncated normal that the weight is drawn from; None means Xavier uniform.
    """

    def __init__(self, layer: Convolution | DepthwiseConvolution, context: Context, std: float | None) -> None:
        super().__init__()
        self.depthwise = isinstance(layer, DepthwiseConvolution)
        self.std = std
        self.rate = layer.rate
        self.relu = layer.relu
        self.groups = context.in_channels if self.depthwise else 1
        out_channels = layer.out_channels(context.in_channels)
        self.weight = nn.Parameter(torch.empty(out_channels, context.in_channels // self.groups, *layer.kernel))
        self.bn = context.batch_norm(out_channels) if layer.batch_norm else None
        rows, columns = layer.taps(0), layer.taps(1)
        #: Zeros to the left, right, above and below: as far as the outermost taps reach.
        self.padding = (-columns[0], columns[-1], -rows[0], rows[-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.std is None:
            nn.init.xavier_uniform_(self.weight)
        else:
            nn.init.trunc_normal_(self.weight, std=self.std, a=-2 * self.std, b=2 * self.std)
        if self.bn is not None:
            self.bn.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        left, right, above, below = self.padding
        if left == right and above == below:
            padding = (above, left)
        else:  # an even kernel
            x, padding = F.pad(x, self.padding), (0, 0)
        x = F.conv2d(x, self.weight, padding=padding, dilation=self.rate, groups=self.groups)
        if self.bn is not None:
            x = self.bn(x)
        return F.relu(x) if self.relu else x

    def extra_repr(self) -> str:
        out_channels, in_channels, *kernel = self.weight.shape
        shape = f"{out_channels}" if self.depthwise else f"{in_channels}, {out_channels}"
        return f"{shape}, kernel={tuple(kernel)}, rate={self.rate}, relu={self.relu}"


class SlidingMean(nn.Module):
    """The published code's pooling: means over windows of ceil(map / grid), one position apart, without padding.

    A map [H, W] becomes [H - wh + 1, W - ww + 1]. Raises :class:`DpcError` (DPC062) if the window, fixed by
    ``image_pooling_crop_size``, is larger than the map. ``torch.export`` takes the size of the map as a constant here.
    """

    def __init__(self, grid: Size, conventions: Conventions) -> None:
        super().__init__()
        self.grid = grid
        self.conventions = conventions

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        window = (
            self.conventions.sliding_window(0, self.grid[0], height),
            self.conventions.sliding_window(1, self.grid[1], width),
        )
        return F.avg_pool2d(x, window, stride=1)

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


class MapResize(MapSized):
    """Bilinear resize to the size of the operator's input."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, x: Tensor, map_size: Size) -> Tensor:
        return F.interpolate(x, size=map_size, mode="bilinear", align_corners=self.align_corners)

    def extra_repr(self) -> str:
        return f"align_corners={self.align_corners}"


@register(Convolution)
def _lower_convolution(layer: Convolution, context: Context) -> nn.Module:
    # The 1x1 half of a separable convolution is drawn from another distribution than a plain 1x1.
    pointwise = layer.kernel == (1, 1) and isinstance(context.previous, DepthwiseConvolution)
    return SameConvolution(layer, context, std=_POINTWISE_STD if pointwise else None)


@register(DepthwiseConvolution)
def _lower_depthwise_convolution(layer: DepthwiseConvolution, context: Context) -> nn.Module:
    return SameConvolution(layer, context, std=_DEPTHWISE_STD)


@register(GridPool)
def _lower_grid_pool(layer: GridPool, context: Context) -> nn.Module:
    conventions = context.settings.conventions
    # Cell i of g covers floor(i n / g) up to ceil((i + 1) n / g): the windows of GridPool.reads are PyTorch's.
    return nn.AdaptiveAvgPool2d(layer.grid) if conventions.pooling == "paper" else SlidingMean(layer.grid, conventions)


@register(Resize)
def _lower_resize(layer: Resize, context: Context) -> nn.Module:  # noqa: ARG001 (a Resize has no fields)
    return MapResize(context.settings.align_corners)


class EagerOperator(nn.Sequential):
    """An operator: its layers one after the other, each kept under its name (:func:`.lowering.layer_names`)."""

    def __init__(self, operator: Operator, in_channels: int, filters: int, settings: Settings) -> None:
        super().__init__()
        layers = [
            layer.dilated(settings.conventions.rate_multiplier) for layer in operator.layers(filters)
        ]  # rates are written for output stride 16
        previous = None
        for name, layer in zip(layer_names(layers), layers, strict=True):
            module = lower(layer, Context(in_channels, settings, previous))
            try:
                self.add_module(name, module)
            except KeyError:  # torch keeps modules as attributes: `forward`, `a.b` and the like cannot be names
                raise DpcError.of(
                    "DPC064", f"a layer of `{operator.kind}` cannot be called `{name}`", hint="choose a plain word"
                ) from None
            in_channels, previous = layer.out_channels(in_channels), layer

    def forward(self, input: Tensor) -> Tensor:
        map_size = input.shape[-2:]
        for module in self:
            input = module(input, map_size) if isinstance(module, MapSized) else module(input)
        return input


def check_features(features: Tensor, in_channels: int) -> None:
    """Raise :class:`DpcError` (DPC062) unless it is a map [N, C, H, W] of ``in_channels`` channels, from 1x1 up."""
    shape = tuple(features.shape)
    if len(shape) != 4:
        raise DpcError.of(
            "DPC062",
            f"a cell runs on a map [N, C, H, W], not on a tensor of {len(shape)} dimensions",
            hint="a single map becomes a batch of one by `features.unsqueeze(0)`" if len(shape) == 3 else None,
        )
    if shape[1] != in_channels:
        last = shape[3] == in_channels
        raise DpcError.of(
            "DPC062",
            f"the cell was built for {in_channels} channels, and the map has {shape[1]}",
            hint="the map looks like [N, H, W, C]; turn it by `features.permute(0, 3, 1, 2)`"
            if last
            else "in_channels is the number of channels of the backbone's last feature map",
        )
    if not (shape[2] and shape[3]):
        raise DpcError.of("DPC062", f"the map has no positions: its size is {shape[2]}x{shape[3]}")


class EagerCell(nn.Module):
    """A Dense Prediction Cell as a trainable module: [N, ``in_channels``, H, W] to [N, ``out_channels``, H, W].

    Without ``projection`` the result is the concatenation of all branches, in order; with it, the concatenation goes
    through dropout and a 1x1 convolution to ``projection`` channels with batch normalisation and ReLU. Any batch
    (0 too), any map from 1x1 up, any memory format and any floating-point type that torch can convolve will do.

    pooling: ``"paper"``, the mean of each cell of a grid; ``"sliding"``, the published code's sliding mean.
    output_stride: of the backbone; rates are written for 16 and doubled at 8.
    image_pooling_crop_size: (height, width) in pixels of the crop that fixes the sliding window; by default the
        window follows the map.
    projection: channels of the projection; 256 in the paper. None leaves projection and dropout out.
    dropout: probability to drop a value before (or after, ``dropout_place``) the projection, in training.
    batch_norm_momentum: weight of the newest batch in the running statistics. 0.0003 is the authors' decay of 0.9997;
        with so slow a mean a short run needs more, or it is evaluated with stale statistics.
    batch_norm_epsilon: added to the variance.
    fine_tune_batch_norm: False keeps the running statistics, and normalises with them in training too.
    align_corners: of the bilinear resize after a pooling. False is not the authors' and is there to be compared.

    Weights start as the authors' do: truncated normals for separable convolutions (standard deviation 0.33 depthwise
    and 0.06 pointwise), Xavier uniform for every other convolution.

    The ``state_dict`` holds ``branches.I.LAYER.weight`` and ``branches.I.LAYER.bn.*`` with I from 0 (``Y1`` is 0) and
    LAYER ``conv`` (1x1, pooling), or ``depthwise`` and ``pointwise``; then ``projection.weight`` and
    ``projection.bn.*``. ``bn.*`` is as in ``nn.BatchNorm2d``. The names depend on the cell alone.

    Raises :class:`DpcError`: DPC062 for wrong settings, all of them together, and when it is called with a wrong
    input; DPC064 if a layer has no lowering, or its module does not give the map that the layer promises.
    """

    def __init__(
        self,
        cell: Cell,
        in_channels: int,
        *,
        pooling: Pooling = "paper",
        output_stride: int = 16,
        image_pooling_crop_size: Size | None = None,
        projection: int | None = None,
        dropout: float = 0.1,
        dropout_place: DropoutPlace = "before_projection",
        batch_norm_momentum: float = 0.0003,
        batch_norm_epsilon: float = 1e-5,
        fine_tune_batch_norm: bool = True,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        found = [
            *_check_cell(cell),
            *_check_count("in_channels", in_channels),
            *(() if projection is None else _check_count("projection", projection)),
            *_check_number("dropout", dropout, 0 <= _number(dropout) < 1, "from 0 up to, but not including, 1"),
            *_check_choice("dropout_place", dropout_place, get_args(DropoutPlace)),
            *_check_number(
                "batch_norm_momentum", batch_norm_momentum, 0 <= _number(batch_norm_momentum) <= 1, "from 0 to 1"
            ),
            *_check_number(
                "batch_norm_epsilon", batch_norm_epsilon, 0 < _number(batch_norm_epsilon) < float("inf"), "above 0"
            ),
            *_check_choice("fine_tune_batch_norm", fine_tune_batch_norm, (True, False)),
            *_check_choice("align_corners", align_corners, (True, False)),
        ]
        try:
            conventions = Conventions(pooling, output_stride, image_pooling_crop_size)
        except DpcError as error:
            found += error.diagnostics
        if found:
            raise DpcError(found)

        self.cell = cell
        self.in_channels = in_channels
        self.settings = Settings(
            conventions, batch_norm_momentum, batch_norm_epsilon, fine_tune_batch_norm, align_corners
        )
        self.dropout_place = dropout_place
        self._inputs = tuple(branch.input for branch in cell.branches)
        self._channels = (in_channels, *cell.out_channels(in_channels))
        self.branches = nn.ModuleList(
            EagerOperator(branch.operator, self._channels[branch.input], cell.filters, self.settings)
            for branch in cell.branches
        )
        self.dropout: nn.Dropout | None = None
        self.projection: nn.Module | None = None
        concatenated = sum(self._channels[1:])
        self.out_channels = concatenated if projection is None else projection
        if projection is not None:
            self.dropout = nn.Dropout(dropout)
            self.projection = lower(Convolution("projection", projection), Context(concatenated, self.settings))

    @property
    def options(self) -> dict[str, Any]:
        """What it was built with, beside the cell and its channels: ``EagerCell(cell, in_channels, **options)``."""
        settings = self.settings
        return {
            "pooling": settings.conventions.pooling,
            "output_stride": settings.conventions.output_stride,
            "image_pooling_crop_size": settings.conventions.image_pooling_crop_size,
            "projection": None if self.projection is None else self.out_channels,
            "dropout": 0.1 if self.dropout is None else self.dropout.p,
            "dropout_place": self.dropout_place,
            "batch_norm_momentum": settings.batch_norm_momentum,
            "batch_norm_epsilon": settings.batch_norm_epsilon,
            "fine_tune_batch_norm": settings.fine_tune_batch_norm,
            "align_corners": settings.align_corners,
        }

    def concatenate(self, features: Tensor) -> Tensor:
        """All branches' outputs concatenated, before dropout and projection: [N, sum of channels, H, W]."""
        check_features(features, self.in_channels)
        maps = [features]
        for number, (source, operator) in enumerate(zip(self._inputs, self.branches, strict=True), 1):
            maps.append(operator(maps[source]))
            self._check_output(number, maps[number], features)
        return torch.cat(maps[1:], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.concatenate(features)
        if self.projection is None or self.dropout is None:
            return x
        if self.dropout_place == "before_projection":
            projected: Tensor = self.projection(self.dropout(x))
        else:
            projected = self.dropout(self.projection(x))
        return projected

    def _check_output(self, number: int, output: Tensor, features: Tensor) -> None:
        # Only a lowering from outside can get here; torch.cat would not say whose map it was.
        expected = (features.shape[0], self._channels[number], *features.shape[2:])
        if tuple(output.shape) != expected:
            raise DpcError.of(
                "DPC064",
                f"branch {number} ({self.cell.branches[number - 1].operator}) gives a map {_shape(output.shape)}; "
                f"its layers and its input say {_shape(expected)}",
                hint="see that the lowering's module agrees with the layer's out_channels and out_size",
            )

    def extra_repr(self) -> str:
        conventions = self.settings.conventions
        branches = " ".join(
            f"({tensor_name(branch.input)}, {branch.operator}, Y{number})"
            for number, branch in enumerate(self.cell.branches, 1)
        )
        return f"{branches}, pooling={conventions.pooling!r}, output_stride={conventions.output_stride}"


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def _check_cell(cell: object) -> Iterator[Diagnostic]:
    if not isinstance(cell, Cell):
        yield Diagnostic(
            "DPC062", f"the cell must be a dpcdsl.Cell, not {type(cell).__name__}", hint="text is read by `parse_cell`"
        )


def _check_count(name: str, value: object) -> Iterator[Diagnostic]:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield Diagnostic("DPC062", f"{name} must be a whole number from 1 up, not {value!r}")


def _number(value: object) -> float:
    # Not a number compares as false, and so is refused with the same words.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _check_number(name: str, value: object, within: bool, allowed: str) -> Iterator[Diagnostic]:
    if not within:
        yield Diagnostic("DPC062", f"{name} must be a number {allowed}, not {value!r}")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> Iterator[Diagnostic]:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
        choices = " or ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in allowed)
        yield Diagnostic("DPC062", f"{name} must be {choices}, not {value!r}")


def weight_decay_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the authors regularise by ``4e-5 * sum(w ** 2) / 2``: weights of dense convolutions.

    Depthwise weights, batch normalisation and biases are not among them. Works on any module, a whole model with a
    backbone as well: it takes parameters of two and more dimensions, without those of depthwise convolutions.
    """
    exempt = {id(weight) for part in module.modules() if _is_depthwise(part) for weight in part.parameters(False)}
    return [weight for weight in module.parameters() if weight.dim() > 1 and id(weight) not in exempt]


def _is_depthwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return 1 < module.groups == module.in_channels
    return getattr(module, "depthwise", False) is True


def parameter_groups(module: nn.Module, weight_decay: float = 4e-5) -> list[dict[str, Any]]:
    """Two groups for a torch optimizer: the parameters with weight decay, then those without.

    In ``torch.optim.SGD`` a decay of d adds the gradient of ``d * sum(w ** 2) / 2``, the authors' regulariser.
    """
    decayed = weight_decay_parameters(module)
    chosen = {id(weight) for weight in decayed}
    rest = [weight for weight in module.parameters() if id(weight) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
