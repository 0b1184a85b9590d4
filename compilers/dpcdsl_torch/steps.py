"""What a plan is made of, and how each step reads.

Names of maps: ``F`` and ``Y1``, ``Y2``, … as in the cell; ``Y`` their concatenation; ``D1`` a depthwise result; ``P1``
a product before its normalisation; ``G1`` a pooled grid; ``S1`` a branch at its grid's size; ``Q1`` that, projected;
``Z`` the projection. Gradients have a ``d`` before the name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dpcdsl.layers import Size
from dpcdsl_torch.task import Form, Task, taps_inside

__all__ = [
    "Concatenate",
    "Convolve",
    "Depthwise",
    "Normalise",
    "Part",
    "Pass",
    "Pool",
    "ResizeTo",
    "Step",
    "describe",
]


@dataclass(frozen=True)
class Part:
    """A convolution of a step: branch ``number``'s (0: the projection's) depthwise, product, or both.

    A negative number is the projection's part for that branch.

    epilogue: bias and ReLU are applied. target: the map that takes the result; None if only the projection needs it.
    projected: the result is multiplied into the projection.
    """

    number: int
    depthwise: bool
    target: str | None
    epilogue: bool = True
    projected: bool = False


@dataclass(frozen=True)
class Convolve:
    """1x1 convolutions that read one map, each with a depthwise one before it or not."""

    source: str
    parts: tuple[Part, ...]
    grids: tuple[str, ...] = ()
    first: bool = False
    last: bool = False


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution as a step of its own."""

    source: str
    target: str
    number: int
    epilogue: bool


@dataclass(frozen=True)
class Normalise:
    """Scale, shift and ReLU of a convolution as a pass of their own, in place. ``depthwise``: of which of the two."""

    target: str
    number: int
    depthwise: bool


@dataclass(frozen=True)
class Pool:
    source: str
    target: str
    grid: Size


@dataclass(frozen=True)
class ResizeTo:
    source: str
    target: str


@dataclass(frozen=True)
class Concatenate:
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Pass:
    """A pass over the maps of branch ``number``, of :func:`.plan.training` or :func:`.plan.backward`."""

    kind: str
    number: int
    source: str
    target: str


Step: TypeAlias = Convolve | Depthwise | Normalise | Pool | ResizeTo | Concatenate | Pass


def describe(step: Step, task: Task, size: Size | None) -> Iterator[str]:
    """A step's lines in the text of a plan, for maps of ``size`` if it is known."""
    match step:
        case Pool():
            yield f"{step.source} -> {step.target}: mean of each cell of a {step.grid[0]}x{step.grid[1]} grid"
        case ResizeTo():
            yield f"{step.source} -> {_place(step.target, task)}: bilinear resize"
        case Concatenate():
            yield f"{', '.join(step.sources)} -> Y: concatenate"
        case Normalise():
            name = "depthwise " if step.depthwise else ""
            yield f"{_place(step.target, task)}: {name}scale, shift{_relu(task, step.number, step.depthwise)}, in place"
        case Depthwise():
            yield (
                f"{step.source} -> {step.target}: {_depthwise(task.branches[step.number - 1], size, task)}"
                + (f", bias{_relu(task, step.number, True)}" if step.epilogue else "")
            )
        case Convolve():
            yield from _describe_convolve(step, task, size)
        case Pass():
            form = task.branches[step.number - 1]
            yield f"{step.source} -> {_place(step.target, task)}: {_describe_pass(step, form, task, size)}"


def _describe_convolve(step: Convolve, task: Task, size: Size | None) -> Iterator[str]:
    lines = []
    for part in step.parts:
        if part.number <= 0:
            depth = task.branches[-part.number - 1].filters if part.number else task.concatenated
            product = f"product {depth} to {task.projection}"
            if part.number:
                product += f", of the projection's part for Y{-part.number}"
            elif part.epilogue:
                product += ", bias, ReLU"
        else:
            form = task.branches[part.number - 1]
            product = f"product {form.in_channels} to {form.filters}"
            if part.depthwise:
                product = f"{_depthwise(form, size, task)}, bias{_relu(task, part.number, True)}; {product}"
            if part.epilogue:
                product += f", bias{_relu(task, part.number, False)}"
        places = [_place(part.target, task)] if part.target else []
        places += ["Z"] if part.projected else []
        if part.projected and part.number > 0:
            kept = "kept, and " if part.target else ""
            product += f"; {kept}product {task.branches[part.number - 1].filters} to {task.projection}, added"
        elif part.projected:
            product += ", added"
        lines.append(f"{step.source} -> {', '.join(places)}: {product}")
    lines += [f"{grid} -> Z: bilinear resize, added" for grid in step.grids]
    if step.first:
        lines.append("Z: begins with the bias")
    if step.last:
        lines.append("Z: ReLU, done")
    yield from lines


def _place(name: str, task: Task) -> str:
    """Where a map lies: a branch's in the concatenation, if there is one in place."""
    number = int(name[1:]) if name[:1] == "Y" and name[1:] else 0
    if not number or not task.in_place:
        return name
    channels = task.channels(number)
    return f"{name} = Y[{channels.start}:{channels.stop}]"


def _relu(task: Task, number: int, depthwise: bool) -> str:
    if number == 0:
        return ", ReLU"
    form = task.branches[number - 1]
    return ", ReLU" if (form.depthwise_relu if depthwise else form.relu) else ""


def _depthwise(form: Form, size: Size | None, task: Task) -> str:
    assert form.kernel is not None
    assert form.rate is not None
    text = f"depthwise {form.kernel[0]}x{form.kernel[1]} rate {form.rate[0]}x{form.rate[1]}"
    if size and task.does("taps"):
        inside = len(taps_inside(form, size))
        if inside < len(form.dy):
            text += f" ({inside} of {len(form.dy)} taps)"
    return text


def _describe_pass(step: Pass, form: Form, task: Task, size: Size | None) -> str:
    statistics = ", statistics" if form.norm else ""
    relu = ", ReLU" if form.relu else ""
    match step.kind:
        case "pool":
            assert form.grid is not None
            return f"mean of each cell of a {form.grid[0]}x{form.grid[1]} grid"
        case "depthwise":
            return _depthwise(form, size, task) + (", statistics" if form.depthwise_norm else "")
        case "product":
            before = "normalise, ReLU; " if form.has_depthwise else ""
            return f"{before}product {form.in_channels} to {form.filters}{statistics}"
        case "resize":
            return f"{'normalise' if form.norm else 'as it is'}{relu}; bilinear resize"
        case "normalise":
            return f"{'normalise' if form.norm else 'as it is'}{relu}"
        case "sums":
            return "through the ReLU; sums for the normalisation's gradient"
        case "product_backward":
            after = "; through the ReLU, sums" if form.has_depthwise else ", added" if form.grid is None else ""
            return f"through ReLU and normalisation; weight's gradient, and input's{after}"
        case "normalise_backward":
            return "through the normalisation, in place"
        case "depthwise_backward":
            return f"{_depthwise(form, size, task)}: weight's gradient, and input's, added"
        case "resize_backward":
            return "bilinear resize, backward"
        case "pool_backward":
            return "mean, backward, added"
    raise AssertionError(step.kind)
