"""How fast compiled cells run beside other runtimes, and what they cost in memory and time to start."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import median

import torch
from compiler_peers import (
    AUTOTUNE,
    CHANNELS_LAST,
    COMPILE,
    CROP,
    FLOOR,
    LAST,
    NCHW,
    ONNX_RUNTIME,
    OPENVINO,
    OURS,
    THREADS,
    Case,
    Contestant,
    Entry,
    evaluation,
    features,
    forget,
    in_turns,
    of_torch,
    ours,
    pointwise,
    step,
    training,
    two_threads,
    weights,
)
from language import in_process, resident

import dpcdsl
from dpcdsl_torch import compile_cell
from dpcdsl_torch.task import FUSIONS

TOP1, ASPP = (dpcdsl.zoo()[name].value for name in ("top1", "aspp"))
MIXED = dpcdsl.parse_cell(
    "cell mixed { (F, conv1x1, Y1) (F, avgpool grid 2x4, Y2) (F, sepconv3x3 rate 6x3, Y3)"
    " (Y3, avgpool grid 1x1, Y4) (Y2, sepconv3x3 rate 3x18, Y5) }"
)
POOLS = dpcdsl.parse_cell("cell pools { (F, avgpool grid 2x4, Y1) (F, avgpool grid 2x4, Y2) (Y1, conv1x1, Y3) }")
CHAIN = dpcdsl.parse_cell(
    "cell chain { (F, sepconv3x3 rate 1x1, Y1) (Y1, sepconv3x3 rate 1x6, Y2) (Y2, sepconv3x3 rate 6x3, Y3)"
    " (Y3, conv1x1, Y4) (Y4, sepconv3x3 rate 1x1, Y5) }"
)
CELLS = 20  # random ones
COMPILED = 4  # of them by torch.compile, which takes its time
PROJECTION = 256
CHAINED = Case("a chain, 320 ch, projected", CHAIN, 320, projection=PROJECTION)
STARTS = 5
MB = 1e6


def _evaluated(cases: list[Case], bar: str = "") -> list[list[str]]:
    peers = [NCHW, CHANNELS_LAST, COMPILE, AUTOTUNE, ONNX_RUNTIME, OPENVINO]
    ratios = [f"÷ {FLOOR}", f"÷ {ONNX_RUNTIME}", "÷ best peer"]
    rows = [["milliseconds", *peers, OURS, FLOOR, *ratios, *(["bar"] if bar else [])]]
    for case in cases:
        if case.dtype is torch.bfloat16 and not _has_bfloat16():
            rows.append([case.name, "no avx512_bf16 here", *[""] * (len(rows[0]) - 2)])
            continue
        _say(case.name)
        with evaluation(case) as entries:
            taken = _timed(entries, pointwise(case))
        best = min(taken[name] for name in peers if name in taken)
        others = (taken[FLOOR], taken.get(ONNX_RUNTIME), best)
        rows.append(
            [
                case.name,
                *(_milliseconds(name, taken, entries) for name in [*peers, OURS, FLOOR]),
                *(f"{taken[OURS] / other:.2f}" if other else "–" for other in others),
                *([bar] if bar else []),
            ]
        )
    return rows


def in_evaluation() -> list[list[str]]:
    cases = _published()
    half = [replace(case, name=f"{case.name}, bf16", dtype=torch.bfloat16) for case in cases]
    with two_threads():
        return _evaluated([*cases, *half])


def with_projection() -> list[list[str]]:
    cases = [replace(case, projection=PROJECTION, layout=torch.contiguous_format) for case in _published()]
    with two_threads():
        return _evaluated(cases, "÷ best peer ≤ 0.85")


def _published() -> list[Case]:
    return [Case("top-1, 320 ch", TOP1, 320), Case("top-1, 2048 ch", TOP1, 2048), Case("ASPP, 2048 ch", ASPP, 2048)]


def in_training() -> list[list[str]]:
    peers = [NCHW, CHANNELS_LAST, COMPILE]
    rows = [["milliseconds a step", *peers, OURS, FLOOR, f"÷ {FLOOR}", "÷ best peer", "bar"]]
    with two_threads():
        for batch in (2, 8):
            case = Case(f"top-1, 320 ch, N = {batch}", TOP1, 320, batch=batch, size=CROP)
            _say(f"{case.name}, training")
            entries = training(case)
            taken = _timed(entries, pointwise(case))
            taken[FLOOR] *= 3  # forward, and the gradients of the map and of the weights
            best = min(taken[name] for name in peers if name in taken)
            rows.append(
                [
                    case.name,
                    *(_milliseconds(name, taken, entries) for name in [*peers, OURS, FLOOR]),
                    *(f"{taken[OURS] / other:.2f}" for other in (taken[FLOOR], best)),
                    "≤ 0.40",
                ]
            )
            del entries
            forget()
    return rows


def on_random_cells() -> list[list[str]]:
    """Geometric means over cells of the paper's space; torch.compile takes part in a few of them only."""
    cells = dpcdsl.enumerator(dpcdsl.read_space("dpc")).sample(CELLS, 0)
    rows = [
        [
            f"{CELLS} random cells, 320 ch",
            "÷ best peer, geometric mean",
            "from",
            "to",
            *(f"÷ {name}" for name in (CHANNELS_LAST, COMPILE, ONNX_RUNTIME, OPENVINO)),
            "bar",
        ]
    ]
    with two_threads():
        for train, name in ((False, "evaluation, 1×65×129"), (True, "training, 2×49×49")):
            found: dict[str, list[float]] = {}
            for number, cell in enumerate(cells):
                _say(f"random cell {number + 1}, {name}")
                compiled = number % (CELLS // COMPILED) == 0
                case = Case(name, cell, 320)
                if train:
                    opened = nullcontext(training(replace(case, batch=2, size=CROP), (LAST,) if compiled else ()))
                else:
                    opened = evaluation(case, autotune=False, compiled=compiled)
                with opened as entries:
                    taken = _timed(entries)
                mine = taken.pop(OURS)
                found.setdefault("best", []).append(mine / min(taken.values()))
                for peer, seconds in taken.items():
                    found.setdefault(peer, []).append(mine / seconds)
                del opened, entries
                forget()
            best = found["best"]
            rows.append(
                [
                    name,
                    *(f"{value:.2f}" for value in (_geometric_mean(best), min(best), max(best))),
                    *(
                        f"{_geometric_mean(found[peer]):.2f} of {len(found[peer])}" if peer in found else "–"
                        for peer in (CHANNELS_LAST, COMPILE, ONNX_RUNTIME, OPENVINO)
                    ),
                    "≤ 0.80",
                ]
            )
    return rows


def fusions() -> list[list[str]]:
    """Our time without each fusion, over that with all of them; for what saves memory, the memory."""
    names = tuple(FUSIONS)
    case = Case("top-1, 320 ch", TOP1, 320)
    mixed = Case("with pools, 320 ch", MIXED, 320)
    train = replace(case, name=f"{case.name}, a step of N = 2", batch=2, size=CROP)
    cases: list[tuple[Case, dict[str, str]]] = [
        (case, {}),
        (mixed, {}),
        (replace(mixed, name=f"{mixed.name}, projected", projection=PROJECTION), {}),
        (Case("ASPP, 2048 ch", ASPP, 2048), {}),
        (Case("twice the same pool, 2048 ch", POOLS, 2048), {}),
        (replace(case, name="top-1, 320 ch, 17x17, on ATen", size=(17, 17)), {"backend": "aten"}),
        (train, {}),
    ]
    memory = f"{CHAINED.name}: memory"
    rows = [["without", *(case.name for case, _ in cases), memory], ["none"], *([name] for name in names)]
    with two_threads():
        for case, options in cases:
            _say(f"fusions, {case.name}")
            contestants = {}
            for without in ((), *((name,) for name in names)):
                module = ours(case, weights(case).train(case is train), without=without, **options)
                x = features(case).contiguous(memory_format=LAST)
                made = step(module, module, case, LAST) if case is train else of_torch(module, x)
                contestants["".join(without)] = made.run
            taken = in_turns(contestants)
            rows[1].append(f"{1000 * taken['']:.1f} ms")
            for row, name in zip(rows[2:], names, strict=True):
                row.append(f"{taken[name] / taken['']:.2f}")
            del contestants, made, module
            gc.collect()
    _say(f"fusions, {memory}")
    needed = {name: _peak(CHAINED, name)[1] for name in ("", "release")}
    rows[1].append(f"{needed[''] / MB:.0f} MB")
    for row, name in zip(rows[2:], names, strict=True):
        row.append(f"{needed[name] / needed['']:.2f}" if name in needed else "")
    return rows


# Memory and the time to start: each in a process of its own.


def memory() -> list[list[str]]:
    rows = [
        ["one call, peak in steady state", "output, MB", "above no call at all, MB", "beyond the output, MB", "bar"]
    ]
    for case in _published():
        output, above = _peak(case)
        numbers = (output, above, above - output)
        rows.append([case.name, *(f"{value / MB:.1f}" for value in numbers), f"≤ {8 * THREADS}"])
    return rows


def _peak(case: Case, without: str = "") -> tuple[float, float]:
    """Bytes of the output, and of a call at its peak."""
    output, most, before = in_process(_inside(f"print(*compiler.peak({case.name!r}, {without!r}))"))
    return output, most - before


def peak(name: str, without: str = "") -> tuple[float, float, float]:
    """Bytes of the output, and of the process: at the peak of a call, and before there was one of more than a position.

    So what calls leave behind for each other (buffers, pools, scratch) counts, as does what one needs meanwhile.
    """
    case = next(case for case in (*_published(), CHAINED) if case.name == name)
    module = ours(case, weights(case), without=(without,) if without else ())
    x = features(case).contiguous(memory_format=LAST)
    with two_threads(), torch.inference_mode():
        pointwise(Case("", TOP1, 8, size=(9, 9)))()  # torch's own threads and libraries are not the cell's
        module(x[:, :, :1, :1])  # folded weights are the module's, and not a call's
        gc.collect()
        before = resident("RssAnon")
        for _ in range(3):
            output = module(x)
            size = output.numel() * output.element_size()
            del output
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        module(x)
        most = resident("VmHWM") - resident("RssFile") - resident("RssShmem")  # code is paged in, not allocated
    return size, most, before


def to_start() -> list[list[str]]:
    run = _inside("print(compiler.start())")
    in_process(run)  # the kernels are in the cache from here on
    cached = median(in_process(run)[0] for _ in range(STARTS))
    with tempfile.TemporaryDirectory() as folder:
        fresh = in_process(f"import os; os.environ['DPCDSL_CACHE'] = {folder!r}; {run}")[0]
    return [
        ["top-1, 320 ch, first call above a second", "measured", "bar"],
        ["kernels in the cache", f"{cached:.3f} s", "≤ 0.2 s"],
        ["kernels to be built", f"{fresh:.2f} s", "≤ 60 s"],
    ]


def start() -> float:
    """Seconds from a cell to its first output, above those of another call."""
    x = features(Case("", TOP1, 320)).contiguous(memory_format=LAST)
    with two_threads():
        began = time.perf_counter()
        module = compile_cell(TOP1, 320).eval()
        with torch.inference_mode():
            module(x)
            first = time.perf_counter()
            module(x)
            second = time.perf_counter()
    return (first - began) - (second - first)


def _inside(code: str) -> str:
    return f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import compiler; {code}"


# What the tables share.


def _timed(entries: dict[str, Entry], floor: Callable[[], object] | None = None) -> dict[str, float]:
    runs = {name: entry.run for name, entry in entries.items() if isinstance(entry, Contestant)}
    return in_turns(runs if floor is None else {**runs, FLOOR: floor})


def _milliseconds(name: str, taken: dict[str, float], entries: dict[str, Entry]) -> str:
    return f"{1000 * taken[name]:.1f}" if name in taken else str(entries[name])


def _geometric_mean(values: list[float]) -> float:
    return exp(sum(log(value) for value in values) / len(values))


def _has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " avx512_bf16" in cpuinfo.read_text(encoding="utf-8")


def _say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)
