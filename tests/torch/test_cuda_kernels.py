"""The CUDA kernels: compiled for every architecture, loaded, launched, and kept to their memory.

What they compute is tested with the CPU's (``test_primitives.py``, ``test_compiled.py``): on a GPU where there is one,
and in any case on the CPU, by ``cuda_on_cpu.h``. What only a GPU has (graphs, streams, other devices) is tested at the
end.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_subjects import Subject, fp32_multiplied

from dpcdsl import DpcError
from dpcdsl_torch import aten, compile_cell, cuda, cuda_products, depthwise_conv2d, launch, maps, nvrtc
from dpcdsl_torch.build import Absent
from dpcdsl_torch.cuda import CudaPrimitives
from dpcdsl_torch.launch import Kernels, architecture_for
from dpcdsl_torch.nvrtc import SOURCES, Cubin, Kernel, compile_source
from dpcdsl_torch.primitives import Affine, NormGradient
from dpcdsl_torch.task import Form, Task

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
GPU = torch.device("cuda", 0)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
as_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)

# Compiling


@pytest.fixture
def compiles() -> None:
    try:
        nvrtc._nvrtc()
    except DpcError as error:
        if os.environ.get("DPCDSL_REQUIRE") == "all":
            raise
        pytest.skip(str(error))


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.cu")))
def test_every_source_compiles_and_nothing_is_spilled(name: str, architecture: str, tmp_path: Path) -> None:
    compiled = compile_source(name, architecture, tmp_path)
    assert compiled.image.startswith(b"\x7fELF")
    source = (SOURCES / name).read_text()
    assert len(compiled.kernels) >= len(re.findall("DPC_KERNEL|__global__", source)) > 0
    for kernel in compiled.kernels:
        assert kernel.registers <= 128, kernel  # two blocks of 256 threads a multiprocessor
        assert kernel.spilled == kernel.stack == 0, kernel
        assert kernel.shared <= 48 * 1024, kernel


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.setattr(nvrtc, "SOURCES", folder)
    path = folder / "one.cu"
    path.write_text('#include "taps.h"\nextern "C" __global__ void one(float* to) { *to = 1; }\n')
    return path


@pytest.mark.usefixtures("compiles", "source")
def test_it_is_compiled_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, again = compile_source("one.cu", "sm_90", cache), compile_source("one.cu", "sm_90", cache)
    assert (first.built, again.built) == (True, False)
    assert (first.image, first.kernels) == (again.image, again.kernels)
    assert [kernel.name for kernel in first.kernels] == ["one"]
    assert compile_source("one.cu", "sm_80", cache).image != first.image
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".cubin", ".cubin"], "two of them, and a lock"


@pytest.mark.usefixtures("compiles")
def test_another_source_is_another_cubin(source: Path, tmp_path: Path) -> None:
    compile_source("one.cu", "sm_90", tmp_path / "cache")
    source.write_text(source.read_text().replace("= 1", "= 2"))
    assert compile_source("one.cu", "sm_90", tmp_path / "cache").built


@pytest.mark.usefixtures("compiles", "source")
@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1], lambda data: b"\0" + data[1:]])
def test_a_damaged_cubin_is_made_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    whole = compile_source("one.cu", "sm_90", tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.cubin")
    path.write_bytes(damage(path.read_bytes()))
    again = compile_source("one.cu", "sm_90", tmp_path / "cache")
    assert again.built
    assert again.kernels == whole.kernels
    assert not compile_source("one.cu", "sm_90", tmp_path / "cache").built


@pytest.mark.usefixtures("compiles", "source")
def test_where_there_can_be_no_cache_it_is_compiled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        compiled = compile_source("one.cu", "sm_90", tmp_path / "file" / "cache")
        assert compiled.built
        assert compiled.image.startswith(b"\x7fELF")


@pytest.mark.usefixtures("compiles")
def test_what_is_not_compiled_is_said_in_one_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DpcError) as caught:
        compile_source("one.cu", "sm_1", tmp_path / "cache")
    assert str(caught.value).startswith(
        "error: NVRTC does not compile one.cu: nvrtc: error: invalid value for --gpu-arch"
    )
    source.write_text("a mistake\n")
    with pytest.raises(DpcError, match=r"^error: NVRTC does not compile one\.cu: one\.cu\(1\): error: ") as caught:
        compile_source("one.cu", "sm_90", tmp_path / "cache")
    assert "[DPC080]" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.cubin")), "nothing is left of it"


# Launching


def test_constants_are_the_sources() -> None:
    """What cuda.py says of a block, the kernels are compiled with."""
    text = "".join(path.read_text() for path in SOURCES.iterdir())
    found = {name: int(value) for name, value in re.findall(r"constexpr int k(\w+) = (\d+);", text)}
    snake = {re.sub("(?<!^)(?=[A-Z])", "_", name).upper(): value for name, value in found.items()}
    assert snake.pop("MOST_TAPS") == cuda.MOST_TAPS
    named = vars(cuda) | vars(cuda_products)
    ours = {name.lstrip("_"): value for name, value in named.items() if re.fullmatch("[A-Z_]+", name)}
    same = snake.keys() & ours.keys()
    assert {"LANES_X", "SUM_LANES_Y", "THREADS", "ROWS", "STRIDE", "BAND", "OUTER_COLUMNS", "MOST_PARTS"} <= same
    assert {name: ours[name] for name in same} == {name: snake[name] for name in same}


@as_emulated
def test_what_the_driver_refuses_is_told(subject: Subject) -> None:
    kernels = emulated_kernels(subject)
    with pytest.raises(RuntimeError, match=r"^CUDA error 1 in cuLaunchKernel: invalid argument$"):
        kernels.launch("dpc_total", (0, 1, 1), (32, 8, 1))
    with pytest.raises(RuntimeError, match=r"^CUDA error 1 in cuLaunchKernel: invalid argument$"):
        kernels.launch("dpc_total", (1, 1, 1), (32, 8, 1), shared=2**20)
    with pytest.raises(RuntimeError, match=r"^CUDA error 500 in cuModuleGetFunction: named symbol not found$"):
        Kernels(kernels._driver, {b"": (Kernel("dpc_nothing", 1, 0, 0, 0),)}, 1, lambda: 0)


def emulated_kernels(subject: Subject) -> Kernels:
    assert isinstance(subject.primitives, CudaPrimitives)
    return subject.primitives._kernels


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        *[((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((9, 0), "sm_90"), ((10, 3), "sm_100")],
        *[((12, 1), "sm_120"), ((7, 5), None), ((13, 0), None)],
    ],
)
def test_the_architecture_of_a_gpu(capability: tuple[int, int], expected: str | None) -> None:
    assert architecture_for(capability, (80, 86, 89, 90, 100, 120)) == expected


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> Iterator[dict[str, Any]]:
    """A GPU as torch would tell of it, behind the emulated driver. What is changed here changes the GPU."""
    facts: dict[str, Any] = {"capability": (9, 0), "capturing": False, "compiled": 0}
    usual_empty = torch.empty
    driver, usual = emulated_kernels(subject)._driver, ctypes.CDLL

    def compiled(name: str, architecture: str) -> Cubin:
        facts["compiled"] += 1
        return Cubin(name.encode(), architecture, (Kernel("dpc_total", 1, 0, 0, 0),), False)

    def empty(*sizes: int, device: torch.device) -> Tensor:
        assert device.type == "cuda"
        return usual_empty(*sizes)

    monkeypatch.setattr(torch, "empty", empty)

    class Properties:
        multi_processor_count = 7

    monkeypatch.delenv("DPCDSL_NATIVE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: facts["capturing"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: facts["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "device", lambda _: warnings.catch_warnings())  # a context, any
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "compile_source", compiled)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if name == "libcuda.so.1" else usual(name))
    cuda.forget()
    yield facts
    cuda.forget()


@as_emulated
def test_a_gpus_kernels_are_loaded_once(pretended: dict[str, Any]) -> None:
    first, again = launch.load(GPU), launch.load(GPU)
    assert isinstance(first, Kernels)
    assert first is again
    assert first.multiprocessors == 7
    assert launch.load(torch.device("cuda", 1)) is not first
    assert pretended["compiled"] == 2 * len(list(SOURCES.glob("*.cu")))
    assert launch.require(GPU) is first


def task(backend: str = "auto", taps: int = 1) -> Task:
    form = Form(0, 4, 4, True, True, dy=(0,) * taps, dx=(0,) * taps, kernel=(1, taps), rate=(1, 1))
    return Task(4, (form,), backend=backend)


@as_emulated
@pytest.mark.usefixtures("pretended")
def test_which_maps_run_on_them() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert isinstance(maps.primitives_for(task(), GPU, dtype), CudaPrimitives)
        assert maps.primitives_for(task("aten"), GPU, dtype) is aten.PRIMITIVES
        assert maps.primitives_for(task(taps=1025), GPU, dtype) is aten.PRIMITIVES
    assert maps.primitives_for(task(), GPU, torch.float64) is aten.PRIMITIVES
    assert not isinstance(maps.primitives_for(task(), torch.device("cpu"), torch.float32), CudaPrimitives)


@as_emulated
def test_nothing_is_loaded_while_a_graph_is_captured(pretended: dict[str, Any]) -> None:
    pretended["capturing"] = True
    with pytest.raises(DpcError, match="not loaded yet, and cannot be while a graph is captured") as caught:
        launch.load(GPU)
    assert "run the cell once before the capture" in str(caught.value)
    pretended["capturing"] = False
    loaded = launch.load(GPU)
    pretended["capturing"] = True
    assert launch.load(GPU) is loaded


@as_emulated
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("old", "they need a GPU of compute capability 8.0 or more, and this one has 7.5"),
        ("new", "NVRTC knows no GPU of compute capability 14.0"),
        ("off", "DPCDSL_NATIVE=0 turns them off"),
        ("no driver", "libcuda.so.1: no such file"),
        ("old driver", "CUDA error 500 in cuModuleGetFunction: named symbol not found"),
        ("no compiler", "there is no NVRTC"),
    ],
)
def test_where_there_can_be_no_kernels_it_is_said_once(
    change: str, reason: str, pretended: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: no such file")

    def refused() -> Any:
        raise DpcError.of("DPC080", "there is no NVRTC", hint="install it")

    if change in ("old", "new"):
        pretended["capability"] = (7, 5) if change == "old" else (14, 0)
    elif change == "off":
        monkeypatch.setenv("DPCDSL_NATIVE", "0")
    elif change == "no driver":
        monkeypatch.setattr(ctypes, "CDLL", missing)
    elif change == "old driver":
        names = (Kernel("dpc_unknown", 1, 0, 0, 0),)
        monkeypatch.setattr(nvrtc, "compile_source", lambda name, _: Cubin(name.encode(), "sm_90", names, False))
    else:
        monkeypatch.setattr(nvrtc, "architectures", refused)
    outcome = launch.load(GPU)
    assert isinstance(outcome, Absent)
    assert outcome.reason == reason
    assert outcome.remedy
    with pytest.warns(UserWarning, match=re.escape(f"CUDA kernels are not used: {reason}; running on ATen")):
        assert maps.primitives_for(task(), GPU, torch.float32) is aten.PRIMITIVES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert maps.primitives_for(task(), GPU, torch.float32) is aten.PRIMITIVES
    with pytest.raises(DpcError, match=re.escape(f"the CUDA kernels cannot be used: {reason}")):
        maps.primitives_for(task("native"), GPU, torch.float32)


def test_what_the_doctor_says() -> None:
    (fact,) = launch.status().values()
    assert fact.startswith("active" if torch.cuda.is_available() else "not active: no GPU; NVRTC could compile")


@as_emulated
def test_too_many_positions_are_refused(subject: Subject) -> None:
    x = torch.empty(1, 1, 1, 1).expand(1, 1, 2**16, 2**15)
    vector = torch.ones(1)
    with pytest.raises(DpcError, match="a map of 2147483648 positions"):
        subject.primitives.affine(x, Affine(vector, vector, False), x)


# Computing: what the differential tests do not say


def to_tf32(x: Tensor) -> Tensor:
    """The nearest number of 10 bits behind the point; of two as near, the one that is farther from 0."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@as_emulated
@pytest.mark.parametrize("how", ["ieee", "tf32"])
def test_fp32_is_multiplied_as_the_setting_says(subject: Subject, how: str) -> None:
    x, weight, out = torch.randn(2, 40, 5, 9), torch.randn(24, 40), torch.empty(2, 24, 5, 9)
    x, out = (t.contiguous(memory_format=torch.channels_last) for t in (x, out))
    value = to_tf32 if how == "tf32" else lambda t: t
    with fp32_multiplied(how):
        subject.primitives.pointwise(x, None, weight, out, False)
        ones, zeros = torch.ones(24), torch.zeros(24)
        norm = NormGradient(Affine(ones, zeros, False), ones, zeros, zeros, zeros)
        dw, _ = subject.primitives.pointwise_backward((out,), out, norm, x, None, weight, None, False, None)
    expected = torch.einsum("nchw,fc->nfhw", value(x).double(), value(weight).double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-5)
    expected = torch.einsum("nchw,nfhw->fc", value(x).double(), value(out).double())
    torch.testing.assert_close(dw.double(), expected, rtol=0, atol=3e-4)
    assert (to_tf32(x) != x).any()


FENCED = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import ctypes, mmap, torch, torch_subjects
from test_primitives import PASSES, Case, Split

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
kept = []

# The same, right before a page that nobody may touch, and less than a page behind another.
def fenced(value):
    if isinstance(value, tuple):
        parts = map(fenced, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if not isinstance(value, torch.Tensor) or value.numel() == 0:
        return value
    whole = value if value._base is None else value._base
    size = whole.numel() * whole.itemsize
    pages = -(-size // PAGE)
    block = mmap.mmap(-1, (pages + 2) * PAGE)
    kept.append(block)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for fence in (address, address + (pages + 1) * PAGE):
        assert libc.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), 0) == 0
    at = (pages + 1) * PAGE - size
    storage = torch.frombuffer(block, dtype=whole.dtype, count=whole.numel(), offset=at)
    storage.copy_(whole.as_strided((whole.numel(),), (1,)))
    return storage.as_strided(value.shape, value.stride(), value.storage_offset() - whole.storage_offset())

primitives = torch_subjects.emulated(Path(sys.argv[3]), "g++")
with torch_subjects.fp32_multiplied("ieee"):
    for dtype in (torch.float32, torch.bfloat16):
        for sliced in (False, True):
            for c, filters, h, w in ((33, 17, 9, 7), (32, 40, 5, 13), (72, 136, 9, 8)):
                case = Case(c=c, filters=filters, h=h, w=w, dtype=dtype, sliced=sliced, rate=(2, 3))
                for name, run in PASSES.items():
                    run(primitives, case.draws(), fenced)
                Split(case, (2, 1), filters, ((2, 3),), sliced, True).run(primitives, fenced)
print("done", flush=True)
if len(sys.argv) > 4:  # and the fence holds
    ctypes.string_at(ctypes.addressof(ctypes.c_char.from_buffer(kept[-1])), 1)
"""


@pytest.mark.parametrize("beyond", [False, True])
def test_no_access_beside_memory(
    beyond: bool, needs: Callable[[str], str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every map and vector that a pass is given lies between pages that nobody may touch."""
    needs("g++")
    program = tmp_path / "fenced.py"
    program.write_text(FENCED)
    here = Path(__file__).parent
    shared = tmp_path_factory.getbasetemp().parent / "kernels"
    arguments = [str(here), str(here.parent), str(shared), *(["beyond"] if beyond else [])]
    done = subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "done\n", done.stderr[-3000:]
    assert (done.returncode == 0) is not beyond


# On a GPU


def a_cell(**options: Any) -> Any:
    return compile_cell("top1", 64, backend="native", dropout=0.0, **options).to(GPU)


def on_another_stream(run: Callable[[], object]) -> None:
    """As a capture wants it to have run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)


@needs_gpu
def test_a_captured_graph_computes_anew() -> None:
    module = a_cell(projection=64).eval()
    x = torch.randn(2, 64, 33, 33, device=GPU).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        on_another_stream(lambda: module(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        for _ in range(2):
            x.normal_()
            graph.replay()
            assert torch.equal(y, module(x))


@needs_gpu
def test_a_captured_evaluation_follows_the_weights() -> None:
    """Folding is part of the graph: what was folded before may be given back at any time."""
    module = a_cell().eval()
    x = torch.randn(2, 64, 33, 33, device=GPU)
    with torch.no_grad():
        on_another_stream(lambda: module(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        for parameter in module.parameters():
            parameter.mul_(0.5)
        expected = module(x)
        graph.replay()
        assert torch.equal(y, expected)


@needs_gpu
def test_torch_compile_sees_one_operator() -> None:
    module = a_cell().eval()
    x = torch.randn(2, 64, 33, 33, device=GPU)
    with torch.no_grad():
        assert_near(torch.compile(module, fullgraph=True)(x), module(x))


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@needs_gpu
def test_a_captured_training_step_is_the_step() -> None:
    x = torch.randn(2, 64, 33, 33, device=GPU)
    module, twin = a_cell().train(), a_cell().train()
    twin.load_state_dict(module.state_dict())

    def step(trained: Any) -> None:
        trained.zero_grad(set_to_none=True)
        trained(x).square().mean().backward()

    on_another_stream(lambda: step(module))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(module)
    x.normal_()
    graph.replay()
    step(twin)
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    module = a_cell().train()
    x = torch.randn(2, 64, 33, 33, device=GPU, requires_grad=True)
    module(x).sum().backward()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@needs_gpu
def test_another_stream() -> None:
    module = a_cell().eval()
    x = torch.randn(2, 64, 33, 33, device=GPU)
    results = []
    with torch.no_grad():
        on_another_stream(lambda: results.append(module(x)))
        assert torch.equal(results[0], module(x))


@needs_gpu
def test_the_same_bits_in_every_run() -> None:
    module = a_cell().train()
    x = torch.randn(2, 64, 33, 33, device=GPU)
    every = []
    for _ in range(3):
        module.zero_grad()
        module(x).square().sum().backward()
        every.append([p.grad.clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for run in every[1:] for a, b in zip(run, every[0], strict=True))


@needs_gpu
def test_depthwise_on_a_gpu() -> None:
    x, weight = torch.randn(2, 24, 19, 17, device=GPU), torch.randn(24, 1, 3, 3, device=GPU)
    with fp32_multiplied("ieee"):
        expected = torch.nn.functional.conv2d(x, weight, padding="same", dilation=(2, 5), groups=24)
    torch.testing.assert_close(depthwise_conv2d(x, weight, (2, 5)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_devices_in_one_process() -> None:
    module = a_cell().eval()
    x = torch.randn(2, 64, 33, 33, device=GPU)
    with torch.no_grad():
        expected = module(x)
        found = module.to("cuda:1")(x.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert torch.equal(found.to(GPU), expected)


@needs_gpu
@pytest.mark.soak
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str, needs: Callable[[str], str]) -> None:
    command = [
        needs("compute-sanitizer"),
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "pytest",
        "-q",
    ]
    tests = Path(__file__).parent / "test_primitives.py"
    chosen = "cuda and (many_channels or many_positions or many_filters)"
    done = subprocess.run(
        [*command, str(tests), "-k", chosen], capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
