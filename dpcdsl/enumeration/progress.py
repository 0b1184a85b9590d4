"""How far a long computation has come, for whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["report", "reporting"]

_listener: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def reporting(listener: Callable[[str, int, int], None]) -> Iterator[None]:
    """Inside, ``listener(what, done, total)`` is called now and then by whatever takes long."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(what: str, done: int, total: int) -> None:
    """Tell whoever listens."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
