"""The kernel of dropout: exactly the hash that it says, its share, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpcdsl_torch import build, compile_cell, native
from dpcdsl_torch.dropout import dropped

pytestmark = pytest.mark.skipif(not isinstance(build.load(), build.Native), reason="there are no native kernels")


def kept_by_hand(count: int, kept: int, seed: int) -> Any:
    """Place by place, in whole numbers of Python's."""

    def mixed(h: int) -> int:
        h ^= h >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h ^= h >> 13
        h = h * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ h >> 16

    found = []
    for place in range(count):
        group, within = divmod(place, 32)
        word = group * 16 + within % 16
        bits = mixed(mixed((word & 0xFFFFFFFF) ^ (seed & 0xFFFFFFFF)) + (seed >> 32) & 0xFFFFFFFF)
        found.append((bits >> 16 if within >= 16 else bits & 0xFFFF) < kept)
    return np.array(found)


def drop(x: Tensor, kept: int, seed: int) -> Tensor:
    return torch.ops.dpcdsl.dropout(x, torch.tensor(seed), kept)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 3), (1, 1, 1, 1), (1, 32, 1, 1), (3, 16, 4, 9), (2, 33, 5, 1), (0, 3, 2, 2)]
)
def test_it_is_the_hash(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    for kept, seed in ((58982, 12345678901234567), (1, 3), (32768, 2**63 - 2), (65535, 0)):
        expected = kept_by_hand(x.numel(), kept, seed)
        flat = x.permute(0, 2, 3, 1).reshape(-1).float().numpy()
        wanted = torch.from_numpy(np.where(expected, flat * np.float32(65536 / kept), np.float32(0))).to(dtype)
        found = drop(x, kept, seed)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.permute(0, 2, 3, 1).reshape(-1), wanted, rtol=1e-6, atol=0)
        channels_last = x.to(memory_format=torch.channels_last)
        assert torch.equal(drop(channels_last, kept, seed), found)


def test_threads_change_nothing() -> None:
    x = torch.randn(2, 37, 11, 13)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(drop(x, 40000, 99))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_share_is_kept_and_neighbours_do_not_know_of_each_other() -> None:
    """Over two million draws: the share, its evenness over channels, and pairs at small distances, or of two seeds."""
    kept = 58982
    x = torch.ones(2, 256, 64, 64)
    whole = drop(x, kept, 7).permute(0, 2, 3, 1).reshape(-1) != 0
    share, error = kept / 65536, (0.9 * 0.1 / whole.numel()) ** 0.5
    assert abs(whole.double().mean() - share) < 5 * error
    by_channel = whole.view(-1, 256).double().mean(0)
    assert (by_channel - share).abs().max() < 5 * (0.09 / (whole.numel() / 256)) ** 0.5
    others = [whole[distance:] for distance in (1, 2, 15, 16, 17, 31, 32, 256, 512)]
    others.append(drop(x, kept, 8).permute(0, 2, 3, 1).reshape(-1) != 0)
    others.append(drop(x, kept, 7 + 2**32).permute(0, 2, 3, 1).reshape(-1) != 0)
    for other in others:
        both = (whole[: len(other)] & other).double().mean()
        assert abs(both - share**2) < 5 * (share**2 * (1 - share**2) / len(other)) ** 0.5


def test_its_gradient_is_what_was_kept() -> None:
    x = torch.randn(2, 5, 6, 7, requires_grad=True)
    y = drop(x, 30000, 5)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, torch.where(y != 0, 2 * y * (65536 / 30000), 0))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, torch.where(y != 0, 2 * (65536 / 30000) ** 2, 0.0).to(second))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_opcheck() -> None:
    for x in (torch.randn(2, 5, 6, 7, requires_grad=True), torch.randn(1, 8, 3, 3).bfloat16()):
        torch.library.opcheck(torch.ops.dpcdsl.dropout.default, (x, torch.tensor(3), 50000))


def test_a_fused_cell_drops_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where there are no kernels for it, or in evaluation."""
    seen: list[int] = []
    primitives = native.NativePrimitives.dropout

    def counted(self: Any, x: Tensor, kept: int, seed: int) -> Tensor:
        seen.append(kept)
        return primitives(self, x, kept, seed)

    monkeypatch.setattr(native.NativePrimitives, "dropout", counted)
    x = torch.randn(1, 4, 5, 6)
    cell = compile_cell("(F, conv1x1, Y1)", 4, projection=3, dropout=0.25)
    cell(x)
    assert seen == [49152]
    cell.eval()(x)
    compile_cell("(F, conv1x1, Y1)", 4, projection=3, dropout=0.25, backend="aten")(x)
    cell.train().double()(x.double())
    assert seen == [49152]


def test_a_seed_of_torch_is_a_seed() -> None:
    module, x = nn.Dropout(0.3), torch.randn(1, 4, 5, 6)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropped(module, x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
