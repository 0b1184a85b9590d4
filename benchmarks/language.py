"""How fast text is read, and how long the library takes to import."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import dpcdsl
from dpcdsl.interchange import to_deeplab

ROUNDS = 5


def random_cells(count: int, seed: int = 0) -> list[dpcdsl.Cell]:
    """Five-branch cells of the paper's space."""
    rng = random.Random(seed)
    operators = dpcdsl.zoo()["paper"].value.operators
    return [dpcdsl.Cell.of(*((rng.randrange(i), rng.choice(operators)) for i in range(1, 6))) for _ in range(count)]


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each contestant, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def in_process(code: str) -> list[float]:
    """The numbers that a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def resident(field: str) -> int:
    """Bytes of this process, by a field of its status (``VmHWM``)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


def measure() -> list[list[str]]:
    rows = [["what", "measured", "bar"]]
    cells = random_cells(3000)
    text = "dpc 1\n\n" + "\n".join(dpcdsl.format_cell(cell, f"c{i}") for i, cell in enumerate(cells))
    deeplab = [json.dumps(to_deeplab(cell)) for cell in cells]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{i}.dpc" for i in range(len(cells))]
        for path, cell in zip(paths, cells, strict=True):
            path.write_text(dpcdsl.format_cell(cell, "c"), encoding="utf-8")
        taken = interleaved(
            {
                "one file": lambda: dpcdsl.parse(text),
                "many files": lambda: [dpcdsl.load(path) for path in paths],
                "format": lambda: dpcdsl.format_text(text),
                "deeplab": lambda: [dpcdsl.from_deeplab(line) for line in deeplab],
            }
        )
        rate = {key: len(cells) / seconds for key, seconds in taken.items()}
        rows += [
            ["parse, five-branch cells, one file", f"{rate['one file']:,.0f} cells/s", "≥ 3,000"],
            ["parse, one cell a file", f"{rate['many files']:,.0f} cells/s", "≥ 3,000"],
            ["the same cells from DeepLab JSON", f"{rate['deeplab']:,.0f} cells/s", ""],
            ["format, one file", f"{rate['format']:,.0f} cells/s", ""],
        ]
        large = folder / "large.dpc"
        named = (dpcdsl.format_cell(cell, f"c{i}") for i, cell in enumerate(random_cells(28_000, seed=1)))
        large.write_text("\n".join(named), encoding="utf-8")
        seconds, megabytes = in_process(
            "import time, resource, dpcdsl; t = time.perf_counter();"
            f"assert len(dpcdsl.load({str(large)!r})) == 28000;"
            "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        size = large.stat().st_size / 1e6
        rows.append([f"parse, 28,000 cells, {size:.1f} MB", f"{seconds:.1f} s, {megabytes:.0f} MB", "≤ 15 s, ≤ 600 MB"])
        hostile = folder / "hostile.dpc"
        slowest = 0.0
        for unit in ("(", "cell a {", "x", "#\n", "(F, conv1x1, Y7) ", "not ", "\0", "{}", "9", "ops a = a | a\n"):
            hostile.write_text(unit * (10_000_000 // len(unit)), encoding="utf-8")
            slowest = max(slowest, _seconds_to_refuse(hostile))
        rows.append(["refuse a hostile 10 MB file, slowest of 10", f"{slowest:.2f} s", "≤ 5 s"])
    imports = [
        in_process("import time; t = time.perf_counter(); import dpcdsl; print(time.perf_counter() - t)")[0]
        for _ in range(2 * ROUNDS + 1)
    ]
    rows.append(["`import dpcdsl`", f"{median(imports):.2f} s", "≤ 0.35 s"])
    return rows


def _seconds_to_refuse(path: Path) -> float:
    return in_process(
        "import time, dpcdsl\nt = time.perf_counter()\n"
        f"try: dpcdsl.load({str(path)!r})\n"
        "except dpcdsl.DpcError: print(time.perf_counter() - t)\n"
        "else: raise AssertionError('accepted')"
    )[0]
