"""Image sets: what a teacher is trained on and what an evaluation measures against."""

import gzip
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Annotated, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from pipeline.common.errors import BadInput, one_line

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"}
# The names of an .npz's images, in the order of preference, and of the labels that go with them: ours, the usual
# short ones, those of ADM's reference batches (numpy's for arrays without names), and those of Keras.
NPZ_KEYS = {
    "images": ("labels",),
    "x": ("labels", "y"),
    "arr_0": ("labels", "arr_1"),
    "x_train": ("labels", "y", "y_train"),
}
IDX_NAME = re.compile(r"ubyte$|\.gz$", re.IGNORECASE)
# What PIL, numpy, zipfile and gzip raise about bytes that are not what they should be.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, RuntimeError),
    *(struct.error, zlib.error, BadZipFile, TokenError, Image.DecompressionBombError),
)


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
    """An .npz with `images` uint8 [N, H, W, C] (or [N, H, W]) and, if it has classes, `labels` integer [N].

    Other names that are usual for the two are in `NPZ_KEYS`.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key = next((key for key in NPZ_KEYS if key in arrays), "images")
            label_key = next((key for key in NPZ_KEYS[key] if key in arrays), None)
            images = arrays[key]
            labels = np.full(len(images), -1) if label_key is None else arrays[label_key]
    except (*UNREADABLE, KeyError) as error:
        raise BadInput(
            f"{path}: wanted an .npz file with an array 'images' (or {', '.join([*NPZ_KEYS][1:])}); {one_line(error)}"
        ) from error
    return _from_arrays(path, path.stem, images, labels)


def load_idx(path: Path) -> ImageSet:
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
    beside = _labels_beside(path)
    labels = np.full(len(images), -1) if beside is None else _read_idx(beside, (1,))
    return _from_arrays(path, path.name.removesuffix(".gz"), images, labels)


def _read_idx(path: Path, num_dimensions: Sequence[int]) -> NDArray[np.uint8]:
    """The array of an IDX file: the bytes 0, 0, 8 (unsigned bytes), its number of dimensions, their sizes, the data."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except UNREADABLE as error:
        raise BadInput(f"{path}: cannot be read ({one_line(error)}); download it again") from error
    magics = [bytes([0, 0, 8, num]) for num in num_dimensions]
    if content[:4] not in magics:
        raise BadInput(
            f"{path}: wanted an IDX file of unsigned bytes, which begins with "
            f"{' or '.join(magic.hex() for magic in magics)}; it begins with {content[:4].hex() or 'nothing'}"
        )
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise BadInput(
            f"{path}: wanted {start + math.prod(shape)} bytes for {shape}; it has {len(content)}; download it again"
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _labels_beside(path: Path) -> Path | None:
    """train-labels-idx1-ubyte.gz for train-images-idx3-ubyte.gz, where there is one; either may be out of its gzip."""
    plain = re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    candidates = (path.with_name(name) for name in (plain, f"{plain}.gz"))
    return next((file for file in candidates if "images" in path.name and file.is_file()), None)


def _from_arrays(path: Path, name: str, images: NDArray[Any], labels: NDArray[Any]) -> ImageSet:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise BadInput(
            f"{path}: wanted 'images' uint8 [N, H, W, C] or [N, H, W]; they are {images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise BadInput(
            f"{path}: wanted 'labels' integer [{len(images)}], one for each image; "
            f"they are {labels.dtype} {list(labels.shape)}"
        )
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return ImageSet(name, np.ascontiguousarray(images), labels.astype(np.int64))


def load_folder(path: Path) -> ImageSet:
    """A folder of equally sized images; sub-folders, if there are any, are the classes in sorted order.

    With EDM's dataset.json in it the classes are those it gives instead. Hidden files and folders are left out.
    """
    files = {PurePosixPath(file.relative_to(path)): file.read_bytes for file in path.rglob("*") if file.is_file()}
    return _from_files(path, path.name, files)


def load_zip(path: Path) -> ImageSet:
    """A .zip of equally sized images, as the folder that it would unpack to; nothing is unpacked."""
    try:
        with ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            files = {PurePosixPath(entry.filename): partial(archive.read, entry) for entry in entries}
            return _from_files(path, path.stem, files)
    except (OSError, EOFError, RuntimeError, UnicodeDecodeError, zlib.error, BadZipFile) as error:
        raise BadInput(f"{path}: wanted a .zip of images; {one_line(error)}; pack or download it again") from error


Files = Mapping[PurePosixPath, Callable[[], bytes]]


def _from_files(path: Path, name: str, files: Files) -> ImageSet:
    """The images among the files that lie at, or in, `path`, in the sorted order of their names."""
    seen = {file: read for file, read in sorted(files.items()) if not _hidden(file)}
    pictures = {file: read for file, read in seen.items() if file.suffix.lower() in IMAGE_SUFFIXES}
    if not pictures:
        raise BadInput(f"{path}: wanted images in it ({', '.join(sorted(IMAGE_SUFFIXES))}); it holds none")
    labels = _labels(path, seen, list(pictures))
    decoded = ((str(path / file), partial(_open, read)) for file, read in pictures.items())
    return ImageSet(name, _stack(decoded, len(pictures)), np.array(labels, np.int64))


def _hidden(file: PurePosixPath) -> bool:
    # __MACOSX is where macOS puts a "._" file for every file of a zip.
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


class _Index(BaseModel):
    """The dataset.json of EDM's dataset_tool: (name, class) of each image, or null where there are no classes."""

    labels: list[tuple[str, Annotated[int, Field(strict=True, ge=0, lt=2**31)]]] | None


def _labels(path: Path, files: Files, pictures: list[PurePosixPath]) -> list[int]:
    indices = [file for file in files if file.name == "dataset.json"]
    if indices:
        return _indexed_labels(path, min(indices, key=lambda file: len(file.parts)), files, pictures)
    classes = sorted({file.parent for file in pictures} - {PurePosixPath()})
    numbers = {parent: number for number, parent in enumerate(classes)}
    return [numbers.get(file.parent, -1) for file in pictures]


def _indexed_labels(path: Path, index: PurePosixPath, files: Files, pictures: list[PurePosixPath]) -> list[int]:
    try:
        given = _Index.model_validate_json(files[index]()).labels
    except ValidationError as error:
        fault = error.errors()[0]
        location = "".join(f"[{part!r}]" for part in fault["loc"])
        raise BadInput(
            f'{path / index}: wanted {{"labels": [["00000/img00000000.png", 3], ...]}} or null for the list, '
            f"as EDM's dataset_tool writes it; {location} {one_line(Exception(fault['msg']))}"
        ) from error
    if given is None:
        return [-1] * len(pictures)
    # Names are relative to the index: a set is often packed together with the folder it lies in.
    labels = {index.parent / name: label for name, label in given}
    missing = [file for file in pictures if file not in labels]
    if missing:
        raise BadInput(
            f"{path / index}: wanted a label for each of {len(pictures)} images; {len(missing)} have none, "
            f"{missing[0]} the first; complete it, or set its labels to null"
        )
    return [labels[file] for file in pictures]


def _open(read: Callable[[], bytes]) -> Image.Image:
    return Image.open(BytesIO(read()))


def _stack(pictures: Iterator[tuple[str, Callable[[], Image.Image]]], num_images: int) -> NDArray[np.uint8]:
    """Pictures of one size, each with the name that an error gives it, as one array [N, C, H, W]."""
    first_name, open_first = next(pictures)
    first = _pixels(first_name, open_first)
    images = np.empty((num_images, *first.shape), np.uint8)
    images[0] = first
    for row, (name, open_image) in zip(images[1:], pictures, strict=True):
        image = _pixels(name, open_image)
        if image.shape != first.shape:
            raise BadInput(
                f"{name}: wanted {list(first.shape)} (channels, height, width) as in {PurePosixPath(first_name).name}; "
                f"it is {list(image.shape)}; resize the images to one size"
            )
        row[:] = image
    return images


def _pixels(name: str, open_image: Callable[[], Image.Image]) -> NDArray[np.uint8]:
    try:
        with open_image() as image:
            if image.mode.startswith(("I", "F")):
                raise BadInput(f"{name}: wanted 8 bits a channel; it has more; convert it")
            grey = image.mode in ("L", "1")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except UNREADABLE as error:
        raise BadInput(f"{name}: not an image that can be read ({one_line(error)})") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def load_hugging_face(source: str) -> ImageSet:
    """hf:NAME[:SPLIT]: a data set of the Hugging Face Hub, or one in a local folder, by the package `datasets`.

    Its first column of type Image and, if it has classes, its first of type ClassLabel; split train unless given.
    """
    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise BadInput(f"{source}: wanted the package datasets; pip install datasets") from error
    rows = _open_hugging_face(datasets, source, name, split or "train").with_format(None)
    image, label = _column(rows, datasets.Image), _column(rows, datasets.ClassLabel)
    if image is None or not len(rows):
        raise BadInput(
            f"{source}: wanted rows with a column of type Image; it has {len(rows)} rows of {', '.join(rows.features)}"
        )
    classes = rows.select_columns([label])[:][label] if label else [None] * len(rows)
    labels = np.array([-1 if number is None else number for number in classes], np.int64)
    cells = (row[image] for row in rows.select_columns([image]))
    pictures = ((f"{source}, row {row}", partial(next, cells)) for row in range(len(rows)))
    return ImageSet(source.removeprefix("hf:"), _stack(pictures, len(rows)), labels)


def _open_hugging_face(datasets: Any, source: str, name: str, split: str) -> Any:
    saved = any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub's client, its formats and arrow have no common ancestor of their errors
        raise BadInput(f"{source}: cannot be loaded with split {split!r} ({one_line(error)})") from error
    if not saved:
        return loaded
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or split): loaded}
    if split not in splits:
        raise BadInput(f"{source}: wanted split {split!r}; it has {', '.join(splits)}; say hf:{name}:SPLIT")
    return splits[split]


def _column(rows: Any, kind: type) -> str | None:
    return next((name for name, feature in rows.features.items() if isinstance(feature, kind)), None)


IMAGE_SETS: dict[str, Callable[[], ImageSet]] = {"digits": load_digits}


def load_images(source: str) -> ImageSet:
    """The image set called `source`, or of the Hub (hf:NAME[:SPLIT]), or the folder, .zip, IDX or .npz file there.

    Raises:
        BadInput: `source` is none of these, cannot be read, or its images have more than one size.
    """
    if source in IMAGE_SETS:
        return IMAGE_SETS[source]()
    if source.startswith("hf:"):
        return load_hugging_face(source)
    path = Path(source)
    if path.is_dir():
        return load_folder(path)
    if path.is_file():
        return _loader(path)(path)
    raise BadInput(
        f"no image set {source!r}: wanted {', '.join(IMAGE_SETS)}, hf:NAME[:SPLIT], an .npz, .zip or IDX file "
        "or a folder of images"
    )


def _loader(path: Path) -> Callable[[Path], ImageSet]:
    if path.suffix.lower() == ".zip":
        return load_zip
    return load_idx if IDX_NAME.search(path.name) else load_npz
