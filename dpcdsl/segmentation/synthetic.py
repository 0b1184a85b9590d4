"""Street scenes that are drawn by chance, of which some classes can be told only by what is far away.

At one end of the street stands a signal, red or green; cars and people are at the other, and whether a car waits or
moves, and a person waits or crosses, is what the signal says. They look alike; every other class can be told by its
looks. At the default size the two ends are further apart than half the receptive field of a small backbone (timm's
``test_resnet`` sees 167 pixels), so a model needs context beyond it. Where the signal is ``shuffled`` it says nothing,
and no context helps: the control.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole
from dpcdsl.layers import Size
from dpcdsl.segmentation.datasets import Example
from dpcdsl.segmentation.images import write_png
from dpcdsl.segmentation.labels import LabelSet

__all__ = ["STREET", "SyntheticSet", "write_synthetic"]

#: The classes; the last four need what is far away.
STREET = LabelSet(
    "synthetic street",
    (
        *("sky", "building", "vegetation", "road", "sidewalk", "pole", "signal"),
        *("moving car", "waiting car", "crossing person", "waiting person"),
    ),
    (
        *((70, 130, 180), (70, 70, 70), (107, 142, 35), (128, 64, 128), (244, 35, 232), (153, 153, 153)),
        *((250, 170, 30), (0, 0, 142), (0, 160, 230), (220, 20, 60), (255, 150, 0)),
    ),
    strict=True,
)
_SKY, _BUILDING, _VEGETATION, _ROAD, _SIDEWALK, _POLE, _SIGNAL, _MOVING, _WAITING, _CROSSING, _STANDING = range(11)

#: Of an image, in pixels; a scene of another size is drawn larger or smaller.
_SIZE = (193, 385)
_SPLITS = ("train", "val", "test")

_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class SyntheticSet:
    """``count`` scenes, each a function of the seed, the split and its index alone.

    size: (height, width) in pixels, at least 33 by 65. shuffled: the signal is red or green whatever the labels are.
    Raises :class:`DpcError` (DPC062) for values that cannot be.
    """

    count: int
    split: str = "train"
    size: Size = _SIZE
    seed: int = 0
    shuffled: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0:
            raise DpcError.of(
                "DPC062", f"{self.count} scenes of seed {self.seed}", hint="one or more, of a seed from 0"
            )
        if self.split not in _SPLITS:
            raise DpcError.of("DPC062", f"there is no split `{self.split}`", hint=", ".join(_SPLITS))
        if self.size[0] < 33 or self.size[1] < 65 or self.size[0] * self.size[1] > 2**24:
            raise DpcError.of("DPC062", f"no scene has {self.size[0]}x{self.size[1]} pixels", hint="33x65 or more")

    @property
    def labels(self) -> LabelSet:
        return STREET

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), index])
        image, labels = _Scene(rng, self.size).drawn(self.shuffled)
        pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        return Example(f"{self.split}_{index:05}", pixels, torch.from_numpy(labels))


def write_synthetic(root: Path, data: SyntheticSet) -> Iterator[str]:
    """Writes scenes as a plain folder of images and labels; gives the name of each as it is there."""
    for part in ("images", "labels"):
        (root / part / data.split).mkdir(parents=True, exist_ok=True)
    lines = (f"{n} #{r:02x}{g:02x}{b:02x}\n" for n, (r, g, b) in zip(STREET.names, STREET.colours, strict=True))
    write_whole(root / "classes.txt", "".join(lines))
    for example in (data[index] for index in range(len(data))):
        write_png(root / "images" / data.split / f"{example.name}.png", example.image.permute(1, 2, 0).numpy())
        write_png(root / "labels" / data.split / f"{example.name}.png", example.labels.numpy(), STREET.colours)
        yield example.name


class _Scene:
    """An image and its labels, drawn together, from the back to the front, in units of the default size."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.image, self.labels = Image.new("RGB", size[::-1]), Image.new("L", size[::-1])
        self.pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)
        self.mirrored = bool(rng.integers(2))

    def drawn(self, shuffled: bool) -> tuple[np.ndarray, np.ndarray]:
        go, by_chance = (bool(one) for one in self.rng.integers(2, size=2))
        shown = by_chance if shuffled else go  # all else of the scene is the same
        self.background()
        self.signal(shown)
        self.people(_CROSSING if go is False else _STANDING)
        self.cars(_MOVING if go else _WAITING)
        noise = self.rng.normal(0, 6, (*self.size, 3))
        image = np.clip(np.array(self.image) + noise, 0, 255).astype(np.uint8)
        labels = np.asarray(self.labels)
        if self.mirrored:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return image.copy(), labels.copy()

    def draw(self, shape: str, box: tuple[float, float, float, float], colour: _Colour, label: int) -> None:
        """box: left, top, right, bottom. A shape is that of ImageDraw."""
        y, x = self.size[0] / _SIZE[0], self.size[1] / _SIZE[1]
        left, top, right, bottom = (round(v * s) for v, s in zip(box, (x, y, x, y), strict=True))
        corners = [left, top, max(left, right - 1), max(top, bottom - 1)]
        getattr(self.pens[0], shape)(corners, fill=colour)
        getattr(self.pens[1], shape)(corners, fill=label)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def colour(self, base: _Colour, spread: int) -> _Colour:
        r, g, b = (int(np.clip(v + self.rng.integers(-spread, spread + 1), 0, 255)) for v in base)
        return r, g, b

    def background(self) -> None:
        height, width = _SIZE
        self.kerb, self.road = self.between(98, 108), self.between(120, 130)
        self.draw("rectangle", (0, 0, width, height), self.colour((150, 190, 225), 20), _SKY)
        left = -self.between(0, 30)
        while left < width:
            right, top = left + self.between(30, 70), self.between(20, 75)
            if self.rng.random() < 0.85:
                self.building(left, top, right)
            left = right + self.between(0, 12)
        for _ in range(self.rng.integers(1, 5)):
            x, r = self.between(0, width), self.between(10, 20)
            y = self.between(75, 95) - r / 2
            self.draw("rectangle", (x - 2, y, x + 2, self.kerb), (90, 65, 40), _VEGETATION)
            self.draw("ellipse", (x - r, y - r, x + r, y + r), self.colour((60, 120, 45), 20), _VEGETATION)
        self.draw("rectangle", (0, self.kerb, width, self.road), self.colour((190, 180, 170), 12), _SIDEWALK)
        self.draw("rectangle", (0, self.road, width, height), self.colour((85, 85, 90), 10), _ROAD)
        for x in np.arange(self.between(0, 40), width, 40):
            self.draw("rectangle", (x, 158, x + 18, 161), (220, 220, 215), _ROAD)
        for _ in range(self.rng.integers(1, 4)):
            x = self.between(110, width)
            self.draw("rectangle", (x, self.between(30, 50), x + 9, self.kerb + 6), self.colour((60, 60, 65), 8), _POLE)

    def building(self, left: float, top: float, right: float) -> None:
        wall = self.colour((140, 115, 100), 35)
        self.draw("rectangle", (left, top, right, self.kerb), wall, _BUILDING)
        pane = self.colour((60, 70, 90), 20)
        for y in np.arange(top + 6, self.kerb - 12, 14):
            for x in np.arange(left + 5, right - 7, 12):
                self.draw("rectangle", (x, y, x + 6, y + 8), pane, _BUILDING)

    def signal(self, go: bool) -> None:
        """A board above the street's left end, all of it in the signal's colour but for a dark frame."""
        x, y = self.between(4, 22), self.between(60, 72)
        self.draw("rectangle", (x + 22, y, x + 27, 170), (50, 50, 55), _SIGNAL)
        self.draw("rectangle", (x, y, x + 50, y + 76), (25, 25, 28), _SIGNAL)
        lit = self.colour((40, 205, 90) if go else (225, 45, 40), 15)
        self.draw("rectangle", (x + 4, y + 4, x + 46, y + 72), lit, _SIGNAL)

    def people(self, label: int) -> None:
        for _ in range(self.rng.integers(2, 5)):
            x, foot = self.between(210, 370), self.between(self.kerb + 4, self.road + 16)
            coat, skin = self.colour((150, 70, 60), 60), self.colour((215, 165, 130), 20)
            self.draw("rectangle", (x - 9, foot - 38, x + 9, foot - 16), coat, label)
            self.draw("rectangle", (x - 7, foot - 16, x + 7, foot), (45, 45, 70), label)
            self.draw("ellipse", (x - 6, foot - 50, x + 6, foot - 38), skin, label)

    def cars(self, label: int) -> None:
        x = self.between(195, 235)
        while x < 345:
            length, foot = self.between(48, 66), self.between(160, 188)
            paint = self.colour((120, 120, 150), 90)
            self.draw("rectangle", (x, foot - 20, x + length, foot - 5), paint, label)
            self.draw("rectangle", (x + 10, foot - 32, x + length - 12, foot - 20), paint, label)
            self.draw("rectangle", (x + 14, foot - 29, x + length - 16, foot - 21), (170, 200, 215), label)
            for wheel in (x + 8, x + length - 18):
                self.draw("ellipse", (wheel, foot - 11, wheel + 11, foot), (20, 20, 20), label)
            x += length + self.between(6, 30)
