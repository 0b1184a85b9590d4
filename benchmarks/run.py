"""Every benchmark, one command: `make bench`. Writes the tables into docs/benchmarks.md, between its markers.

Arguments name the tables to measure, by default all: `python benchmarks/run.py enumerator peers`.

Each measurement runs several times, interleaved with what it is compared with, and the median counts.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import compiler
import context
import enumerator
import fidelity
import gpu
import language
import products
import proxy
import report
import search
import segmentation

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
TABLES: dict[str, Callable[[], list[list[str]] | None]] = {
    "language": language.measure,
    "enumerator": enumerator.measure,
    "peers": enumerator.beside_others,
    "evaluation": compiler.in_evaluation,
    "projection": compiler.with_projection,
    "training": compiler.in_training,
    "random": compiler.on_random_cells,
    "fusions": compiler.fusions,
    "products": products.measure,
    "memory": compiler.memory,
    "start": compiler.to_start,
    "loss": segmentation.loss,
    "step": segmentation.step,
    "context": context.measure,
    "proxy": proxy.costs,
    "views": proxy.views,
    "searchers": search.searchers,
    "proposals": search.proposals,
    "throughput": search.throughput,
    "fidelity": fidelity.measure,
    "found": fidelity.found,
    "report": report.measure,
    "gpu": gpu.measure,
}


def machine() -> str:
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8"))
        model = found[1] if found else model
    return f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {model}, {os.cpu_count()} cores"


def as_markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    names = sys.argv[1:] or list(TABLES)
    if not TABLES.keys() >= set(names):
        sys.exit(f"the tables are {', '.join(TABLES)}")
    for name in names:
        rows = TABLES[name]()
        if rows is None:  # it cannot be measured here
            continue
        table = as_markdown(rows)
        print(f"{name}\n{table}\n")
        page = PAGE.read_text(encoding="utf-8")
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(page), f"docs/benchmarks.md has no place for {name}"
        page = pattern.sub(lambda m, t=table: f"{m[1]}\n{machine()}\n\n{t}\n\n{m[2]}", page)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
