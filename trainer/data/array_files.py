"""Image sets in files of arrays: .npy, .npz, and the IDX of MNIST."""

import gzip
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import BadInput, one_line
from trainer.data.image_set import ImageSet
from trainer.data.labels import check_range
from trainer.data.mapped_images import Allocate
from trainer.data.npz import MAX_RATIO, open_npz
from trainer.data.pictures import UNREADABLE

# The names of an .npz's images, in the order of preference, and of the labels that go with them: ours, the usual
# short ones, those of ADM's reference batches (numpy's for arrays without names), and those of Keras.
NPZ_KEYS = {
    "images": ("labels",),
    "x": ("labels", "y"),
    "arr_0": ("labels", "arr_1"),
    "x_train": ("labels", "y", "y_train"),
}
IDX_NAME = re.compile(r"ubyte$|\.gz$", re.IGNORECASE)
PICTURE_CHANNELS = (1, 3)
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Images:
    """An array of images that comes in parts of consecutive rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Iterable[NDArray[Any]]


def load_npy(path: Path, allocate: Allocate) -> ImageSet:
    """One array without classes: what `load_npz` takes for `images`."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)  # maps no more bytes than are there
    except UNREADABLE as error:
        raise BadInput(f"{path}: wanted an .npy file of numbers; {one_line(error)}") from error
    images = Images(stored.shape, stored.dtype, [stored])
    return _from_arrays(path, path.stem, images, np.full(len(stored), -1), allocate)


def load_npz(path: Path, allocate: Allocate) -> ImageSet:
    """An .npz with `images` uint8 [N, H, W, C] (or [N, H, W]) and, if it has classes, `labels` integer [N].

    `images` may also be floating-point arrays [N, *shape], such as points or frames of sound, which stay as they are.
    Other names that are usual for the two are in `NPZ_KEYS`. One or three channels may also come first, [N, C, H, W].
    Other arrays are not read, which a note says.
    """
    try:
        with open_npz(path) as arrays:
            key = next((key for key in NPZ_KEYS if key in arrays), "images")
            label_key = next((key for key in NPZ_KEYS[key] if key in arrays), None)
            header = arrays.header(key)
            labels = np.full(header.shape[:1], -1) if label_key is None else arrays[label_key]
            images = Images(header.shape, header.dtype, arrays.parts(key))
            others = [name for name in arrays.names if name not in (key, label_key)]
            wanted = f"; labels would be read from {' or '.join(NPZ_KEYS[key])}" if label_key is None else ""
            notes = (f"arrays that are not read: {', '.join(others)}{wanted}",) if others else ()
            return _from_arrays(path, path.stem, images, labels, allocate, notes)
    except UNREADABLE as error:
        raise BadInput(
            f"{path}: wanted an .npz file with an array 'images' (or {', '.join([*NPZ_KEYS][1:])}); {one_line(error)}"
        ) from error


def load_idx(path: Path, allocate: Allocate) -> ImageSet:
    """MNIST's format: the images' file, in gzip or not; the labels' file is found beside it by its usual name.

    The images are uint8 [N, H, W], [N, H, W, C] with one or three channels, or [N, S * S], rows of square pictures.
    """
    images = _read_idx(path, (2, 3, 4))
    if images.ndim == 2 and (side := math.isqrt(images.shape[1])) ** 2 == images.shape[1]:
        images = images.reshape(-1, side, side)
    if images.ndim == 2 or images.shape[3:] not in ((), (1,), (3,)):
        raise BadInput(
            f"{path}: wanted images [N, H, W], [N, H, W, 1 or 3] or, of square pictures, [N, S * S]; "
            f"they are {list(images.shape)}; write them anew in one of these shapes"
        )
    beside = labels_beside(path)
    labels = np.full(len(images), -1) if beside is None else _read_idx(beside, (1,))
    name = path.name.removesuffix(".gz")
    return _from_arrays(path, name, Images(images.shape, images.dtype, [images]), labels, allocate)


def _read_idx(path: Path, num_dimensions: Sequence[int]) -> NDArray[np.uint8]:
    """The array of an IDX file: the bytes 0, 0, 8 (unsigned bytes), its number of dimensions, their sizes, the data."""
    try:
        with path.open("rb") as raw:
            length, is_packed = raw.seek(0, 2), raw.seek(0) == 0 and raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            with closing(gzip.open(raw) if is_packed else raw) as file:
                return _read_array(path, file, num_dimensions, length * MAX_RATIO if is_packed else length)
    except UNREADABLE as error:
        raise BadInput(f"{path}: cannot be read ({one_line(error)}); download it again") from error


def _read_array(path: Path, file: BufferedIOBase, num_dimensions: Sequence[int], limit: int) -> NDArray[np.uint8]:
    """The array in `file`, which cannot hold more than `limit` bytes."""
    magics, magic = [bytes([0, 0, 8, num]) for num in num_dimensions], file.read(4)
    if magic not in magics:
        raise BadInput(
            f"{path}: wanted an IDX file of unsigned bytes, which begins with "
            f"{' or '.join(magic.hex() for magic in magics)}; it begins with {magic.hex() or 'nothing'}"
        )
    sizes = file.read(4 * magic[3])
    shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
    wanted = 4 + 4 * magic[3] + math.prod(shape)
    if wanted <= limit:
        array = np.empty(shape, np.uint8)
        num_read = file.readinto(array.reshape(-1).data) if array.size else 0
        if num_read == array.size and len(sizes) == 4 * magic[3] and not file.read(1):
            return array
    raise BadInput(f"{path}: wanted {wanted} bytes for {shape}; it has more or fewer; download it again")


def labels_beside(path: Path) -> Path | None:
    """train-labels-idx1-ubyte.gz for train-images-idx3-ubyte.gz, where there is one; either may be out of its gzip."""
    plain = re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    candidates = (path.with_name(name) for name in (plain, f"{plain}.gz"))
    return next((file for file in candidates if "images" in path.name and file.is_file()), None)


def _from_arrays(
    path: Path, name: str, images: Images, labels: NDArray[Any], allocate: Allocate, notes: tuple[str, ...] = ()
) -> ImageSet:
    is_pixels = images.dtype == np.uint8 and len(images.shape) in (3, 4) and 0 not in images.shape
    if not is_pixels and (images.dtype.kind != "f" or len(images.shape) < 2):
        raise BadInput(
            f"{path}: wanted 'images' uint8 [N, H, W, C] or [N, H, W], or floating-point arrays [N, ...]; they are "
            f"{images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise BadInput(
            f"{path}: wanted 'labels' integer [{images.shape[0]}], one for each image; "
            f"they are {labels.dtype} {list(labels.shape)}"
        )
    check_range(f"{path}, labels", labels.tolist())
    placed = _place_pixels(images, allocate) if images.dtype == np.uint8 else _place_values(path, images, allocate)
    return ImageSet(name, placed, labels.astype(np.int64), notes=notes)


def _place_pixels(images: Images, allocate: Allocate) -> NDArray[np.uint8]:
    num_images, *sides = images.shape
    is_gray = len(sides) == 2
    channels_last = not is_gray and (sides[2] in PICTURE_CHANNELS or sides[0] not in PICTURE_CHANNELS)
    shape = (1, *sides) if is_gray else (sides[2], sides[0], sides[1]) if channels_last else tuple(sides)
    placed, start = allocate((num_images, *shape)), 0
    for part in images.parts:
        end = start + len(part)
        placed[start:end] = part.transpose(0, 3, 1, 2) if channels_last else part.reshape(len(part), *shape)
        start = end
    return placed


def _place_values(path: Path, arrays: Images, allocate: Allocate) -> NDArray[np.float32]:
    """`arrays` as float32; raises `BadInput` unless they are finite and differ."""
    placed, start = allocate(arrays.shape, np.float32), 0
    with np.errstate(over="ignore"):
        for part in arrays.parts:
            placed[start : start + len(part)] = part
            start += len(part)
    if not placed.size or not np.isfinite(placed).all() or placed.min() == placed.max():
        raise BadInput(f"{path}: wanted finite values that differ; some are infinite or not a number, or all are one")
    return placed
