"""No input, however malformed or huge, gives anything but an answer or a DpcError that says where, and both soon."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generators
import pytest

from dpcdsl import (
    Cell,
    DpcError,
    Space,
    format_cell,
    format_space,
    format_text,
    parse,
    parse_condition,
    parse_space,
    read_cell,
    read_space,
)
from dpcdsl.interchange import cell_from_text

READERS: tuple[Callable[[str], Any], ...] = (
    parse,
    format_text,
    cell_from_text,
    parse_condition,
    parse_space,
    read_cell,
    read_space,
)
#: What a name on a command line may be told without a place: it is the place.
OF_A_NAME = {"DPC032", "DPC034", "DPC060", "DPC061"}


#: A plain document, and the seconds that reading it ten times takes on a machine that is not busy.
PLAIN = "\n".join(f"cell c{i} {{ (F, sepconv3x3 rate 6x3, Y1) (Y1, conv1x1, Y2) }}" for i in range(100))
PLAIN_SECONDS = 0.075


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def slowness() -> float:
    """How many times longer plain documents take now than on a machine that is not busy; 1 at least."""
    return max(1.0, seconds(lambda: [parse(PLAIN) for _ in range(10)]) / PLAIN_SECONDS)


def outcome(reader: Callable[[str], Any], text: str, within: float = 1.0) -> Any:
    """What ``reader`` makes of ``text``, or the DpcError, once it is known to be a good one.

    ``within``: seconds. Where neighbours keep the machine busy, as many more as plain documents take there.
    """
    found: Any = None

    def read() -> None:
        nonlocal found
        try:
            found = reader(text)
        except DpcError as error:
            found = error

    if seconds(read) >= within:
        assert any(seconds(read) < within * slowness() for _ in range(3))
    if isinstance(found, DpcError):
        assert found.diagnostics
        assert len(found.diagnostics) <= DpcError.limit
        assert len(str(found)) < 200_000
        for diagnostic in found.diagnostics:
            named = reader in (read_cell, read_space) and diagnostic.code in OF_A_NAME
            assert diagnostic.span is not None or diagnostic.place is not None or named, str(diagnostic)
            assert diagnostic.message.isprintable()
            if diagnostic.span is not None:
                assert 0 <= diagnostic.span.start < diagnostic.span.end
                assert diagnostic.span.start <= len(diagnostic.span.source.text)
    return found


def examine(text: str) -> None:
    results = {reader: outcome(reader, text) for reader in READERS}
    document = results[parse]
    if isinstance(document, DpcError):
        return
    laid_out = results[format_text]  # what has a meaning has a layout, and keeps it
    assert isinstance(laid_out, str)
    assert format_text(laid_out) == laid_out
    again = parse(laid_out)
    for definition in document:
        assert again[definition.name].value == definition.value
        if isinstance(definition.value, Cell):
            assert parse(format_cell(definition.value)).cell() == definition.value
        if isinstance(definition.value, Space):
            assert parse(format_space(definition.value, "s")).space() == definition.value


def run(seeds: range) -> None:
    for seed in seeds:
        text = generators.hostile_text(random.Random(seed))
        try:
            examine(text)
        except Exception as error:
            shown = ascii(text if len(text) < 2000 else text[:1000] + " … " + text[-1000:])
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}: {shown}") from error


@pytest.mark.parametrize("start", range(0, 10_000, 1000))
def test_ten_thousand_hostile_texts(start: int) -> None:
    run(range(start, start + 1000))


@pytest.mark.soak
@pytest.mark.parametrize("start", range(10_000, 1_010_000, 10_000))
def test_a_million_hostile_texts(start: int) -> None:
    run(range(start, start + 10_000))


def test_the_hostile_texts_are_of_all_sorts() -> None:
    """A fuzzer whose every input fails at its first character shows nothing."""
    codes = set()
    read = 0
    for seed in range(700):
        text = generators.hostile_text(random.Random(seed))
        for reader in (parse, cell_from_text):
            try:
                reader(text)
                read += 1
            except DpcError as error:
                codes |= set(error.codes)
    assert read > 50
    assert len(codes) > 20


# Too much of one thing. Texts a little below and above the limit, and small ones whose cost shows what grows too fast.


ALL = generators.OVERSIZED | generators.OVERSIZED_TUPLES


def test_ten_megabytes_are_refused_at_once() -> None:
    for make in list(ALL.values())[::7]:
        text = make(10_000_000)
        assert len(text) > 9_999_000
        for reader in (parse, format_text, cell_from_text, parse_condition, parse_space):
            found = outcome(reader, text, within=5)
            assert isinstance(found, DpcError)
            assert found.codes == ("DPC004",)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_what_grows_too_fast_to_read(make: Callable[[int], str]) -> None:
    text = make(70_000)
    outcome(cell_from_text if text[0] in "[{" else parse, text, within=1.5)


@pytest.mark.parametrize(
    "name",
    [
        *("comments", "a comment at the end", "comments before a cell", "a tuple of comments", "a tuple of bars"),
        *("and", "and in and", "not", "conditions", "unions", "numbers of a set", "imports", "lines", "one line"),
    ],
)
def test_what_grows_too_fast_to_lay_out(name: str) -> None:
    outcome(format_text, ALL[name](70_000), within=1.5)


def test_what_grows_too_fast_only_in_large_texts() -> None:
    outcome(parse, ALL["and in and"](200_000), within=3)
    outcome(parse, ALL["or in or"](200_000), within=3)
    outcome(format_text, ALL["a comment at the end"](800_000), within=3)


_CHILD = """
import resource, sys, time
from pathlib import Path

import dpcdsl
from dpcdsl.interchange import cell_from_text

def peak():
    try:  # getrusage would tell the peak of the process that started this one, if that is higher
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)

path, reader, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
read = {"parse": dpcdsl.parse, "format_text": dpcdsl.format_text, "cell_from_text": cell_from_text}[reader]
text = Path(path).read_text(encoding="utf-8")
before, began = peak(), time.process_time()
try:
    read(text, max_characters=int(limit))
    said = "read"
except dpcdsl.DpcError as error:
    said = "refused" if len(str(error)) < 200_000 else "told at length"
print(said, time.process_time() - began, (peak() - before) // 1024)
"""


def measured(text: str, folder: Path, reader: str, limit: int) -> tuple[str, float, int]:
    """What a fresh process says to a text, its seconds, and the megabytes that it needs beyond the text."""
    path = folder / "text"
    path.write_text(text, encoding="utf-8", newline="")
    command = [sys.executable, "-c", _CHILD, str(path), reader, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said, seconds, megabytes = done.stdout.rsplit(maxsplit=2)
    return said, float(seconds), int(megabytes)


@pytest.mark.soak
@pytest.mark.parametrize("size", [7_900_000, 10_000_000])
@pytest.mark.parametrize("make", generators.OVERSIZED.values(), ids=generators.OVERSIZED.keys())
def test_megabytes_that_the_limit_lets_through(make: Callable[[int], str], size: int, tmp_path: Path) -> None:
    text = make(size)
    for reader in ("cell_from_text",) if text[0] in "[{" else ("parse", "format_text"):
        said, seconds, megabytes = measured(text, tmp_path, reader, 8_000_000 if size < 8_000_000 else 20_000_000)
        assert said in ("read", "refused")
        assert seconds < 30
        assert megabytes < 2000


@pytest.mark.parametrize("make", generators.OVERSIZED_TUPLES.values(), ids=generators.OVERSIZED_TUPLES.keys())
def test_a_tuple_takes_no_more_memory_than_a_few_times_its_text(make: Callable[[int], str], tmp_path: Path) -> None:
    said, seconds, megabytes = measured(make(1_500_000), tmp_path, "parse", 8_000_000)
    assert said in ("read", "refused")
    assert seconds < 30
    assert megabytes < 200


# The stack


def test_the_stack_is_never_exhausted() -> None:
    """Not even where little of it is left: deep inputs are refused by their depth, not by what Python can bear."""
    texts = [
        make
        for name, make in ALL.items()
        if name.startswith(
            ("parentheses", "balanced", "braces", "not", "and in", "or in", "lists in", "objects in", "a chain")
        )
    ]
    assert len(texts) >= 10

    def at(depth: int, text: str) -> None:
        if depth:
            at(depth - 1, text)
            return
        for reader in (parse, format_text, cell_from_text, parse_condition, parse_space):
            outcome(reader, text)

    for make in texts:
        at(sys.getrecursionlimit() // 2, make(20_000))


@pytest.mark.parametrize("depth", [1, 30, 31, 32, 33, 49, 50, 51, 400, 900, 980, 990, 1000, 1100])
def test_json_at_every_depth(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for text in (
        nested,
        f'[{{"input": -1, "op": "conv", "kernel": {nested}}}]',
        f'[{{"input": -1, "op": {nested}}}]',
        f'{{"branches": [{{"input": "F", "operator": {nested}}}]}}',
        f'{{"branches": [{{"input": "F", "operator": {{"kind": "avgpool", "parameters": {{"grid": {nested}}}}}}}]}}',
    ):
        assert isinstance(outcome(cell_from_text, text), DpcError)


@pytest.mark.parametrize("depth", [1, 49, 50, 51, 60, 1000])
@pytest.mark.parametrize(
    "shape", ["not {}", "({})", "branches <= 2 and ({})", "branches <= 2 or ({})", "not (depth < 2 or {})"]
)
def test_conditions_at_every_depth(depth: int, shape: str) -> None:
    text = "depth <= 3"
    for _ in range(depth):
        text = shape.replace("{}", text)
    space = f"from zoo import top1\nspace s = top1 where {text}"
    results = [outcome(parse_condition, text), outcome(parse, space), outcome(format_text, space)]
    refused = [isinstance(found, DpcError) for found in results]
    assert refused in ([True] * 3, [False] * 3)
    if shape == "({})" or depth < 25:
        assert not refused[0]
    elif depth > 50:
        assert refused[0]
        assert results[2].codes == ("DPC007",)


def test_errors_let_go_of_what_was_parsed() -> None:
    with pytest.raises(DpcError) as caught:
        parse("cell a { (F, conv1x1, _) } " * 1000 + "!")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_long_tuples_are_not_kept() -> None:
    """A process that reads many files must not grow with every long tuple it has seen."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(100):
        parse(f"space s {{ (F, {' | '.join(f'avgpool grid {i + 1}x{j + 1}' for j in range(300))}, _) }}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
