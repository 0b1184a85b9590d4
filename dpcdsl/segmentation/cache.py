"""Features that a frozen backbone has made of a data set, kept on a disk (section 3.3 of the paper).

A folder: ``manifest.json`` says of what, with what, and how; ``00000.safetensors`` and those after it hold the features
and the labels of the same number of examples each. The manifest has a checksum of each shard's checksums, a shard has
one of each example, and an example is checked when it is first read: what is not what was written is never served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpcdsl.cell import Cell
from dpcdsl.errors import DpcError
from dpcdsl.files import read_text, write_whole
from dpcdsl.segmentation.description import ModelDescription
from dpcdsl.segmentation.transforms import SCALES
from dpcdsl.values import Value

__all__ = [
    "CacheFacts",
    "FeatureCache",
    "Kept",
    "Manifest",
    "Views",
    "digest_of_text",
    "read_manifest",
    "unusable",
    "write_manifest",
]

MANIFEST = "manifest.json"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_KEY = "dpcdsl"
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_LARGEST = 2**28  # characters of a manifest: four million shards


class Views(Value):
    """Random crops of each image, drawn as in training, but once: ``count`` of them, from ``seed``.

    scales, mirror: of :class:`Augmentation`; the crop is the model's.
    """

    count: int = Field(1, ge=1, le=10_000)
    scales: tuple[Annotated[float, Field(gt=0, le=16)], ...] = SCALES
    mirror: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class CacheFacts(Value):
    """What a cache holds: two of the same facts hold the same features.

    model: backbone, classes, preprocessing and crop, as those of a classifier. weights: a digest of the backbone's.
    data: one of what the split consists of, by name and size. views: None for whole images. dtype: of the features.
    shard: examples in one.
    """

    version: Literal[1] = 1
    model: ModelDescription
    weights: _Digest
    split: str = Field(max_length=200)
    images: int = Field(ge=1, lt=2**40)
    data: _Digest
    views: Views | None
    dtype: Literal["bf16", "fp32"]
    channels: int = Field(ge=1, lt=2**20)
    shard: int = Field(ge=1, lt=2**40)

    @property
    def examples(self) -> int:
        return self.images * (1 if self.views is None else self.views.count)

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard)

    def examples_of(self, shard: int) -> range:
        return range(shard * self.shard, min(self.examples, (shard + 1) * self.shard))

    @cached_property
    def digest(self) -> str:
        return _digest(self.model_dump_json().encode())


class Manifest(Value):
    """facts, and, when the cache is whole, a digest of each shard's digests."""

    facts: CacheFacts
    shards: tuple[_Digest, ...] | None = None

    @model_validator(mode="after")
    def _has_all(self) -> Manifest:
        if self.shards is not None and len(self.shards) != self.facts.shards:
            raise ValueError(f"there are {len(self.shards)} digests for {self.facts.shards} shards")
        return self


class Kept(NamedTuple):
    """features: [C, h, w], channels innermost in memory. labels: uint8 [H, W], train ids, of the image as it was read:
    cropped, or padded with 255.
    """

    features: Tensor
    labels: Tensor


class FeatureCache:
    """A whole cache, by example. It is mapped into memory: processes that read the same one share its pages.

    Raises :class:`DpcError` (DPC097) for a folder that holds none, or one that is not whole or not as it was written;
    of an example, when it is first read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest.shards is None:
            raise unusable(self.folder, "it is not whole", "go on with `dpc cache build`, with what it was begun with")
        self.facts = manifest.facts
        self._shards = [
            Shard(shard_path(self.folder, number), self.facts, number, expected)
            for number, expected in enumerate(manifest.shards)
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureCache, (self.folder,)

    def __len__(self) -> int:
        return self.facts.examples

    def __getitem__(self, number: int) -> Kept:
        """As it is mapped: what is written into it would be served again, to this process alone."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard, place = divmod(number, self.facts.shard)
        return self._shards[shard][place]

    def __iter__(self) -> Iterator[Kept]:
        return (self[number] for number in range(len(self)))

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features [N, C, h, w], channels innermost, as they are kept, and labels [N, H, W].

        Raises :class:`DpcError` (DPC097) for whole images of several sizes.
        """
        kept = [self[number] for number in numbers]
        if len({one.labels.shape for one in kept}) > 1:
            raise unusable(
                self.folder, "it has whole images of several sizes, which make no batch", "keep crops: --views 1"
            )
        features = torch.stack([one.features.permute(1, 2, 0) for one in kept])
        return features.permute(0, 3, 1, 2), torch.stack([one.labels for one in kept])

    def describe(self, cell: Cell, name: str = "", **others: Any) -> ModelDescription:
        """The model of a cell on the backbone of these features. others: fields of the description."""
        return self.facts.model.with_cell(cell, name, **others)


class Shard:
    """Examples of a cache in one file. expected: the digest of their digests, where it is known."""

    def __init__(self, path: Path, facts: CacheFacts, number: int, expected: str | None = None) -> None:
        self.path, self._channels, self._dtype = path, facts.channels, DTYPES[facts.dtype]
        self._numbers = facts.examples_of(number)
        try:
            opened: Any = safe_open
            self._file = opened(path, "pt")
            said = json.loads((self._file.metadata() or {})[_KEY])
            of, digests = said["of"], said["digests"]
        except FileNotFoundError:
            raise unusable(path, "it is missing", _AGAIN) from None
        except Exception:  # whatever a file that was not written here can bring
            raise unusable(path, "it is damaged", _AGAIN) from None
        if of != [facts.digest, number]:
            raise unusable(path, "it is of another cache", _AGAIN)
        self.digest = _digest(json.dumps(digests).encode())
        if not isinstance(digests, list) or len(digests) != len(self._numbers) or expected not in (None, self.digest):
            raise unusable(path, "it is damaged", _AGAIN)
        self._digests = digests
        self._known = bytearray(len(digests))

    def __getitem__(self, place: int) -> Kept:
        number = self._numbers[place]
        try:
            features, labels = (self._file.get_tensor(name) for name in _names(number))
        except SafetensorError:
            raise unusable(self.path, f"example {number} is damaged", _AGAIN) from None
        if not self._known[place]:
            shaped = features.dim() == 3 and features.shape[2] == self._channels and labels.dim() == 2
            typed = features.dtype == self._dtype and labels.dtype == torch.uint8
            if not shaped or not typed or digest_of(features, labels) != self._digests[place]:
                raise unusable(self.path, f"example {number} is damaged", _AGAIN)
            self._known[place] = 1
        return Kept(features.permute(2, 0, 1), labels)

    def problems(self) -> Iterator[DpcError]:
        """What is wrong with its examples."""
        for place in range(len(self._digests)):
            try:
                self[place]
            except DpcError as error:
                yield error


def write_shard(path: Path, facts: CacheFacts, number: int, examples: Sequence[tuple[Tensor, Tensor]]) -> str:
    """examples: features [h, w, C] and labels [H, W]. Returns the digest of their digests.

    Raises :class:`DpcError` (DPC060) where it cannot be written.
    """
    digests = [digest_of(*example) for example in examples]
    tensors = {
        name: tensor
        for example, pair in zip(facts.examples_of(number), examples, strict=True)
        for name, tensor in zip(_names(example), pair, strict=True)
    }
    write_whole(path, save(tensors, {_KEY: json.dumps({"of": [facts.digest, number], "digests": digests})}))
    return _digest(json.dumps(digests).encode())


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """Raises :class:`DpcError` (DPC097) if there is none, or it is not as it was written."""
    path = folder / MANIFEST
    if not path.is_file():
        raise unusable(folder, f"there is no {MANIFEST}", "name a folder that `dpc cache build` has written")
    try:
        said = json.loads(read_text(path, _LARGEST).text)
        manifest = Manifest.model_validate(said["cache"])
        known = said["checksum"]
        _ = manifest.facts.model.labels
    except Exception:  # whatever a file that was not written here can bring
        raise unusable(path, "it is damaged", "build the cache again, in another folder") from None
    if known != _digest(manifest.model_dump_json().encode()):
        raise unusable(path, "it is not as it was written", "build the cache again, in another folder")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    said = {
        "cache": manifest.model_dump(mode="json"),
        "checksum": _digest(manifest.model_dump_json().encode()),
    }
    write_whole(folder / MANIFEST, json.dumps(said, indent=1) + "\n")


def digest_of(*tensors: Tensor) -> str:
    """Of their types, shapes and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        values: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        found.update(values)
    return found.hexdigest()


def digest_of_text(text: str) -> str:
    return _digest(text.encode())


def unusable(place: Path, reason: str, hint: str) -> DpcError:
    return DpcError.of("DPC097", reason, place=str(place)[:200], hint=hint)


_AGAIN = "`dpc cache build`, with what it was built with, makes it again"


def _names(number: int) -> tuple[str, str]:
    return f"{number:08}.features", f"{number:08}.labels"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
