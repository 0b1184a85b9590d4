"""Builds the wheel and uses it in an empty environment, away from the checkout: run by `make wheel`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

USE = """
import pathlib, sys, dpcdsl
assert ".venv" not in dpcdsl.__file__ and "smoke" in dpcdsl.__file__, dpcdsl.__file__
top1 = dpcdsl.read_cell("top1")
assert dpcdsl.parse(dpcdsl.format_cell(top1, "top1")).cell() == top1
assert dpcdsl.cost(top1).params == 356_160
assert "<svg" in dpcdsl.draw(top1).svg()
assert dpcdsl.receptive_field(top1).branch("Y1").extent == (3, 13)
try:
    dpcdsl.compile("top1", in_channels=8)
except dpcdsl.DpcError as error:
    assert "pip install 'dpcdsl[torch]'" in str(error), error
else:
    raise AssertionError("torch is not installed here")
print("the wheel works")
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="smoke") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        assert wheel.name.endswith("-py3-none-any.whl"), wheel.name
        names = set(zipfile.ZipFile(wheel).namelist())
        wanted = {"dpcdsl/grammars/dpc.lark", "dpcdsl/zoo/published.dpc", "dpcdsl/py.typed", "dpcdsl_torch/py.typed"}
        parts = (
            "page.html",
            "page.css",
            "page.js",
            "theme.js",
            *(f"echarts/{part}" for part in ("echarts.common.min.js", "LICENSE", "LICENSE-d3", "NOTICE")),
        )
        wanted |= {f"dpcdsl/search/reporting/{part}" for part in parts}
        assert wanted <= names, wanted - names
        tops = {entry.split("/")[0] for entry in names if ".dist-info" not in entry}
        assert tops == {"dpcdsl", "dpcdsl_torch"}, tops

        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
        print(run(python, "-c", USE, cwd=folder), end="")
        dpc = folder / "venv" / "bin" / "dpc"
        assert "ok" in run(dpc, "check", ROOT / "examples" / "cells.dpc", cwd=folder)
        run(dpc, "draw", "top1", "-o", "top1.png", cwd=folder)
        run(dpc, "doctor", cwd=folder)
    print(f"{wheel.name}: good")


if __name__ == "__main__":
    main()
