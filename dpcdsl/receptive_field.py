"""Which positions of F each branch sees, exactly.

Every layer works on the two axes of a map on its own, so what a branch sees is a product: a set of rows times a set of
columns. A chain of branches composes these sets.

Without the size of the map a set is one of *offsets* from the output's position, and knows no border. With a size it
is a relation between outputs and inputs along each axis, exact under padding and for pooling. All of it is structure:
a position counts as seen if there are weights for which the output depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, TypeAlias

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.layers import Conventions, Layer, Pooling, Size, checked_size
from dpcdsl.operators import Operator, check_size_kept

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dpcdsl.layers import BoolMatrix

__all__ = ["MAX_MAP", "MAX_OFFSETS", "BranchField", "Offsets", "ReceptiveField", "Relation", "receptive_field"]

#: Largest map, along each axis, whose relations are computed. The same limit holds for pooled maps.
MAX_MAP = 4096
#: Most offsets along one axis. Any chain of the paper's operators stays below it.
MAX_OFFSETS = 2**14

#: Sorted offsets along one axis, or None where they depend on the map.
Offsets: TypeAlias = tuple[int, ...] | None
#: For each output along one axis a whole number whose bit i says whether input i is seen.
Relation: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class BranchField:
    """What one branch sees of F.

    name, operator: ``Y1`` and its operator as it is written in text.
    offsets: along height and width, the sorted distances from an output to the positions of F it sees, in positions of
        the map. None on an axis that a pooling or a resizing lies on: there they differ from output to output.
    size: (height, width) of the map, or None. Borders are not heeded in ``offsets``, only in what needs the size.
    relations: along height and width, see :data:`Relation`; :meth:`relation` unpacks them. None without a size.
    """

    name: str
    operator: str
    offsets: tuple[Offsets, Offsets]
    size: Size | None = None
    relations: tuple[Relation, Relation] | None = field(default=None, repr=False)

    @property
    def taps(self) -> int | None:
        """Number of offsets, the product of the two axes; None if one of them depends on the map."""
        height, width = self.offsets
        return None if height is None or width is None else len(height) * len(width)

    @property
    def extent(self) -> tuple[int | None, int | None]:
        """Height and width of the smallest rectangle around what an output sees, in positions of the map.

        An axis with offsets is not cut at the border. On an axis that depends on the map it is what the centre sees
        there, and None without a size. Two positions are ``output_stride`` pixels of the image apart, so the outermost
        centres lie ``(extent - 1) * output_stride`` pixels apart; what a position of F itself sees of the image is
        the backbone's receptive field and comes on top.
        """
        return self._extent(0), self._extent(1)

    def _extent(self, axis: int) -> int | None:
        offsets = self.offsets[axis]
        if offsets is not None:
            return offsets[-1] - offsets[0] + 1
        if self.relations is None:
            return None
        relation = self.relations[axis]
        return _span(relation[len(relation) // 2])

    @property
    def seen(self) -> int | None:
        """Number of positions of F that the output at the centre, (height // 2, width // 2), sees.

        None without a size.
        """
        if self.relations is None:
            return None
        height, width = (relation[len(relation) // 2].bit_count() for relation in self.relations)
        return height * width

    @property
    def coverage(self) -> float | None:
        """Fraction of the map that the output at the centre sees, 0 to 1; None without a size."""
        return _fraction(self.seen, self.size)

    def relation(self, axis: int) -> BoolMatrix:
        """Which positions of F each output sees along ``axis`` (0 height, 1 width): booleans [outputs, inputs].

        The output at (y, x) sees exactly the positions (i, j) with ``relation(0)[y, i]`` and ``relation(1)[x, j]``.
        Raises :class:`DpcError` (DPC062) without a size.
        """
        import numpy as np

        relation = self._rows()[axis]
        return np.stack([_unpacked(bits, len(relation)) for bits in relation])

    def positions(self, at: Size) -> BoolMatrix:
        """The positions of F, booleans [height, width], that the output at ``at`` = (y, x) sees.

        Raises :class:`DpcError` (DPC062) without a size, or if ``at`` lies outside the map.
        """
        rows, columns = self._rows()
        y, x = _checked_position(at, (len(rows), len(columns)))
        seen: BoolMatrix = _unpacked(rows[y], len(rows))[:, None] & _unpacked(columns[x], len(columns))
        return seen

    def _rows(self) -> tuple[Relation, Relation]:
        if self.relations is None:
            raise DpcError.of(
                "DPC062",
                "which positions are seen depends on the size of the map",
                hint="give one, as in `receptive_field(cell, (65, 129))`",
            )
        return self.relations

    def summary(self) -> dict[str, Any]:
        """The numbers of the branch, ready for JSON."""
        return {
            "name": self.name,
            "operator": self.operator,
            "taps": self.taps,
            "extent": list(self.extent),
            "seen": self.seen,
            "coverage": self.coverage,
        }


@dataclass(frozen=True)
class ReceptiveField:
    """What a cell sees of F, branch by branch, and the settings it holds for; see :func:`receptive_field`."""

    branches: tuple[BranchField, ...]
    size: Size | None
    conventions: Conventions

    def branch(self, name: str) -> BranchField:
        """The branch ``Y1``, ``Y2``, …, or a :class:`DpcError` (DPC062)."""
        for branch in self.branches:
            if branch.name == name:
                return branch
        raise DpcError.of(
            "DPC062", f"there is no branch `{str(name)[:40]}`", hint=f"the last one is `{self.branches[-1].name}`"
        )

    def positions(self, branch: str | None = None, *, at: Size) -> BoolMatrix:
        """The positions of F, booleans [height, width], that ``branch`` at ``at`` = (y, x) sees.

        Without ``branch``: what the concatenation sees there, the union over the branches. Raises :class:`DpcError`
        (DPC062) without a size, on an unknown branch, or if ``at`` lies outside the map.
        """
        if branch is not None:
            return self.branch(branch).positions(at)
        return reduce(or_, (each.positions(at) for each in self.branches))

    @property
    def seen(self) -> int | None:
        """Number of positions of F that the concatenation at the centre sees; None without a size."""
        if self.size is None:
            return None
        return int(self.positions(at=(self.size[0] // 2, self.size[1] // 2)).sum())

    @property
    def coverage(self) -> float | None:
        """Fraction of the map that the concatenation at the centre sees, 0 to 1; None without a size."""
        return _fraction(self.seen, self.size)

    def summary(self) -> dict[str, Any]:
        """The numbers of the cell and the settings, ready for JSON."""
        crop = self.conventions.image_pooling_crop_size
        return {
            "size": None if self.size is None else list(self.size),
            "pooling": self.conventions.pooling,
            "output_stride": self.conventions.output_stride,
            "image_pooling_crop_size": crop and list(crop),
            "seen": self.seen,
            "coverage": self.coverage,
            "branches": [branch.summary() for branch in self.branches],
        }


def receptive_field(
    cell: Cell,
    size: Size | None = None,
    *,
    pooling: Pooling = "paper",
    output_stride: int = 16,
    image_pooling_crop_size: Size | None = None,
) -> ReceptiveField:
    """Which positions of F each branch of ``cell`` sees.

    size: (height, width) of the map, 1 to :data:`MAX_MAP` each. Without it there are only offsets.
    pooling, output_stride, image_pooling_crop_size: see :class:`~dpcdsl.layers.Conventions`. A smaller output stride
        dilates the rates: offsets count positions of the finer map. Resizing is bilinear with aligned corners.

    Raises :class:`DpcError`: DPC062 on a setting outside these ranges, or where an axis has more than
    :data:`MAX_OFFSETS` offsets or a pooled map more than :data:`MAX_MAP` positions; DPC065 if an operator does not
    keep the size of the map.

    >>> sepconv = Operator.of("sepconv3x3", rate=(1, 6))
    >>> receptive_field(Cell.of((0, sepconv), (1, sepconv))).branches[1].offsets
    ((-2, -1, 0, 1, 2), (-12, -6, 0, 6, 12))
    """
    if size is not None:
        size = checked_size(size, "size")
        _check_limit("the map", size)
    if image_pooling_crop_size is not None:
        image_pooling_crop_size = checked_size(image_pooling_crop_size, "image_pooling_crop_size")
    conventions = Conventions(pooling, output_stride, image_pooling_crop_size)

    # F comes first and sees itself, so that an index of a cell is an index here.
    itself = None if size is None else (_identity(size[0]), _identity(size[1]))
    fields = [BranchField("F", "", ((0,), (0,)), size, itself)]
    for number, branch in enumerate(cell.branches, 1):
        below, operator = fields[branch.input], branch.operator
        layers = [layer.dilated(conventions.rate_multiplier) for layer in operator.layers(cell.filters)]
        name = f"Y{number}"
        offsets = _offsets(layers, 0, below.offsets[0], name), _offsets(layers, 1, below.offsets[1], name)
        relations = None
        if size is not None and below.relations is not None:
            relations = _relations(operator, layers, below.relations, size, conventions)
        fields.append(BranchField(name, str(operator), offsets, size, relations))
    return ReceptiveField(tuple(fields[1:]), size, conventions)


def _offsets(layers: Iterable[Layer], axis: int, offsets: Offsets, name: str) -> Offsets:
    """The offsets of a branch, from those of its input and its layers."""
    for layer in layers:
        taps = layer.taps(axis)
        if taps is None or offsets is None:
            return None
        if taps != (0,):
            offsets = tuple(sorted({offset + tap for offset in offsets for tap in taps}))
        if len(offsets) > MAX_OFFSETS:
            raise DpcError.of("DPC062", f"`{name}` has more than {MAX_OFFSETS} offsets along one axis")
    return offsets


def _relations(
    operator: Operator,
    layers: Iterable[Layer],
    below: tuple[Relation, Relation],
    map_size: Size,
    conventions: Conventions,
) -> tuple[Relation, Relation]:
    """The relations of a branch, from those of its input and its layers."""
    import numpy as np

    size = map_size
    found = list(below)
    for layer in layers:
        out_size = layer.out_size(size, map_size, conventions)
        _check_limit(f"a map inside `{operator}`", out_size)
        for axis in (0, 1):
            if layer.taps(axis) == (0,):  # each output reads its own place only
                continue
            reads = layer.reads(axis, size[axis], map_size[axis], conventions)
            found[axis] = tuple(reduce(or_, (found[axis][i] for i in np.flatnonzero(row)), 0) for row in reads)
        size = out_size
    check_size_kept(operator, map_size, size)
    return found[0], found[1]


def _identity(length: int) -> Relation:
    return tuple(1 << position for position in range(length))


def _unpacked(bits: int, length: int) -> npt.NDArray[np.bool_]:
    import numpy as np

    packed = np.frombuffer(bits.to_bytes(-(-length // 8), "little"), np.uint8)
    return np.unpackbits(packed, count=length, bitorder="little").astype(np.bool_)


def _span(bits: int) -> int:
    """Positions from the first to the last that is seen, both counted."""
    return bits.bit_length() - (bits & -bits).bit_length() + 1 if bits else 0


def _fraction(seen: int | None, size: Size | None) -> float | None:
    return None if seen is None or size is None else seen / (size[0] * size[1])


def _check_limit(name: str, size: Size) -> None:
    if max(size) > MAX_MAP:
        raise DpcError.of(
            "DPC062",
            f"{name} is {size[0]}x{size[1]}; receptive fields are computed up to {MAX_MAP}x{MAX_MAP}",
            hint="without a size, offsets are computed for any map",
        )


def _checked_position(at: object, size: Size) -> Size:
    match at:
        case (int(y), int(x)) if 0 <= y < size[0] and 0 <= x < size[1]:
            return y, x
    raise DpcError.of("DPC062", f"at must be (y, x) from (0, 0) to ({size[0] - 1}, {size[1] - 1}), not {repr(at)[:60]}")
