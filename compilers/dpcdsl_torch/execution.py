"""Runs a plan: maps by name, one primitive a step. What is fused is decided in :mod:`dpcdsl_torch.plan`, not here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor

from dpcdsl.layers import Size
from dpcdsl_torch import aten, memory, native
from dpcdsl_torch.plan import (
    Concatenate,
    Convolve,
    Depthwise,
    Form,
    Normalise,
    Pass,
    Pool,
    ResizeTo,
    Task,
    backward,
    evaluation,
    taps_inside,
    training,
)
from dpcdsl_torch.primitives import Affine, Branch, Moments, NormGradient, Primitives, Projection, Taps

__all__ = ["kept_shapes", "primitives_for", "run_backward", "run_evaluation", "run_training"]


def primitives_for(task: Task, device: torch.device, dtype: torch.dtype) -> Primitives:
    """What runs a task's maps of ``dtype`` on ``device``."""
    if task.backend != "aten" and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        found = native.primitives()
        if found is not None and all(len(form.dy) <= native.MOST_TAPS for form in task.branches):
            return found
    return aten.PRIMITIVES


def vector_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of statistics, biases and pooled maps, for maps of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def side_by_side(x: Tensor) -> bool:
    """Whether channels lie side by side, and so whether the result is channels_last."""
    return x.stride(1) == 1


class _Maps:
    """Makes maps: large ones from kept memory."""

    def __init__(self, x: Tensor) -> None:
        self.device, self.dtype, self.batch = x.device, x.dtype, x.shape[0]
        self.size: Size = (x.shape[2], x.shape[3])

    def empty(self, channels: int, size: Size | None = None, dtype: torch.dtype | None = None) -> Tensor:
        shape = (self.batch, channels, *(size or self.size))
        if self.device.type == "cpu":
            return memory.empty(shape, dtype or self.dtype)
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device, memory_format=torch.channels_last)

    def channels_last(self, x: Tensor, primitives: Primitives) -> Tensor:
        if side_by_side(x):
            return x
        copy = self.empty(x.shape[1])
        primitives.copy(x, copy)
        return copy


def _taps(form: Form, chosen: tuple[int, ...] | None) -> Taps:
    if chosen is None:
        return Taps(form.dy, form.dx)
    return Taps(tuple(form.dy[t] for t in chosen), tuple(form.dx[t] for t in chosen))


def _chosen(task: Task, form: Form, size: Size) -> tuple[int, ...] | None:
    """The taps worth visiting on maps of ``size``, None for all."""
    inside = taps_inside(form, size)
    return inside if task.does("taps") and len(inside) < len(form.dy) else None


def _window(task: Task, form: Form, size: Size) -> Size:
    assert form.grid is not None
    return (
        task.conventions.sliding_window(0, form.grid[0], size[0]),
        task.conventions.sliding_window(1, form.grid[1], size[1]),
    )


def _pool(task: Task, form: Form, x: Tensor, primitives: Primitives) -> Tensor:
    assert form.grid is not None
    if task.pooling == "paper":
        return primitives.pool(x, form.grid)
    height, width = _window(task, form, (x.shape[2], x.shape[3]))
    # The mean of means along each axis: h + w additions a position, and not h w.
    rows = F.avg_pool2d(x.to(vector_dtype(x.dtype)), (height, 1), stride=1)
    return F.avg_pool2d(rows, (1, width), stride=1).contiguous(memory_format=torch.channels_last)


def _pool_backward(task: Task, form: Form, g: Tensor, dx: Tensor, add: bool, primitives: Primitives) -> None:
    if task.pooling == "paper":
        primitives.pool_backward(g, dx, add)
        return
    height, width = _window(task, form, (dx.shape[2], dx.shape[3]))
    # The mean of a window, backwards, is the mean over the windows that a position is in, of a map padded with zeros.
    padded = F.pad(g, (width - 1, width - 1, height - 1, height - 1))
    spread = F.avg_pool2d(F.avg_pool2d(padded, (height, 1), stride=1), (1, width), stride=1)
    if add:
        dx.add_(spread)
    else:
        dx.copy_(spread)


# Evaluation


def run_evaluation(task: Task, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The task's result; ``weights`` as :func:`dpcdsl_torch.weights.prepare` names them."""
    return _Evaluation(task, x, weights).run()


class _Evaluation:
    def __init__(self, task: Task, x: Tensor, weights: Mapping[str, Tensor]) -> None:
        self.task, self.weights = task, weights
        self.primitives = primitives_for(task, x.device, x.dtype)
        self.make = _Maps(x)
        self.channels_last = side_by_side(x)
        self.maps: dict[str, Tensor] = {"F": self.make.channels_last(x, self.primitives)}
        self.plan = evaluation(task)
        if not task.splits and (task.projection is None or task.does("concatenation")):
            self.maps["Y"] = self.make.empty(task.concatenated)
            if task.does("concatenation"):
                for number in range(1, len(task.branches) + 1):
                    self.maps[f"Y{number}"] = self.maps["Y"][:, task.channels(number)]

    def run(self) -> Tensor:
        for step, released in zip(self.plan.steps, self.plan.released, strict=True):
            match step:
                case Convolve():
                    self._convolve(step)
                case Depthwise():
                    self._depthwise(step)
                case Normalise():
                    key = f"{step.number}.depthwise" if step.depthwise else f"{step.number}.product"
                    target = self.maps[step.target]
                    affine = Affine(
                        self._scale(key), self.weights[f"{key}.shift"], self._relu(step.number, step.depthwise)
                    )
                    self.primitives.affine(target, affine, target)
                case Pool():
                    form = self.task.branches[int(step.target[1:]) - 1]
                    self.maps[step.target] = _pool(self.task, form, self.maps[step.source], self.primitives)
                case ResizeTo():
                    target = self._target(step.target)
                    self.primitives.resize(self.maps[step.source], target, self.task.align_corners)
                case Concatenate():
                    whole = self.maps.setdefault("Y", self.make.empty(self.task.concatenated))
                    for number, name in enumerate(step.sources, 1):
                        whole[:, self.task.channels(number)].copy_(self.maps[name])
            for name in released:
                del self.maps[name]
        whole = self.maps["Y" if self.task.projection is None else "Z"]
        if self.channels_last or self.task.splits:
            return whole
        result = torch.empty(whole.shape, dtype=whole.dtype, device=whole.device)
        self.primitives.copy(whole, result)
        return result

    def _scale(self, key: str) -> Tensor:
        shift = self.weights[f"{key}.shift"]
        return torch.ones_like(shift) if self.task.does("batch_norm") else self.weights[f"{key}.scale"]

    def _relu(self, number: int, depthwise: bool) -> bool:
        if number == 0:
            return True
        form = self.task.branches[number - 1]
        return form.depthwise_relu if depthwise else form.relu

    def _target(self, name: str) -> Tensor:
        """The map a step writes, made if it is not part of another."""
        found = self.maps.get(name)
        if found is None:
            number = int(name[1:] or 0)
            kind = name[0]
            size, dtype = None, None
            channels = self.task.projection or 0
            if kind == "D":
                channels = self.task.branches[number - 1].in_channels
            elif kind in "YS" and number:
                channels = self.task.branches[number - 1].filters
            if kind in "SQ":
                size = self.task.grid_size(self.task.branches[number - 1], self.make.size)
                dtype = vector_dtype(self.make.dtype)
            if kind == "Z" and self.task.splits and not self.channels_last:
                found = torch.empty(
                    (self.make.batch, channels, *self.make.size), dtype=self.make.dtype, device=self.make.device
                )
            else:
                found = self.make.empty(channels, size, dtype)
            self.maps[name] = found
        return found

    def _depthwise(self, step: Depthwise) -> None:
        form = self.task.branches[step.number - 1]
        key = f"{step.number}.depthwise"
        chosen = _chosen(self.task, form, self.make.size)
        weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
        target = self._target(step.target)
        self.primitives.depthwise(self.maps[step.source], weight, _taps(form, chosen), target, False)
        if step.epilogue:
            shift = self.weights[f"{key}.shift"]
            self.primitives.affine(target, Affine(torch.ones_like(shift), shift, form.depthwise_relu), target)

    def _convolve(self, step: Convolve) -> None:
        if any(part.projected and part.number < 0 for part in step.parts):
            self._project_map(step)
            return
        branches = []
        for part in step.parts:
            depthwise = None
            number = part.number
            form = self.task.branches[abs(number) - 1] if number else None
            if part.depthwise:
                assert form is not None
                key = f"{number}.depthwise"
                chosen = _chosen(self.task, form, self.make.size)
                weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
                depthwise = (_taps(form, chosen), weight, self.weights[f"{key}.shift"], form.depthwise_relu)
            key = "0.product" if number == 0 else f"{number}.product" if number > 0 else f"{-number}.projection"
            filters = form.filters if form and number > 0 else self.task.projection or 0
            branches.append(
                Branch(
                    depthwise,
                    self.weights[key],
                    filters,
                    self.weights[f"{key}.shift"] if part.epilogue else None,
                    part.epilogue and self._relu(number, False),
                    None if part.target is None else self._target(part.target),
                    self.weights[f"{number}.projection"] if part.projected and number > 0 else None,
                )
            )
        projecting = bool(step.grids) or any(part.projected for part in step.parts)
        self.primitives.evaluate(self.maps[step.source], branches, self._projection(step) if projecting else None)

    def _project_map(self, step: Convolve) -> None:
        """The projection's part of a branch that is a map already: a product, added as a grid of the map's own size."""
        (part,) = step.parts
        source = self.maps[step.source]
        assert self.task.projection is not None
        whole = self.make.empty(self.task.projection)
        weight = self.weights[f"{-part.number}.projection"]
        self.primitives.evaluate(source, [Branch(None, weight, self.task.projection, None, False, whole)], None)
        projection = self._projection(step)
        grids = (*projection.grids, whole.to(vector_dtype(whole.dtype)))
        self.primitives.evaluate(source, [], replace(projection, grids=grids))

    def _projection(self, step: Convolve) -> Projection:
        vectors = vector_dtype(self.make.dtype)
        if not (step.first and step.last) and "sum" not in self.maps:
            assert self.task.projection is not None
            self.maps["sum"] = self.make.empty(self.task.projection, dtype=vectors)
        return Projection(
            self.task.projection or 0,
            self.weights["0.product.shift"],
            True,
            step.first,
            step.last,
            self.maps.get("sum"),
            self._target("Z"),
            tuple(self.maps[name] for name in step.grids),
            self.task.align_corners,
        )


# Training


class _Norm(NamedTuple):
    """A batch normalisation with its statistics: x_hat = (x - mean) * inverse."""

    mean: Tensor
    inverse: Tensor
    affine: Affine

    @classmethod
    def of(
        cls,
        *,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        epsilon: float,
        relu: bool,
        single: bool,
    ) -> _Norm:
        # A single value is its own mean: x_hat is 0 exactly, and not what is left of rounding it.
        inverse = torch.zeros_like(variance) if single else torch.rsqrt(variance + epsilon)
        scale = weight * inverse
        return cls(mean, inverse, Affine(scale, torch.addcmul(bias, mean, scale, value=-1), relu))

    def gradient(self, sums: tuple[Tensor, Tensor] | None, count: int) -> NormGradient:
        """``sums`` of g and g x_hat over a batch of ``count`` positions; None for statistics not of the batch."""
        if sums is None or count == 0:
            return _without_statistics(self.affine)
        plain, by_value = sums
        share = self.affine.scale * (-1 / count)
        return NormGradient(self.affine, self.affine.scale, share * self.inverse * by_value, self.mean, share * plain)


def _without_statistics(affine: Affine) -> NormGradient:
    zero = torch.zeros_like(affine.scale)
    return NormGradient(affine, affine.scale, zero, zero, zero)


def kept_shapes(task: Task, shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of what ``task.kept_names`` names, for a map of ``shape`` and ``dtype``."""
    batch, _, *size = shape
    vectors = vector_dtype(dtype)
    for name in task.kept_names:
        if name == "Y":
            yield (batch, task.concatenated, *size), dtype
        elif "." in name:
            number, kind = name.split(".")[:2]
            form = task.branches[int(number) - 1]
            yield (form.in_channels if kind == "depthwise" else form.filters,), vectors
        else:
            form = task.branches[int(name[1:]) - 1]
            channels = form.filters if name[0] == "P" else form.in_channels
            if form.grid is not None:
                yield (batch, channels, *task.grid_size(form, (size[0], size[1]))), vectors
            else:
                yield (batch, channels, *size), dtype


class _Training:
    """What forward and backward have in common: maps, weights and normalisations by name."""

    def __init__(
        self, task: Task, x: Tensor, weights: Mapping[str, Tensor], batch: frozenset[str], kept: dict[str, Tensor]
    ) -> None:
        self.task, self.weights, self.batch, self.maps = task, weights, batch, kept
        self.primitives = primitives_for(task, x.device, x.dtype)
        self.make = _Maps(x)
        self.vectors = vector_dtype(x.dtype)
        self.maps["F"] = self.make.channels_last(x, self.primitives)
        self._norms: dict[str, _Norm] = {}

    def input(self, form: Form) -> Tensor:
        return self.result(form.input) if form.input else self.maps["F"]

    def result(self, number: int) -> Tensor:
        return self.maps["Y"][:, self.task.channels(number)]

    def norm(self, key: str, relu: bool) -> _Norm:
        if key not in self._norms:
            self._norms[key] = _Norm.of(
                mean=self.maps[f"{key}.mean"],
                variance=self.maps[f"{key}.variance"],
                weight=self.weights[f"{key}.weight"],
                bias=self.weights[f"{key}.bias"],
                epsilon=self.task.epsilons[key],
                relu=relu,
                single=key in self.batch and self._positions(key) == 1,
            )
        return self._norms[key]

    def _positions(self, key: str) -> int:
        """Values a channel that a convolution's statistics are over."""
        form = self.task.branches[int(key.partition(".")[0]) - 1]
        height, width = self.make.size if form.grid is None else self.task.grid_size(form, self.make.size)
        return self.make.batch * height * width

    def affine(self, key: str, normed: bool, relu: bool, channels: int) -> Affine:
        if normed:
            return self.norm(key, relu).affine
        ones = torch.ones(channels, dtype=self.vectors, device=self.make.device)
        return Affine(ones, torch.zeros_like(ones), relu)

    def before(self, number: int, form: Form) -> Affine | None:
        """What lies between a depthwise convolution and its product."""
        if not form.has_depthwise or not (form.depthwise_norm or form.depthwise_relu):
            return None
        return self.affine(f"{number}.depthwise", form.depthwise_norm, form.depthwise_relu, form.in_channels)


class _Forward(_Training):
    def run(self) -> list[Tensor]:
        self.maps["Y"] = self.make.empty(self.task.concatenated)
        passes = {
            "pool": self._pool,
            "depthwise": self._depthwise,
            "product": self._product,
            "normalise": self._normalise,
            "resize": self._resize,
        }
        for step in training(self.task):
            passes[step.kind](step, self.task.branches[step.number - 1])
        return [self.maps[name] for name in self.task.kept_names]

    def _pool(self, step: Pass, form: Form) -> None:
        self.maps[step.target] = _pool(self.task, form, self.input(form), self.primitives)

    def _depthwise(self, step: Pass, form: Form) -> None:
        key = f"{step.number}.depthwise"
        self.maps[step.target] = self.make.empty(form.in_channels)
        chosen = _chosen(self.task, form, self.make.size)
        weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
        gathers = form.depthwise_norm and key in self.batch
        moments = self.primitives.depthwise(
            self.input(form), weight, _taps(form, chosen), self.maps[step.target], gathers
        )
        self._remember(key, form.depthwise_norm, moments)

    def _product(self, step: Pass, form: Form) -> None:
        key = f"{step.number}.product"
        source = self.maps[step.source] if step.source[0] in "GD" else self.input(form)
        self.maps[step.target] = self.make.empty(form.filters, (source.shape[2], source.shape[3]), source.dtype)
        moments = self.primitives.pointwise(
            source,
            self.before(step.number, form),
            self.weights[key],
            self.maps[step.target],
            form.norm and key in self.batch,
        )
        self._remember(key, form.norm, moments)

    def _normalise(self, step: Pass, form: Form) -> None:
        affine = self.affine(f"{step.number}.product", form.norm, form.relu, form.filters)
        self.primitives.affine(self.maps[step.source], affine, self.result(step.number))

    def _resize(self, step: Pass, form: Form) -> None:
        p = self.maps[step.source]
        small = self.make.empty(form.filters, (p.shape[2], p.shape[3]), p.dtype)
        affine = self.affine(f"{step.number}.product", form.norm, form.relu, form.filters)
        self.primitives.affine(p, affine, small)
        self.primitives.resize(small, self.result(step.number), self.task.align_corners)

    def _remember(self, key: str, normed: bool, moments: Moments | None) -> None:
        if not normed:
            return
        if moments is None:
            # A copy: what an operator returns must be its own.
            mean, variance = (
                self.weights[f"{key}.{part}"].to(self.vectors, copy=True) for part in ("mean", "variance")
            )
        else:
            mean, variance = (
                moments.mean.to(self.vectors),
                (moments.deviations / max(moments.count, 1)).to(self.vectors),
            )
        self.maps[f"{key}.mean"], self.maps[f"{key}.variance"] = mean, variance


class _Backward(_Training):
    def run(self, gradient: Tensor, needs_input: bool) -> dict[str, Tensor]:
        self.gradient = self.make.channels_last(gradient, self.primitives)  # once, and not branch by branch
        self.needs_input = needs_input
        self.found: dict[str, Tensor] = {}
        self.arriving: dict[int, Tensor] = {}  # gradients of F and of branches, from the branches that read them
        self.factors: dict[int, NormGradient] = {}
        self.gradients: dict[str, Tensor] = {}  # within a branch
        passes = {
            "sums": self._sums,
            "product_backward": self._product,
            "normalise_backward": self._normalise,
            "depthwise_backward": self._depthwise,
            "resize_backward": self._resize,
            "pool_backward": self._pool,
        }
        for step in backward(self.task):
            passes[step.kind](step, self.task.branches[step.number - 1])
        if needs_input:
            self.found["F"] = self.arriving[0]
        return self.found

    def _reaching(self, number: int, form: Form) -> tuple[Tensor, ...]:
        """The gradients that reach a branch's product, to be added up: of its result, or of its small map."""
        if form.grid is not None:
            return (self.gradients[f"dS{number}"],)
        return self._of_result(number)

    def _of_result(self, number: int) -> tuple[Tensor, ...]:
        outside = self.gradient[:, self.task.channels(number)]
        return (outside, self.arriving[number]) if number in self.arriving else (outside,)

    def _resize(self, step: Pass, form: Form) -> None:
        p = self.maps[f"P{step.number}"]
        self.gradients[step.target] = self.primitives.resize_backward(
            self._of_result(step.number), (p.shape[2], p.shape[3]), self.task.align_corners
        )

    def _sums(self, step: Pass, form: Form) -> None:
        key = f"{step.number}.product"
        norm = self.norm(key, form.relu)
        p = self.maps[f"P{step.number}"]
        sums = self.primitives.gradient_sums(self._reaching(step.number, form), p, norm.affine, norm.mean, norm.inverse)
        self.factors[step.number] = self._normed(key, norm, sums, p)

    def _product(self, step: Pass, form: Form) -> None:
        key = f"{step.number}.product"
        norm = self.factors.pop(step.number, None)
        if norm is None:
            norm = _without_statistics(self.affine(key, False, form.relu, form.filters))
        p = self.maps[f"P{step.number}"]
        own, add = None, False
        target: Tensor | None
        if form.has_depthwise:
            source = self.maps[f"D{step.number}"]
            target = self.gradients[step.target] = self.make.empty(form.in_channels)
            if form.depthwise_norm:
                own = self.norm(f"{step.number}.depthwise", form.depthwise_relu)
        elif form.grid is not None:
            source = self.maps[f"G{self.task.pooled_by(step.number)}"]
            target = self.make.empty(form.in_channels, (p.shape[2], p.shape[3]), p.dtype)
            self.gradients[step.target] = target
        else:
            source = self.input(form)
            target, add = self._target(form.input)
        statistics = (own.mean, own.inverse) if own else None
        before = self.before(step.number, form)
        reaching = self._reaching(step.number, form)
        self.found[key], sums = self.primitives.pointwise_backward(
            reaching, p, norm, source, before, self.weights[key], target, add, statistics
        )
        self.arriving.pop(step.number, None)
        self.gradients.pop(f"dS{step.number}", None)
        if own is not None:
            assert sums is not None
            self.factors[step.number] = self._normed(f"{step.number}.depthwise", own, sums, source)

    def _normed(self, key: str, norm: _Norm, sums: tuple[Tensor, Tensor], x: Tensor) -> NormGradient:
        bias, weight = (total.to(self.vectors) for total in sums)
        self.found[f"{key}.bias"], self.found[f"{key}.weight"] = bias, weight
        count = x.shape[0] * x.shape[2] * x.shape[3]
        return norm.gradient((bias, weight) if key in self.batch else None, count)

    def _normalise(self, step: Pass, form: Form) -> None:
        factors = self.factors.pop(step.number)
        d = self.maps[f"D{step.number}"]
        self.primitives.affine_backward(self.gradients[step.target], d, factors.a, factors.b, factors.mean, factors.c)

    def _depthwise(self, step: Pass, form: Form) -> None:
        whole = self.weights[f"{step.number}.depthwise"]
        chosen = _chosen(self.task, form, self.make.size)
        weight = whole if chosen is None else whole[list(chosen)]
        target, add = self._target(form.input)
        dw = self.primitives.depthwise_backward(
            self.gradients.pop(step.source), self.input(form), weight, _taps(form, chosen), target, add
        )
        assert dw is not None
        if chosen is not None:  # a tap that saw only padding has no gradient
            dw = dw.new_zeros(whole.shape).index_copy_(
                0, torch.tensor(chosen, dtype=torch.long, device=whole.device), dw
            )
        self.found[f"{step.number}.depthwise"] = dw

    def _pool(self, step: Pass, form: Form) -> None:
        target, add = self._target(form.input)
        small = self.gradients.pop(step.source)
        if target is not None:
            _pool_backward(self.task, form, small, target, add, self.primitives)

    def _target(self, number: int) -> tuple[Tensor | None, bool]:
        """Where the gradient of F (0) or of branch ``number`` is gathered, and whether something is there already."""
        if number == 0 and not self.needs_input:
            return None, False
        add = number in self.arriving
        if not add:
            channels = self.task.branches[number - 1].filters if number else self.task.in_channels
            self.arriving[number] = self.make.empty(channels)
        return self.arriving[number], add


def run_training(task: Task, x: Tensor, weights: Mapping[str, Tensor], batch: frozenset[str]) -> list[Tensor]:
    """The concatenation and what the backward pass needs, as ``task.kept_names`` names them.

    batch: the convolutions whose normalisation takes its statistics from the batch; the others use the running ones.
    """
    return _Forward(task, x, weights, batch, {}).run()


def run_backward(
    task: Task,
    gradient: Tensor,
    x: Tensor,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    batch: frozenset[str],
    needs_input: bool,
) -> dict[str, Tensor]:
    """Gradients of the weights by their names, and of the map as ``F`` if it is needed."""
    return _Backward(task, x, weights, batch, dict(kept)).run(gradient, needs_input)
