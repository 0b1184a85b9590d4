"""Data sets as they lie on a disk, whole, in part and damaged; and the synthetic street."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from PIL import Image
from scipy.io import savemat
from support import Dpc
from torchvision.datasets import Cityscapes, SBDataset, VOCSegmentation

from dpcdsl import DpcError
from dpcdsl.segmentation import images
from dpcdsl.segmentation.datasets import Example, check_data, count_data, open_data, splits_of
from dpcdsl.segmentation.images import MOST_PIXELS, read_ids, read_image, write_png
from dpcdsl.segmentation.labels import CITYSCAPES, IGNORED, voc_palette
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet, write_synthetic

Ids = np.ndarray[Any, np.dtype[np.uint8]]

SIZE = (9, 13)
VOC_FOLDER = "VOCdevkit/VOC2012"
LISTS = f"{VOC_FOLDER}/ImageSets/Segmentation"
BOUNDARIES = "benchmark_RELEASE/dataset"
PARTS_LIST = "pascal_person_part_trainval_list"


# Tiny data sets


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def drawn(path: Path, *shape: int, below: int = 256) -> Ids:
    """Values that the name of a file decides."""
    return np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, below, shape, np.uint8)


def put_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn(path, *SIZE, 3)).save(path)


def ids_of(path: Path, classes: int) -> Ids:
    ids = drawn(path, *SIZE, below=classes)
    ids[0, :3] = IGNORED
    return ids


def put_ids(path: Path, classes: int, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids_of(path, classes))
    if palette:
        image.putpalette([value for colour in voc_palette() for value in colour])
    image.save(path)


def put_list(path: Path, *names: str) -> None:
    put(path, "".join(f"{name}\n" for name in names))


def put_cityscapes(root: Path, annotations: str = "gtFine", splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        for name in ("zurich_000001_000019", "aachen_000000_000019", "aachen_000000_000002"):
            city = name.split("_", maxsplit=1)[0]
            put_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            put_ids(root / annotations / split / city / f"{name}_{annotations}_labelIds.png", 34)
            for other in ("color.png", "instanceIds.png", "polygons.json"):  # which are there, too, and are not read
                put(root / annotations / split / city / f"{name}_{annotations}_{other}", "")


def put_coarse(root: Path) -> None:
    put_cityscapes(root, "gtCoarse", ("train", "train_extra"))


def put_voc(root: Path) -> None:
    train, val = ("2007_000039", "2007_000032"), ("2007_000033",)
    for split, names in (("train", train), ("val", val), ("trainval", (*train, *val))):
        put_list(root / LISTS / f"{split}.txt", *names)
    for name in (*train, *val):
        put_image(root / VOC_FOLDER / "JPEGImages" / f"{name}.jpg")
        put_ids(root / VOC_FOLDER / "SegmentationClass" / f"{name}.png", 21, palette=True)
    put_image(root / VOC_FOLDER / "JPEGImages" / "2008_000009.jpg")  # most images have no segmentation


def put_mat(path: Path, ids: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": ids, "CategoriesPresent": [1, 2]}})


def put_boundaries(root: Path) -> None:
    """VOC, and the Semantic Boundaries Dataset, which has an image of VOC's validation in its training split."""
    put_voc(root)
    put_list(root / BOUNDARIES / "train.txt", "2008_000021", "2007_000032", "2007_000033")
    put_list(root / BOUNDARIES / "val.txt", "2008_000009")
    for name in ("2008_000021", "2007_000032", "2007_000033", "2008_000009"):
        put_image(root / BOUNDARIES / "img" / f"{name}.jpg")
        mat = root / BOUNDARIES / "cls" / f"{name}.mat"
        put_mat(mat, drawn(mat, *SIZE, below=21))


def put_converted(root: Path) -> None:
    """VOC, and the labels of the Semantic Boundaries Dataset as PNGs, those for VOC's validation among them."""
    put_voc(root)
    for name in ("2007_000032", "2007_000039", "2007_000033", "2008_000009"):
        put_ids(root / VOC_FOLDER / "SegmentationClassAug" / f"{name}.png", 21)


def put_person_part(root: Path) -> None:
    for split, names in (("train", ("2008_000008", "2008_000003")), ("val", ("2008_000034",))):
        put_list(root / PARTS_LIST / f"{split}.txt", *names)
        for name in names:
            put_image(root / "VOCdevkit/VOC2010/JPEGImages" / f"{name}.jpg")
            put_ids(root / "pascal_person_part_gt" / f"{name}.png", 7)


def put_folder(root: Path) -> None:
    put(root / "classes.txt", "road #804080\n\n  traffic light\t#FAAA1E \r\nsky\n")
    for split in ("train", "val"):
        for name in ("b.png", "a.JPG", "c.d.jpeg"):
            put_image(root / "images" / split / name)
            put_ids(root / "labels" / split / f"{name.rpartition('.')[0]}.png", 3)
        put(root / "images" / split / ".b.png", "hidden")
        put(root / "images" / split / "readme.txt", "neither")


#: How a layout is written, its name, a split, how many examples that has, and who has the data set.
WHOLE: dict[str, tuple[Callable[[Path], None], str, str, int, str]] = {
    "cityscapes": (put_cityscapes, "cityscapes", "train", 3, "https://www.cityscapes-dataset.com/downloads/"),
    "coarse": (put_coarse, "cityscapes-coarse", "train_extra", 3, "https://www.cityscapes-dataset.com/downloads/"),
    "voc": (put_voc, "voc", "train", 2, "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"),
    "boundaries": (put_boundaries, "voc", "trainaug", 4, "Semantic Boundaries Dataset"),
    "converted": (put_converted, "voc", "trainaug", 3, "SegmentationClassAug"),
    "person-part": (put_person_part, "person-part", "train", 2, "http://liangchiehchen.com/projects/DeepLab.html"),
    "folder": (put_folder, "folder", "train", 3, "images/SPLIT/NAME.png or .jpg, labels/SPLIT/NAME.png"),
}
every_layout = pytest.mark.parametrize("layout", WHOLE)


def write(layout: str, root: Path) -> tuple[str, str]:
    """Its name and its split."""
    put_it, name, split, _, _ = WHOLE[layout]
    put_it(root)
    return name, split


def remove(path: Path) -> None:
    assert path.exists()
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def told(act: Callable[[], Any], code: str) -> str:
    """What is told against an act, whose first code is this one."""
    with pytest.raises(DpcError) as caught:
        act()
    assert caught.value.codes[0] == code
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    return str(caught.value)


def same(one: Example, other: Example) -> bool:
    return one.name == other.name and all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


# Whole


@every_layout
def test_every_layout_is_found_by_what_is_there_and_read(layout: str, tmp_path: Path) -> None:
    name, split = write(layout, tmp_path)
    data = open_data(tmp_path, split)
    assert len(data) == WHOLE[layout][3] == count_data(tmp_path, split)
    assert open_data(f"{name}:{tmp_path}", split).files == data.files
    assert open_data(str(tmp_path), split).files == data.files
    assert [name for name, error in check_data(tmp_path, split) if error is None] == [one.name for one in data.files]
    for index in range(len(data)):
        example = data[index]
        assert example.name == data.files[index].name
        assert (example.image.dtype, example.labels.dtype) == (torch.uint8, torch.uint8)
        assert example.image.shape == (3, *SIZE)
        assert example.labels.shape == SIZE
        assert all(label < data.labels.count or label == IGNORED for label in example.labels.flatten().tolist())
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ("cityscapes", ("train", "val")),
        ("coarse", ("train", "train_extra")),
        ("voc", ("train", "val", "trainval")),
        ("boundaries", ("train", "val", "trainval", "trainaug")),
        ("converted", ("train", "val", "trainval", "trainaug")),
        ("person-part", ("train", "val")),
        ("folder", ("train", "val")),
    ],
)
def test_splits_are_those_that_are_there(layout: str, splits: tuple[str, ...], tmp_path: Path) -> None:
    write(layout, tmp_path)
    assert splits_of(tmp_path)[1] == splits


@pytest.mark.parametrize(
    ("layout", "mode", "split"), [("cityscapes", "fine", "train"), ("coarse", "coarse", "train_extra")]
)
def test_cityscapes_is_as_torchvision_reads_it(layout: str, mode: str, split: str, tmp_path: Path) -> None:
    write(layout, tmp_path)
    data = open_data(tmp_path, split)
    other = Cityscapes(str(tmp_path), split, mode, "semantic")
    listed = sorted(zip(other.images, (target for (target,) in other.targets), strict=True))
    assert [(str(one.image), str(one.labels)) for one in data.files] == listed
    order = [other.images.index(str(one.image)) for one in data.files]
    table = np.full(256, IGNORED)
    for one in Cityscapes.classes:
        table[one.id] = one.train_id if 0 <= one.train_id < 19 and one.id >= 0 else IGNORED
    for index, theirs in enumerate(order):
        image, ids = other[theirs]
        assert np.array_equal(data[index].image.permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(data[index].labels, table[np.asarray(ids)])
    assert len({int(one) for index in range(len(data)) for one in data[index].labels.flatten()}) > 10


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_voc_is_as_torchvision_reads_it(split: str, tmp_path: Path) -> None:
    put_voc(tmp_path)
    data, other = open_data(tmp_path, split), VOCSegmentation(str(tmp_path), image_set=split)
    assert [str(one.image) for one in data.files] == other.images
    assert [str(one.labels) for one in data.files] == other.masks
    for index in range(len(data)):
        image, ids = other[index]
        assert np.array_equal(data[index].image.permute(1, 2, 0), np.asarray(image))
        assert np.array_equal(data[index].labels, np.asarray(ids))
        assert (data[index].labels == IGNORED).sum() == 3


def test_the_labels_of_boundaries_are_as_torchvision_reads_them(tmp_path: Path) -> None:
    put_boundaries(tmp_path)
    examples = {one.name: one for one in open_data(tmp_path, "trainaug")}
    assert list(examples) == ["2007_000032", "2007_000039", "2008_000009", "2008_000021"]
    for split in ("train", "val"):
        other = SBDataset(str(tmp_path / BOUNDARIES), split, "segmentation")
        for index, path in enumerate(other.masks):
            image, ids = other[index]
            assert np.array_equal(read_ids(Path(path)), np.asarray(ids))
            if (name := Path(path).stem).startswith("2008"):
                assert np.array_equal(examples[name].labels, np.asarray(ids))
                assert np.array_equal(examples[name].image.permute(1, 2, 0), np.asarray(image))


def test_images_for_validation_are_not_trained_on(tmp_path: Path) -> None:
    for put_it in (put_boundaries, put_converted):
        put_it(tmp_path)
        val = {one.name for one in open_data(tmp_path, "val").files}
        assert val == {"2007_000033"}
        assert not val & {one.name for one in open_data(tmp_path, "trainaug").files}


def test_what_voc_has_labelled_itself_keeps_its_labels(tmp_path: Path) -> None:
    put_boundaries(tmp_path)
    found = {one.name: one for one in open_data(tmp_path, "trainaug").files}
    assert found["2007_000032"].labels == tmp_path / VOC_FOLDER / "SegmentationClass" / "2007_000032.png"
    assert found["2008_000021"].image == tmp_path / BOUNDARIES / "img" / "2008_000021.jpg"


def test_boundaries_may_lie_in_sbd(tmp_path: Path) -> None:
    put_boundaries(tmp_path)
    (tmp_path / BOUNDARIES).rename(tmp_path / "sbd")
    assert [one.name for one in open_data(tmp_path, "trainaug").files if "sbd" in one.labels.parts] == [
        "2008_000009",
        "2008_000021",
    ]


def test_converted_labels_are_preferred_and_without_those_for_validation(tmp_path: Path) -> None:
    put_boundaries(tmp_path)
    put_converted(tmp_path)
    found = open_data(tmp_path, "trainaug").files
    assert [one.name for one in found] == ["2007_000032", "2007_000039", "2008_000009"]
    assert {one.labels.parent.name for one in found} == {"SegmentationClassAug"}


@pytest.mark.parametrize("inside", ["", "VOCdevkit", VOC_FOLDER])
def test_voc_is_found_from_each_of_its_folders(inside: str, tmp_path: Path) -> None:
    put_voc(tmp_path)
    assert open_data(tmp_path / inside, "val").files == open_data(tmp_path, "val").files


def test_a_list_may_have_any_line_ends_and_empty_lines(tmp_path: Path) -> None:
    put_voc(tmp_path)
    put(tmp_path / LISTS / "train.txt", "\ufeff2007_000032\r\n\r\n  2007_000039 ")
    assert [one.name for one in open_data(tmp_path, "train").files] == ["2007_000032", "2007_000039"]


def test_a_plain_folder_has_the_classes_of_its_list(tmp_path: Path) -> None:
    put_folder(tmp_path)
    labels = open_data(tmp_path, "train").labels
    assert labels.names == ("road", "traffic light", "sky")
    assert labels.colours == ((0x80, 0x40, 0x80), (0xFA, 0xAA, 0x1E), voc_palette()[2])


def test_fine_annotations_come_first_and_the_coarse_ones_by_name(tmp_path: Path) -> None:
    put_cityscapes(tmp_path)
    put_coarse(tmp_path)
    assert splits_of(tmp_path)[0] == "Cityscapes"
    assert all("gtFine" in one.labels.parts for one in open_data(tmp_path, "train").files)
    assert all("gtCoarse" in one.labels.parts for one in open_data(f"cityscapes-coarse:{tmp_path}", "train").files)
    assert open_data(tmp_path, "train").labels is CITYSCAPES


# A part is missing


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("cityscapes", "leftImg8bit"),
        ("cityscapes", "leftImg8bit/train"),
        ("cityscapes", "gtFine"),
        ("cityscapes", "gtFine/train"),
        ("cityscapes", "gtFine/train/aachen"),
        ("coarse", "leftImg8bit"),
        ("coarse", "leftImg8bit/train_extra"),
        ("coarse", "gtCoarse/train_extra"),
        ("voc", f"{VOC_FOLDER}/JPEGImages"),
        ("voc", f"{VOC_FOLDER}/SegmentationClass"),
        ("voc", f"{VOC_FOLDER}/ImageSets"),
        ("voc", f"{LISTS}/train.txt"),
        ("boundaries", f"{LISTS}/train.txt"),
        ("boundaries", f"{LISTS}/val.txt"),
        ("boundaries", f"{VOC_FOLDER}/JPEGImages"),
        ("boundaries", f"{VOC_FOLDER}/SegmentationClass"),
        ("boundaries", BOUNDARIES),
        ("boundaries", f"{BOUNDARIES}/img"),
        ("boundaries", f"{BOUNDARIES}/cls"),
        ("boundaries", f"{BOUNDARIES}/train.txt"),
        ("boundaries", f"{BOUNDARIES}/val.txt"),
        ("converted", f"{LISTS}/val.txt"),
        ("converted", f"{VOC_FOLDER}/JPEGImages"),
        ("person-part", "pascal_person_part_gt"),
        ("person-part", PARTS_LIST),
        ("person-part", f"{PARTS_LIST}/train.txt"),
        ("person-part", "VOCdevkit/VOC2010/JPEGImages"),
        ("person-part", "VOCdevkit"),
        ("folder", "labels"),
        ("folder", "labels/train"),
        ("folder", "classes.txt"),
    ],
)
def test_a_missing_part_is_named_with_where_to_get_it(layout: str, part: str, tmp_path: Path) -> None:
    _, split = write(layout, tmp_path)
    remove(tmp_path / part)
    text = told(lambda: open_data(tmp_path, split), "DPC093")
    assert (part if part == "VOCdevkit" else str(tmp_path / part)) in text
    assert "is not there" in text
    assert WHOLE[layout][4] in text


#: Of some layouts a folder of images or labels is itself the list.
LISTED_BY = {"cityscapes": "image", "coarse": "image", "folder": "image", "converted": "labels"}


@pytest.mark.parametrize(
    ("layout", "part"),
    [(layout, part) for layout in WHOLE for part in ("image", "labels") if LISTED_BY.get(layout) != part],
)
def test_a_missing_file_is_refused_at_once_and_found_by_a_check(layout: str, part: str, tmp_path: Path) -> None:
    _, split = write(layout, tmp_path)
    files = open_data(tmp_path, split).files[1]
    path: Path = getattr(files, part)
    path.unlink()
    text = told(lambda: open_data(tmp_path, split), "DPC093")
    assert f"{path} is not there [DPC093]" in text
    assert "`dpc data check` lists them" in text
    assert WHOLE[layout][4] in text
    wrong = {name: str(error) for name, error in check_data(tmp_path, split) if error}
    assert list(wrong) == [files.name]
    assert wrong[files.name].startswith(f"{path}: error: the image cannot be read: ")
    assert "there is no such file" in wrong[files.name]


def test_missing_files_are_counted(tmp_path: Path) -> None:
    put_voc(tmp_path)
    for path in (tmp_path / VOC_FOLDER / "SegmentationClass").iterdir():
        path.unlink()
    assert "2007_000039.png is not there, and 2 more" in told(lambda: open_data(tmp_path, "trainval"), "DPC093")


@pytest.mark.parametrize("make", [lambda _: None, lambda path: put(path, "")])
def test_a_root_that_is_no_folder_is_told(make: Callable[[Path], Any], tmp_path: Path, dpc: Dpc) -> None:
    root = tmp_path / "nowhere"
    make(root)
    text = told(lambda: open_data(root, "train"), "DPC093")
    assert f"{root}: error: there is no such folder" in text
    assert "PASCAL VOC 2012" in text
    found = dpc("data", "check", root)
    assert (found.code, found.out, found.err) == (1, "", text + "\n")


def test_a_folder_of_something_else_is_told(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", "nothing")
    text = told(lambda: open_data(tmp_path, "train"), "DPC093")
    assert "there is no data set that is known here" in text
    assert "classes.txt" in text


@pytest.mark.parametrize("name", ["cityscapes-coarse", "cityscapes", "voc", "person-part", "folder"])
def test_a_named_layout_that_is_not_there_is_told(name: str, tmp_path: Path) -> None:
    for act in (splits_of, lambda root: open_data(root, "train")):
        assert str(tmp_path) in told(lambda act=act: act(f"{name}:{tmp_path}"), "DPC093")


@every_layout
def test_an_unknown_split_is_told_with_the_nearest(layout: str, tmp_path: Path) -> None:
    _, split = write(layout, tmp_path)
    wrong = split + "s"
    text = told(lambda: open_data(tmp_path, wrong), "DPC093")
    assert f"has no split `{wrong}`; did you mean `{split}`?" in text
    assert f"`{split}`" in text.splitlines()[1]


def test_a_plain_folder_without_splits_says_what_to_make(tmp_path: Path) -> None:
    put_folder(tmp_path)
    remove(tmp_path / "images")
    assert "make images/train and labels/train" in told(lambda: open_data(tmp_path, "train"), "DPC093")
    assert str(tmp_path / "images" / "train") in told(lambda: splits_of(tmp_path), "DPC093")


@pytest.mark.parametrize(
    ("layout", "emptied"),
    [
        ("cityscapes", ["leftImg8bit/train"]),
        ("coarse", ["leftImg8bit/train_extra"]),
        ("voc", [f"{LISTS}/train.txt"]),
        ("boundaries", [f"{LISTS}/train.txt", f"{BOUNDARIES}/train.txt", f"{BOUNDARIES}/val.txt"]),
        ("converted", [f"{VOC_FOLDER}/SegmentationClassAug"]),
        ("person-part", [f"{PARTS_LIST}/train.txt"]),
        ("folder", ["images/train"]),
    ],
)
def test_an_empty_split_is_told(layout: str, emptied: list[str], tmp_path: Path, dpc: Dpc) -> None:
    _, split = write(layout, tmp_path)
    for path in (tmp_path / one for one in emptied):
        if path.is_dir():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.write_text("\n")
    text = told(lambda: open_data(tmp_path, split), "DPC093")
    assert f"the split `{split}` is empty" in text
    assert WHOLE[layout][4] in text
    assert dpc("data", "check", tmp_path, "--split", split).code == 1


# Damaged

#: The file, its code, what is wrong with it, and what to do.
DAMAGED = {
    "cut": ("images/train/cut.png", "DPC094", "the image cannot be read: ", "fetch or write the file again"),
    "jpeg": ("labels/train/jpeg.png", "DPC092", "it is a JPEG of mode L, ", "a JPEG would blur them"),
    "missing": ("labels/train/missing.png", "DPC094", "there is no such file", "fetch or write the file again"),
    "range": ("labels/train/range.png", "DPC092", "range.png has the id 3 at row 4, column 5", "map them to classes"),
    "rgb": ("labels/train/rgb.png", "DPC092", "it is a PNG of mode RGB, ", "ids and not colours"),
    "size": ("labels/train/size.png", "DPC092", "it is of 9x12 pixels, and its image size.png of 9x13", "as it is"),
    "text": ("images/train/text.png", "DPC094", "it is neither a PNG nor a JPEG", "fetch or write the file again"),
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A plain folder with one good example, and one for each way to be wrong."""
    root = tmp_path / "damaged"
    put(root / "classes.txt", "a\nb\nc\n")
    for name in ("good", *DAMAGED):
        put_image(root / "images/train" / f"{name}.png")
        put_ids(root / "labels/train" / f"{name}.png", 3)
    cut, text = root / "images/train/cut.png", root / "images/train/text.png"
    cut.write_bytes(cut.read_bytes()[:200])
    text.write_text("no image at all\n")
    labels = root / "labels/train"
    ids = ids_of(labels / "range.png", 3)
    ids[4, 5] = 3
    Image.fromarray(ids).save(labels / "range.png")
    Image.fromarray(ids_of(labels / "size.png", 3)[:, 1:]).save(labels / "size.png")
    Image.fromarray(drawn(labels, *SIZE, 3)).save(labels / "rgb.png")
    Image.fromarray(drawn(labels, *SIZE)).save(labels / "jpeg.png", format="JPEG")
    (labels / "missing.png").unlink()
    return root


def test_a_split_without_labels_is_told_beside_the_others(dpc: Dpc, tmp_path: Path) -> None:
    assert dpc("data", "synthetic", "scenes", "-n", 1, "--size", "33x65").code == 0
    (tmp_path / "scenes" / "images" / "val").mkdir()
    found = dpc("data", "check", "scenes")
    assert found.code == 1
    assert "labels/val is not there" in found.err
    assert found.out.splitlines() == [
        "a folder of images and labels, train: 1 example, good",
        "a folder of images and labels, val: 0 examples, 1 wrong",
    ]


def test_all_damage_is_told_in_one_run(damaged: Path, dpc: Dpc) -> None:
    found = dpc("data", "check", damaged)
    assert found.code == 1
    assert found.out == "a folder of images and labels, train: 8 examples, 7 wrong\n"
    lines = found.err.splitlines()
    assert len(lines) == 2 * len(DAMAGED)
    for (path, code, wrong, remedy), line, help_line in zip(DAMAGED.values(), lines[::2], lines[1::2], strict=True):
        assert line.startswith(f"{damaged / path}: error: ")
        assert line.endswith(f"[{code}]")
        assert wrong in line
        assert help_line.startswith("    help: ")
        assert remedy in help_line


def test_damage_as_json(damaged: Path, dpc: Dpc) -> None:
    found = dpc("data", "check", damaged, "--json")
    assert (found.code, found.err) == (1, "")
    value = json.loads(found.out)
    assert value["dataset"] == "a folder of images and labels"
    assert value["splits"] == {"train": {"examples": 8, "wrong": 7}}
    assert len(value["problems"]) == len(DAMAGED)
    for (path, code, wrong, remedy), problem in zip(DAMAGED.values(), value["problems"], strict=True):
        assert sorted(problem) == ["code", "hint", "message", "place"]
        assert (problem["place"], problem["code"]) == (str(damaged / path), code)
        assert wrong in problem["message"]
        assert remedy in problem["hint"]


def test_training_refuses_a_missing_mask_at_once(damaged: Path) -> None:
    assert "missing.png is not there" in told(lambda: open_data(damaged, "train"), "DPC093")


@pytest.mark.parametrize("name", sorted(set(DAMAGED) - {"missing"}))
def test_a_damaged_example_is_told_when_it_is_read(name: str, damaged: Path) -> None:
    put_ids(damaged / "labels/train/missing.png", 3)
    data = open_data(damaged, "train")
    path, code, wrong, _ = DAMAGED[name]
    index = [one.name for one in data.files].index(name)
    text = told(lambda: data[index], code)
    assert text.startswith(str(damaged / path))
    assert wrong in text


@every_layout
def test_a_good_set_is_called_good(layout: str, tmp_path: Path, dpc: Dpc) -> None:
    _, split = write(layout, tmp_path)
    found = dpc("data", "check", tmp_path)
    assert (found.code, found.err) == (0, "")
    assert f"{split}: {WHOLE[layout][3]} examples, good\n" in found.out
    value = json.loads(dpc("data", "check", tmp_path, "--json").out)
    assert value["problems"] == []
    assert value["splits"][split] == {"examples": WHOLE[layout][3], "wrong": 0}


def test_only_the_wanted_splits_are_checked(tmp_path: Path, dpc: Dpc) -> None:
    put_folder(tmp_path)
    (tmp_path / "images/train/b.png").write_bytes(b"")
    assert dpc("data", "check", tmp_path, "--split", "val").code == 0
    for splits in (("train", "val"), ("val", "train")):
        found = dpc("data", "check", tmp_path, "--json", *(part for split in splits for part in ("--split", split)))
        assert found.code == 1
        value = json.loads(found.out)
        assert [problem["place"] for problem in value["problems"]] == [str(tmp_path / "images/train/b.png")]
        assert {split: one["wrong"] for split, one in value["splits"].items()} == {"train": 1, "val": 0}
    found = dpc("data", "check", tmp_path, "--split", "vals")
    assert found.code == 1
    assert "did you mean `val`?" in found.err


# Hostile


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def impatient() -> Iterator[None]:
    """A test that waits for ever fails instead."""

    def stop(*_: object) -> None:
        raise TimeoutError("waited for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [read_image, read_ids])
@pytest.mark.parametrize("side", [2**13, 2**16, 2**31 - 1])
def test_an_image_that_claims_to_be_huge_is_not_decoded(
    side: int, read: Callable[[Path], Ids], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded.append)
    path = put(tmp_path / "huge.png", png(side, max(side, MOST_PIXELS // side + 1), 8, 0, b"\0\0"))
    text = told(lambda: read(path), "DPC094")
    assert str(path) in text
    assert " pixels" in text
    assert "help: resize it" in text
    assert decoded == []


def test_the_largest_image_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_image(path := tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", SIZE[0] * SIZE[1])
    assert read_image(path).shape == (*SIZE, 3)
    monkeypatch.setattr(images, "MOST_PIXELS", SIZE[0] * SIZE[1] - 1)
    assert "it has 13x9 pixels, and at most 116 are read" in told(lambda: read_image(path), "DPC094")


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "..", "a/b", "a.jpg", "~root", "a\0b", "a\x1b[31m", "a" * 201, "é" * 101]


@pytest.mark.parametrize(
    ("layout", "part", "name"),
    [
        *(("voc", f"{LISTS}/train.txt", name) for name in OUTSIDE),
        ("boundaries", f"{LISTS}/val.txt", OUTSIDE[0]),
        ("boundaries", f"{BOUNDARIES}/train.txt", OUTSIDE[0]),
        ("boundaries", f"{BOUNDARIES}/val.txt", OUTSIDE[1]),
        ("person-part", f"{PARTS_LIST}/train.txt", OUTSIDE[1]),
    ],
)
def test_a_list_leads_nowhere_else(layout: str, part: str, name: str, tmp_path: Path) -> None:
    _, split = write(layout, tmp_path)
    with (tmp_path / part).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")
    text = told(lambda: open_data(tmp_path, split), "DPC093")
    assert text.startswith(f"{tmp_path / part}: error: the list has `")


def test_a_check_does_not_pass_over_a_bad_list(tmp_path: Path, dpc: Dpc) -> None:
    """The other splits are good."""
    put_voc(tmp_path)
    put_list(tmp_path / LISTS / "train.txt", "../../etc/passwd")
    found = dpc("data", "check", tmp_path)
    assert found.code == 1
    assert "train.txt: error: the list has `../../etc/passwd`" in found.err


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("content", "code"), [(b"\xff\xfe\x00", "DPC006"), (None, "DPC060")])
def test_a_list_that_is_no_text_is_told(content: bytes | None, code: str, tmp_path: Path) -> None:
    put_voc(tmp_path)
    path = tmp_path / LISTS / "train.txt"
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    for act in (splits_of, lambda root: open_data(root, "train")):
        assert str(path) in told(lambda act=act: act(tmp_path), code)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a mat file",
        b"MATLAB 5.0 MAT-file" + bytes(200),
        "cut",
        "nothing",
        np.zeros(SIZE, np.uint16),
        np.zeros((*SIZE, 3), np.uint8),
        "text",
        3.0,
    ],
    ids=["empty", "text", "zeros", "cut", "other-names", "16-bit", "three-axes", "a-string", "a-number"],
)
def test_a_mat_that_is_no_label_map_is_told(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str) and content == "nothing":
        savemat(path, {"other": np.zeros(SIZE, np.uint8)})
    else:
        put_mat(path, np.zeros(SIZE, np.uint8) if isinstance(content, str) and content == "cut" else content)
        if isinstance(content, str) and content == "cut":
            path.write_bytes(path.read_bytes()[:-100])
    assert told(lambda: read_ids(path), "DPC094").startswith(f"{path}: error: the image cannot be read: ")


def test_a_damaged_mat_is_found_by_a_check(tmp_path: Path, dpc: Dpc) -> None:
    put_boundaries(tmp_path)
    path = put(tmp_path / BOUNDARIES / "cls" / "2008_000021.mat", "garbage")
    found = dpc("data", "check", tmp_path, "--split", "trainaug")
    assert found.code == 1
    assert f"{path}: error:" in found.err
    assert "from its folder cls" in found.err


def test_sixteen_bits_of_grey_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", png(2, 1, 16, 0, b"\0\1\2\3\4"))
    assert "save it with 8 bits a channel" in told(lambda: read_image(path), "DPC094")
    assert "it is a PNG of mode I;16" in told(lambda: read_ids(path), "DPC092")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_ids_in_fewer_bits_of_grey_are_refused_as_they_would_be_stretched(depth: int, tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", png(2, 1, depth, 0, b"\0\1"))
    assert "a label map is a PNG of one 8-bit channel" in told(lambda: read_ids(path), "DPC092")


def test_ids_in_fewer_bits_of_a_palette_are_read_as_they_are(tmp_path: Path) -> None:
    ids = np.arange(14, dtype=np.uint8).reshape(2, 7)
    image = Image.fromarray(ids)
    image.putpalette([value for colour in voc_palette(14) for value in colour])
    image.save(tmp_path / "a.png", bits=4)
    assert np.array_equal(read_ids(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_image_of_any_mode_becomes_three_channels(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(drawn(path, *SIZE, 3)).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        assert np.array_equal(read_image(path), np.asarray(image.convert("RGB")))
    assert read_image(path).shape == (*SIZE, 3)


def test_transparency_and_animation_are_left_out_quietly(tmp_path: Path) -> None:
    """Any warning, and any file that is left open, fails the test."""
    image = Image.fromarray(ids_of(tmp_path, 4))
    image.putpalette([value for colour in voc_palette() for value in colour])
    image.save(tmp_path / "clear.png", transparency=bytes([0, 128, 255, 3]))
    assert np.array_equal(read_image(tmp_path / "clear.png"), np.asarray(image.convert("RGB")))
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 20)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "moving.png") == (10, 0, 0)).all()


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "DPC093", "it has 0 classes"),
        ("\n".join(f"class {index}" for index in range(256)), "DPC093", "it has 256 classes"),
        ("a\nb\na\n", "DPC092", "`a` is no name of a class"),
        ("a\n#112233\n", "DPC092", "`` is no name of a class"),
        ("a\nring\a\n", "DPC092", "is no name of a class"),
        ("a\x1b[31mred\n", "DPC092", "is no name of a class"),
        ("a" * 101, "DPC092", "is no name of a class"),
        (b"\xff", "DPC006", "the file is not UTF-8 text"),
    ],
)
def test_a_wrong_list_of_classes_is_told(text: str | bytes, code: str, says: str, tmp_path: Path, dpc: Dpc) -> None:
    put_folder(tmp_path)
    path = put(tmp_path / "classes.txt", text)
    found = told(lambda: open_data(tmp_path, "train"), code)
    assert found.startswith(f"{path}: error: ")
    assert says in found
    outcome = dpc("data", "check", tmp_path)
    assert (outcome.code, outcome.err) == (1, found + "\n")


def test_as_many_classes_as_can_be(tmp_path: Path) -> None:
    put_folder(tmp_path)
    put(tmp_path / "classes.txt", "\n".join(f"class {index}" for index in range(255)))
    assert open_data(tmp_path, "train").labels.count == 255


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("folder", "images/train/b.png"),
        ("folder", "labels/train/b.png"),
        ("boundaries", f"{BOUNDARIES}/img/2008_000021.jpg"),
        ("boundaries", f"{BOUNDARIES}/cls/2008_000021.mat"),
    ],
)
def test_what_is_no_regular_file_is_not_opened(
    layout: str, path: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    _, split = write(layout, tmp_path)
    (tmp_path / path).unlink()
    make(tmp_path / path)
    assert str(tmp_path / path) in told(lambda: open_data(tmp_path, split), "DPC093")
    (text,) = (str(error) for _, error in check_data(tmp_path, split) if error)
    assert text.startswith(str(tmp_path / path))
    assert "it is not a regular file" in text


def _bases() -> dict[str, bytes]:
    found = {}
    for name in ("rgb.png", "rgb.jpg", "ids.png", "palette.png"):
        data = io.BytesIO()
        image = Image.fromarray(drawn(Path(name), *SIZE, *((3,) if "rgb" in name else ())))
        if name == "palette.png":
            image.putpalette([value for colour in voc_palette() for value in colour])
        image.save(data, "JPEG" if name.endswith("jpg") else "PNG")
        found[name] = data.getvalue()
    return found


BASES = _bases()


def with_right_sums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be told, have the right sums."""
    result, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(result)


@pytest.mark.parametrize("base", BASES)
@settings(max_examples=25)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=5),
    cut=st.none() | st.integers(0, 10**4),
    mended=st.booleans(),
)
def test_of_a_damaged_file_there_is_an_error_or_an_image(
    base: str, tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int | None, mended: bool
) -> None:
    data = bytearray(BASES[base])
    for at, value in flips:
        data[at % len(data)] = value
    if cut is not None:
        del data[cut % len(data) :]
    path = tmp_path_factory.getbasetemp() / base
    path.write_bytes(with_right_sums(bytes(data)) if mended and base.endswith("png") else bytes(data))
    for read, axes in ((read_image, 3), (read_ids, 2)):
        found: Ids | DpcError
        try:
            found = read(path)
        except DpcError as error:
            found = error
        if isinstance(found, DpcError):
            assert set(found.codes) <= {"DPC092", "DPC094"}
            assert str(found).startswith(str(path))
        else:
            assert (found.dtype, found.ndim) == (np.uint8, axes)


# Written and read again

pixels = numbers.array_shapes(min_dims=2, max_dims=2, max_side=20)


@given(numbers.arrays(np.uint8, pixels), st.integers(0, 256))
@settings(max_examples=40)
def test_ids_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, ids: Ids, colours: int) -> None:
    """With no palette, and with one that has fewer colours than there are ids."""
    path = tmp_path_factory.getbasetemp() / "ids.png"
    write_png(path, ids, voc_palette(colours))
    assert np.array_equal(read_ids(path), ids)
    colour = np.zeros((256, 3), np.uint8)
    colour[:colours] = np.array(voc_palette(colours), np.uint8).reshape(-1, 3)
    shown = colour[ids] if colours else np.repeat(ids[..., None], 3, 2)
    assert np.array_equal(read_image(path), shown)


@given(numbers.arrays(np.uint8, pixels.map(lambda shape: (*shape, 3))))
@settings(max_examples=25)
def test_pixels_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, image: Ids) -> None:
    path = tmp_path_factory.getbasetemp() / "pixels.png"
    write_png(path, image)
    assert np.array_equal(read_image(path), image)


@pytest.mark.parametrize("place", ["nowhere/a.png", "file/a.png", "folder.png"])
def test_what_cannot_be_written_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    put(tmp_path / "file", "")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert str(tmp_path / place) in told(lambda: write_png(tmp_path / place, np.zeros(SIZE, np.uint8)), "DPC060")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_png(tmp_path / "a.png", np.ones(SIZE, np.uint8))
    monkeypatch.setattr(os, "fsync", full)
    assert "no space left" in told(lambda: write_png(tmp_path / "a.png", np.zeros(SIZE, np.uint8)), "DPC060")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (read_ids(tmp_path / "a.png") == 1).all()


# The synthetic street

_MOVING, _WAITING, _CROSSING, _STANDING = (
    STREET.names.index(name) for name in ("moving car", "waiting car", "crossing person", "waiting person")
)
_SIGNAL = STREET.names.index("signal")


@cache
def scenes(count: int, shuffled: bool = False) -> list[Example]:
    return list(SyntheticSet(count, shuffled=shuffled))


def shown(scene: Example) -> bool:
    """Whether the lit part of the signal is green."""
    lit = (scene.labels == _SIGNAL) & (scene.image.amax(0) > 150)
    assert lit.sum() > 1000
    red, green, _ = scene.image[:, lit].median(1).values.tolist()
    assert abs(red - green) > 100
    return bool(green > red)


def goes(scene: Example) -> bool:
    """What the labels say, all of them alike."""
    found = set(scene.labels.unique().tolist()) & {_MOVING, _WAITING, _CROSSING, _STANDING}
    assert found <= {_MOVING, _STANDING} or found <= {_WAITING, _CROSSING}
    assert found & {_MOVING, _WAITING}
    return _MOVING in found


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    data = SyntheticSet(4, "val", (40, 70), seed=3)
    assert all(same(data[index], SyntheticSet(9, "val", (40, 70), seed=3)[index]) for index in (3, 0, 2, 1))
    assert [one.name for one in data] == ["val_00000", "val_00001", "val_00002", "val_00003"]
    others = (
        data[1],
        SyntheticSet(4, "val", (40, 70), seed=4)[0],
        SyntheticSet(4, "test", (40, 70), seed=3)[0],
        SyntheticSet(4, "train", (40, 70), seed=3)[0],
    )
    for other in others:
        assert not torch.equal(other.image, data[0].image)
        assert not torch.equal(other.labels, data[0].labels)


@settings(max_examples=15)
@given(st.tuples(st.integers(33, 120), st.integers(65, 240)), st.integers(0, 2**70), st.booleans())
def test_scenes_have_any_size(size: tuple[int, int], seed: int, shuffled: bool) -> None:
    example = SyntheticSet(1, size=size, seed=seed, shuffled=shuffled)[0]
    assert example.image.shape == (3, *size)
    assert example.labels.shape == size
    assert (example.image.dtype, example.labels.dtype) == (torch.uint8, torch.uint8)
    assert int(example.labels.max()) < STREET.count
    assert _SIGNAL in example.labels


@pytest.mark.parametrize("size", [(33, 65), (97, 193), (193, 385)])
def test_a_handful_of_scenes_has_every_class(size: tuple[int, int]) -> None:
    found = {int(label) for scene in SyntheticSet(8, size=size) for label in scene.labels.unique()}
    assert found == set(range(STREET.count))


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": -1},
        {"seed": -1},
        {"split": "trian"},
        {"size": (32, 65)},
        {"size": (33, 64)},
        {"size": (2**13, 2**12)},
    ],
)
def test_scenes_that_cannot_be_are_told(wrong: dict[str, Any]) -> None:
    told(lambda: SyntheticSet(**({"count": 1} | wrong)), "DPC062")


@pytest.mark.parametrize("index", [-1, 3])
def test_there_are_no_more_scenes_than_were_asked_for(index: int) -> None:
    with pytest.raises(IndexError):
        SyntheticSet(3)[index]
    assert len(SyntheticSet(3)) == 3


def test_the_signal_tells_what_waits() -> None:
    found = [(shown(scene), goes(scene)) for scene in scenes(100)]
    assert all(signal == go for signal, go in found)
    assert 30 <= sum(go for _, go in found) <= 70


def test_a_shuffled_signal_tells_nothing() -> None:
    found = [(shown(scene), goes(scene)) for scene in scenes(60, True)]
    for part in (found, [one for one in found if one[0]], [one for one in found if not one[0]]):
        assert 0.25 <= sum(signal == go for signal, go in part) / len(part) <= 0.75


def test_the_control_differs_in_the_signal_alone() -> None:
    for scene, control in zip(scenes(8), scenes(8, True), strict=True):
        assert torch.equal(scene.labels, control.labels)
        same = (scene.image == control.image).all(0)
        assert bool(same[scene.labels != _SIGNAL].all())


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_signal_is_far_from_what_it_decides(shuffled: bool) -> None:
    for scene in scenes(60, shuffled) if shuffled else scenes(100):
        signal = torch.nonzero((scene.labels == _SIGNAL).any(0)).flatten()
        decided = torch.nonzero((scene.labels >= _MOVING).any(0)).flatten()
        assert (signal[:, None] - decided).abs().min() >= 100


def test_streets_are_seen_from_both_sides() -> None:
    left = [bool((scene.labels == _SIGNAL)[:, :193].any()) for scene in scenes(100)]
    assert 30 <= sum(left) <= 70


@pytest.mark.parametrize(("one", "other"), [(_MOVING, _WAITING), (_CROSSING, _STANDING)])
def test_looks_do_not_tell_what_waits(one: int, other: int) -> None:
    """The mean colour of the pixels, and how many they are, are alike."""

    def looks(label: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        found = [
            [*scene.image[:, mask].double().mean(1).tolist(), float(mask.sum())]
            for scene in scenes(100)
            if (mask := scene.labels == label).any()
        ]
        return np.array(found)

    a, b = looks(one), looks(other)
    assert min(len(a), len(b)) > 25
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert (np.abs(a.mean(0) - b.mean(0)) < 3.5 * error).all()


def test_written_scenes_are_good_and_read_as_they_were_drawn(tmp_path: Path, dpc: Dpc) -> None:
    found = dpc("data", "synthetic", "street", "-n", "3")
    assert (found.code, found.out) == (0, "3 scenes of 193x385 in street, split train\n")
    found = dpc("data", "check", "street")
    assert (found.code, found.out) == (0, "a folder of images and labels, train: 3 examples, good\n")
    data, drawn_scenes = open_data(tmp_path / "street", "train"), SyntheticSet(3)
    assert len(data) == 3
    assert all(same(data[index], drawn_scenes[index]) for index in range(3))
    assert (data.labels.names, data.labels.colours) == (STREET.names, STREET.colours)


def test_the_options_of_written_scenes(tmp_path: Path, dpc: Dpc) -> None:
    options = ("--split", "val", "--size", "40x80", "--seed", "5", "--shuffled")
    assert dpc("data", "synthetic", tmp_path / "a", "-n", "2", *options).code == 0
    data, drawn_scenes = open_data(tmp_path / "a", "val"), SyntheticSet(2, "val", (40, 80), 5, True)
    assert all(same(data[index], drawn_scenes[index]) for index in range(2))
    assert list(write_synthetic(tmp_path / "b", drawn_scenes)) == [one.name for one in data.files]
    for path in (one for one in (tmp_path / "a").rglob("*") if one.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize("options", [("-n", "0"), ("--size", "32x65"), ("--seed", "-1")])
def test_scenes_that_cannot_be_are_not_written(options: tuple[str, str], tmp_path: Path, dpc: Dpc) -> None:
    found = dpc("data", "synthetic", tmp_path / "street", *options)
    assert found.code == 1
    assert "[DPC062]" in found.err
    assert not (tmp_path / "street").exists()
