"""Storage of large maps on the CPU: kept when a tensor dies, and given to the next one.

A block above some 32 MB is mapped anew by the system at every allocation, and touching its fresh pages takes longer
than computing what goes into them. Blocks here are on huge pages where the system has them, and up to :data:`BOUND`
bytes of blocks that no tensor uses are kept for the next map. :func:`release` gives all of them back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor

__all__ = ["BOUND", "empty", "kept", "release"]

#: Most bytes of unused blocks that are kept: 1 GiB, or an eighth of the machine's memory if that is less.
BOUND = min(2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8) if hasattr(os, "sysconf") else 2**28

#: Smaller maps come from torch's allocator.
_SMALLEST = 2**20
_HUGE_PAGE = 2 * 2**20


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: list[mmap.mmap] = []
        # Blocks come back here, without a lock: the collector may run anywhere, in the middle of `take` too.
        self.returned: deque[mmap.mmap] = deque()

    def take(self, size: int) -> mmap.mmap:
        size = -(-size // _HUGE_PAGE) * _HUGE_PAGE
        with self.lock:
            self._sort_in()
            # The smallest that will do, if it is not mostly waste.
            fitting = [block for block in self.free if size <= len(block) <= 2 * size]
            if fitting:
                block = min(fitting, key=len)
                self.free.remove(block)
                return block
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # private: a fork has its own
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def give(self, block: mmap.mmap) -> None:
        self.returned.append(block)
        if self.lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self.lock.release()

    def _sort_in(self) -> None:
        while self.returned:
            block = self.returned.popleft()
            if len(block) > BOUND:
                continue
            self.free.append(block)  # the newest is the likeliest to be in the cache still, the oldest goes first
            while sum(map(len, self.free)) > BOUND:
                self.free.pop(0)


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # A lock that another thread held at the fork would never be released in the child.
    os.register_at_fork(after_in_child=lambda: setattr(_pool, "lock", threading.Lock()))


def empty(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """An uninitialised channels_last map [N, C, H, W] on the CPU."""
    n, c, h, w = shape
    count = n * c * h * w
    size = count * dtype.itemsize
    if size < _SMALLEST or not sys.platform.startswith("linux"):
        return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
    block = _pool.take(size)
    # The storage keeps `memory` alive, and `memory` is all that is left of the block when the storage dies.
    memory: Any = (ctypes.c_char * size).from_buffer(block)
    weakref.finalize(memory, _pool.give, block).atexit = False
    storage = torch.frombuffer(memory, dtype=dtype, count=count).untyped_storage()
    # Not a view of something: an operator's result is to be written in place as any other.
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, (h * w * c, 1, w * c, c))


def kept() -> int:
    """Bytes of unused blocks that are kept now."""
    return sum(map(len, (*_pool.free, *_pool.returned)))


def release() -> None:
    """Give all unused blocks back to the system."""
    with _pool.lock:
        _pool.returned.clear()
        _pool.free.clear()
