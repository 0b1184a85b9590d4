"""Plots of matplotlib's as files, whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole

__all__ = ["plot_kind", "write_figure"]


def plot_kind(path: Path) -> str:
    """What a path's ending says is written: "png", "svg" or "pdf". Raises :class:`DpcError` (DPC063) for another."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise DpcError.of("DPC063", f"a plot cannot be written as `{path.name}`", hint=".png, .svg or .pdf")
    return kind


def write_figure(figure: Any, path: Path) -> None:
    """figure: of matplotlib's. The same one gives the same file.

    Raises :class:`DpcError`: DPC063 for an ending that says nothing, DPC060 where the file cannot be written.
    """
    import matplotlib as mpl

    kind, data = plot_kind(path), io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dpcdsl"}):
        figure.savefig(data, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_whole(path, data.getvalue())
