"""Diagrams of cells and spaces in the style of the paper's Figures 5 and 6, and of what they see in that of Figure 2.

:func:`draw` and :func:`draw_receptive_field` return a :class:`Diagram`: DOT text, which renders as SVG, PNG or PDF.
"""

from __future__ import annotations

from dpcdsl.diagram.branches import draw
from dpcdsl.diagram.fields import draw_receptive_field
from dpcdsl.diagram.rendering import LARGEST_SIDE, Diagram

__all__ = ["LARGEST_SIDE", "Diagram", "draw", "draw_receptive_field"]
