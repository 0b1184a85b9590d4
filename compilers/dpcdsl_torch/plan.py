"""How a cell is run: a short list of steps over named maps, in which every fusion is a visible decision.

A plan knows no tensors and no framework. :func:`evaluation` and :func:`training` decide; whoever runs a plan decides
nothing. ``str(plan)`` is what ``dpc compile --plan`` prints.

Names of maps: ``F`` and ``Y1``, ``Y2``, … as in the cell; ``Y`` their concatenation; ``D1`` a depthwise result; ``P1``
a product before its normalisation; ``G1`` a pooled grid; ``S1`` a branch at its grid's size; ``Q1`` that, projected;
``Z`` the projection. Gradients have a ``d`` before the name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, TypeAlias

from dpcdsl.cell import Cell
from dpcdsl.errors import Diagnostic, DpcError, nearest
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Pooling, Resize, Size

__all__ = [
    "FUSIONS",
    "Concatenate",
    "Convolve",
    "Depthwise",
    "Form",
    "Normalise",
    "Part",
    "Pass",
    "Plan",
    "Pool",
    "ResizeTo",
    "Step",
    "Task",
    "check_fusions",
    "evaluation",
    "form_of",
    "backward",
    "training",
    "training_plan",
]

#: What a plan may fuse; each can be left out by name (``without``).
FUSIONS: dict[str, str] = {
    "batch_norm": "scales of batch normalisation go into the weights",
    "epilogue": "bias and ReLU are applied to a product before it leaves the cache",
    "depthwise": "a depthwise convolution feeds the product block by block, and is never a map",
    "concatenation": "branches write their channels of the concatenation in place",
    "group": "branches that read the same map of up to 512 channels are computed in one pass over it",
    "split_projection": "each branch adds its part of the projection, and the concatenation is never a map",
    "early_projection": "a pooled branch is projected at its grid's size, before it is resized",
    "taps": "taps that see only padding at the map's size are dropped",
    "shared_pooling": "branches that pool the same map to the same grid share the pooling",
    "release": "a map is given back after its last use",
    "training": "training runs in passes that gather statistics on the way, and not operator by operator",
}

#: Channels of a map that several branches read in one pass: a block of a wider one does not stay in the cache.
GROUPED_CHANNELS = 512

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

    @property
    def convolutions(self) -> int:
        return 2 if self.has_depthwise else 1


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
    """A pass over the maps of branch ``number``, of :func:`training` or :func:`backward`."""

    kind: str
    number: int
    source: str
    target: str


Step: TypeAlias = Convolve | Depthwise | Normalise | Pool | ResizeTo | Concatenate | Pass


@dataclass(frozen=True)
class Plan:
    """Steps in order, and for each the maps that no later step needs."""

    task: Task
    title: str
    steps: tuple[Step, ...]
    released: tuple[tuple[str, ...], ...]
    size: Size | None = None

    def __str__(self) -> str:
        task = self.task
        size = f" of {self.size[0]}x{self.size[1]}" if self.size else ""
        head = f"{self.title}: F{size} with {task.in_channels} channels to {task.out_channels} channels"
        lines = [head]
        if task.without:
            lines.append("without " + ", ".join(name for name in FUSIONS if name in task.without))
        for index, (step, released) in enumerate(zip(self.steps, self.released, strict=True), 1):
            what, *more = _describe(step, task, self.size)
            lines.append(f"{index:>3}  {what}")
            lines += [f"     {line}" for line in more]
            if released:
                lines.append(f"     give back {', '.join(released)}")
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def evaluation(task: Task, size: Size | None = None) -> Plan:
    """How the task is run in evaluation mode. ``size`` of F is only shown: it tells which taps are dropped."""
    steps = _Evaluation(task).run()
    return Plan(task, "evaluation", steps, _released(task, steps), size)


class _Evaluation:
    """Decides the steps of an evaluation, branch by branch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.splits = task.splits
        self.early = self.splits and task.does("early_projection")
        # Scale and shift as a pass of their own leave nothing to apply before a product leaves the cache.
        self.epilogue = task.does("epilogue") and task.does("batch_norm")
        self.feeds = task.does("depthwise") and self.epilogue
        self.steps: list[Step] = []
        self.pooled: dict[tuple[int, Size], str] = {}
        self.grids: list[str] = []  # projected at their grid's size, and not yet added

    def run(self) -> tuple[Step, ...]:
        waiting = list(range(1, len(self.task.branches) + 1))
        while waiting:
            number = waiting[0]
            form = self.task.branches[number - 1]
            done = [number]
            if form.grid is not None:
                self._pooled(number, form, form.grid)
            elif self._fuses(form):
                if self.task.does("group") and form.in_channels <= GROUPED_CHANNELS:
                    done = [n for n in waiting if self._joins(self.task.branches[n - 1], form.input)]
                self._together(done, form.input)
            else:
                self._apart(number, form)
            waiting = [n for n in waiting if n not in done]
        if self.splits:
            if self.grids:
                self._convolve("F")
            self._mark_projection()
        else:
            self._finish()
        return tuple(self.steps)

    def _fuses(self, form: Form) -> bool:
        return self.epilogue and (self.feeds or not form.has_depthwise)

    def _joins(self, form: Form, input: int) -> bool:
        return form.input == input and form.grid is None and self._fuses(form)

    def _convolve(self, source: str, *parts: Part) -> None:
        """A step of 1x1 convolutions. If it feeds the projection, it also adds the grids that wait."""
        grids: tuple[str, ...] = ()
        if self.splits and (not parts or any(part.projected for part in parts)):
            grids = tuple(self.grids)
            self.grids.clear()
        self.steps.append(Convolve(source, parts, grids))

    def _together(self, numbers: list[int], input: int) -> None:
        forms = {number: self.task.branches[number - 1] for number in numbers}
        self._convolve(
            _map_name(input),
            *(
                Part(number, form.has_depthwise, self._kept(number), projected=self.splits)
                for number, form in forms.items()
            ),
        )

    def _apart(self, number: int, form: Form) -> None:
        source = _map_name(form.input)
        if form.has_depthwise:
            self.steps.append(Depthwise(source, f"D{number}", number, self.epilogue))
            if not self.epilogue:
                self.steps.append(Normalise(f"D{number}", number, True))
            source = f"D{number}"
        if self.epilogue:
            self._convolve(source, Part(number, False, self._kept(number), projected=self.splits))
            return
        self._convolve(source, Part(number, False, f"Y{number}", epilogue=False))
        self.steps.append(Normalise(f"Y{number}", number, False))

    def _pooled(self, number: int, form: Form, grid: Size) -> None:
        shared = (form.input, grid)
        if shared not in self.pooled or not self.task.does("shared_pooling"):
            self.pooled[shared] = f"G{number}"
            self.steps.append(Pool(_map_name(form.input), f"G{number}", grid))
        self.steps.append(Convolve(self.pooled[shared], (Part(number, False, f"S{number}", self.epilogue),)))
        if not self.epilogue:
            self.steps.append(Normalise(f"S{number}", number, False))
        if self.early:
            self.steps.append(Convolve(f"S{number}", (Part(-number, False, f"Q{number}", epilogue=False),)))
            self.grids.append(f"Q{number}")
        if not self.early or self.task.readers(number):
            self.steps.append(ResizeTo(f"S{number}", f"Y{number}"))
        if not self.early:
            self._project(number)

    def _kept(self, number: int) -> str | None:
        """Where a fused branch's result goes, if anyone but the projection wants it."""
        return f"Y{number}" if not self.splits or self.task.readers(number) else None

    def _project(self, number: int) -> None:
        """The part of the projection of a branch that is a map already."""
        if self.splits:
            self._convolve(f"Y{number}", Part(-number, False, None, epilogue=False, projected=True))

    def _mark_projection(self) -> None:
        feeding = [
            index
            for index, step in enumerate(self.steps)
            if isinstance(step, Convolve) and (step.grids or any(part.projected for part in step.parts))
        ]
        for index in feeding:
            step = self.steps[index]
            assert isinstance(step, Convolve)
            self.steps[index] = replace(step, first=index == feeding[0], last=index == feeding[-1])

    def _finish(self) -> None:
        if not self.task.does("concatenation"):
            self.steps.append(Concatenate(tuple(f"Y{n}" for n in range(1, len(self.task.branches) + 1))))
        if self.task.projection is not None:
            self.steps.append(Convolve("Y", (Part(0, False, "Z", self.epilogue),)))
            if not self.epilogue:
                self.steps.append(Normalise("Z", 0, False))


def _map_name(number: int) -> str:
    return f"Y{number}" if number else "F"


@lru_cache(maxsize=256)
def training(task: Task) -> tuple[Pass, ...]:
    """The passes of training, forward; a projection is a task of its own.

    Batch normalisation lies between a depthwise convolution and its product, so they cannot be one pass: the one
    gathers the statistics of its result on the way, the other applies them on its way in.
    """
    return tuple(_training(task))


def _training(task: Task) -> Iterator[Pass]:
    for number, form in enumerate(task.branches, 1):
        source = _map_name(form.input)
        if form.grid is not None:
            owner = task.pooled_by(number)
            if owner == number:
                yield Pass("pool", number, source, f"G{number}")
            source = f"G{owner}"
        elif form.has_depthwise:
            yield Pass("depthwise", number, source, f"D{number}")
            source = f"D{number}"
        yield Pass("product", number, source, f"P{number}")
        yield Pass("normalise" if form.grid is None else "resize", number, f"P{number}", f"Y{number}")


@lru_cache(maxsize=256)
def backward(task: Task) -> tuple[Pass, ...]:
    """The passes back. Nothing but the convolutions' results was kept; what lies between is computed again."""
    return tuple(_backward(task))


def _backward(task: Task) -> Iterator[Pass]:
    for number in range(len(task.branches), 0, -1):
        form = task.branches[number - 1]
        source = _map_name(form.input)
        gradient = f"dY{number}"
        if form.grid is not None:
            yield Pass("resize_backward", number, gradient, f"dS{number}")
            gradient = f"dS{number}"
        if form.norm:
            yield Pass("sums", number, gradient, f"P{number}")
        if form.grid is not None:
            yield Pass("product_backward", number, gradient, f"dG{number}")
            yield Pass("pool_backward", number, f"dG{number}", f"d{source}")
        elif not form.has_depthwise:
            yield Pass("product_backward", number, gradient, f"d{source}")
        else:
            yield Pass("product_backward", number, gradient, f"dD{number}")
            if form.depthwise_norm:
                yield Pass("normalise_backward", number, f"dD{number}", f"dD{number}")
            yield Pass("depthwise_backward", number, f"dD{number}", f"d{source}")


def training_plan(task: Task, size: Size | None = None) -> Plan:
    """Both ways, to be read. ``size`` as in :func:`evaluation`."""
    steps = (*training(task), *backward(task))
    return Plan(task, "training", steps, ((),) * len(steps), size)


def _reads(step: Step) -> tuple[str, ...]:
    match step:
        case Convolve():
            return (step.source, *step.grids)
        case Depthwise() | Pool() | ResizeTo():
            return (step.source,)
        case Concatenate():
            return step.sources
    return ()


def _in_place(task: Task) -> bool:
    """Whether branches are ranges of the concatenation."""
    return task.does("concatenation") and not task.splits


def _released(task: Task, steps: tuple[Step, ...]) -> tuple[tuple[str, ...], ...]:
    last: dict[str, int] = {}
    if not task.does("release"):
        return ((),) * len(steps)
    for index, step in enumerate(steps):
        for name in _reads(step):
            last[name] = index
    return tuple(
        tuple(
            sorted(
                name
                for name, at in last.items()
                if at == index and name not in ("F", "Y") and not (name[0] == "Y" and _in_place(task))
            )
        )
        for index in range(len(steps))
    )


def _describe(step: Step, task: Task, size: Size | None) -> Iterator[str]:
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
    if not number or not _in_place(task):
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


def taps_inside(form: Form, size: Size) -> tuple[int, ...]:
    """Taps that see more than padding somewhere on a map of ``size``."""
    return tuple(
        t for t, (y, x) in enumerate(zip(form.dy, form.dx, strict=True)) if abs(y) < size[0] and abs(x) < size[1]
    )


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
