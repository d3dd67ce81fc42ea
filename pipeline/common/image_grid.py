"""Images to PNG: rows of samples with a title beside each, or a plain grid."""

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.common.errors import BadInput
from pipeline.common.point_cloud import draw_points

MIN_CELL = 40  # pixels; smaller images, such as 8x8 digits, are enlarged to be legible
MAX_EXACT = 128  # pixels of a side: a larger picture on a page is compressed with loss
MAX_CELL = 256  # pixels of a side; a grid of larger pictures would take gigabytes
NUM_POINTS = 1024  # in one picture
GAP = 2
FONT_SIZE = 14
MARGIN = 8

Images = NDArray[np.uint8]  # [N, C, H, W]


def to_bytes(samples: NDArray[np.float32], data_range: tuple[float, float] = (-1.0, 1.0)) -> NDArray[np.uint8]:
    """Samples to bytes: from `data_range` to [-1, 1], then (127.5 x + 128) clipped, as EDM does (its generate.py)."""
    low, high = data_range
    if data_range != (-1.0, 1.0):
        samples = (samples - low) * (2 / (high - low)) - 1
    scaled: NDArray[np.float32] = np.clip(samples * 127.5 + 128, 0, 255)
    return scaled.astype(np.uint8)


def is_drawable(shape: tuple[int, ...]) -> bool:
    """Whether samples of `shape` are images [C, H, W], grey or in colour."""
    return len(shape) == 3 and shape[0] in (1, 3)


def has_pictures(shape: tuple[int, ...]) -> bool:
    """Whether samples of `shape` can be shown: images, or points in the plane."""
    return is_drawable(shape) or shape == (2,)


def num_shown(shape: tuple[int, ...], num_images: int) -> int:
    """How many samples of `shape` make a row of pictures: `num_images` images, or one picture of many points."""
    return num_images if is_drawable(shape) else NUM_POINTS


def to_pictures(samples: NDArray[np.float32], data_range: tuple[float, float]) -> Images:
    """Images as bytes, one picture each; points in the plane as one picture."""
    return to_bytes(samples, data_range) if is_drawable(samples.shape[1:]) else draw_points(samples, data_range)


def shrink(images: Images) -> Images:
    """Pictures whose longer side is at most `MAX_CELL`."""
    height, width = images.shape[2:]
    longer = max(height, width)
    if longer <= MAX_CELL:
        return images
    size = (max(1, width * MAX_CELL // longer), max(1, height * MAX_CELL // longer))
    resized = [np.asarray(_as_picture(image).resize(size, Image.Resampling.LANCZOS)) for image in images]
    return np.stack([image if image.ndim == 3 else image[..., None] for image in resized]).transpose(0, 3, 1, 2)


def save_rows(path: Path, rows: Mapping[str, Images]) -> None:
    """Write a PNG with one titled row for each of `rows`; columns line up.

    Raises:
        BadInput: `path` cannot be written, or has no suffix of an image format.
    """
    _save(path, draw_rows(rows))


def save_square(path: Path, images: Images) -> None:
    """Write a PNG of `images` in a nearly square grid without titles.

    Raises:
        BadInput: see `save_rows`.
    """
    side = max(1, math.ceil(math.sqrt(len(images))))
    _save(path, _draw([images[start : start + side] for start in range(0, len(images), side)], []))


def encode_rows(rows: Mapping[str, Images]) -> bytes:
    """The PNG of `save_rows`, as bytes."""
    buffer = BytesIO()
    draw_rows(rows).save(buffer, format="png")
    return buffer.getvalue()


def encode_picture(image: NDArray[np.uint8]) -> tuple[str, bytes]:
    """One picture [C, H, W], by itself: its format and its bytes; a large one loses what the eye does not see."""
    buffer = BytesIO()
    kind = "png" if max(image.shape[1:]) <= MAX_EXACT else "jpeg"
    _as_picture(image).save(buffer, format=kind, quality=90)
    return kind, buffer.getvalue()


def draw_rows(rows: Mapping[str, Images]) -> Image.Image:
    """The picture of `save_rows`."""
    return _draw(list(rows.values()), list(rows))


def is_picture(path: Path) -> bool:
    """Whether a picture can be saved at `path`, by its suffix."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE


def check_picture(path: Path) -> None:
    """Raises `BadInput` unless `is_picture`."""
    if not is_picture(path):
        raise BadInput(f"{path}: wanted the path of a picture such as samples.png")


def _save(path: Path, picture: Image.Image) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: wanted the path of a picture such as samples.png ({error})") from error


def _draw(rows: list[Images], titles: list[str]) -> Image.Image:
    zoom = max(1, -(-MIN_CELL // rows[0].shape[2]))
    height, width = rows[0].shape[2] * zoom + GAP, rows[0].shape[3] * zoom + GAP
    font = ImageFont.load_default(FONT_SIZE)
    left = 2 * MARGIN + max(math.ceil(font.getlength(title)) for title in titles) if titles else 0
    picture = Image.new("RGB", (left + width * max(map(len, rows)) - GAP, height * len(rows) - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for y, title in enumerate(titles):
        draw.text((MARGIN, y * height + height // 2), title, fill="black", font=font, anchor="lm")
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            picture.paste(_enlarge(image, zoom), (left + x * width, y * height))
    return picture


def _enlarge(image: NDArray[np.uint8], zoom: int) -> Image.Image:
    return _as_picture(image.repeat(zoom, axis=1).repeat(zoom, axis=2)).convert("RGB")


def _as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """[C, H, W], grey or in colour."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
