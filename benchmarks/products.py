"""The kernels' own matrix product beside oneDNN's ``brgemm`` and a 1x1 ``conv2d``."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)

from dpcdsl_torch.build import FLAGS, KERNELS

ROUNDS = 15
CALLS = 20
FILTERS = 256
POSITIONS = 65 * 129
SHAPES = {"a block's product": (96, 256), "deeper": (96, 320)}
TRANSPOSED = {"a weight's gradient": (256, 96), "of more channels": (320, 96)}


def _library(folder: Path) -> ctypes.CDLL:
    compiled = folder / "products.so"
    torch_libraries = Path(torch.__file__).parent / "lib"
    subprocess.run(
        [
            "g++",
            *FLAGS,
            "-fvisibility=default",
            "-shared",
            f"-I{KERNELS}",
            str(Path(__file__).with_suffix(".cpp")),
            "-o",
            str(compiled),
            f"-L{torch_libraries}",
            "-ltorch_cpu",
            f"-Wl,-rpath,{torch_libraries}",
        ],
        check=True,
    )
    library = ctypes.CDLL(str(compiled))
    for name in ("ours", "brgemm", "ours_transposed", "brgemm_transposed"):
        function = getattr(library, name)
        function.argtypes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int)
        function.restype = ctypes.c_double
    return library


def measure() -> list[list[str]]:
    torch.set_num_threads(2)
    rows = [["product", "size", "ours, GMAC/s", "`brgemm`", "1x1 `conv2d`", "ours / `brgemm`"]]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        library = _library(Path(folder))
        for suffix, shapes in (("", SHAPES), ("_transposed", TRANSPOSED)):
            for name, (m, k) in shapes.items():
                ours, brgemm, conv = [], [], []
                x = torch.randn(1, k, 65, 129).to(memory_format=torch.channels_last)
                weight = torch.randn(FILTERS, k, 1, 1).to(memory_format=torch.channels_last)
                for _ in range(ROUNDS):
                    # Each of two threads has a block of its own.
                    work = 2 * m * k * FILTERS / 1e9
                    ours.append(work / getattr(library, f"ours{suffix}")(m, k, 2, CALLS))
                    brgemm.append(work / getattr(library, f"brgemm{suffix}")(m, k, 2, CALLS))
                    began = time.perf_counter()
                    F.conv2d(x, weight)
                    conv.append(POSITIONS * k * FILTERS / 1e9 / (time.perf_counter() - began))
                best = [median(values) for values in (ours, brgemm, conv)]
                rows.append(
                    [
                        name,
                        f"{m}x{k}x{FILTERS}",
                        f"{best[0]:.0f}",
                        f"{best[1]:.0f}",
                        f"{best[2]:.0f}" if not suffix else "",
                        f"{best[0] / best[1]:.2f}",
                    ]
                )
    return rows
