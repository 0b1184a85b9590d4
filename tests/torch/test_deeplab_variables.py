"""Loading the authors' variables is all or nothing, and says all that does not fit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.operators import Operator
from dpcdsl_torch import EagerCell, load_deeplab_variables

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
WHERE = "the cell, and whether it has a projection, must be those of the run that wrote the variables"
ALONE = "pass the cell's variables alone: no backbone, no optimizer slots, no global_step"


def arrays(shapes: dict[str, tuple[int, ...]], outputs: dict[str, int], scope: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = shapes | {f"{name}/BatchNorm/{part}": (size,) for name, size in outputs.items() for part in NORM}
    return {f"{scope}{name}": generator.random(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def cell() -> Cell:
    return Cell.of((0, Operator.of("sepconv3x3", rate=(1, 6))), (1, Operator.of("avgpool", grid=(2, 2))), filters=4)


@pytest.fixture
def variables() -> dict[str, np.ndarray]:
    """Those of ``cell`` with 3 input channels and a projection to 5."""
    return arrays(
        {
            "branch0_depthwise/depthwise_weights": (3, 3, 3, 1),
            "branch0_pointwise/weights": (1, 1, 3, 4),
            "branch1/weights": (1, 1, 4, 4),
            "concat_projection/weights": (1, 1, 8, 5),
        },
        {"branch0_depthwise": 3, "branch0_pointwise": 4, "branch1": 4, "concat_projection": 5},
        "meta_architecture/",
    )


def refusal(module: EagerCell, variables: dict[str, Any], **options: Any) -> str:
    """What is said, after a look that nothing was loaded."""
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(DpcError) as error:
        load_deeplab_variables(module, variables, **options)
    assert set(error.value.codes) == {"DPC066"}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return str(error.value)


def test_every_array_finds_its_place(cell: Cell, variables: dict[str, np.ndarray]) -> None:
    module = EagerCell(cell, 3, projection=5)
    load_deeplab_variables(module, variables)
    scope = "meta_architecture/"
    for name, ours in (("branch0_pointwise", "branches.0.pointwise"), ("concat_projection", "projection")):
        state = {key.removeprefix(f"{ours}."): value for key, value in module.state_dict().items() if ours in key}
        np.testing.assert_array_equal(state["weight"], variables[f"{scope}{name}/weights"].transpose(3, 2, 0, 1))
        for theirs, key in zip(NORM, ("weight", "bias", "running_mean", "running_var"), strict=True):
            np.testing.assert_array_equal(state[f"bn.{key}"], variables[f"{scope}{name}/BatchNorm/{theirs}"])
        assert state["bn.num_batches_tracked"] == 0
    depthwise = variables[f"{scope}branch0_depthwise/depthwise_weights"].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(module.state_dict()["branches.0.depthwise.weight"], depthwise)


def test_tensors_types_and_read_only_arrays(cell: Cell, variables: dict[str, np.ndarray]) -> None:
    first, second = EagerCell(cell, 3, projection=5), EagerCell(cell, 3, projection=5).double()
    tensors: dict[str, Tensor] = {name: torch.from_numpy(array).clone() for name, array in variables.items()}
    swapped = {name: array.astype(">f8") for name, array in variables.items()}
    for array in swapped.values():
        array.flags.writeable = False
    load_deeplab_variables(first, tensors)
    load_deeplab_variables(second, swapped)
    assert second.projection.weight.dtype == torch.float64
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name].to(value.dtype))


@pytest.mark.parametrize(
    ("written", "scope"), [("", ""), ("model/cell/", "model/cell"), ("model/cell/", "model/cell/")]
)
def test_another_scope(cell: Cell, variables: dict[str, np.ndarray], written: str, scope: str) -> None:
    module = EagerCell(cell, 3, projection=5)
    moved = {name.replace("meta_architecture/", written): array for name, array in variables.items()}
    said = refusal(module, moved)
    assert f"""help: pass `scope="{written.rstrip("/")}"`""" in said
    load_deeplab_variables(module, moved, scope=scope)


def aspp(*operators: Operator) -> Cell:
    return Cell.of(*((0, operator) for operator in operators), filters=4)


POOL, PLAIN = Operator.of("avgpool", grid=(1, 1)), Operator.of("conv1x1")
ATROUS = Operator.of("sepconv3x3", rate=(6, 6))


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("scope", ["", "model/"])
def test_aspp(pooled: bool, scope: str) -> None:
    weights = {
        "image_pooling/weights": (1, 1, 3, 4),
        "aspp0/weights": (1, 1, 3, 4),
        "aspp1_depthwise/depthwise_weights": (3, 3, 3, 1),
        "aspp1_pointwise/weights": (1, 1, 3, 4),
    }
    outputs = {"image_pooling": 4, "aspp0": 4, "aspp1_depthwise": 3, "aspp1_pointwise": 4}
    variables = arrays(weights, outputs, scope)
    cell = aspp(POOL, PLAIN, ATROUS)
    if not pooled:
        variables = {name: array for name, array in variables.items() if "image_pooling" not in name}
        cell = aspp(PLAIN, ATROUS)
    module = EagerCell(cell, 3)
    if scope:
        assert 'help: pass `scope="model"`' in refusal(module, variables)
    load_deeplab_variables(module, variables, scope=scope or None)
    pointwise = variables[f"{scope}aspp1_pointwise/weights"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(module.state_dict()[f"branches.{1 + pooled}.pointwise.weight"], pointwise)


@pytest.mark.parametrize(
    "cell",
    [
        aspp(PLAIN, POOL, ATROUS),
        aspp(POOL, ATROUS),
        aspp(POOL),
        aspp(Operator.of("avgpool", grid=(2, 1)), PLAIN),
        Cell.of((0, PLAIN), (1, ATROUS)),
    ],
)
def test_a_cell_that_is_not_aspp(cell: Cell) -> None:
    assert refusal(EagerCell(cell, 3), {"aspp0/weights": np.zeros((1, 1, 3, 4))}) == (
        "error: the variables are ASPP's, and the cell is not ASPP [DPC066]\n"
        "    help: ASPP is an optional `avgpool grid 1x1`, a `conv1x1` and `sepconv3x3` branches, which all read F"
    )


def test_all_that_is_wrong_is_told(cell: Cell, variables: dict[str, Any]) -> None:
    scope = "meta_architecture/"
    variables[f"{scope}branch0_pointwise/weights"] = np.zeros((1, 1, 7, 4))
    variables[f"{scope}concat_projection/weights"] = np.zeros((5, 8, 1, 1))
    variables[f"{scope}branch1/BatchNorm/beta"] = ["a", "b", "c", "d"]
    variables[f"{scope}branch1/weight"] = variables.pop(f"{scope}branch1/weights")
    variables["global_step"] = np.array(3)
    assert refusal(EagerCell(cell, 3, projection=5), variables) == (
        f"error: the variable `{scope}branch0_pointwise/weights` is [1, 1, 7, 4], and the cell needs [1, 1, 3, 4]"
        " [DPC066]\n"
        "    help: in_channels, filters and projection must be those of the run that wrote the variables\n"
        f"error: the variable `{scope}branch1/BatchNorm/beta` does not hold numbers [DPC066]\n"
        f"error: the variable `{scope}concat_projection/weights` is [5, 8, 1, 1], and the cell needs [1, 1, 8, 5]"
        " [DPC066]\n"
        "    help: arrays are taken in TensorFlow's layout, [height, width, in, out]\n"
        f"error: the cell has no place for the variable `{scope}branch1/weight` [DPC066]\n"
        f"    help: `{scope}branch1/weights` is missing; is it this one?\n"
        "error: the cell has no place for the variable `global_step` [DPC066]\n"
        f"    help: {ALONE}\n"
        f"error: the variable `{scope}branch1/weights` is missing [DPC066]\n"
        f"    help: {WHERE}"
    )


def test_an_optimizers_slots_are_left_over(cell: Cell, variables: dict[str, Any]) -> None:
    slot = "meta_architecture/branch1/weights/Momentum"
    variables[slot] = variables["meta_architecture/branch1/weights"]
    assert refusal(EagerCell(cell, 3, projection=5), variables) == (
        f"error: the cell has no place for the variable `{slot}` [DPC066]\n    help: {ALONE}"
    )


def test_with_and_without_a_projection(cell: Cell, variables: dict[str, Any]) -> None:
    said = refusal(EagerCell(cell, 3), variables)
    assert said.count("help: the cell was compiled without a projection; pass `projection=`") == 5
    only_branches = {name: array for name, array in variables.items() if "concat_projection" not in name}
    said = refusal(EagerCell(cell, 3, projection=5), only_branches)
    assert said.count("error: the variable `meta_architecture/concat_projection/") == said.count("error:") == 5


def test_a_long_list_is_cut_and_shows_both_sides(variables: dict[str, Any]) -> None:
    large = Cell.of(*((0, ATROUS) for _ in range(20)), filters=4)
    extra = {f"backbone/unit{index}/weights": np.zeros(1) for index in range(1000)}
    said = refusal(EagerCell(large, 3), variables | extra)
    assert said.count("no place for") == 50
    assert said.count("is missing") == 50
    assert said.endswith(" more mistakes are not shown; mend these first")


def test_nothing_given(cell: Cell) -> None:
    said = refusal(EagerCell(cell, 3, projection=5), {})
    assert said.count("is missing [DPC066]") == said.count("error:") == 20
