"""A cell's source is the eager module again: weights, keys, outputs, statistics; and it is a good file of its own."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import PAPER, registered
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Golden
from torch import Tensor, nn

import dpcdsl
from dpcdsl import operators, strategies
from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Convolution, DepthwiseConvolution, GridPool, Layer, Resize
from dpcdsl.operators import Operator, OperatorKind
from dpcdsl_torch import EagerCell, lowering
from dpcdsl_torch.reference import SameConvolution
from dpcdsl_torch.source import source

ZOO = [name for name, definition in dpcdsl.zoo().items() if isinstance(definition.value, Cell)]


#: Rules that many projects follow; N812 has another opinion of the name `F`.
RULES = "ARG,B,C4,E,I,N,PERF,PL,PT,RET,RUF,SIM,TID,UP,W"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--update-golden"))


@contextmanager
def operator_of(*layers: Layer) -> Iterator[Operator]:
    """An operator of these layers, for a while."""
    operators._layers.cache_clear()
    with registered(OperatorKind("mine", lambda filters: list(layers))):  # noqa: ARG005
        yield Operator.of("mine")


def run(text: str) -> nn.Module:
    """The module of a source that may import torch alone."""

    def torch_alone(name: str, *rest: Any) -> Any:
        assert name.partition(".")[0] == "torch", f"the source imports {name}"
        return builtins.__import__(name, *rest)

    names: dict[str, Any] = {"__builtins__": vars(builtins) | {"__import__": torch_alone}, "__name__": "pasted"}
    exec(compile(text, "<source>", "exec"), names)
    module = names["DensePredictionCell"]()
    assert isinstance(module, nn.Module)
    return module


def seeded(make: Any) -> Any:
    torch.manual_seed(1)
    return make()


def check_same(cell: Cell, in_channels: int, maps: Sequence[Tensor], **options: Any) -> None:
    """The source's module begins as the eager one does, and stays equal on maps in training and in evaluation.

    Bit for bit, unless a layer of one tap has a rate: that the source leaves out, and torch takes another way to the
    same numbers.
    """
    theirs = seeded(lambda: EagerCell(cell, in_channels, **options))
    ours = seeded(lambda: run(source(cell, in_channels, **options)))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert (ours.in_channels, ours.out_channels) == (theirs.in_channels, theirs.out_channels)
    exact = all(part.rate == (1, 1) or part.weight[0, 0].numel() > 1 for part in convolutions(theirs))
    tolerance = {"rtol": 0.0, "atol": 0.0}
    if not exact:
        theirs, ours, maps = theirs.double(), ours.double(), [features.double() for features in maps]
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        for features in maps:
            outputs = [seeded(lambda m=m, x=features: m(x)) for m in (ours, theirs)]
            torch.testing.assert_close(*outputs, **tolerance)
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **tolerance)
            gradients = [gradients_of(m, features) for m in (ours, theirs)]
            torch.testing.assert_close(*gradients, **tolerance)


def convolutions(module: nn.Module) -> list[SameConvolution]:
    return [part for part in module.modules() if isinstance(part, SameConvolution)]


def gradients_of(module: nn.Module, features: Tensor) -> tuple[Tensor, ...]:
    features = features.clone().requires_grad_()
    loss = seeded(lambda: module(features)).square().sum()
    return torch.autograd.grad(loss, [features, *module.parameters()])


def maps(channels: int) -> list[Tensor]:
    """Maps of a few sizes; among them one value a channel, and no image."""
    torch.manual_seed(0)
    return [torch.randn(n, channels, h, w) for n, h, w in ((2, 5, 7), (1, 6, 3), (1, 1, 1), (0, 4, 4))]


# What it computes


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projection": 5, "pooling": "sliding", "output_stride": 8},
        {"projection": 5, "dropout": 0.5, "dropout_place": "after_projection", "batch_norm_momentum": 0.25},
        {"fine_tune_batch_norm": False, "batch_norm_epsilon": 0.01, "align_corners": False},
    ],
    ids=["defaults", "sliding_at_8", "dropout", "frozen"],
)
def test_the_zoo_is_the_eager_module_again(name: str, options: dict[str, Any]) -> None:
    cell = dpcdsl.read_cell(name).model_copy(update={"filters": 6})
    check_same(cell, 4, maps(4), **options)


@settings(max_examples=40)
@given(
    cell=strategies.cells(operators=PAPER, filters=st.integers(1, 4)),
    in_channels=st.integers(1, 4),
    projection=st.none() | st.integers(1, 3),
    pooling=st.sampled_from(("paper", "sliding")),
    output_stride=st.sampled_from((16, 8, 2)),
    dropout_place=st.sampled_from(("before_projection", "after_projection")),
    batch_norm_momentum=st.sampled_from((0.0003, 0.5, 0, 1)),
    fine_tune_batch_norm=st.booleans(),
    align_corners=st.booleans(),
)
def test_any_cell_of_the_paper_s_operators(cell: Cell, in_channels: int, **options: Any) -> None:
    check_same(cell, in_channels, maps(in_channels), **options)


sides = st.integers(1, 4)
pairs = st.tuples(sides, sides)
names = st.sampled_from(("conv", "x", "self", "class", "two words", "1st", "ﬁ", '"quoted\\"', "conv_pad", "été"))
flags = {"batch_norm": st.booleans(), "relu": st.booleans()}
layers = st.one_of(
    st.builds(Convolution, names, sides, pairs, pairs, **flags),
    st.builds(Convolution, names, sides),
    st.builds(DepthwiseConvolution, names, pairs, pairs, **flags),
    st.builds(DepthwiseConvolution, names, rate=pairs),
    st.builds(GridPool, pairs),
    st.just(Resize()),
)


@settings(max_examples=60)
@given(
    mine=st.lists(layers, max_size=5),
    projection=st.none() | st.integers(1, 3),
    output_stride=st.sampled_from((16, 8)),
    fine_tune_batch_norm=st.booleans(),
)
def test_any_operator_of_the_layers(mine: list[Layer], **options: Any) -> None:
    # A Resize ends it, because an operator has to keep the size.
    with operator_of(*mine, Resize()) as operator:
        cell = Cell.of((0, operator), (1, Operator.of("sepconv3x3", rate=(1, 2))), filters=3)
        check_same(cell, 2, maps(2), **options)


@pytest.mark.parametrize(
    "mine",
    [
        (),
        (Convolution("conv", 3, (2, 2), batch_norm=False, relu=False),),
        (DepthwiseConvolution("one", (2, 3), (3, 2)), DepthwiseConvolution("one", (4, 4), (1, 2), relu=False)),
        (Convolution("conv", 3, (1, 1), (7, 7), batch_norm=False),),
        (Convolution("conv", 3, (2, 1)), Convolution("conv_pad", 2)),
        (GridPool((2, 2)), Resize(), GridPool((1, 2)), Convolution("conv", 3, (3, 3)), Resize()),
    ],
    ids=["identity", "bare", "even", "rate_of_one_tap", "name_of_the_padding", "twice"],
)
def test_a_cell_of_one_operator_has_only_what_it_needs(mine: tuple[Layer, ...]) -> None:
    with operator_of(*mine) as operator:
        check_same(Cell.of((0, operator)), 2, maps(2))
        text = source(Cell.of((0, operator)), 2)
    assert ("class BatchNorm" in text) == any(layer.normalised_channels(2) > 0 for layer in mine)
    assert ("class Convolution" in text) == any(isinstance(layer, Convolution | DepthwiseConvolution) for layer in mine)
    assert ("class Resize" in text) == (Resize() in mine)
    assert ("ZeroPad2d" in text) == any(size % 2 == 0 for layer in mine for size in getattr(layer, "kernel", ()))


def test_a_crop_fixes_the_window() -> None:
    options = {"pooling": "sliding", "image_pooling_crop_size": [65, 33], "output_stride": 8}
    cell = dpcdsl.parse_cell("filters 3 (F, avgpool grid 2x2, Y1)")
    check_same(cell, 2, [torch.randn(2, 2, 9, 5), torch.randn(1, 2, 12, 7)], **options)
    text = source(cell, 2, **options)
    assert "nn.AvgPool2d((5, 3), stride=1)" in text
    assert "class SlidingMean" not in text


def test_other_types_of_numbers() -> None:
    text = source(dpcdsl.read_cell("aspp"), 4, projection=4)
    ours = run(text).to(torch.float64).eval()
    theirs = EagerCell(dpcdsl.read_cell("aspp"), 4, projection=4).to(torch.float64).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    features = torch.randn(1, 4, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(features), theirs(features), rtol=0, atol=0)


# What it says


@pytest.mark.parametrize("name", ZOO)
def test_golden(name: str, golden: Golden) -> None:
    golden.check(f"source/{name}.txt", source(dpcdsl.read_cell(name), 2048))


def test_golden_with_options(golden: Golden) -> None:
    text = source(dpcdsl.read_cell("aspp"), 320, projection=256, pooling="sliding", output_stride=8)
    golden.check("source/aspp_projected.txt", text)


def test_golden_with_an_operator_of_one_s_own(golden: Golden) -> None:
    mine = (
        DepthwiseConvolution("depthwise", (4, 4), batch_norm=False, relu=False),
        Convolution("pointwise", 48),
        Convolution("dense", 48, (3, 3), (2, 2), relu=False),
    )
    with operator_of(*mine) as operator:
        text = source(Cell.of((0, operator), (1, Operator.of("avgpool", grid=(2, 4))), filters=48), 64)
    golden.check("source/user_operator.txt", text)


@settings(max_examples=30)
@given(cell=strategies.cells(operators=PAPER, max_branches=40))
def test_the_docstring_holds_the_cell(cell: Cell) -> None:
    docstring = ast.get_docstring(ast.parse(source(cell, 3)))
    assert docstring is not None
    _, text, _ = docstring.split(":\n\n", 2)
    text = text.rpartition("\n\n")[0]
    assert dpcdsl.parse_cell(text) == cell


def test_the_options_stand_in_the_docstring() -> None:
    text = source(dpcdsl.read_cell("top1"), 8, pooling="sliding", image_pooling_crop_size=[513, 769], dropout=0)
    assert 'in_channels = 8\n    pooling = "sliding"\n' in text
    assert "image_pooling_crop_size = (513, 769)\n" in text
    assert "dropout = 0\n" in text


def sources(folder: Path) -> list[str]:
    """Files of every form of source."""
    even = [DepthwiseConvolution("self", (2, 3), relu=False), Convolution("two words", 3, (5, 5), batch_norm=False)]
    many = " ".join(f"({f'Y{i}' if i else 'F'}, conv1x1, Y{i + 1})" for i in range(64))
    texts = [
        *(source(dpcdsl.read_cell(name), 2048) for name in ZOO),
        source(dpcdsl.read_cell("aspp"), 2048, projection=256, pooling="sliding", output_stride=8),
        source(dpcdsl.read_cell("top1"), 2048, projection=256, fine_tune_batch_norm=False),
        source(dpcdsl.parse_cell(many), 8, projection=8, dropout_place="after_projection"),
    ]
    with operator_of(*even) as operator:
        texts.append(source(Cell.of((0, operator)), 3))
    with operator_of(Convolution("conv", 3, batch_norm=False, relu=False)) as operator:
        texts.append(source(Cell.of((0, operator)), 3))
    paths = [folder / f"cell_{number}.py" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    "arguments",
    [
        ("ruff", "check", "--isolated", "--no-cache", f"--extend-select={RULES}", "--ignore=N812,PLR"),
        ("ruff", "format", "--isolated", "--no-cache", "--check", "--line-length", "88"),
        ("ruff", "format", "--isolated", "--no-cache", "--check", "--line-length", "120"),
    ],
    ids=["rules", "format_88", "format_120"],
)
def test_ruff_passes(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", *arguments, *sources(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_passes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cache = request.config.cache.mkdir("mypy_of_sources")  # what it knows of torch takes a while to find out
    strict = ["--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *strict, *sources(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_where_dpcdsl_is_not(tmp_path: Path) -> None:
    text = source(dpcdsl.read_cell("aspp"), 4, projection=3)
    (tmp_path / "pasted.py").write_text(text)
    program = """
import sys
sys.modules.update(dict.fromkeys(("dpcdsl", "dpcdsl_torch")))  # importing them is now an error
import torch, pasted
torch.manual_seed(1)
torch.save(pasted.DensePredictionCell().state_dict(), "weights.pt")
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = seeded(lambda: EagerCell(dpcdsl.read_cell("aspp"), 4, projection=3))
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), dict(theirs.state_dict()), rtol=0, atol=0)


def test_writing_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    source(dpcdsl.read_cell("aspp"), 2048, projection=65536)
    assert torch.equal(state, torch.get_rng_state())


# What it refuses


def test_wrong_options_are_told_as_by_the_compiler() -> None:
    top1 = dpcdsl.read_cell("top1")
    with pytest.raises(DpcError, match="has no option `projektion`; did you mean `projection`"):
        source(top1, 8, projektion=3)
    with pytest.raises(DpcError, match="in_channels must be a whole number") as caught:
        source(top1, 0, dropout=1, pooling="max")
    assert caught.value.codes == ("DPC062",) * 3
    with pytest.raises(DpcError, match=r"must be a dpcdsl\.Cell, not str"):
        source("top1", 8)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Blur(Layer):
    pass


class Wider(Convolution):
    pass


@pytest.mark.parametrize("layer", [Blur(), Wider("conv", 3)], ids=["layer", "subclass"])
def test_a_layer_of_one_s_own_has_no_source(layer: Layer) -> None:
    with operator_of(layer) as operator, pytest.raises(DpcError) as caught:
        source(Cell.of((0, operator)), 3)
    assert caught.value.codes == ("DPC064",)
    assert f"the layer `{type(layer).__name__}` has no form as source" in str(caught.value)
    assert ".pt2 or .onnx" in str(caught.value)


def test_another_lowering_has_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "_registry", dict(lowering._registry))
    lowering.register(GridPool, replace=True)(lambda layer, _: nn.AdaptiveMaxPool2d(layer.grid))
    with pytest.raises(DpcError, match="the layer `grid_pool` has no form as source"):
        source(dpcdsl.read_cell("aspp"), 3)
    lowering.register(Convolution, replace=True)(lambda layer, context: nn.Conv2d(context.in_channels, 3, 1))  # noqa: ARG005
    with pytest.raises(DpcError, match="the layer `conv` has no form as source"):
        source(dpcdsl.parse_cell("(F, conv1x1, Y1)"), 3, projection=3)
