"""The kernels under sanitizers, and for every instruction set: ``fuzz_kernels.cpp``, which needs no torch.

Nothing here says how the library is built (``test_build.py``); the flags that decide what a number is are its own.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dpcdsl_torch.build import FLAGS, KERNELS

SOURCE = Path(__file__).parent / "fuzz_kernels.cpp"
KEPT = tuple(flag for flag in FLAGS if flag.startswith(("-std", "-fopenmp", "-fno-")))
STOP = "-fno-sanitize-recover=all"
MEMORY = ("-fsanitize=address", STOP, "-g1")
UNDEFINED = ("-fsanitize=undefined", STOP, "-g1")
BOTH = ("-fsanitize=address,undefined", STOP, "-g1")
#: Of OpenMP's threads the sanitizer knows nothing: the program has the kernels run in the standard library's.
RACES = ("-fsanitize=thread", "-g1", "-DDPC_STD_THREADS")
NATIVE = "-march=native"

#: The paths of vector.h and gemm.h, beside the machine's own: four lanes, and eight with fused multiply-add.
SETS = {"-march=x86-64": 4, "-march=x86-64-v3": 8} if platform.machine() == "x86_64" else {}

Needs = Callable[[str], str]


def built(compiler: str, folder: Path, *flags: str) -> Path:
    program = folder / "fuzz_kernels"
    command = [compiler, *KEPT, *flags, "-I", str(KERNELS), str(SOURCE), "-o", str(program)]
    subprocess.run(command, check=True, timeout=600)
    return program


def run(program: Path, seed: int, seconds: float) -> str:
    """What it prints. It stops at the first mistake, and says in which case."""
    done = subprocess.run(
        [str(program), str(seed), str(seconds)],
        capture_output=True,
        text=True,
        timeout=120 + 20 * seconds,  # a kernel that never ends is a mistake too
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture
def compiler(needs: Needs) -> str:
    found = needs("g++")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if "clang" in version.lower():
        pytest.skip("g++ is Clang, which has not the vectors that the kernels are written in")
    return found


def demand(flag: str) -> None:
    if flag == "-march=x86-64-v3" and not {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this processor does not run {flag}")


# Short: what takes time is the compiler, so each build does one thing, and -O0 is enough to look at memory.


@pytest.mark.parametrize(("flag", "more"), [("-march=x86-64", ("-O0", *UNDEFINED)), ("-march=x86-64-v3", ("-O1",))])
def test_every_instruction_set(flag: str, more: tuple[str, ...], compiler: str, tmp_path: Path) -> None:
    if flag not in SETS:
        pytest.skip("not an x86-64")
    demand(flag)
    assert f"{SETS[flag]} lanes, pairs 0" in run(built(compiler, tmp_path, flag, *more), seed=1, seconds=1)


def test_no_access_beside_memory(compiler: str, tmp_path: Path) -> None:
    run(built(compiler, tmp_path, "-O0", NATIVE, *MEMORY), seed=2, seconds=3)


# Long


@pytest.mark.soak
@pytest.mark.parametrize("flag", [NATIVE, *SETS])
@pytest.mark.parametrize("optimisation", ["-O1", "-O3"])
def test_no_access_beside_memory_for_long(flag: str, optimisation: str, compiler: str, tmp_path: Path) -> None:
    demand(flag)
    program = built(compiler, tmp_path, optimisation, flag, *BOTH)
    for seed in range(100, 104):
        run(program, seed, seconds=20)


@pytest.mark.soak
def test_no_races(compiler: str, tmp_path: Path) -> None:
    """And with fewer threads than were asked for, as OpenMP may give."""
    program = built(compiler, tmp_path, "-O1", NATIVE, *RACES)
    for seed in range(200, 204):
        run(program, seed, seconds=20)


@pytest.mark.soak
def test_as_the_library_is_built(compiler: str, tmp_path: Path) -> None:
    program = built(compiler, tmp_path, *FLAGS)
    for seed in range(300, 304):
        run(program, seed, seconds=20)
