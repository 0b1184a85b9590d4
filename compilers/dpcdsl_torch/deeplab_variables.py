"""Weights of the authors' TensorFlow code, by their variable names, into a compiled cell.

Branch i (from 0) of a cell is ``branch{i}/weights`` (1x1 and pooling), or ``branch{i}_depthwise/depthwise_weights``
and ``branch{i}_pointwise/weights``; then ``concat_projection/weights``, and next to each of them
``BatchNorm/{gamma,beta,moving_mean,moving_variance}``. All of it stands in the scope ``meta_architecture``. ASPP says
``image_pooling``, ``aspp0``, ``aspp1_depthwise``, ``aspp1_pointwise``, … and ``concat_projection``, in no scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpcdsl.cell import Cell
from dpcdsl.errors import Diagnostic, DpcError, nearest
from dpcdsl.layers import Convolution, DepthwiseConvolution
from dpcdsl_torch.lowering import layer_names
from dpcdsl_torch.reference import EagerCell

__all__ = ["load_deeplab_variables"]

_CELL_SCOPE = "meta_architecture/"
_ASPP = re.compile(r"(^|/)(aspp\d|image_pooling/)")
_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# TensorFlow's kernels are [kh, kw, in, out], depthwise ones [kh, kw, channels, 1]; torch has [out, in, kh, kw].
_DENSE = (3, 2, 0, 1)
_DEPTHWISE = (2, 3, 0, 1)

# More left-over names than this are a wrong cell or a whole checkpoint, not slips of the pen.
_MOST_SLIPS = 20


@dataclass(frozen=True)
class _Variable:
    """One variable: its name in TensorFlow, its ``state_dict`` key, and how its axes are turned."""

    name: str
    key: str
    axes: tuple[int, ...] = (0,)

    def shape_for(self, target: Tensor) -> tuple[int, ...]:
        """The shape that TensorFlow gives to what is ``target`` in torch."""
        return tuple(target.shape[self.axes.index(axis)] for axis in range(len(self.axes)))


def load_deeplab_variables(module: EagerCell, variables: Mapping[str, Any], *, scope: str | None = None) -> None:
    """Fill ``module`` with the variables of a checkpoint of the authors' code: arrays (or tensors) by name.

    The arrays keep TensorFlow's layout. ``scope`` is what stands before the names; by default that is
    ``meta_architecture`` for ``branch{i}`` names and nothing for ASPP's. ASPP's names fit a cell of an optional
    ``avgpool grid 1x1``, a ``conv1x1`` and ``sepconv3x3`` branches, in this order, all of which read F.

    Exactly the variables of the cell must be there: the backbone's, the optimizer's slots (``…/Momentum``), moving
    averages and ``global_step`` are for the caller to leave out. Otherwise one :class:`DpcError` (DPC066) lists all
    that is missing, left over or of another shape, and nothing is loaded. ``num_batches_tracked``, which
    TensorFlow does not have, stays as it is.
    """
    state = module.state_dict()
    bases, prefix = _branch_names(module.cell, variables, None if scope is None else _as_prefix(scope))
    expected = {v.name: v for v in _variables(module.cell, bases, prefix, projected=module.projection is not None)}
    covered = {variable.key for variable in expected.values()}
    missing = [name for name in expected if name not in variables]
    left = [name for name in variables if name not in expected]

    arrays: dict[str, Tensor] = {}
    found: list[Diagnostic] = []
    for name, variable in expected.items():
        if name in variables:
            try:
                arrays[variable.key] = _fitted(variable, variables[name], state[variable.key])
            except DpcError as error:
                found += error.diagnostics
    found += (
        Diagnostic("DPC066", f"the authors' code has no variable for `{key}`", hint="it has only the paper's operators")
        for key in state
        if key not in covered and not key.endswith(".num_batches_tracked")
    )
    total = len(found) + len(left) + len(missing)
    slips = missing if len(left) <= _MOST_SLIPS else []
    found += (
        Diagnostic(
            "DPC066",
            f"the cell has no place for the variable `{name}`",
            hint=_remedy_without_projection(name, module)
            or _remedy_of_scope(name, missing, prefix)
            or _remedy_of_slip(name, slips)
            or "pass the cell's variables alone: no backbone, no optimizer slots, no global_step",
        )
        for name in left[: DpcError.limit // 2]  # what is missing shall be seen as well
    )
    found += (
        Diagnostic(
            "DPC066",
            f"the variable `{name}` is missing",
            hint="the cell, and whether it has a projection, must be those of the run that wrote the variables",
        )
        for name in missing
    )
    if found:
        shown = found[: DpcError.limit]
        raise DpcError(shown, total - len(shown))

    with torch.no_grad():
        for key, array in arrays.items():
            state[key].copy_(array)


def _as_prefix(scope: str) -> str:
    return scope.rstrip("/") + "/" if scope else ""


def _branch_names(cell: Cell, variables: Mapping[str, Any], prefix: str | None) -> tuple[list[str], str]:
    """How the code that wrote ``variables`` called the branches, and in which scope."""
    if not any(_ASPP.search(name) for name in variables):
        return [f"branch{index}" for index in range(len(cell))], _CELL_SCOPE if prefix is None else prefix
    kinds = [str(b.operator) if b.operator.kind == "avgpool" else b.operator.kind for b in cell.branches]
    pooled = kinds[:1] == ["avgpool grid 1x1"]
    atrous = len(kinds) - pooled - 1
    if kinds[pooled:] != ["conv1x1"] + ["sepconv3x3"] * atrous or any(branch.input for branch in cell.branches):
        raise DpcError.of(
            "DPC066",
            "the variables are ASPP's, and the cell is not ASPP",
            hint="ASPP is an optional `avgpool grid 1x1`, a `conv1x1` and `sepconv3x3` branches, which all read F",
        )
    return ["image_pooling"] * pooled + [f"aspp{index}" for index in range(atrous + 1)], prefix or ""


def _variables(cell: Cell, bases: Sequence[str], prefix: str, *, projected: bool) -> Iterator[_Variable]:
    for index, (branch, base) in enumerate(zip(cell.branches, bases, strict=True)):
        layers = branch.operator.layers(cell.filters)
        for name, layer in zip(layer_names(layers), layers, strict=True):
            # A subclass is a layer of someone's own: the authors' code does not have it.
            if type(layer) is Convolution or type(layer) is DepthwiseConvolution:
                scope = f"{prefix}{base}" if name == "conv" else f"{prefix}{base}_{name}"
                yield from _convolution(scope, f"branches.{index}.{name}", layer)
    if projected:
        yield from _convolution(f"{prefix}concat_projection", "projection", Convolution("projection", 1))


def _convolution(scope: str, key: str, layer: Convolution | DepthwiseConvolution) -> Iterator[_Variable]:
    if isinstance(layer, DepthwiseConvolution):
        yield _Variable(f"{scope}/depthwise_weights", f"{key}.weight", _DEPTHWISE)
    else:
        yield _Variable(f"{scope}/weights", f"{key}.weight", _DENSE)
    if layer.batch_norm:
        for theirs, ours in _BATCH_NORM.items():
            yield _Variable(f"{scope}/BatchNorm/{theirs}", f"{key}.bn.{ours}")


def _fitted(variable: _Variable, value: Any, target: Tensor) -> Tensor:
    """``value`` with its axes in torch's order, or a :class:`DpcError` if it cannot be ``target``."""
    wanted = variable.shape_for(target)
    shape = tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)
    if shape != wanted:
        turned = shape == tuple(target.shape)
        raise DpcError.of(
            "DPC066",
            f"the variable `{variable.name}` is {list(shape)}, and the cell needs {list(wanted)}",
            hint="arrays are taken in TensorFlow's layout, [height, width, in, out]"
            if turned
            else "in_channels, filters and projection must be those of the run that wrote the variables",
        )
    if isinstance(value, Tensor):
        return value.permute(variable.axes)
    if np.asarray(value).dtype.kind not in "fiu":
        raise DpcError.of("DPC066", f"the variable `{variable.name}` does not hold numbers")
    # A copy in any case: torch does not take arrays that are read-only or of another byte order.
    return torch.from_numpy(np.array(value, dtype=np.float64)).permute(variable.axes)


def _remedy_without_projection(name: str, module: EagerCell) -> str | None:
    if module.projection is not None or "concat_projection/" not in name:
        return None
    return "the cell was compiled without a projection; pass `projection=` and its number of channels"


def _remedy_of_scope(name: str, missing: Iterable[str], prefix: str) -> str | None:
    for bare in (expected.removeprefix(prefix) for expected in missing):
        if name == bare or name.endswith("/" + bare):
            return f'pass `scope="{name.removesuffix(bare).rstrip("/")}"`'
    return None


def _remedy_of_slip(name: str, missing: Iterable[str]) -> str | None:
    near = nearest(name, missing)
    return f"`{near}` is missing; is it this one?" if near else None
