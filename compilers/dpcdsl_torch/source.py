"""A cell as the source of a PyTorch file of its own, to be read, pasted into another project and edited.

The file imports torch and nothing else. Its module is the :class:`EagerCell` of the same options, and is written from
one: the same keys, the same first weights from the same seed, the same operations on a map. What a cell does not need
is left out: without pooling there is no resize in the file, without projection no dropout.

Lines have at most 88 characters where the numbers in them allow, and are laid out as formatters leave them.
"""

from __future__ import annotations

import inspect
import json
import keyword
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import nn

from dpcdsl.cell import Cell, tensor_name
from dpcdsl.errors import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Resize, Size
from dpcdsl.syntax import format_cell
from dpcdsl_torch import eager
from dpcdsl_torch.reference import (
    _DEPTHWISE_STD,
    _POINTWISE_STD,
    EagerCell,
    MapResize,
    SameConvolution,
    SlidingMean,
)

__all__ = ["source"]

_WIDTH = 88
_LAYERS = (Convolution, DepthwiseConvolution, GridPool, Resize)
_MODULES = (SameConvolution, nn.AdaptiveAvgPool2d, SlidingMean, MapResize)


def source(cell: Cell, in_channels: int, **options: Any) -> str:
    """The text of a Python file whose ``DensePredictionCell()`` is ``EagerCell(cell, in_channels, **options)``.

    It differs in what it says of a wrong map: that is left to torch.

    Raises :class:`DpcError`: DPC062 for an unknown option or a wrong value, DPC064 for a layer that has no form as
    source: one's own, or one of dpcdsl's under another lowering.
    """
    if isinstance(cell, Cell):  # if it is none, the compiler says so
        _check_layers(cell)
    with torch.device("meta"):  # neither memory nor random numbers are spent on weights that nobody runs
        module = eager.compile(cell, in_channels=in_channels, **options)
    _check_modules(module)
    body = "\n\n\n".join("\n".join(lines) for lines in _classes(module))
    return f"{_docstring(module, options)}\n\n{_imports(body)}\n\n\n{body}\n"


def _check_layers(cell: Cell) -> None:
    for branch in cell.branches:
        for layer in branch.operator.layers(cell.filters):
            if type(layer) not in _LAYERS:
                raise _no_source(type(layer).__name__)


def _check_modules(module: EagerCell) -> None:
    for branch in module.branches:
        for name, part in branch.named_children():
            if type(part) not in _MODULES:
                raise _no_source(name)
    if type(module.projection) not in (SameConvolution, type(None)):
        raise _no_source("projection")


def _no_source(name: str) -> DpcError:
    return DpcError.of(
        "DPC064",
        f"the layer `{name}` has no form as source",
        hint="compile the cell, and use the module itself or its file, .pt2 or .onnx",
    )


# What stands above the classes


def _docstring(module: EagerCell, options: dict[str, Any]) -> str:
    known = list(inspect.signature(EagerCell).parameters.values())[2:]
    values = {"in_channels": module.in_channels} | {p.name: options.get(p.name, p.default) for p in known}
    return "\n".join(
        [
            '"""A Dense Prediction Cell in PyTorch, written by dpcdsl.',
            "",
            "The cell, as `dpcdsl.parse_cell` reads it:",
            "",
            textwrap.indent(format_cell(module.cell).rstrip(), "    "),
            "",
            "The options that it was written with:",
            "",
            *(f"    {name} = {_spelled(value)}" for name, value in values.items()),
            "",
            "Its state_dict is that of `dpcdsl_torch.EagerCell` with this cell and these options.",
            '"""',
        ]
    )


def _spelled(value: object) -> str:
    """As Python writes it; a number of NumPy's as one of Python's."""
    match value:
        case str():
            return f'"{value}"'
        case float():
            return repr(float(value))
        case tuple() | list():
            return f"({', '.join(_spelled(part) for part in value)})"
    return str(value)


def _imports(body: str) -> str:
    imports = {"torch": "import torch", "F": "import torch.nn.functional as F", "nn": "from torch import Tensor, nn"}
    return "\n".join(line for name, line in imports.items() if re.search(rf"(?<![\w.]){name}\.\w", body))


# Layout


@dataclass(frozen=True)
class _Call:
    """``opening``, arguments, ``closing``: on one line where they fit, otherwise one argument a line."""

    opening: str
    arguments: tuple[_Call | str, ...]
    closing: str = ")"

    def __str__(self) -> str:
        return f"{self.opening}{', '.join(map(str, self.arguments))}{self.closing}"

    def lines(self, indent: int, end: str = "") -> Iterator[str]:
        margin = " " * indent
        line = f"{margin}{self}{end}"
        if not self.arguments or len(line) <= _WIDTH:
            yield line
            return
        yield f"{margin}{self.opening}"
        for argument in self.arguments:
            if isinstance(argument, str):
                yield f"{margin}    {argument},"
            else:
                yield from argument.lines(indent + 4, ",")
        yield f"{margin}{self.closing}{end}"


def _as_keyword(name: str, call: _Call) -> _Call:
    # Beyond ASCII, Python normalises what it reads as a word, and the key in the state_dict would be another.
    if name.isascii() and name.isidentifier() and not keyword.iskeyword(name):
        return _Call(f"{name}={call.opening}", call.arguments, call.closing)
    entry = _Call(f"{json.dumps(name, ensure_ascii=False)}: {call.opening}", call.arguments, call.closing)
    return _Call("**{", (entry,), "}")


# The classes, as lines


def _classes(module: EagerCell) -> Iterator[Iterable[str]]:
    parts = list(module.modules())
    kinds = {type(part) for part in parts}
    family = _Convolutions(tuple(part for part in parts if isinstance(part, SameConvolution)))
    if True in family.batch_norms:
        yield _batch_norm(module)
    yield from family.classes()
    if SlidingMean in kinds and module.settings.conventions.image_pooling_crop_size is None:
        yield [_SLIDING_MEAN]
    if MapResize in kinds:
        yield [_RESIZE.format(align_corners=module.settings.align_corners)]
    # Before a stroke, `self` does not stand in the way of a layer that is called so.
    stroke = "/, " if any(hasattr(branch, "self") for branch in module.branches) else ""
    yield [_BRANCH.format(stroke=stroke) + (_BRANCH_FORWARD if MapResize in kinds else "")]
    yield _cell(module, family)


_BATCH_NORM = '''\
class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of [N, channels, H, W] that can train on one value a channel.

    PyTorch refuses a batch of one image pooled to 1x1. Here it works as in TensorFlow:
    a value is its own mean, so the output is the bias, and the running variance takes
    up 0. An empty batch leaves the running statistics alone.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps={epsilon}, momentum={momentum})

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.numel() > input.shape[1]:
            return super().forward(input)
        if len(input) == 1:
            value = input.detach().flatten().to(self.running_mean.dtype)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(value, self.momentum)
            self.running_var.mul_(1 - self.momentum)
        # The bias, connected with the input and the scale, so that they have gradients.
        output = (input - input) * self.weight[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)'''

_FROZEN_BATCH_NORM = '''\
class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of [N, channels, H, W] by running statistics that stay.

    They are used in training too; scale and bias are trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps={epsilon}, momentum={momentum})

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
        )'''

_SLIDING_MEAN = '''\
class SlidingMean(nn.Module):
    """Means over windows of ceil(map / grid), one position apart, without padding.

    [N, C, H, W] to [N, C, H - height + 1, W - width + 1] for a window [height, width].
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        window = (-(-x.shape[-2] // self.grid[0]), -(-x.shape[-1] // self.grid[1]))
        return F.avg_pool2d(x, window, stride=1)'''

_RESIZE = '''\
class Resize(nn.Module):
    """Bilinear resize of [N, C, h, w] to the branch's [N, C, H, W]."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners={align_corners})'''

_BRANCH = '''\
class Branch(nn.Sequential):
    """Layers one after the other, each under its name in the state_dict."""

    def __init__(self, {stroke}**layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)'''

_BRANCH_FORWARD = """

    def forward(self, input: Tensor) -> Tensor:
        x, size = input, input.shape[-2:]
        for layer in self:
            x = layer(x, size) if isinstance(layer, Resize) else layer(x)
        return x"""


def _batch_norm(module: EagerCell) -> list[str]:
    settings = module.settings
    template = _BATCH_NORM if settings.fine_tune_batch_norm else _FROZEN_BATCH_NORM
    return [
        template.format(
            epsilon=_spelled(settings.batch_norm_epsilon),
            momentum=_spelled(settings.batch_norm_momentum),
        )
    ]


@dataclass(frozen=True)
class _Convolutions:
    """All convolutions of a file. What they have in common stands in their classes, and in no call."""

    members: tuple[SameConvolution, ...]

    @cached_property
    def batch_norms(self) -> set[bool]:
        return {c.bn is not None for c in self.members}

    @cached_property
    def only_1x1(self) -> bool:
        return all(_kernel(c) == (1, 1) and not c.depthwise for c in self.members)

    @cached_property
    def depthwise_kernels(self) -> set[Size]:
        return {_kernel(c) for c in self.members if c.depthwise}

    @cached_property
    def choices(self) -> dict[str, str]:
        """Types and defaults of the parameters that only some cells need."""
        found = {}
        if any(_pad(c) is not None for c in self.members):
            found["padding"] = 'str | int = "same"'
        if len(self.batch_norms) > 1:
            found["batch_norm"] = "bool = True"
        if not all(c.relu for c in self.members):
            found["relu"] = "bool = True"
        return found

    def call(self, c: SameConvolution) -> _Call:
        """How ``c`` is made."""
        out_channels, in_channels, *_ = c.weight.shape
        chosen = {
            "padding": None if _pad(c) is None else 0,
            "batch_norm": None if c.bn is not None else False,
            "relu": None if c.relu else False,
        }
        rest = [f"{name}={chosen[name]}" for name in self.choices if chosen[name] is not None]
        if c.depthwise:
            kernel = [] if self.depthwise_kernels == {(3, 3)} else [f"kernel={_kernel(c)}"]
            return _Call("DepthwiseConvolution(", (f"{out_channels}", *kernel, f"rate={c.rate}", *rest))
        channels = (f"{in_channels}", f"{out_channels}")
        if _is_pointwise(c):
            return _Call("PointwiseConvolution(", (*channels, *rest))
        if _kernel(c) == (1, 1):  # a single tap has no rate; at another output stride the layer has one
            return _Call("Convolution(", (*channels, *rest))
        return _Call("Convolution(", (*channels, f"kernel={_kernel(c)}", f"rate={c.rate}", *rest))

    def classes(self) -> Iterator[Iterable[str]]:
        if self.members:
            yield self.convolution()
        if self.depthwise_kernels:
            yield self.depthwise_convolution()
        if any(_is_pointwise(c) for c in self.members):
            yield ["class PointwiseConvolution(Convolution):", _docline(_POINTWISE), "", *_drawn(_POINTWISE_STD)]

    def convolution(self) -> Iterator[str]:
        parameters = ["in_channels: int", "out_channels: int"]
        passed = ["in_channels", "out_channels"]
        if self.only_1x1:
            passed.append("kernel_size=1")
        else:
            parameters += ["kernel: tuple[int, int] = (1, 1)", "rate: tuple[int, int] = (1, 1)"]
            passed += ["kernel", "padding=padding" if "padding" in self.choices else 'padding="same"', "dilation=rate"]
        if self.depthwise_kernels:
            parameters.append("groups: int = 1")
            passed.append("groups=groups")
        parameters += [f"{name}: {value}" for name, value in self.choices.items()]
        yield "class Convolution(nn.Conv2d):"
        yield from self.docstring()
        yield ""
        yield from _Call("def __init__(", ("self", *parameters), ") -> None:").lines(4)
        yield from _Call("super().__init__(", (*passed, "bias=False")).lines(8)
        if "batch_norm" in self.choices:
            yield "        self.bn = BatchNorm(out_channels) if batch_norm else None"
        elif True in self.batch_norms:
            yield "        self.bn = BatchNorm(out_channels)"
        if "relu" in self.choices:
            yield "        self.relu = relu"
        yield ""
        yield "    def reset_parameters(self) -> None:"
        yield "        nn.init.xavier_uniform_(self.weight)"
        yield ""
        yield "    def forward(self, input: Tensor) -> Tensor:"
        yield from self.forward()

    def docstring(self) -> Iterator[str]:
        steps = ["batch normalisation"] * (True in self.batch_norms) + ["ReLU"] * any(c.relu for c in self.members)
        then = f"; then {' and '.join(steps)}" if steps else ""
        wanted = " where wanted" if steps and {"batch_norm", "relu"} & self.choices.keys() else ""
        yield f'    """SAME convolution without bias{then}{wanted}.'
        yield ""
        yield "    [N, in_channels, H, W] to [N, out_channels, H, W]."
        if "padding" in self.choices:
            yield "    nn.ZeroPad2d stands before an even kernel: as in TensorFlow, less of it goes first."
        yield '    """'

    def forward(self) -> Iterator[str]:
        if not self.choices.keys() & {"batch_norm", "relu"} and True in self.batch_norms:
            yield "        return F.relu(self.bn(super().forward(input)))"
            return
        yield "        x = super().forward(input)"
        if "batch_norm" in self.choices:
            yield "        if self.bn is not None:"
            yield "            x = self.bn(x)"
        elif True in self.batch_norms:
            yield "        x = self.bn(x)"
        yield f"        return {'F.relu(x) if self.relu else x' if 'relu' in self.choices else 'F.relu(x)'}"

    def depthwise_convolution(self) -> Iterator[str]:
        parameters = ["self", "channels: int", "rate: tuple[int, int]"]
        kernel = "(3, 3)"
        if self.depthwise_kernels != {(3, 3)}:
            kernel = "kernel"
            parameters.insert(2, "kernel: tuple[int, int]")
        parameters += [f"{name}: {value}" for name, value in self.choices.items()]
        passed = ["channels", "channels", kernel, "rate", "groups=channels", *(f"{n}={n}" for n in self.choices)]
        yield "class DepthwiseConvolution(Convolution):"
        yield _docline("The same with one kernel a channel: [N, channels, H, W] to the same shape.")
        yield ""
        yield from _Call("def __init__(", tuple(parameters), ") -> None:").lines(4)
        yield from _Call("super().__init__(", tuple(passed)).lines(8)
        yield ""
        yield from _drawn(_DEPTHWISE_STD)


_POINTWISE = "The 1x1 convolution after a depthwise one, with first weights of its own."


def _docline(text: str) -> str:
    return f'    """{text}"""'


def _drawn(std: float) -> Iterator[str]:
    yield "    def reset_parameters(self) -> None:"
    yield f"        nn.init.trunc_normal_(self.weight, std={std}, a={-2 * std}, b={2 * std})"


def _kernel(c: SameConvolution) -> Size:
    height, width = c.weight.shape[-2:]
    return height, width


def _is_pointwise(c: SameConvolution) -> bool:
    return not c.depthwise and c.std is not None


def _pad(c: SameConvolution) -> _Call | None:
    """What pads for an even kernel. For it alone torch's own padding warns that it copies the map."""
    left, right, above, below = c.padding
    return None if (left, above) == (right, below) else _Call("nn.ZeroPad2d(", (f"{c.padding}",))


# The cell


def _cell(module: EagerCell, family: _Convolutions) -> Iterator[str]:
    yield "class DensePredictionCell(nn.Module):"
    yield from _cell_docstring(module, family)
    yield ""
    yield f"    in_channels = {module.in_channels}"
    yield f"    out_channels = {module.out_channels}"
    yield ""
    yield "    def __init__(self) -> None:"
    yield "        super().__init__()"
    yield "        self.branches = nn.ModuleList("
    yield "            ["
    for number, (branch, operator) in enumerate(zip(module.cell.branches, module.branches, strict=True), 1):
        yield f"                # ({tensor_name(branch.input)}, {branch.operator}, Y{number})"
        layers = (_as_keyword(name, call) for name, call in _layers(operator, family))
        yield from _Call("Branch(", tuple(layers)).lines(16, ",")
    yield "            ]"
    yield "        )"
    if isinstance(module.projection, SameConvolution) and module.dropout is not None:
        projection = family.call(module.projection)
        yield f"        self.dropout = nn.Dropout({_spelled(module.dropout.p)})"
        yield from _Call(f"self.projection = {projection.opening}", projection.arguments).lines(8)
    yield ""
    yield "    def forward(self, features: Tensor) -> Tensor:"
    yield from _cell_forward(module)


def _cell_docstring(module: EagerCell, family: _Convolutions) -> Iterator[str]:
    end = "." if module.projection is None else ", then a projection."
    yield '    """The outputs of all branches, concatenated in order' + end
    yield ""
    yield f"    [N, {module.in_channels}, H, W] to [N, {module.out_channels}, H, W]."
    stride, multiplier = module.settings.conventions.output_stride, module.settings.conventions.rate_multiplier
    if multiplier > 1 and not family.only_1x1:
        yield f"    For a backbone of output stride {stride}: rates are {multiplier} times those of the cell."
    yield '    """'


def _layers(operator: nn.Module, family: _Convolutions) -> Iterator[tuple[str, _Call]]:
    taken = dict(operator.named_children())
    for name, part in operator.named_children():
        match part:
            case SameConvolution():
                pad = _pad(part)
                if pad is not None:
                    free = next(f"{name}_pad{n or ''}" for n in count() if f"{name}_pad{n or ''}" not in taken)
                    yield free, pad
                yield name, family.call(part)
            case SlidingMean() if part.conventions.image_pooling_crop_size is not None:
                yield name, _Call("nn.AvgPool2d(", (f"{_fixed_window(part)}", "stride=1"))
            case SlidingMean():
                yield name, _Call("SlidingMean(", (f"{part.grid}",))
            case nn.AdaptiveAvgPool2d():
                yield name, _Call("nn.AdaptiveAvgPool2d(", (f"{part.output_size}",))
            case MapResize():
                yield name, _Call("Resize(", ())


def _fixed_window(pooling: SlidingMean) -> Size:
    largest = 2**31  # the crop fixes the window; a map is only asked whether it is large enough
    height, width = (pooling.conventions.sliding_window(axis, pooling.grid[axis], largest) for axis in (0, 1))
    return height, width


def _cell_forward(module: EagerCell) -> Iterator[str]:
    outputs = tuple(f"y{number}" for number in range(1, len(module.cell) + 1))
    for number, branch in enumerate(module.cell.branches):
        read = outputs[branch.input - 1] if branch.input else "features"
        yield f"        {outputs[number]} = self.branches[{number}]({read})"
    concatenation = (_Call("(", outputs if len(outputs) > 1 else (f"{outputs[0]},",)), "dim=1")
    if module.projection is None:
        yield from _Call("return torch.cat(", concatenation).lines(8)
        return
    yield from _Call("y = torch.cat(", concatenation).lines(8)
    steps = ("projection", "dropout") if module.dropout_place == "before_projection" else ("dropout", "projection")
    yield f"        projected: Tensor = self.{steps[0]}(self.{steps[1]}(y))"
    yield "        return projected"
