"""A Dense Prediction Cell: branch tuples (X, OP, Y) and nothing else (paper, section 3.1).

``F`` is the backbone's last feature map, ``Y1..YB`` the branches' outputs; the cell's output is the concatenation of
all of them, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from dpcdsl.errors import Diagnostic, DpcError, shown
from dpcdsl.operators import Operator
from dpcdsl.values import Value

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "DEFAULT_FILTERS",
    "MAX_BRANCHES",
    "MAX_FILTERS",
    "Branch",
    "Cell",
    "distance",
    "tensor_index",
    "tensor_name",
]

#: Most branches a cell or a space may have.
MAX_BRANCHES = 256
#: Filters of every convolution in the paper.
DEFAULT_FILTERS = 256
#: Most filters a cell may have.
MAX_FILTERS = 65536


def tensor_name(index: int) -> str:
    """``F`` for 0, ``Y3`` for 3."""
    return f"Y{index}" if index else "F"


def tensor_index(name: str) -> int | None:
    """0 for ``F``, 3 for ``Y3``, None for anything else."""
    if name == "F":
        return 0
    return int(name[1:]) if re.fullmatch(r"Y[1-9][0-9]{0,8}", name) else None


def _read_input(value: Any) -> Any:
    if isinstance(value, str):
        index = tensor_index(value)
        if index is None:
            raise DpcError.of("DPC010", f"`{value[:40]}` is not a tensor", hint="an input is `F`, `Y1`, `Y2`, …")
        return index
    return value


Input = Annotated[
    int,
    Field(strict=True, ge=0),
    BeforeValidator(_read_input),
    PlainSerializer(tensor_name, return_type=str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "pattern": "^(F|Y[1-9][0-9]*)$", "description": "F, or an earlier branch."}),
]


class Branch(Value):
    """A branch: ``operator`` applied to the tensor ``input`` (0 is F, i is Yi; in JSON ``"F"``, ``"Y1"``)."""

    input: Input
    operator: Operator

    def __repr__(self) -> str:
        return f"Branch({tensor_name(self.input)}, {self.operator})"


class Cell(Value):
    """An immutable, validated Dense Prediction Cell. Branch i (from 1) writes Yi and reads F or an earlier Y.

    Raises :class:`DpcError`: DPC020 without branches, DPC021 with more than :data:`MAX_BRANCHES`, DPC011 if an input
    is not earlier, DPC017 if ``filters`` is not from 1 to :data:`MAX_FILTERS`.

    >>> Cell.of((0, Operator.of("conv1x1")), (1, Operator.of("avgpool", grid=(1, 1))))
    Cell('(F, conv1x1, Y1) (Y1, avgpool grid 1x1, Y2)')
    """

    branches: tuple[Branch, ...]
    filters: Annotated[int, Field(strict=True)] = DEFAULT_FILTERS

    @classmethod
    def of(cls, *branches: tuple[int, Operator], filters: int = DEFAULT_FILTERS) -> Cell:
        """A cell from (input, operator) pairs."""
        return cls(branches=tuple(Branch(input=x, operator=op) for x, op in branches), filters=filters)

    @model_validator(mode="after")
    def _check(self) -> Cell:
        if not self.branches:
            raise DpcError.of("DPC020", "a cell needs at least one branch", hint="for example `(F, conv1x1, Y1)`")
        if len(self.branches) > MAX_BRANCHES:
            raise DpcError.of("DPC021", f"a cell has at most {MAX_BRANCHES} branches, not {len(self.branches)}")
        check_filters(self.filters)
        for number, branch in enumerate(self.branches, 1):
            if branch.input >= number:
                self._refuse_inputs()
        return self

    def _refuse_inputs(self) -> None:
        raise DpcError(
            Diagnostic(
                "DPC011",
                f"branch {number} reads `{tensor_name(branch.input)}`, which is not an earlier branch",
                hint="an input is `F`" + (f" or one of `Y1`..`Y{number - 1}`" if number > 1 else ""),
                place=f"cell.branches[{number - 1}].input",
            )
            for number, branch in enumerate(self.branches, 1)
            if branch.input >= number
        )

    def out_channels(self, in_channels: int) -> tuple[int, ...]:
        """Channels of Y1, Y2, … when F has ``in_channels``; ``filters`` each for the paper's operators."""
        channels = [in_channels]
        for branch in self.branches:
            count = channels[branch.input]
            for layer in branch.operator.layers(self.filters):
                count = layer.out_channels(count)
            channels.append(count)
        return tuple(channels[1:])

    @property
    def depth(self) -> int:
        """Branches on the longest way from F to the concatenation."""
        return max(self.depths)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Branches on the way from F to each output, itself counted."""
        depths = [0]
        for branch in self.branches:
            depths.append(depths[branch.input] + 1)
        return tuple(depths[1:])

    def graph(self) -> nx.DiGraph[str]:
        """The cell as a networkx graph: nodes ``F``, ``Y1``… (attribute ``operator``) and ``Y``, the concatenation."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_node("F")
        for number, branch in enumerate(self.branches, 1):
            graph.add_node(f"Y{number}", operator=branch.operator)
            graph.add_edge(tensor_name(branch.input), f"Y{number}")
        graph.add_edges_from((f"Y{number}", "Y") for number in range(1, len(self.branches) + 1))
        return graph

    def __len__(self) -> int:
        """Number of branches."""
        return len(self.branches)

    def __str__(self) -> str:
        """The one-line form, which :func:`dpcdsl.parse_cell` reads back."""
        tuples = [
            f"({tensor_name(branch.input)}, {branch.operator}, Y{number})"
            for number, branch in enumerate(self.branches, 1)
        ]
        return " ".join(tuples if self.filters == DEFAULT_FILTERS else [f"filters {self.filters}", *tuples])

    def __repr__(self) -> str:
        return f"Cell({str(self)!r})"

    def _repr_svg_(self) -> str | None:
        # The one reach upward of the layers: a notebook shows a cell as its diagram.
        from dpcdsl.diagram import draw

        try:
            return draw(self).svg()
        except DpcError:  # no Graphviz: the notebook shows the text instead
            return None


def check_filters(filters: int) -> None:
    if not 1 <= filters <= MAX_FILTERS:
        raise DpcError.of("DPC017", f"filters must be from 1 to {MAX_FILTERS}, not {shown(filters)}")


def distance(a: Cell, b: Cell) -> int:
    """Number of inputs and operators in which two cells differ, branch by branch.

    A branch that only one of them has counts 2. This is the Hamming distance of the vectors, padded to one length, so
    it is a metric: 0 only for equal branch lists, symmetric, and subject to the triangle inequality. ``filters`` is
    not looked at.
    """

    def fields(cell: Cell, length: int) -> Iterable[object]:
        for branch in cell.branches:
            yield branch.input
            yield branch.operator
        yield from [None] * (2 * (length - len(cell)))

    length = max(len(a), len(b))
    return sum(x != y for x, y in zip(fields(a, length), fields(b, length), strict=True))
