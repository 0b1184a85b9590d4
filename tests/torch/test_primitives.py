"""The passes: native ones against ATen's in double precision, and ATen's against autograd.

Numbers are small multiples of powers of two, so that whether a value before a ReLU is positive does not hang on
rounding, and no value is exactly 0 there unless a test wants it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch_subjects import Subject, fp32_multiplied

from dpcdsl_torch import build, native
from dpcdsl_torch.aten import AtenPrimitives
from dpcdsl_torch.native import NativePrimitives
from dpcdsl_torch.primitives import Affine, Branch, Moments, NormGradient, Primitives, Projection, Taps

ATEN = AtenPrimitives()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 1e-2}
MARGIN = 7.0  # what lies beside an output, and must still lie there afterwards
BEFORE, AFTER = 5, 3  # channels beside an output

few = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def kernels() -> NativePrimitives:
    found = native.primitives()
    if found is None:
        pytest.skip(str(build.load()))
    return found


@pytest.fixture(autouse=True)
def _in_full() -> Iterator[None]:
    with fp32_multiplied("ieee"):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def kernel_taps(kernel: tuple[int, int], rate: tuple[int, int]) -> Taps:
    """SAME padding: an even kernel reaches one further down and to the right."""
    rows, columns = (
        [i * step - (size - 1) * step // 2 for i in range(size)] for size, step in zip(kernel, rate, strict=True)
    )
    return Taps(tuple(y for y in rows for _ in columns), tuple(x for _ in rows for x in columns))


@dataclass(frozen=True)
class Case:
    """Sizes of a pass; its tensors are drawn from ``seed`` in the order they are asked for."""

    n: int = 2
    c: int = 33
    filters: int = 17
    h: int = 9
    w: int = 7
    kernel: tuple[int, int] = (3, 3)
    rate: tuple[int, int] = (2, 1)
    dtype: torch.dtype = torch.float32
    sliced: bool = True
    add: bool = True
    relu: bool = True
    affine: bool = True
    two: bool = True
    seed: int = 0
    threads: int = 1
    others: Taps | None = None  # instead of the kernel's

    @property
    def taps(self) -> Taps:
        return kernel_taps(self.kernel, self.rate) if self.others is None else self.others

    def draws(self) -> Draws:
        return Draws(self, torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class Draws:
    case: Case
    generator: torch.Generator

    def numbers(self, *shape: int, most: int = 32, scale: float = 16) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=self.generator) / scale

    def map(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        """An input or output map; where the case says so, a range of channels of a larger one."""
        case = self.case
        beside = (BEFORE, AFTER) if case.sliced else (0, 0)
        shape = (case.n, beside[0] + channels + beside[1], case.h, case.w)
        whole = torch.full(shape, MARGIN, dtype=dtype or case.dtype)
        whole = whole.contiguous(memory_format=torch.channels_last)
        view = whole[:, beside[0] : beside[0] + channels]
        view.copy_(self.numbers(case.n, channels, case.h, case.w))
        return view

    def weight(self, filters: int, depth: int) -> Tensor:
        return self.numbers(filters, depth) / (1 << depth.bit_length() // 2)

    def affine(self, channels: int) -> Affine:
        scale = torch.randint(4, 24, (channels,), generator=self.generator) / 16
        shift = (2 * torch.randint(-99, 99, (channels,), generator=self.generator) + 1) / 512
        return Affine(scale, shift, self.case.relu)

    def gradients(self, channels: int) -> tuple[Tensor, ...]:
        return tuple(self.map(channels) for _ in range(1 + self.case.two))

    def statistics(self, channels: int) -> tuple[Tensor, Tensor]:
        return self.numbers(channels), self.numbers(channels).abs() + 0.25


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> Case:
    channels = st.sampled_from([1, 2, 15, 16, 31, 32, 33, 64, 70]) | st.integers(1, 70)
    rates = st.integers(1, 21)
    return Case(
        n=draw(st.integers(0, 3)),
        c=draw(channels),
        filters=draw(channels),
        h=draw(st.integers(1, 20)),
        w=draw(st.integers(1, 20)),
        kernel=draw(st.sampled_from([(3, 3), (1, 1), (5, 5), (2, 2), (1, 3)])),
        rate=(draw(rates), draw(rates)),
        dtype=draw(st.sampled_from(dtypes)),
        sliced=draw(st.booleans()),
        add=draw(st.booleans()),
        relu=draw(st.booleans()),
        affine=draw(st.booleans()),
        two=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
        threads=draw(st.sampled_from([1, 2])),
    )


def exact(value: Any) -> Any:
    """The same in double precision; maps and vectors get their own memory."""
    if isinstance(value, Tensor):
        return value.to(torch.float64, copy=True)
    if isinstance(value, tuple):
        parts = map(exact, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def flattened(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in flattened(part)] if isinstance(value, tuple) else []


def assert_close(found: Any, expected: Any, dtype: torch.dtype) -> None:
    """To a share of the largest value; NaN and infinity where they are expected, and nowhere else."""
    for one, other in zip(flattened(found), flattened(expected), strict=True):
        assert one.shape == other.shape
        one, other = one.cpu().double(), other.double()  # noqa: PLW2901
        usual = other.isfinite()
        assert torch.equal(one.isfinite(), usual)
        torch.testing.assert_close(one[~usual], other[~usual], equal_nan=True)
        if usual.any():
            largest = max(1.0, float(other[usual].abs().max()))
            assert float((one - other)[usual].abs().max()) <= TOLERANCE[dtype] * largest


def assert_margins(case: Case, *outputs: Tensor) -> None:
    for out in outputs:
        if case.sliced:
            whole = out._base
            assert whole is not None
            assert (whole[:, :BEFORE] == MARGIN).all()
            assert (whole[:, -AFTER:] == MARGIN).all()


Pass = Callable[[Primitives, Draws, Callable[[Any], Any]], tuple[Any, tuple[Tensor, ...]]]


def evaluate(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    """Three branches that read one map: a separable convolution, a plain one, and one without bias or ReLU."""
    case = draws.case
    x, outs = cast(draws.map(case.c)), tuple(cast(draws.map(case.filters)) for _ in range(3))
    branches = []
    for kind, out in enumerate(outs):
        depthwise = (case.taps, draws.numbers(len(case.taps.dy), case.c) / 4, draws.numbers(case.c), case.relu)
        weight = primitives.prepare(cast(draws.weight(case.filters, case.c)), x.dtype)
        bias = None if kind == 2 else cast(draws.numbers(case.filters))
        branches.append(Branch(cast(depthwise) if kind == 0 else None, weight, case.filters, bias, kind < 2, out))
    primitives.evaluate(x, branches, None)
    return (), outs


def depthwise(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    x, out, weight = cast(draws.map(case.c)), cast(draws.map(case.c)), draws.numbers(len(case.taps.dy), case.c) / 4
    moments = primitives.depthwise(x, cast(weight), case.taps, out, case.two)
    return moments, (out,)


def pointwise(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    x, out, weight = cast(draws.map(case.c)), cast(draws.map(case.filters)), draws.weight(case.filters, case.c)
    before = cast(draws.affine(case.c)) if case.affine else None
    moments = primitives.pointwise(x, before, cast(weight), out, case.two)
    return moments, (out,)


def affine(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    x, out = cast(draws.map(draws.case.c)), cast(draws.map(draws.case.c))
    primitives.affine(x, cast(draws.affine(draws.case.c)), out)
    return (), (out,)


def gradient_sums(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    c = draws.case.c
    gradients, x = cast(draws.gradients(c)), cast(draws.map(c))
    affine, statistics = cast(draws.affine(c)), cast(draws.statistics(c))
    return primitives.gradient_sums(gradients, x, affine, *statistics), ()


def pointwise_backward(
    primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]
) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    gradients, p, x = cast(draws.gradients(case.filters)), cast(draws.map(case.filters)), cast(draws.map(case.c))
    norm = cast(NormGradient(draws.affine(case.filters), *(draws.numbers(case.filters) / 4 for _ in range(4))))
    before = cast(draws.affine(case.c)) if case.affine else None
    weight, dx = cast(draws.weight(case.filters, case.c)), cast(draws.map(case.c))
    # The sums are those of dx as a whole only where nothing is added to.
    statistics = cast(draws.statistics(case.c)) if case.affine else None
    found = primitives.pointwise_backward(gradients, p, norm, x, before, weight, dx, case.add, statistics)
    dw, none = primitives.pointwise_backward(gradients, p, norm, x, before, weight, None, False, None)
    assert none is None
    return (found, dw), (dx,)


def normalisation(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    c = draws.case.c
    moments = Moments(cast(draws.numbers(c)), cast(draws.numbers(c).abs()))
    gamma, beta, *sums = (cast(draws.numbers(c)) for _ in range(4))
    inverse, scale, shift = primitives.normalisation(moments, gamma, beta, 1e-3, draws.case.two)
    factors = primitives.normalisation_gradient(gamma, moments.variance, (sums[0], sums[1]), draws.case.c + 1)
    return (inverse, scale, shift, factors), ()


def affine_backward(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    c = draws.case.c
    g, x = cast(draws.map(c)), cast(draws.map(c))
    primitives.affine_backward(g, x, *(cast(draws.numbers(c)) for _ in range(4)))
    return (), (g,)


def depthwise_backward(
    primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]
) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    g, x, one, other = (cast(draws.map(case.c)) for _ in range(4))
    weight = cast(draws.numbers(len(case.taps.dy), case.c) / 4)
    both = primitives.depthwise_backward(g, x, weight, case.taps, one, case.add)
    assert primitives.depthwise_backward(g, None, weight, case.taps, other, not case.add) is None
    return (both, primitives.depthwise_backward(g, x, None, case.taps, None, case.add)), (one, other)


def pools(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    grid = case.rate  # any two numbers
    x, dx = cast(draws.map(case.c)), cast(draws.map(case.c))
    means = primitives.pool(x, grid)
    primitives.pool_backward(cast(draws.numbers(case.n, case.c, *grid)), dx, case.add)
    return means, (dx,)


def resizes(primitives: Primitives, draws: Draws, cast: Callable[[Any], Any]) -> tuple[Any, tuple[Tensor, ...]]:
    case = draws.case
    source, out = cast(draws.numbers(case.n, case.c, *case.rate)), cast(draws.map(case.c))
    primitives.resize(source, out, case.relu)
    return primitives.resize_backward(cast(draws.gradients(case.c)), case.rate, case.relu), (out,)


PASSES: dict[str, Pass] = {
    run.__name__: run
    for run in (
        *(evaluate, depthwise, pointwise, affine, gradient_sums, pointwise_backward, affine_backward),
        *(depthwise_backward, pools, resizes, normalisation),
    )
}


def differential(subject: Subject, run: Pass, case: Case) -> None:
    expected, expected_outs = run(ATEN, case.draws(), exact)
    with threads(case.threads):
        found, outs = run(subject.primitives, case.draws(), subject.cast)
        again, outs_again = run(subject.primitives, case.draws(), subject.cast)
    assert_close(found, expected, case.dtype)
    assert_close(outs, expected_outs, case.dtype)
    assert_margins(case, *outs)
    for one, other in zip(flattened((found, outs)), flattened((again, outs_again)), strict=True):
        assert torch.equal(one, other)  # bit by bit


@pytest.mark.parametrize("name", PASSES)
def test_it_is_aten_in_double_precision(subject: Subject, name: str) -> None:
    @settings(max_examples=subject.examples)
    @given(case=cases(subject.dtypes))
    def check(case: Case) -> None:
        differential(subject, PASSES[name], case)

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("c", "filters"), [(320, 40), (352, 40), (500, 33), (641, 3), (700, 70)])
@pytest.mark.parametrize("name", ["evaluate", "pointwise", "pointwise_backward", "depthwise"])
def test_many_channels(subject: Subject, name: str, c: int, filters: int, dtype: torch.dtype) -> None:
    """They are taken in chunks, and filters in tiles."""
    differential(subject, PASSES[name], Case(c=c, filters=filters, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("h", "w", "kernel", "rate"),
    [
        (29, 31, (1, 1), (1, 1)),
        (29, 31, (3, 3), (9, 4)),  # what a block reads is copied
        (29, 31, (9, 9), (3, 3)),  # it is too much for that
        (100, 1, (11, 1), (20, 1)),  # it is not, but in more rows than are noted
    ],
)
def test_many_channels_and_positions(
    subject: Subject,
    h: int,
    w: int,
    kernel: tuple[int, int],
    rate: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    case = Case(n=1, c=384, filters=9, h=h, w=w, kernel=kernel, rate=rate, dtype=dtype, threads=2)
    differential(subject, PASSES["evaluate"], case)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PASSES)
def test_many_positions(subject: Subject, name: str, dtype: torch.dtype, threads: int) -> None:
    """Several blocks a thread, of which the last is not full."""
    differential(subject, PASSES[name], Case(n=1, c=20, filters=35, h=29, w=31, dtype=dtype, threads=threads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PASSES)
def test_what_is_deferred_runs_at_the_flush(subject: Subject, name: str, dtype: torch.dtype) -> None:
    case = Case(dtype=dtype, two=True, affine=True)
    gc.freeze()  # what was made before is not looked at: it takes seconds
    expected = PASSES[name](subject.primitives, case.draws(), subject.cast)
    deferred = subject.primitives.deferred()
    found = PASSES[name](deferred, case.draws(), subject.cast)
    gc.collect()  # what is noted keeps all that it needs
    deferred.flush()
    for one, other in zip(flattened(found), flattened(expected), strict=True):
        assert torch.equal(one, other)
    for tensor in flattened(found):
        tensor.zero_()
    deferred.flush()  # of nothing
    assert not any(tensor.any() for tensor in flattened(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["evaluate", "pointwise", "pointwise_backward"])
def test_many_filters(subject: Subject, name: str, dtype: torch.dtype) -> None:
    """A block on a GPU has 256 of them where there are enough positions."""
    case = Case(n=1, c=40, filters=264, h=21, w=20, dtype=dtype, affine=False, add=False, sliced=False)
    differential(subject, PASSES[name], case)
    differential(subject, PASSES[name], replace(case, c=41, filters=301, affine=True, add=True, sliced=True))


@pytest.mark.parametrize("name", ["evaluate", "pointwise_backward"])
def test_rows_that_would_be_pages(subject: Subject, name: str) -> None:
    differential(subject, PASSES[name], Case(n=1, c=40, filters=1024, h=3, w=3))


@pytest.mark.parametrize("taps", [Taps((), ()), Taps((30,), (0,)), kernel_taps((2, 2), (40, 40))])
def test_taps_that_are_never_inside(subject: Subject, taps: Taps) -> None:
    for name in ("evaluate", "depthwise", "depthwise_backward"):
        differential(subject, PASSES[name], Case(others=taps))


def test_moments_are_of_what_was_stored(subject: Subject) -> None:
    """1 + 1/512 is 1 in bf16."""
    x = subject.cast(torch.ones(1, 2, 5, 7, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last))
    out = torch.empty_like(x)
    found = [
        subject.primitives.pointwise(x, None, subject.cast(torch.tensor([[1, 1 / 512], [2, 1 / 256]])), out, True),
        subject.primitives.depthwise(x, subject.cast(torch.full((1, 2), 1 + 1 / 512)), Taps((0,), (0,)), out, True),
    ]
    for moments, expected in zip(found, ([1.0, 2.0], [1.0, 1.0]), strict=True):
        assert moments is not None
        assert moments.mean.tolist() == expected
        assert moments.variance.tolist() == [0, 0]


# NaN and infinity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in PASSES if name != "resizes"])
@pytest.mark.parametrize("affine", [False, True])
def test_nan_and_infinity_go_where_torch_lets_them(
    subject: Subject, name: str, affine: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Draws.map

    def unusual(draws: Draws, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        view = usual(draws, channels, dtype)
        view[0, channels // 3, 1, 2] = float("nan")
        view[0, channels // 2, 3, 1] = float("inf")
        view[0, channels - 1, 4, 4] = -float("inf")
        return view

    monkeypatch.setattr(Draws, "map", unusual)
    case = Case(c=19, filters=35, dtype=dtype, affine=affine)
    expected, expected_outs = PASSES[name](ATEN, case.draws(), exact)
    found, outs = PASSES[name](subject.primitives, case.draws(), subject.cast)
    assert_close(outs, expected_outs, dtype)
    if isinstance(found, Moments):  # how a mean of infinity deviates depends on how it is computed
        assert torch.equal(found.variance.cpu().isfinite(), expected.variance.isfinite())
    else:
        for one, other in zip(flattened(found), flattened(expected), strict=True):
            assert torch.equal(one.cpu().isfinite(), other.isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PASSES)
def test_what_an_earlier_pass_left_is_not_read(
    subject: Subject, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels keep their memory, and what is multiplied by a padding of zeros must not be NaN."""
    usual = Draws.map
    case = Case(c=37, filters=37, dtype=dtype)
    monkeypatch.setattr(Draws, "map", lambda *arguments: usual(*arguments).fill_(float("nan")))
    for poison in (evaluate, pointwise, pointwise_backward, depthwise_backward):
        poison(subject.primitives, replace(case, c=96, filters=96).draws(), subject.cast)
    monkeypatch.undo()
    differential(subject, PASSES[name], case)


def test_no_gradient_at_zero(subject: Subject) -> None:
    for primitives, cast in ((subject.primitives, subject.cast), (ATEN, lambda value: value)):
        x = cast(torch.tensor([0.0, -1.0, 1.0]).reshape(1, 1, 1, 3))
        one, zero = cast((torch.ones(1), torch.zeros(1)))
        affine = Affine(one, zero, True)
        plain, _ = primitives.gradient_sums((torch.ones_like(x),), x, affine, zero, one)
        assert plain.item() == 1
        dx = torch.empty_like(x)
        norm = NormGradient(affine._replace(relu=False), one, zero, zero, zero)
        primitives.pointwise_backward((torch.ones_like(x),), x, norm, x, affine, one[None], dx, False, None)
        assert dx.flatten().tolist() == [0, 0, 1]


# Strides


def spread(tensor: Tensor, how: str) -> Tensor:
    """The same numbers, differently strided."""
    n, c, h, w = tensor.shape
    if how == "nchw":
        return tensor.contiguous()
    if how == "cropped":
        large = torch.full((n, c, h + 2, w + 3), MARGIN, dtype=tensor.dtype).contiguous(
            memory_format=torch.channels_last
        )
        large[:, :, 1:-1, 1:-2] = tensor
        return large[:, :, 1:-1, 1:-2]
    if how == "transposed":
        return tensor.permute(3, 1, 0, 2).contiguous(memory_format=torch.channels_last).permute(2, 1, 3, 0)
    return tensor[:1, :, :1, :1].expand(tensor.shape)


@pytest.mark.parametrize("how", ["nchw", "cropped", "transposed", "expanded"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_any_strides(
    subject: Subject, how: str, size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass only reads may lie anyhow; the first maps that a pass draws here are read only."""
    reading = {"evaluate": 1, "depthwise": 1, "pointwise": 1, "affine": 1, "gradient_sums": 3}
    reading |= {"pointwise_backward": 4, "depthwise_backward": 2, "pools": 1}
    usual = Draws.map
    case = Case(n=2, c=5, filters=34, h=size[0], w=size[1], dtype=dtype, sliced=False, rate=(2, 2))
    for name, count in reading.items():
        drawn = 0

        def strided(draws: Draws, channels: int, dtype: torch.dtype | None = None, most: int = count) -> Tensor:
            nonlocal drawn
            drawn += 1
            view = usual(draws, channels, dtype)
            return spread(view, how) if drawn <= most else view

        monkeypatch.setattr(Draws, "map", strided)
        expected = PASSES[name](ATEN, case.draws(), exact)
        drawn = 0
        assert_close(PASSES[name](subject.primitives, case.draws(), subject.cast), expected, dtype)


@pytest.mark.parametrize("name", ["evaluate", "depthwise_backward", "pools", "resizes"])
def test_windows_of_maps(subject: Subject, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs and outputs whose rows have gaps between them."""
    usual = Draws.map
    monkeypatch.setattr(Draws, "map", lambda *arguments: spread(usual(*arguments), "cropped"))
    case = Case(sliced=False)
    _, outs = found = PASSES[name](subject.primitives, case.draws(), subject.cast)
    assert_close(found, PASSES[name](ATEN, case.draws(), exact), case.dtype)
    for out in outs:
        assert out._base is not None
        assert (out._base[:, :, (0, -1)] == MARGIN).all()
        assert (out._base[..., (0, -2, -1)] == MARGIN).all()


def test_affine_in_place(subject: Subject) -> None:
    for primitives, cast in ((subject.primitives, subject.cast), (ATEN, lambda value: value)):
        draws = Case(sliced=False).draws()
        x, affine = cast(draws.map(33)), cast(draws.affine(33))
        expected = (x * affine.scale[:, None, None] + affine.shift[:, None, None]).relu()
        primitives.affine(x, affine, x)
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["nchw", "cropped", "transposed", "channels_last"])
def test_copy(subject: Subject, how: str, dtype: torch.dtype) -> None:
    for shape in ((2, 70, 9, 8), (1, 1, 1, 1), (3, 64, 1, 5), (0, 3, 2, 2), (2, 3, 13, 11)):
        numbers = torch.randn(shape).to(dtype)
        for source in (spread(numbers, "cropped"), numbers, numbers.contiguous(memory_format=torch.channels_last)):
            out = torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            out = out if how == "channels_last" else spread(out, how)
            for primitives, cast in ((subject.primitives, subject.cast), (ATEN, lambda value: value)):
                target = cast(out).zero_()
                primitives.copy(cast(source), target)
                assert torch.equal(target.cpu(), numbers)


# The projection


@dataclass(frozen=True)
class Split:
    """A projection over calls; the branches of a call read one map."""

    case: Case
    calls: tuple[int, ...]  # how many branches each has
    projection: int
    grids: tuple[tuple[int, int], ...]  # of every call
    nchw: bool
    align_corners: bool

    def run(self, primitives: Primitives, cast: Callable[[Any], Any]) -> tuple[Tensor, ...]:
        draws, case = self.case.draws(), self.case
        bias, shape = cast(draws.numbers(self.projection)), (case.n, self.projection, case.h, case.w)
        out = cast(draws.map(self.projection))
        out = out.contiguous() if self.nchw else out
        total = cast(torch.full(shape, float("nan")).contiguous(memory_format=torch.channels_last))
        outs = []
        for number, count in enumerate(self.calls):
            x, branches = cast(draws.map(case.c)), []
            grids = tuple(
                cast(draws.numbers(case.n, self.projection, *grid).contiguous(memory_format=torch.channels_last))
                for grid in self.grids
            )
            for b in range(count):
                prepared = primitives.prepare(cast(draws.weight(case.filters, case.c)), x.dtype)
                part = primitives.prepare(cast(draws.weight(self.projection, case.filters)), x.dtype)
                shift, kept = cast(draws.numbers(case.filters)), cast(draws.map(case.filters))
                weight = cast(draws.numbers(len(case.taps.dy), case.c) / 4)
                # The second of a call writes nothing, the third is not projected.
                branches.append(
                    Branch(
                        (case.taps, weight, None, case.relu) if b == 0 else None,
                        *(prepared, case.filters, shift, True, None if b == 1 else kept, None if b == 2 else part),
                    )
                )
                outs += [] if b == 1 else [kept]
            first, last = number == 0, number == len(self.calls) - 1
            primitives.evaluate(
                x,
                branches,
                Projection(
                    *(self.projection, bias, case.relu, first, last, None if first and last else total, out),
                    *(grids, self.align_corners),
                ),
            )
        return (out, *outs)


def assert_split(subject: Subject, split: Split) -> None:
    expected = split.run(ATEN, exact)
    with threads(split.case.threads):
        found = split.run(subject.primitives, subject.cast)
    assert_close(found, expected, split.case.dtype)
    assert_margins(split.case, *found[split.nchw :])


def test_projection(subject: Subject) -> None:
    grids = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=2)

    @settings(max_examples=subject.examples)
    @given(
        case=cases(subject.dtypes),
        calls=st.lists(st.integers(0, 3), min_size=1, max_size=3),
        projection=st.sampled_from([1, 7, 16, 33, 64]),
        grids=grids,
        nchw=st.booleans(),
        align_corners=st.booleans(),
    )
    def check(
        case: Case,
        calls: list[int],
        projection: int,
        grids: list[tuple[int, int]],
        nchw: bool,
        align_corners: bool,
    ) -> None:
        case = replace(case, w=min(case.w, 12))
        assert_split(subject, Split(case, tuple(calls), projection, tuple(grids), nchw, align_corners))

    check()


@pytest.mark.parametrize("calls", [(9,), (10, 2), (0, 17)])
def test_more_branches_and_grids_than_one_launch_takes(subject: Subject, calls: tuple[int, ...]) -> None:
    grids = tuple((rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3))
    for filters in (17, 64):  # and where a part's depth is whole chunks
        assert_split(subject, Split(Case(c=9, n=1, filters=filters), calls, 20, grids, False, True))


def test_evaluation_is_the_same_in_any_number_of_threads(subject: Subject) -> None:
    split = Split(Case(h=30, w=31), (2, 1), 40, ((2, 3),), True, False)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(split.run(subject.primitives, subject.cast))
    assert all(torch.equal(one, other) for result in results for one, other in zip(result, results[0], strict=True))


# The native passes' own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_weights_can_be_traced(kernels: NativePrimitives, dtype: torch.dtype) -> None:
    traced = make_fx(lambda weight: kernels.prepare(weight, dtype))(torch.randn(5, 3))
    weight = torch.randn(5, 3)
    assert torch.equal(traced(weight), kernels.prepare(weight, dtype))


def test_weights_that_are_not_fp32(kernels: NativePrimitives) -> None:
    """A module in bf16 has its weights in bf16, too, and they may be views."""
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 6, dtype=torch.bfloat16).t()
    x, out = x.contiguous(memory_format=torch.channels_last), torch.empty(1, 6, 3, 3, memory_format=torch.channels_last)
    kernels.pointwise(x, None, weight, out, False)
    torch.testing.assert_close(out, F.conv2d(x, weight.float()[:, :, None, None]))
    dx, ones, zeros = torch.empty_like(x), torch.ones(6), torch.zeros(6)
    norm = NormGradient(Affine(ones, zeros, False), ones, zeros, zeros, zeros)
    kernels.pointwise_backward((out,), out, norm, x, None, weight, dx, False, None)
    torch.testing.assert_close(dx, F.conv2d(out, weight.float().t()[:, :, None, None]))


def test_no_kernels_no_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: build.Absent("a reason", "a remedy"))
    monkeypatch.setattr(native._Loaded, "looked", False)
    monkeypatch.setattr(native._Loaded, "found", None)
    assert native.primitives() is None


def test_no_memory_is_told() -> None:
    class Broken:
        __name__ = "dpc_broken"

    with pytest.raises(MemoryError, match="dpc_broken"):
        native._checked(1, Broken(), ())


# ATen in every type, and against autograd


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [Case(), Case(kernel=(2, 2), sliced=False, add=False, two=False), Case(n=0)])
@pytest.mark.parametrize("name", PASSES)
def test_aten_is_itself_in_double_precision(name: str, case: Case, dtype: torch.dtype) -> None:
    case = replace(case, dtype=dtype)
    expected = PASSES[name](ATEN, case.draws(), exact)
    assert_close(PASSES[name](ATEN, case.draws(), lambda value: value), expected, dtype)


def padded_convolution(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """A depthwise convolution with SAME padding, weight [taps, C], by explicit padding."""
    reach = [(size - 1) * rate for size, rate in zip(case.kernel, case.rate, strict=True)]
    top, left = (total // 2 for total in reach)
    padded = F.pad(x, (left, reach[1] - left, top, reach[0] - top))
    return F.conv2d(padded, weight.t().reshape(-1, 1, *case.kernel), dilation=case.rate, groups=x.shape[1])


def separable(
    primitives: Primitives, case: Case, leaves: dict[str, Tensor], gradients: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """A separable convolution in training by the passes: its result, and the gradient of every leaf."""
    x, count = leaves["x"], case.n * case.h * case.w
    d, p = torch.empty_like(x), torch.empty_like(gradients[0], memory_format=torch.channels_last)

    def normalised(moments: Moments | None, suffix: str) -> tuple[Affine, tuple[Tensor, Tensor]]:
        assert moments is not None
        gamma, beta = leaves["gamma" + suffix], leaves["beta" + suffix]
        inverse, scale, shift = primitives.normalisation(moments, gamma, beta, 1e-3, single=False)
        return Affine(scale, shift, case.relu), (moments.mean, inverse)

    def factors(affine: Affine, of: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        b, c = primitives.normalisation_gradient(affine.scale, of[1], sums, count)
        return affine.scale, b, of[0], c

    before, of_d = normalised(primitives.depthwise(x, leaves["taps"], case.taps, d, True), "")
    affine, of_p = normalised(primitives.pointwise(d, before, leaves["weight"], p, True), "2")
    y = torch.empty_like(p)
    primitives.affine(p, affine, y)
    sums = primitives.gradient_sums(gradients, p, affine, *of_p)
    g, dx = torch.empty_like(d), torch.full_like(x, 2.0)
    norm = NormGradient(affine, *factors(affine, of_p, sums))
    dw, sums_d = primitives.pointwise_backward(gradients, p, norm, d, before, leaves["weight"], g, False, of_d)
    assert sums_d is not None
    primitives.affine_backward(g, d, *factors(before, of_d, sums_d))
    dtaps = primitives.depthwise_backward(g, x, leaves["taps"], case.taps, dx, True)
    assert dtaps is not None
    return {
        **{"y": y, "x": dx - 2, "weight": dw, "taps": dtaps},
        **{"beta": sums_d[0], "gamma": sums_d[1], "beta2": sums[0], "gamma2": sums[1]},
    }


def separable_by_autograd(case: Case, leaves: dict[str, Tensor], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    leaves = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    value = padded_convolution(leaves["x"], leaves["taps"], case)
    value = F.batch_norm(value, None, None, leaves["gamma"], leaves["beta"], training=True, eps=1e-3)
    value = F.conv2d(F.relu(value) if case.relu else value, leaves["weight"][:, :, None, None])
    value = F.batch_norm(value, None, None, leaves["gamma2"], leaves["beta2"], training=True, eps=1e-3)
    y = F.relu(value) if case.relu else value
    found = torch.autograd.grad(y, list(leaves.values()), torch.stack(gradients).double().sum(0))
    return {"y": y.detach(), **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("kernel", "rate"), [((3, 3), (2, 1)), ((5, 5), (1, 3)), ((2, 2), (3, 1)), ((1, 3), (1, 7)), ((3, 3), (21, 21))]
)
def test_training_is_autograd(
    kernel: tuple[int, int], rate: tuple[int, int], relu: bool, two: bool, dtype: torch.dtype
) -> None:
    """ATen's passes in double precision, the native ones in fp32."""
    primitives = ATEN if dtype is torch.float64 else native.primitives()
    if primitives is None:
        pytest.skip(str(build.load()))
    case = Case(n=2, c=18, filters=37, kernel=kernel, rate=rate, relu=relu, two=two, dtype=dtype, sliced=False)
    draws = case.draws()
    leaves = {
        "x": draws.map(case.c),
        "taps": draws.numbers(len(case.taps.dy), case.c).to(dtype),
        "weight": draws.weight(case.filters, case.c).to(dtype),
        **{name: draws.numbers(case.c).to(dtype) + 0.01 for name in ("gamma", "beta")},
        **{name: draws.numbers(case.filters).to(dtype) + 0.01 for name in ("gamma2", "beta2")},
    }
    gradients = draws.gradients(case.filters)
    found, expected = (
        separable(primitives, case, leaves, gradients),
        separable_by_autograd(case, leaves, gradients),
    )
    for name, value in expected.items():
        # Without a ReLU the second normalisation takes back what the first one's shift does: a gradient of 0.
        error = (found[name].double() - value).abs().max() / value.abs().max().clamp(min=1)
        assert error < (1e-10 if dtype is torch.float64 else 2e-4), name


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2), (1, 3)])
def test_evaluation_is_what_torch_computes(kernel: tuple[int, int], relu: bool) -> None:
    case = Case(n=2, c=6, filters=5, kernel=kernel, relu=relu, dtype=torch.float64)
    draws = case.draws()
    x, out, total = draws.map(case.c), draws.map(case.filters), draws.map(4)
    taps, shift, bias, outer = (
        draws.numbers(*shape).double() for shape in ((len(case.taps.dy), case.c), (case.c,), (case.filters,), (4,))
    )
    weight, part = draws.weight(case.filters, case.c).double(), draws.weight(4, case.filters).double()
    grid = draws.numbers(case.n, 4, 2, 3).double()
    projection = Projection(4, outer, relu, True, True, None, total, (grid,), True)
    ATEN.evaluate(x, [Branch((case.taps, taps, shift, relu), weight, case.filters, bias, relu, out, part)], projection)
    middle = padded_convolution(x, taps, case) + shift[:, None, None]
    expected = F.conv2d(middle.relu() if relu else middle, weight[:, :, None, None], bias)
    expected = expected.relu() if relu else expected
    assert_close(out, expected, torch.float64)
    last = F.conv2d(expected, part[:, :, None, None], outer)
    last += F.interpolate(grid, (case.h, case.w), mode="bilinear", align_corners=True)
    assert_close(total, last.relu() if relu else last, torch.float64)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (9, 7), (12, 5)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_pool_and_resize_are_what_torch_computes(grid: tuple[int, int], align_corners: bool) -> None:
    case = Case(dtype=torch.float64, c=6)
    draws = case.draws()
    x, g, dx, out = (draws.map(case.c) for _ in range(4))
    leaf = x.clone().requires_grad_()
    means = F.adaptive_avg_pool2d(leaf, grid)
    assert_close(ATEN.pool(x, grid), means.detach(), torch.float64)
    small = draws.numbers(case.n, case.c, *grid).double()
    expected = dx + torch.autograd.grad(means, leaf, small)[0]
    ATEN.pool_backward(small, dx, True)
    assert_close(dx, expected, torch.float64)
    small.requires_grad_()
    large = F.interpolate(small, (case.h, case.w), mode="bilinear", align_corners=align_corners)
    ATEN.resize(small.detach(), out, align_corners)
    assert_close(out, large.detach(), torch.float64)
    found = ATEN.resize_backward((g, g), grid, align_corners)
    assert_close(found, torch.autograd.grad(large, small, 2 * g)[0], torch.float64)
