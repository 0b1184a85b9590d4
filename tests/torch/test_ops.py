"""The operators ``dpcdsl::*``: torch's own checks of them, their gradients of any order, and what they refuse."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch_subjects import DEVICES

from dpcdsl import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Resize
from dpcdsl_torch.decomposition import decomposed
from dpcdsl_torch.depthwise import depthwise_conv2d
from dpcdsl_torch.task import FUSIONS, Form, Task, form_of
from dpcdsl_torch.weights import prepare

OPS = torch.ops.dpcdsl
CPU = torch.device("cpu")
TYPES = (torch.float32, torch.bfloat16, torch.float64)

few = settings(max_examples=25, deadline=None)

# torch deprecates what its own checks call.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]


# Tasks


def conv(input: int, depth: int, filters: int) -> Form:
    form = form_of([Convolution("conv", filters)], input, depth)
    assert form is not None
    return form


def sep(input: int, depth: int, filters: int, rate: tuple[int, int] = (1, 2), kernel: tuple[int, int] = (3, 3)) -> Form:
    layers = [DepthwiseConvolution("depthwise", kernel, rate), Convolution("pointwise", filters)]
    form = form_of(layers, input, depth)
    assert form is not None
    return form


def pool(input: int, depth: int, filters: int, grid: tuple[int, int] = (1, 2)) -> Form:
    form = form_of([GridPool(grid), Convolution("conv", filters), Resize()], input, depth)
    assert form is not None
    return form


def task_of(*forms: Form, **settings: Any) -> Task:
    task = Task(forms[0].in_channels, forms, **settings)
    return replace(task, epsilon=tuple(1e-5 * (i + 1) for i in range(len(task.convolutions))))


def plain(form: Form) -> Form:
    """Without normalisation and ReLU."""
    return replace(form, norm=False, relu=False, depthwise_norm=False, depthwise_relu=False)


MIXED = task_of(sep(0, 3, 2), pool(1, 2, 3), conv(0, 3, 2), sep(2, 3, 2, (2, 1)), pool(1, 2, 2))
TASKS = {
    "mixed": MIXED,
    "sliding": replace(MIXED, pooling="sliding", align_corners=False),
    "no norm": task_of(plain(sep(0, 2, 3)), plain(conv(1, 3, 2)), plain(pool(0, 2, 2))),
    "half a norm": task_of(
        replace(sep(0, 2, 3), depthwise_norm=False),
        replace(sep(1, 3, 2), norm=False),
        replace(conv(0, 2, 2), relu=False),
    ),
    "even": task_of(sep(0, 2, 2, (1, 3), (2, 4)), sep(1, 2, 2, (5, 1), (1, 3))),
    "pools apart": replace(MIXED, without=frozenset({"shared_pooling", "taps"})),
}

by_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    numbers, sides = st.integers(1, 5), st.integers(1, 3)
    channels, forms = [draw(numbers)], []
    for number in range(draw(st.integers(1, 4))):
        input = draw(st.integers(0, number))
        depth, filters = channels[input], draw(numbers)
        kind = draw(st.sampled_from([conv, sep, pool]))
        if kind is conv:
            form = conv(input, depth, filters)
        elif kind is sep:
            rate, kernel = st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(sides, sides)
            form = sep(input, depth, filters, draw(rate), draw(kernel))
        else:
            form = pool(input, depth, filters, draw(st.tuples(numbers, numbers)))
        forms.append(draw(st.sampled_from([form, form, plain(form)])))
        channels.append(filters)
    without = st.frozensets(st.sampled_from(sorted(FUSIONS)), max_size=3)
    return task_of(
        *forms,
        projection=draw(st.none() | numbers),
        pooling=draw(st.sampled_from(["paper", "sliding"])),
        align_corners=draw(st.booleans()),
        backend=draw(st.sampled_from(["auto", "aten"])),
        without=draw(st.just(frozenset()) | without),
    )


def weights_of(task: Task, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random weights for training, and running statistics."""
    forms = dict(enumerate(task.branches, 1))
    found = {}
    for name, norm in task.convolutions:
        number, kind = name.split(".")
        if number == "0":
            shape = (task.out_channels, task.concatenated)
        else:
            form = forms[int(number)]
            shape = (len(form.dy) if kind == "depthwise" else form.filters, form.in_channels)
        found[name] = torch.randn(shape, dtype=dtype)
        if norm:
            channels = shape[1] if kind == "depthwise" else shape[0]
            found[f"{name}.weight"] = torch.rand(channels, dtype=dtype) + 0.5
            found[f"{name}.bias"] = torch.randn(channels, dtype=dtype)
            found[f"{name}.mean"] = torch.randn(channels, dtype=dtype) / 4
            found[f"{name}.variance"] = torch.rand(channels, dtype=dtype) + 0.5
    assert tuple(found) == task.training_names
    return found


def is_learnt(name: str) -> bool:
    return not name.endswith((".mean", ".variance"))


def a_map(
    task: Task, dtype: torch.dtype = torch.float64, n: int = 2, size: tuple[int, int] = (5, 4), last: bool = False
) -> Tensor:
    x = torch.randn(n, task.in_channels, *size, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def batches(task: Task, how: str) -> list[bool]:
    """Of each convolution, whether statistics are the batch's."""
    return [how == "batch" or (how == "some" and i % 2 == 0) for i in range(len(task.convolutions))]


@given(tasks())
@few
def test_a_task_is_text(task: Task) -> None:
    text = task.dumps()
    assert Task.loads(text) == task
    assert Task.loads(text).dumps() == text


# torch's own checks: schema, fakes, autograd registration, and tracing with dynamic shapes


def settings_of_a_map() -> list[Any]:
    cases = [(dtype, last, 2, backend) for dtype in TYPES for last in (False, True) for backend in ("auto", "aten")]
    cases += [(torch.float32, last, 0, backend) for last in (False, True) for backend in ("auto", "aten")]
    # Doubles are ATen's either way.
    kept = [case for case in cases if case[0] is not torch.float64 or case[3] == "auto"]
    return [
        pytest.param(
            *case, device, id=f"{str(case[0])[6:]}-{'nhwc' if case[1] else 'nchw'}-{case[2]}-{case[3]}-{device}"
        )
        for case in kept
        for device in DEVICES
    ]


on_any_map = pytest.mark.parametrize(("dtype", "last", "n", "backend", "device"), settings_of_a_map())


@on_any_map
def test_opcheck_of_evaluation(dtype: torch.dtype, last: bool, n: int, backend: str, device: str) -> None:
    task = replace(MIXED, backend=backend, projection=3)
    task = replace(task, epsilon=(1e-5,) * len(task.convolutions))
    named = {name: weight.to(device) for name, weight in weights_of(task, dtype).items()}
    weights = list(prepare(task, named, torch.device(device), dtype).values())
    torch.library.opcheck(OPS.cell.default, (a_map(task, dtype, n, last=last).to(device), weights, task.dumps()))


@on_any_map
def test_opcheck_of_training(dtype: torch.dtype, last: bool, n: int, backend: str, device: str) -> None:
    task = replace(MIXED, backend=backend)
    x = a_map(task, dtype, n, last=last).to(device).requires_grad_()
    named = {name: weight.to(device) for name, weight in weights_of(task, dtype).items()}
    for name, weight in named.items():
        weight.requires_grad_(is_learnt(name))
    weights, batch = list(named.values()), batches(task, "some")
    torch.library.opcheck(OPS.cell_train.default, (x, weights, task.dumps(), batch))
    with torch.no_grad():
        kept = OPS.cell_train(x, weights, task.dumps(), batch)
        gradient = torch.randn_like(kept[0])
    bare = [weight.detach() for weight in weights]
    for needs_input in (True, False):
        torch.library.opcheck(
            OPS.cell_train_backward.default,
            (gradient, x.detach(), bare, kept, task.dumps(), batch, needs_input),
        )


@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_depthwise(device: str, dtype: torch.dtype, last: bool, n: int) -> None:
    x = a_map(task_of(conv(0, 5, 1)), dtype, n, last=last).to(device).requires_grad_()
    g = torch.randn_like(x).requires_grad_()
    weight = torch.randn(5, 1, 3, 2, dtype=dtype, device=device, requires_grad=True)
    for rate in ((1, 1), (2, 9)):
        torch.library.opcheck(OPS.depthwise.default, (x, weight, rate))
        torch.library.opcheck(OPS.depthwise_backward_input.default, (g, weight, rate))
        torch.library.opcheck(OPS.depthwise_backward_weight.default, (g, x, (3, 2), rate))


# Fakes


def assert_alike(fake: Sequence[Tensor], real: Sequence[Tensor]) -> None:
    """Shape, type, device and strides; a stride that is multiplied by nothing but 0 means nothing."""
    for one, other in zip(fake, real, strict=True):
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        if other.numel():
            strides = zip(one.stride(), other.stride(), other.shape, strict=True)
            assert all(a == b for a, b, size in strides if size > 1), (one.stride(), other.stride(), other.shape)


def faked(operator: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    with FakeTensorMode() as mode:
        return operator(*torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, tuple(arguments)))


@given(
    tasks(),
    st.sampled_from(TYPES),
    st.booleans(),
    st.integers(0, 2),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(["batch", "some", "running"]),
)
@few
def test_fakes_are_like_the_real(
    task: Task, dtype: torch.dtype, last: bool, n: int, size: tuple[int, int], how: str
) -> None:
    x, named = a_map(task, dtype, n, size, last), weights_of(task, dtype)
    arguments: tuple[Any, ...] = (x, list(prepare(task, named, CPU, dtype).values()), task.dumps())
    assert_alike([faked(OPS.cell, arguments)], [OPS.cell(*arguments)])

    task = replace(task, projection=None)
    task = replace(task, epsilon=task.epsilon[: len(task.convolutions)])
    weights, batch = [named[name] for name in task.training_names], batches(task, how)
    arguments = (x, weights, task.dumps(), batch)
    kept = OPS.cell_train(*arguments)
    assert_alike(faked(OPS.cell_train, arguments), kept)
    found = {name.rpartition(".")[0] for name in task.kept_names if name.endswith((".mean", ".variance"))}
    assert found == {name for name, norm in task.convolutions if norm}
    for needs_input in (True, False):
        arguments = (torch.ones_like(kept[0]), x, weights, kept, task.dumps(), batch, needs_input)
        assert_alike(faked(OPS.cell_train_backward, arguments), OPS.cell_train_backward(*arguments))


# Gradients


def trained(task: Task, x: Tensor, named: dict[str, Tensor], how: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operator as a function of what is learnt, and what that is."""
    names = [name for name in named if is_learnt(name)]

    def run(x: Tensor, *learnt: Tensor) -> Tensor:
        weights = list((named | dict(zip(names, learnt, strict=True))).values())
        out: Tensor = OPS.cell_train(x, weights, task.dumps(), batches(task, how))[0]
        return out

    return run, [x.requires_grad_(), *(named[name].requires_grad_() for name in names)]


@pytest.mark.parametrize("how", ["batch", "some", "running"])
@by_task
def test_gradients_of_a_cell(task: Task, how: str) -> None:
    """Far from any kink: what a ReLU sees is not within a step of 0 for this seed."""
    function, inputs = trained(task, a_map(task, size=(3, 4)), weights_of(task), how)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["batch", "some", "running"])
@by_task
def test_every_gradient_of_a_cell(task: Task, how: str) -> None:
    function, inputs = trained(task, a_map(task, size=(3, 4)), weights_of(task), how)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and bool(((found - expected).abs() <= tolerance * scale).all())


def assert_formula(task: Task, x: Tensor, how: str) -> None:
    """The passes' own gradients are those that autograd finds of the decomposition."""
    named, batch = weights_of(task), batches(task, how)
    learnt = [weight.requires_grad_() for name, weight in named.items() if is_learnt(name)]
    x.requires_grad_()
    chosen = frozenset(name for (name, _), own in zip(task.convolutions, batch, strict=True) if own)
    out, _ = decomposed(task, x, named, chosen)
    gradient = torch.randn_like(out)
    expected = torch.autograd.grad(out, [x, *learnt], gradient)
    with torch.no_grad():
        kept = OPS.cell_train(x, list(named.values()), task.dumps(), batch)
        found = OPS.cell_train_backward(gradient, x, list(named.values()), kept, task.dumps(), batch, True)
        less = OPS.cell_train_backward(gradient, x, list(named.values()), kept, task.dumps(), batch, False)
    assert close(kept[0], out, 1e-10)
    names = ["x", *filter(is_learnt, named)]
    for name, one, other in zip(names, found, expected, strict=True):
        assert close(one, other, 1e-10), name
    assert all(map(torch.equal, less, found[1:]))


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("how", ["batch", "some", "running"])
@by_task
def test_the_formulas_of_the_backward_pass(task: Task, how: str, last: bool) -> None:
    assert_formula(task, a_map(task, n=3, size=(7, 9), last=last), how)


@given(tasks(), st.sampled_from(["batch", "some", "running"]), st.integers(0, 2**20))
@few
def test_the_formulas_on_random_tasks(task: Task, how: str, seed: int) -> None:
    torch.manual_seed(seed)
    task = replace(task, projection=None)
    task = replace(task, epsilon=task.epsilon[: len(task.convolutions)])
    assert_formula(task, a_map(task, n=2, size=(6, 5)), how)


# The depthwise convolution


def same(x: Tensor, weight: Tensor, rate: tuple[int, int]) -> Tensor:
    """By torch alone: SAME padding, the smaller half before."""
    reach = [(size - 1) * step for size, step in zip(weight.shape[2:], rate, strict=True)]
    (top, left), (bottom, right) = [r // 2 for r in reach], [r - r // 2 for r in reach]
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, dilation=rate, groups=x.shape[1])


KERNELS = [
    *(((3, 3), (2, 1)), ((1, 1), (5, 5)), ((2, 4), (1, 3)), ((5, 5), (1, 1)), ((3, 3), (30, 2))),
    ((2, 2), (40, 30)),  # every tap is outside the map
]


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [*TYPES, torch.float16], ids=str)
@pytest.mark.parametrize(("kernel", "rate"), KERNELS)
def test_depthwise_is_torchs_convolution(
    kernel: tuple[int, int], rate: tuple[int, int], dtype: torch.dtype, layout: str
) -> None:
    x = torch.randn(2, 33, 6, 7, dtype=torch.float64).to(dtype)
    if layout == "nhwc":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, 3:36, ::2]
    elif layout == "transposed":
        x = x.transpose(2, 3)
    elif layout == "expanded":
        x = x[:, :1, :, :1].expand(2, 33, 6, 7)
    weight = torch.randn(33, 1, *kernel, dtype=torch.float64).to(dtype)
    g = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    out = same(*exact, rate)
    expected = (out, *torch.autograd.grad(out, exact, g.double()))
    x, weight = x.detach().requires_grad_(), weight.requires_grad_()
    y = depthwise_conv2d(x, weight, rate)
    found = (y, *torch.autograd.grad(y, (x, weight), g))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is dtype
        assert close(one.double(), other, tolerance)
    assert (y.stride(1) == 1) is (x.stride(1) == 1)
    assert y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "rate"), KERNELS)
def test_derivatives_of_any_order(kernel: tuple[int, int], rate: tuple[int, int]) -> None:
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, *kernel, dtype=torch.float64, requires_grad=True)

    def second(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        out = depthwise_conv2d(x, weight, rate).pow(3).sum()
        return torch.autograd.grad(out, (x, weight), create_graph=True)

    assert gradcheck(lambda *inputs: depthwise_conv2d(*inputs, rate), (x, weight), fast_mode=True)
    assert gradgradcheck(lambda *inputs: depthwise_conv2d(*inputs, rate), (x, weight), fast_mode=True)
    assert gradgradcheck(second, (x, weight), fast_mode=True)


def test_each_gradient_alone() -> None:
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(3, 1, 3, 3)
    for i in range(2):
        inputs = [x.clone(), weight.clone()]
        inputs[i].requires_grad_()
        depthwise_conv2d(*inputs).sum().backward()
        assert inputs[i].grad is not None
        assert inputs[1 - i].grad is None


@pytest.mark.parametrize("rate", [(1, 1), (3, 2)])
def test_padding_is_what_torch_calls_same(rate: tuple[int, int]) -> None:
    x, weight = torch.randn(1, 2, 7, 8), torch.randn(2, 1, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch pads a copy of its own, and says so
        expected = F.conv2d(x, weight, padding="same", dilation=rate, groups=2)
    torch.testing.assert_close(depthwise_conv2d(x, weight, rate), expected)


def test_autocast_is_as_for_a_convolution() -> None:
    x, weight = torch.randn(1, 3, 5, 5), torch.randn(3, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for map in (x, x.bfloat16()):
            assert depthwise_conv2d(map, weight).dtype is F.conv2d(map, weight, groups=3).dtype is torch.bfloat16
        assert depthwise_conv2d(x.double(), weight.double()).dtype is torch.float64


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_depthwise_is_exported_and_compiled_with_dynamic_sizes(last: bool) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 1, 3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return depthwise_conv2d(x, self.weight, (2, 3))

    module, x, other = Module(), torch.randn(2, 4, 6, 6), torch.randn(3, 4, 9, 6)
    if last:
        x, other = (t.contiguous(memory_format=torch.channels_last) for t in (x, other))
    sizes = {"x": {0: torch.export.Dim("n", min=1, max=64), 2: torch.export.Dim("h", min=2, max=64)}}
    program = torch.export.export(module, (x,), dynamic_shapes=sizes)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [OPS.depthwise.default]
    assert torch.equal(program.module()(other), module(other))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    found, expected = (torch.autograd.grad(f(other).sum(), module.weight)[0] for f in (compiled, module))
    assert torch.equal(found, expected)


def test_no_images_at_all() -> None:
    x, weight = torch.randn(0, 3, 4, 4, requires_grad=True), torch.randn(3, 1, 3, 3, requires_grad=True)
    y = depthwise_conv2d(x, weight, (2, 2))
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert y.shape == x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (2, 1), (0, 0)])
def test_depthwise_under_vmap(dims: tuple[int | None, int | None]) -> None:
    inputs = [torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(3, 1, 3, 2, dtype=torch.float64)]
    many = [t if at is None else torch.stack([t, 2 * t, t - 1], at) for t, at in zip(inputs, dims, strict=True)]
    each = [[t if at is None else t.select(at, i) for t, at in zip(many, dims, strict=True)] for i in range(3)]
    g = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, w: depthwise_conv2d(x, w, (1, 2)),
        lambda x, w: OPS.depthwise_backward_input(x, w, (1, 2)),
        lambda x, _: OPS.depthwise_backward_weight(x, g, (3, 2), (1, 2)),
        lambda x, _: OPS.depthwise_backward_weight(g, x, (3, 2), (1, 2)),
    ]
    for function in functions:
        found = torch.func.vmap(function, in_dims=dims)(*many)
        torch.testing.assert_close(found, torch.stack([function(*one) for one in each]))


# What is refused: never anything that native code then sees


def refused(operator: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(DpcError) as caught:
        operator(*arguments)
    assert caught.value.codes == ("DPC062",)
    return str(caught.value)


def test_depthwise_refuses() -> None:
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(3, 1, 3, 3)
    for one, other, rate, what in (
        (x[0], weight, (1, 1), "3 dimensions"),
        (x, weight[:2], (1, 1), "(2, 1, 3, 3)"),
        (x, weight[:, 0], (1, 1), "(3, 3, 3)"),
        (x, torch.randn(3, 3, 3, 3), (1, 1), "(3, 3, 3, 3)"),
        (x, weight.double(), (1, 1), "torch.float64"),
        (x, weight.to("meta"), (1, 1), "meta"),
        (x.int(), weight.int(), (1, 1), "no floating type"),
        (x[:, :0], weight[:0], (1, 1), "empty"),
        (x[:, :, :0], weight, (1, 1), "empty"),
        (x, weight[:, :, :0], (1, 1), "kernel"),
        (x, weight, (0, 1), "rate"),
        (x, weight, (1, -3), "rate"),
        (x, weight, (1, 2**62), "too far"),
    ):
        assert what in refused(OPS.depthwise, one, other, rate)
        assert what in refused(OPS.depthwise_backward_input, one, other, rate)
    for one, other, kernel, rate, what in (
        (x, x[:1], (3, 3), (1, 1), "one shape"),
        (x, x.double(), (3, 3), (1, 1), "torch.float64"),
        (x, x.to("meta"), (3, 3), (1, 1), "meta"),
        (x, x, (0, 3), (1, 1), "kernel"),
        (x, x, (3, 3), (1, 0), "rate"),
        (x, x, (2**40, 3), (1, 1), "too far"),
    ):
        assert what in refused(OPS.depthwise_backward_weight, one, other, kernel, rate)


def wrong_weights(weights: list[Tensor]) -> list[list[Tensor]]:
    one, *rest = weights
    return [
        rest,
        [*weights, one],
        [],
        [one[:1], *rest],
        [one[:, :-1], *rest],
        [one[None], *rest],
        [one.int(), *rest],
        [*weights[:-1], weights[-1][:-1]],
    ]


def wrong_maps(x: Tensor) -> list[Tensor]:
    return [x[:, :-1], torch.cat([x, x], 1), x[0], x.int(), x[:, :, :0], x[..., :0]]


def wrong_tasks(task: Task) -> list[str]:
    """Texts that are no task, or one on which a kernel would read beside its weights."""
    known = json.loads(task.dumps())

    def changed(**values: Any) -> str:
        return json.dumps(known | values)

    def branch(number: int, **values: Any) -> str:
        branches = [dict(form) for form in known["branches"]]
        branches[number].update(values)
        return changed(branches=branches)

    return [
        *("", "{", "null", "[]", "{}", "[" * 100_000, task.dumps()[:-1], changed(unknown=1), changed(branches=[])),
        *(branch(0, input=1), branch(0, input=-1), branch(0, in_channels=2), branch(0, filters=-1)),
        *(branch(0, dy=[0]), branch(0, dy=[2**62] * 9), branch(0, kernel=None), branch(0, kernel=[10**9, 10**9])),
        *(branch(0, rate=[0, 1]), branch(0, rate=[7, 7]), branch(1, grid=[0, 1]), branch(1, grid=[1, 1, 1])),
        *(branch(0, filters=2.0), branch(0, filters="2"), changed(pooling="largest"), changed(without=["nothing"])),
        *(changed(epsilon=[]), changed(epsilon=["a"] * len(task.convolutions)), changed(output_stride=0)),
        *(changed(in_channels=0), changed(image_pooling_crop_size=[0, 0])),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_evaluation_refuses(dtype: torch.dtype) -> None:
    task = task_of(*MIXED.branches, projection=4)
    text, x = task.dumps(), a_map(task, dtype)
    weights = list(prepare(task, weights_of(task, dtype), CPU, dtype).values())
    for wrong in [*wrong_weights(weights), [weights[0].half(), *weights[1:]]]:
        refused(OPS.cell, x, wrong, text)
    for map in wrong_maps(x):
        refused(OPS.cell, map, weights, text)
    for unknown in wrong_tasks(task):
        refused(OPS.cell, x, weights, unknown)
    if dtype is not torch.float64:
        strided = torch.stack([weights[0], weights[0]], -1)[..., 0]
        assert "contiguous" in refused(OPS.cell, x, [strided, *weights[1:]], text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_training_refuses(dtype: torch.dtype) -> None:
    task = MIXED
    text, x, batch = task.dumps(), a_map(task, dtype), batches(task, "batch")
    weights = list(weights_of(task, dtype).values())
    kept = OPS.cell_train(x, weights, text, batch)
    g = torch.ones_like(kept[0])

    def both(x: Tensor, weights: list[Tensor], text: str, batch: list[bool]) -> None:
        refused(OPS.cell_train, x, weights, text, batch)
        refused(OPS.cell_train_backward, g, x, weights, kept, text, batch, True)

    for wrong in wrong_weights(weights):
        both(x, wrong, text, batch)
    for map in wrong_maps(x):
        both(map, weights, text, batch)
    for unknown in wrong_tasks(task):
        both(x, weights, unknown, batch)
    for choices in (batch[1:], [*batch, True], []):
        both(x, weights, text, choices)
    whole = task_of(*task.branches, projection=4)
    named = list(weights_of(whole, dtype).values())
    refused(OPS.cell_train, x, named, whole.dumps(), batches(whole, "batch"))
    for gradient in (g[:, :-1], g[:1], g.half(), g[0]):
        refused(OPS.cell_train_backward, gradient, x, weights, kept, text, batch, True)
    assert len(kept) == len(task.kept_names)
    for i in range(len(kept)):
        for changed in (kept[i][:-1], kept[i].half(), kept[i][None]):
            refused(OPS.cell_train_backward, g, x, weights, [*kept[:i], changed, *kept[i + 1 :]], text, batch, True)
    refused(OPS.cell_train_backward, g, x, weights, kept[1:], text, batch, True)
