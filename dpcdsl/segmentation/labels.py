"""Classes of data sets: their names, colours, and the ids that files and servers have for them.

A model's classes are numbered from 0 without holes (the *train ids* of Cityscapes), and 255 is ignored. Files
have ids of their own: Cityscapes' label ids, PASCAL's palette indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dpcdsl.errors import DpcError

__all__ = ["CITYSCAPES", "IGNORED", "PERSON_PART", "VOC", "LabelSet", "voc_palette"]

#: The label of pixels that count for nothing.
IGNORED = 255

_Colour = tuple[int, int, int]
_Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set, by train id.

    names, colours: of each class. ids: what files have for it; by default the train id itself. Any other id in a file
    is ignored, or, if ``strict``, a mistake (255 is ignored then, too).
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[_Colour, ...]
    ids: tuple[int, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORED or not len(self.names) == len(self.colours) == len(
            self.ids or self.names
        ):
            raise DpcError.of(
                "DPC092",
                f"{len(self.names)} names, {len(self.colours)} colours and {len(self.ids)} ids of classes",
                hint=f"1 to {IGNORED} classes, each with a colour",
            )
        for name in self.names:
            if not name.isprintable() or not name.strip() or len(name) > 100 or self.names.count(name) > 1:
                raise DpcError.of(
                    "DPC092", f"`{name}` is no name of a class", hint="printable, not long, and given once"
                )
        if any(not 0 <= value <= 255 for colour in self.colours for value in colour) or any(
            not 0 <= one < IGNORED for one in self.ids
        ):
            raise DpcError.of("DPC092", "colours of classes are three numbers from 0 to 255, and ids are from 0 to 254")

    @property
    def count(self) -> int:
        return len(self.names)

    @cached_property
    def _to_train_ids(self) -> _Ids:
        table = np.full(256, IGNORED, np.uint8)
        for train_id, file_id in enumerate(self.ids or range(self.count)):
            table[file_id] = train_id
        return table

    @cached_property
    def _to_file_ids(self) -> _Ids:
        table = np.full(256, self._unlabelled, np.uint8)
        table[: self.count] = self.ids or range(self.count)
        return table

    @property
    def _unlabelled(self) -> int:
        return 0 if self.ids and 0 not in self.ids else IGNORED

    def train_ids(self, file_ids: _Ids, where: str = "the label map") -> _Ids:
        """Train ids of a file's ids, uint8 [H, W]. ``where`` names the file in a message.

        Raises :class:`DpcError` (DPC092), if the set is strict, for an id that is of no class.
        """
        found = self._to_train_ids[file_ids]
        if self.strict and (wrong := (found == IGNORED) & (file_ids != IGNORED)).any():
            row, column = np.argwhere(wrong)[0]
            raise DpcError.of(
                "DPC092",
                f"{where} has the id {file_ids[row, column]} at row {row}, column {column}, and {self.name} has "
                f"classes 0 to {self.count - 1}",
                hint=f"{int(wrong.sum())} pixels have such ids: map them to classes, or to {IGNORED}",
            )
        return found

    def file_ids(self, train_ids: _Ids) -> _Ids:
        """What files and evaluation servers have for train ids; for what is ignored, the id of the unlabelled."""
        return self._to_file_ids[train_ids]

    def coloured(self, train_ids: _Ids) -> npt.NDArray[np.uint8]:
        """A picture [H, W, 3] in the data set's colours; what is ignored is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.count] = self.colours
        return table[train_ids]


def voc_palette(count: int = 256) -> tuple[_Colour, ...]:
    """PASCAL VOC's colours: bit 3 i + c of an index is bit 7 - i of channel c."""

    def colour(index: int) -> _Colour:
        channels = [sum((index >> (3 * i + c) & 1) << (7 - i) for i in range(3)) for c in range(3)]
        return channels[0], channels[1], channels[2]

    return tuple(colour(index) for index in range(count))


def _cityscapes(rows: Sequence[tuple[str, int, _Colour]]) -> LabelSet:
    names, ids, colours = zip(*rows, strict=True)
    return LabelSet("Cityscapes", names, colours, ids)


#: Cityscapes: 19 classes that are evaluated; files have label ids.
CITYSCAPES = _cityscapes(
    [
        ("road", 7, (128, 64, 128)),
        ("sidewalk", 8, (244, 35, 232)),
        ("building", 11, (70, 70, 70)),
        ("wall", 12, (102, 102, 156)),
        ("fence", 13, (190, 153, 153)),
        ("pole", 17, (153, 153, 153)),
        ("traffic light", 19, (250, 170, 30)),
        ("traffic sign", 20, (220, 220, 0)),
        ("vegetation", 21, (107, 142, 35)),
        ("terrain", 22, (152, 251, 152)),
        ("sky", 23, (70, 130, 180)),
        ("person", 24, (220, 20, 60)),
        ("rider", 25, (255, 0, 0)),
        ("car", 26, (0, 0, 142)),
        ("truck", 27, (0, 0, 70)),
        ("bus", 28, (0, 60, 100)),
        ("train", 31, (0, 80, 100)),
        ("motorcycle", 32, (0, 0, 230)),
        ("bicycle", 33, (119, 11, 32)),
    ]
)

_VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

#: PASCAL VOC 2012: 20 classes and the background; 255 is the void around objects.
VOC = LabelSet("PASCAL VOC 2012", _VOC_NAMES, voc_palette(21), strict=True)

#: PASCAL-Person-Part: six parts and the background.
PERSON_PART = LabelSet(
    "PASCAL-Person-Part",
    ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"),
    voc_palette(7),
    strict=True,
)
