"""Runs the plan of an evaluation: maps by name, one primitive a step. What is fused is decided in :mod:`.plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dpcdsl_torch.maps import Maps, chosen_taps, pool, primitives_for, side_by_side, taps_of, vector_dtype
from dpcdsl_torch.plan import evaluation
from dpcdsl_torch.primitives import Affine, Branch, Projection
from dpcdsl_torch.steps import Concatenate, Convolve, Depthwise, Normalise, Pool, ResizeTo
from dpcdsl_torch.task import Task

__all__ = ["run_evaluation"]


def run_evaluation(task: Task, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The task's result; ``weights`` as :func:`dpcdsl_torch.weights.prepare` names them."""
    return _Evaluation(task, x, weights).run()


class _Evaluation:
    def __init__(self, task: Task, x: Tensor, weights: Mapping[str, Tensor]) -> None:
        self.task, self.weights = task, weights
        self.primitives = primitives_for(task, x.device, x.dtype)
        self.make = Maps(x)
        self.channels_last = side_by_side(x)
        self.maps: dict[str, Tensor] = {"F": self.make.channels_last(x, self.primitives)}
        self.plan = evaluation(task, grouped_channels=self.primitives.grouped_channels)
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
                    self.maps[step.target] = pool(self.task, form, self.maps[step.source], self.primitives)
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
        chosen = chosen_taps(self.task, form, self.make.size, self.primitives)
        weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
        target = self._target(step.target)
        self.primitives.depthwise(self.maps[step.source], weight, taps_of(form, chosen), target, False)
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
                chosen = chosen_taps(self.task, form, self.make.size, self.primitives)
                weight = self.weights[key] if chosen is None else self.weights[key][list(chosen)]
                depthwise = (taps_of(form, chosen), weight, self.weights[f"{key}.shift"], form.depthwise_relu)
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
