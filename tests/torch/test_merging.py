"""Operators that are one function on a map: keys against what the operators compute."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpcdsl import operators as registry
from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.merging import function_key, merge_operators
from dpcdsl.operators import Operator, OperatorKind, Pair, register_operator
from dpcdsl_torch import EagerCell
from dpcdsl_torch.reference import SameConvolution

PAPER = Conventions()
SLIDING = Conventions(pooling="sliding")
CONV = Operator.of("conv1x1")


def sepconv(height: int, width: int) -> Operator:
    return Operator.of("sepconv3x3", rate=(height, width))


def avgpool(height: int, width: int) -> Operator:
    return Operator.of("avgpool", grid=(height, width))


RATES = (1, *range(3, 22, 3))
GRIDS = (1, 2, 4, 8)
PAPERS_81 = [
    CONV,
    *(sepconv(h, w) for h in RATES for w in RATES),
    *(avgpool(h, w) for h in GRIDS for w in GRIDS),
]
# What the paper leaves out: rates and grids between its own, and beyond the maps below.
MORE_RATES = (2, 4, 5, 7, 8, 13, 24, 25, 33, 40)
MORE_GRIDS = (3, 5, 6, 7, 9, 13, 16, 24)
MORE = [
    *(sepconv(r, r) for r in MORE_RATES),
    *(sepconv(r, 3) for r in MORE_RATES),
    *(sepconv(1, r) for r in MORE_RATES),
    *(avgpool(g, g) for g in MORE_GRIDS),
    *(avgpool(g, 2) for g in MORE_GRIDS),
    *(avgpool(1, g) for g in MORE_GRIDS),
    *(avgpool(8, g) for g in MORE_GRIDS),
]


def same(one: Operator, other: Operator, size: Size, conventions: Conventions = PAPER) -> bool:
    keys = [function_key(operator, size, conventions=conventions) for operator in (one, other)]
    assert (keys[0] == keys[1]) == (len(merge_operators([one, other], size, conventions=conventions)) == 1)
    return keys[0] == keys[1]


# Operators of a user's own, registered for a test and taken away again


def _layers(shape: str) -> Any:
    """Layers for a parameter of the operator, one of the paper's ways to write a user's kind."""

    def build(filters: int, p: Size) -> list[Layer]:
        convolution = Convolution("conv", filters)
        return {
            "sepconv5x5": [DepthwiseConvolution("d", (5, 5), p), convolution],
            "conv3x3": [Convolution("dense", filters, (3, 3), p)],
            "conv2x3": [Convolution("even", filters, (2, 3), p)],
            "bare": [Convolution("conv", filters, rate=p, batch_norm=False)],
            "linear": [Convolution("conv", filters, rate=p, relu=False)],
            "narrow": [Convolution("conv", filters - 1, rate=p)],
            "means": [GridPool(p), Resize()],
            "wide": [GridPool(p), Convolution("dense", filters, (3, 3)), Resize()],
            "deep": [GridPool(p), DepthwiseConvolution("d", (1, 1), p), convolution, Resize()],
            "inner": [GridPool(p), Convolution("a", 3, (3, 3)), Convolution("b", 3, (3, 3)), Resize()],
            "outer": [GridPool(p), Convolution("a", 3, (3, 3)), Resize(), Convolution("b", 3, (3, 3))],
            "twice": [GridPool(p), convolution, Resize(), GridPool(p), convolution, Resize()],
            "nested": [GridPool((4, 4)), GridPool(p), convolution, Resize()],
            "late": [convolution, Resize(), GridPool(p), Resize()],
            "then": [Convolution("dense", filters, (3, 3)), GridPool(p), convolution, Resize()],
        }[shape]

    return build


SHAPES = (
    *("sepconv5x5", "conv3x3", "conv2x3", "bare", "linear", "narrow"),
    *("means", "wide", "deep", "inner", "outer", "twice", "nested", "late", "then"),
)


@dataclass(frozen=True)
class Unknown(Layer):
    scale: Any


class Dense(Convolution):
    """A layer that a user made of another; what it does is his."""


def own(name: str, value: int | Size) -> Operator:
    return Operator.of(f"merging_{name}", p=(value, value) if isinstance(value, int) else value)


@pytest.fixture
def _own_kinds() -> Iterator[None]:
    with patch.object(registry, "_registry", dict(registry.kinds())):
        for shape in SHAPES:
            register_operator(OperatorKind(f"merging_{shape}", _layers(shape), (Pair("p"),)))
        others: dict[str, Any] = {
            "known": lambda filters, p: [Unknown(p), Convolution("conv", filters)],
            "listed": lambda filters, p: [Unknown(list(p)), Convolution("conv", filters)],
            "subclass": lambda filters, p: [Dense("conv", filters, rate=p)],
            "pooled": lambda filters, p: [GridPool(p), Unknown(0), Resize()],  # noqa: ARG005
            "shrinks": lambda filters, p: [GridPool(p)],  # noqa: ARG005
            "nothing": lambda filters, p: [],  # noqa: ARG005
        }
        for name, layers in others.items():
            register_operator(OperatorKind(f"merging_{name}", layers, (Pair("p"),)))
        yield


# What operators compute: the eager oracle, with one weight for each offset of a tap


@cache
def drawn(*shape_and_place: int | Size) -> Tensor:
    """Numbers of a shape (a first argument) that depend on all of the arguments and nothing else."""
    shape = shape_and_place[0]
    generator = torch.Generator().manual_seed(hash(shape_and_place) % 2**63)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def computed(operators: Sequence[Operator], x: Tensor, **options: Any) -> Tensor:
    """The outputs of the operators, [operators, numbers]; those without filters of their own have the input's."""
    outputs = []
    for operator in operators:
        module = EagerCell(Cell.of((0, operator), filters=x.shape[1]), x.shape[1], **options).double().eval()
        convolutions = [each for each in module.modules() if isinstance(each, SameConvolution)]
        for number, convolution in enumerate(convolutions):
            weight, kind = convolution.weight.data, (number, int(convolution.depthwise))
            for i, j in [(i, j) for i in range(weight.shape[2]) for j in range(weight.shape[3])]:
                # An offset has its weight, whichever tap of whichever kernel stands there.
                dy = i * convolution.rate[0] - (weight.shape[2] - 1) * convolution.rate[0] // 2
                dx = j * convolution.rate[1] - (weight.shape[3] - 1) * convolution.rate[1] // 2
                weight[:, :, i, j] = drawn(tuple(weight.shape[:2]), *kind, dy, dx)
            if convolution.bn is not None:
                channels = (weight.shape[0],)
                convolution.bn.weight.data = drawn(channels, *kind, 1).abs() + 0.5
                convolution.bn.bias.data = drawn(channels, *kind, 2) / 2
                convolution.bn.running_mean = drawn(channels, *kind, 3) / 2
                convolution.bn.running_var = drawn(channels, *kind, 4).abs() + 0.5
        with torch.no_grad():
            outputs.append(module(x).flatten())
    return torch.stack(outputs)


def differences(operators: Sequence[Operator], size: Size, batch: int = 4, **options: Any) -> list[list[float]]:
    """The largest difference between the outputs of any two operators, over random inputs."""
    # Means that differ from image to image, so that ReLUs are alive behind a global pooling too.
    x = drawn((batch, 3, *size), 0) + 2 * drawn((batch, 3, 1, 1), 1)
    outputs = computed(operators, x, **options)
    found: list[list[float]] = torch.cdist(outputs, outputs, p=math.inf).tolist()
    return found


def check(operators: Sequence[Operator], size: Size, conventions: Conventions, complete: bool = True) -> int:
    """Same key, same outputs; and, for the kinds where keys are complete, the other way round. Number of keys."""
    keys = [function_key(operator, size, 3, conventions) for operator in operators]
    options = {"pooling": conventions.pooling, "output_stride": conventions.output_stride}
    found = differences(operators, size, **options, image_pooling_crop_size=conventions.image_pooling_crop_size)
    for i, j in combinations(range(len(operators)), 2):
        if keys[i] == keys[j]:
            assert found[i][j] < 1e-12, f"{operators[i]} and {operators[j]} differ by {found[i][j]} at {size}"
        elif complete:
            assert found[i][j] > 1e-6, f"{operators[i]} and {operators[j]} are the same at {size}"
    return len(set(keys))


@pytest.mark.parametrize("conventions", [PAPER, SLIDING], ids=["paper", "sliding"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 4), (8, 8), (9, 7), (13, 25), (33, 33)], ids=str)
@pytest.mark.usefixtures("_own_kinds")
def test_keys_are_what_operators_compute(size: Size, conventions: Conventions) -> None:
    wider = [own("sepconv5x5", rate) for rate in (1, 2, 3, 5, 9, 12, 20, 33, (2, 40), (9, 1))]
    dense = [own("conv3x3", rate) for rate in (1, 2, 4, 9, 33, (1, 33), (33, 1))]
    operators = [*PAPERS_81, *MORE, *wider, *dense]
    groups = check(operators, size, conventions)
    assert groups == len(merge_operators(operators, size, 3, conventions)) < len(operators)


@pytest.mark.parametrize("size", [(1, 4), (4, 5), (9, 7), (13, 25)], ids=str)
@pytest.mark.parametrize(
    "conventions",
    [Conventions(output_stride=8), Conventions("sliding", output_stride=4, image_pooling_crop_size=(4, 13))],
    ids=["stride", "crop"],
)
def test_other_conventions(size: Size, conventions: Conventions) -> None:
    check([*PAPERS_81, *MORE], size, conventions)


@pytest.mark.parametrize("pooling", ["paper", "sliding"])
@pytest.mark.parametrize("size", [*range(1, 11), 13, 16])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_grid_on_one_axis(size: int, axis: int, pooling: Any) -> None:
    grids = [*range(1, 4 * size), size**2, size**2 + 1]
    on_axis = [avgpool(g, 1) if axis == 0 else avgpool(1, g) for g in grids]
    check([*on_axis, CONV], (size, 1) if axis == 0 else (1, size), Conventions(pooling))


@pytest.mark.parametrize("conventions", [PAPER, SLIDING], ids=["paper", "sliding"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (4, 4), (5, 8), (9, 9)], ids=str)
@pytest.mark.usefixtures("_own_kinds")
def test_what_is_made_otherwise_never_merges_wrongly(size: Size, conventions: Conventions) -> None:
    values = [1, 2, 3, 4, 5, 9, 11, (1, 4), (4, 2), (9, 20)]
    operators = [own(shape, value) for shape in SHAPES if shape != "narrow" for value in values]
    assert check([*operators, *PAPERS_81[::5]], size, conventions, complete=False) < len(operators)


# By hand


@pytest.mark.parametrize(
    ("size", "groups"),
    [
        # Every rate is below every size, and no grid comes near it.
        ((65, 129), 81),
        ((33, 33), 81),
        # 21 alone is beyond the map: nothing it could be the same as.
        ((19, 19), 81),
        # 18 and 21 leave the centre alone: 7 * 7 separable convolutions, 16 poolings, the 1x1.
        ((18, 18), 66),
        # Rates 1, 3, 6, 9, 12 and the centre: 36 + 16 + 1.
        ((13, 13), 53),
        # 1, 3, 6 and the centre, as at 8x8; a grid of 8 is not the map's 9.
        ((9, 9), 33),
        # 8x8 is the map itself, and so the 1x1: 16 + 15 + 1.
        ((8, 8), 32),
        # 1, 3 and the centre; a grid of 8 is then as good as one of 4: 9 + (9 - 1) + 1.
        ((4, 4), 18),
        # 1 and the centre; grids 1 and 2: 4 + (4 - 1) + 1.
        ((2, 2), 8),
        # One position: a scale and the 1x1, or the 1x1 alone.
        ((1, 1), 2),
        # One row: 1, 3, 6 and the centre along it, and grids 1, 2 and 4 (8 is the 1x1).
        ((1, 8), 4 + 3 + 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("conventions", [PAPER, SLIDING], ids=["paper", "sliding"])
def test_the_papers_operators(size: Size, groups: int, conventions: Conventions) -> None:
    assert len(set(PAPERS_81)) == 81
    assert len(merge_operators(PAPERS_81, size, conventions=conventions)) == groups


def test_the_groups_of_a_map() -> None:
    merged = merge_operators(PAPERS_81, (4, 4))
    assert merged[0] == (CONV, avgpool(4, 4), avgpool(4, 8), avgpool(8, 4), avgpool(8, 8))
    assert merged[3] == tuple(sepconv(1, rate) for rate in RATES[2:])
    assert merged[-1] == (avgpool(4, 2), avgpool(8, 2))
    assert merge_operators([CONV, CONV], (4, 4)) == ((CONV, CONV),)
    assert merge_operators([], (4, 4)) == ()


def test_rates() -> None:
    assert same(sepconv(40, 3), sepconv(33, 3), (33, 33))
    assert same(sepconv(40, 3), sepconv(100, 3), (33, 33))
    assert not same(sepconv(40, 3), sepconv(32, 3), (33, 33))
    assert not same(sepconv(40, 3), sepconv(3, 40), (33, 33))
    assert not same(sepconv(40, 40), CONV, (33, 33))
    assert same(sepconv(17, 3), sepconv(20, 3), (33, 33), Conventions(output_stride=8))
    assert not same(sepconv(16, 3), sepconv(20, 3), (33, 33), Conventions(output_stride=8))


def test_grids() -> None:
    assert same(avgpool(65, 129), CONV, (65, 129))
    assert not same(avgpool(65, 128), CONV, (65, 129))
    assert not same(avgpool(65, 1), CONV, (65, 129))
    assert same(avgpool(7, 5), CONV, (1, 5))
    # Of 3 cells on 2 positions, both outputs lie on an outer one: the mean in the middle is never read.
    assert same(avgpool(3, 3), CONV, (2, 2))
    # Of 4 cells on 3, the middle output lies halfway between the cells {0, 1} and {1, 2}.
    assert not same(avgpool(4, 4), CONV, (3, 3))
    # Of 5 cells on 3, the middle one is {1}; of 6 it lies between {1} and {1}.
    assert same(avgpool(5, 6), CONV, (3, 3))
    # The sliding window is 2 for each of them: ceil(9 / 5) and ceil(9 / 8); with the crop of 5x9 it is 1 for a 5.
    assert same(avgpool(5, 5), avgpool(8, 8), (9, 9), SLIDING)
    assert not same(avgpool(5, 5), avgpool(8, 8), (9, 9))
    assert not same(avgpool(5, 5), avgpool(9, 9), (9, 9), SLIDING)
    crop = Conventions("sliding", image_pooling_crop_size=(65, 129))
    assert same(avgpool(5, 9), CONV, (9, 9), crop)
    assert same(avgpool(5, 5), avgpool(6, 6), (9, 9), crop)


def test_grids_and_maps_of_any_size() -> None:
    largest = 2**31 - 1
    assert same(avgpool(largest, largest), CONV, (65, 129))
    for conventions in (PAPER, SLIDING):
        operators = [CONV, avgpool(1, largest), avgpool(1, 4), avgpool(1, 2**18)]
        merged = merge_operators(operators, (1, 2**18), conventions=conventions)
        assert merged == ((CONV, avgpool(1, largest), avgpool(1, 2**18)), (avgpool(1, 4),))
        assert len(str(function_key(avgpool(1, 4), (1, 2**18), conventions=conventions))) < 2**20


@pytest.mark.usefixtures("_own_kinds")
def test_layers_of_a_kind_of_ones_own() -> None:
    assert same(own("sepconv5x5", 20), sepconv(20, 20), (33, 33))
    assert not same(own("sepconv5x5", 16), sepconv(16, 16), (33, 33))
    assert same(own("conv3x3", 33), CONV, (33, 33))
    assert not same(own("conv3x3", (33, 32)), CONV, (33, 33))
    for different in ("bare", "linear", "narrow"):
        assert not same(own(different, 1), CONV, (9, 9))
        assert same(own(different, 1), own(different, 7), (9, 9))
    # An even kernel has no centre: far apart its taps read nothing, and the other axis' taps nothing with them.
    assert same(own("conv2x3", (9, 1)), own("conv2x3", (100, 2)), (4, 4))
    assert not same(own("conv2x3", (1, 1)), own("conv2x3", (1, 2)), (4, 4))


@pytest.mark.usefixtures("_own_kinds")
def test_layers_between_pooling_and_resize() -> None:
    assert same(own("means", (4, 9)), own("nothing", 1), (4, 9))
    assert not same(own("means", (4, 8)), own("nothing", 1), (4, 9))
    assert same(own("wide", 1), avgpool(1, 1), (9, 9))  # on one position a 3x3 is its centre
    assert same(own("wide", 9), own("conv3x3", 1), (9, 9))
    assert same(own("wide", (5, 5)), own("wide", (8, 8)), (9, 9), SLIDING)
    assert not same(own("wide", (5, 5)), own("wide", (8, 8)), (9, 9))
    assert not same(own("wide", 2), avgpool(2, 2), (9, 9))
    assert same(own("inner", 4), own("outer", 4), (4, 4))
    assert not same(own("inner", 2), own("outer", 2), (4, 4))
    assert same(own("nested", 3), avgpool(3, 3), (4, 4))
    assert not same(own("nested", 3), avgpool(3, 3), (5, 5))
    assert same(own("late", 5), CONV, (3, 3))
    assert not same(own("twice", 2), avgpool(2, 2), (3, 3))


@pytest.mark.usefixtures("_own_kinds")
def test_layers_that_are_not_ours() -> None:
    assert same(own("known", 1), own("known", 1), (4, 4))
    assert not same(own("known", 1), own("known", 2), (4, 4))
    assert same(own("listed", 1), own("listed", 1), (4, 4))  # not to be hashed, but the same operator
    assert not same(own("listed", 1), own("known", 1), (4, 4))
    # A subclass exists because it differs, whatever its taps say.
    assert not same(own("subclass", 1), CONV, (4, 4))
    assert not same(own("subclass", 4), own("subclass", 5), (4, 4))
    # Unknown(0) says nothing of what it does to a pooled map of 3 or of 5 positions for 2.
    assert not same(own("pooled", 3), own("pooled", 5), (2, 2))
    assert not same(own("pooled", 3), own("pooled", 2), (2, 2))


@pytest.mark.usefixtures("_own_kinds")
def test_mistakes() -> None:
    for size in [(0, 4), (4, 2**20 + 1), 4, (True, 4)]:
        for call in (function_key, lambda *arguments: merge_operators([], arguments[1])):
            with pytest.raises(DpcError, match=r"size must be \(height, width\)") as error:
                call(CONV, size)
            assert error.value.codes == ("DPC062",)
    with pytest.raises(DpcError, match="window of 9 does not fit height 4") as error:
        function_key(avgpool(1, 1), (4, 9), conventions=Conventions("sliding", image_pooling_crop_size=(129, 129)))
    assert error.value.codes == ("DPC062",)
    with pytest.raises(DpcError, match="turns a map of 4x9 into one of 2x3") as error:
        function_key(own("shrinks", (2, 3)), (4, 9))
    assert error.value.codes == ("DPC065",)


def test_training_is_another_matter() -> None:
    # Why keys hold for evaluation: of 3 cells on the 2 positions, batch normalisation sees the middle one too.
    cells = [Cell.of((0, operator), filters=2) for operator in (CONV, avgpool(3, 3))]
    modules = [EagerCell(cell, 2).double() for cell in cells]
    for a, b in zip(*(module.parameters() for module in modules), strict=True):
        nn.init.constant_(a, 0.5)
        nn.init.constant_(b, 0.5)
    x = drawn((2, 2, 2, 2), 0)
    assert same(CONV, avgpool(3, 3), (2, 2))
    with torch.no_grad():
        assert (modules[0](x) - modules[1](x)).abs().max() > 1e-3
        modules[1].load_state_dict(dict(zip(modules[1].state_dict(), modules[0].state_dict().values(), strict=True)))
        assert (modules[0].eval()(x) - modules[1].eval()(x)).abs().max() < 1e-12


numbers = st.integers(1, 12)
any_operators = st.lists(
    st.just(CONV) | st.builds(sepconv, numbers, numbers) | st.builds(avgpool, numbers, numbers), max_size=20
)


@given(data=st.data(), operators=any_operators, size=st.tuples(numbers, numbers), sliding=st.booleans())
def test_groups_partition_a_set_whatever_its_order(data: Any, operators: Any, size: Size, sliding: bool) -> None:
    conventions = SLIDING if sliding else PAPER
    groups = merge_operators(operators, size, conventions=conventions)
    assert sorted(map(str, operators)) == sorted(str(operator) for group in groups for operator in group)
    firsts = [operators.index(group[0]) for group in groups]
    assert firsts == sorted(firsts)
    for group in groups:
        assert list(group) == [operator for operator in operators if operator in group]
        assert len({function_key(operator, size, conventions=conventions) for operator in group}) == 1
    shuffled = data.draw(st.permutations(operators))
    again = merge_operators(shuffled, size, conventions=conventions)
    assert {frozenset(group) for group in again} == {frozenset(group) for group in groups}


def test_neither_numpy_nor_torch_is_needed() -> None:
    code = (
        "import sys; from dpcdsl.merging import merge_operators; from dpcdsl.operators import Operator as O;"
        "assert len(merge_operators([O.of('conv1x1'), O.of('avgpool', grid=(4, 4))], (4, 4))) == 1;"
        "assert not {'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
