"""Runs the passes of training, forward and back, one primitive a pass; :mod:`.plan` lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dpcdsl_torch.maps import Maps, chosen_taps, pool, pool_backward, primitives_for, taps_of, vector_dtype
from dpcdsl_torch.plan import backward, training
from dpcdsl_torch.primitives import Affine, Moments, NormGradient
from dpcdsl_torch.steps import Pass
from dpcdsl_torch.task import Form, Task

__all__ = ["kept_shapes", "run_backward", "run_training"]


class _Norm(NamedTuple):
    """A batch normalisation with its statistics: x_hat = (x - mean) * inverse."""

    mean: Tensor
    inverse: Tensor
    affine: Affine


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
        # Noted first and run then: what is done between two passes has to be fetched from afar each time, since a pass
        # leaves nothing else in the cache.
        self.primitives = primitives_for(task, x.device, x.dtype).deferred()
        self.make = Maps(x)
        self.vectors = vector_dtype(x.dtype)
        self.maps["F"] = self.make.channels_last(x, self.primitives)
        self._norms: dict[str, _Norm] = {}

    def input(self, form: Form) -> Tensor:
        return self.result(form.input) if form.input else self.maps["F"]

    def result(self, number: int) -> Tensor:
        return self.maps["Y"][:, self.task.channels(number)]

    def norm(self, key: str, relu: bool) -> _Norm:
        if key not in self._norms:
            moments = Moments(self.maps[f"{key}.mean"], self.maps[f"{key}.variance"])
            inverse, scale, shift = self.primitives.normalisation(
                moments,
                self.weights[f"{key}.weight"],
                self.weights[f"{key}.bias"],
                self.task.epsilons[key],
                single=key in self.batch and self._positions(key) == 1,
            )
            self._norms[key] = _Norm(moments.mean, inverse, Affine(scale, shift, relu))
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
        self.primitives.flush()
        return [self.maps[name] for name in self.task.kept_names]

    def _pool(self, step: Pass, form: Form) -> None:
        self.maps[step.target] = pool(self.task, form, self.input(form), self.primitives)

    def _depthwise(self, step: Pass, form: Form) -> None:
        key = f"{step.number}.depthwise"
        self.maps[step.target] = self.make.empty(form.in_channels)
        chosen = chosen_taps(self.task, form, self.make.size, self.primitives)
        weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
        gathers = form.depthwise_norm and key in self.batch
        moments = self.primitives.depthwise(
            self.input(form), weight, taps_of(form, chosen), self.maps[step.target], gathers
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
            moments = Moments(
                *(self.weights[f"{key}.{part}"].to(self.vectors, copy=True) for part in ("mean", "variance"))
            )
        self.maps[f"{key}.mean"], self.maps[f"{key}.variance"] = moments.mean, moments.variance


class _Backward(_Training):
    def run(self, gradient: Tensor, needs_input: bool) -> dict[str, Tensor]:
        self.gradient = self.make.channels_last(gradient, self.primitives)  # once, and not branch by branch
        self.needs_input = needs_input
        self.found: dict[str, Tensor] = {}
        self.arriving: dict[int, Tensor] = {}  # gradients of F and of branches, from the branches that read them
        self.factors: dict[int, NormGradient] = {}
        self.gradients: dict[str, Tensor] = {}  # within a branch
        self.spare: dict[int, list[Tensor]] = {}  # gradients that were read to the end, by channels
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
        self.primitives.flush()
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
            target = self.gradients[step.target] = self._take(form.in_channels)
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
        if step.number in self.arriving:
            self._give(self.arriving.pop(step.number))
        self.gradients.pop(f"dS{step.number}", None)
        if own is not None:
            assert sums is not None
            self.factors[step.number] = self._normed(f"{step.number}.depthwise", own, sums, source)

    def _normed(self, key: str, norm: _Norm, sums: tuple[Tensor, Tensor], x: Tensor) -> NormGradient:
        self.found[f"{key}.bias"], self.found[f"{key}.weight"] = sums
        count = x.shape[0] * x.shape[2] * x.shape[3]
        if key not in self.batch or count == 0:
            return _without_statistics(norm.affine)
        b, c = self.primitives.normalisation_gradient(norm.affine.scale, norm.inverse, sums, count)
        return NormGradient(norm.affine, norm.affine.scale, b, norm.mean, c)

    def _normalise(self, step: Pass, form: Form) -> None:
        factors = self.factors.pop(step.number)
        d = self.maps[f"D{step.number}"]
        self.primitives.affine_backward(self.gradients[step.target], d, factors.a, factors.b, factors.mean, factors.c)

    def _depthwise(self, step: Pass, form: Form) -> None:
        whole = self.weights[f"{step.number}.depthwise"]
        chosen = chosen_taps(self.task, form, self.make.size, self.primitives)
        weight = whole if chosen is None else whole[list(chosen)]
        target, add = self._target(form.input)
        gradient = self.gradients.pop(step.source)
        dw = self.primitives.depthwise_backward(gradient, self.input(form), weight, taps_of(form, chosen), target, add)
        self._give(gradient)
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
            pool_backward(self.task, form, small, target, add, self.primitives)

    def _take(self, channels: int) -> Tensor:
        found = self.spare.get(channels)
        return found.pop() if found else self.make.empty(channels)

    def _give(self, gradient: Tensor) -> None:
        self.spare.setdefault(gradient.shape[1], []).append(gradient)

    def _target(self, number: int) -> tuple[Tensor | None, bool]:
        """Where the gradient of F (0) or of branch ``number`` is gathered, and whether something is there already."""
        if number == 0 and not self.needs_input:
            return None, False
        add = number in self.arriving
        if not add:
            channels = self.task.branches[number - 1].filters if number else self.task.in_channels
            self.arriving[number] = self._take(channels)
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
