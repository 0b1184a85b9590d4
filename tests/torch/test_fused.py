"""The compiler `torch`: the files of a compiled cell, and what it says to what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from support import Dpc

from dpcdsl import Cell, DpcError, compile, read_cell
from dpcdsl_torch import CompiledCell, compile_cell, fused


def compiled(cell: Cell) -> CompiledCell:
    """With statistics that are not the first ones."""
    module = compile_cell(cell, 6, projection=10)
    for _ in range(3):
        module(torch.randn(2, 6, 9, 9))
    return module.eval()


def from_source(path: Path) -> torch.nn.Module:
    names: dict[str, object] = {"__name__": "made"}
    exec(path.read_text(), names)
    made = names["DensePredictionCell"]
    assert isinstance(made, type)
    module = made()
    assert isinstance(module, torch.nn.Module)
    return module


@pytest.mark.parametrize("fixture", ["top1", "mixed"])
def test_files_compute_what_the_module_computes(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    module = compiled(request.getfixturevalue(fixture))
    x = torch.randn(3, 6, 9, 9)
    with torch.no_grad():
        expected = module(x)
    for suffix in fused.suffixes:
        fused.write(module, tmp_path / f"cell{suffix}", size=(9, 9))

    source = from_source(tmp_path / "cell.py")
    source.load_state_dict(module.state_dict())
    torch.testing.assert_close(source.eval()(x), expected, rtol=1e-5, atol=1e-5)
    program = torch.export.load(str(tmp_path / "cell.pt2")).module()
    torch.testing.assert_close(program(x), expected, rtol=1e-5, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "cell.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(np.asarray(session.run(["output"], {"features": x.numpy()})[0]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_writing_leaves_the_module_alone(top1: Cell, tmp_path: Path) -> None:
    module = compiled(top1).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fused.write(module, tmp_path / "cell.pt2", size=(9, 9))
    assert module.training
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_an_eager_twin_is_the_same(mixed: Cell) -> None:
    module = compiled(mixed)
    twin = module.eager()
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(twin(x), module(x), rtol=1e-5, atol=1e-5)
    assert not twin.training


def test_source_from_the_command_line(dpc: Dpc) -> None:
    done = dpc("compile", "top1", "-o", "cell.py", "--features", "8", "--projection", "16")
    assert (done.code, done.err) == (0, "")
    module = from_source(Path("cell.py"))
    module.load_state_dict(compile_cell("top1", 8, projection=16).state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"in_channels": 8, "projektion": 4},
            "the compiler `torch` has no option `projektion`; did you mean `projection`",
        ),
        ({"in_channels": 8, "backend": "cuda"}, "backend must be"),
        ({"in_channels": 8, "without": ["grup"]}, "no fusion `grup`; did you mean `group`"),
        ({"in_channels": 0}, "in_channels must be a whole number from 1 up"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], says: str) -> None:
    with pytest.raises(DpcError, match=says):
        compile("top1", **options)  # type: ignore[arg-type]


def test_a_wrong_suffix_is_told(tmp_path: Path) -> None:
    with pytest.raises(DpcError, match=r"`torch` does not write cell.tflite"):
        fused.write(read_cell("top1"), tmp_path / "cell.tflite", in_channels=8)
    assert list(tmp_path.iterdir()) == []
