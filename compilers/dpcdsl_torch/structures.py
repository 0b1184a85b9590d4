"""Tensors as the kernels see them, on any device: a map by its address, sizes and strides; a vector in fp32."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

__all__ = ["NO_FLOOR", "Map", "address_of", "floor_of", "map_of", "vector_of"]

#: The floor of what is no ReLU.
NO_FLOOR = float("-inf")

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Map(ctypes.Structure):
    """Map of taps.h. Pointers are plain addresses; ``kept`` holds the tensor."""

    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64) for name in ("n", "h", "w", "c", "stride_n", "stride_h", "stride_w", "stride_c")),
        ("type", c_int32),
    )
    kept: Tensor


def map_of(tensor: Tensor) -> Map:
    """Any map. A dimension of size 1 has whatever stride torch gave it; here it has the one that fits the others."""
    n, c, h, w = tensor.shape
    stride_n, stride_c, stride_h, stride_w = tensor.stride()
    if w == 1:
        stride_w = stride_h if h > 1 else stride_n if n > 1 else c
    if h == 1:
        stride_h = w * stride_w
    if n == 1:
        stride_n = h * stride_h
    if c == 1:
        stride_c = 1
    view = Map(tensor.data_ptr(), n, h, w, c, stride_n, stride_h, stride_w, stride_c, _TYPES[tensor.dtype])
    view.kept = tensor
    return view


def floor_of(relu: bool) -> float:
    return 0.0 if relu else NO_FLOOR


def vector_of(tensor: Tensor) -> Tensor:
    """A vector or a weight as the kernels read it; itself where it is so already. The caller keeps it alive."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.float32).contiguous()


def address_of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
