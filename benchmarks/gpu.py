"""How fast compiled cells run on a GPU beside torch, everything as a CUDA graph, and beside what the GPU can do.

The roofline of a case is the longer of two times: its multiply-adds at the speed of a large matrix product, and its
bytes at the speed of a large copy, both measured in the same run. Counted are the multiply-adds of
:func:`dpcdsl.cost` (three times for a step of training), and each map once: in evaluation F and the result; in training
also the result's gradient, F a second time, and F's gradient.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from compiler_peers import CHANNELS_LAST, LAST, NCHW, OURS, Case, features, forget, ours, weights
from torch import Tensor, nn

import dpcdsl

COMPILE, AUTOTUNE, ROOFLINE = "torch.compile", "torch.compile max-autotune", "roofline"
PEERS = (NCHW, CHANNELS_LAST, COMPILE, AUTOTUNE)
ROUNDS, REPLAYS = 9, 20
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2}  # fp32 is multiplied by TF32, as is torch's default
TOP1 = dpcdsl.zoo()["top1"].value
CHANNELS, BATCHES, TYPES = (320, 2048), (1, 8, 16), (torch.bfloat16, torch.float32)

Run = Callable[[], Tensor]


def measure(device: str = "cuda", cases: list[Case] | None = None) -> list[list[str]] | None:
    """The table; None where there is no GPU. ``device="cpu"``, with small cases, runs the same without graphs."""
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu: there is no GPU, so its table stays as it is", file=sys.stderr)
        return None
    name = torch.cuda.get_device_name() if device == "cuda" else device
    ratios = [f"÷ {ROOFLINE}", "best peer ÷"]
    rows = [[f"milliseconds, {name}", *PEERS, OURS, ROOFLINE, *ratios, "bar"]]
    ceilings = {dtype: _ceilings(device, dtype) for dtype in TYPES}
    for case in cases or _cases():
        for trains in (False, True):
            print(f"gpu: {case.name}, {'training' if trains else 'evaluation'}", file=sys.stderr)
            taken = _timed(device, case, trains)
            floor = _roofline(case, trains, *ceilings[case.dtype])
            best = min(value for peer, value in taken.items() if peer != OURS)
            rows.append(
                [
                    f"{case.name}, {'a step' if trains else 'evaluation'}",
                    *(f"{1000 * taken[one]:.3f}" if one in taken else "–" for one in (*PEERS, OURS)),
                    *(f"{1000 * floor:.3f}", f"{taken[OURS] / floor:.2f}", f"{best / taken[OURS]:.2f}"),
                    "≥ 1.5" if trains else "≤ 2 and ≥ 1.5",
                ]
            )
            forget()
    return rows


def _cases() -> list[Case]:
    return [
        Case(f"top-1, {channels} ch, N = {batch}, {str(dtype)[6:]}", TOP1, channels, batch, dtype=dtype)
        for channels in CHANNELS
        for batch in BATCHES
        for dtype in TYPES
    ]


def _timed(device: str, case: Case, trains: bool) -> dict[str, float]:
    """Median seconds of a call of each contestant that computes what the eager module does."""
    module = weights(case).train(trains).to(device, case.dtype)
    wanted = _run(device, case, module, module, torch.contiguous_format, trains)()
    replays: dict[str, Callable[[], object]] = {}
    for name, make in _contestants(case, module).items():
        try:
            made, call, layout = make()
            run = _run(device, case, made.to(device), call, layout, trains)
            apart = float((run().float() - wanted.float()).norm() / wanted.float().norm())
            assert apart <= TOLERANCE[case.dtype], f"wrong by {apart:.1g}"
            replays[name] = _captured(device, run)
        except Exception as error:
            if name == OURS:
                raise
            print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in replays}
    for turn in range(ROUNDS + 1):
        names = list(replays)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = _seconds(device, replays[name])
            if turn:  # the first round warms up
                times[name].append(taken)
    return {name: median(values) for name, values in times.items()}


Made = tuple[nn.Module, Callable[[Tensor], Tensor], torch.memory_format]


def _contestants(case: Case, module: nn.Module) -> dict[str, Callable[[], Made]]:
    def eager(layout: torch.memory_format) -> Made:
        made = copy.deepcopy(module).to(memory_format=layout)
        return made, made, layout

    def compiled(**options: Any) -> Made:
        made = copy.deepcopy(module).to(memory_format=LAST)
        return made, torch.compile(made, dynamic=False, **options), LAST

    def mine() -> Made:
        made = ours(case, module)  # type: ignore[arg-type]
        return made, made, LAST

    return {
        NCHW: lambda: eager(torch.contiguous_format),
        CHANNELS_LAST: lambda: eager(LAST),
        COMPILE: compiled,
        # It would capture graphs of its own: everyone's are captured here.
        AUTOTUNE: lambda: compiled(mode="max-autotune-no-cudagraphs"),
        OURS: mine,
    }


def _run(
    device: str,
    case: Case,
    module: nn.Module,
    call: Callable[[Tensor], Tensor],
    layout: torch.memory_format,
    trains: bool,
) -> Run:
    x = features(case).to(device, case.dtype).contiguous(memory_format=layout)
    if not trains:

        @torch.inference_mode()
        def evaluate() -> Tensor:
            return call(x)

        return evaluate
    x.requires_grad_()
    gradient: list[Tensor] = []

    def step() -> Tensor:
        x.grad = None
        module.zero_grad(set_to_none=True)
        y = call(x)
        if not gradient:
            gradient.append(torch.ones_like(y))
        y.backward(gradient[0])
        return y.detach()

    return step


def _captured(device: str, run: Run) -> Callable[[], object]:
    if device == "cpu":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return lambda: (graph.replay(), kept, run)  # with all that the graph reads


def _seconds(device: str, run: Callable[[], object]) -> float:
    run()
    if device == "cpu":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / REPLAYS


def _ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes and multiply-adds a second."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        product = median(_seconds(device, lambda: a @ b) for _ in range(ROUNDS))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before  # type: ignore[attr-defined]
    large = torch.empty(2**29 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    other = torch.empty_like(large)
    copied = median(_seconds(device, lambda: other.copy_(large)) for _ in range(ROUNDS))
    return 2 * large.numel() / copied, size**3 / product


def _roofline(case: Case, trains: bool, bytes_a_second: float, multiply_adds_a_second: float) -> float:
    found = dpcdsl.cost(case.cell, case.channels, case.size)
    positions = case.batch * case.size[0] * case.size[1]
    results = sum(case.cell.out_channels(case.channels))
    maps = 3 * case.channels + 2 * results if trains else case.channels + results
    moved = positions * maps * case.dtype.itemsize
    return max(moved / bytes_a_second, (3 if trains else 1) * case.batch * found.madds / multiply_adds_a_second)


if __name__ == "__main__":
    for row in measure("cpu", [Case("small", TOP1, 16, 2, (9, 9), dtype=dtype) for dtype in TYPES]) or []:
        print(*row, sep=" | ")
