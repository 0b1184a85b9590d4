"""Launches of the CUDA kernels by the CUDA driver. No toolkit is needed.

A GPU's kernels are compiled and loaded when the first cell runs on it (:func:`load`): that takes a minute once, and
then a moment in every process.
"""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from ctypes import c_float, c_int32, c_void_p
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpcdsl.errors import DpcError
from dpcdsl_torch import nvrtc
from dpcdsl_torch.build import Absent
from dpcdsl_torch.nvrtc import Kernel

__all__ = ["Kernels", "architecture_for", "forget", "load", "require", "status", "warn_once"]

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MOST_SHARED = 96 * 1024  # bytes that a block may have on every GPU, if they are asked for


class Kernels:
    """The kernels of one device, loaded.

    driver: libcuda. cubins: images, with the kernels in each. multiprocessors: how many the device has.
    stream: the handle of the stream that torch uses now. guard: makes the device the current one.
    """

    def __init__(
        self,
        driver: ctypes.CDLL,
        cubins: Mapping[bytes, tuple[Kernel, ...]],
        multiprocessors: int,
        stream: Callable[[], int],
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.multiprocessors = multiprocessors
        self._driver, self._stream, self._guard = driver, stream, guard
        self._functions: dict[str, c_void_p] = {}
        self._context = c_void_p()  # torch's own, of the device
        with guard():
            self._call("cuCtxGetCurrent", ctypes.byref(self._context))
            for image, kernels in cubins.items():
                module = c_void_p()
                self._call("cuModuleLoadData", ctypes.byref(module), image)
                for kernel in kernels:
                    function = self._functions[kernel.name] = c_void_p()
                    self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.name.encode())
                    if kernel.shared == 0:  # else it has all it needs
                        self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, _MOST_SHARED)
                    if hasattr(driver, "cuFuncLoad"):  # now, and not at its first launch, which may be in a capture
                        self._call("cuFuncLoad", function)

    def launch(
        self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], *arguments: Any, shared: int = 0
    ) -> None:
        """Run a kernel on torch's stream. shared: bytes of dynamic shared memory.

        arguments: what ctypes has as it is; an int as int32, a float as fp32, a tensor or None as a pointer. The caller
        may drop its tensors at once: their memory goes to what is later in the same stream.
        """
        given = tuple(map(_plain, arguments))
        pointers = (c_void_p * len(given))(*map(ctypes.addressof, given))
        with self._guard():
            stream = c_void_p(self._stream())
            self._call("cuCtxSetCurrent", self._context)  # a thread may be new, and its guard had nothing to do
            self._call("cuLaunchKernel", self._functions[name], *grid, *block, shared, stream, pointers, None)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"CUDA error {status} in {name}: {(text.value or b'unknown').decode()}")


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return c_void_p(argument.data_ptr())
    if argument is None:
        return c_void_p(None)
    if isinstance(argument, int):
        return c_int32(argument)
    return c_float(argument) if isinstance(argument, float) else argument


def architecture_for(capability: tuple[int, int], known: tuple[int, ...]) -> str | None:
    """The newest architecture of those that NVRTC knows (90 is sm_90) whose cubins run on a GPU of ``capability``.

    A cubin runs on later minor versions of its major version, and nowhere else.
    """
    major, minor = capability
    fitting = [number for number in known if number // 10 == major and number % 10 <= minor]
    return f"sm_{max(fitting)}" if fitting else None


class _Process:
    """What this process has found, by device, and whether it has warned."""

    lock = threading.Lock()
    outcomes: ClassVar[dict[int, Kernels | Absent]] = {}
    warned = False


def load(device: torch.device) -> Kernels | Absent:
    """The kernels of a GPU, compiled and loaded at the first call, or why they cannot be.

    Raises :class:`DpcError` (DPC080) while a CUDA graph is captured, if they are not loaded: it allows no loading.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with _Process.lock:
        if index not in _Process.outcomes:
            if torch.cuda.is_current_stream_capturing():
                raise DpcError.of(
                    "DPC080",
                    "the CUDA kernels are not loaded yet, and cannot be while a graph is captured",
                    hint="run the cell once before the capture",
                )
            _Process.outcomes[index] = _loaded(index)
        return _Process.outcomes[index]


def _loaded(index: int) -> Kernels | Absent:
    if os.environ.get("DPCDSL_NATIVE") == "0":
        return Absent("DPCDSL_NATIVE=0 turns them off", "unset it")
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:  # the first whose tensor cores know bf16, and that copies while it computes
        return Absent(
            f"they need a GPU of compute capability 8.0 or more, and this one has {major}.{minor}", "none for this GPU"
        )
    try:
        architecture = architecture_for((major, minor), nvrtc.architectures())
        if architecture is None:
            return Absent(f"NVRTC knows no GPU of compute capability {major}.{minor}", "install a newer torch")
        cubins = {}
        for path in sorted(nvrtc.SOURCES.glob("*.cu")):
            compiled = nvrtc.compile_source(path.name, architecture)
            cubins[compiled.image] = compiled.kernels
        torch.empty(1, device=torch.device("cuda", index))  # from here on there is a context
        return Kernels(
            ctypes.CDLL("libcuda.so.1"),
            cubins,
            torch.cuda.get_device_properties(index).multi_processor_count,
            lambda: torch.cuda.current_stream(index).cuda_stream,
            lambda: torch.cuda.device(index),
        )
    except DpcError as error:
        (diagnostic,) = error.diagnostics
        return Absent(diagnostic.message, diagnostic.hint or "see `dpc doctor`")
    except (OSError, RuntimeError) as error:  # no driver, or one that does not take the cubins
        return Absent(" ".join(str(error).split()), "install a driver that is as new as torch's CUDA")


def require(device: torch.device) -> Kernels:
    """The kernels, for who will have nothing else. Raises :class:`DpcError` DPC080."""
    outcome = load(device)
    if isinstance(outcome, Absent):
        raise DpcError.of("DPC080", f"the CUDA kernels cannot be used: {outcome.reason}", hint=outcome.remedy)
    return outcome


def warn_once(absent: Absent) -> None:
    """Warn of what the want of kernels means, once a process."""
    with _Process.lock:
        silent, _Process.warned = _Process.warned, True
    if not silent:
        warnings.warn(
            f"CUDA kernels are not used: {absent.reason}; running on ATen, slower, same results; "
            f"remedy: {absent.remedy}",
            UserWarning,
            stacklevel=2,
        )


def status() -> dict[str, str]:
    """One fact for ``dpc doctor``. It compiles the kernels of the first GPU where they are not compiled yet."""
    if not torch.cuda.is_available():
        try:
            newest = max(nvrtc.architectures())
        except DpcError as error:
            return {"CUDA kernels": f"not active: no GPU, and {error.diagnostics[0].message}"}
        return {"CUDA kernels": f"not active: no GPU; NVRTC could compile them for GPUs up to sm_{newest}"}
    outcome = load(torch.device("cuda", 0))
    if isinstance(outcome, Absent):
        return {"CUDA kernels": f"not active: {outcome.reason}; {outcome.remedy}"}
    return {"CUDA kernels": "active"}


def forget() -> None:
    """Let the next :func:`load` look again, and :func:`warn_once` warn again."""
    with _Process.lock:
        _Process.outcomes.clear()
        _Process.warned = False
