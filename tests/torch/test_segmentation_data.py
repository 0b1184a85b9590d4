"""Classes of data sets, and what is done to images and labels before they are trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import Cityscapes

from dpcdsl import DpcError
from dpcdsl.segmentation.labels import CITYSCAPES, IGNORED, PERSON_PART, VOC, LabelSet, voc_palette
from dpcdsl.segmentation.transforms import SCALES, Augmentation, Preprocessing

# Labels


def test_cityscapes_are_its_own_19_classes() -> None:
    """As torchvision has them from the data set's scripts."""
    evaluated = sorted((one for one in Cityscapes.classes if 0 <= one.train_id < 255), key=lambda one: one.train_id)
    assert CITYSCAPES.names == tuple(one.name for one in evaluated)
    assert CITYSCAPES.ids == tuple(one.id for one in evaluated)
    assert CITYSCAPES.colours == tuple(one.color for one in evaluated)
    every = np.array([[max(one.id, 0) for one in Cityscapes.classes]], np.uint8)
    wanted = [one.train_id if one.train_id >= 0 and one.id >= 0 else 255 for one in Cityscapes.classes]
    assert CITYSCAPES.train_ids(every).tolist() == [wanted]


def test_the_colours_of_voc() -> None:
    assert voc_palette(4) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert VOC.colours[15] == (192, 128, 128)  # a person
    assert voc_palette()[255] == (224, 224, 192)  # the void
    assert (VOC.count, PERSON_PART.count) == (21, 7)


@pytest.mark.parametrize("labels", [CITYSCAPES, VOC, PERSON_PART])
def test_ids_there_and_back(labels: LabelSet) -> None:
    every = np.arange(labels.count, dtype=np.uint8)[None]
    assert np.array_equal(labels.train_ids(labels.file_ids(every)), every)
    assert labels.train_ids(labels.file_ids(np.array([[IGNORED]], np.uint8))).item() == IGNORED
    assert labels.coloured(every)[0].tolist() == [list(colour) for colour in labels.colours]
    assert labels.coloured(np.array([[IGNORED]], np.uint8)).tolist() == [[[0, 0, 0]]]


def test_an_id_of_no_class_is_told() -> None:
    wrong = np.array([[0, 1], [21, 255]], np.uint8)
    with pytest.raises(DpcError, match=r"^error: a\.png has the id 21 at row 1, column 0") as caught:
        VOC.train_ids(wrong, "a.png")
    assert "[DPC092]" in str(caught.value)


# Augmentation


def scene(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose values say where they come from, and are the labels too."""
    labels = torch.arange(height)[:, None] // 4 + torch.arange(width)[None] // 4
    labels = (labels % 200).to(torch.uint8)
    return labels.expand(3, -1, -1).clone(), labels


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 999),
)
def test_image_and_labels_go_together(size: tuple[int, int], crop: tuple[int, int], seed: int) -> None:
    augmentation = Augmentation(crop, scales=(1.0,))
    image, labels = augmentation(*scene(*size), torch.Generator().manual_seed(seed))
    assert image.shape == (3, *crop)
    assert labels.shape == crop
    assert image.dtype is torch.float32
    assert labels.dtype is torch.uint8
    inside = labels != IGNORED
    assert torch.equal(image[0][inside], Preprocessing()(labels[None])[0][inside])
    assert (image[0][~inside] == 0).all()
    kept = min(size[0], crop[0]) * min(size[1], crop[1])
    assert int(inside.sum()) == kept


def test_scales_and_mirrors_are_drawn_evenly() -> None:
    image, labels = scene(16, 16)
    augmentation, generator = Augmentation((40, 40)), torch.Generator().manual_seed(0)
    sides: dict[int, int] = {}
    mirrored = 0
    for _ in range(700):
        _, found = augmentation(image, labels, generator)
        inside = found != IGNORED
        side = int(inside.any(0).sum())
        sides[side] = sides.get(side, 0) + 1
        mirrored += not inside[0, 0]
    assert sorted(sides) == [round(16 * scale) for scale in SCALES]
    assert all(60 <= count <= 140 for count in sides.values())
    assert 300 <= mirrored <= 400


def test_the_same_generator_gives_the_same() -> None:
    one, other = (Augmentation((17, 17))(*scene(33, 20), torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_labels_are_never_mixed() -> None:
    image, _ = scene(20, 20)
    labels = torch.where(torch.arange(20) < 10, 3, 17).to(torch.uint8).expand(20, 20)
    for seed in range(20):
        _, found = Augmentation((25, 25))(image, labels, torch.Generator().manual_seed(seed))
        assert set(found.unique().tolist()) <= {3, 17, IGNORED}


def test_what_cannot_be_is_told() -> None:
    for make in (
        lambda: Augmentation((0, 9)),
        lambda: Augmentation((9, 9), scales=()),
        lambda: Augmentation((9, 9), scales=(0.0,)),
        lambda: Augmentation((9, 9), mirror=2.0),
    ):
        with pytest.raises(DpcError, match="DPC062"):
            make()
