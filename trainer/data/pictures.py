"""Decoding: pictures of any format and colour mode to one array.

The rule of colours: if every picture is grey, the set is grey, [N, 1, H, W]; otherwise it is in colour, [N, 3, H, W],
and grey is repeated. A palette is what its pixels are. Transparency is dropped. Pictures are turned as their
orientation tag says; of several frames the first is read; more than 8 bits of grey are refused.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from tokenize import TokenError
from typing import IO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.common.errors import BadInput, one_line
from pipeline.common.progress import format_bytes
from trainer.data.mapped_images import Allocate

# What PIL, numpy, zipfile and gzip raise about bytes that are not what they should be.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError),
    *(struct.error, zlib.error, BadZipFile, TokenError, Image.DecompressionBombError, MemoryError, KeyError),
)
# Not opened: EPS and WMF are programs for another one to draw; PIL only recognises the others.
NOT_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# The first bytes of PNG, JPEG, GIF and WebP, whatever the file is called.
SIGNATURE = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP", re.DOTALL)
SIGNATURE_BYTES = 12
# Checked before anything is decoded. No network of this program is trained on larger images.
MAX_PIXELS = 2**25
MAX_FILE_BYTES = 2**26
GREY = ("1", "L", "LA", "La")
TRANSPARENT, ANIMATED = "transparent: transparency is dropped", "of several frames: the first is read"

OpenPicture = Callable[[], Image.Image]


def suffixes() -> set[str]:
    """The suffixes, in lower case, of the formats that are read: those that PIL decodes by itself."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in _formats()}


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in NOT_PICTURES]


def open_picture(file: IO[bytes]) -> Image.Image:
    """The picture in `file`, whose header alone is read."""
    return Image.open(file, formats=_formats())


def stack(
    pictures: Iterable[tuple[str, OpenPicture]], num_pictures: int, allocate: Allocate
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """At least one picture, all of one size, each with the name that an error gives it: as an array [N, C, H, W].

    The array is what `allocate` gives, filled. Also returns notes: what was lost of how many.

    Raises:
        BadInput: a picture cannot be read, is too large, or has another size than the first.
    """
    images: NDArray[np.uint8] | None = None
    first_name = ""
    lossy: dict[str, list[str]] = {TRANSPARENT: [], ANIMATED: []}
    for row, (name, open_one) in enumerate(pictures):
        pixels, losses = _decode(name, open_one)
        if images is None:
            images, first_name = _allocate(allocate, name, num_pictures, pixels.shape), name
        if pixels.shape[1:] != images.shape[2:]:
            raise BadInput(
                f"{name}: wanted {list(images.shape[2:])} (height, width) as in {first_name.rpartition('/')[2]}; "
                f"it is {list(pixels.shape[1:])}; resize the images to one size"
            )
        if len(pixels) > images.shape[1]:
            grey, images = images, _allocate(allocate, name, num_pictures, pixels.shape)
            images[:row] = grey[:row]  # the first in colour, after grey ones, which are repeated
        images[row] = pixels
        for loss in losses:
            lossy[loss].append(name)
    assert images is not None
    return images, tuple(_note(loss, names, num_pictures) for loss, names in lossy.items() if names)


def _note(loss: str, names: list[str], num_pictures: int) -> str:
    return f"{len(names)} of {num_pictures} pictures are {loss} ({names[0]} is the first)"


def _allocate(allocate: Allocate, name: str, num_pictures: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return allocate((num_pictures, *shape))
    except MemoryError as error:
        size = format_bytes(num_pictures * np.prod(shape, dtype=float))
        raise BadInput(
            f"{name}: {num_pictures} pictures of {list(shape)} need {size} of memory; resize or leave out some"
        ) from error


def _decode(name: str, open_one: OpenPicture) -> tuple[NDArray[np.uint8], list[str]]:
    """The pixels [1 or 3, H, W] of a picture as a viewer shows it, and what is lost."""
    try:
        with warnings.catch_warnings(action="ignore"), open_one() as image:
            _check(name, image)
            image.load()
            losses = [ANIMATED] if getattr(image, "is_animated", False) else []
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                losses.append(TRANSPARENT)
            return _pixels(_upright(image)), losses
    except UNREADABLE as error:
        raise BadInput(f"{name}: not an image that can be read ({one_line(error)})") from error


def _check(name: str, image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise BadInput(f"{name}: wanted 8 bits a channel; it has more; convert it")
    if image.width * image.height > MAX_PIXELS:
        raise BadInput(
            f"{name}: wanted a picture of at most {MAX_PIXELS} pixels; it has {image.width}x{image.height}: resize it"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except UNREADABLE:  # a damaged tag: the picture itself was decoded
        return image


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[None]
    colour = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    has_palette = image.mode in ("P", "PA")
    return colour[:1] if has_palette and (colour == colour[:1]).all() else colour
