"""Charts as geometry: curves between axes, with ticks that do not touch. `templates/chart.html` draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eval.report.chart_labels import TEXT_WIDTH, Box, Label, Place, along, put_label

# Pixels.
TOP, BOTTOM, RIGHT, GAP = 12, 42, 16, 8
ROW = 26  # between ticks of the vertical axis
COLUMN = 70  # between those of the horizontal one
MAX_MARKS = 24  # a curve of more points is a line alone
MAX_SPAN = 1e6  # of a logarithmic axis; what lies deeper stands on its floor
ROOM_BELOW = 0.12  # of a logarithmic axis' length, for a name below the lowest point
TINY = 1e-100  # what is smaller is zero, and its logarithm of no interest


class Point(NamedTuple):
    """A value at a place, the standard deviation of the value where it is known, and what is written beside it."""

    x: float
    y: float
    spread: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Points from left to right. `style` is a class of the style sheet; a level is a line across as well."""

    name: str
    style: str
    points: tuple[Point, ...]
    is_level: bool = False


@dataclass(frozen=True)
class Mark:
    """A point in pixels, the ends of its error bar, what it says, and whether its value lies below the axis."""

    x: float
    y: float
    top: float
    bottom: float
    text: str
    is_below: bool


@dataclass(frozen=True)
class Drawn:
    """A curve in pixels: its path, and its marks where they are few."""

    name: str
    style: str
    path: str
    marks: list[Mark]
    level: float | None
    label: Label | None


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels; ticks are places and texts, and notes stand beside points."""

    width: int
    height: int
    left: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Drawn]
    notes: list[Label]

    @property
    def is_labelled(self) -> bool:
        """Whether every curve has its name beside it; else the chart needs a legend."""
        return all(curve.label is not None for curve in self.curves)

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` to shares of an axis."""

    low: float
    high: float
    logarithmic: bool

    @staticmethod
    def of(values: Sequence[float], logarithmic: bool, from_zero: bool = False) -> "Scale":
        """The scale that shows `values`; those that a logarithmic axis has no place for stand on its floor."""
        if not logarithmic:
            low, high = min([0.0, *values]) if from_zero else min(values), max(values)
            size = max(abs(low), abs(high))
            if high - low > max(size * 1e-9, TINY):
                return Scale(low, high, False)
            return Scale(low - max(size, 1) / 2, high + max(size, 1) / 2, False)
        high = max(values) if max(values) > TINY else 1.0
        shown = [value for value in values if value >= high / MAX_SPAN]
        low = min(shown, default=high)
        if low == high:
            low, high = low / 2, high * 2
        room_below = 3 if len(shown) < len(values) else max(1.15, (high / low) ** ROOM_BELOW)
        return Scale(low / room_below, high * 1.15, True)

    def share(self, value: float) -> float:
        """From 0 at `low` to 1 at `high`; what lies outside stands at the end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values."""
        return _log_ticks(self.low, self.high, most) if self.logarithmic else _even_ticks(self.low, self.high, most)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    least = (high - low) / max(most, 1)
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**decade for decade in decades for m in multiples if low <= m * 10.0**decade <= high]
        if len(found) <= most:
            break
    if len(found) < 2:  # much less than a decade
        return _even_ticks(low, high, most)
    return found[:: math.ceil(len(found) / max(most, 1))]


def tick_text(value: float) -> str:
    """ "0.05", "120.9", "800k", "3·10⁻⁵"."""
    size = abs(value)
    if size < TINY:
        return "0"
    if not 1e-3 <= size < 1e9:
        exponent = math.floor(math.log10(size) + 1e-9)
        factor = f"{value / 10.0**exponent:.3g}"
        power = f"10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
        return power if factor == "1" else f"{factor}·{power}"
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= max(unit, 1e4):
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Chart:
    """Curves over two axes. `x_values` are the places of the horizontal ticks, by default round ones."""

    title: str
    x_name: str
    curves: tuple[Curve, ...]
    x_logarithmic: bool = False
    y_logarithmic: bool = False
    x_values: tuple[float, ...] = ()

    def draw(self, width: int, height: int) -> Drawing:
        """The chart in a box of pixels."""
        return _Frame.of(self, width, height).draw(self)


@dataclass(frozen=True)
class _Frame:
    """The two scales of a chart, and where they lie."""

    width: int
    height: int
    left: float
    x: Scale
    y: Scale

    @staticmethod
    def of(chart: Chart, width: int, height: int) -> "_Frame":
        points = [point for curve in chart.curves for point in curve.points]
        tops = [point.y + point.spread for point in points]
        bottoms = [point.y - point.spread if point.y > point.spread else point.y for point in points]
        x = Scale.of([point.x for point in points], chart.x_logarithmic)
        y = Scale.of([*tops, *bottoms], chart.y_logarithmic, from_zero=True)
        longest = max((len(tick_text(value)) for value in y.ticks(_num_rows(height))), default=0)
        return _Frame(width, height, GAP + TEXT_WIDTH * longest + GAP, x, y)

    def draw(self, chart: Chart) -> Drawing:
        x_values = sorted(set(chart.x_values)) or self.x.ticks(round(self.width - RIGHT - self.left) // COLUMN)
        notes = self.notes(chart.curves)
        return Drawing(
            self.width,
            self.height,
            self.left,
            _spaced([(self.across(value), tick_text(value)) for value in x_values]),
            [(self.down(value), tick_text(value)) for value in self.y.ticks(_num_rows(self.height))],
            [self.drawn(curve, label) for curve, label in zip(chart.curves, self.labels(chart, notes), strict=True)],
            notes,
        )

    @property
    def box(self) -> Box:
        """Where texts may stand."""
        return Box(self.left, 0, self.width, self.height - BOTTOM - 2)

    def notes(self, curves: Sequence[Curve]) -> list[Label]:
        """The notes of all points, but for those without room."""
        notes: list[Label] = []
        marks, lines = self.marks(curves), self.lines(curves)
        for point in (point for curve in curves for point in curve.points if point.note):
            label = put_label(point.note, [self.at(point)], [note.box for note in notes], marks, lines, self.box)
            notes += [] if label is None else [label]
        return notes

    def labels(self, chart: Chart, notes: Sequence[Label]) -> list[Label | None]:
        """The names of the curves; those of few points, which have the least choice, take their places first."""
        marks, lines = self.marks(chart.curves), self.lines(chart.curves)
        taken = [note.box for note in notes]
        labels: dict[int, Label | None] = {}
        for number, curve in sorted(enumerate(chart.curves), key=lambda pair: (len(pair[1].points), -pair[0])):
            # The ends first: there is often room beside them.
            points = [curve.points[-1], *curve.points[:-1]][: MAX_MARKS + 1]
            label = put_label(curve.name, map(self.at, points), taken, marks, lines, self.box)
            labels[number] = label
            taken += [] if label is None else [label.box]
        return [labels[number] for number in range(len(chart.curves))]

    def marks(self, curves: Sequence[Curve]) -> list[Place]:
        return [self.at(point) for curve in curves for point in curve.points]

    def lines(self, curves: Sequence[Curve]) -> list[Place]:
        """Points all along the curves, their error bars and levels."""
        places: list[Place] = []
        for curve in curves:
            ends = [self.at(point) for point in curve.points]
            places += along(ends)
            for point in curve.points:
                places += along([self.at(Point(point.x, y)) for y in (point.y - point.spread, point.y + point.spread)])
            if curve.is_level:
                places += along([(self.left, ends[-1][1]), (self.width - RIGHT, ends[-1][1])])
        return places

    def at(self, point: Point) -> Place:
        return self.across(point.x), self.down(point.y)

    def across(self, value: float) -> float:
        return self.left + (self.width - RIGHT - self.left) * self.x.share(value)

    def down(self, value: float) -> float:
        bottom = self.height - BOTTOM
        return bottom - (bottom - TOP) * self.y.share(value)

    def drawn(self, curve: Curve, label: Label | None) -> Drawn:
        marks = [self.mark(curve.name, point) for point in curve.points]
        path = " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in marks)
        level = marks[-1].y if curve.is_level else None
        return Drawn(curve.name, curve.style, path, marks if len(marks) <= MAX_MARKS else [], level, label)

    def mark(self, name: str, point: Point) -> Mark:
        return Mark(
            self.across(point.x),
            self.down(point.y),
            top=self.down(point.y + point.spread),
            bottom=self.down(point.y - point.spread),
            text=f"{name}: {_value_text(point)} at {tick_text(point.x)}",
            is_below=point.y < self.y.low,
        )


def _num_rows(height: int) -> int:
    return (height - TOP - BOTTOM) // ROW


def _value_text(point: Point) -> str:
    value = tick_text(float(f"{point.y:.3g}"))
    return f"{value} ± {tick_text(float(f'{point.spread:.2g}'))}" if point.spread else value


def _spaced(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of `ticks`, from the left, whose texts leave room between them."""
    kept: list[tuple[float, str]] = []
    for place, text in ticks:
        room = TEXT_WIDTH * (len(text) + len(kept[-1][1])) / 2 + GAP if kept else 0
        if not kept or place - kept[-1][0] >= room:
            kept.append((place, text))
    return kept
