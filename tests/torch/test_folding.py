"""When the fused module folds its weights anew: they change, are copied, move."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import features, near, pair
from torch import Tensor, nn

from dpcdsl.cell import Cell
from dpcdsl_torch import compile_cell

Change = Callable[[Any], None]


# Weights that change


def _load(module: Any) -> None:
    module.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()})


def _assign(module: Any) -> None:
    module.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()}, assign=True)


def _copy(module: Any) -> None:
    with torch.no_grad():
        module.branches[0].pointwise.weight.copy_(module.branches[0].pointwise.weight * 1.5)


def _inference(module: Any) -> None:
    with torch.inference_mode():
        module.branches[0].pointwise.weight.mul_(1.5)


def _optimize(module: Any) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _statistics(module: Any) -> None:
    module.branches[0].depthwise.bn.running_mean.add_(1)
    module.projection.bn.running_var.mul_(3)


def _new_statistics(module: Any) -> None:
    module.projection.bn.running_mean = module.projection.bn.running_mean + 1


def _train(module: Any) -> None:
    module.train()
    with torch.no_grad():
        module(torch.arange(2 * 6 * 9 * 7.0).sin().reshape(2, 6, 9, 7))
    module.eval()


def _learn(module: Any) -> None:
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    with torch.enable_grad():
        module(torch.arange(2 * 6 * 9 * 7.0).sin().reshape(2, 6, 9, 7)).square().mean().backward()
    optimizer.step()
    module.eval()


def _parameter(module: Any) -> None:
    module.branches[0].depthwise.weight = nn.Parameter(module.branches[0].depthwise.weight * 1.5)


def _module(module: Any) -> None:
    other = copy.deepcopy(module.branches[0].pointwise)
    with torch.no_grad():
        other.weight.mul_(1.5)
    module.branches[0].pointwise = other


def _data(module: Any) -> None:
    module.projection.weight.data = module.projection.weight.data * 1.5


def _vector(module: Any) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 1.5, module.parameters())


def _normed(module: Any) -> None:
    nn.utils.parametrizations.weight_norm(module.branches[0].pointwise)
    with torch.no_grad():
        module.branches[0].pointwise.parametrizations.weight.original0.mul_(1.5)


def _epsilon(module: Any) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.5


CHANGES: dict[str, Change] = {
    function.__name__.removeprefix("_"): function
    for function in (
        *(_load, _assign, _copy, _inference, _optimize, _statistics, _new_statistics, _train, _learn),
        *(_parameter, _module, _data, _vector, _normed, _epsilon),
    )
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("projection", [None, 4])
def test_a_change_of_the_weights_shows(mixed: Cell, change: Change, projection: int | None) -> None:
    if projection is None and change in (_statistics, _new_statistics, _data):
        projection = 3
    eager, compiled = pair(mixed, projection=projection)
    x = features()
    with torch.no_grad():
        before = compiled(x)
        near(before, eager(x))
        change(eager)
        change(compiled)
        assert (compiled(x) - before).norm() > 1e-3 * before.norm()
        near(compiled(x), eager(x), 1e-4)  # training amplifies
        near(compiled(x), eager(x), 1e-4)


def test_a_change_of_type_and_back(mixed: Cell) -> None:
    eager, compiled = pair(mixed)
    x = features()
    with torch.no_grad():
        expected = compiled(x)
        near(compiled.double()(x.double()), eager.double()(x.double()), 1e-12)
        near(compiled.float()(x), expected, 1e-6)
        near(compiled.bfloat16()(x.bfloat16()), eager.bfloat16()(x.bfloat16()), 2e-2)
        near(compiled.half()(x.half()), eager.half()(x.half()), 5e-3)
        near(compiled.float()(x), eager.float()(x))
        near(compiled.to(memory_format=torch.channels_last)(x), eager(x))


def test_weights_are_folded_once(mixed: Cell, folds: list[str]) -> None:
    _, compiled = pair(mixed)
    with torch.no_grad():
        compiled(features())
    assert len(folds) == 1
    for x in (features(), features(1, 6, 3, 5), features().to(memory_format=torch.channels_last)):
        with torch.no_grad():
            compiled(x)
        with torch.inference_mode():
            compiled(x)
    for parameter in compiled.parameters():
        parameter.requires_grad_(False)
    compiled(features())
    assert len(folds) == 1
    with torch.no_grad():
        compiled.projection.weight.add_(1)
        compiled(features())
        compiled(features())
    assert len(folds) == 2


def test_a_fold_in_inference_mode_serves_elsewhere(mixed: Cell, folds: list[str]) -> None:
    eager, compiled = pair(mixed)
    x = features()
    with torch.inference_mode():
        inside = compiled(x)
        assert inside.is_inference()
    with torch.no_grad():
        outside = compiled(x)
        assert not outside.is_inference()
    assert torch.equal(inside, outside)
    assert len(folds) == 1
    x.requires_grad_()
    near(compiled(x), eager(x))


def test_a_write_through_data_shows_after_refold(mixed: Cell) -> None:
    for projection in (None, 4):
        eager, compiled = pair(mixed, projection=projection)
        x = features()
        with torch.no_grad():
            old = compiled(x)
            for module in (eager, compiled):
                module.branches[0].pointwise.weight.data.mul_(2)
            assert torch.equal(compiled(x), old)
            compiled.refold()
            near(compiled(x), eager(x))


def test_weights_made_in_inference_mode(mixed: Cell) -> None:
    # They have no version counter: nobody can tell when they change.
    with torch.inference_mode():
        eager, compiled = pair(mixed)
        x = features()
        near(compiled(x), eager(x))
        for module in (eager, compiled):
            module.projection.weight.mul_(2)
        near(compiled(x), eager(x))


def test_changes_of_a_normalisations_settings(mixed: Cell) -> None:
    # Eight images, and float64 to compare with: the statistics of a 1 x 1 grid over two images are those of two
    # numbers, from which float32 cannot tell 1e-5.
    for momentum in (0.9, None):
        eager, compiled = pair(mixed)
        for module in (eager, compiled):
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.momentum = momentum
        x = features(8)
        for module, y in ((eager.double().train(), x.double()), (compiled.train(), x)):
            module(y)
            module(y + 1)
        for name, buffer in compiled.named_buffers():
            near(buffer, eager.get_buffer(name).to(buffer.dtype))


# Copies


def pickled(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("folded", [False, True])
def test_copies_are_on_their_own(mixed: Cell, copied: Callable[[nn.Module], Any], folded: bool) -> None:
    _, compiled = pair(mixed)
    x = features()
    with torch.no_grad():
        if folded:
            compiled(x)
        other = copied(compiled)
        expected = compiled(x)
        assert torch.equal(other(x), expected)
        compiled.projection.weight.mul_(2)
        assert not torch.equal(compiled(x), expected)
        assert torch.equal(other(x), expected)
        other.projection.weight.mul_(2)
        assert torch.equal(other(x), compiled(x))
    other.train()(x).sum().backward()
    assert all(parameter.grad is None for parameter in compiled.parameters())
    assert other.cell == compiled.cell
    assert repr(other) == repr(compiled.train())


def test_the_meta_device(mixed: Cell) -> None:
    with torch.device("meta"):
        module = compile_cell(mixed, 6, projection=4)
        x = torch.empty(2, 6, 9, 7)
        for training in (True, False):
            assert module.train(training)(x).shape == (2, 4, 9, 7)
            with torch.no_grad():
                assert module(x).shape == (2, 4, 9, 7)
    assert module.to_empty(device="cpu")(features()).shape == (2, 4, 9, 7)


@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_default_type_and_device_do_not_matter(mixed: Cell, backend: str) -> None:
    _, compiled = pair(mixed, backend=backend)
    x = features()

    def everything() -> list[Tensor]:
        module = copy.deepcopy(compiled)
        with torch.no_grad():
            evaluated = module(x)
        output = module.train()(x)
        return [evaluated, output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))]

    expected = everything()
    torch.set_default_dtype(torch.float64)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))
    with torch.device("meta"):
        found = everything()
    assert all(map(torch.equal, found, expected))
