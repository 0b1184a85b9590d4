"""CUDA C++ compiled at run time by the NVRTC that torch's wheels bring: no nvcc, no driver and no GPU is needed for it.

The sources are ``kernels/cuda/*.cu``. :func:`compile_source` makes the cubin of one of them for an architecture, or
finds it in the cache (:mod:`dpcdsl_torch.cache`) under the hash of all that decides what it is: the sources, the
options, the version of NVRTC and the architecture. With it comes what each of its kernels takes of a multiprocessor.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dpcdsl.errors import DpcError
from dpcdsl_torch.build import KERNELS
from dpcdsl_torch.cache import content, obtain, seal, temporary, why
from dpcdsl_torch.cache import folder as cache_folder

__all__ = ["SOURCES", "Cubin", "Kernel", "architectures", "compile_source"]

#: The folder of the sources.
SOURCES = KERNELS / "cuda"

_OPTIONS = ("--std=c++17", "--extra-device-vectorization", "--ptxas-options=-v")
# NVRTC brings no standard library; this is what the sources take of it.
_CSTDINT = b"""
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned uint32_t;
typedef unsigned long uint64_t;
"""
_LIMIT = 120.0  # seconds that another process may take to compile, before this one does it too


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes, as ptxas reports it. ``spilled``, ``stack`` and ``shared`` (static) are in bytes."""

    name: str
    registers: int
    spilled: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    """A compiled source: the image that ``cuModuleLoadData`` takes, and its kernels. ``built`` says that it is new."""

    image: bytes
    architecture: str
    kernels: tuple[Kernel, ...]
    built: bool


def compile_source(name: str, architecture: str, cache: Path | None = None) -> Cubin:
    """The source ``name`` (``depthwise.cu``) for ``architecture`` (``sm_90``), from ``cache`` or compiled into it.

    A cache that cannot be used is not; the source is then compiled. Raises :class:`DpcError` (DPC080) where there is
    no NVRTC, or it does not compile the source: for an architecture that it does not know.
    """
    nvrtc, include = _nvrtc()
    names = sorted(path for folder in (KERNELS, SOURCES) for path in folder.iterdir() if path.suffix in (".h", ".cuh"))
    headers = [("cstdint", _CSTDINT), *((path.name, path.read_bytes()) for path in names)]
    source = (SOURCES / name).read_bytes()
    options = (f"--gpu-architecture={architecture}", *_OPTIONS)
    version = _checked(nvrtc, nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((name, source, headers, options, version)).encode()).hexdigest()[:32]

    def make(folder: Path) -> Path:
        image, report = _compile(nvrtc, name, source, headers, (*options, f"--include-path={include}"))
        kernels = json.dumps([asdict(kernel) for kernel in _kernels(report)])
        path = folder / "made.cubin"
        seal(path, image + f"\n{kernels}\n".encode())
        return path

    try:
        body, built = obtain((cache or cache_folder()) / f"{key}.cubin", make, _LIMIT)
    except (OSError, RuntimeError) as error:  # a RuntimeError: no home folder
        try:
            with temporary("dpcdsl-", None) as folder:
                body, built = content(make(folder)) or b"", True
        except OSError as other:
            raise DpcError.of(
                "DPC080",
                f"there is no place for a compiled CUDA kernel: {why(error)}; {why(other)}",
                hint="set DPCDSL_CACHE to a folder of your own with some megabytes left",
            ) from None
    image, _, kernels = body.rstrip(b"\n").rpartition(b"\n")
    return Cubin(image, architecture, tuple(Kernel(**kernel) for kernel in json.loads(kernels)), built)


def architectures() -> tuple[int, ...]:
    """Those that NVRTC compiles for: 90 is sm_90. Raises :class:`DpcError` (DPC080) where there is no NVRTC."""
    nvrtc, _ = _nvrtc()
    count = _checked(nvrtc, nvrtc.nvrtcGetNumSupportedArchs())
    return tuple(_checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())[:count])


def _nvrtc() -> tuple[ModuleType, Path]:
    """The bindings, and the folder of CUDA's own headers (``cuda_bf16.h``)."""
    remedy = "install a torch with CUDA, whose wheels bring NVRTC"
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # a RuntimeError: the library behind the bindings is not there
        raise DpcError.of("DPC080", f"there is no NVRTC to compile CUDA kernels with: {error}", hint=remedy) from None
    major = (torch.version.cuda or "").partition(".")[0]
    try:
        import nvidia

        folders = [Path(folder) for folder in nvidia.__path__]
    except ImportError:
        folders = []
    for folder in folders:
        for include in (folder / f"cu{major}" / "include", folder / "cuda_runtime" / "include"):
            if (include / "cuda_bf16.h").is_file():
                return nvrtc, include
    raise DpcError.of("DPC080", "the headers of the CUDA runtime (cuda_bf16.h) are not there", hint=remedy)


def _checked(nvrtc: Any, returned: tuple[Any, ...]) -> Any:
    """What a call returned after its status; the status is one of success, or a mistake of ours."""
    status, *rest = returned
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    return rest[0] if len(rest) == 1 else tuple(rest)


def _compile(
    nvrtc: Any, name: str, source: bytes, headers: list[tuple[str, bytes]], options: tuple[str, ...]
) -> tuple[bytes, str]:
    """The image and the log."""
    texts, names = [text for _, text in headers], [header.encode() for header, _ in headers]
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source, name.encode(), len(headers), texts, names))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = b" " * _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
        report = log.rstrip(b"\0").decode("utf-8", "replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            mistakes = [line for line in report.splitlines() if "error" in line] or report.splitlines()
            raise DpcError.of(
                "DPC080",
                f"NVRTC does not compile {name}: {' '.join(' '.join(mistakes[:3]).split()) or status}",
                hint="install a newer torch, whose NVRTC knows this GPU, or one that is older than the GPU's driver",
            )
        image = b" " * _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, image))
        return image, report
    finally:
        nvrtc.nvrtcDestroyProgram(program)


_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")


def _kernels(report: str) -> tuple[Kernel, ...]:
    found = []
    for match in _FUNCTION.finditer(report):
        shared = _SHARED.search(match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        found.append(
            Kernel(
                match["name"], int(match["registers"]), spilled, int(match["stack"]), int(shared[1]) if shared else 0
            )
        )
    return tuple(found)
