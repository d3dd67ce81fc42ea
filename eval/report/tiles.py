"""Pictures for a page: tiles that are scaled by whole factors, as many as fit into a window and into so many bytes."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image

from pipeline.common.image_grid import Images

GAP = 3  # pixels between tiles
WIDE, NARROW = 1016, 328  # pixels across a page in a wide and in a narrow window
LABEL = 184  # of these, for a label beside a row
MAX_LOSSLESS = 48  # pixels of a side: larger pictures in colour are JPEG
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Room:
    """The pixels across for a row of tiles, how many they may be, the most first, and how wide each is at least."""

    width: int
    counts: Sequence[int]
    smallest: int

    def fit(self, side: int) -> "Fit":
        """The most tiles of `side` pixels that can be `smallest` wide when they are scaled by a whole factor."""
        for count in self.counts:
            zoom = (self.width // count - GAP) // side
            if zoom * side >= self.smallest:
                return Fit(count, zoom)
        return Fit(self.counts[-1], max(1, zoom))


@dataclass(frozen=True)
class Fit:
    """How many tiles a row has, and by which factor they are scaled."""

    count: int
    zoom: int


@dataclass(frozen=True)
class Style:
    """The rooms for tiles in wide and in narrow windows, their largest side in stored pixels, and a budget in bytes.

    A row of tiles may have several `lines` of them in a wide window.
    """

    wide: Room
    narrow: Room
    largest: int
    budget: int
    lines: int = 1

    def shared(self, number: int) -> "Style":
        """This style with its share of the budget, which `number` blocks of tiles have together."""
        return replace(self, budget=self.budget // max(number, 1))


# Together below two megabytes, with the page around them.
STRIP = Style(Room(WIDE - LABEL, (8, 6, 4, 3, 2), 72), Room(NARROW, (6, 5, 4, 3, 2), 48), 128, 200_000)
EVERY = Style(Room(WIDE - LABEL, (12, 10, 8, 6, 4), 48), Room(NARROW, (8, 6, 5, 4, 3, 2), 40), 64, 200_000)
GRIDS = Style(Room(WIDE, (16, 12, 8, 4), 56), Room(NARROW, (8, 5, 4, 2), 40), 128, 750_000, lines=4)
CLASSES = Style(Room(360, (6, 5, 4, 3, 2), 40), Room(NARROW - 72, (6, 5, 4, 3, 2), 40), 64, 340_000)
NEAREST = Style(Room(330, (4,), 1), Room(NARROW, (4,), 1), 128, 110_000)
PATHS = Style(Room(WIDE, (9,), 1), Room(NARROW + 17, (5,), 1), 96, 210_000)
# Rows of one picture each, such as points in the plane: they stand side by side.
FEW_SINGLE = Style(Room(WIDE, (3,), 1), Room(NARROW, (1,), 1), 256, 200_000)
MANY_SINGLE = Style(Room(WIDE, (7,), 1), Room(NARROW, (2,), 1), 128, 400_000)
MANY = 7


@dataclass(frozen=True)
class Row:
    """The pictures of a row as data URIs, its title, and what else is said of it."""

    title: str
    note: str
    images: list[str]


@dataclass(frozen=True)
class Tiles:
    """Rows of pictures of `width` by `height` stored pixels, which the style sheet scales by `wide` or `narrow`."""

    rows: list[Row]
    width: int
    height: int
    wide: Fit
    narrow: Fit

    @property
    def are_single(self) -> bool:
        """Whether every row is one picture."""
        return all(len(row.images) == 1 for row in self.rows)


def tile(rows: Mapping[str, Images], style: Style, notes: Mapping[str, str] | None = None) -> Tiles | None:
    """The pictures uint8 [n, C, H, W] of each of `rows`, the first of each that fit into the budget; None of no rows.

    `notes` are by the title of the row. Sides longer than `style.largest` are shortened by a whole factor.
    """
    if not rows:
        return None
    if all(len(images) == 1 for images in rows.values()):
        style = FEW_SINGLE if len(rows) < MANY else MANY_SINGLE
    height, width = next(iter(rows.values())).shape[2:]
    factor = -(-max(height, width) // style.largest)
    width, height = -(-width // factor), -(-height // factor)
    wide, narrow = style.wide.fit(width), style.narrow.fit(width)
    count = min(max(map(len, rows.values())), wide.count * style.lines)
    encoded = {title: [_encode(image, factor) for image in images[:count]] for title, images in rows.items()}
    while count > 1 and _num_bytes(encoded, count) > style.budget:
        count -= wide.count if count > wide.count else 1
    shown = [Row(title, (notes or {}).get(title, ""), uris[:count]) for title, uris in encoded.items()]
    return Tiles(shown, width, height, wide, narrow)


def _num_bytes(encoded: Mapping[str, list[str]], count: int) -> int:
    return sum(len(uri) for uris in encoded.values() for uri in uris[:count])


def _encode(image: Images, factor: int) -> str:
    """The picture [C, H, W] as a data URI, its sides shortened by `factor`."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture = picture.reduce(factor) if factor > 1 else picture
    buffer, is_large = BytesIO(), max(picture.size) > MAX_LOSSLESS and picture.mode == "RGB"
    if is_large:
        picture.save(buffer, format="jpeg", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(buffer, format="png", optimize=True)
    kind = "jpeg" if is_large else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
