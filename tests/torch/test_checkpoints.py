"""Checkpoints: what is written is what is read, and nothing in a file that was made to do harm does any."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpcdsl import DpcError, parse_cell, read_cell, read_space
from dpcdsl.cell import MAX_BRANCHES, MAX_FILTERS
from dpcdsl.segmentation import SegmentationModel
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, read_checkpoint, write_checkpoint
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.labels import CITYSCAPES, PERSON_PART, VOC, LabelSet
from dpcdsl.segmentation.synthetic import STREET
from dpcdsl.segmentation.transforms import Preprocessing

CELL = "filters 8\n(F, sepconv3x3 rate 1x3, Y1) (Y1, conv1x1, Y2)\n"


def described(cell: str = CELL, labels: LabelSet = STREET, **others: Any) -> ModelDescription:
    others = {"preprocessing": Preprocessing()} | others
    return ModelDescription.of(parse_cell(cell), "tiny", "test_resnet", labels, (33, 65), **others)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = described().model()
    path = tmp_path_factory.mktemp("good") / FILE
    momentum = {name: torch.ones_like(value) for name, value in model.named_parameters()}
    write_checkpoint(path, Checkpoint(described(), model.state_dict(), 5, {"examples": 6}, momentum))
    return path


# There and back


@pytest.mark.parametrize("labels", [STREET, CITYSCAPES, VOC, PERSON_PART], ids=lambda labels: labels.name)
@pytest.mark.parametrize("eager", [False, True])
def test_what_is_written_is_read(tmp_path: Path, labels: LabelSet, eager: bool) -> None:
    preprocessing = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    description = described(labels=labels, decoder="deeplabv3+", preprocessing=preprocessing)
    assert description.labels.file_ids(_every(labels)).tolist() == labels.file_ids(_every(labels)).tolist()
    model = description.model(eager=eager)
    path = tmp_path / FILE
    write_checkpoint(path, Checkpoint(description, model.state_dict(), 3, {"a": [1]}))
    for given_path in (path, tmp_path):
        found = read_checkpoint(given_path)
        assert (found.description, found.step, found.training) == (description, 3, {"a": [1]})
        assert (found.description.labels.names, found.description.labels.colours) == (labels.names, labels.colours)
        other = found.model(eager=not eager)
        assert isinstance(other, SegmentationModel)
        assert not other.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


def _every(labels: LabelSet) -> Any:
    return torch.arange(labels.count, dtype=torch.uint8)[None].numpy()


def test_it_says_what_its_cell_is_and_of_which_space() -> None:
    top1 = read_cell("top1")
    description = ModelDescription.of(top1, "top1", "mobilenet-v2", VOC, (513, 513), preprocessing=Preprocessing())
    assert description.read_cell() == top1
    assert description.space is not None
    assert description.id is not None
    space = parse_space_text(description.space)
    assert read_cell(description.id, space=space) == top1
    pspnet = ModelDescription.of(
        read_cell("pspnet"), "pspnet", "mobilenet-v2", VOC, (513, 513), preprocessing=Preprocessing()
    )
    assert (pspnet.space, pspnet.id) == (None, None)  # its grids are not the paper's
    with pytest.raises(DpcError, match="DPC055"):
        described(space=read_space("aspp_subsets"))


def parse_space_text(text: str) -> Any:
    from dpcdsl import parse

    return parse(text).definitions["dpc"].space()


# What is refused


class Harm:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("make", ["pickle", "torch", "text", "empty", "header", "cut", "folder"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, good: Path, make: str) -> None:
    path, mark = tmp_path / "x.safetensors", tmp_path / "mark"
    if make == "pickle":
        path.write_bytes(pickle.dumps({"dpcdsl": Harm(mark)}))
    elif make == "torch":
        torch.save({"state_dict": Harm(mark)}, path)
    elif make == "text":
        path.write_text("a checkpoint")
    elif make == "empty":
        path.write_bytes(b"")
    elif make == "header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    elif make == "cut":
        path.write_bytes(good.read_bytes()[:-100])
    elif make == "folder":
        path.mkdir()
    with pytest.raises(
        DpcError, match=r"x\.safetensors.*: error: the checkpoint cannot be used: .* \[DPC095\]\n    help"
    ):
        read_checkpoint(path)
    assert not mark.exists()


def altered(good: Path, path: Path, alter: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    with safe_open(good, "pt") as file:
        facts = json.loads(file.metadata()["dpcdsl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    alter(facts, tensors)
    save_file(tensors, path, {"dpcdsl": json.dumps(facts)})
    return path


DESCRIPTIONS: dict[str, Any] = {
    "backbone of a hub": {"backbone": "hf-hub:somebody/something"},
    "backbone of a file": {"backbone": "local-dir:/etc"},
    "backbone unknown": {"backbone": "resnet5000"},
    "cell of a file": {"cell": 'import a from "/etc/passwd"\n(F, conv1x1, Y1)'},
    "cell broken": {"cell": "(F, conv1x1, Y1"},
    "cell of another shape": {"cell": "(F, conv1x1, Y1)"},
    "cell that is huge": {
        "cell": f"filters {MAX_FILTERS}\n" + "(any, conv1x1, _)\n".replace("any", "F") * MAX_BRANCHES
    },
    "no cell": {"cell": None},
    "a classifier's head": {"head": "classifier"},
    "another version": {"version": 2},
    "an unknown field": {"command": "rm"},
    "no classes": {"classes": []},
    "a class that writes on the terminal": {"classes": [{"name": "\x1b[2Jroad", "colour": [0, 0, 0], "id": 0}] * 1},
    "a class twice": {"classes": [{"name": "road", "colour": [0, 0, 0], "id": 0}] * 2},
    "a colour that is none": {"classes": [{"name": "road", "colour": [0, 0, 256], "id": 0}]},
    "other classes": {"classes": [{"name": "road", "colour": [0, 0, 0], "id": 0}]},
    "no scale": {"preprocessing": {"mean": [0, 0, 0], "std": [0, 0, 0]}},
    "no number": {"preprocessing": {"mean": [float("nan")] * 3, "std": [1, 1, 1]}},
    "no crop": {"crop": [0, 33]},
    "another stride": {"output_stride": 4},
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_is_wrong_is_refused(tmp_path: Path, good: Path, name: str) -> None:
    path = altered(good, tmp_path / "x.safetensors", lambda facts, _: facts["description"].update(DESCRIPTIONS[name]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DpcError) as error:
        read_checkpoint(path)
    assert error.value.codes == ("DPC095",)
    assert str(error.value).isprintable() or "\n" in str(error.value)
    assert "\x1b" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB, of a model of many GB


def test_no_file_that_a_description_names_is_read(tmp_path: Path, good: Path) -> None:
    (tmp_path / "a.dpc").write_text(f"cell a {{\n{CELL}}}\n")
    text = f'import a from "{tmp_path / "a.dpc"}"\ncell b = a\n'
    path = altered(good, tmp_path / "x.safetensors", lambda facts, _: facts["description"].update(cell=text))
    with pytest.raises(DpcError, match="it has no cell, or one that is imported"):
        read_checkpoint(path)


def _first(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if name.endswith("logits.weight") and name.startswith("model."))


TENSORS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], object]] = {
    "a weight missing": lambda _, tensors: tensors.pop(_first(tensors)),
    "a weight too many": lambda _, tensors: tensors.update({"model.other": torch.zeros(1)}),
    "a weight of another shape": lambda _, tensors: tensors.update({_first(tensors): torch.zeros(3, 3)}),
    "a weight of another type": lambda _, tensors: tensors.update({_first(tensors): tensors[_first(tensors)].half()}),
    "momentum of another shape": lambda _, tensors: tensors.update({"momentum.head.logits.bias": torch.zeros(3)}),
    "momentum of nothing": lambda _, tensors: tensors.update({"momentum.other": torch.zeros(3)}),
    "steps that are none": lambda facts, _: facts.update(step=-1),
    "steps that are words": lambda facts, _: facts.update(step="many"),
    "no training": lambda facts, _: facts.update(training=[]),
    "no description": lambda facts, _: facts.pop("description"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, good: Path, name: str) -> None:
    path = altered(good, tmp_path / "x.safetensors", lambda facts, tensors: [TENSORS[name](facts, tensors), None][1])
    with pytest.raises(DpcError) as error:
        read_checkpoint(path)
    assert error.value.codes == ("DPC095",)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damage_is_told_or_does_not_matter(good: Path, data: st.DataObject) -> None:
    content = bytearray(good.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    path = good.with_name("damaged.safetensors")
    path.write_bytes(content)
    codes: tuple[str, ...] = ()
    try:
        read_checkpoint(path)
    except DpcError as error:
        codes = error.codes
    assert codes in ((), ("DPC095",))
