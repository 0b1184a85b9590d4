"""The one registry through which the core reaches a compiler: the entry-point group ``dpcdsl.compilers``."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError, nearest
from dpcdsl.layers import Size

__all__ = ["GROUP", "Compiler", "compile", "compiler", "targets"]

GROUP = "dpcdsl.compilers"


class Compiler(Protocol):
    """What an entry point of the group provides."""

    #: Kinds of file that :meth:`write` makes, such as ``.onnx``. A compiler that decides what is fused may also have
    #: ``plan(cell, *, in_channels, training, size, **options)``, whose ``str()`` says it.
    suffixes: tuple[str, ...]

    def compile(self, cell: Cell, *, in_channels: int, **options: Any) -> Any:
        """The cell as something to run (for ``torch`` and ``eager`` a ``torch.nn.Module``)."""

    def write(self, cell: Cell, path: Path, *, in_channels: int, size: Size, **options: Any) -> None:
        """The cell as a file, whole or not at all."""


def targets() -> tuple[str, ...]:
    """Names of the compilers that are installed."""
    return tuple(sorted(entry.name for entry in entry_points(group=GROUP)))


def compiler(target: str) -> Compiler:
    """The compiler of that name. Raises :class:`DpcError` (DPC064) if there is none, or what it needs is missing."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == target]
    if not found:
        near = nearest(target, targets())
        raise DpcError.of(
            "DPC064",
            f"there is no compiler `{target}`" + (f"; did you mean `{near}`?" if near else ""),
            hint=f"compilers: {', '.join(f'`{name}`' for name in targets())}",
        )
    try:
        loaded: Compiler = found[0].load()
    except ModuleNotFoundError as error:
        raise DpcError.of(
            "DPC064", f"the compiler `{target}` needs {error.name}", hint=f"pip install 'dpcdsl[{error.name}]'"
        ) from None
    return loaded


def compile(cell: Cell | str, *, in_channels: int, target: str = "torch", **options: Any) -> Any:
    """The cell as something to run; a cell may be named as in :func:`dpcdsl.read_cell`.

    in_channels: channels of F. The options are the compiler's own; for ``torch`` those of
    :func:`dpcdsl_torch.compile_cell`. Raises :class:`DpcError`.
    """
    if isinstance(cell, str):
        from dpcdsl.references import read_cell

        cell = read_cell(cell)
    return compiler(target).compile(cell, in_channels=in_channels, **options)
