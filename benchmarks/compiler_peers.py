"""Who runs in the benchmark of the compiler: the same weights in each runtime, every one at its best.

A contestant may come in several variants (layouts, options): a short trial keeps the fastest of those that are right.
None is timed before its numbers agree with the eager module's.
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone gives it)
from torch import Tensor, nn

from dpcdsl import Cell, Conventions, Convolution, Size
from dpcdsl_torch import EagerCell, compile_cell
from dpcdsl_torch.eager import write

THREADS = 2
ROUNDS = 9
TURN = 0.03  # seconds of calls that a contestant gets a round, one call at least
MAP, CROP = (65, 129), (49, 49)
#: Relative errors that are let through. A gradient may differ by a few ReLUs whose inputs round to the other side of 0.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
GRADIENT_TOLERANCE = 1e-2
LAST = torch.channels_last

NCHW, CHANNELS_LAST = "eager NCHW", "eager channels_last"
COMPILE, AUTOTUNE = "torch.compile", "torch.compile max-autotune"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
OURS, FLOOR = "dpcdsl", "floor"


@dataclass(frozen=True)
class Case:
    name: str
    cell: Cell
    channels: int
    batch: int = 1
    size: Size = MAP
    projection: int | None = None
    dtype: torch.dtype = torch.float32
    #: How the map reaches the torch contestants; those that work in channels_last turn it themselves.
    layout: torch.memory_format = LAST

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.size)


@dataclass(frozen=True)
class Contestant:
    run: Callable[[], object]
    #: Runs once. The output [N, C, H, W]; after a training step the gradients as well, the input's first.
    result: Callable[[], list[Tensor]]
    #: What it reads, kept alive: the other runtimes hold no more than an address.
    reads: object = None


#: Ready, or why not: "fails", "wrong", "not installed".
Entry = Contestant | str
Variant = Callable[[], Contestant]


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_turns(contestants: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a call of each contestant, taken in turns, each round in another order.

    Outputs are dropped on the clock, as they are in a user's loop. A turn starts with a call that does not count: it
    waits for the idle threads of the one before to stop spinning. Nor does the first round.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds + 1):
        gc.collect()
        gc.freeze()  # no one's collector goes through what the others keep
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            run = contestants[name]
            run()
            taken: list[float] = []
            while sum(taken) < TURN:
                began = time.perf_counter()
                run()
                taken.append(time.perf_counter() - began)
            if turn:
                times[name].append(median(taken))
        gc.unfreeze()
    return {name: median(values) for name, values in times.items()}


# The same weights for everyone.


def weights(case: Case) -> EagerCell:
    """The eager module, its batch normalisation as if it had been trained: a folding that is wrong shows."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = EagerCell(case.cell, case.channels, projection=case.projection)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for scale in (part.weight, part.running_var):
                    scale.uniform_(0.5, 1.5)
                for shift in (part.bias, part.running_mean):
                    shift.normal_(0, 0.2)
    return module.eval()


def features(case: Case) -> Tensor:
    """In float32, NCHW; in bf16 the same values."""
    values = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
    return values.to(case.dtype).float().contiguous()


def ours(case: Case, module: EagerCell, **options: Any) -> nn.Module:
    made: nn.Module = compile_cell(case.cell, case.channels, projection=case.projection, **options)
    made.load_state_dict(module.state_dict())
    return made.to(case.dtype).train(module.training)


def pointwise(case: Case) -> Callable[[], None]:
    """The floor: the 1x1 convolutions of the cell and nothing else, each output freed before the next call."""
    maps: dict[tuple[int, ...], Tensor] = {}
    calls: list[tuple[Tensor, Tensor]] = []

    def add(size: Size, channels: int, filters: int) -> None:
        shape = (case.batch, channels, *size)
        x = maps.setdefault(shape, torch.randn(shape).to(case.dtype).contiguous(memory_format=LAST))
        calls.append((x, torch.randn(filters, channels, 1, 1).to(case.dtype).contiguous(memory_format=LAST)))

    made = (case.channels, *case.cell.out_channels(case.channels))
    for branch in case.cell.branches:
        channels, size = made[branch.input], case.size
        for layer in branch.operator.layers(case.cell.filters):
            if isinstance(layer, Convolution) and layer.kernel == (1, 1):
                add(size, channels, layer.filters)
            channels, size = layer.out_channels(channels), layer.out_size(size, case.size, Conventions())
    if case.projection is not None:
        add(case.size, sum(made[1:]), case.projection)

    @torch.inference_mode()
    def run() -> None:
        for x, weight in calls:
            F.conv2d(x, weight)

    return run


# Evaluation.


def of_torch(call: Callable[[Tensor], Tensor], x: Tensor, *, turn: bool = False) -> Contestant:
    @torch.inference_mode()
    def run() -> Tensor:
        return call(x.contiguous(memory_format=LAST) if turn else x)

    return Contestant(run, lambda: [run()])


def _eager(case: Case, module: EagerCell, x: Tensor, layout: torch.memory_format) -> Contestant:
    made = copy.deepcopy(module).to(case.dtype).to(memory_format=layout)
    if layout is LAST:
        return of_torch(made, x, turn=True)
    return of_torch(made, x.contiguous())  # a map that came as NCHW: turning it would not be this contestant's choice


def _compiled(case: Case, module: EagerCell, x: Tensor, options: dict[str, Any]) -> Contestant:
    made = copy.deepcopy(module).to(case.dtype).to(memory_format=LAST).requires_grad_(False)
    return of_torch(torch.compile(made, dynamic=False, options=options or None), x, turn=True)


def _onnx_runtime(case: Case, file: Path, x: Tensor) -> Contestant:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads spin, but not in others' turns
    for name, size in zip(("batch", "height", "width"), (case.batch, *case.size), strict=True):
        options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    output = np.zeros((case.batch, _out_channels(case), *case.size), np.float32)  # used again by every call
    value = ort.OrtValue.ortvalue_from_numpy(output)
    binding = session.io_binding()
    binding.bind_cpu_input("features", array)
    binding.bind_ortvalue_output("output", value)

    def run() -> object:
        return session.run_with_iobinding(binding)

    def result() -> list[Tensor]:
        run()
        return [torch.from_numpy(value.numpy().copy())]

    return Contestant(run, result, array)


def _openvino(case: Case, file: Path, x: Tensor, *, as_it_comes: bool) -> Contestant:
    """as_it_comes: NHWC and of the case's type, in and out; otherwise as the file says, NCHW in float32."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    core = ov.Core()
    model = core.read_model(file)
    model.reshape(list(case.shape))
    bfloat16 = as_it_comes and case.dtype is torch.bfloat16
    if as_it_comes:
        wrapped = PrePostProcessor(model)
        for end in (wrapped.input(), wrapped.output()):
            end.model().set_layout(ov.Layout("NCHW"))
            end.tensor().set_layout(ov.Layout("NHWC"))
            if bfloat16:
                end.tensor().set_element_type(ov.Type.bf16)
        model = wrapped.build()
        x = x.permute(0, 2, 3, 1).contiguous()
    if bfloat16:  # NumPy has no such type: the bits go over
        array = x.bfloat16().view(torch.int16).numpy().view(np.uint16)
        tensor = ov.Tensor(array, ov.Shape(list(x.shape)), ov.Type.bf16)
    else:
        array = x.numpy()
        tensor = ov.Tensor(array, shared_memory=True)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": "bf16" if case.dtype is torch.bfloat16 else "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(tensor)

    def run() -> None:  # into a buffer of its own, used again by every call; `infer` would copy it
        request.start_async()
        request.wait()

    def result() -> list[Tensor]:
        run()
        data = request.get_output_tensor().data.copy()
        made = torch.from_numpy(data.view(np.int16)).view(torch.bfloat16) if bfloat16 else torch.from_numpy(data)
        return [made.permute(0, 3, 1, 2) if as_it_comes else made]

    return Contestant(run, result, array)


def _out_channels(case: Case) -> int:
    return case.projection or sum(case.cell.out_channels(case.channels))


@contextmanager
def evaluation(case: Case, *, autotune: bool = True, compiled: bool = True) -> Iterator[dict[str, Entry]]:
    """Everyone who evaluates ``case``; OURS among them, FLOOR not."""
    module, plain = weights(case), features(case)
    x = plain.to(case.dtype).contiguous(memory_format=case.layout)
    with torch.inference_mode():
        wanted = [module(plain)]
    bfloat16 = case.dtype is torch.bfloat16
    tuned = torch._inductor.list_mode_options("max-autotune")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.onnx"
        write(module, file, size=case.size)
        variants: dict[str, list[Variant]] = {
            OURS: [lambda: of_torch(ours(case, module), x)],
            NCHW: [] if bfloat16 else [lambda: _eager(case, module, x, torch.contiguous_format)],
            CHANNELS_LAST: [lambda: _eager(case, module, x, LAST)],
            COMPILE: [
                lambda options=options: _compiled(case, module, x, options) for options in ({}, {"freezing": True})
            ],
            # Without freezing, max-autotune is the default with other words: on a CPU it tunes products of constants.
            AUTOTUNE: [lambda: _compiled(case, module, x, tuned | {"freezing": True})],
            ONNX_RUNTIME: [] if bfloat16 else [lambda: _onnx_runtime(case, file, plain)],
            OPENVINO: [
                lambda: _openvino(case, file, plain, as_it_comes=False),
                *([lambda: _openvino(case, file, plain, as_it_comes=True)] if case.layout is LAST else []),
            ],
        }
        if not autotune:
            del variants[AUTOTUNE]
            variants[COMPILE] = variants[COMPILE][1:]
        if not compiled:
            del variants[COMPILE]
        tolerances = [TOLERANCE[case.dtype]]
        yield {name: _ready(name, found, wanted, tolerances) for name, found in variants.items()}
    forget()


# Training.


def step(module: nn.Module, call: Callable[[Tensor], Tensor], case: Case, layout: torch.memory_format) -> Contestant:
    x = features(case).contiguous(memory_format=layout).requires_grad_()
    shape = (case.batch, _out_channels(case), *case.size)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=layout)

    def run() -> Tensor:
        x.grad = None
        module.zero_grad(set_to_none=True)
        y = call(x)
        y.backward(gradient)
        return y.detach()

    def result() -> list[Tensor]:
        y, named = run(), dict(module.named_parameters())
        return [y, *(_gradient(value) for value in (x, *(named[name] for name in sorted(named))))]

    return Contestant(run, result)


def _gradient(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad.clone()


def training(
    case: Case, compiled: tuple[torch.memory_format, ...] = (torch.contiguous_format, LAST)
) -> dict[str, Entry]:
    """Everyone who trains ``case``; OURS among them, FLOOR not. Whoever calls it forgets them afterwards.

    compiled: the layouts that torch.compile tries.
    """
    module = weights(case).train()

    def eager(layout: torch.memory_format) -> Contestant:
        made = copy.deepcopy(module).to(memory_format=layout)
        return step(made, made, case, layout)

    def compiling(layout: torch.memory_format) -> Contestant:
        made = copy.deepcopy(module).to(memory_format=layout)
        return step(made, torch.compile(made, dynamic=False), case, layout)

    def mine() -> Contestant:
        made = ours(case, module)
        return step(made, made, case, LAST)

    wanted = eager(torch.contiguous_format).result()
    variants: dict[str, list[Variant]] = {
        OURS: [mine],
        NCHW: [lambda: eager(torch.contiguous_format)],
        CHANNELS_LAST: [lambda: eager(LAST)],
        COMPILE: [lambda layout=layout: compiling(layout) for layout in compiled],
    }
    tolerances = [TOLERANCE[case.dtype], *[GRADIENT_TOLERANCE] * (len(wanted) - 1)]
    return {name: _ready(name, found, wanted, tolerances) for name, found in variants.items()}


# From variants to contestants.


def _ready(name: str, variants: list[Variant], wanted: list[Tensor], tolerances: list[float]) -> Entry:
    found, why = [], "–"
    for prepare in variants:
        try:
            contestant = prepare()
            apart = [_apart(*pair) for pair in zip(contestant.result(), wanted, strict=True)]
        except ImportError:
            why = "not installed"
        except Exception as error:
            if name == OURS:
                raise
            why = "fails"
            print(f"  {name} fails: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
        else:
            if all(distance <= allowed for distance, allowed in zip(apart, tolerances, strict=True)):
                found.append(contestant)
            else:
                assert name != OURS, f"wrong by {max(apart):.1g}, and so not timed"
                why = "wrong"
                print(f"  {name} is wrong by {max(apart):.1g}, and so not timed", file=sys.stderr)
    if len(found) < 2:
        return found[0] if found else why
    taken = in_turns({str(i): contestant.run for i, contestant in enumerate(found)}, rounds=2)
    best = min(taken, key=lambda i: taken[i])
    return found[int(best)]


def _apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, f"{tuple(found.shape)}, not {tuple(wanted.shape)}"
    if wanted.norm() == 0:
        return float(found.norm())
    return float((found.float() - wanted).norm() / wanted.norm())  # not a number is never small enough


def forget() -> None:
    """Drop what torch.compile keeps of a case: its guards would slow the next one, or make it dynamic."""
    torch._dynamo.reset()
    gc.collect()
