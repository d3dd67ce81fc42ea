"""Image sets: what a teacher is trained on and what an evaluation measures against."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import BadInput

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] and their classes int64 [N] in [0, num_classes), or -1 where there are none."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return self.images.shape[1:]

    @property
    def sha256(self) -> str:
        """Digest of the images and their labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)


def to_float(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes [0, 255] to the range of the flows, [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - 1


def load_digits() -> ImageSet:
    """scikit-learn's 1,797 scans of handwritten digits (UCI, Alpaydin & Kaynak 1998): [1797, 1, 8, 8]."""
    from sklearn import datasets

    digits = datasets.load_digits()
    # The scans have 17 grey levels, 0 to 16.
    images: NDArray[np.uint8] = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet("digits", images, digits.target.astype(np.int64))


def load_npz(path: Path) -> ImageSet:
    """An .npz with `images` uint8 [N, H, W, C] (or [N, H, W]) and, if it has classes, `labels` integer [N]."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = arrays["images"]
            labels = arrays["labels"] if "labels" in arrays else np.full(len(images), -1)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise BadInput(f"{path}: wanted an .npz file with an array 'images'; {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not 0 < len(images) == len(labels):
        raise BadInput(
            f"{path}: wanted 'images' uint8 [N, H, W, C] and 'labels' [N]; "
            f"'images' is {images.dtype} {list(images.shape)}, 'labels' {list(labels.shape)}"
        )
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return ImageSet(path.stem, np.ascontiguousarray(images), labels.astype(np.int64))


def load_folder(path: Path) -> ImageSet:
    """A folder of equally sized images; sub-folders, if there are any, are the classes in sorted order."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise BadInput(f"{path}: wanted a folder of images ({', '.join(sorted(IMAGE_SUFFIXES))}); it holds none")
    first = _read_image(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, file in zip(images, files, strict=True):
        image = _read_image(file)
        if image.shape != first.shape:
            raise BadInput(
                f"{file}: wanted {list(first.shape)} (channels, height, width) as in {files[0].name}; "
                f"it is {list(image.shape)}; resize the images to one size"
            )
        row[:] = image
    classes = sorted({file.parent for file in files} - {path})
    labels = [classes.index(file.parent) if file.parent in classes else -1 for file in files]
    return ImageSet(path.name, images, np.array(labels, np.int64))


def _read_image(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise BadInput(f"{file}: wanted 8 bits a channel; it has more; convert it")
            grey = image.mode in ("L", "1")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise BadInput(f"{file}: not an image that can be read ({error})") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


IMAGE_SETS: dict[str, Callable[[], ImageSet]] = {"digits": load_digits}


def load_images(source: str) -> ImageSet:
    """The image set called `source`, or the one in the .npz file or folder at that path.

    Raises:
        BadInput: `source` is none of these, or cannot be read.
    """
    if source in IMAGE_SETS:
        return IMAGE_SETS[source]()
    path = Path(source)
    if path.is_dir():
        return load_folder(path)
    if path.is_file():
        return load_npz(path)
    raise BadInput(f"no image set {source!r}: wanted {', '.join(IMAGE_SETS)}, an .npz file or a folder of images")
