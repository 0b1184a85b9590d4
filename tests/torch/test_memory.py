"""The memory that the maps of the fused module lie in."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch
from pairs import features, pair
from torch import Tensor

from dpcdsl.cell import Cell
from dpcdsl_torch import memory

# Memory


@pytest.fixture
def empty_pool() -> Iterator[None]:
    gc.collect()
    memory.release()
    yield
    memory.release()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps come from torch's allocator")
SHAPE: tuple[int, int, int, int] = (1, 64, 70, 70)


@linux
@pytest.mark.usefixtures("empty_pool")
def test_the_memory_of_a_dead_map_is_used_again() -> None:
    one = memory.empty(SHAPE, torch.float32)
    assert tuple(one.shape) == SHAPE
    assert one.is_contiguous(memory_format=torch.channels_last)
    address = one.data_ptr()
    view = one[:, 3:]
    del one
    other = memory.empty(SHAPE, torch.float32)
    assert other.data_ptr() != address, "a view keeps it alive"
    del view
    assert memory.kept() > 0
    assert memory.empty(SHAPE, torch.float32).data_ptr() == address
    assert memory.empty(SHAPE, torch.bfloat16).dtype == torch.bfloat16
    memory.release()
    assert memory.kept() == 0


@linux
@pytest.mark.usefixtures("empty_pool")
def test_no_more_than_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BOUND", 8 * 2**20)
    maps = [memory.empty(SHAPE, torch.float32) for _ in range(10)]
    del maps
    assert 0 < memory.kept() <= memory.BOUND
    before = memory.kept()
    large = memory.empty((1, 64, 200, 200), torch.float32)  # 10 MB: never kept
    del large
    assert memory.kept() == before, "what cannot be kept pushes nothing out"


def test_small_and_empty_maps() -> None:
    for shape in ((0, 64, 70, 70), (1, 1, 1, 1), (2, 3, 4, 5)):
        assert memory.empty(shape, torch.float32).shape == torch.Size(shape)


@pytest.mark.parametrize("projection", [None, 64])
@pytest.mark.usefixtures("empty_pool")
def test_a_result_in_somebodys_hands_is_never_written_to(mixed: Cell, projection: int | None) -> None:
    _, compiled = pair(Cell(branches=mixed.branches, filters=32), 32, projection=projection)
    maps = [
        features(1, 32, 70, 70).to(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)
    ]
    held: list[tuple[Tensor, Tensor]] = []
    for step in range(6):
        x = maps[step % 2]
        with torch.no_grad():
            y = compiled.eval()(x)
        held.append((y, y.clone()))
        leaf = x.clone().requires_grad_()
        y = compiled.train()(leaf)
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *compiled.parameters()])
        held += [(value, value.clone()) for value in (y.detach()[:, 1:3], *gradients)]
        assert all(torch.equal(value, copied) for value, copied in held)
