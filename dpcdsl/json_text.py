"""JSON with places: the value of a text, and where in it a part stands."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dpcdsl.errors import DpcError, Source, Span

__all__ = ["Places", "parse_json"]

_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_DEPTH = 32  # far more than any form of a cell has


def parse_json(source: Source, max_characters: int) -> Any:
    """The value of a JSON text. Raises :class:`DpcError` DPC050, or DPC004 past ``max_characters``."""
    if len(source.text) > max_characters:
        raise DpcError.of("DPC004", f"the text has more than {max_characters} characters", Span(source, 0, 1))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            at = max(0, *(source.text.rfind(json.dumps(twice, ensure_ascii=ascii)) for ascii in (True, False)))
            raise DpcError.of("DPC016", f"the key {json.dumps(twice)[:60]} is given twice", Span(source, at, at + 1))
        return found

    try:
        value = json.loads(source.text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        at = min(error.pos, len(source.text))
        message = f"this is not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise DpcError.of("DPC050", message, Span(source, at, at + 1)) from None
    except RecursionError:
        raise DpcError.of("DPC007", "this JSON is nested too deeply", Span(source, 0, 1)) from None
    except ValueError:  # a number of more digits than Python reads
        match = re.search(r"\d{1000,}", source.text)
        at = match.start() if match else 0
        raise DpcError.of("DPC017", "a number is too long", Span(source, at, at + 1)) from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for part in level
            if isinstance(part, list | dict)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return value
    raise DpcError.of("DPC007", "this JSON is nested too deeply", Span(source, 0, 1))


class Places:
    """Where the parts of a valid JSON text stand.

    What has been passed on the way to one part is remembered for the next, so that many take no longer than one.
    """

    def __init__(self, source: Source):
        self._source = source
        self._decoder = json.JSONDecoder()
        # By where a list or an object opens: its parts that have been passed, and where the next one begins.
        self._passed: dict[int, tuple[dict[str | int, int], int]] = {}

    def __getitem__(self, path: Sequence[str | int]) -> Span:
        """Where the part is that ``path`` (keys and indices) leads to, or how far the path goes."""
        at = _skip(self._source.text, 0)
        for part in path:
            found = self._part(at, part)
            if found is None:
                break
            at = found
        return Span(self._source, at, self._end(at))

    def _end(self, at: int) -> int:
        return self._decoder.raw_decode(self._source.text, at)[1]

    def _part(self, opening: int, wanted: str | int) -> int | None:
        text = self._source.text
        if text[opening] != ("[" if isinstance(wanted, int) else "{"):
            return None
        passed, at = self._passed.get(opening, ({}, _skip(text, opening + 1)))
        while wanted not in passed and text[at] not in "]}":
            key: str | int = len(passed)
            if isinstance(wanted, str):
                key, at = self._decoder.raw_decode(text, at)
                at = _skip(text, _skip(text, at) + 1)
            passed[key] = at
            at = _skip(text, self._end(at))
            at = _skip(text, at + 1) if text[at] == "," else at
        self._passed[opening] = passed, at
        return passed.get(wanted)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
