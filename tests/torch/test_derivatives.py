"""Gradients of the fused module: of some weights or none, second ones, torch.func, the same in every run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pairs import OPERATORS, all_near, features, near, pair, tiny
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from dpcdsl.cell import Cell
from dpcdsl.operators import Operator

# Gradients or none


def test_gradients_in_evaluation_mode(mixed: Cell) -> None:
    eager, compiled = pair(mixed)
    x = features().requires_grad_()
    inputs = [[x, *module.parameters()] for module in (compiled, eager)]
    ours, theirs = (
        torch.autograd.grad(module(x).square().sum(), leaves)
        for module, leaves in zip((compiled, eager), inputs, strict=True)
    )
    all_near(ours, theirs)
    with torch.no_grad():
        result = compiled(x)
        assert not result.requires_grad
    near(result, compiled(x), 1e-6)
    for parameter in compiled.parameters():
        parameter.requires_grad_(False)
    near(torch.autograd.grad(compiled(x).square().sum(), x)[0], theirs[0], 1e-4)
    assert not compiled(x.detach()).requires_grad


def test_only_some_weights_learn(mixed: Cell) -> None:
    eager, compiled = pair(mixed)
    for module in (eager.train(), compiled.train()):
        for number, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(number % 3 == 0)
        module(torch.ones(2, 6, 9, 7).cumsum(2).sin()).square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(9, 7), (70, 70)])
def test_a_result_may_be_written_to(size: tuple[int, int]) -> None:
    cell = Cell.of((0, Operator.of("conv1x1")), (0, OPERATORS[0]), filters=16)
    eager, compiled = pair(cell, projection=None)
    x = features(2, 6, *size)
    gradients = []
    for module in (eager.train(), compiled.train()):
        y = module(x)
        y += 1
        y.mul_(2)
        gradients.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
        with torch.no_grad():
            module(x).mul_(2)
        y = module.eval()(x)
        y += 1
        y.sum().backward()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-1)


def test_a_result_that_other_branches_read_may_not_be_written_to() -> None:
    # Unlike the eager cell's: it is what those branches' gradients are computed from. At least it is told.
    _, compiled = pair(tiny(4), projection=None)
    y = compiled.train()(features())
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_gradient_is_not_written_to(mixed: Cell) -> None:
    _, compiled = pair(mixed, projection=None)
    x = features().requires_grad_()
    y = compiled.train()(x)
    gradient = torch.randn_like(y)
    before = gradient.clone()
    first = torch.autograd.grad(y, [x, *compiled.parameters()], gradient, retain_graph=True)
    second = torch.autograd.grad(y, [x, *compiled.parameters()], gradient)
    assert torch.equal(gradient, before)
    assert all(map(torch.equal, first, second))


def test_statistics_may_move_between_forward_and_backward(mixed: Cell) -> None:
    _, compiled = pair(mixed)
    x = features().requires_grad_()
    compiled.train()
    compiled.branches[0].depthwise.bn.eval()
    state = copy.deepcopy(compiled.state_dict())
    found = []
    for moved in (0, 5):
        compiled.load_state_dict(state)
        y = compiled(x)
        with torch.no_grad():
            for buffer in compiled.buffers():
                buffer.add_(moved)
        found.append(torch.autograd.grad(y.sum(), [x, *compiled.parameters()]))
    assert all(map(torch.equal, *found))


def test_checkpointing(mixed: Cell) -> None:
    _, compiled = pair(mixed)
    x = features().requires_grad_()
    compiled.train()
    expected = torch.autograd.grad(compiled(x).square().sum(), [x, *compiled.parameters()])
    y = torch.utils.checkpoint.checkpoint(compiled, x, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(y.square().sum(), [x, *compiled.parameters()]), expected))


# Second derivatives, torch.func


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("projection", [None, 2])
def test_first_and_second_derivatives_by_differences(training: bool, projection: int | None) -> None:
    _, compiled = pair(tiny(), 2, projection=projection)
    compiled.double().train(training)
    names = [name for name, _ in compiled.named_parameters()]
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> Any:
        return functional_call(compiled, dict(zip(names, weights, strict=True)), (x,))

    leaves = (x, *(parameter.detach().requires_grad_() for parameter in compiled.parameters()))
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def penalty(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the squared norm of gradients."""
    leaves = [x, *module.parameters()]
    found = torch.autograd.grad(module(x).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum((g.square().sum() for g in found), x.new_zeros(())), leaves, materialize_grads=True)


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_are_the_eager_cells(training: bool) -> None:
    eager, compiled = pair(tiny(5), 4)
    x = features(2, 4, 6, 5)
    exact = penalty(copy.deepcopy(eager).double().train(training), x.double().requires_grad_())
    theirs = penalty(eager.train(training), x.clone().requires_grad_())
    ours = penalty(compiled.train(training), x.clone().requires_grad_())
    for own, their, true in zip(ours, theirs, exact, strict=True):
        allowed = 1e-3 * float(true.norm()) + 30 * float((their - true).norm())
        assert float((own - true).norm()) <= allowed


@pytest.mark.parametrize("training", [True, False])
def test_gradients_with_a_graph_where_weights_are_used_twice(training: bool) -> None:
    # The second use's map depends on the same weights: their gradient through it comes from the first use alone.
    eager, compiled = pair(tiny(3), 4)
    x = features(2, 4, 6, 5).double().requires_grad_()
    found = []
    for module in (eager.double().train(training), compiled.double().train(training)):
        y = module(module(x) * 2)
        found.append(torch.autograd.grad(y.square().sum(), [x, *module.parameters()], create_graph=True))
    all_near(found[1], found[0], 1e-8)


def test_many_gradients_at_once() -> None:
    jacobian: Any = torch.autograd.functional.jacobian
    eager, compiled = pair(tiny(3), 4)
    x = features(1, 4, 3, 4).double()
    for training in (True, False):
        jacobians = [jacobian(module.double().train(training), x, vectorize=True) for module in (compiled, eager)]
        near(jacobians[0], jacobians[1], 1e-8)


def test_a_rate_beyond_the_map_has_a_second_derivative() -> None:
    cell = Cell.of((0, Operator.of("sepconv3x3", rate=(1, 2**31 - 1))), filters=2)
    eager, compiled = pair(cell, 3)
    x = features(1, 3, 4, 5)
    theirs = penalty(eager.double(), x.double().requires_grad_())
    all_near(penalty(compiled.double(), x.double().requires_grad_()), theirs, 1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_functional_call_and_grad(training: bool) -> None:
    eager, compiled = pair(tiny(3), 4, batch_norm_momentum=0.0)
    x = features(2, 4, 6, 5).double()
    found = []
    for module in (compiled.double().train(training), eager.double().train(training)):
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def loss(weights: Any, module: nn.Module = module, buffers: dict[str, Tensor] = buffers) -> Tensor:
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            result: Tensor = functional_call(module, (weights, own), (x,)).square().sum()
            return result

        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
        found.append(grad(loss)(weights))
    all_near(found[0].values(), found[1].values(), 1e-8)


def test_functional_call_without_gradients(mixed: Cell) -> None:
    _, compiled = pair(mixed)
    x = features()
    with torch.no_grad():
        expected = compiled(x)
        other = {name: value * 1.5 for name, value in compiled.state_dict().items()}
        changed = functional_call(compiled, other, (x,))
        assert torch.equal(compiled(x), expected)
        compiled.load_state_dict(other)
        near(changed, compiled(x), 1e-6)


@pytest.mark.parametrize("wanted", [True, False])
def test_vmap(mixed: Cell, wanted: bool) -> None:
    eager, compiled = pair(mixed)
    x = torch.randn(3, 2, 6, 9, 7)
    with torch.set_grad_enabled(wanted):
        near(vmap(compiled)(x), torch.stack([eager(one) for one in x]))
        others = [pair(mixed)[1] for _ in range(3)]
        parameters, buffers = stack_module_state(others)
        ensemble = vmap(lambda p, b, one: functional_call(compiled, (p, b), (one,)))(parameters, buffers, x)
        near(ensemble, torch.stack([other(one) for other, one in zip(others, x, strict=True)]))


def test_gradients_of_each_example(mixed: Cell) -> None:
    eager, compiled = pair(mixed)
    x = features(3).double()
    found = []
    for module in (compiled.double(), eager.double()):
        weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

        def loss(weights: dict[str, Tensor], one: Tensor, module: nn.Module = module) -> Tensor:
            result: Tensor = functional_call(module, weights, (one[None],)).square().sum()
            return result

        found.append(vmap(grad(loss), in_dims=(None, 0))(weights, x))
    all_near(found[0].values(), found[1].values(), 1e-8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own derivatives
@pytest.mark.parametrize("training", [True, False])
def test_forward_mode(training: bool) -> None:
    eager, compiled = pair(tiny(3), 4, batch_norm_momentum=0.0)
    x, direction = features(2, 4, 6, 5).double(), features(2, 4, 6, 5).double()
    duals = []
    for module in (compiled.double().train(training), eager.double().train(training)):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
            duals.append(forward_ad.unpack_dual(module(dual)).tangent)  # type: ignore[no-untyped-call]
    near(duals[0], duals[1], 1e-8)
    if not training:
        near(jvp(compiled, (x,), (direction,))[1], duals[1], 1e-8)


# The same numbers every time


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", ["auto", "aten"])
@pytest.mark.parametrize("size", [(9, 7), (65, 70)])
def test_runs_are_equal_to_the_bit(mixed: Cell, backend: str, size: tuple[int, int]) -> None:
    _, compiled = pair(Cell(branches=mixed.branches, filters=32), 32, backend=backend)
    x = features(2, 32, *size)
    runs = []
    for _ in range(3):
        module = copy.deepcopy(compiled)
        leaf = x.clone().requires_grad_()
        with deterministic():
            with torch.no_grad():
                evaluated = module(leaf)
            y = module.train()(leaf)
            found = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])
        runs.append([evaluated, y, *found, *module.buffers()])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))
