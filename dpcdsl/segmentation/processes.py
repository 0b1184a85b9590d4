"""The processes that train together: one, or those that torchrun has started."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from dpcdsl.errors import DpcError

__all__ = ["Processes", "device_of"]

_joined = itertools.count()  # how often this process has joined others, who count alike


@dataclass(frozen=True)
class Processes:
    """``count`` of them, of which this is number ``index``, on ``device``."""

    count: int
    index: int
    device: torch.device

    @classmethod
    @contextmanager
    def joined(cls, device: str) -> Iterator[Processes]:
        """With torchrun's others, if this is one of its processes. Raises :class:`DpcError` (DPC062) for the device."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            yield cls(1, 0, device_of(device))
            return
        place = device_of(device)
        if place.type == "cuda" and device in ("auto", "cuda"):
            place = device_of(f"cuda:{os.environ['LOCAL_RANK']}")
        if place.type == "cuda":
            torch.cuda.set_device(place)
        store, index, count = next(rendezvous("env://"))
        # What one group has left in the store would send the next one to addresses where no one listens any more.
        store = dist.PrefixStore(f"dpcdsl{next(_joined)}", store)  # type: ignore[attr-defined]
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=index, world_size=count)
        try:
            yield cls(dist.get_world_size(), dist.get_rank(), place)
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.index == 0

    def mean(self, values: Tensor) -> Tensor:
        """Over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()


def device_of(name: str) -> torch.device:
    """name: torch's, or "auto" for a GPU if there is one. Raises :class:`DpcError` (DPC062) if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0][:200]
        raise DpcError.of("DPC062", f"there is no device `{name}`: {reason}", hint="cpu, or cuda") from None
    return device
