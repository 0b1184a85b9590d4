"""A cell and the one that stands for its class compute the same channels, in another order."""

from __future__ import annotations

import pytest
import torch

from dpcdsl import Cell, Operator
from dpcdsl.isomorphism import canonical, operator_key, sorted_preorder
from dpcdsl_torch import EagerCell

CONV = Operator.of("conv1x1")
SEP = Operator.of("sepconv3x3", rate=(1, 2))
SEP_3 = Operator.of("sepconv3x3", rate=(3, 1))
POOL = Operator.of("avgpool", grid=(2, 3))

CELLS = {
    "apart": Cell.of((0, SEP), (0, CONV), (0, POOL), filters=4),
    "interleaved": Cell.of((0, SEP), (0, CONV), (1, POOL), (2, SEP_3), (1, CONV), (2, SEP), filters=4),
    "alike": Cell.of((0, CONV), (0, CONV), (2, SEP), (1, POOL), (2, POOL), (0, CONV), filters=3),
    "deep": Cell.of((0, SEP_3), (0, SEP), (1, CONV), (3, POOL), (2, SEP), (4, SEP), (3, CONV), filters=2),
}


@pytest.mark.parametrize("pooling", ["paper", "sliding"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_the_canonical_cell_computes_the_same_channels_in_another_order(cell: Cell, pooling: str) -> None:
    form = canonical(cell)
    assert form != cell
    order, _ = sorted_preorder([b.input for b in cell.branches], [operator_key(b.operator) for b in cell.branches])
    module = EagerCell(cell, 3, pooling=pooling).eval()
    other = EagerCell(form, 3, pooling=pooling).eval()
    for parameter in module.state_dict().values():
        if parameter.is_floating_point():
            parameter.copy_(0.5 + torch.rand_like(parameter))  # batch normalisation does something as well
    for branch, number in zip(other.branches, order, strict=True):
        branch.load_state_dict(module.branches[number - 1].state_dict())
    features = torch.randn(2, 3, 7, 8)
    with torch.no_grad():
        ours = module.concatenate(features).split(cell.filters, dim=1)
        theirs = other.concatenate(features).split(cell.filters, dim=1)
    assert len(ours) == len(theirs) == len(cell)
    for number, found in zip(order, theirs, strict=True):
        torch.testing.assert_close(found, ours[number - 1], rtol=0, atol=0)
    assert len({tuple(each.flatten().tolist()) for each in ours}) == len(cell)  # no two branches agree by chance
