"""The CUDA kernels: compiled for every architecture, and computing on the CPU what they would on a GPU.

``cuda_on_cpu.h`` runs a launch by the CPU's threads. What a GPU adds to that (its memory model, its speed) is not
tested here.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p
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
from dpcdsl_torch.primitives import Affine, Taps

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
def emulated(needs: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Emulated:
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
    return Emulated(ctypes.CDLL(str(library)))


Argument = Tensor | _Map | _Taps | c_int64 | float | int | None


@dataclass(frozen=True)
class Emulated:
    library: ctypes.CDLL

    def __call__(self, kernel: str, form: str, grid: tuple[int, ...], block: tuple[int, ...], *given: Argument) -> None:
        """Launch ``dpc_{kernel}{form}``; vectors as tensors, whole numbers of 64 bits as ``c_int64``."""
        launch = getattr(self.library, f"launch_{kernel}")
        launch(getattr(self.library, f"dpc_{kernel}{form}"), sizes(*grid), sizes(*block), *map(_passed, given))

    def each(self, kernel: str, case: Case, *given: Argument) -> None:
        """For all positions and channels of the maps of a case."""
        self(kernel, case.form, (-(-case.positions // 16), -(-case.vectors // 32)), (32, 4), *given)

    def sums(self, kernel: str, case: Case, share: int, *given: Argument) -> None:
        """For parts of sums over positions."""
        self(kernel, case.form, (case.blocks(share), -(-case.vectors // 32)), (32, 8), *given)

    def total(self, partial: Tensor) -> Tensor:
        found = torch.full(partial.shape[1:], float("nan"))
        count = found.numel()
        self("total", "", (-(-count // 32),), (32,), partial, len(partial), c_int64(count), found)
        return found


def _passed(given: Argument) -> object:
    if isinstance(given, Tensor):
        return c_void_p(given.data_ptr())
    if isinstance(given, ctypes.Structure):
        return ctypes.byref(given)
    return c_float(given) if isinstance(given, float) else given


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
    def positions(self) -> int:
        return self.n * self.h * self.w

    @property
    def form(self) -> str:
        return f"_{NAMES[self.dtype]}_{self.together}"

    def blocks(self, share: int) -> int:
        return -(-self.positions // share)

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
        view.copy_(self.numbers(generator, *view.shape))
        return view

    def numbers(self, generator: torch.Generator, *shape: int) -> Tensor:
        """That every type has: what they are multiplied and added to is then the same in fp32 and fp64."""
        return torch.randint(-32, 33, shape, generator=generator) / 16


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
shares = st.integers(1, 100)
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
def test_depthwise(emulated: Emulated, backward: bool) -> None:
    """Forward with bias and ReLU; the input's gradient is added to what is there."""

    @some
    @given(case=cases)
    def check(case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        x, y, taps = case.map(generator), case.map(generator), case.taps
        weight, bias = case.numbers(generator, len(taps.dy), case.channels), case.numbers(generator, case.channels)
        expected = y.double()
        if backward:
            ATEN.depthwise_backward(x.double(), None, weight.double(), taps, expected, True)
            given = as_taps(taps, -1), weight, None, float("-inf"), 1
        else:
            ATEN.depthwise(x.double(), weight.double(), taps, expected, False)
            expected = (expected + bias.double()[:, None, None]).clamp(min=0)
            given = as_taps(taps), weight, bias, 0.0, 0
        emulated.each("depthwise", case, as_map(x), as_map(y), *given)
        assert_near(y, expected, case.dtype)
        assert_margins(y, case.together)

    check()


def test_depthwise_weight(emulated: Emulated) -> None:
    @some
    @given(case=cases, share=shares)
    def check(case: Case, share: int) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        g, x, taps = case.map(generator), case.map(generator), case.taps
        expected = ATEN.depthwise_backward(g.double(), x.double(), None, taps, None, False)
        assert expected is not None
        partial = torch.full((case.blocks(share), len(taps.dy), case.channels), float("nan"))
        emulated.sums("depthwise_weight", case, share, as_map(g), as_map(x), as_taps(taps), share, partial)
        assert_near(emulated.total(partial), expected, torch.float32)

    check()


def test_moments(emulated: Emulated) -> None:
    """Of numbers far from 0, too, and near each other."""

    @some
    @given(case=cases, share=shares, far=st.sampled_from([0.0, 1000.0]))
    def check(case: Case, share: int, far: float) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        x = case.map(generator)
        x += far
        mean, deviations = torch.full((2, case.blocks(share), case.channels), float("nan"), dtype=torch.float64)
        emulated.sums("moments", case, share, as_map(x), share, mean, deviations)
        found = torch.full((2, case.channels), float("nan"))
        counts = c_int64(case.positions), c_int64(case.channels)
        grid = (-(-case.channels // 32),)
        emulated("moments_total", "", grid, (32,), mean, deviations, share, *counts, *found)
        variance, middle = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        assert_near(found[0], middle, torch.float32)
        assert_near(found[1], variance, torch.float32)

    check()


def test_affine(emulated: Emulated) -> None:
    @some
    @given(case=cases, relu=st.booleans())
    def check(case: Case, relu: bool) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        x, y = case.map(generator), case.map(generator)
        scale, shift = case.numbers(generator, 2, case.channels)
        expected = torch.empty_like(y, dtype=torch.float64)
        ATEN.affine(x.double(), Affine(scale.double(), shift.double(), relu), expected)
        emulated.each("affine", case, as_map(x), scale, shift, 0.0 if relu else float("-inf"), as_map(y))
        assert_near(y, expected, case.dtype)
        assert_margins(y, case.together)

    check()


def test_gradient_sums(emulated: Emulated) -> None:
    @some
    @given(case=cases, share=shares, relu=st.booleans(), both=st.booleans())
    def check(case: Case, share: int, relu: bool, both: bool) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        x, *gradients = (case.map(generator) for _ in range(2 + both))
        scale, shift, mean, inverse = case.numbers(generator, 4, case.channels)
        shift += 1 / 512  # no value is 0, where the ReLU is either
        affine = Affine(scale.double(), shift.double(), relu)
        given = tuple(g.double() for g in gradients)
        plain, by_value = ATEN.gradient_sums(given, x.double(), affine, mean.double(), inverse.double())
        partial = torch.full((case.blocks(share), 2, case.channels), float("nan"))
        one, two = as_map(gradients[0]), as_map(gradients[1]) if both else None
        floor = 0.0 if relu else float("-inf")
        emulated.sums(
            "gradient_sums", case, share, one, two, as_map(x), scale, shift, floor, mean, inverse, share, partial
        )
        found = emulated.total(partial)
        assert_near(found[0], plain, torch.float32)
        assert_near(found[1], by_value, torch.float32)

    check()


def test_affine_backward(emulated: Emulated) -> None:
    @some
    @given(case=cases)
    def check(case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        g, x = case.map(generator), case.map(generator)
        factors = case.numbers(generator, 4, case.channels)
        expected = g.double()
        ATEN.affine_backward(expected, x.double(), *factors.double())
        emulated.each("affine_backward", case, as_map(g), as_map(x), *factors)
        assert_near(g, expected, case.dtype)
        assert_margins(g, case.together)

    check()
