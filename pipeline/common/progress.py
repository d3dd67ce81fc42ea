"""Console output while a stage works: lines, and one progress bar with the figures of that stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

# A pipe has no width; rich's default of 80 would cut the figures.
console = Console(highlight=False, width=None if Console().is_terminal else 120)


def say(message: str) -> None:
    """Print a line; it is never cut to the width of the terminal."""
    console.print(message, markup=False, soft_wrap=True)


class Advance(Protocol):
    """Advances the bar by `amount` and shows `status` beside it."""

    def __call__(self, amount: int, status: str = "") -> None: ...


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A progress bar from `done` to `total`; on a pipe only its last state is printed."""
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        # On a narrow terminal the figures are cut, not the bar.
        TextColumn("{task.fields[status]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done, status="")

        def advance(amount: int, status: str = "") -> None:
            progress.update(task, advance=amount, status=status)

        yield advance


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
