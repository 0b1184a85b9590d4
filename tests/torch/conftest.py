"""What the tests of the PyTorch compiler share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_subjects import NAMES, Subject, emulated
from torch_subjects import subject as make_subject

from dpcdsl.cell import Cell
from dpcdsl.operators import Operator
from dpcdsl_torch import EagerCell, load_deeplab_variables, native
from dpcdsl_torch import module as fused
from dpcdsl_torch.arguments import evaluation_weights

torch.set_num_threads(1)  # the maps are tiny, and tests may run side by side

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """One case of the authors' code: its cell, its settings, and its arrays as torch has them (NCHW)."""

    name: str
    facts: dict[str, Any] = field(repr=False)
    arrays: dict[str, np.ndarray] = field(repr=False)

    @property
    def cell(self) -> Cell:
        if self.facts["kind"] == "aspp":
            atrous = [Operator.of("sepconv3x3", rate=(rate, rate)) for rate in self.facts["atrous_rates"]]
            operators = [Operator.of("avgpool", grid=(1, 1)), Operator.of("conv1x1"), *atrous]
            return Cell.of(*((0, operator) for operator in operators), filters=self.facts["aspp_convs_filters"])
        return Cell.of(
            *((max(branch["input"], -1) + 1, _operator(branch)) for branch in self.facts["cell"]),
            filters=self.facts["hparams"]["reduction_size"],
        )

    @property
    def variables(self) -> dict[str, np.ndarray]:
        return {name: self.arrays[name] for name in self.facts["variables"]}

    def module(self, cell: Cell | None = None, **options: Any) -> EagerCell:
        """The case's cell (or another of the same shapes) with the case's settings (or others) and weights."""
        hparams = self.facts.get("hparams", {})
        settings = {
            "pooling": "sliding",
            "output_stride": self.facts["output_stride"],
            "projection": self.map("output").shape[1],
            "dropout": 1 - hparams.get("dropout_keep_prob", 0.9),
            "dropout_place": "after_projection" if self.facts["kind"] == "aspp" else "before_projection",
        }
        module = EagerCell(cell or self.cell, self.facts["in_channels"], **(settings | options))
        load_deeplab_variables(module, self.variables)
        return module.train(self.facts["train_mode"])

    def map(self, key: str) -> Tensor:
        """An array [N, H, W, C] as a tensor [N, C, H, W]."""
        return torch.from_numpy(self.arrays[key]).permute(0, 3, 1, 2)


def _operator(branch: dict[str, Any]) -> Operator:
    if branch["op"] == "pyramid_pooling":
        return Operator.of("avgpool", grid=tuple(branch["grid_size"]))
    if branch["kernel"] == 1:
        return Operator.of("conv1x1")
    return Operator.of("sepconv3x3", rate=tuple(branch["rate"]))


def read_golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return Golden(name, json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The case whose name the test is parametrised with (``indirect=True``)."""
    return read_golden(request.param)


@pytest.fixture(scope="session", params=NAMES)
def subject(
    request: pytest.FixtureRequest, needs: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """Every test that takes it is run for each implementation of the passes."""
    return make_subject(request.param, _shared_folder(tmp_path_factory), needs("g++"))


@pytest.fixture
def cuda_on_the_cpu(
    needs: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Modules on the CPU run on the CUDA kernels, compiled for it."""
    monkeypatch.setattr(native._Loaded, "looked", True)
    monkeypatch.setattr(native._Loaded, "found", emulated(_shared_folder(tmp_path_factory), needs("g++")))
    evaluation_weights.cache_clear()  # how they lie depends on the kernels
    yield
    evaluation_weights.cache_clear()


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of this process's folder: the other test processes have theirs there too."""
    return tmp_path_factory.getbasetemp().parent / "kernels"


@pytest.fixture
def top1() -> Cell:
    """The cell that the paper publishes, with 8 filters."""
    rates = [(0, (1, 6)), (1, (18, 15)), (2, (6, 3)), (1, (1, 1)), (1, (6, 21))]
    return Cell.of(*((source, Operator.of("sepconv3x3", rate=rate)) for source, rate in rates), filters=8)


@pytest.fixture
def mixed() -> Cell:
    """A cell with every operator of the paper, and with branches that read others."""
    return Cell.of(
        (0, Operator.of("sepconv3x3", rate=(1, 6))),
        (1, Operator.of("avgpool", grid=(1, 1))),
        (0, Operator.of("conv1x1")),
        (2, Operator.of("avgpool", grid=(2, 4))),
        (3, Operator.of("sepconv3x3", rate=(21, 1))),
        filters=8,
    )


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever weights are folded."""
    seen: list[str] = []
    prepare = fused.prepare  # type: ignore[attr-defined]

    def counted(*rest: Any) -> dict[str, Tensor]:
        seen.append("fold")
        return prepare(*rest)

    monkeypatch.setattr(fused, "prepare", counted)
    return seen
