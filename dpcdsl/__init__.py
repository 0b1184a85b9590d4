"""Dense Prediction Cells: a language for cells and search spaces, and what can be known and made from the text alone.

>>> import dpcdsl
>>> cell = dpcdsl.parse_cell("(F, sepconv3x3 rate 1x6, Y1) (Y1, conv1x1, Y2)")
>>> dpcdsl.cost(cell, features=320, size=(65, 129)).params
150336
"""

from typing import TYPE_CHECKING

from dpcdsl.cell import Branch, Cell, distance
from dpcdsl.compilers import compile
from dpcdsl.cost import Cost, cost
from dpcdsl.errors import Diagnostic, DpcError, Source, Span
from dpcdsl.explain import explain
from dpcdsl.identity import CellId, cell_id, fingerprint
from dpcdsl.interchange import from_deeplab, from_json, from_vector, to_deeplab, to_json, to_vector
from dpcdsl.isomorphism import canonical, isomorphic
from dpcdsl.later import read_later
from dpcdsl.layers import Conventions, Convolution, DepthwiseConvolution, GridPool, Layer, Resize, Size
from dpcdsl.merging import merge_operators
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
    parse_measure,
    parse_space,
    zoo,
)

if TYPE_CHECKING:
    from dpcdsl.diagram import Diagram, draw, draw_receptive_field
    from dpcdsl.enumeration import Enumerator, count, distribution, enumerator
    from dpcdsl.neighbourhood import crossover, mutate, neighbours
    from dpcdsl.tables import export

__version__ = "0.1.0.dev0"

__all__ = [
    "Branch",
    "Cell",
    "CellId",
    "Conventions",
    "Convolution",
    "Cost",
    "DepthwiseConvolution",
    "Diagnostic",
    "Diagram",
    "Document",
    "DpcError",
    "Enumerator",
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
    "canonical",
    "cell_id",
    "compile",
    "cost",
    "count",
    "crossover",
    "distance",
    "distribution",
    "draw",
    "draw_receptive_field",
    "enumerator",
    "explain",
    "export",
    "fingerprint",
    "format_cell",
    "format_space",
    "format_text",
    "from_deeplab",
    "from_json",
    "from_vector",
    "isomorphic",
    "load",
    "merge_operators",
    "mutate",
    "neighbours",
    "parse",
    "parse_cell",
    "parse_condition",
    "parse_measure",
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

# Drawing needs Graphviz and counting NumPy.
__getattr__, __dir__ = read_later(
    __name__,
    {
        "diagram": ["Diagram", "draw", "draw_receptive_field"],
        "enumeration": ["Enumerator", "count", "distribution", "enumerator"],
        "neighbourhood": ["crossover", "mutate", "neighbours"],
        "tables": ["export"],
    },
)
