"""What each branch of a trained cell contributes: the weights by which the projection reads it (figure 5b)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpcdsl.errors import DpcError
from dpcdsl.plots import write_figure
from dpcdsl.segmentation.model import SegmentationModel

__all__ = ["BranchWeight", "branch_weights", "plot_branch_weights"]


@dataclass(frozen=True)
class BranchWeight:
    """A branch Y1, Y2, …: its operator, the L1 norm of the projection's weights that read it, their mean absolute
    value, and the norm's share of all branches'.
    """

    name: str
    operator: str
    norm: float
    mean: float
    share: float


def branch_weights(model: SegmentationModel) -> tuple[BranchWeight, ...]:
    """In the order of the branches. Raises :class:`DpcError` (DPC095) for a cell without a projection."""
    cell, projection = model.head.cell.cell, model.head.cell.projection
    if projection is None:
        raise DpcError.of("DPC095", "the cell has no projection, whose weights would tell")
    weight = projection.weight.detach().double().abs()
    channels = cell.out_channels(model.backbone.channels)
    norms = [part.sum().item() for part in weight.split(list(channels), 1)]
    total = sum(norms) or 1.0
    return tuple(
        BranchWeight(f"Y{number}", str(branch.operator), norm, norm / (weight.shape[0] * width), norm / total)
        for number, (branch, norm, width) in enumerate(zip(cell.branches, norms, channels, strict=True), 1)
    )


def plot_branch_weights(weights: tuple[BranchWeight, ...], path: Path, title: str = "") -> None:
    """A bar for each branch. The path's ending says what is written: .png, .svg or .pdf.

    Raises :class:`DpcError` (DPC063) for another ending, and DPC060 where the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.4 + 1.3 * len(weights), 3.6), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{one.name}\n{one.operator.replace(' ', chr(10), 1)}" for one in weights]
    axes.bar(labels, [one.norm for one in weights], color="#4c72b0", width=0.6)
    axes.set_ylabel("L1 norm of the projection's weights")
    axes.set_title(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)
