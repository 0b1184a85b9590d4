"""How a cell is run: a short list of steps over named maps, in which every fusion is a visible decision.

A plan knows no tensors and no framework. :func:`evaluation`, :func:`training` and :func:`backward` decide; whoever runs
a plan decides nothing. ``str(plan)`` is what ``dpc compile --plan`` prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from dpcdsl.layers import Size
from dpcdsl_torch.steps import (
    Concatenate,
    Convolve,
    Depthwise,
    Normalise,
    Part,
    Pass,
    Pool,
    ResizeTo,
    Step,
    describe,
)
from dpcdsl_torch.task import FUSIONS, Form, Task

__all__ = [
    "Plan",
    "backward",
    "evaluation",
    "training",
    "training_plan",
]

#: Channels of the widest map that several branches read in one pass, on the CPU.
GROUPED_CHANNELS = 512


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
            what, *more = describe(step, task, self.size)
            lines.append(f"{index:>3}  {what}")
            lines += [f"     {line}" for line in more]
            if released:
                lines.append(f"     give back {', '.join(released)}")
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def evaluation(task: Task, size: Size | None = None, grouped_channels: int = GROUPED_CHANNELS) -> Plan:
    """How the task is run in evaluation mode. ``size`` of F is only shown: it tells which taps are dropped.

    grouped_channels: of the widest map that several branches read in one pass; a GPU's is wider than the CPU's.
    """
    steps = _Evaluation(task, grouped_channels).run()
    return Plan(task, "evaluation", steps, _released(task, steps), size)


class _Evaluation:
    """Decides the steps of an evaluation, branch by branch."""

    def __init__(self, task: Task, grouped_channels: int) -> None:
        self.task, self.grouped_channels = task, grouped_channels
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
                if self.task.does("group") and form.in_channels <= self.grouped_channels:
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
                if at == index and name not in ("F", "Y") and not (name[0] == "Y" and task.in_place)
            )
        )
        for index in range(len(steps))
    )
