"""The fused module computes what the eager one does: results, gradients, statistics; any cell, any map, any backend.

The judge is the eager module in double precision, with the same weights. A result may be as far from it as the
tolerance says, or ten times (gradients: thirty times) as far as the eager module in the same precision is: where a
batch normalisation divides by the spread of two nearly equal values, both lose digits. Where nothing does, the eager
module is 1e-7 to 5e-7 away, and the tolerance decides.

A value before a ReLU that is 0 but for rounding passes its gradient on in one precision and not in the other. So
weights and maps of a comparison of gradients are drawn again until no such value is near 0 (:class:`Kinks`); for large
maps and for half precision, normalisations move each channel to one side of 0 (``Case.clear``).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import enliven
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_subjects import DEVICES, fp32_multiplied, moved

from dpcdsl import enumerator, operators, read_cell, read_space
from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Layer, Resize
from dpcdsl.operators import Operator, OperatorKind
from dpcdsl_torch import EagerCell, build, compile_cell, lowering, memory
from dpcdsl_torch.task import FUSIONS

if TYPE_CHECKING:
    from .conftest import Golden

NAMES = sorted(path.stem for path in (Path(__file__).parent / "golden").glob("*.npz"))
ZOO = ("top1", "aspp", "pspnet", "denseaspp")

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
TOLERANCE = {F64: 1e-10, F32: 1e-5, F16: 5e-3, BF16: 2e-2}
GRADIENT = {F64: 1e-8, F32: 1e-4, F16: 0.1, BF16: 0.2}  # half: running statistics let some ReLUs flip
#: A result, and a gradient, may be as many times as far from the truth as the eager module's.
TIMES, GRADIENT_TIMES = {F64: 10, F32: 10, F16: 2, BF16: 2}, {F64: 30, F32: 30, F16: 4, BF16: 4}
#: Values before a ReLU are at least as far from 0, relative to their map's size.
MARGIN = 2e-5


class Kinks(TorchFunctionMode):
    """Watches ReLUs: ``margin`` is the smallest value before one that is not exactly 0, relative to its map."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = float("inf")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu and args[0].numel():
            size = args[0].detach().abs()
            if size.any():
                self.margin = min(self.margin, float(size[size > 0].min() / size.square().mean().sqrt()))
        return func(*args, **(kwargs or {}))


class Here:
    """Where the tests run now."""

    device = "cpu"


@pytest.fixture(autouse=True, params=DEVICES)
def _on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test of this module is run on each device, with fp32 in full."""
    monkeypatch.setattr(Here, "device", request.param)
    with fp32_multiplied("ieee"):
        yield


@dataclass(frozen=True)
class Case:
    """A cell, and how it is run.

    mode: ``eval`` (no gradients), ``tuned`` (evaluation mode with gradients), ``train``, ``frozen`` (training with
    running statistics), ``partly`` (training, every second normalisation in evaluation mode).
    """

    cell: Cell
    in_channels: int = 6
    shape: tuple[int, int, int] = (2, 9, 7)
    mode: str = "train"
    dtype: torch.dtype = F32
    backend: str = "auto"
    without: frozenset[str] = frozenset()
    layout: str = "contiguous"
    gradient: str = "contiguous"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    clear: bool = False  # normalised values are far above 0 or far below it, channel by channel: for large maps
    device: str = field(default_factory=lambda: Here.device)

    def modules(self) -> tuple[Any, Any]:
        options: dict[str, Any] = {"dropout": 0.0, "batch_norm_momentum": 0.3} | self.options
        if self.mode == "frozen":
            options["fine_tune_batch_norm"] = False
        eager = EagerCell(self.cell, self.in_channels, **options)
        enliven_and_turn(eager)
        if self.clear or (self.dtype in (F16, BF16) and self.mode != "eval"):
            for norm in (part for part in eager.modules() if isinstance(part, nn.BatchNorm2d)):
                nn.init.constant_(norm.weight, 0.7)
                norm.bias.data.copy_(torch.where(norm.bias > -0.5, 4.0, -4.0))
        compiled = compile_cell(self.cell, self.in_channels, backend=self.backend, without=self.without, **options).to(
            self.dtype
        )
        compiled.to(self.device)
        eager.to(self.device, self.dtype)
        compiled.load_state_dict(eager.state_dict(), strict=True)
        return self.set_mode(eager), self.set_mode(compiled)

    def set_mode(self, module: Any) -> Any:
        module.train(self.mode not in ("eval", "tuned"))
        if self.mode == "partly":
            for norm in [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][::2]:
                norm.eval()
        return module


def enliven_and_turn(module: nn.Module) -> None:
    """With scales of either sign."""
    enliven(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.mul_(torch.randint(0, 2, part.weight.shape) * 2 - 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: F.pad(x, (1, 2, 0, 1, 3, 2))[:, 3:-2, :-1, 1:-2],
    "sliced_channels": lambda x: F.pad(x, (0, 0, 0, 0, 5, 3)).contiguous(memory_format=torch.channels_last)[:, 5:-3],
    "every_second": lambda x: x.repeat_interleave(2, dim=3).contiguous(memory_format=torch.channels_last)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "turned": lambda x: x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1),
}
EXPANDED: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_rows": lambda x: x[:, :, :1].expand_as(x),
    "expanded_all": lambda x: x[:1, :1, :1, :1].expand_as(x),
}


def laid_out(x: Tensor, layout: str) -> Tensor:
    return (LAYOUTS | EXPANDED)[layout](x)


@dataclass(frozen=True)
class Results:
    output: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def results(module: nn.Module, x: Tensor, gradient: Tensor | None) -> Results:
    """Of one call; ``gradient`` is the result's, None for a call without gradients."""
    found: dict[str, Tensor] = {}
    if gradient is None:
        with torch.no_grad():
            output = module(x)
    else:
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        parameters = dict(module.named_parameters())
        # Strides of its own, so not by backward(): a branch that nothing reads has gradients all the same.
        all_found = torch.autograd.grad(output, [leaf, *parameters.values()], gradient)
        found = dict(zip(("F", *parameters), all_found, strict=True))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    on_cpu = ({name: tensor.cpu() for name, tensor in named.items()} for named in (found, buffers))
    return Results(output.detach().cpu(), *on_cpu)


def size(x: Tensor) -> float:
    return float(x.double().norm())


def deviation(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return size(ours.double() - theirs.double()) / max(size(theirs), 1e-30)


def beside(eager: nn.Module, x: Tensor, g: Tensor, name: str) -> float:
    """How far the eager module's gradient is from the truth at inputs beside ``x``, at most. At ``x`` itself it may be
    exact by luck: two values that are normalised have gradients that all but cancel, and what is left is rounding.
    """
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        near = x * (1 + 1e-6 * torch.randn_like(x))
        exact = results(copy.deepcopy(eager).cpu().double(), near.cpu().double(), g.cpu().double())
        plain = results(copy.deepcopy(eager), near, g)
        found.append(size(plain.gradients[name] - exact.gradients[name]))
    return max(found)


def check(case: Case) -> None:
    """One call of both modules, and everything that it leaves behind."""
    n, h, w = case.shape
    gradients = case.mode != "eval"
    for attempt in range(20):
        case = case if attempt < 10 else replace(case, clear=True)
        torch.manual_seed(1000 * case.seed + attempt)
        eager, compiled = case.modules()
        x = laid_out(torch.randn(n, case.in_channels, h, w, dtype=F64).to(case.dtype), case.layout)
        g = laid_out(torch.randn(n, eager.out_channels, h, w, dtype=F64).to(case.dtype), case.gradient)
        with Kinks() as kinks:
            exact = results(copy.deepcopy(eager).cpu().double(), x.double(), g.double() if gradients else None)
        if not gradients or case.dtype not in (F32, F64) or kinks.margin > MARGIN:
            break
    else:
        raise AssertionError(f"always a value near 0 before a ReLU: {case}")
    x, g = moved(x, case.device), moved(g, case.device)
    plain = results(eager, x, g if gradients else None)
    ours = results(compiled, x, g if gradients else None)

    assert ours.output.dtype == x.dtype
    error = deviation(ours.output, exact.output)
    assert error <= max(TOLERANCE[case.dtype], TIMES[case.dtype] * deviation(plain.output, exact.output)), case
    largest = max(map(size, exact.gradients.values()), default=0.0)
    assert ours.gradients.keys() == exact.gradients.keys()
    for name, wanted in exact.gradients.items():
        assert ours.gradients[name].dtype == plain.gradients[name].dtype
        distance, yardstick = size(ours.gradients[name] - wanted), size(plain.gradients[name] - wanted)
        slack = GRADIENT[case.dtype] * (size(wanted) + 0.1 * largest)
        if distance > slack + GRADIENT_TIMES[case.dtype] * yardstick:
            yardstick = max(yardstick, beside(eager, x, g, name))
        allowed = slack + GRADIENT_TIMES[case.dtype] * yardstick
        assert distance <= allowed, (name, distance, size(wanted), yardstick, case)
    for name, wanted in exact.buffers.items():
        error, yardstick = deviation(ours.buffers[name], wanted), deviation(plain.buffers[name], wanted)
        assert error <= max(TOLERANCE[case.dtype], TIMES[case.dtype] * yardstick), (name, case)


def small(name: str, filters: int = 24) -> Cell:
    return Cell(branches=read_cell(name).branches, filters=filters)


MODES = ("eval", "tuned", "train", "frozen", "partly")
every_mode = pytest.mark.parametrize("mode", MODES)


# Published cells, and the paper's space


@every_mode
@pytest.mark.parametrize("name", ZOO)
def test_zoo_cells(name: str, mode: str) -> None:
    for shape, options in (((2, 13, 11), {}), ((1, 6, 14), {"projection": 20})):
        check(Case(small(name, 16), 20, shape, mode, options=options))
    if mode in ("eval", "train"):
        check(Case(small(name, 40), 33, (2, 33, 33), mode, options={"output_stride": 8}, clear=True))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_zoo_cell_of_full_width(mode: str) -> None:
    # Maps of more than a megabyte, and blocks of rows and columns in every kernel.
    options = {"projection": 256} if mode == "eval" else {}
    check(Case(read_cell("top1"), 128, (1, 33, 33), mode, options=options, clear=True))


def random_case(number: int, cell: Cell) -> Case:
    r = random.Random(number)
    sliding = r.random() < 0.3
    options: dict[str, Any] = {
        "projection": r.choice([None, r.randint(1, 40)]),
        "dropout_place": r.choice(["before_projection", "after_projection"]),
        "output_stride": r.choice([16, 16, 8]),
        "align_corners": r.random() < 0.7,
        "pooling": "sliding" if sliding else "paper",
    }
    return Case(
        cell=Cell(branches=cell.branches, filters=r.randint(8, 40)),
        in_channels=r.randint(1, 48),
        shape=(r.randint(1, 3), r.randint(1, 20), r.randint(1, 20)),
        mode=r.choice(MODES),
        backend=r.choice(["auto", "auto", "aten"]),
        layout=r.choice(list(LAYOUTS)),
        gradient=r.choice(list(LAYOUTS)),
        options=options,
        seed=number,
    )


def paper_cells(count: int, seed: int) -> list[Cell]:
    return [cell for b in range(1, 6) for cell in enumerator(read_space(f"dpc(B={b})")).sample(count // 5, seed)]


@pytest.mark.parametrize("block", range(10))
def test_200_cells_of_the_papers_space(block: int) -> None:
    for number, cell in enumerate(paper_cells(200, 1)[block::10]):
        check(random_case(100 * block + number, cell))


@pytest.mark.soak
@pytest.mark.parametrize("block", range(20))
def test_many_cells_of_the_papers_space(block: int) -> None:
    for number, cell in enumerate(paper_cells(2000, 2)[block::20]):
        check(random_case(10_000 + 1000 * block + number, cell))


# The CUDA kernels, run by the CPU


@pytest.mark.usefixtures("cuda_on_the_cpu")
@every_mode
@pytest.mark.parametrize("name", ZOO)
def test_zoo_cells_by_the_cuda_kernels(name: str, mode: str) -> None:
    for dtype, options in ((F32, {}), (BF16, {"projection": 20}), (F32, {"projection": 9, "align_corners": False})):
        check(Case(small(name, 12), 20, (2, 7, 11), mode, dtype, options=options))


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize("block", range(4))
def test_cells_of_the_papers_space_by_the_cuda_kernels(block: int) -> None:
    for number, cell in enumerate(paper_cells(60, 3)[block::4]):
        check(replace(random_case(1000 + 100 * block + number, cell), backend="auto"))


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize("without", FUSIONS)
def test_each_fusion_left_out_by_the_cuda_kernels(mixed: Cell, without: str) -> None:
    for mode in ("eval", "train"):
        check(Case(mixed, 20, (2, 7, 11), mode, without=frozenset({without}), options={"projection": 20}))


# Operators of a user's own


@dataclass(frozen=True)
class Largest(Layer):
    """A layer that no plan knows: the larger of two neighbours."""


@dataclass(frozen=True)
class Doubled(Convolution):
    """A layer that looks like one that every plan knows."""


class LargestModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x.roll(1, dims=3))


class DoubledModule(nn.Module):
    def __init__(self, layer: Doubled, context: lowering.Context) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layer.filters, context.in_channels, 1, 1))
        self.bn = context.batch_norm(layer.filters)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.tanh(self.bn(F.conv2d(x, self.weight)))


def _kinds() -> Iterator[OperatorKind]:
    def kind(name: str, *layers: Callable[[int], Layer]) -> OperatorKind:
        return OperatorKind(name, lambda filters: [layer(filters) for layer in layers])

    def conv(**rest: Any) -> Callable[[int], Layer]:
        return lambda filters: Convolution("conv", filters, **rest)

    def fixed(layer: Layer) -> Callable[[int], Layer]:
        return lambda _: layer

    def depthwise(kernel: tuple[int, int], rate: tuple[int, int] = (1, 1), norm: bool = True, relu: bool = True) -> Any:
        return fixed(DepthwiseConvolution("depthwise", kernel, rate, norm, relu))

    yield kind("linear", conv(batch_norm=False, relu=False))
    yield kind("normed", conv(relu=False))
    yield kind("rectified", conv(batch_norm=False))
    yield kind("wider", lambda filters: Convolution("conv", 2 * filters + 3))
    yield kind("even", depthwise((2, 4), (3, 1)), conv())
    yield kind("even_linear", depthwise((4, 1), (2, 5), False, False), conv(batch_norm=False, relu=False))
    yield kind("five", depthwise((5, 5), (2, 1), True, False), conv(relu=False))
    yield kind("long", depthwise((1, 9), (1, 2), False, True), conv())
    yield kind("one_tap", depthwise((1, 1)), conv())
    yield kind("pooled_linear", fixed(GridPool((3, 2))), conv(batch_norm=False, relu=False), fixed(Resize()))
    yield kind("pooled_normed", fixed(GridPool((3, 2))), conv(relu=False), fixed(Resize()))
    yield kind("named_resize", lambda filters: Convolution("resize", filters))
    yield kind("named_pool", fixed(DepthwiseConvolution("grid_pool")), conv())
    # Not fused:
    yield kind("dense", conv(kernel=(3, 3), rate=(2, 1)))
    yield kind("two", conv(), conv(relu=False))
    yield kind("channelwise", depthwise((3, 3), (1, 2)))
    yield kind("pooled_twice", fixed(GridPool((3, 3))), fixed(GridPool((2, 2))), conv(), fixed(Resize()))
    yield kind("largest", fixed(Largest()), conv())
    yield kind("doubled", lambda filters: Doubled("conv", filters))


OWN = {kind.name: kind for kind in _kinds()}
FOREIGN = {"dense", "two", "channelwise", "pooled_twice", "largest", "doubled"}


@pytest.fixture(autouse=True, scope="module")
def _own_operators() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_registry", operators._registry | OWN)
        patch.setattr(lowering, "_registry", dict(lowering._registry))
        lowering.register(Largest)(lambda *_: LargestModule())
        lowering.register(Doubled)(DoubledModule)
        operators._layers.cache_clear()
        yield
    operators._layers.cache_clear()


def cell_of(*branches: tuple[int, str], filters: int = 12) -> Cell:
    return Cell.of(*((source, operators_by_name(name)) for source, name in branches), filters=filters)


def operators_by_name(name: str) -> Operator:
    known = {
        "sepconv": Operator.of("sepconv3x3", rate=(2, 3)),
        "pool": Operator.of("avgpool", grid=(2, 2)),
        "mean": Operator.of("avgpool", grid=(1, 1)),
    }
    return known.get(name) or Operator.of(name)


@every_mode
@pytest.mark.parametrize("name", OWN)
def test_an_operator_of_standard_layers(name: str, mode: str) -> None:
    cell = cell_of((0, name), (1, "sepconv"), (1, name), (2, "pool"))
    for seed, options in enumerate(({}, {"projection": 10, "align_corners": False})):
        for backend in ("auto", "aten"):
            check(Case(cell, 9, (2, 7, 8), mode, backend=backend, options=options, seed=seed))


@st.composite
def own_cells(draw: st.DrawFn) -> list[tuple[int, str]]:
    names = st.sampled_from([*OWN, "sepconv", "pool", "mean", "conv1x1"])
    return [(draw(st.integers(0, i)), draw(names)) for i in range(draw(st.integers(1, 5)))]


@settings(max_examples=60)
@given(
    branches=own_cells(),
    filters=st.integers(1, 40),
    in_channels=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 12), st.integers(1, 12)),
    mode=st.sampled_from(MODES),
    backend=st.sampled_from(["auto", "aten"]),
    projection=st.none() | st.integers(1, 33),
    sliding=st.booleans(),
    seed=st.integers(0, 9),
)
def test_cells_of_any_operators(
    branches: list[tuple[int, str]], filters: int, projection: int | None, sliding: bool, **rest: Any
) -> None:
    options = {"projection": projection, "pooling": "sliding" if sliding else "paper"}
    check(Case(cell_of(*branches, filters=filters), options=options, **rest))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_more_taps_than_the_native_kernels_take(dtype: torch.dtype, mode: str) -> None:
    kind = OperatorKind(
        "carpet", lambda filters: [DepthwiseConvolution("depthwise", (33, 33)), Convolution("conv", filters)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(operators._registry, "carpet", kind)
        check(Case(cell_of((0, "carpet"), (1, "conv1x1"), filters=5), 3, (1, 20, 18), mode, dtype))


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_has_a_plan(name: str) -> None:
    module = compile_cell(cell_of((0, "conv1x1"), (1, name)), 4)
    if name not in FOREIGN:
        assert module.plan().task.branches[1].input == 1
        return
    with pytest.raises(DpcError, match="no fused form") as error:
        module.plan()
    assert error.value.codes == ("DPC064",)


@every_mode
def test_a_layer_of_ones_own_among_fused_ones(mode: str) -> None:
    cell = cell_of(
        (0, "sepconv"), (1, "largest"), (0, "mean"), (2, "sepconv"), (3, "dense"), (4, "pool"), (2, "doubled")
    )
    for options in ({}, {"projection": 10}, {"projection": 10, "pooling": "sliding", "output_stride": 8}):
        check(Case(cell, 6, (2, 9, 7), mode, options=options, layout="channels_last"))


def test_a_convolution_whose_lowering_is_another_is_not_fused() -> None:
    class Negated(nn.Module):
        def __init__(self, layer: Convolution, context: lowering.Context) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(layer.filters, context.in_channels, *layer.kernel))

        def forward(self, x: Tensor) -> Tensor:
            return -F.conv2d(x, self.weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "_registry", dict(lowering._registry))
        lowering.register(Convolution, replace=True)(Negated)
        for mode in ("eval", "train"):
            check(Case(cell_of((0, "sepconv"), (1, "conv1x1"), (1, "mean")), mode=mode, options={"projection": 4}))


def test_a_map_that_is_not_what_the_layer_promises() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., ::2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "_registry", dict(lowering._registry))
        lowering.register(Largest, replace=True)(lambda *_: Half())
        module = compile_cell(cell_of((0, "conv1x1"), (1, "largest")), 6)
        with pytest.raises(DpcError, match=r"branch 2 \(largest\) gives a map \[2, 12, 9, 4\]") as error:
            module(torch.randn(2, 6, 9, 7))
    assert error.value.codes == ("DPC064",)


# Options


POOLED = cell_of((0, "mean"), (0, "pool"), (0, "conv1x1"), (0, "pool"), (3, "pool"), (2, "sepconv"), (3, "conv1x1"))


@every_mode
@pytest.mark.parametrize("pooling", ["paper", "sliding"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_pooling(pooling: str, align_corners: bool, mode: str) -> None:
    for extra in ({}, {"projection": 10}, {"image_pooling_crop_size": (65, 81)} if pooling == "sliding" else {}):
        options = {"pooling": pooling, "align_corners": align_corners, **extra}
        for backend in ("auto", "aten"):
            check(Case(POOLED, 6, (2, 9, 7), mode, backend=backend, options=options))


def test_a_window_that_is_larger_than_the_map_is_told() -> None:
    options: dict[str, Any] = {"pooling": "sliding", "image_pooling_crop_size": (129, 129)}
    module = compile_cell(POOLED, 6, **options)
    for training in (True, False):
        with torch.no_grad(), pytest.raises(DpcError, match="does not fit height 2") as error:
            module.train(training)(torch.randn(1, 6, 2, 9))
        assert error.value.codes == ("DPC062",)


@every_mode
@pytest.mark.parametrize("place", ["before_projection", "after_projection"])
def test_dropout_place(mixed: Cell, place: str, mode: str) -> None:
    check(Case(mixed, mode=mode, options={"projection": 5, "dropout_place": place}))


@pytest.mark.parametrize("place", ["before_projection", "after_projection"])
@pytest.mark.parametrize("own", [False, True])
def test_dropout_drops_the_same_values(mixed: Cell, place: str, own: bool) -> None:
    # The same random numbers at the same places; maps are channels_last within, so numbers are drawn for such a map.
    cell = cell_of((0, "sepconv"), (1, "largest")) if own else mixed
    case = Case(cell, options={"projection": 5, "dropout_place": place, "dropout": 0.4})
    eager, compiled = case.modules()
    x = torch.randn(2, 6, 9, 7)
    dropped = []
    for module in (eager, compiled):
        concatenated = module.concatenate(x)
        torch.manual_seed(3)
        state = torch.get_rng_state()
        y = module(x)
        assert not torch.equal(torch.get_rng_state(), state)
        assert concatenated.shape == (2, sum(cell.out_channels(6)), 9, 7)
        dropped.append((y == 0).double().mean())
        assert module.dropout is not None
        for part in (module, module.dropout):  # its own mode decides, not the cell's
            module.eval()
            part.train()
            with torch.no_grad():
                assert not torch.equal(module(x), module(x))
        module.train()
        module.dropout.eval()
        state = torch.get_rng_state()
        module(x)
        assert torch.equal(torch.get_rng_state(), state)
    assert abs(dropped[0] - dropped[1]) < 0.1


def test_dropout_after_the_projection_drops_its_share() -> None:
    case = Case(cell_of((0, "sepconv")), mode="frozen", options={"projection": 8, "dropout": 0.5})
    _, compiled = replace(case, options=case.options | {"dropout_place": "after_projection"}).modules()
    x = torch.randn(2, 6, 19, 17)
    y, whole = compiled(x), compiled.eval()(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], 2 * whole[kept], rtol=1e-4, atol=1e-5)
    assert kept.sum() / (whole != 0).sum() == pytest.approx(0.5, abs=0.05)


# Fusions, types and backends


def arranged() -> Cell:
    branches = [(0, "sepconv"), (1, "mean"), (0, "conv1x1"), (1, "mean"), (3, "sepconv"), (0, "pool"), (5, "linear")]
    return cell_of(*branches, (1, "five"))


KINDS = [("native", F32), ("native", BF16), ("aten", F32), ("aten", BF16), ("aten", F16), ("aten", F64)]


def needs_native(backend: str) -> None:
    if backend == "native" and not isinstance(build.load(), build.Native):
        pytest.skip(str(build.load()))


@pytest.mark.parametrize(("backend", "dtype"), KINDS)
@pytest.mark.parametrize("without", ["", *FUSIONS, "all"])
def test_each_fusion_left_out(without: str, backend: str, dtype: torch.dtype) -> None:
    needs_native(backend)
    names = frozenset(FUSIONS) if without == "all" else frozenset({without} - {""})
    for mode in MODES if dtype is F32 or not without else ("eval", "train"):
        for options in ({}, {"projection": 10}):
            check(Case(arranged(), 7, (3, 6, 5), mode, dtype, backend, names, options=options))


@settings(max_examples=40)
@given(
    branches=own_cells(),
    without=st.frozensets(st.sampled_from(sorted(FUSIONS))),
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(MODES),
    projection=st.none() | st.integers(1, 33),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 8), st.integers(1, 8)),
)
def test_any_fusions_left_out(
    branches: list[tuple[int, str]], kind: tuple[str, torch.dtype], projection: int | None, **rest: Any
) -> None:
    backend = "auto" if kind[0] == "native" else kind[0]
    check(Case(cell_of(*branches), dtype=kind[1], backend=backend, options={"projection": projection}, **rest))


@every_mode
@pytest.mark.parametrize(("backend", "dtype"), KINDS)
def test_nothing_unwritten_is_read(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, mode: str
) -> None:
    needs_native(backend)
    make = memory.empty
    monkeypatch.setattr(memory, "empty", lambda *rest: make(*rest).fill_(float("nan")))
    torch.use_deterministic_algorithms(True)  # torch.empty is full of NaN then
    try:
        for options in ({}, {"projection": 10, "align_corners": False}):
            check(Case(arranged(), 7, (2, 6, 5), mode, dtype, backend, options=options))
            check(Case(POOLED, 7, (2, 3, 4), mode, dtype, backend, options=options))
    finally:
        torch.use_deterministic_algorithms(False)


def test_whole_module_in_bfloat16_is_as_near_as_the_eager_one() -> None:
    for name in ZOO:
        for mode in MODES:
            check(Case(small(name, 32), 32, (2, 11, 13), mode, BF16, options={"projection": 32}))


# Maps


@every_mode
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (1, 1, 13), (3, 13, 1), (1, 2, 2), (1, 31, 1), (5, 3, 2)])
def test_small_maps(shape: tuple[int, int, int], mode: str) -> None:
    # Rates of 18 and 21 reach beyond each of them; a map pooled to 1x1 of a batch of one is a single value.
    for name in ("top1", "aspp", "pspnet"):
        for backend in ("auto", "aten"):
            check(Case(small(name, 9), 5, shape, mode, backend=backend, options={"projection": 4}))


@pytest.mark.parametrize("without", [(), ("taps",), ("training",)])
def test_a_rate_beyond_any_map(without: tuple[str, ...]) -> None:
    operator = Operator.of("sepconv3x3", rate=(1, 2**31 - 1))
    for mode in MODES:
        for backend in ("auto", "aten"):
            case = Case(Cell.of((0, operator), filters=3), mode=mode, backend=backend, without=frozenset(without))
            check(case)


@every_mode
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_no_maps_at_all(mixed: Cell, backend: str, mode: str) -> None:
    for options in ({}, {"projection": 4}, {"pooling": "sliding"}):
        case = Case(mixed, shape=(0, 9, 7), mode=mode, backend=backend, options=options)
        check(case)
        _, compiled = case.modules()
        before = copy.deepcopy(compiled.state_dict())
        x = torch.randn(0, 6, 9, 7, requires_grad=True)
        compiled(x).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())
        assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in compiled.parameters())


def test_one_value_a_channel_in_training() -> None:
    cell = cell_of((0, "mean"), (0, "conv1x1"), filters=8)
    for backend in ("auto", "aten"):
        for without in (frozenset[str](), frozenset({"training"})):
            check(Case(cell, shape=(1, 5, 6), backend=backend, without=without))
            check(Case(cell, shape=(1, 1, 1), backend=backend, without=without))


@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED])
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_memory_layouts(mixed: Cell, layout: str, backend: str) -> None:
    # An expanded map makes some statistics those of equal values: nothing but noise would be compared in training.
    for mode in ("eval", "tuned", "frozen") if layout in EXPANDED else MODES:
        for options in ({}, {"projection": 4}):
            # In `mixed` a branch pools a resized mean: of one map, eight equal values, whose spread is rounding.
            for cell, n in ((POOLED, 1), (mixed, 2)):
                check(Case(cell, 6, (n, 9, 7), mode, backend=backend, layout=layout, options=options))


@pytest.mark.parametrize("gradient", [*LAYOUTS, *EXPANDED])
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_layouts_of_the_results_gradient(mixed: Cell, gradient: str, backend: str) -> None:
    for mode in ("tuned", "train"):
        for options in ({}, {"projection": 4}):
            check(Case(mixed, 6, (2, 9, 7), mode, backend=backend, gradient=gradient, options=options))


@pytest.mark.parametrize("backend", ["auto", "aten"])
@pytest.mark.parametrize("options", [{}, {"projection": 4}])
def test_an_evaluations_result_lies_in_memory_as_the_map_does(mixed: Cell, backend: str, options: Any) -> None:
    module = compile_cell(mixed, 6, backend=backend, **options).eval()
    x = torch.randn(2, 6, 9, 7)
    with torch.no_grad():
        assert module(x).is_contiguous()
        assert module(laid_out(x, "channels_last")).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(module(x), module(laid_out(x, "channels_last")))


# The authors' arrays


def golden_pair(golden: Golden, backend: str) -> tuple[Any, Any]:
    eager = golden.module()
    options: dict[str, Any] = {
        "pooling": "sliding",
        "output_stride": golden.facts["output_stride"],
        "projection": eager.out_channels,
        "dropout": 0.0 if eager.dropout is None else eager.dropout.p,
        "dropout_place": eager.dropout_place,
    }
    compiled = compile_cell(golden.cell, eager.in_channels, backend=backend, **options)
    compiled.load_state_dict(eager.state_dict(), strict=True)
    return eager, compiled.train(eager.training)


@pytest.mark.parametrize("golden", NAMES, indirect=True)
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_the_authors_arrays(golden: Golden, backend: str) -> None:
    eager, compiled = golden_pair(golden, backend)
    x = golden.map("x")
    assert deviation(compiled.concatenate(x).detach(), golden.map("concat")) < 1e-5
    _, compiled = golden_pair(golden, backend)
    x.requires_grad_(eager.training)
    with torch.set_grad_enabled(eager.training):
        output = compiled(x)
    assert deviation(output.detach(), golden.map("output")) < 1e-5
    if not eager.training:
        return
    output.backward(golden.map("grad_out"))
    assert x.grad is not None
    assert deviation(x.grad, golden.map("grad:x")) < 1e-5
    # What test_golden.py finds for the eager module, whose gradients and statistics are in the same places.
    theirs = golden.map("x").requires_grad_()
    eager(theirs).backward(golden.map("grad_out"))
    for name, parameter in eager.named_parameters():
        ours = compiled.get_parameter(name).grad
        assert ours is not None
        assert parameter.grad is not None
        nearly_zero = name == "branches.1.depthwise.weight"
        assert deviation(ours, parameter.grad) < (1e-3 if nearly_zero else 2e-5), name
    for name, buffer in eager.named_buffers():
        assert deviation(compiled.get_buffer(name), buffer) < 1e-5, name


# The module's state


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("projection", [None, 4])
def test_the_state_is_the_eager_cells(mixed: Cell, projection: int | None, own: bool) -> None:
    cell = cell_of((0, "sepconv"), (1, "largest"), (1, "doubled")) if own else mixed
    torch.manual_seed(5)
    eager = EagerCell(cell, 6, projection=projection)
    torch.manual_seed(5)
    compiled = compile_cell(cell, 6, projection=projection)
    ours, theirs = compiled.state_dict(), eager.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in eager.named_parameters()]
    enliven_and_turn(eager)
    compiled.load_state_dict(eager.state_dict(), strict=True)
    enliven_and_turn(compiled)
    eager.load_state_dict(compiled.state_dict(), strict=True)
    with torch.no_grad():
        x = torch.randn(2, 6, 9, 7)
        torch.testing.assert_close(compiled.eval()(x), eager.eval()(x), rtol=1e-4, atol=1e-5)
    assert compiled.out_channels == eager.out_channels
    assert compiled.settings == eager.settings


def test_it_shows_itself(mixed: Cell) -> None:
    text = repr(compile_cell(mixed, 6, projection=4, backend="aten"))
    assert text.startswith("CompiledCell(\n")
    assert "sepconv3x3 rate 1x6" in text
    assert "backend='aten'" in text
    assert "(depthwise): SameConvolution(" in text


@pytest.mark.parametrize("reference", ZOO)
def test_a_cell_by_name(reference: str) -> None:
    assert compile_cell(reference, 3).cell == read_cell(reference)


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_is_text(training: bool) -> None:
    plan = compile_cell("top1", 16, projection=8).plan(training=training, size=(33, 33))
    text = str(plan)
    assert text.startswith(("training" if training else "evaluation") + ": F of 33x33 with 16 channels")
    assert len(text.splitlines()) > len(plan.steps)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "cuda"}, 'error: backend must be "auto" or "native" or "aten", not \'cuda\' [DPC062]'),
        ({"without": ["groups"]}, "error: there is no fusion `groups`; did you mean `group`? [DPC062]"),
        ({"in_channels": 0}, "error: in_channels must be a whole number from 1 up, not 0 [DPC062]"),
        ({"projection": -1}, "error: projection must be a whole number from 1 up, not -1 [DPC062]"),
    ],
)
def test_wrong_options(mixed: Cell, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(DpcError) as error:
        compile_cell(mixed, **({"in_channels": 6} | options))
    assert str(error.value).splitlines()[0] == expected


@pytest.mark.parametrize("shape", [(6, 9, 7), (2, 5, 9, 7), (2, 9, 7, 6), (2, 6, 0, 7), (2, 6, 9, 0), ()])
def test_a_wrong_map_is_told_as_the_eager_cell_tells_it(mixed: Cell, shape: tuple[int, ...]) -> None:
    messages = []
    for module in (EagerCell(mixed, 6), compile_cell(mixed, 6)):
        for call in (module, module.concatenate):
            with pytest.raises(DpcError) as error:
                call(torch.zeros(shape))
            messages.append(str(error.value))
    assert len(set(messages)) == 1
