"""A folder of what was compiled once: libraries of the CPU, cubins of GPUs.

It is ``$DPCDSL_CACHE/kernels``, else ``$XDG_CACHE_HOME/dpcdsl/kernels``, else ``~/.cache/dpcdsl/kernels``. A file is
named by the hash of all that decides what it is, so nothing in the cache is ever wrong, only unused: what nobody has
read for 30 days goes when the next file is made. It may be deleted at any time.

A file is written beside its place and renamed, and ends in its own checksum: half of one is never read. A lock lets
one process make it while the others wait; it saves work, and nothing is wrong without it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["alone", "content", "folder", "obtain", "seal", "temporary", "why"]

_DAY = 86_400.0
_UNUSED = 30 * _DAY  # what was not read for so long goes
_LEFT_OVER = 3_600.0  # a folder of a build that did not end goes; more than any build takes
_DIGEST = 64  # characters of the checksum at a file's end
_SUFFIXES = (".so", ".cubin")


def folder() -> Path:
    """Where the cache is, as the environment says. Raises RuntimeError where there is no home folder."""
    for name, parts in (("DPCDSL_CACHE", ()), ("XDG_CACHE_HOME", ("dpcdsl",))):
        if named := os.environ.get(name):
            return Path(named, *parts, "kernels").expanduser().absolute()
    return Path.home() / ".cache" / "dpcdsl" / "kernels"


def obtain(path: Path, make: Callable[[Path], Path], limit: float) -> tuple[bytes, bool]:
    """The content of the cache's file at ``path``, and whether it was made now.

    ``make`` makes the sealed file in an empty folder, within ``limit`` seconds. An OSError says that this cache cannot
    serve.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _demand_ours(path.parent.stat(), path.parent)
    found = content(path)
    if found is not None:
        return found, False
    with alone(path.parent, limit + 30):
        found = content(path)  # by the one that was waited for
        if found is not None:
            return found, False
        _tidy(path.parent)
        with temporary("part-", path.parent) as part:
            made = make(part)
            found = content(made)
            assert found is not None
            made.replace(path)
    return found, True


def content(path: Path) -> bytes | None:
    """A file without its checksum; None where there is none, or not a whole one (which can kill whoever loads it)."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            _demand_ours(info, path)
            data = file.read()
    except FileNotFoundError:
        return None
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    if time.time() - info.st_mtime > _DAY:
        with suppress(OSError):
            os.utime(path)  # in use
    return body


def seal(path: Path, body: bytes) -> None:
    """Write a file that ends in its checksum, where no loader looks."""
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    path.chmod(0o644)  # whatever the umask is: not for others to write


@contextmanager
def temporary(prefix: str, parent: Path | None) -> Iterator[Path]:
    # Not a TemporaryDirectory: a process that is forked meanwhile would remove it when it ends.
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def alone(cache: Path, limit: float) -> Iterator[None]:
    """Hold the cache's lock, which the kernel takes back from a process that dies; after ``limit`` go on without."""
    import fcntl

    handle = os.open(cache / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # to close it is not enough: a process forked meanwhile has it open
        os.close(handle)


def why(error: Exception) -> str:
    """Why the cache cannot serve, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _demand_ours(info: os.stat_result, path: Path) -> None:
    # Whoever can write what we load runs code as us.
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "other users may change it", str(path))


def _tidy(cache: Path) -> None:
    """Remove what killed processes left behind, and what nobody uses."""
    now = time.time()
    for path in cache.iterdir():
        with suppress(OSError):
            age = now - path.lstat().st_mtime
            if path.name.startswith("part-") and age > _LEFT_OVER:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix in _SUFFIXES and age > _UNUSED:
                path.unlink()
