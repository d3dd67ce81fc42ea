"""Image sets by name: what a teacher is trained on and what an evaluation measures against."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import BadInput
from trainer.data import mapped_images
from trainer.data.array_files import IDX_NAME, labels_beside, load_idx, load_npy, load_npz
from trainer.data.hugging_face import find_hugging_face
from trainer.data.image_folder import find_folder, load_zip
from trainer.data.image_set import ImageSet
from trainer.data.mapped_images import Allocate, Source


def load_digits() -> ImageSet:
    """scikit-learn's 1,797 scans of handwritten digits (UCI, Alpaydin & Kaynak 1998): [1797, 1, 8, 8]."""
    from sklearn import datasets

    digits = datasets.load_digits()
    # The scans have 17 grey levels, 0 to 16.
    images: NDArray[np.uint8] = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet("digits", images, digits.target.astype(np.int64))


IMAGE_SETS: dict[str, Callable[[], ImageSet]] = {"digits": load_digits}


def load_images(source: str) -> ImageSet:
    """The image set called `source`, or of the Hub (hf:NAME[:SPLIT]), or the folder, .zip, IDX, .npy or .npz there.

    Raises:
        BadInput: `source` is none of these, cannot be read, or its images have more than one size.
    """
    if source in IMAGE_SETS:
        return IMAGE_SETS[source]()
    return mapped_images.load(_find(source))


def _find(source: str) -> Source:
    if source.startswith("hf:"):
        return find_hugging_face(source)
    path = Path(source)
    if path.is_dir():
        return find_folder(path)
    if path.is_file():
        files = [file for file in (path, labels_beside(path)) if file is not None]
        version = "\n".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        return Source(version, path.stat().st_size, partial(_loader(path), path))
    found = f"{source}: no such file or folder" if path.suffix or len(path.parts) > 1 else f"no image set {source!r}"
    raise BadInput(
        f"{found}: wanted {', '.join(IMAGE_SETS)}, hf:NAME[:SPLIT], an .npy, .npz, .zip or IDX file or a folder "
        "of images"
    )


def _loader(path: Path) -> Callable[[Path, Allocate], ImageSet]:
    if path.suffix.lower() == ".zip":
        return load_zip
    if path.suffix.lower() == ".npy":
        return load_npy
    if IDX_NAME.search(path.name):
        return load_idx
    if path.suffix.lower() == ".npz" or is_zipfile(path):
        return load_npz
    raise BadInput(f"{path}: wanted an .npy, .npz, .zip or IDX file, or a folder of images; it is none of these")
