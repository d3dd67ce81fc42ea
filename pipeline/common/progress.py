"""Console output while a stage works: lines, and one progress bar with the figures of that stage."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from pipeline.common.errors import for_terminal
from pipeline.common.repeat import repeated

LINE_SECONDS = 60.0  # between two lines of a bar that no terminal shows
PACE_UPDATES = 1000  # the last updates, whose rate gives the time that is left


class _SafeConsole(Console):
    """A console that shows text as `for_terminal` makes it; names of others contain markup, emoji codes and escapes."""

    def render_str(self, text: str, **options: Any) -> Text:  # before widths are measured
        return super().render_str(for_terminal(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else for_terminal(text), style, control)


# A pipe has no width; rich's default of 80 would cut the figures.
console = _SafeConsole(highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 120)


def say(message: str) -> None:
    """Print a line; it is never cut to the width of the terminal."""
    console.print(for_terminal(message), soft_wrap=True)


class Advance(Protocol):
    """Advances the bar by `amount` and shows `status` beside it.

    What was `skipped`, because an earlier run had done it, says nothing of the time that is left.
    """

    def __call__(self, amount: float, status: str = "", *, skipped: bool = False) -> None: ...


def weighted(advance: Advance, weight: float) -> Advance:
    """`advance` by `weight` for each unit of work."""

    def advance_weighted(amount: float, status: str = "", *, skipped: bool = False) -> None:
        advance(weight * amount, status, skipped=skipped)

    return advance_weighted


class Pace:
    """How fast the work goes, from `done` to `total`: its rate is that of the last updates."""

    def __init__(self, total: float, done: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._started = clock()
        self._updates = deque([(self._started, done)], maxlen=PACE_UPDATES)

    def advance(self, amount: float, skipped: bool = False) -> None:
        """Count `amount` of work; what was `skipped` took no time."""
        self.done += amount
        if skipped:
            self._updates = deque(((at, done + amount) for at, done in self._updates), maxlen=PACE_UPDATES)
        else:
            self._updates.append((self._clock(), self.done))

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Work per second; 0 before the first update."""
        (first_at, first), (last_at, last) = self._updates[0], self._updates[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None before the first update. It falls between two updates, too."""
        if not self.rate:
            return None
        since = self._clock() - self._updates[-1][0]
        return max(0.0, (self.total - self.done) / self.rate - since)

    def __str__(self) -> str:
        """ "3:10 elapsed, 12:40 left"."""
        left = self.seconds_left
        return f"{format_clock(self.elapsed)} elapsed, {'?' if left is None else format_clock(left)} left"


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A progress bar from `done` to `total`; where no terminal shows it, a line a minute and one at the end."""
    pace = Pace(total, done)
    with (_drawn if console.is_terminal else _told)(title, pace) as advance:
        yield advance


@contextmanager
def _drawn(title: str, pace: Pace) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=10),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _PaceColumn(pace),
        # On a narrow terminal the figures are cut, not the bar.
        TextColumn(
            "{task.fields[status]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(title, total=pace.total, completed=int(pace.done), status="")

        def advance(amount: float, status: str = "", *, skipped: bool = False) -> None:
            pace.advance(amount, skipped)
            progress.update(task, completed=int(pace.done))
            if status:
                progress.update(task, status=status)

        yield advance


@contextmanager
def _told(title: str, pace: Pace) -> Iterator[Advance]:
    shown = ""

    def advance(amount: float, status: str = "", *, skipped: bool = False) -> None:
        nonlocal shown
        shown = status or shown
        pace.advance(amount, skipped)

    def tell() -> None:
        say(f"{title}: {pace.done:.0f}/{pace.total:.0f}, {pace}" + (f"; {shown}" if shown else ""))

    try:
        with repeated(tell, LINE_SECONDS, "progress"):
            yield advance
    finally:
        tell()


class _PaceColumn(ProgressColumn):
    def __init__(self, pace: Pace) -> None:
        super().__init__(Column(no_wrap=True))
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(str(self._pace))


def format_clock(seconds: float) -> str:
    """ "0:07", "12:40" or "3:05:00"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def format_bytes(count: float) -> str:
    """ "58.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_seconds(seconds: float) -> str:
    """ "43 s", "12.5 min" or "31.0 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
