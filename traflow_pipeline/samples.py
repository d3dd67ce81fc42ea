"""Samples of a student or a teacher: arrays in the data's range, as bytes or as files."""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from pipeline.common.errors import BadInput, reason
from pipeline.common.image_grid import has_pictures, is_drawable, is_picture, save_square, to_bytes, to_pictures
from pipeline.storage.store import aside_of

ARRAY, ARCHIVE, TENSORS = ".npy", ".npz", ".safetensors"


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of any shape; those of shape [C, H, W] with 1 or 3 channels are images too, and latents have pixels."""

    arrays: NDArray[np.float32]  # [N, *shape], values in about data_range where they are no latents
    labels: NDArray[np.int64] | None  # [N], in [0, num_classes); None without classes
    data_range: tuple[float, float]  # the values that become black and white
    pixels: NDArray[np.float32] | None = None  # [N, C, H, W] of decoded latents; None where `arrays` are what is shown

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.arrays.shape[1:]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one sample as it is shown."""
        return self.shape if self.pixels is None else self.pixels.shape[1:]

    @property
    def shown(self) -> NDArray[np.float32]:
        """The samples as they are shown: latents decoded. [N, *image_shape]"""
        return self.arrays if self.pixels is None else self.pixels

    @property
    def images(self) -> NDArray[np.uint8]:
        """The samples as bytes, [N, H, W, C].

        Raises:
            BadInput: their shape is not an image's.
        """
        check_drawable(self.image_shape)
        return to_bytes(self.shown, self.data_range).transpose(0, 2, 3, 1)

    def save(self, path: str | Path) -> None:
        """Write one file, of the kind that its suffix names.

        `.npy` holds the arrays; `.safetensors` the arrays as `samples`, and `labels`; `.npz` the images as `arr_0`,
        uint8 [N, H, W, C], or else the arrays, and `labels`; `.png`, or another suffix that Pillow knows, a grid.

        Raises:
            BadInput: `path` cannot be written, or they are no images.
        """
        save(Path(path), [self], len(self), self.shape, self.image_shape)


def check_drawable(shape: tuple[int, ...]) -> None:
    """Raises `BadInput` unless samples of `shape` are images."""
    if not is_drawable(shape):
        raise BadInput(
            f"samples of shape {list(shape)}: wanted images [C, H, W] of 1 or 3 channels to draw; save these to a "
            f"{ARRAY}, {TENSORS} or {ARCHIVE} file"
        )


def names_folder(path: Path) -> bool:
    """Whether `path` is a folder, or has no suffix that begins with a letter: "pics_0.5" has none."""
    return path.is_dir() or not path.suffix[1:2].isalpha()


def check_file(path: Path, shape: tuple[int, ...]) -> None:
    """Raises `BadInput` unless samples of `shape` can be saved to a file with the suffix of `path`."""
    if path.suffix in (ARRAY, ARCHIVE, TENSORS):
        return
    if not is_picture(path):
        raise BadInput(
            f"{path}: wanted a picture such as samples.png, a {ARRAY}, {TENSORS} or {ARCHIVE} file, or a folder"
        )
    if not has_pictures(shape):
        check_drawable(shape)


def save(
    path: Path,
    batches: Iterable[Samples],
    count: int,
    shape: tuple[int, ...],
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Write `count` samples of `shape`, shown in `image_shape` (by default the same), to one file, or nothing.

    A .npy file holds `arrays`; a .safetensors file the same as `samples`, and `labels`; a .npz file, as ADM's evaluator
    reads it, `arr_0`: the images, uint8 [N, H, W, C], or the arrays, float32 [N, *shape], where they are no images; and
    `labels` int64 [N] if there are classes. All but .safetensors are written batch by batch. Any other suffix that
    Pillow knows is a picture: the images in a grid, or all points of the plane together.

    Raises:
        BadInput: `path` cannot be written, or they are no images.
    """
    image_shape = shape if image_shape is None else image_shape
    check_file(path, image_shape)
    if path.suffix not in (ARRAY, ARCHIVE, TENSORS):
        parts = list(batches)
        save_square(path, to_pictures(np.concatenate([part.shown for part in parts]), parts[0].data_range))
        return
    with whole_file(path) as file:
        if path.suffix == ARRAY:
            _write_array(file, batches, count, shape)
        elif path.suffix == TENSORS:
            _write_tensors(file, batches)
        else:
            _write_archive(file, batches, count, image_shape)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `path` once it is complete.

    Raises:
        BadInput: it cannot be written.
    """
    aside = aside_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        aside.unlink(missing_ok=True)


def _write_array(file: IO[bytes], batches: Iterable[Samples], count: int, shape: tuple[int, ...]) -> None:
    _write_header(file, "<f4", (count, *shape))
    for batch in batches:
        file.write(batch.arrays.astype("<f4", copy=False).tobytes())


def _write_tensors(file: IO[bytes], batches: Iterable[Samples]) -> None:
    parts = list(batches)
    tensors = {"samples": np.concatenate([part.arrays for part in parts])}
    if parts[0].labels is not None:
        tensors["labels"] = np.concatenate([part.labels for part in parts if part.labels is not None])
    file.write(save_tensors(tensors))


def _write_archive(file: IO[bytes], batches: Iterable[Samples], count: int, shape: tuple[int, ...]) -> None:
    labels = []
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            if is_drawable(shape):
                _write_header(member, "|u1", (count, *shape[1:], shape[0]))
            else:
                _write_header(member, "<f4", (count, *shape))
            for batch in batches:
                values = batch.images if is_drawable(shape) else batch.arrays.astype("<f4", copy=False)
                member.write(values.tobytes())
                labels += [] if batch.labels is None else [batch.labels]
        if labels:
            with archive.open("labels.npy", "w") as member:
                npy.write_array(member, np.concatenate(labels))


def _write_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
