"""Caches that lie elsewhere: each machine makes a copy of one for itself, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from dpcdsl.errors import DpcError
from dpcdsl.segmentation.cache import MANIFEST, FeatureCache, digest_of_text, unusable
from dpcdsl_torch import cache

__all__ = ["at_hand"]


def at_hand(where: str | Path) -> Path:
    """The folder of a cache on this machine. where: it, or a URL of any store that fsspec knows, such as
    ``s3://bucket/features/train``.

    A copy lies in ``$DPCDSL_CACHE/features``, else ``~/.cache/dpcdsl/features``, by what its manifest says; it is
    whole, or it is not there. Raises :class:`DpcError` (DPC097) if it cannot be had, or is not what the manifest says.
    """
    if "://" not in str(where):
        return Path(where)
    store, root = _opened(str(where))
    try:
        manifest = store.cat_file(f"{root}/{MANIFEST}")
    except FileNotFoundError:
        raise unusable(Path(str(where)), f"there is no {MANIFEST}", "name what `dpc cache build` has written") from None
    except Exception as error:  # whatever a store can bring
        raise _gone(str(where), error) from None
    folder = cache.folder().with_name("features") / digest_of_text(manifest.decode(errors="replace"))[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            part = folder.with_suffix(".part")  # of a copy that was cut off
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                for path in store.ls(root, detail=False):
                    store.get_file(path, str(part / path.rsplit("/", 1)[-1]))
            except Exception as error:
                raise _gone(str(where), error) from None
            FeatureCache(part)
            part.rename(folder)
    return folder


def _opened(where: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise DpcError.of("DPC097", "a store needs fsspec", place=where, hint="pip install 'dpcdsl[cluster]'") from None
    try:
        store, root = url_to_fs(where)
    except (ValueError, ImportError, OSError) as error:
        raise _gone(where, error) from None
    return store, str(root).rstrip("/")


def _gone(where: str, error: Exception) -> DpcError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DpcError.of("DPC097", f"the store cannot be read: {said}", place=where[:200], hint="see that it can be")
