"""The native CPU kernels: compiled on first use, kept in a cache, loaded by ctypes.

The kernels are plain C++ with a C ABI in the folder ``kernels`` beside this module: one translation unit, ``cpu.cpp``,
and the ``*.h`` that it includes. :func:`load` finds or builds their library, once a process. Where that cannot be, it
says why and what to do (:class:`Absent`), and the same mathematics runs on ATen.

**The cache** is a folder (:mod:`dpcdsl_torch.cache`). A library's name is the hash of all that decides what it is
(:class:`Recipe`): there is one for each version of the kernels, of torch, of the compiler and kind of processor. A
cache that cannot be used (read-only, full, open to other users) is not: the library is then built in a temporary
folder, in every process.

**OpenMP** is torch's own. Two runtimes in a process are two pools of threads that fight for the same cores, so the
library is linked with the very libgomp that torch's wheel brings, which is in the process before the library is.

The environment: ``DPCDSL_CACHE``; ``CXX``, the compiler and arguments to it, else ``g++`` or ``c++``;
``DPCDSL_NATIVE=0``, to do without.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import torch  # before any library of ours: the OpenMP that it loads is the one that ours must find

from dpcdsl.errors import DpcError
from dpcdsl_torch.cache import content, obtain, seal, temporary, why
from dpcdsl_torch.cache import folder as cache_folder

__all__ = [
    "FLAGS",
    "KERNELS",
    "LINK",
    "Absent",
    "Native",
    "Recipe",
    "build",
    "forget",
    "load",
    "require",
    "status",
    "warn_once",
]

#: The folder of the kernels' sources.
KERNELS = Path(__file__).parent / "kernels"

_NATIVE = "-march=native"

#: How the kernels are compiled. Not -ffast-math: NaN and infinity mean in them what they mean in torch.
FLAGS = (
    "-std=c++17",
    "-O3",
    _NATIVE,
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
)

#: How they are linked: a symbol that no library has is a mistake now, not when a kernel runs.
LINK = ("-shared", "-Wl,-z,defs")

_LIMIT = 300.0  # seconds that the compiler may take

#: What of the processor decides which instructions it has; the other lines of /proc/cpuinfo change from day to day.
_PROCESSOR = {
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # ARM
}

_OTHER_COMPILER = "set CXX to another GCC, or DPCDSL_NATIVE=0 to do without native kernels"


@dataclass(frozen=True)
class Native:
    """The loaded library, and how it came to be.

    ``built`` says that this call compiled it rather than found it, ``seconds`` what that took, ``maker`` with what
    compiler and for what processor it was made. ``uncached`` says why it is not in the cache; the file at ``path`` is
    then gone already, and the next process compiles again.
    """

    library: ctypes.CDLL
    path: Path
    built: bool
    seconds: float
    maker: str
    uncached: str | None = None


@dataclass(frozen=True)
class Absent:
    """There are no native kernels: why, and what would bring them."""

    reason: str
    remedy: str


class _UnableError(Exception):
    """No library can be built, wherever it is put."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.absent = Absent(reason, remedy)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the library is.

    A compiler is known by the path, the size and the time of its file, and not by its ``--version``: no process
    is started to find a library that is there. What that overlooks, another compiler behind the same wrapper script,
    gives a library of the same meaning. The processor is known by its model and its flags, since ``-march=native``
    makes a library for this kind alone, and a home folder may be shared by machines of several kinds.
    """

    sources: tuple[tuple[str, bytes], ...]
    command: tuple[str, ...]
    programs: tuple[tuple[str, int, int], ...]
    flags: tuple[str, ...]
    openmp: Path | None
    torch_version: str
    processor: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, sources: Path, compiler: str | None = None, flags: tuple[str, ...] = FLAGS) -> Recipe:
        """The recipe for a folder of sources, here and now; ``compiler`` as ``CXX`` has it."""
        command = _command(compiler)
        processor = _processor()
        return cls(
            sources=_read_sources(sources),
            command=command,
            programs=tuple(_program(path) for path in filter(None, map(shutil.which, command))),
            # Where the processor is not known, two kinds would share a library: then one that all can run.
            flags=flags if processor else tuple(flag for flag in flags if flag != _NATIVE),
            openmp=_torch_openmp(),
            torch_version=torch.__version__,
            processor=processor,
        )

    @cached_property
    def key(self) -> str:
        openmp = self.openmp.name if self.openmp else None  # its name is what the library keeps of it
        parts = (self.sources, self.command, self.programs, self.flags, LINK, openmp)
        return hashlib.sha256(repr((*parts, self.torch_version, self.processor)).encode()).hexdigest()[:32]


def build(
    sources: Path,
    cache: Path | None = None,
    compiler: str | None = None,
    *,
    flags: tuple[str, ...] = FLAGS,
    limit: float = _LIMIT,
) -> Native | Absent:
    """The library of a folder of sources: found in the folder ``cache``, or compiled into it.

    ``cache`` and ``compiler`` are what the environment says where they are None; ``limit`` is how many seconds the
    compiler may take. Nothing about the environment raises.
    """
    start = time.monotonic()
    if sys.platform != "linux":
        return Absent(f"they are built on Linux only, and this is {sys.platform}", "none is needed to run on ATen")
    try:
        recipe = Recipe.of(sources, compiler, flags)
        try:
            return _cached(recipe, cache or cache_folder(), start, limit)
        except (OSError, RuntimeError) as error:  # a RuntimeError: no home folder
            uncached = why(error)
        try:
            return _private(recipe, start, limit, uncached)
        except OSError as error:
            remedy = "set DPCDSL_CACHE to a folder of your own with some megabytes left"
            raise _UnableError(f"there is no place for their library: {uncached}; {why(error)}", remedy) from None
    except _UnableError as error:
        return error.absent


# What goes into a recipe


def _read_sources(folder: Path) -> tuple[tuple[str, bytes], ...]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in (".cpp", ".h"))
        sources = tuple((name, (folder / name).read_bytes()) for name in names)
    except OSError as error:
        raise _UnableError(f"their sources cannot be read: {why(error)}", "install dpcdsl again") from None
    if "cpu.cpp" not in names:
        raise _UnableError(f"their sources are not in {folder}", "install dpcdsl again")
    return sources


def _command(compiler: str | None) -> tuple[str, ...]:
    """The compiler, its program found, and the arguments that come with it."""
    named = os.environ.get("CXX", "") if compiler is None else compiler
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise _UnableError(f"CXX={named} cannot be read: {error}", "set CXX to a compiler and its arguments") from None
    candidates = words[:1] or ["g++", "c++"]
    program = next(filter(None, map(shutil.which, candidates)), None)
    if program is None and words:
        raise _UnableError(f"CXX names {words[0]}, and there is no such program", "set CXX to a g++, or unset it")
    if program is None:
        raise _UnableError("there is no C++ compiler (g++, c++)", "install g++, or set CXX to one")
    return str(Path(program).absolute()), *words[1:]


def _program(path: str) -> tuple[str, int, int]:
    resolved = os.path.realpath(path)
    try:
        info = os.stat(resolved)  # noqa: PTH116  of a text that may be of any form
    except OSError:  # removed a moment ago; to run it will fail
        return resolved, 0, 0
    return resolved, info.st_size, info.st_mtime_ns


def _processor() -> tuple[tuple[str, str], ...]:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            first = takewhile(str.strip, file)  # a block of lines each; there may be hundreds, and all are alike
            lines = [line.partition(":") for line in first]
    except OSError:
        return ()
    return tuple((name.strip(), value.strip()) for name, _, value in lines if name.strip() in _PROCESSOR)


def _torch_openmp() -> Path | None:
    """The libgomp of torch's wheel (libgomp.so.1, libgomp-a34b3233.so.1); None where torch uses the system's."""
    return min((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), default=None)


# The cache


def _cached(recipe: Recipe, folder: Path, start: float, limit: float) -> Native:
    """The library in the cache. An OSError says that this cache cannot serve."""
    path = folder / f"{recipe.key}.so"
    body, built = obtain(path, lambda part: _compile(recipe, part, limit), limit)
    return Native(ctypes.CDLL(str(path)), path, built, time.monotonic() - start, _maker(body))


def _private(recipe: Recipe, start: float, limit: float, uncached: str) -> Native:
    """A library for this process alone. A loaded library outlives its file, and so nothing is left, come what may."""
    with temporary("dpcdsl-", None) as folder:
        path = _compile(recipe, folder, limit)
        library, body = ctypes.CDLL(str(path)), content(path)
    return Native(library, path, True, time.monotonic() - start, _maker(body or b""), uncached)


# The compiler


def _maker(body: bytes) -> str:
    """What made a library: its last line."""
    return body.rstrip(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")


def _compile(recipe: Recipe, folder: Path, limit: float) -> Path:
    """Compile into an empty folder: the sealed library."""
    version = _run([*recipe.command, "--version"], folder, limit)
    if "clang" in version.lower():
        reason = f"{recipe.command[0]} is Clang, which compiles OpenMP for another runtime than torch's, libgomp"
        raise _UnableError(reason, "set CXX to a g++")
    # The bytes that were hashed, whatever an editor does to the files meanwhile.
    for name, data in recipe.sources:
        (folder / name).write_bytes(data)
    source, compiled, library = (folder / name for name in ("cpu.cpp", "cpu.o", "cpu.so"))
    flags, cpu = recipe.flags, dict(recipe.processor).get("model name", platform.machine())
    try:
        _run([*recipe.command, *flags, "-c", str(source), "-o", str(compiled)], folder, limit)
    except _UnableError as error:
        if _NATIVE not in flags or "-march" not in error.absent.reason:
            raise
        flags, cpu = tuple(flag for flag in flags if flag != _NATIVE), f"any {platform.machine()}"
        _run([*recipe.command, *flags, "-c", str(source), "-o", str(compiled)], folder, limit)
    # A step of its own: told -fopenmp, the linker would add the compiler's libgomp to torch's.
    openmp = str(recipe.openmp) if recipe.openmp else "-fopenmp"
    _run([*recipe.command, str(compiled), openmp, *LINK, "-o", str(library)], folder, limit)
    if not library.is_file():
        raise _UnableError(f"{recipe.command[0]} compiled nothing", _OTHER_COMPILER)
    maker = f"{_one_line(version.splitlines()[:1], 100)} for {cpu}"
    seal(library, library.read_bytes() + f"\n{maker}\n".encode())
    return library


def _run(arguments: list[str], folder: Path, limit: float) -> str:
    """What the compiler prints. Whatever it started ends with it; its own temporary files are in ``folder``."""
    environment = os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # to be ended as one: g++ is a driver, and the work is its children's
        )
    except OSError as error:
        raise _UnableError(f"the compiler cannot be started: {why(error)}", _OTHER_COMPILER) from None
    with process:
        try:
            printed, told = process.communicate(timeout=limit)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                reason = f"{arguments[0]} took more than {limit:g} s and was stopped"
                raise _UnableError(reason, _OTHER_COMPILER) from None
            raise
    if process.returncode == 0:
        return printed
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in told:
            raise OSError(number, os.strerror(number), str(folder))
    lines = [line for line in told.replace(f"{folder}{os.sep}", "").splitlines() if line.strip()]
    # Not the carets below them; the linker says what is wrong in a line that has no error in it.
    mistakes = [line for line in lines if "error:" in line or "undefined" in line] or lines
    ending = f"status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
    raise _UnableError(f"{arguments[0]} failed ({ending}): {_one_line(mistakes[-3:], 300)}", _OTHER_COMPILER)


def _one_line(lines: list[str], most: int) -> str:
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= most else "…" + text[-most:]


# Once a process


class _Process:
    """What this process knows: the outcome of its one attempt, and whether it has told of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.outcome: Native | Absent | None = None
        self.warned = False

    def renew_lock(self) -> None:
        # A fork copies a lock that another thread holds, and nobody is left to release it.
        self.lock = threading.Lock()


_process = _Process()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_process.renew_lock)


def load() -> Native | Absent:
    """The kernels' library, found or built by the first call of a process; every other call has the same answer."""
    with _process.lock:
        if _process.outcome is None:
            if os.environ.get("DPCDSL_NATIVE") == "0":
                _process.outcome = Absent("they are turned off by DPCDSL_NATIVE=0", "unset DPCDSL_NATIVE to use them")
            else:
                _process.outcome = build(KERNELS)
        return _process.outcome


def require() -> Native:
    """The kernels' library, for who will have nothing else. Raises :class:`DpcError` DPC080."""
    outcome = load()
    if isinstance(outcome, Absent):
        raise DpcError.of("DPC080", f"the native kernels cannot be used: {outcome.reason}", hint=outcome.remedy)
    return outcome


def warn_once() -> None:
    """Warn, where there are no native kernels, of what that means: once a process, however many modules ask.

    It is for who takes ATen instead of them, and nothing else in this package warns of it.
    """
    outcome = load()
    with _process.lock:
        silent, _process.warned = _process.warned, True
    if isinstance(outcome, Absent) and not silent:
        warnings.warn(
            f"native kernels are not used: {outcome.reason}; running on ATen, slower, same results; "
            f"remedy: {outcome.remedy}",
            UserWarning,
            stacklevel=2,
        )


def status() -> dict[str, str]:
    """One fact for ``dpc doctor``. It builds the kernels where they are not built yet."""
    outcome = load()
    if isinstance(outcome, Absent):
        fact = f"not active: {outcome.reason}; {outcome.remedy}"
    elif outcome.uncached:
        fact = (
            f"active, built with {outcome.maker} in every process, since the cache cannot be used: {outcome.uncached}"
        )
    else:
        fact = f"active, built with {outcome.maker}, cached at {outcome.path}"
    return {"native kernels": fact}


def forget() -> None:
    """Let the next :func:`load` look again (a loaded library stays loaded), and :func:`warn_once` warn again."""
    with _process.lock:
        _process.outcome, _process.warned = None, False
