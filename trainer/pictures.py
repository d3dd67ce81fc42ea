"""Images to PNG: rows of samples with a title beside each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MIN_CELL = 40  # pixels: 8x8 digits are enlarged until a person can read them
GAP = 2
FONT_SIZE = 14
MARGIN = 8


def save_rows(path: Path, rows: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write a PNG with one row of images uint8 [N, C, H, W] for each title; columns line up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_rows(rows).save(path)


def draw_rows(rows: Mapping[str, NDArray[np.uint8]]) -> Image.Image:
    """The picture of `save_rows`."""
    first = next(iter(rows.values()))
    zoom = max(1, -(-MIN_CELL // first.shape[2]))
    height, width = first.shape[2] * zoom + GAP, first.shape[3] * zoom + GAP
    font = ImageFont.load_default(FONT_SIZE)
    titles = max(int(font.getlength(title)) for title in rows)
    left = titles + 2 * MARGIN if titles else 0
    picture = Image.new("RGB", (left + width * max(map(len, rows.values())) - GAP, height * len(rows) - GAP), "white")
    draw = ImageDraw.Draw(picture)
    for y, (title, images) in enumerate(rows.items()):
        draw.text((MARGIN, y * height + height // 2), title, fill="black", font=font, anchor="lm")
        for x, image in enumerate(images):
            picture.paste(_enlarge(image, zoom), (left + x * width, y * height))
    return picture


def square(images: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """`images` as untitled rows of an about square grid."""
    side = max(1, int(np.ceil(np.sqrt(len(images)))))
    return {" " * row: images[row * side : (row + 1) * side] for row in range(-(-len(images) // side))}


def _enlarge(image: NDArray[np.uint8], zoom: int) -> Image.Image:
    pixels = image.repeat(zoom, axis=1).repeat(zoom, axis=2)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")
