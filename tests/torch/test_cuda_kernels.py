"""The CUDA kernels: compiled for every architecture, and computing on the CPU what they would on a GPU.

``cuda_on_cpu.h`` runs a launch by the CPU's threads. What a GPU adds to that (its memory model, its speed) is not
tested here.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpcdsl import DpcError
from dpcdsl_torch import nvrtc
from dpcdsl_torch.aten import AtenPrimitives
from dpcdsl_torch.build import KERNELS
from dpcdsl_torch.nvrtc import SOURCES, compile_source
from dpcdsl_torch.primitives import Taps

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
ATEN = AtenPrimitives()
MARGIN = 7.0  # what lies beside an output, and must still lie there afterwards

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
    assert len(compiled.kernels) >= source.count("__global__") > 0
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


# Computing


class _Map(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64) for name in ("n", "h", "w", "c", "stride_n", "stride_h", "stride_w", "stride_c")),
        ("type", c_int32),
    )


class _Taps(ctypes.Structure):
    _fields_ = (("count", c_int32), ("dy", c_int32 * 1024), ("dx", c_int32 * 1024))


def as_map(tensor: Tensor) -> _Map:
    n, c, h, w = tensor.shape
    in_n, in_c, in_h, in_w = tensor.stride()
    return _Map(tensor.data_ptr(), n, h, w, c, in_n, in_h, in_w, in_c, 0)


def as_taps(taps: Taps, sign: int = 1) -> _Taps:
    structure = _Taps(len(taps.dy))
    for t, (dy, dx) in enumerate(zip(*taps, strict=True)):
        structure.dy[t], structure.dx[t] = sign * dy, sign * dx
    return structure


def sizes(*counts: int) -> ctypes.Array[ctypes.c_uint]:
    return (ctypes.c_uint * 3)(*counts, *[1] * (3 - len(counts)))


@pytest.fixture(scope="module")
def emulated(needs: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("cuda") / "cuda_kernels.so"
    source = Path(__file__).parent / "cuda_kernels.cpp"
    flags = (
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-pthread",
        "-Wno-unknown-pragmas",
        f"-I{KERNELS}",
        f"-I{SOURCES}",
    )
    subprocess.run([needs("g++"), *flags, str(source), "-o", str(library)], check=True, timeout=300)
    return ctypes.CDLL(str(library))


NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Case:
    n: int
    vectors: int
    h: int
    w: int
    kernel: tuple[int, int]
    rate: tuple[int, int]
    dtype: torch.dtype
    single: bool  # a channel at a time, of maps that are not aligned to more
    seed: int

    @property
    def together(self) -> int:
        return 1 if self.single else 16 // self.dtype.itemsize

    @property
    def channels(self) -> int:
        return self.vectors * self.together

    @property
    def taps(self) -> Taps:
        rows, columns = (
            [(i - (size - 1) // 2) * step for i in range(size)]
            for size, step in zip(self.kernel, self.rate, strict=True)
        )
        return Taps(tuple(y for y in rows for _ in columns), tuple(x for _ in rows for x in columns))

    def map(self, generator: torch.Generator) -> Tensor:
        """A range of channels of a larger map."""
        beside = self.together
        whole = torch.full((self.n, self.channels + 2 * beside, self.h, self.w), MARGIN, dtype=self.dtype)
        view = whole.contiguous(memory_format=torch.channels_last)[:, beside : beside + self.channels]
        view.copy_(torch.randn(view.shape, generator=generator))
        return view


cases = st.builds(
    Case,
    n=st.integers(1, 3),
    vectors=st.integers(1, 40),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rate=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(list(NAMES)),
    single=st.booleans(),
    seed=st.integers(0, 999),
)
some = settings(max_examples=25, deadline=None)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.abs().max()) + 1.0
    assert float((found.double() - expected).abs().max()) <= TOLERANCE[dtype] * scale


def assert_margins(view: Tensor, beside: int) -> None:
    whole = view._base
    assert whole is not None
    assert torch.all(whole[:, :beside] == MARGIN)
    assert torch.all(whole[:, -beside:] == MARGIN)


@pytest.mark.parametrize("backward", [False, True])
def test_depthwise(emulated: ctypes.CDLL, backward: bool) -> None:
    """Forward with bias and ReLU; the input's gradient is added to what is there."""

    @some
    @given(case=cases)
    def check(case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        x, y = case.map(generator), case.map(generator)
        taps = case.taps
        weight = torch.randn(len(taps.dy), case.channels, generator=generator)
        bias = torch.randn(case.channels, generator=generator)
        expected = y.double()
        if backward:
            ATEN.depthwise_backward(x.double(), None, weight.double(), taps, expected, True)
        else:
            ATEN.depthwise(x.double(), weight.double(), taps, expected, False)
            expected = (expected + bias.double()[:, None, None]).clamp(min=0)
        positions = case.n * case.h * case.w
        emulated.launch_depthwise(
            getattr(emulated, f"dpc_depthwise_{NAMES[case.dtype]}_{case.together}"),
            sizes(-(-positions // 16), -(-case.vectors // 32)),
            sizes(32, 4),
            *(ctypes.byref(as_map(x)), ctypes.byref(as_map(y)), ctypes.byref(as_taps(taps, -1 if backward else 1))),
            *(c_void_p(weight.data_ptr()), None if backward else c_void_p(bias.data_ptr())),
            *(c_float(float("-inf") if backward else 0.0), c_int(backward)),
        )
        assert_near(y, expected, case.dtype)
        assert_margins(y, case.together)

    check()


def test_depthwise_weight(emulated: ctypes.CDLL) -> None:
    @some
    @given(case=cases, share=st.integers(1, 100))
    def check(case: Case, share: int) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        g, x = case.map(generator), case.map(generator)
        taps = case.taps
        expected = ATEN.depthwise_backward(g.double(), x.double(), None, taps, None, False)
        assert expected is not None
        shares = -(-case.n * case.h * case.w // share)
        partial = torch.full((shares, len(taps.dy), case.channels), float("nan"))
        total = torch.full(expected.shape, float("nan"))
        emulated.launch_depthwise_weight(
            getattr(emulated, f"dpc_depthwise_weight_{NAMES[case.dtype]}_{case.together}"),
            sizes(shares, -(-case.vectors // 32)),
            sizes(32, 8),
            *(ctypes.byref(as_map(g)), ctypes.byref(as_map(x)), ctypes.byref(as_taps(taps))),
            *(c_int(share), c_void_p(partial.data_ptr())),
        )
        emulated.launch_total(
            *(sizes(-(-total.numel() // 32)), sizes(32), c_void_p(partial.data_ptr()), c_int(shares)),
            *(c_int64(total.numel()), c_void_p(total.data_ptr())),
        )
        assert_near(total, expected, torch.float32)

    check()
