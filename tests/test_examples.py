"""Every example runs, from an empty folder, and leaves what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dpcdsl

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "demo.py": ["valid, and equal to `top1` of the zoo", "demo/top1.png", "356,160  0.36M", "(1, 256, 65, 129)"],
    "maxpool.py": ["maxpool window 3x5", "ran forward and backward: (2, 512, 33, 33)"],
    "search.py": [
        "2 of 418,414,128,120 cells, ASPP first",
        "2 of 2 cells, the best",
        "demo/search/cell0.png",
        "report.html: open it",
    ],
    "segment.py": ["step 2 of 2: loss", "mean", "demo/street/branches.png", "demo/street/val_00000_overlay.png"],
    "torchvision_aspp.py": [
        "ASPP: 15,535,104 parameters",
        "cell:   1,150,976 parameters",
        "every parameter of the model has a gradient",
    ],
}

#: Less than it does by default, where that takes minutes.
ARGUMENTS = {
    "search.py": ["--steps", "2", "--scenes", "4", "--trials", "2", "--workers", "1"],
    "segment.py": ["--steps", "2", "--scenes", "8"],
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, path, *ARGUMENTS.get(path.name, [])], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in SAYS[path.name]:
        assert text in done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.dpc")), ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    assert len(dpcdsl.load(path)) > 0


def test_the_published_json_is_the_top1_cell() -> None:
    assert dpcdsl.read_cell(EXAMPLES / "top1_deeplab.json") == dpcdsl.read_cell("top1")
