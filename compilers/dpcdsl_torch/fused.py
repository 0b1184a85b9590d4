"""The compiler ``torch`` of the group ``dpcdsl.compilers``: the fused module, its plan, and the files it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole
from dpcdsl.layers import Size, checked_size
from dpcdsl_torch import eager
from dpcdsl_torch.module import CompiledCell
from dpcdsl_torch.plan import Plan
from dpcdsl_torch.reference import EagerCell
from dpcdsl_torch.source import source

__all__ = ["compile", "plan", "suffixes", "write"]

#: Kinds of file that :func:`write` makes: Python source that imports torch alone, and those of ``eager``.
suffixes: tuple[str, ...] = (".py", *eager.suffixes)


def compile(cell: Cell, *, in_channels: int, **options: Any) -> CompiledCell:
    """:func:`dpcdsl_torch.compile_cell`, which names the options and what is raised."""
    eager.check_options("torch", (*eager.OPTIONS, "backend", "without"), options)
    return CompiledCell(cell, in_channels, **options)


def plan(cell: Cell, *, in_channels: int, training: bool = False, size: Size | None = None, **options: Any) -> Plan:
    """The steps by which the cell is run, to be printed. size: (height, width) of F, which tells what it drops.

    Raises :class:`DpcError`: as :func:`compile`; DPC064 for a cell with operators that have no fused form.
    """
    if size is not None:
        size = checked_size(size, "size")
    with torch.device("meta"):
        return compile(cell, in_channels=in_channels, **options).plan(training=training, size=size)


def write(
    cell: Cell | CompiledCell, path: Path, *, in_channels: int = 0, size: Size = (65, 129), **options: Any
) -> None:
    """The cell as a file, whole or not at all.

    ``.py``: readable source of a module with the same parameters, which imports torch alone. ``.pt2``, ``.onnx``: the
    cell in evaluation mode, with its weights, as :func:`dpcdsl_torch.eager.write` exports it: by torch's own
    operators, so that whoever loads the file needs none of ours.

    Raises :class:`DpcError`: DPC064 for another suffix, or for what the format cannot express; DPC060 if the file
    cannot be written.
    """
    eager.check_options("torch", eager.OPTIONS, options)  # a file holds the cell whole, for any backend
    if path.suffix not in suffixes:
        raise DpcError.of(
            "DPC064",
            f"`torch` does not write {path.name}",
            hint=f"end the name in {', '.join(suffixes[:-1])} or {suffixes[-1]}",
        )
    if path.suffix != ".py":
        eager.write(
            cell.eager() if isinstance(cell, CompiledCell) else cell,
            path,
            in_channels=in_channels,
            size=size,
            **options,
        )
    elif isinstance(cell, CompiledCell):
        twin: EagerCell = cell.eager()
        write_whole(path, source(twin.cell, twin.in_channels, **twin.options))
    else:
        write_whole(path, source(cell, in_channels, **options))
