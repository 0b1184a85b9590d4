"""What a model is, in words: all that a checkpoint must say so that nothing else is needed to use it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.identity import cell_id
from dpcdsl.interchange import paper_space
from dpcdsl.layers import Pooling, Size
from dpcdsl.segmentation.backbone import Backbone
from dpcdsl.segmentation.labels import LabelSet
from dpcdsl.segmentation.model import Head, PresenceClassifier, SegmentationModel
from dpcdsl.segmentation.transforms import Preprocessing
from dpcdsl.space import Space
from dpcdsl.syntax import format_cell, format_space, parse_cell
from dpcdsl.values import Value

__all__ = ["ClassDescription", "ModelDescription"]

_Byte = Annotated[int, Field(ge=0, le=255)]


class ClassDescription(Value):
    """A class: its name, its colour, and the id that files have for it."""

    name: str
    colour: tuple[_Byte, _Byte, _Byte]
    id: _Byte


class ModelDescription(Value):
    """A segmentation model, or the classifier of its backbone (``head="classifier"``, which has no cell).

    name, cell: the cell's, and its text. space, id: the space's text and the cell's ID in it, where it has one.
    classes: of data set ``dataset``; with ``strict`` any other id is a mistake. crop: (height, width) it is trained on.
    """

    version: Literal[1] = 1
    head: Literal["cell", "classifier"] = "cell"
    name: str | None = Field(None, max_length=200)
    cell: str | None = Field(None, max_length=2**20)
    space: str | None = Field(None, max_length=2**20)
    id: str | None = Field(None, max_length=2**12)
    backbone: str = Field(max_length=200)
    output_stride: Literal[8, 16] = 16
    decoder: Literal["deeplabv3+"] | None = None
    pooling: Pooling = "paper"
    dataset: str = Field(max_length=200)
    strict: bool
    classes: tuple[ClassDescription, ...] = Field(min_length=1, max_length=255)
    preprocessing: Preprocessing
    crop: tuple[Annotated[int, Field(ge=1, le=2**16)], Annotated[int, Field(ge=1, le=2**16)]]

    @classmethod
    def of(
        cls,
        cell: Cell | None,
        name: str,
        backbone: str,
        labels: LabelSet,
        crop: Size,
        *,
        space: Space | None = None,
        **others: Any,
    ) -> ModelDescription:
        """name: the cell's. space: one that has the cell; None is the paper's, if it has it.

        Raises :class:`DpcError` (DPC055) if the space does not contain the cell.
        """
        ids = labels.ids or range(labels.count)
        if cell is None:
            others |= {"head": "classifier"}
        else:
            others |= {"name": name or "cell", "cell": format_cell(cell)}
            found = space or paper_space(len(cell.branches))
            try:
                others |= {"id": str(cell_id(cell, found, "dpc")), "space": format_space(found, "dpc")}
            except DpcError:
                if space is not None:
                    raise
        return cls(
            backbone=backbone,
            dataset=labels.name,
            strict=labels.strict,
            classes=tuple(
                ClassDescription(name=name, colour=colour, id=one)
                for name, colour, one in zip(labels.names, labels.colours, ids, strict=True)
            ),
            crop=crop,
            **others,
        )

    def of_backbone(self) -> ModelDescription:
        """The classifier of the same backbone, on the same classes, crop and preprocessing."""
        without = {"name": None, "cell": None, "space": None, "id": None, "decoder": None, "pooling": "paper"}
        return self.model_copy(update={"head": "classifier", **without})

    def with_cell(self, cell: Cell, name: str = "", **others: Any) -> ModelDescription:
        """The model of a cell on the same backbone, classes, crop and preprocessing. others: fields that differ."""
        kept = {name: getattr(self, name) for name in ("output_stride", "preprocessing", "decoder", "pooling")}
        return ModelDescription.of(cell, name, self.backbone, self.labels, self.crop, **{**kept, **others})

    @property
    def labels(self) -> LabelSet:
        """Raises :class:`DpcError` (DPC092) for names that cannot be."""
        names, colours, ids = zip(*((one.name, one.colour, one.id) for one in self.classes), strict=True)
        return LabelSet(self.dataset, names, colours, () if ids == tuple(range(len(ids))) else ids, self.strict)

    def model(
        self, *, backbone: Backbone | None = None, eager: bool = False, **options: Any
    ) -> SegmentationModel | PresenceClassifier:
        """The model, freshly initialised. backbone: one that has been made for it.

        Raises :class:`DpcError` for a cell or a backbone that cannot be.
        """
        below = backbone or Backbone(self.backbone, self.output_stride)
        if self.head == "classifier":
            return PresenceClassifier(below, len(self.classes), **options)
        return SegmentationModel(
            below, self.read_cell(), len(self.classes), decoder=self.decoder, eager=eager, **self._pooled, **options
        )

    def head_on(self, channels: int, **options: Any) -> Head:
        """What the model has on a backbone's features of so many channels, without a decoder."""
        return Head(
            self.read_cell(),
            channels,
            len(self.classes),
            output_stride=self.output_stride,
            **self._pooled,
            **options,
        )

    @property
    def _pooled(self) -> dict[str, Any]:
        """A sliding window is the one of the crop, in evaluation too."""
        crop: dict[str, Any] = {"image_pooling_crop_size": self.crop} if self.pooling == "sliding" else {}
        return {"pooling": self.pooling} | crop

    def read_cell(self) -> Cell:
        """Raises :class:`DpcError` for a text that is no cell: nothing else is read, and no file."""
        if self.cell is None or re.search(r"\bimport\b", self.cell):
            raise DpcError.of("DPC095", "it has no cell, or one that is imported", hint="the text of a cell alone")
        return parse_cell(self.cell, name="<cell of the checkpoint>")
