"""Helpers that tests import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """Compares text with a file under tests/golden, or writes it there."""

    def __init__(self, update: bool):
        self.update = update

    def check(self, relative_path: str, text: str) -> None:
        path = GOLDEN / relative_path
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{relative_path} is missing; run pytest --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8")


@dataclass
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


#: Runs ``dpc`` with these arguments, and ``stdin=`` for standard input.
Dpc = Callable[..., Outcome]
