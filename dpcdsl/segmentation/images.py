"""Images and label maps as files: read with every damage told, written whole or not at all."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpcdsl.errors import DpcError
from dpcdsl.files import write_whole

__all__ = ["MOST_PIXELS", "read_ids", "read_image", "write_png"]

_Bytes = npt.NDArray[np.uint8]

#: Larger images are refused before they are decoded: a file of kilobytes can hold many more.
MOST_PIXELS = 2**27

_FORMATS = ("PNG", "JPEG")


def read_image(path: Path) -> _Bytes:
    """The pixels of a PNG or JPEG, uint8 [H, W, 3]. Raises :class:`DpcError` (DPC094)."""
    with _opened(path) as image:
        if image.mode.startswith(("I", "F")):
            raise _unreadable(path, f"its pixels are of mode {image.mode}", "save it with 8 bits a channel")
        return np.asarray(image.convert("RGB"))


def read_ids(path: Path) -> _Bytes:
    """The ids of a label map, uint8 [H, W].

    A label map is a PNG of one 8-bit channel or a palette, or the Semantic Boundaries Dataset's ``.mat``. Raises
    :class:`DpcError`: DPC094, and DPC092 for an image that is no label map.
    """
    if path.suffix == ".mat":
        return _read_mat(path)
    with _opened(path) as image:
        kind = f"{image.format} of mode {image.mode}"
        if kind == "PNG of mode L" and (bits := _depth(path)) != 8:
            kind += f" of {bits} bits"
        if kind not in ("PNG of mode L", "PNG of mode P"):
            raise DpcError.of(
                "DPC092",
                f"it is a {kind}, and a label map is a PNG of one 8-bit channel, or of indices into a palette",
                place=str(path),
                hint="ids and not colours; a JPEG would blur them",
            )
        return np.asarray(image)


def write_png(path: Path, pixels: _Bytes, palette: Sequence[tuple[int, int, int]] = ()) -> None:
    """Pixels [H, W, 3], or ids [H, W] as they are, or with a palette, as a PNG. Raises :class:`DpcError` (DPC060)."""
    image = Image.fromarray(pixels)
    if palette:  # a whole one: with fewer colours the file has fewer bits a pixel, and larger ids do not fit
        image.putpalette(bytes(value for colour in palette for value in colour).ljust(3 * 256, b"\0"))
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_whole(path, data.getvalue())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file, of which whatever fails is told as DPC094."""
    try:
        _need_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is told below, and of what is left out of it
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    reason = f"it has {image.width}x{image.height} pixels, and at most {MOST_PIXELS:,} are read"
                    raise _unreadable(path, reason, "resize it")
                image.load()
                yield image
    except DpcError:
        raise
    except Exception as error:  # Pillow has many for a damaged file
        reason = " ".join(str(error).split())[:200]
        if "cannot identify" in reason:
            reason = "it is neither a PNG nor a JPEG"
        large = isinstance(error, Image.DecompressionBombError)
        raise _unreadable(path, reason, "resize it" if large else "fetch or write the file again") from None


def _need_file(path: Path) -> None:
    """Before a file is opened: to open a pipe may take for ever."""
    if not path.is_file():
        raise FileNotFoundError("it is not a regular file" if path.exists() else "there is no such file")


def _depth(path: Path) -> int:
    """The bits of a channel of a PNG. Pillow stretches those of grey with fewer than 8 to 0 to 255."""
    with path.open("rb") as file:
        return file.read(25)[-1]


def _read_mat(path: Path) -> _Bytes:
    try:
        from scipy.io import loadmat

        _need_file(path)
        ids = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except ModuleNotFoundError:
        raise _unreadable(path, "to read it needs scipy", "pip install 'dpcdsl[segmentation]'") from None
    except Exception as error:  # scipy has many for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _unreadable(path, reason, "a .mat of the Semantic Boundaries Dataset, from its folder cls") from None
    if ids.dtype != np.uint8 or ids.ndim != 2:
        raise _unreadable(path, f"its GTcls.Segmentation is {ids.dtype} of {ids.ndim} axes", "uint8 of 2 axes")
    return ids


def _unreadable(path: Path, reason: str, hint: str) -> DpcError:
    return DpcError.of("DPC094", f"the image cannot be read: {reason}", place=str(path), hint=hint)
