"""What each step of training sees: a function of the seed and the step alone, whatever came before.

So a training that goes on from a checkpoint sees what it would have seen, with any number of workers or processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpcdsl.errors import DpcError
from dpcdsl.segmentation.datasets import DataSet
from dpcdsl.segmentation.transforms import Augmentation

__all__ = ["Batch", "batches", "example_at", "seed_dropout", "seed_of"]

#: Images [N, 3, H, W], fp32, and labels [N, H, W], uint8.
Batch = tuple[Tensor, Tensor]

_ORDER, _AUGMENTATION, _DROPOUT = range(3)


def seed_of(*parts: int) -> int:
    """One number of several, as unlike for near ones as for far ones."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seed_dropout(seed: int, chunk: int) -> None:
    """Before a part of a step, of which ``chunk`` others have been: what torch draws next depends on nothing else."""
    torch.manual_seed(seed_of(seed, _DROPOUT, chunk))


def example_at(seed: int, place: int, count: int) -> int:
    """Which of ``count`` examples is at a place of the endless sequence: all of them, over and over, each time in
    another order.
    """
    turn, index = divmod(place, count)
    return int(_order(seed, turn, count)[index])


def batches(
    data: DataSet,
    augmentation: Augmentation,
    chunks: Iterable[range],
    *,
    seed: int,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """A batch for each of ``chunks``, which are ranges of the endless sequence of examples (:func:`example_at`).

    Raises :class:`DpcError` as reading an example does.
    """
    loader: DataLoader[Any] = DataLoader(
        _Drawn(data, augmentation, seed),
        batch_sampler=map(list, chunks),
        num_workers=workers,
        collate_fn=_together,
        pin_memory=pin,
    )
    for batch in loader:
        if isinstance(batch, DpcError):
            raise batch
        yield batch


@lru_cache(2)  # the end of a turn and the beginning of the next may be in one batch
def _order(seed: int, turn: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, turn]).permutation(count)


@dataclass(frozen=True)
class _Drawn(Dataset[Any]):
    data: DataSet
    augmentation: Augmentation
    seed: int

    def __getitem__(self, place: int) -> Any:
        """An example, or the error that reading it raised: an exception could not cross from a worker as it is."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, _AUGMENTATION, place))
        try:
            example = self.data[example_at(self.seed, place, len(self.data))]
        except DpcError as error:
            return error
        return self.augmentation(example.image, example.labels, generator)


def _together(examples: list[Any]) -> Batch | DpcError:
    for example in examples:
        if isinstance(example, DpcError):
            return example
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(labels)
