"""The kernels under sanitizers, and for every instruction set: ``fuzz_kernels.cpp``, which needs no torch.

Nothing here says how the library is built (``test_build.py``); the flags that decide what a number is are its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dpcdsl_torch.build import FLAGS, KERNELS

SOURCE = Path(__file__).parent / "fuzz_kernels.cpp"
KEPT = tuple(flag for flag in FLAGS if flag.startswith(("-std", "-fopenmp", "-fno-")))
MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
THREADS = ("-fsanitize=thread", "-g1")
NATIVE = "-march=native"

#: The paths of vector.h and gemm.h, beside the machine's own: four lanes, and eight with fused multiply-add.
SETS = ("-march=x86-64", "-march=x86-64-v3") if platform.machine() == "x86_64" else ()

Needs = Callable[[str], str]


def built(compiler: str, folder: Path, *flags: str) -> Path:
    program = folder / "fuzz_kernels"
    command = [compiler, *KEPT, "-O1", *flags, "-I", str(KERNELS), str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True, timeout=600)
    return program


def run(program: Path, seed: int, seconds: float, **environment: str) -> str:
    """What it prints. It stops at the first mistake, and says in which case."""
    done = subprocess.run(
        [str(program), str(seed), str(seconds)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60 + 20 * seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def can_run(flag: str) -> bool:
    return flag != "-march=x86-64-v3" or {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split())


@pytest.fixture
def compiler(needs: Needs) -> str:
    return needs("g++")


@pytest.mark.parametrize("flag", SETS)
def test_every_instruction_set(flag: str, compiler: str, tmp_path: Path) -> None:
    if not can_run(flag):
        pytest.skip(f"this processor does not run {flag}")
    lanes = 4 if flag == "-march=x86-64" else 8
    assert f"{lanes} lanes, pairs 0" in run(built(compiler, tmp_path, flag), seed=1, seconds=1)


def test_no_access_beside_memory_and_nothing_undefined(compiler: str, tmp_path: Path) -> None:
    run(built(compiler, tmp_path, NATIVE, *MEMORY), seed=2, seconds=2)


@pytest.mark.soak
@pytest.mark.parametrize("flag", [NATIVE, *SETS])
@pytest.mark.parametrize("optimisation", ["-O1", "-O3"])
def test_no_access_beside_memory_for_long(flag: str, optimisation: str, compiler: str, tmp_path: Path) -> None:
    if not can_run(flag):
        pytest.skip(f"this processor does not run {flag}")
    program = built(compiler, tmp_path, optimisation, flag, *MEMORY)
    for seed in range(100, 104):
        run(program, seed, seconds=30)


@pytest.mark.soak
def test_as_the_library_is_built(compiler: str, tmp_path: Path) -> None:
    program = built(compiler, tmp_path, *FLAGS)
    for seed in range(200, 204):
        run(program, seed, seconds=30)
