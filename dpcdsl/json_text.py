"""JSON with places: the value of a text, and where in it a part stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dpcdsl.errors import DpcError, Source, Span

__all__ = ["locate", "parse_json"]

_SPACE = re.compile(r"[ \t\r\n]*")


def parse_json(source: Source, max_characters: int) -> Any:
    """The value of a JSON text. Raises :class:`DpcError` DPC050, or DPC004 past ``max_characters``."""
    if len(source.text) > max_characters:
        raise DpcError.of("DPC004", f"the text has more than {max_characters} characters", Span(source, 0, 1))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
            at = max(0, source.text.rfind(json.dumps(twice)))
            raise DpcError.of("DPC016", f"the key {json.dumps(twice)[:60]} is given twice", Span(source, at, at + 1))
        return found

    try:
        return json.loads(source.text, object_pairs_hook=unique)
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


def locate(source: Source, path: Sequence[str | int]) -> Span:
    """Where the part of a valid JSON text is that ``path`` (keys and indices) leads to, or how far the path goes."""
    text, decoder = source.text, json.JSONDecoder()
    at = _skip(text, 0)
    for part in path:
        found = _element(text, decoder, at, part)
        if found is None:
            break
        at = found
    return Span(source, at, decoder.raw_decode(text, at)[1])


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _element(text: str, decoder: json.JSONDecoder, at: int, part: str | int) -> int | None:
    if text[at] != ("[" if isinstance(part, int) else "{"):
        return None
    at = _skip(text, at + 1)
    index = 0
    while text[at] not in "]}":
        key: str | int = index
        if isinstance(part, str):
            key, at = decoder.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        if key == part:
            return at
        at = _skip(text, decoder.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
        index += 1
    return None
