"""The implementations of the passes that are tested: the CPU's, the GPU's, and the GPU's kernels run by the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpcdsl_torch import build, launch, native
from dpcdsl_torch.build import KERNELS, Absent
from dpcdsl_torch.cache import content, obtain, seal
from dpcdsl_torch.cuda import CudaPrimitives
from dpcdsl_torch.launch import Kernels
from dpcdsl_torch.nvrtc import SOURCES, Kernel
from dpcdsl_torch.primitives import Primitives

__all__ = ["DEVICES", "NAMES", "Subject", "emulated", "fp32_multiplied", "moved", "subject"]

#: What whole modules are tested on.
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

#: ``emulated`` is the CUDA kernels on the CPU.
NAMES = ("native", "emulated", "cuda") if torch.cuda.is_available() else ("native", "emulated")

MULTIPROCESSORS = 6  # few: so that small maps are shared in all the ways that large ones are on a GPU


@dataclass(frozen=True)
class Subject:
    """Primitives to test, where their tensors are, and how many examples are worth the time."""

    primitives: Primitives
    device: str
    dtypes: tuple[torch.dtype, ...]
    examples: int

    def cast(self, value: Any) -> Any:
        """The same on the device: a range of channels stays a range of a map that is there too."""
        if isinstance(value, tuple):
            parts = map(self.cast, value)
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return moved(value, self.device) if isinstance(value, Tensor) else value


def moved(tensor: Tensor, device: str) -> Tensor:
    """To the device, lying there as it lies here: as the same part of a larger tensor."""
    if device == "cpu":
        return tensor
    whole = tensor if tensor._base is None else tensor._base
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@contextmanager
def fp32_multiplied(how: str) -> Iterator[None]:
    """``"ieee"``: in full; ``"tf32"``: by tensor cores, where convolutions are on a GPU."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = how
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def subject(name: str, scratch: Path, compiler: str) -> Subject:
    """One of :data:`NAMES`. scratch: a folder that the test processes share."""
    if name == "native":
        found = native.primitives()
        if found is None:
            pytest.skip(str(build.load()))
        return Subject(found, "cpu", (torch.float32, torch.bfloat16), 100)
    if name == "emulated":
        return Subject(emulated(scratch, compiler), "cpu", (torch.float32, torch.bfloat16, torch.float16), 50)
    kernels = launch.load(torch.device("cuda", 0))
    assert not isinstance(kernels, Absent), kernels
    return Subject(CudaPrimitives(kernels), "cuda:0", (torch.float32, torch.bfloat16, torch.float16), 100)


def emulated(scratch: Path, compiler: str) -> CudaPrimitives:
    """The CUDA kernels compiled for the CPU (cuda_on_cpu.h), behind the interface of the CUDA driver."""
    here = Path(__file__).parent / "torch"
    sources = [*KERNELS.glob("*.h"), *SOURCES.iterdir(), *here.glob("cuda_*")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:16]

    def make(folder: Path) -> Path:
        # Fortified, longjmp takes the stack of another thread of the kernel for a mistake. An access that is not
        # aligned, which a GPU refuses, kills.
        flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas")
        flags += ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
        library = folder / "library.so"
        command = [compiler, *flags, f"-I{KERNELS}", f"-I{SOURCES}", str(here / "cuda_kernels.cpp"), "-o", str(library)]
        subprocess.run(command, check=True, timeout=300)
        seal(library, library.read_bytes())
        return library

    path = scratch / f"emulated-{key}.so"
    obtain(path, make, 300)
    assert content(path) is not None
    library = ctypes.CDLL(str(path))
    library.kernel_name.restype = ctypes.c_char_p
    kernels = []
    for i in count():
        name = library.kernel_name(i)
        if name is None:
            return CudaPrimitives(Kernels(library, {b"": tuple(kernels)}, MULTIPROCESSORS, lambda: 0))
        kernels.append(Kernel(name.decode(), 1, 0, 0, 0))
    raise AssertionError
