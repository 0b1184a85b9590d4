"""Data sets as they lie on a disk: Cityscapes, PASCAL VOC, PASCAL-Person-Part, and a plain folder.

A :class:`Layout` knows which folders and lists make a data set, and where it is to be had; :func:`open_data` finds the
layout of a folder and lists a split of it. What is read later, image by image, is :class:`FileSet`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dpcdsl.errors import DpcError, nearest
from dpcdsl.files import read_text
from dpcdsl.segmentation.images import read_ids, read_image
from dpcdsl.segmentation.labels import CITYSCAPES, PERSON_PART, VOC, LabelSet, voc_palette

__all__ = [
    "LAYOUTS",
    "DataSet",
    "Example",
    "FileSet",
    "Files",
    "Layout",
    "check_data",
    "count_data",
    "open_data",
    "splits_of",
]


class Example(NamedTuple):
    """image: uint8 [3, H, W]. labels: uint8 [H, W], train ids."""

    name: str
    image: Tensor
    labels: Tensor


class DataSet(Protocol):
    """What is trained on and evaluated: examples by index, and their classes."""

    @property
    def labels(self) -> LabelSet: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Files(NamedTuple):
    """Where an example lies."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class FileSet:
    """Examples that are read from files when they are asked for."""

    labels: LabelSet
    files: tuple[Files, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Raises :class:`DpcError`: DPC094 for a file that cannot be read, DPC092 for labels that do not fit."""
        name, image_path, labels_path = self.files[index]
        image, ids = read_image(image_path), read_ids(labels_path)
        if image.shape[:2] != ids.shape:
            raise DpcError.of(
                "DPC092",
                f"it is of {ids.shape[0]}x{ids.shape[1]} pixels, and its image {image_path.name} of "
                f"{image.shape[0]}x{image.shape[1]}",
                place=str(labels_path),
                hint="make the label map for the image as it is",
            )
        try:
            labels = self.labels.train_ids(ids, labels_path.name)
        except DpcError as error:
            raise error.within(str(labels_path)) from None
        return Example(name, torch.from_numpy(image.copy()).permute(2, 0, 1), torch.from_numpy(labels))


@dataclass(frozen=True)
class Layout:
    """How a data set lies on a disk.

    splits: their names. files: those of a split, of the root. source: what to fetch, from where, and where to put it.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    files: Callable[[Path, str], Iterator[Files]]
    labels: Callable[[Path], LabelSet]
    source: str


def open_data(root: str | Path, split: str) -> FileSet:
    """A split of the data set in a folder, whose layout is found by what is there.

    root: the folder, or its layout's name and the folder, ``"cityscapes-coarse:/data/cityscapes"``.

    Raises :class:`DpcError` (DPC093) where there is no such layout or split, or a part of it is not there: it says what
    is missing and where to get it.
    """
    layout, folder = _layout_of(root)
    data, missing = _listed(layout, folder, split)
    if missing:
        raise DpcError.of(
            "DPC093",
            f"{missing[0]} is not there" + (f", and {len(missing) - 1} more" if missing[1:] else ""),
            place=str(folder),
            hint=f"`dpc data check` lists them; {layout.source}",
        )
    return data


def check_data(root: str | Path, split: str) -> Iterator[tuple[str, DpcError | None]]:
    """Every example of a split that is read in turn: its name, and what is wrong with it.

    Raises :class:`DpcError` (DPC093) as :func:`open_data` does, but for files of examples.
    """
    layout, folder = _layout_of(root)
    data, _ = _listed(layout, folder, split)
    for index, files in enumerate(data.files):
        try:
            data[index]
        except DpcError as error:
            yield files.name, error
        else:
            yield files.name, None


def count_data(root: str | Path, split: str) -> int:
    """How many examples a split lists. Raises :class:`DpcError` (DPC093) as :func:`check_data` does."""
    return len(_listed(*_layout_of(root), split)[0])


def splits_of(root: str | Path) -> tuple[str, tuple[str, ...]]:
    """The layout's title, and the splits that are there; of a plain folder, those that have images.

    Raises :class:`DpcError` (DPC093) if none is, and what reading the classes raises.
    """
    layout, folder = _layout_of(root)
    layout.labels(folder)
    found = list(_folder_splits(folder)) if not layout.splits else []
    for split in layout.splits:
        try:
            next(layout.files(folder, split), None)
            found.append(split)
        except _MissingError:
            continue
    if not found:  # say what is missing of the first
        next(layout.files(folder, layout.splits[0] if layout.splits else "train"), None)
    return layout.title, tuple(found)


def _listed(layout: Layout, folder: Path, split: str) -> tuple[FileSet, list[Path]]:
    splits = layout.splits or _folder_splits(folder)
    if split not in splits:
        near = nearest(split, splits)
        raise DpcError.of(
            "DPC093",
            f"{layout.title} has no split `{split}`" + (f"; did you mean `{near}`?" if near else ""),
            place=str(folder),
            hint=", ".join(f"`{one}`" for one in splits) or "make images/train and labels/train",
        )
    files = tuple(layout.files(folder, split))
    if not files:
        raise DpcError.of("DPC093", f"the split `{split}` is empty", place=str(folder), hint=layout.source)
    return FileSet(layout.labels(folder), files), [
        path for one in files for path in (one.image, one.labels) if not path.is_file()
    ]


def _layout_of(root: str | Path) -> tuple[Layout, Path]:
    named = re.match(r"([a-z-]+):(.+)", str(root))
    if named and named[1] in LAYOUTS:
        return LAYOUTS[named[1]], Path(named[2])
    folder = Path(root)
    for sign, name in _SIGNS:
        if (folder / sign).exists():
            return LAYOUTS[name], folder
    raise DpcError.of(
        "DPC093",
        "there is no such folder" if not folder.is_dir() else "there is no data set that is known here",
        place=str(folder)[:200],
        hint="a folder with images/SPLIT, labels/SPLIT and classes.txt, or one of "
        + ", ".join(layout.title for layout in LAYOUTS.values() if layout.name != "folder"),
    )


class _MissingError(DpcError):
    """A folder or list of a data set is not there."""


def _need(layout: str, path: Path) -> Path:
    if not path.exists():
        one = LAYOUTS[layout]
        raise _MissingError.of("DPC093", f"{one.title}: {path} is not there", hint=one.source)
    return path


# Cityscapes


def _cityscapes(kind: str, annotations: str) -> Callable[[Path, str], Iterator[Files]]:
    def files(root: Path, split: str) -> Iterator[Files]:
        images = _need(kind, root / "leftImg8bit" / split)
        labels = _need(kind, root / annotations / split)
        for image in sorted(images.glob("*/*_leftImg8bit.png")):
            name = image.name.removesuffix("_leftImg8bit.png")
            yield Files(name, image, labels / image.parent.name / f"{name}_{annotations}_labelIds.png")

    return files


# PASCAL


def _names(kind: str, path: Path) -> list[str]:
    """Of a list: a name a line. Nothing in it can lead out of the data set."""
    names = read_text(_need(kind, path), 2**24).text.split()
    for name in names:
        if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > 200:
            raise DpcError.of("DPC093", f"the list has `{name}`, which names no image", place=str(path))
    return names


def _voc_folder(root: Path, year: str = "VOC2012") -> Path:
    return next((one for one in (root / "VOCdevkit" / year, root / year) if one.is_dir()), root)


def _voc(root: Path, split: str) -> Iterator[Files]:
    folder = _voc_folder(root)
    if split == "trainaug":
        yield from _voc_augmented(root, folder)
        return
    names = _names("voc", folder / "ImageSets" / "Segmentation" / f"{split}.txt")
    images, labels = _need("voc", folder / "JPEGImages"), _need("voc", folder / "SegmentationClass")
    for name in names:
        yield Files(name, images / f"{name}.jpg", labels / f"{name}.png")


def _voc_augmented(root: Path, folder: Path) -> Iterator[Files]:
    """VOC's training images and those of the Semantic Boundaries Dataset that are not for VOC's validation.

    Its labels are PNGs in SegmentationClassAug, if there is one, or its own .mat files.
    """
    images = _need("voc", folder / "JPEGImages")
    own = _names("voc", folder / "ImageSets" / "Segmentation" / "train.txt")
    val = set(_names("voc", folder / "ImageSets" / "Segmentation" / "val.txt"))
    converted = folder / "SegmentationClassAug"
    if converted.is_dir():
        names = sorted({path.stem for path in converted.glob("*.png")} - val)
        yield from (Files(name, images / f"{name}.jpg", converted / f"{name}.png") for name in names)
        return
    boundaries = next((one for one in (root / "benchmark_RELEASE" / "dataset", root / "sbd") if one.is_dir()), None)
    if boundaries is None:
        _need("voc", root / "benchmark_RELEASE" / "dataset")
        return
    listed = [*_names("voc", boundaries / "train.txt"), *_names("voc", boundaries / "val.txt")]
    for name in sorted({*own, *listed} - val):
        if name in own:
            yield Files(name, images / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png")
        else:
            yield Files(name, boundaries / "img" / f"{name}.jpg", boundaries / "cls" / f"{name}.mat")


def _person_part(root: Path, split: str) -> Iterator[Files]:
    names = _names("person-part", root / "pascal_person_part_trainval_list" / f"{split}.txt")
    labels = _need("person-part", root / "pascal_person_part_gt")
    images = _need("person-part", _voc_folder(root, "VOC2010") / "JPEGImages")
    for name in names:
        yield Files(name, images / f"{name}.jpg", labels / f"{name}.png")


# A plain folder


def _folder_splits(root: Path) -> tuple[str, ...]:
    images = root / "images"
    return tuple(sorted(one.name for one in images.iterdir() if one.is_dir())) if images.is_dir() else ()


def _folder(root: Path, split: str) -> Iterator[Files]:
    images, labels = _need("folder", root / "images" / split), _need("folder", root / "labels" / split)
    for image in sorted(images.iterdir()):
        if image.suffix.lower() in (".png", ".jpg", ".jpeg") and not image.name.startswith("."):
            yield Files(image.stem, image, labels / f"{image.stem}.png")


def _folder_labels(root: Path) -> LabelSet:
    """Of classes.txt: a class a line, its name and, if wanted, its colour as #rrggbb."""
    path = _need("folder", root / "classes.txt")
    names, colours = [], []
    lines = [line.strip() for line in read_text(path, 2**20).text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= 255:
        raise DpcError.of("DPC093", f"it has {len(lines)} classes", place=str(path), hint="1 to 255, one a line")
    for line, default in zip(lines, voc_palette(), strict=False):
        match = re.fullmatch(r"(.*?)(?:(?:^|\s+)#([0-9a-fA-F]{6}))?", line)
        assert match is not None
        names.append(match[1])
        value = int(match[2], 16) if match[2] else None
        colours.append(default if value is None else (value >> 16, value >> 8 & 255, value & 255))
    try:
        return LabelSet("this data set", tuple(names), tuple(colours), strict=True)
    except DpcError as error:
        raise error.within(str(path)) from None


_VOC_SITE = "http://host.robots.ox.ac.uk/pascal/VOC"
_CITYSCAPES_SITE = "https://www.cityscapes-dataset.com/downloads/"

#: By name.
LAYOUTS = {
    layout.name: layout
    for layout in [
        Layout(
            "cityscapes",
            "Cityscapes",
            ("train", "val", "test"),
            _cityscapes("cityscapes", "gtFine"),
            lambda _: CITYSCAPES,
            f"unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of {_CITYSCAPES_SITE} into the folder",
        ),
        Layout(
            "cityscapes-coarse",
            "Cityscapes, coarse annotations",
            ("train", "val", "train_extra"),
            _cityscapes("cityscapes-coarse", "gtCoarse"),
            lambda _: CITYSCAPES,
            "unpack gtCoarse.zip, and leftImg8bit_trainvaltest.zip or leftImg8bit_trainextra.zip, of "
            f"{_CITYSCAPES_SITE} into the folder",
        ),
        Layout(
            "voc",
            "PASCAL VOC 2012",
            ("train", "val", "trainval", "trainaug"),
            _voc,
            lambda _: VOC,
            f"unpack VOCtrainval_11-May-2012.tar of {_VOC_SITE}/voc2012 into the folder; for `trainaug` benchmark.tgz "
            "of the Semantic Boundaries Dataset, or its labels as PNGs, SegmentationClassAug",
        ),
        Layout(
            "person-part",
            "PASCAL-Person-Part",
            ("train", "val", "trainval"),
            _person_part,
            lambda _: PERSON_PART,
            "unpack pascal_person_part.zip of http://liangchiehchen.com/projects/DeepLab.html and VOC 2010 of "
            f"{_VOC_SITE}/voc2010 (VOCdevkit/VOC2010/JPEGImages) into the folder",
        ),
        Layout(
            "folder",
            "a folder of images and labels",
            (),
            _folder,
            _folder_labels,
            "images/SPLIT/NAME.png or .jpg, labels/SPLIT/NAME.png with ids 0 to K-1 or 255, and classes.txt with a "
            "class a line",
        ),
    ]
}

# What shows the layout of a folder, the most particular first.
_SIGNS = [
    ("pascal_person_part_gt", "person-part"),
    ("pascal_person_part_trainval_list", "person-part"),
    ("gtFine", "cityscapes"),
    ("gtCoarse", "cityscapes-coarse"),
    ("leftImg8bit", "cityscapes"),
    ("VOCdevkit", "voc"),
    ("VOC2012", "voc"),
    ("ImageSets", "voc"),
    ("SegmentationClass", "voc"),
    ("images", "folder"),
    ("labels", "folder"),
    ("classes.txt", "folder"),
]
