"""Dense Prediction Cells: a language for cells and search spaces, and what can be known and made from the text alone.

>>> import dpcdsl
>>> cell = dpcdsl.parse_cell("(F, sepconv3x3 rate 1x6, Y1) (Y1, conv1x1, Y2)")
>>> dpcdsl.cost(cell, features=320, size=(65, 129)).params
150336
"""

from typing import TYPE_CHECKING, Any

from dpcdsl.cell import Branch, Cell, distance
from dpcdsl.compilers import compile
from dpcdsl.cost import Cost, cost
from dpcdsl.errors import Diagnostic, DpcError, Source, Span
from dpcdsl.explain import explain
from dpcdsl.interchange import from_deeplab, from_json, from_vector, to_deeplab, to_json, to_vector
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.operators import Integer, Operator, OperatorKind, Pair, register_operator
from dpcdsl.receptive_field import ReceptiveField, receptive_field
from dpcdsl.references import read_cell, read_space
from dpcdsl.space import OperatorSet, Slot, Space
from dpcdsl.syntax import (
    Document,
    format_cell,
    format_space,
    format_text,
    load,
    parse,
    parse_cell,
    parse_condition,
    parse_space,
    zoo,
)

if TYPE_CHECKING:
    from dpcdsl.diagram import Diagram, draw, draw_receptive_field

__version__ = "0.1.0.dev0"

__all__ = [
    "Branch",
    "Cell",
    "Conventions",
    "Convolution",
    "Cost",
    "DepthwiseConvolution",
    "Diagnostic",
    "Diagram",
    "Document",
    "DpcError",
    "GridPool",
    "Integer",
    "Layer",
    "Operator",
    "OperatorKind",
    "OperatorSet",
    "Pair",
    "ReceptiveField",
    "Resize",
    "Size",
    "Slot",
    "Source",
    "Space",
    "Span",
    "compile",
    "cost",
    "distance",
    "draw",
    "draw_receptive_field",
    "explain",
    "format_cell",
    "format_space",
    "format_text",
    "from_deeplab",
    "from_json",
    "from_vector",
    "load",
    "parse",
    "parse_cell",
    "parse_condition",
    "parse_space",
    "read_cell",
    "read_space",
    "receptive_field",
    "register_operator",
    "to_deeplab",
    "to_json",
    "to_vector",
    "zoo",
]


def __getattr__(name: str) -> Any:
    # Drawing is what most programs never do: its modules are read when they are asked for.
    if name in ("Diagram", "draw", "draw_receptive_field"):
        from dpcdsl import diagram

        return getattr(diagram, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
