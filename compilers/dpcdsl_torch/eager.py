"""The compiler ``eager`` of the group ``dpcdsl.compilers``: plain PyTorch, and the files it can be exported to."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dpcdsl.cell import Cell
from dpcdsl.errors import Diagnostic, DpcError, nearest
from dpcdsl.files import write_whole
from dpcdsl.layers import GridPool, Size, checked_size
from dpcdsl_torch.reference import EagerCell

__all__ = ["OPTIONS", "check_options", "compile", "suffixes", "write"]

#: Kinds of file that :func:`write` makes: a ``torch.export`` program, or ONNX.
suffixes: tuple[str, ...] = (".pt2", ".onnx")


def compile(cell: Cell, *, in_channels: int, **options: Any) -> EagerCell:
    """``cell`` on maps of ``in_channels`` channels, with the options of :class:`EagerCell`.

    Raises :class:`DpcError`: DPC062 for an unknown option or a wrong value, DPC064 for a layer without lowering.
    """
    check_options("eager", OPTIONS, options)
    return EagerCell(cell, in_channels, **options)


#: Names of what :class:`EagerCell` takes beside the cell and its channels.
OPTIONS: tuple[str, ...] = tuple(inspect.signature(EagerCell).parameters)[2:]


def check_options(target: str, known: Sequence[str], options: Iterable[str]) -> None:
    """Raise :class:`DpcError` (DPC062) for each option that the compiler ``target`` does not know."""
    unknown = [name for name in options if name not in known]
    if unknown:
        raise DpcError(_unknown_option(target, name, known) for name in unknown)


def _unknown_option(target: str, name: str, known: Sequence[str]) -> Diagnostic:
    near = nearest(name, known)
    return Diagnostic(
        "DPC062",
        f"the compiler `{target}` has no option `{name}`" + (f"; did you mean `{near}`?" if near else ""),
        hint="options: " + ", ".join(f"`{option}`" for option in known),
    )


def write(cell: Cell | EagerCell, path: Path, *, in_channels: int = 0, size: Size = (65, 129), **options: Any) -> None:
    """Export a cell in evaluation mode to ``.pt2`` or ``.onnx``, whole or not at all.

    A :class:`Cell` gets fresh weights, from seed 0; an :class:`EagerCell` is exported with its own. size: (height,
    width) of the example map. The file takes any batch. It also takes any map of at least 2x2, except for these, which
    take maps of ``size`` only: a cell with a pooling under ``pooling="sliding"``, and in ONNX, which has no pooling
    over a grid of a map whose size is open, one with a grid other than 1x1. Input ``features``, output ``output``.

    Raises :class:`DpcError`: DPC064 for another suffix, or if something that the export needs is missing; DPC060 if
    the file cannot be written.
    """
    if path.suffix not in suffixes:
        raise DpcError.of(
            "DPC064", f"`eager` does not write {path.name}", hint=f"end the name in {' or '.join(suffixes)}"
        )
    height, width = checked_size(size, "size")
    if isinstance(cell, EagerCell):
        module = cell
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = compile(cell, in_channels=in_channels, **options)
    was_training = module.training
    module.eval()
    try:
        write_whole(path, _exported(module, path.suffix, (max(height, 2), max(width, 2))))
    finally:
        module.train(was_training)


def _exported(module: EagerCell, suffix: str, size: Size) -> bytes:
    # Two images, because an example of one would fix the batch.
    example = torch.zeros(2, module.in_channels, *size)
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    grids = {
        layer.grid
        for branch in module.cell.branches
        for layer in branch.operator.layers(module.cell.filters)
        if isinstance(layer, GridPool)
    }
    sliding = module.settings.conventions.pooling == "sliding"
    if not grids or not (sliding or (suffix == ".onnx" and grids != {(1, 1)})):
        shape |= {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        if suffix == ".pt2":
            program = torch.export.export(module, (example,), dynamic_shapes=(shape,))
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            return buffer.getvalue()
        return _onnx(module, example, shape)


def _onnx(module: EagerCell, example: torch.Tensor, shape: dict[int, Any]) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise DpcError.of("DPC064", f"an ONNX file needs {error.name}", hint="pip install 'dpcdsl[onnx]'") from None
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(shape,),
        input_names=["features"],
        output_names=["output"],
        verbose=False,
    )
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cell.onnx"
        program.save(str(file), external_data=False)
        return file.read_bytes()


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the progress that the exporters print, and their notes on operators of other packages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
