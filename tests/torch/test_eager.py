"""The eager compiler's files: what they compute, for which maps, and that a failure leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dpcdsl import Cell, DpcError, compile, parse_cell, read_cell
from dpcdsl.compilers import compiler, targets
from dpcdsl.layers import Pooling
from dpcdsl_torch import CompiledCell, EagerCell, eager

OPEN = parse_cell("filters 4 (F, sepconv3x3 rate 1x2, Y1) (Y1, avgpool grid 1x1, Y2) (Y2, conv1x1, Y3)")
MIXED = parse_cell(
    "filters 4 (F, sepconv3x3 rate 1x2, Y1) (Y1, avgpool grid 1x1, Y2) (F, avgpool grid 2x3, Y3) (Y2, conv1x1, Y4)"
)


def run_pt2(path: Path, features: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = torch.export.load(str(path)).module()(features)
    return output


def run_onnx(path: Path, features: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(["output"], {"features": features.numpy()})[0]))


RUN = {".pt2": run_pt2, ".onnx": run_onnx}


def warmed(module: EagerCell) -> EagerCell:
    """With running statistics that are not the first ones, so that evaluation mode shows."""
    module.train()
    for _ in range(3):
        module(torch.randn(2, module.in_channels, 9, 9))
    return module


@pytest.mark.parametrize("suffix", eager.suffixes)
@pytest.mark.parametrize("options", [{}, {"projection": 3}], ids=["concatenation", "projection"])
def test_a_file_computes_what_the_module_does_at_other_sizes(
    suffix: str, options: dict[str, int], tmp_path: Path
) -> None:
    cell = OPEN if suffix == ".onnx" else MIXED
    module = warmed(eager.compile(cell, in_channels=5, batch_norm_momentum=0.3, **options))
    eager.write(module, tmp_path / f"cell{suffix}", size=(9, 11))
    assert module.training
    module.eval()
    for shape in [(2, 5, 9, 11), (1, 5, 7, 6), (3, 5, 16, 4)]:
        features = torch.randn(*shape)
        with torch.no_grad():
            expected = module(features)
        torch.testing.assert_close(RUN[suffix](tmp_path / f"cell{suffix}", features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", eager.suffixes)
@pytest.mark.parametrize("pooling", ["paper", "sliding"])
def test_one_size_of_map(suffix: str, pooling: Pooling, tmp_path: Path) -> None:
    module = warmed(eager.compile(MIXED, in_channels=5, pooling=pooling, batch_norm_momentum=0.3)).eval()
    eager.write(module, tmp_path / f"cell{suffix}", size=(9, 11))
    features = torch.randn(3, 5, 9, 11)
    with torch.no_grad():
        expected = module(features)
    torch.testing.assert_close(RUN[suffix](tmp_path / f"cell{suffix}", features), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_cell_are_the_same_every_time(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    features = torch.randn(1, 5, 6, 6)
    outputs = []
    for name in ("a.pt2", "b.pt2"):
        eager.write(MIXED, tmp_path / name, in_channels=5, size=(6, 6))
        outputs.append(run_pt2(tmp_path / name, features))
    assert torch.equal(*outputs)
    torch.set_rng_state(state)
    assert torch.equal(features, torch.randn(1, 5, 6, 6)), "writing must not touch the caller's random state"


def test_a_wrong_suffix_is_told() -> None:
    with pytest.raises(DpcError, match=r"does not write cell\.tflite .*\n.*\.pt2 or \.onnx"):
        eager.write(MIXED, Path("cell.tflite"), in_channels=5)


def test_an_unwritable_place_is_told_and_an_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DpcError) as caught:
        eager.write(MIXED, tmp_path / "missing" / "cell.pt2", in_channels=5, size=(6, 6))
    assert caught.value.codes == ("DPC060",)
    old = tmp_path / "cell.pt2"
    old.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DpcError, match="no space left"):
        eager.write(MIXED, old, in_channels=5, size=(6, 6))
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def test_the_registry_reaches_the_modules() -> None:
    assert targets() == ("eager", "torch")
    assert isinstance(compile("top1", in_channels=8), CompiledCell)
    module = compile("top1", in_channels=8, target="eager")
    assert isinstance(module, EagerCell)
    assert module.cell == read_cell("top1")
    with pytest.raises(DpcError, match="did you mean `eager`"):
        compiler("eagre")


def test_cell_is_required() -> None:
    with pytest.raises(DpcError):
        eager.compile("top1", in_channels=8)  # type: ignore[arg-type]
    assert isinstance(MIXED, Cell)
