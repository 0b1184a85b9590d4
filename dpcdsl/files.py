"""Reading a text file, and writing one whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dpcdsl.errors import DpcError, Source

__all__ = ["read_text", "write_whole", "writing"]


def read_text(path: Path, max_characters: int) -> Source:
    """The text of a regular UTF-8 file. Raises :class:`DpcError` DPC060, DPC006 or DPC004."""
    name = str(path)
    try:
        info = path.stat()  # before it is opened: to open a pipe may take for ever
        if not stat.S_ISREG(info.st_mode):
            raise DpcError.of("DPC060", f"{name[:200]} is not a file", hint="name a text file, or - for standard input")
        with path.open("rb") as file:
            data = file.read(min(info.st_size, 4 * max_characters) + 1)
    except (OSError, ValueError) as error:
        raise DpcError.of("DPC060", f"{name[:200]} cannot be read: {_reason(error)}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) <= 4 * max_characters:
            line = data.count(b"\n", 0, error.start) + 1
            raise DpcError.of(
                "DPC006",
                f"the file is not UTF-8 text: byte {error.start}, line {line}",
                place=name,
                hint="save it as UTF-8",
            ) from None
        text = ""
    if len(data) > 4 * max_characters or len(text) > max_characters:
        raise DpcError.of(
            "DPC004",
            f"the file has more than {max_characters} characters",
            place=name,
            hint="split it into several files, or raise the limit (`max_characters`, `--max-characters`)",
        )
    return Source(name, text)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file beside its place and rename it; see :func:`writing`."""
    with writing(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside its place, which is renamed in the end, so that no reader ever sees half of it.

    A symbolic link is followed and stays a link; the permissions of a file that was there stay as they were. Nothing
    is left behind where writing fails.
    """
    try:
        target = Path(os.path.realpath(path))
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
        # The usual permissions of a new file, as the process's umask has them.
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        raise _unwritable(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from None
        raise


def _unwritable(path: Path, error: OSError | ValueError) -> DpcError:
    return DpcError.of(
        "DPC060",
        f"{path} cannot be written: {_reason(error)}",
        hint="check that the folder exists and may be written to",
    )


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
