"""Names beside curves: each stands where it covers the least of the chart, or nowhere if there is no room."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

# Pixels.
TEXT_WIDTH = 7  # of a character, at most
ASCENT, DESCENT = 10, 4  # of a line of text, from its baseline
AWAY = 9  # from a mark
SPACING = 5  # between the points that stand for a line

Place = tuple[float, float]


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, place: Place) -> bool:
        """Whether `place` lies inside."""
        return self.left <= place[0] <= self.right and self.top <= place[1] <= self.bottom

    def touches(self, other: "Box") -> bool:
        """Whether the two overlap."""
        apart = self.right < other.left or other.right < self.left or self.bottom < other.top or other.bottom < self.top
        return not apart

    def is_inside(self, other: "Box") -> bool:
        """Whether all of it lies in `other`."""
        return other.holds((self.left, self.top)) and other.holds((self.right, self.bottom))


class Label(NamedTuple):
    """A line of text: `x` is its start, middle or end, `y` its baseline."""

    x: float
    y: float
    anchor: Literal["start", "middle", "end"]
    text: str

    @property
    def box(self) -> Box:
        """What it covers, at most."""
        width = TEXT_WIDTH * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - ASCENT, left + width, self.y + DESCENT)


def put_label(
    text: str, places: Iterable[Place], taken: Sequence[Box], marks: Sequence[Place], lines: Sequence[Place], frame: Box
) -> Label | None:
    """`text` beside one of `places`, inside `frame`, away from the boxes `taken`; None if there is no room.

    Of those with room it is the one that covers the fewest `marks`, then points of `lines`; of equals, the first.
    """
    found = [label for at in places for label in _around(text, at, frame) if _has_room(label.box, taken, frame)]
    return min(found, key=lambda label: tuple(sum(map(label.box.holds, each)) for each in (marks, lines)), default=None)


def _around(text: str, at: Place, frame: Box) -> Iterator[Label]:
    """Right and left of `at`, and above and below it, where the text moves to the side to stay inside `frame`."""
    (x, y), half = at, TEXT_WIDTH * len(text) / 2
    yield Label(x + AWAY, y + DESCENT, "start", text)
    yield Label(x - AWAY, y + DESCENT, "end", text)
    middle = max(frame.left + half, min(x, frame.right - half))
    yield Label(middle, y - AWAY, "middle", text)
    yield Label(middle, y + AWAY + ASCENT, "middle", text)


def _has_room(box: Box, taken: Sequence[Box], frame: Box) -> bool:
    return box.is_inside(frame) and not any(map(box.touches, taken))


def along(places: Sequence[Place]) -> Iterator[Place]:
    """`places`, and points between them, `SPACING` apart at most."""
    yield from places[:1]
    for (x, y), (next_x, next_y) in pairwise(places):
        count = max(1, round(max(abs(next_x - x), abs(next_y - y)) / SPACING))
        for number in range(1, count + 1):
            yield x + (next_x - x) * number / count, y + (next_y - y) * number / count
