"""Decoded image sets in files that all processes of a machine map: a large set takes its memory once.

The first process that asks decodes a set, straight into the file; the others wait for it. A later run finds it there.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import __version__ as pillow
from pydantic import BaseModel, Field, ValidationError

from pipeline.common.errors import reason
from pipeline.common.progress import format_bytes, say
from pipeline.dataset.plan import SHA256
from pipeline.storage.cache import cache_folder
from trainer.data.image_set import ImageSet

FOLDER = "TRAFLOW_IMAGES"
MIN_BYTES = 2**26  # of a source's files: a smaller set is decoded in a moment, and every process may hold it
RULES = 1  # of decoding: a file that was decoded by others is not taken


class Allocate(Protocol):
    """Makes an array of this shape and type, to be filled."""

    def __call__(self, shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Source:
    """An image set that is found and not yet decoded.

    `version` is another one whenever its files are; they have `num_bytes`. `decode` fills the array that it allocates.
    """

    version: str
    num_bytes: int
    decode: Callable[[Allocate], ImageSet]


class _Kept(BaseModel):
    """What is kept beside pixels and labels."""

    name: str
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: Annotated[str, Field(pattern=SHA256)]


class _NoRoom(Exception):
    """The file for the images cannot be made."""


def in_memory(shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> NDArray[Any]:
    """An array in the memory of this process."""
    return np.empty(shape, dtype)


def load(source: Source) -> ImageSet:
    """The set of `source`, mapped from a file if it is large.

    Raises:
        BadInput: see `source.decode`.
    """
    if source.num_bytes < MIN_BYTES:
        return source.decode(in_memory)
    folder = cache_folder("images", FOLDER) / _name(source)
    try:
        with _lock(folder):
            return _read(folder) or _make(source, folder)
    except (OSError, _NoRoom) as error:
        why = reason(error) if isinstance(error, OSError) else error
        say(f"note: {folder}: cannot be written ({why}), so every process holds the images: point {FOLDER} elsewhere")
        return source.decode(in_memory)


def _name(source: Source) -> str:
    return hashlib.sha256(f"{RULES} {pillow} {source.version}".encode()).hexdigest()[:16]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


def _read(folder: Path) -> ImageSet | None:
    """The set in `folder`; None where it was never finished."""
    try:
        kept = _Kept.model_validate_json((folder / "set.json").read_bytes())
        images, labels = (np.load(folder / name, mmap_mode="r") for name in ("images.npy", "labels.npy"))
    except (FileNotFoundError, ValidationError, ValueError):
        return None
    return ImageSet(kept.name, images, labels, kept.class_names, kept.notes, kept.sha256)


def _make(source: Source, folder: Path) -> ImageSet:
    """Decode `source` into `folder`; set.json is written last, so that a crash leaves nothing that would be read."""

    def allocate(shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> NDArray[Any]:
        path = folder / "images.npy"
        try:
            path.unlink(missing_ok=True)
            images: NDArray[Any] = open_memmap(path, "w+", dtype, shape)
            _reserve(path)
        except OSError as error:  # not one of the source's
            path.unlink(missing_ok=True)
            raise _NoRoom(reason(error)) from error
        return images

    (folder / "set.json").unlink(missing_ok=True)
    found = source.decode(allocate)
    np.save(folder / "labels.npy", found.labels)
    kept = _Kept(name=found.name, class_names=found.class_names, notes=found.notes, sha256=found.sha256)
    (folder / "set.json").write_text(kept.model_dump_json())
    say(f"{found.name}: decoded {format_bytes(found.images.nbytes)} of images once into {folder}")
    return replace(found, known_sha256=kept.sha256)


def _reserve(path: Path) -> None:
    """Raises OSError if the disk has no room for what was written sparsely: a full disk would end the process later."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
