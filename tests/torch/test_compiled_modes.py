"""The fused module among what else happens to a module: autocast, threads, torch.compile, export, several processes."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import all_near, features, near, pair, tiny
from torch import Tensor

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError

# Types


@pytest.mark.parametrize("mode", ["eval", "tuned", "train"])
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_autocast(mixed: Cell, mode: str, backend: str) -> None:
    eager, compiled = pair(mixed, 6, backend=backend)
    exact = copy.deepcopy(eager).double()
    x = features()
    runs = []
    for module, kind in ((exact, torch.float64), (eager, None), (compiled, None)):
        module.train(mode == "train")
        leaf = x.to(kind or torch.float32).requires_grad_(mode != "eval")
        with torch.set_grad_enabled(mode != "eval"), torch.autocast("cpu", torch.bfloat16, enabled=kind is None):
            y = module(leaf)
        leaves = [leaf, *module.parameters()]
        runs.append((y, [] if mode == "eval" else torch.autograd.grad(y.float().square().sum(), leaves)))
    (truth, true_gradients), (theirs, their_gradients), (ours, our_gradients) = runs
    assert ours.dtype == theirs.dtype == torch.bfloat16

    def error(found: Tensor, wanted: Tensor) -> float:
        return float((found.detach().double() - wanted.detach()).norm())

    assert error(ours, truth) <= max(2e-2 * float(truth.detach().norm()), 1.5 * error(theirs, truth))
    for own, their, true in zip(our_gradients, their_gradients, true_gradients, strict=True):
        assert own.dtype == their.dtype == torch.float32
        assert error(own, true) <= 0.1 * float(true.norm()) + 2 * error(their, true)
    with torch.no_grad():  # and nothing stays behind
        near(compiled.eval()(x).double(), exact.eval()(x.double()), 2e-2)


def test_autocast_of_a_module_that_is_evaluated_in_both_ways(mixed: Cell, folds: list[str]) -> None:
    eager, compiled = pair(mixed)
    x = features()
    with torch.no_grad():
        for _ in range(2):
            near(compiled(x), eager(x))
            with torch.autocast("cpu", torch.bfloat16):
                near(compiled(x), eager(x), 3e-2)
    assert folds


@pytest.mark.parametrize("training", [True, False])
def test_another_type_than_the_weights_is_told(mixed: Cell, training: bool) -> None:
    _, compiled = pair(mixed)
    compiled.train(training)
    for kind in (torch.float64, torch.bfloat16, torch.int64):
        with torch.no_grad(), pytest.raises(DpcError, match=r"the map is torch\..*weights are torch.float32") as error:
            compiled(features().to(kind))
        assert error.value.codes == ("DPC062",)
    with torch.no_grad(), pytest.raises(DpcError, match="the map is on meta"):
        compiled(features().to("meta"))


# Threads


@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_many_threads_run_one_module(mixed: Cell, backend: str) -> None:
    _, compiled = pair(Cell(branches=mixed.branches, filters=40), 40, backend=backend)
    maps = [features(1, 40, 20 + i % 3 * 40, 33 + i) for i in range(24)]

    def evaluate(x: Tensor) -> Any:
        with torch.no_grad():
            return compiled(x)

    def learn(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        y = compiled(leaf)
        return (y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *compiled.parameters()]))

    expected = [evaluate(x) for x in maps]
    compiled.refold()
    with ThreadPoolExecutor(8) as pool:
        assert all(map(torch.equal, pool.map(evaluate, maps), expected))
    compiled.train()
    in_turn = [learn(x) for x in maps]
    with ThreadPoolExecutor(8) as pool:
        for ours, theirs in zip(pool.map(learn, maps), in_turn, strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_threads_never_see_old_weights_or_another_type(mixed: Cell) -> None:
    _, compiled = pair(mixed)
    x = features(1, 6, 2, 2)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failures: list[str] = []

    def run(rough: bool, gate: threading.Barrier, found: list[Tensor | None], at: int) -> None:
        gate.wait()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rough):
            found[at] = compiled(x)

    try:
        for _ in range(40):
            with torch.no_grad():
                compiled.projection.bn.bias.add_(1)
            gate = threading.Barrier(4)
            found: list[Tensor | None] = [None] * 4
            workers = [threading.Thread(target=run, args=(i == 0, gate, found, i)) for i in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            compiled.refold()
            with torch.no_grad():
                expected = compiled(x)
            for i, one in enumerate(found):
                if one is None or (one.float() - expected).norm() > (0.05 if i == 0 else 1e-5) * expected.norm():
                    failures.append(f"thread {i}")
    finally:
        sys.setswitchinterval(before)
    assert not failures


# torch.compile and torch.export


COMPILERS = ["aot_eager", "inductor"]


@pytest.mark.parametrize("backend", COMPILERS)
def test_torch_compile_of_an_evaluation(backend: str) -> None:
    torch._dynamo.reset()
    eager, compiled = pair(tiny(8), 6)
    optimised: Any = torch.compile(compiled, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for x in (
            features(2, 6, 9, 7),
            features(3, 6, 12, 5),
            features(2, 6, 9, 7).to(memory_format=torch.channels_last),
        ):
            near(optimised(x), eager(x))
        for module in (eager, compiled):  # folding is in the graph
            module.projection.weight.mul_(2)
            module.branches[0].depthwise.bn.running_mean.add_(1)
        near(optimised(x), eager(x))


@pytest.mark.parametrize("backend", COMPILERS)
@pytest.mark.parametrize("mode", ["train", "tuned"])
def test_torch_compile_of_training(backend: str, mode: str) -> None:
    torch._dynamo.reset()
    eager, compiled = pair(tiny(8), 6)
    for module in (eager, compiled):
        module.train(mode == "train")
    optimised: Any = torch.compile(compiled, backend=backend, fullgraph=True, dynamic=True)
    for shape in ((2, 6, 9, 7), (3, 6, 8, 10)):
        x = features(*shape)
        ours, theirs = (
            (y, torch.autograd.grad(y.square().sum(), [leaf, *owner.parameters()]))
            for owner, module in ((compiled, optimised), (eager, eager))
            for leaf in [x.clone().requires_grad_()]
            for y in [module(leaf)]
        )
        near(ours[0], theirs[0])
        all_near(ours[1], theirs[1], 2e-3)  # without fp64 to compare with
    for name, buffer in eager.named_buffers():
        near(compiled.get_buffer(name), buffer)


def test_torch_compile_in_bfloat16_and_under_autocast() -> None:
    torch._dynamo.reset()
    _, compiled = pair(tiny(8), 6)
    x = features()

    def cast(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x)

    for training in (True, False):
        compiled.train(training)
        expected = cast(x)
        expected.sum().backward()
        found: Any = torch.compile(cast, backend="aot_eager", fullgraph=True)(x)
        near(found, expected, 1e-2)
        found.sum().backward()
    rough = copy.deepcopy(compiled).bfloat16()
    for training in (True, False):
        rough.train(training)
        optimised: Any = torch.compile(rough, backend="aot_eager", fullgraph=True)
        found = optimised(x.bfloat16())
        near(found, rough(x.bfloat16()), 1e-2)
        found.sum().backward()


@pytest.mark.parametrize("projection", [None, 4])
def test_export(mixed: Cell, projection: int | None) -> None:
    eager, compiled = pair(mixed, projection=projection)
    free = torch.export.Dim.AUTO
    exported = torch.export.export(compiled, (features(),), dynamic_shapes=({0: free, 2: free, 3: free},))
    assert any("dpcdsl.cell" in str(node.target) for node in exported.graph.nodes)
    for shape in ((2, 6, 9, 7), (3, 6, 25, 17)):
        x = features(*shape)
        with torch.no_grad():
            near(exported.module()(x), eager(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace(mixed: Cell) -> None:
    eager, compiled = pair(mixed)
    x = features()
    with torch.no_grad():
        traced = torch.jit.trace(compiled, x, check_trace=False)  # type: ignore[no-untyped-call]
        near(traced(x + 1), eager(x + 1))


# Processes


def script(path: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    path.write_text("import torch\ntorch.set_num_threads(1)\ntorch.manual_seed(0)\n" + text)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str], within: float = 120) -> str:
    try:
        out, error = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, error
    return out


CELL = """
import dpcdsl, sys
from dpcdsl_torch import compile_cell, memory
cell = dpcdsl.parse_cell("filters 32 (F, sepconv3x3 rate 1x6, Y1) (Y1, avgpool grid 1x1, Y2) (F, conv1x1, Y3)")
module = compile_cell(cell, 16, projection=8)
"""


def test_no_compiler_of_torchs_is_imported(tmp_path: Path) -> None:
    text = """
module(torch.randn(2, 16, 33, 33)).sum().backward()
module.eval()(torch.randn(2, 16, 9, 9)).sum().backward()
with torch.no_grad():
    module(torch.randn(2, 16, 9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(2, 16, 9, 9))
print([name for name in ("triton", "torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    before = "print([n for n in ('triton', 'torch._dynamo', 'torch._inductor', 'sympy') if n in sys.modules])"
    out = finished(script(tmp_path / "plain.py", f"import sys\n{before}\n{CELL}{text}"))
    assert out.splitlines()[1] == out.splitlines()[0] or out.splitlines()[1] == "[]"
    assert "torch._dynamo" not in out
    assert "triton" not in out


def test_a_fork_inherits_no_held_lock(tmp_path: Path) -> None:
    text = """
import os
x = torch.randn(2, 16, 65, 65)
module.eval()
with torch.no_grad():
    expected = module(x)
    with memory._pool.lock:
        child = os.fork()
        if child == 0:
            same = torch.equal(module(x), expected)
            memory.release()
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(module(x), expected)
print("done")
"""
    assert finished(script(tmp_path / "fork.py", CELL + text), 60) == "done\n"


def test_the_collector_may_free_maps_at_any_moment(tmp_path: Path) -> None:
    text = """
import gc
gc.set_threshold(1)
class Holder: pass
for _ in range(2000):
    holder = Holder()
    holder.itself, holder.map = holder, memory.empty((1, 64, 70, 70), torch.float32)
    del holder
print("done")
"""
    assert finished(script(tmp_path / "collect.py", CELL + text), 60) == "done\n"


def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    text = """
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for tune in (True, False):
    module = compile_cell(cell, 16, projection=8, dropout=0.0, fine_tune_batch_norm=tune).train()
    halves = torch.randn(2, 2, 16, 9, 7)
    for half in halves:
        module(half).square().sum().backward()
    expected = [p.grad / 2 for p in module.parameters()]
    parallel = DistributedDataParallel(module)
    for _ in range(2):
        module.zero_grad()
        parallel(halves[rank]).square().sum().backward()
        for p, wanted in zip(module.parameters(), expected):
            assert (p.grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6, (p.shape, (p.grad - wanted).norm())
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    gathered = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(gathered, flat)
    assert torch.equal(*gathered)
dist.destroy_process_group()
print("done")
"""
    both = [script(tmp_path / f"{rank}.py", CELL + text, str(rank), str(tmp_path / "meeting")) for rank in range(2)]
    assert [finished(process) for process in both] == ["done\n", "done\n"]
