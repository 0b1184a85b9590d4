"""From a trained model to label maps, what they are worth, how they are shown, and what the model is made of."""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import Dpc
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpcdsl import DpcError, parse_cell
from dpcdsl.segmentation.analysis import branch_weights, plot_branch_weights
from dpcdsl.segmentation.checkpoints import FILE, Checkpoint, write_checkpoint
from dpcdsl.segmentation.datasets import Example, open_data
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.evaluation import Evaluation, evaluate
from dpcdsl.segmentation.images import read_ids, read_image
from dpcdsl.segmentation.labels import CITYSCAPES, IGNORED, VOC, LabelSet, voc_palette
from dpcdsl.segmentation.pictures import overlay, write_labels, write_prediction
from dpcdsl.segmentation.prediction import Predictor, upsampled_rows
from dpcdsl.segmentation.synthetic import STREET, SyntheticSet
from dpcdsl.segmentation.transforms import Preprocessing

CELL = parse_cell("filters 16\n(F, sepconv3x3 rate 1x3, Y1) (Y1, conv1x1, Y2) (F, avgpool grid 1x1, Y3)")
DESCRIPTION = ModelDescription.of(CELL, "tiny", "test_resnet", STREET, (33, 65), preprocessing=Preprocessing())
PLAIN = Preprocessing()
PAPERS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
#: Two logits, or probabilities, that are nearer than this may change places.
TIE = 1e-5


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """An image of blurred blocks, uint8 [3, height, width]."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, -(-height // 6), -(-width // 6), generator=generator)
    return (F.interpolate(blocks, (height, width), mode="bilinear")[0] * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, with which every class is predicted somewhere."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found: Any = DESCRIPTION.model().eval()
        found.head.cell.projection.weight[:, 32:].mul_(0.1)  # the image's mean, which would decide alone
        found.head.logits.weight.normal_(std=10)
        seen = found(torch.stack([PLAIN(picture(40, 71, seed)) for seed in range(8)]))
        found.head.logits.bias.sub_(seen.mean((0, 2, 3)))
    return found


class Fixed(nn.Module):
    """A model that gives the same logits [classes, h, w] for every image."""

    def __init__(self, logits: Tensor, called: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.fixed, self.called = nn.Parameter(logits), called

    def forward(self, images: Tensor) -> Tensor:
        self.called()
        return self.fixed[None]


def enlarged(maps: Tensor, size: Iterable[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)


@torch.no_grad()
def scores(model: nn.Module, image: Tensor, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Tensor:
    """[classes, H, W], of which the largest is the label: the formula, written plainly.

    The logits at one scale; at several, or with the mirrored image, the average of the softmax.
    """
    height, width = image.shape[1:]
    size = 16 * math.ceil((height - 1) / 16) + 1, 16 * math.ceil((width - 1) / 16) + 1
    padded = torch.zeros(1, 3, *size)
    padded[0, :, :height, :width] = (image / 255 - 0.5) / 0.5
    found = []
    for scale in scales:
        scaled = enlarged(padded, (16 * max(1, round((side - 1) * scale / 16)) + 1 for side in size))
        images = padded if scale == 1 else scaled
        found.append(enlarged(model(images), size))
        if flip:
            found.append(enlarged(model(images.flip(3)), size).flip(3))
    average = found[0] if len(found) == 1 else torch.stack([one.softmax(1) for one in found]).mean(0)
    return average[0, :, :height, :width]


def assert_largest(labels: Tensor, scores: Tensor) -> None:
    """Each label is that of the largest score, but where the two largest are as good as equal."""
    assert labels.dtype is torch.uint8
    assert labels.shape == scores.shape[1:]
    first, second = scores.topk(2, 0).values
    clear = first - second > TIE
    assert clear.float().mean() > 0.95
    assert torch.equal(labels[clear].long(), scores.argmax(0)[clear])


# One image


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 50), st.integers(1, 75), st.integers(0, 99))
def test_labels_are_the_largest_of_logits_at_the_images_size(model: Any, height: int, width: int, seed: int) -> None:
    image = picture(height, width, seed)
    assert_largest(Predictor(model, PLAIN)(image), scores(model, image))


@pytest.mark.parametrize(
    ("scales", "flip"),
    [((0.5,), False), ((1.0,), True), ((0.5, 1.0, 1.5), False), ((0.5, 1.0, 1.5), True), (PAPERS, True)],
)
def test_several_scales_are_the_average_of_the_softmax(model: Any, scales: tuple[float, ...], flip: bool) -> None:
    for size in ((33, 65), (40, 71)):
        image = picture(*size, seed=4)
        labels = Predictor(model, PLAIN, scales, flip)(image)
        assert_largest(labels, scores(model, image, scales, flip))
        assert len(labels.unique()) >= 3


def test_scales_and_mirrors_are_not_for_nothing(model: Any) -> None:
    """What the tests above would not see if the model said the same of them all."""
    image = picture(40, 71, 4)
    found = [Predictor(model, PLAIN, *how)(image) for how in (((1.0,), False), ((1.0,), True), ((0.5, 1.0), False))]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 60), st.sampled_from([((1.0,), False), ((0.5, 1.0), True)])
)
def test_bands_change_nothing(
    model: Any, height: int, width: int, band: int, how: tuple[tuple[float, ...], bool]
) -> None:
    image = picture(height, width)
    one = Predictor(model, PLAIN, *how, band=band)(image)
    assert torch.equal(one, Predictor(model, PLAIN, *how, band=height + 1)(image))


@pytest.mark.parametrize("how", [((1.0,), False), ((0.75, 1.0), True)])
def test_every_band_from_one_row_to_more_than_the_image(model: Any, how: tuple[tuple[float, ...], bool]) -> None:
    image = picture(17, 40, 2)
    whole = Predictor(model, PLAIN, *how, band=99)(image)
    for band in range(1, 20):
        assert torch.equal(Predictor(model, PLAIN, *how, band=band)(image), whole), band


@pytest.mark.parametrize("seed", [10, 17])
def test_bands_change_nothing_where_classes_tie(seed: int) -> None:
    """Two classes are each other's mirror image, so that their averages differ by rounding alone."""
    generator = torch.Generator().manual_seed(seed)
    one, *others = torch.randn(3, 3, 5, generator=generator)
    between = [0.1 * (other + other.flip(1)) - 1 for other in others]
    model = Fixed(torch.stack([one, *between, one.flip(1)]))
    image = torch.zeros(3, 33, 65, dtype=torch.uint8)
    whole = Predictor(model, PLAIN, flip=True, band=33)(image)
    assert {0, 3} <= set(whole.unique().tolist())
    for band in range(1, 33):
        assert torch.equal(Predictor(model, PLAIN, flip=True, band=band)(image), whole), band


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_the_mirrored_image_has_the_mirrored_labels(model: Any, scales: tuple[float, ...]) -> None:
    """Where nothing is padded, which is done on one side only."""
    image = picture(40, 65, 5)
    predictor = Predictor(model, PLAIN, scales, flip=True)
    expected = scores(model, image, scales, flip=True)
    assert_largest(predictor(image.flip(2)).flip(1), expected)
    plain = Predictor(model, PLAIN, scales)
    assert not torch.equal(plain(image.flip(2)).flip(1), plain(image))


def test_the_padding_is_0_after_preprocessing(model: Any) -> None:
    preprocessing = Preprocessing(mean=(0.2, 0.5, 0.7), std=(0.3, 0.2, 0.25))
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = picture(40, 71)
    Predictor(model, preprocessing)(image)
    handle.remove()
    assert seen[0].shape == (1, 3, 49, 81)
    assert torch.equal(seen[0][0, :, :40, :71], preprocessing(image))
    assert (seen[0][..., 40:, :] == 0).all()
    assert (seen[0][..., 71:] == 0).all()


def test_an_image_of_one_pixel(model: Any) -> None:
    image = picture(1, 1)
    for how in (((1.0,), False), (PAPERS, True)):
        assert_largest(Predictor(model, PLAIN, *how)(image), scores(model, image, *how))


def test_bf16_gives_nearly_the_same_labels(model: Any) -> None:
    kinds: list[torch.dtype] = []
    handle = model.head.logits.register_forward_hook(lambda *given: kinds.append(given[2].dtype))
    image = picture(81, 97, 3)
    full, half = (Predictor(model, PLAIN, (0.75, 1.0), True, precision=name)(image) for name in ("fp32", "bf16"))
    handle.remove()
    assert kinds == [torch.float32] * 4 + [torch.bfloat16] * 4
    assert 0.95 < (full == half).float().mean() < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "scales are numbers above 0 and at most 16"),
        ({"scales": (1.0, 0.0)}, "scales are numbers above 0 and at most 16"),
        ({"scales": (-1.0,)}, "scales are numbers above 0 and at most 16"),
        ({"scales": (17.0,)}, "scales are numbers above 0 and at most 16"),
        ({"scales": (math.nan,)}, "scales are numbers above 0 and at most 16"),
        ({"band": 0}, "a band has one row or more, not 0"),
    ],
)
def test_what_cannot_be_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DpcError, match=message) as caught:
        Predictor(Fixed(torch.zeros(2, 1, 1)), PLAIN, **settings)
    assert caught.value.codes == ("DPC062",)


sides = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(st.tuples(sides, sides), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_rows_are_those_of_the_resized_map(have: tuple[int, int], want: tuple[int, int], data: st.DataObject) -> None:
    maps = torch.randn(3, *have, generator=torch.Generator().manual_seed(sum(have)))
    start = data.draw(st.integers(0, want[0] - 1))
    stop = data.draw(st.integers(start + 1, want[0]))
    whole = enlarged(maps[None], want)[0]
    found = upsampled_rows(maps, want, start, stop)
    torch.testing.assert_close(found, whole[:, start:stop], rtol=0, atol=1e-5)
    assert torch.equal(found, upsampled_rows(maps, want, 0, want[0])[:, start:stop])


# Memory


class Watch(TorchDispatchMode):
    """How many elements each tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.sizes += [one.numel() for one in tree_leaves(found) if isinstance(one, Tensor)]
        return found


@pytest.mark.parametrize(("size", "how"), [((1025, 2049), ((1.0,), False)), ((257, 513), ((0.5, 1.0), True))])
def test_logits_never_have_the_images_size(size: tuple[int, int], how: tuple[tuple[float, ...], bool]) -> None:
    classes, band = 19, 64
    watch = Watch()
    # What was made before the model has seen its last image are images.
    model = Fixed(torch.randn(classes, *((side - 1) // 16 + 1 for side in size)), watch.sizes.clear)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    with watch:
        labels = Predictor(model, PLAIN, *how, band=band)(image)
    assert labels.shape == size
    most = classes * band * size[1]
    assert 0.9 * most < max(watch.sizes) < 1.1 * most
    assert most < classes * size[0] * size[1] / 4


# A data set


class Told:
    """Examples whose image is the prediction: what :func:`told` reads of it."""

    def __init__(self, labels: LabelSet, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        self.labels, self.pairs = labels, [(p.astype(np.uint8), t.astype(np.uint8)) for p, t in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        predicted, labelled = (torch.from_numpy(one.copy()) for one in self.pairs[index])
        return Example(str(index), predicted.expand(3, -1, -1).clone(), labelled)


def told(image: Tensor) -> Tensor:
    return image[0]


def evaluated(data: Any, labels: LabelSet = STREET) -> Evaluation:
    predictor: Any = told
    return evaluate(predictor, data, labels)


def some_maps(classes: int, seed: int, absent: tuple[int, ...] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predictions and labels of images of several sizes; some labels are ignored."""
    rng = np.random.default_rng(seed)
    there = [one for one in range(classes) if one not in absent]
    for size in ((7, 9), (1, 30), (20, 3), (12, 12)):
        predicted, labelled = rng.choice(there, size), rng.choice(there, size)
        labelled = np.where(rng.random(size) < 0.5, predicted, labelled)
        yield predicted, np.where(rng.random(size) < 0.2, IGNORED, labelled)


def counted(pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: int) -> list[list[int]]:
    """Pixels by label and by prediction, one after the other."""
    confusion = [[0] * classes for _ in range(classes)]
    for predicted, labelled in pairs:
        for one, other in zip(labelled.flat, predicted.flat, strict=True):
            if one != IGNORED:
                confusion[one][other] += 1
    return confusion


@pytest.mark.parametrize(("seed", "absent"), [(0, ()), (1, (3,)), (2, (0, 10))])
def test_measures_are_those_of_pixels_counted_one_by_one(seed: int, absent: tuple[int, ...]) -> None:
    pairs = list(some_maps(STREET.count, seed, absent))
    found = evaluated(Told(STREET, pairs))
    confusion = counted(pairs, STREET.count)
    assert found.classes == STREET.names
    assert found.confusion.dtype is torch.int64
    assert found.confusion.tolist() == confusion
    there = [one for one in range(STREET.count) if one not in absent]
    ious = {}
    for one in there:
        both = confusion[one][one]
        ious[one] = both / (sum(confusion[one]) + sum(row[one] for row in confusion) - both)
    assert [n for n, iou in enumerate(found.iou.tolist()) if math.isnan(iou)] == list(absent)
    assert found.iou[there].tolist() == pytest.approx(list(ious.values()), rel=1e-12)
    assert found.miou == pytest.approx(sum(ious.values()) / len(ious), rel=1e-12)
    right, every = sum(confusion[n][n] for n in there), sum(map(sum, confusion))
    assert every < sum(labelled.size for _, labelled in pairs)
    assert found.pixel_accuracy == pytest.approx(right / every, rel=1e-12)


def test_a_class_that_is_only_predicted_or_only_labelled_counts_as_0() -> None:
    found = evaluated(Told(STREET, [(np.array([[0, 0, 1]]), np.array([[0, 2, IGNORED]]))]))
    assert found.iou[[0, 2]].tolist() == [0.5, 0.0]
    assert math.isnan(found.iou[1])  # predicted where it is ignored
    assert found.miou == 0.25


def test_a_perfect_prediction_is_1() -> None:
    scenes = [SyntheticSet(3, size=(33, 65))[n].labels.numpy() for n in range(3)]
    found = evaluated(Told(STREET, [(scene, scene) for scene in scenes]))
    assert (found.miou, found.pixel_accuracy) == (1.0, 1.0)
    assert set(found.iou[~found.iou.isnan()].tolist()) == {1.0}


def test_where_all_is_ignored_there_is_no_number() -> None:
    found = evaluated(Told(STREET, [(np.zeros((2, 2)), np.full((2, 2), IGNORED))]))
    assert math.isnan(found.miou)
    assert math.isnan(found.pixel_accuracy)


def test_examples_are_let_go_one_by_one() -> None:
    alive: list[weakref.ref[Tensor]] = []

    class Watched(Told):
        def __getitem__(self, index: int) -> Example:
            assert all(one() is None for one in alive[:-1])
            example = super().__getitem__(index)
            alive.append(weakref.ref(example.image))
            return example

    done: list[int] = []
    predictor: Any = told
    evaluate(predictor, Watched(STREET, some_maps(STREET.count, 0)), STREET, done.append)
    assert done == [1, 2, 3, 4]
    assert len(alive) == 4


@pytest.mark.parametrize("other", [VOC, LabelSet("turned", STREET.names[::-1], STREET.colours)])
def test_a_data_set_of_other_classes_is_refused(other: LabelSet) -> None:
    with pytest.raises(DpcError, match=r"the model knows 11 classes \(sky, building, vegetation, …\)") as caught:
        evaluated(Told(other, some_maps(3, 0)))
    assert caught.value.codes == ("DPC092",)


def test_a_model_is_evaluated_as_it_predicts(model: Any) -> None:
    scenes = SyntheticSet(2, "val", (33, 65))
    predictor = Predictor(model, PLAIN)
    pairs = [(predictor(scenes[n].image).numpy(), scenes[n].labels.numpy()) for n in range(2)]
    assert evaluate(predictor, scenes, STREET).confusion.tolist() == counted(pairs, STREET.count)


# Pictures


def test_cityscapes_has_its_label_ids_in_grey(tmp_path: Path) -> None:
    train_ids = np.array([[0, 1, 2], [18, 13, IGNORED]], np.uint8)
    write_labels(tmp_path / "a.png", train_ids, CITYSCAPES)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "L")
    found = read_ids(tmp_path / "a.png")
    assert found.tolist() == [[7, 8, 11], [33, 26, 0]]
    assert np.array_equal(CITYSCAPES.train_ids(found), train_ids)


@pytest.mark.parametrize("labels", [VOC, STREET])
def test_voc_has_train_ids_with_their_colours_as_palette(labels: LabelSet, tmp_path: Path) -> None:
    train_ids = np.array([[*range(labels.count), IGNORED]], np.uint8)
    write_labels(tmp_path / "a.png", train_ids, labels)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode) == ("PNG", "P")
        colours = np.asarray(image.convert("RGB"))[0].tolist()
    assert np.array_equal(read_ids(tmp_path / "a.png"), train_ids)
    assert colours == [*map(list, labels.colours), [224, 224, 192]]


def test_the_palette_of_voc_is_whole(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.png", np.zeros((1, 1), np.uint8), VOC)
    with Image.open(tmp_path / "a.png") as image:
        palette = image.getpalette()
    assert palette == [value for colour in voc_palette() for value in colour]


def test_an_overlay_is_the_image_under_its_colours() -> None:
    image = read_pixels(picture(20, 150))
    train_ids = np.full((20, 150), IGNORED, np.uint8)
    train_ids[:10, :70], train_ids[10:, :70] = 3, 6
    found = overlay(image, train_ids, STREET, 0.25)
    assert found.dtype == np.uint8
    assert found.shape[1:] == (150, 3)
    assert found.shape[0] > 20
    above = found[:20]
    assert np.array_equal(above[:, 70:], image[:, 70:])  # ignored
    for rows, label in ((slice(10), 3), (slice(10, 20), 6)):
        mixed = 0.75 * image[rows, :70] + 0.25 * np.array(STREET.colours[label])
        assert np.abs(above[rows, :70] - mixed).max() <= 1


def read_pixels(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().copy()


def legend(width: int, *present: int) -> np.ndarray:
    """Of an overlay of that width, in which these classes are."""
    image = np.zeros((1, width, 3), np.uint8)
    train_ids = np.full((1, width), IGNORED, np.uint8)
    train_ids[0, : len(present)] = present
    return overlay(image, train_ids, STREET)[1:]


def colours_of(legend: np.ndarray) -> set[int]:
    """The classes whose colour fills a part of it that is as large as a swatch."""
    counts = {n: int((legend == colour).all(2).sum()) for n, colour in enumerate(STREET.colours)}
    return {n for n, count in counts.items() if count > 100}


@pytest.mark.parametrize("present", [(), (3,), (0, 3), (3, 0), (1, 2, 8), tuple(range(11))])
@pytest.mark.parametrize("width", [33, 120, 1000])
def test_the_legend_has_the_classes_that_are_there(present: tuple[int, ...], width: int) -> None:
    assert colours_of(legend(width, *present)) == set(present)


def test_legends_of_the_same_classes_are_the_same_and_others_are_not() -> None:
    assert np.array_equal(legend(300, 0, 3), legend(300, 3, 0))
    found = [legend(300, *present) for present in ((), (0,), (3,), (0, 3))]
    assert all(one.shape == (30, 300, 3) for one in found)
    assert len({one.tobytes() for one in found}) == 4


def test_the_legend_names_classes() -> None:
    """Names are black, beside the swatch; a longer one takes more room."""

    def right_end(label: int) -> int:
        black = (legend(300, label) == 0).all(2)
        return int(np.flatnonzero(black.any(0)).max())

    assert right_end(5) < right_end(2) < right_end(9)  # pole, vegetation, crossing person


def test_a_narrow_legend_has_more_lines() -> None:
    heights = [len(legend(width, *range(11))) for width in (2000, 400, 200, 100, 33)]
    assert heights == sorted(heights)
    assert heights[0] < heights[1] < heights[2] < heights[3]
    assert heights[0] == len(legend(33, 0))
    assert heights[-1] == len(legend(33, 0)) + 10 * (len(legend(33, 0, 1)) - len(legend(33, 0)))


@pytest.mark.parametrize("with_overlay", [True, False])
def test_a_prediction_is_two_files(with_overlay: bool, tmp_path: Path) -> None:
    pixels = read_pixels(picture(20, 30))
    Image.fromarray(pixels).save(tmp_path / "some.name.png")
    (tmp_path / "out").mkdir()
    train_ids = torch.arange(20)[:, None].expand(20, 30).to(torch.uint8) % 19

    def predictor(image: Tensor) -> Tensor:
        assert np.array_equal(read_pixels(image), pixels)
        return train_ids

    write_prediction(predictor, tmp_path / "some.name.png", tmp_path / "out", CITYSCAPES, with_overlay=with_overlay)
    wanted = ["some.name.png", "some.name_overlay.png"] if with_overlay else ["some.name.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == wanted
    found = read_ids(tmp_path / "out" / "some.name.png")
    assert np.array_equal(found, CITYSCAPES.file_ids(train_ids.numpy()))
    if with_overlay:
        shown = read_image(tmp_path / "out" / "some.name_overlay.png")
        assert np.array_equal(shown, overlay(pixels, train_ids.numpy(), CITYSCAPES))


# What the model is made of


def test_weights_of_branches_are_those_the_projection_reads_them_with(model: Any) -> None:
    found = branch_weights(model)
    weight = model.head.cell.projection.weight.detach().numpy().astype(np.float64)
    assert weight.shape[:2] == (256, 48)
    blocks = [np.abs(weight[:, n : n + 16]) for n in (0, 16, 32)]
    assert [one.name for one in found] == ["Y1", "Y2", "Y3"]
    assert [one.operator for one in found] == ["sepconv3x3 rate 1x3", "conv1x1", "avgpool grid 1x1"]
    assert [one.norm for one in found] == pytest.approx([block.sum() for block in blocks], rel=1e-9)
    assert [one.mean for one in found] == pytest.approx([block.mean() for block in blocks], rel=1e-9)
    assert [one.share for one in found] == pytest.approx([b.sum() / np.abs(weight).sum() for b in blocks], rel=1e-9)
    assert sum(one.share for one in found) == pytest.approx(1, rel=1e-12)


@torch.no_grad()
def test_the_branch_that_is_said_to_count_does() -> None:
    """The mean of the image alone is the same everywhere."""
    found: Any = DESCRIPTION.model().eval()
    image = PLAIN(picture(33, 65))[None]
    assert found(image)[0].flatten(1).std(1).max() > 1e-4
    found.head.cell.projection.weight[:, :32] = 0
    assert [one.share for one in branch_weights(found)] == [0, 0, 1]
    assert found(image)[0].flatten(1).std(1).max() < 1e-6
    found.head.cell.projection.weight.zero_()
    assert [one.share for one in branch_weights(found)] == [0, 0, 0]


def test_a_cell_without_a_projection_has_no_such_weights() -> None:
    found: Any = DESCRIPTION.model(projection=None)
    with pytest.raises(DpcError, match="the cell has no projection") as caught:
        branch_weights(found)
    assert caught.value.codes == ("DPC095",)


@pytest.mark.parametrize(("name", "magic"), [("A.PNG", b"\x89PNG\r\n"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_plot_is_of_the_kind_its_name_says(name: str, magic: bytes, model: Any, tmp_path: Path) -> None:
    plot_branch_weights(branch_weights(model), tmp_path / name, "a title")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    data = (tmp_path / name).read_bytes()
    assert data.startswith(magic)
    assert (b"<svg" in data) == name.endswith("svg")


def test_a_title_is_no_formula(model: Any, tmp_path: Path) -> None:
    """It is the name that a checkpoint has, which can be any."""
    plot_branch_weights(branch_weights(model), tmp_path / "a.svg", r"$\frac$")
    assert r"$\frac$" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(("name", "code"), [("a.jpg", "DPC063"), ("a", "DPC063"), ("none/a.png", "DPC060")])
def test_a_plot_that_cannot_be_written_leaves_nothing(name: str, code: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(DpcError) as caught:
        plot_branch_weights(branch_weights(model), tmp_path / name)
    assert caught.value.codes == (code,)
    assert list(tmp_path.iterdir()) == []


# The command line


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / FILE
    write_checkpoint(path, Checkpoint(DESCRIPTION, model.state_dict(), 7))
    return path


@pytest.fixture
def street(dpc: Dpc) -> Path:
    """A data set in the folder of the test."""
    assert dpc("data", "synthetic", "street", "--split", "val", "-n", 2, "--size", "33x65").code == 0
    return Path("street")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("options", [(), ("--scales", "0.5,1", "--flip")])
def test_dpc_eval_says_what_evaluate_does(
    dpc: Dpc, checkpoint: Path, street: Path, model: Any, options: tuple[str, ...]
) -> None:
    predictor = Predictor(model, PLAIN, (0.5, 1.0), True) if options else Predictor(model, PLAIN)
    expected = evaluate(predictor, open_data(street, "val"), STREET)
    ious = [None if math.isnan(iou) else iou for iou in expected.iou.tolist()]
    found = dpc("eval", checkpoint, "--data", street, *options, "--json")
    assert (found.code, found.err) == (0, "")
    assert json.loads(found.out) == {
        "miou": expected.miou,
        "pixel_accuracy": expected.pixel_accuracy,
        "iou": dict(zip(STREET.names, ious, strict=True)),
        "images": 2,
        "step": 7,
    }
    lines = dpc("eval", checkpoint, "--data", street, *options).out.splitlines()
    rows = [tuple(re.split(r"  +", line)) for line in lines[2:-2]]
    shown = ["not there" if iou is None else f"{100 * iou:.2f}" for iou in [*ious, expected.miou]]
    assert rows == list(zip([*STREET.names, "mean"], shown, strict=True))
    assert lines[0].split() == ["class", "IoU", "%"]
    assert lines[-1] == f"{100 * expected.pixel_accuracy:.2f} % of the pixels right, 2 images, 7 steps"


def test_dpc_eval_of_a_class_that_is_not_there(dpc: Dpc, street: Path, model: Any) -> None:
    weights = dict(model.state_dict())
    weights["head.logits.bias"] = weights["head.logits.bias"].clone()
    weights["head.logits.bias"][5] = -1e6
    write_checkpoint(Path(FILE), Checkpoint(DESCRIPTION, weights))
    for path in (street / "labels" / "val").iterdir():
        ids = read_ids(path)
        Image.fromarray(np.where(ids == 5, IGNORED, ids).astype(np.uint8)).save(path)
    found = json.loads(dpc("eval", ".", "--data", street, "--json").out)
    assert found["iou"]["pole"] is None
    assert found["miou"] == pytest.approx(np.mean([iou for iou in found["iou"].values() if iou is not None]))
    (line,) = (one for one in dpc("eval", ".", "--data", street).out.splitlines() if one.startswith("pole"))
    assert line.split(maxsplit=1)[1] == "not there"


def test_a_folder_of_training_is_a_checkpoint(dpc: Dpc, checkpoint: Path) -> None:
    one, other = (dpc("analyze", path) for path in (checkpoint, checkpoint.parent))
    assert one.code == 0
    assert one.out == other.out


def test_dpc_eval_on_other_classes_is_refused(dpc: Dpc, checkpoint: Path, street: Path) -> None:
    (street / "classes.txt").write_text("".join(f"{name}\n" for name in STREET.names[::-1]))
    found = dpc("eval", checkpoint, "--data", street)
    assert (found.code, found.out) == (1, "")
    assert "[DPC092]" in found.err


@pytest.mark.parametrize(
    ("scales", "code", "message"),
    [("x", 2, "'x' is not a list of numbers"), ("1,,2", 2, "is not a list of numbers"), ("1,0", 1, "[DPC062]")],
)
def test_scales_that_cannot_be(dpc: Dpc, checkpoint: Path, street: Path, scales: str, code: int, message: str) -> None:
    found = dpc("eval", checkpoint, "--data", street, "--scales", scales)
    assert (found.code, found.out) == (code, "")
    assert message in found.err


@pytest.mark.parametrize(
    "rest", [("eval", "none", "--data", "."), ("predict", "none", "a.png", "-o", "out"), ("analyze", "none")]
)
def test_a_checkpoint_that_is_not_there_is_told(dpc: Dpc, rest: tuple[str, ...]) -> None:
    found = dpc(*rest)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("none: error: the checkpoint cannot be used: ")
    assert "there is no such file [DPC095]" in found.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("rest", [("predict", "a.png", "-o", "out"), ("analyze",)])
def test_a_checkpoint_of_a_classifier_is_refused(dpc: Dpc, rest: tuple[str, ...]) -> None:
    description = ModelDescription.of(None, "", "test_resnet", STREET, (33, 65), preprocessing=PLAIN)
    write_checkpoint(Path(FILE), Checkpoint(description, description.model().state_dict()))
    found = dpc(rest[0], FILE, *rest[1:])
    assert (found.code, found.out) == (1, "")
    assert "it is of a classifier, which has no cell [DPC095]" in found.err
    assert [path.name for path in Path().iterdir()] == [FILE]


@pytest.mark.parametrize("options", [(), ("--no-overlay",), ("--scales", "0.5,1", "--flip")])
def test_dpc_predict_files(dpc: Dpc, checkpoint: Path, street: Path, model: Any, options: tuple[str, ...]) -> None:
    images = sorted((street / "images" / "val").iterdir())
    before = tree(Path())
    found = dpc("predict", checkpoint, *images, "-o", "deep/out", *options)
    after = tree(Path())
    ends = (".png",) if "--no-overlay" in options else (".png", "_overlay.png")
    assert (found.code, found.out) == (0, f"{2 * len(ends)} files in deep/out\n")
    assert {path: data for path, data in after.items() if path in before} == before
    assert after.keys() - before.keys() == {f"deep/out/{image.stem}{end}" for image in images for end in ends}
    predictor = Predictor(model, PLAIN, (0.5, 1.0), True) if "--flip" in options else Predictor(model, PLAIN)
    for image in images:
        pixels = read_image(image)
        train_ids = predictor(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).numpy()
        assert np.array_equal(read_ids(Path("deep/out") / f"{image.stem}.png"), train_ids)
        if len(ends) == 2:
            shown = read_image(Path("deep/out") / f"{image.stem}_overlay.png")
            assert np.array_equal(shown, overlay(pixels, train_ids, STREET))


def test_dpc_predict_a_folder(dpc: Dpc, checkpoint: Path) -> None:
    """All its PNGs and JPEGs of any size, and nothing else."""
    Path("in/below").mkdir(parents=True)
    for name, size in (
        ("one.png", (40, 71)),
        ("two.JPG", (17, 9)),
        ("three.jpeg", (33, 65)),
        ("below/four.png", (9, 9)),
    ):
        Image.fromarray(read_pixels(picture(*size))).save(Path("in") / name)
    Path("in/notes.txt").write_text("no image")
    before = tree(Path("in"))
    found = dpc("predict", checkpoint, "in", "-o", "out", "--no-overlay")
    assert (found.code, found.out) == (0, "3 files in out\n")
    sizes = {path.name: read_ids(path).shape for path in Path("out").iterdir()}
    assert sizes == {"one.png": (40, 71), "two.png": (17, 9), "three.png": (33, 65)}
    assert tree(Path("in")) == before


def saved(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_pixels(picture(9, 9))).save(name)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (("a/x.png", "b/x.png"), ("a/x.png", "b/x.png", "-o", "out"), "two results would be x.png"),
        (("a/x.png", "a/x_overlay.png"), ("a", "-o", "out"), "two results would be x_overlay.png"),
        (("a/x.png",), ("a/x.png", "-o", "a"), "a/x.png is one of the images"),
        (("a/x.png",), ("a", "-o", "b/../a"), "b/../a/x.png is one of the images"),
        (("a/x.png",), ("a/x.png", "-o", "link"), "link/x.png is one of the images"),
        (("a/x.jpg", "b/x_overlay.png"), ("a/x.jpg", "b/x_overlay.png", "-o", "b"), "b/x_overlay.png is one of"),
    ],
)
def test_no_result_is_written_over_an_image_or_another_result(
    dpc: Dpc, checkpoint: Path, images: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    saved(*images, "b/other.png")
    Path("link").symlink_to("a")
    before = tree(Path())
    found = dpc("predict", checkpoint, *arguments)
    assert (found.code, found.out) == (1, "")
    assert message in found.err
    assert "[DPC060]" in found.err
    assert tree(Path()) == before
    assert not Path("out").exists()


def test_a_jpeg_may_lie_beside_its_results(dpc: Dpc, checkpoint: Path) -> None:
    saved("a/x.jpg")
    before = tree(Path())
    assert dpc("predict", checkpoint, "a", "-o", "a").code == 0
    assert tree(Path()).keys() - before.keys() == {"a/x.png", "a/x_overlay.png"}
    assert tree(Path())["a/x.jpg"] == before["a/x.jpg"]


def test_what_is_no_image_is_told(dpc: Dpc, checkpoint: Path) -> None:
    saved("a/x.png")
    Path("a/y.png").write_text("no image")
    Path("empty").mkdir()
    before = tree(Path())
    for given_, message in (
        (("a/y.png",), "a/y.png: error: the image cannot be read: it is neither a PNG nor a JPEG [DPC094]"),
        (("a/z.png",), "a/z.png: error: the image cannot be read: there is no such file [DPC094]"),
        (("empty",), "empty: error: there is no PNG or JPEG in the folder [DPC094]"),
        (("a",), "a/y.png: error: the image cannot be read"),
    ):
        found = dpc("predict", checkpoint, *given_, "-o", "out")
        assert (found.code, found.out) == (1, "")
        assert found.err.startswith(message)
    after = tree(Path())
    assert {path: data for path, data in after.items() if not path.startswith("out/")} == before
    assert after.keys() - before.keys() == {"out/x.png", "out/x_overlay.png"}  # those of an image that is one


def test_dpc_predict_needs_images_and_a_folder(dpc: Dpc, checkpoint: Path) -> None:
    assert dpc("predict", checkpoint, "-o", "out").code == 2
    assert dpc("predict", checkpoint, "a.png").code == 2
    assert list(Path().iterdir()) == []


def test_dpc_analyze(dpc: Dpc, checkpoint: Path, model: Any) -> None:
    expected = branch_weights(model)
    found = dpc("analyze", checkpoint, "--json")
    assert (found.code, found.err) == (0, "")
    assert json.loads(found.out) == {"step": 7, "branches": [vars(one) for one in expected]}
    lines = dpc("analyze", checkpoint).out.splitlines()
    assert lines[0].split() == ["branch", "operator", "L1", "norm", "mean", "|w|", "share"]
    for line, one in zip(lines[2:], expected, strict=True):
        assert line.split() == [
            one.name,
            *one.operator.split(),
            f"{one.norm:,.1f}",
            f"{one.mean:.5f}",
            f"{100 * one.share:.1f}",
            "%",
        ]
    assert list(Path().iterdir()) == []


def test_dpc_analyze_with_a_plot(dpc: Dpc, checkpoint: Path) -> None:
    plain = dpc("analyze", checkpoint)
    assert dpc("analyze", checkpoint, "-o", "plot.svg").out == plain.out
    text = Path("plot.svg").read_text()
    assert "tiny after 7 steps" in text
    found = dpc("analyze", checkpoint, "-o", "plot.txt")
    assert (found.code, found.out) == (1, "")
    assert "a plot cannot be written as `plot.txt` [DPC063]" in found.err
    assert [path.name for path in Path().iterdir()] == ["plot.svg"]
