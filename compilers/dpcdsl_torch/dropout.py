"""Dropout of a map on the CPU: torch draws its numbers one after the other, which takes as long as many a product.

The operator ``dpcdsl::dropout`` is given a seed, which comes from torch's generator; what is dropped is a function of
the seed and the place, so that the gradient is the same operator with the same seed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpcdsl_torch import native
from dpcdsl_torch.ops import define, empty_map, library

__all__ = ["dropped"]

_ALL = 1 << 16


def dropped(module: nn.Dropout, x: Tensor) -> Tensor:
    """What ``module`` makes of the map ``x``: by the kernel where there is one for it.

    The probability is in steps of 2^-16.
    """
    kept = round((1 - module.p) * _ALL)
    ours = module.training and 0 < kept < _ALL and x.device.type == "cpu" and x.dtype in native.DTYPES
    # What is compiled by torch draws its numbers in parallel, and beside other work.
    if not ours or torch.compiler.is_compiling() or native.primitives() is None:
        return module(x)  # type: ignore[no-any-return]
    seed = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu")
    found: Tensor = torch.ops.dpcdsl.dropout(x, seed, kept)
    return found


def _dropout(x: Tensor, seed: Tensor, kept: int) -> Tensor:
    primitives = native.primitives()
    assert primitives is not None
    return primitives.dropout(x, kept, int(seed))


def _dropout_fake(x: Tensor, seed: Tensor, kept: int) -> Tensor:
    return empty_map(x, x.shape, x.dtype)


define("dropout(Tensor x, Tensor seed, int kept) -> Tensor", _dropout, _dropout_fake)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.kept = inputs
    ctx.save_for_backward(seed)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors
    return torch.ops.dpcdsl.dropout(gradient, seed, ctx.kept), None, None


torch.library.register_autograd("dpcdsl::dropout", _gradient, setup_context=_context, lib=library)
