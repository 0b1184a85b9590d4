"""The compiled cell: the same parameters as the eager module, run by plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import GridPool, Resize, Size
from dpcdsl.references import read_cell
from dpcdsl_torch import build, cuda, native, ops  # noqa: F401 (registers what is called as torch.ops.dpcdsl)
from dpcdsl_torch.decomposition import decomposed
from dpcdsl_torch.dropout import dropped
from dpcdsl_torch.lowering import BatchNorm, layer_names
from dpcdsl_torch.plan import Plan, evaluation, training_plan
from dpcdsl_torch.reference import EagerCell, SameConvolution, check_features
from dpcdsl_torch.task import Form, Task, check_fusions
from dpcdsl_torch.weights import prepare

__all__ = ["BACKENDS", "CompiledCell", "compile_cell"]

BACKENDS = ("auto", "native", "aten")


def compile_cell(
    cell: Cell | str,
    in_channels: int,
    *,
    backend: str = "auto",
    without: Iterable[str] = (),
    **options: Any,
) -> CompiledCell:
    """A cell as a fused ``nn.Module``: [N, ``in_channels``, H, W] to [N, ``out_channels``, H, W].

    cell: a :class:`dpcdsl.Cell`, or anything that :func:`dpcdsl.read_cell` reads: a zoo name, text, a file.
    backend: ``"auto"`` runs on the native kernels where it can and on ATen elsewhere, and says once if they are
        missing; ``"native"`` raises if they are; ``"aten"`` does without.
    without: fusions to leave out, by the names in ``dpcdsl_torch.task.FUSIONS``, to measure or debug.
    options: those of :class:`dpcdsl_torch.EagerCell`, with the same meaning and defaults.

    Raises :class:`DpcError`: DPC062 for a wrong value, DPC064 for a layer without lowering, DPC080 for
    ``backend="native"`` where there are no native kernels; and what reading a cell raises.
    """
    return CompiledCell(read_cell(cell) if isinstance(cell, str) else cell, in_channels, backend, without, **options)


class CompiledCell(nn.Module):
    """What :func:`compile_cell` returns. Its ``state_dict`` is that of :class:`dpcdsl_torch.EagerCell`.

    In evaluation mode batch normalisation is folded into the weights. They are folded again when a parameter or
    statistic has been written, replaced or moved, as far as autograd's version counters show it; after a write through
    ``.data``, which they do not show, call :meth:`refold`.

    Parameters live in the same modules as the eager cell's, but these are not called: forward hooks on them do not run.
    """

    def __init__(
        self, cell: Cell, in_channels: int, backend: str = "auto", without: Iterable[str] = (), **options: Any
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            choices = " or ".join(f'"{choice}"' for choice in BACKENDS)
            raise DpcError.of("DPC062", f"backend must be {choices}, not {backend!r}")
        without = check_fusions(without)
        eager = EagerCell(cell, in_channels, **options)
        self.cell, self.in_channels, self.out_channels = cell, in_channels, eager.out_channels
        self.settings, self.dropout_place = eager.settings, eager.dropout_place
        self.backend, self.without = backend, without
        self.branches, self.dropout, self.projection = eager.branches, eager.dropout, eager.projection
        self._options = eager.options
        self._channels = (in_channels, *cell.out_channels(in_channels))
        options = {"align_corners": self.settings.align_corners, "backend": backend, "without": without}
        conventions, epsilon = self.settings.conventions, self.settings.batch_norm_epsilon
        self._each: list[_Fused | None] = []
        paths: list[tuple[str, ...]] = []
        for number, branch in enumerate(cell.branches):
            layers = branch.operator.layers(cell.filters)
            own = [
                ("branches", str(number), name)
                for name, layer in zip(layer_names(layers), layers, strict=True)
                if not isinstance(layer, GridPool | Resize)
            ]
            one = Cell.of((0, branch.operator), filters=cell.filters)
            task = Task.of(one, self._channels[branch.input], conventions, **options)
            self._each.append(None if task is None else _Fused(task, own, epsilon))
            paths += own
        self._branches: _Fused | None = None
        self._whole: _Fused | None = None
        self._project: _Fused | None = None
        branches = Task.of(cell, in_channels, conventions, **options)
        projection = None if self.projection is None else self.out_channels
        last = [] if projection is None else [("projection",)]
        if branches is not None:
            self._branches = _Fused(branches, paths, epsilon)
            self._whole = _Fused(replace(branches, projection=projection), [*paths, *last], epsilon)
        if projection is not None:
            form = Form(0, sum(self._channels[1:]), projection, norm=True, relu=True)
            self._project = _Fused(Task(form.in_channels, (form,), **options), last, epsilon)
        self._find_kernels()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As ``.to(device)`` and its like call it."""
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._find_kernels()
        return moved

    def _find_kernels(self) -> None:
        """Load the kernels of the device that the parameters are on: not at the first call, which may be traced."""
        parameter = next(self.parameters(), None)
        if parameter is None or self.backend == "aten":
            return
        if parameter.device.type == "cuda":
            cuda.primitives(parameter.device, required=self.backend == "native")
        # Where there is a GPU, a module on the CPU may be on its way there.
        elif parameter.device.type == "cpu" and not torch.cuda.is_available() and native.primitives() is None:
            build.require() if self.backend == "native" else build.warn_once()

    def forward(self, features: Tensor) -> Tensor:
        check_features(features, self.in_channels)
        x = _autocast(features)
        drops = self.dropout is not None and self.dropout.training and self.dropout.p > 0
        if self._whole is not None and not drops and self._whole.evaluates(self, x):
            return self._whole.evaluate(self, x)
        x = self._concatenate(x)
        if self._project is None or self.projection is None or self.dropout is None:
            return x
        project = partial(self._project.run, self) if self._project.fits(self) else self.projection
        drop = self.dropout if self.backend == "aten" else partial(dropped, self.dropout)
        result: Tensor = project(drop(x)) if self.dropout_place == "before_projection" else drop(project(x))
        return result

    def concatenate(self, features: Tensor) -> Tensor:
        """All branches' outputs concatenated, before dropout and projection: [N, sum of channels, H, W]."""
        check_features(features, self.in_channels)
        return self._concatenate(_autocast(features))

    def _concatenate(self, x: Tensor) -> Tensor:
        if self._branches is not None and self._branches.fits(self):
            return self._branches.run(self, x)
        # A branch with layers of a user's own runs as its modules do; the others are cells of one branch.
        maps = [x]
        for number, (branch, fused) in enumerate(zip(self.cell.branches, self._each, strict=True)):
            source = maps[branch.input]
            fits = fused is not None and fused.fits(self)
            output: Tensor = fused.run(self, source) if fused and fits else self.branches[number](source)
            expected = (x.shape[0], self._channels[number + 1], *x.shape[2:])
            if tuple(output.shape) != expected:
                raise DpcError.of(
                    "DPC064",
                    f"branch {number + 1} ({branch.operator}) gives a map {list(output.shape)}; its layers and its "
                    f"input say {list(expected)}",
                    hint="see that the lowering's module agrees with the layer's out_channels and out_size",
                )
            maps.append(output)
        return torch.cat(maps[1:], dim=1)

    def eager(self) -> EagerCell:
        """An eager module with this one's options, and copies of its parameters and statistics."""
        twin = EagerCell(self.cell, self.in_channels, **self._options)
        state = self.state_dict()
        twin.load_state_dict(state)
        return twin.to(next(iter(state.values()), torch.empty(0)).dtype).train(self.training)

    def refold(self) -> None:
        """Fold again at the next call, whatever autograd's version counters say (after a write through ``.data``)."""
        for fused in (self._branches, self._whole, self._project, *self._each):
            if fused is not None:
                fused.forget()

    def plan(self, *, training: bool = False, size: Size | None = None) -> Plan:
        """How the cell is run (its branches alone in training). ``str()`` of it is to be read.

        Raises :class:`DpcError` (DPC064) for a cell with layers of a user's own, which has no plan as a whole.
        """
        if self._whole is None or self._branches is None:
            raise DpcError.of(
                "DPC064",
                "a cell with an operator that has no fused form is run branch by branch, and has no plan",
                hint="fused are [pooling] 1x1 [resize] and depthwise, 1x1; others run as their own modules",
            )
        return training_plan(self._branches.task, size) if training else evaluation(self._whole.task, size)

    def extra_repr(self) -> str:
        return f"{self.cell}, backend={self.backend!r}"


def _autocast(x: Tensor) -> Tensor:
    if _autocasts(x) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _autocasts(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


@dataclass(frozen=True, eq=False)
class _Folded:
    """What was folded, and from what: each tensor with its version, place and type."""

    seen: list[tuple[Tensor, int, int, torch.dtype]]
    ready: list[Tensor]


class _Fused:
    """A task, where its convolutions are in the module, and what was folded from them."""

    def __init__(self, task: Task, paths: Sequence[tuple[str, ...]], epsilon: float) -> None:
        # Their text is made here: a compiler that traces a call could not make it.
        task = replace(task, epsilon=tuple(epsilon if norm else 0.0 for _, norm in task.convolutions))
        self.task = task
        self._paths = paths
        self._text = _with_text(task)
        self._folded: dict[tuple[Any, ...], _Folded] = {}  # by the maps that it is for, and a GPU's stream

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_folded": {}}  # a copy folds for itself

    def forget(self) -> None:
        self._folded = {}

    def _convolutions(self, cell: nn.Module) -> list[SameConvolution]:
        found = []
        for path in self._paths:
            module: Any = cell
            for name in path:
                module = module._modules[name]
            found.append(module)
        return found

    def fits(self, cell: nn.Module) -> bool:
        """Whether the modules are those that the task was made from, and not a user's own in their place."""
        return all(
            type(module) is SameConvolution and (module.bn is None or type(module.bn) is BatchNorm)
            for module in self._convolutions(cell)
        )

    def _task(self, modules: list[SameConvolution]) -> tuple[Task, str]:
        """The task with the epsilons that the modules have now, and its text."""
        known = self._text
        epsilon = tuple(0.0 if module.bn is None else module.bn.eps for module in modules)
        if known[0].epsilon != epsilon:
            task = replace(known[0], epsilon=epsilon)
            self._text = known = _with_text(task)
        return known

    def run(self, cell: nn.Module, x: Tensor) -> Tensor:
        """In evaluation or training, as the modules' modes and autograd want it."""
        return self.evaluate(cell, x) if self.evaluates(cell, x) else self.train(cell, x)

    def evaluates(self, cell: nn.Module, x: Tensor) -> bool:
        """Whether the folded path will do: no statistics of the batch, and nobody asks for a gradient."""
        if _transforms_active() or not self.fits(cell):
            return False
        modules = self._convolutions(cell)
        if any(_uses_batch(module.bn) for module in modules):
            return False
        return not (
            torch.is_grad_enabled()
            and (x.requires_grad or any(p.requires_grad for module in modules for p in module.parameters()))
        )

    def evaluate(self, cell: nn.Module, x: Tensor) -> Tensor:
        modules = self._convolutions(cell)
        self._check_types(modules, x)
        task, text = self._task(modules)
        result: Tensor = torch.ops.dpcdsl.cell(x, self._prepared(task, modules, x), text)
        return result

    def _prepared(self, task: Task, modules: list[SameConvolution], x: Tensor) -> list[Tensor]:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # folding is part of the graph then
            return self._prepare(task, modules, x)
        stream = None
        if x.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():  # and of this graph, which must not read what we may drop
                return self._prepare(task, modules, x)
            stream = torch.cuda.current_stream(
                x.device
            ).cuda_stream  # another would have to wait for this one's folding
        sources = _sources(modules)
        if any(tensor.is_inference() for tensor in sources):  # has no version: nobody knows when it changes
            with torch.no_grad():
                return self._prepare(task, modules, x)
        seen = [(tensor, tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in sources]
        made_for = (x.device, x.dtype, task.epsilon, stream)
        known = self._folded  # read once: another thread may replace it
        folded = known.get(made_for)
        if folded is None or not _same(folded.seen, seen):
            # Usable in any mode, whichever this call is in.
            with torch.inference_mode(False), torch.no_grad():
                folded = _Folded(seen, self._prepare(task, modules, x))
            fresh = {key: other for key, other in known.items() if _same(other.seen, seen)} if stream else {}
            self._folded = fresh | {made_for: folded}
        return folded.ready

    def _prepare(self, task: Task, modules: list[SameConvolution], x: Tensor) -> list[Tensor]:
        return list(prepare(task, self._weights(modules), x.device, x.dtype).values())

    def _weights(self, modules: list[SameConvolution]) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for (name, norm), module in zip(self.task.convolutions, modules, strict=True):
            flat = module.weight.flatten(1)
            weights[name] = flat.t() if name.endswith("depthwise") else flat
            if norm:
                assert module.bn is not None
                weights[f"{name}.weight"], weights[f"{name}.bias"] = module.bn.weight, module.bn.bias
                weights[f"{name}.mean"], weights[f"{name}.variance"] = module.bn.running_mean, module.bn.running_var
        return weights

    def train(self, cell: nn.Module, x: Tensor) -> Tensor:
        modules = self._convolutions(cell)
        self._check_types(modules, x)
        task, text = self._task(modules)
        weights = self._weights(modules)
        batch = [_uses_batch(module.bn) for module in modules]
        if _transforms_active() or not self.task.does("training"):
            names = frozenset(name for (name, _), own in zip(task.convolutions, batch, strict=True) if own)
            out, statistics = decomposed(task, x, weights, names)
        else:
            out, *kept = torch.ops.dpcdsl.cell_train(x, list(weights.values()), text, batch)
            named = dict(zip(task.kept_names[1:], kept, strict=True))
            statistics = {
                name: (named[f"{name}.mean"], named[f"{name}.variance"]) for name, norm in task.convolutions if norm
            }
        for (name, _), module, own in zip(task.convolutions, modules, batch, strict=True):
            if own:
                assert module.bn is not None
                _remember(module.bn, *statistics[name], self._count(name, x))
        return out

    def _count(self, convolution: str, x: Tensor) -> int:
        """Positions that the convolution's statistics are over."""
        number = int(convolution.split(".", maxsplit=1)[0])
        form = self.task.branches[number - 1]
        size = (x.shape[2], x.shape[3])
        height, width = size if form.grid is None else self.task.grid_size(form, size)
        return x.shape[0] * height * width

    def _check_types(self, modules: list[SameConvolution], x: Tensor) -> None:
        for module in modules:
            weight = module.weight
            if weight.device != x.device:
                raise DpcError.of(
                    "DPC062",
                    f"the map is on {x.device} and the cell's weights on {weight.device}",
                    hint="move one of them with `.to(device)`",
                )
            if weight.dtype != x.dtype and not _autocasts(x):
                raise DpcError.of(
                    "DPC062",
                    f"the map is {x.dtype} and the cell's weights are {weight.dtype}",
                    hint="convert one of them with `.to(dtype)`, or use `torch.autocast`",
                )


def _with_text(task: Task) -> tuple[Task, str]:
    # What a task works out once is worked out here: a compiler that traces a call cannot enter cached_property's lock.
    _ = task.convolutions, task.epsilons, task.training_names, task.evaluation_names, task.kept_names
    _ = task.channels(1)
    return task, task.dumps()


def _uses_batch(bn: BatchNorm | None) -> bool:
    return bn is not None and bn.training and bn.fine_tune


def _sources(modules: list[SameConvolution]) -> list[Tensor]:
    found: list[Tensor] = []
    for module in modules:
        found.append(module.weight)
        if module.bn is not None:
            bn = module.bn
            found += [bn.weight, bn.bias, bn.running_mean, bn.running_var]
    return found


def _same(old: list[tuple[Tensor, int, int, torch.dtype]], new: list[tuple[Tensor, int, int, torch.dtype]]) -> bool:
    return len(old) == len(new) and all(
        a is b and rest == other for (a, *rest), (b, *other) in zip(old, new, strict=True)
    )


def _remember(bn: BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """The running statistics take up a batch's: its mean, and its unbiased variance."""
    if count == 0:
        return
    with torch.no_grad():
        bn.num_batches_tracked.add_(1)
        unbiased = variance * (count / max(count - 1, 1))
        # As torch's own batch normalisation: without a momentum, the mean of all batches so far.
        momentum = 1 / int(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
        bn.running_var.lerp_(unbiased.to(bn.running_var.dtype), momentum)


def _transforms_active() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation looks on; they need torch's own operators."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
