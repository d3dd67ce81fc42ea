"""What an evaluation leaves behind: metrics.json, a table, pictures, and one page that needs nothing else."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.pictures import draw_rows
from pipeline.store import write_atomic

TEMPLATES = Path(__file__).with_name("templates")
TINY = 1e-9  # keeps the logarithm of a distance of zero on the page
GRID_STEPS = ("1 step", "2 steps", "4 steps")  # of the student, in the picture beside the teacher


@dataclass(frozen=True)
class Row:
    """One sampler's figures; `teacher_rmse` is to the teacher's own solution from the same noise, in [-1, 1] units."""

    model: str
    sampler: str
    nfe: float
    frechet_distance: float
    precision: float
    recall: float
    teacher_rmse: float
    images_per_second: float


@dataclass(frozen=True)
class Curve:
    """A line of the chart: its points in pixels and what stands beside each."""

    name: str
    points: list[tuple[float, float, str]]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True)
class Chart:
    """Fréchet distance against evaluations, both logarithmic."""

    width: int
    height: int
    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    @staticmethod
    def of(rows: Sequence[Row], width: int = 640, height: int = 320, margin: int = 48) -> "Chart":
        """The chart of `rows`; the teacher's first row, its own solver, is a curve of one point."""
        x = _log_scale([row.nfe for row in rows], margin, width - margin)
        y = _log_scale([row.frechet_distance for row in rows], height - margin, margin / 2)

        def curve(name: str, rows: Sequence[Row]) -> Curve:
            points = [(x(r.nfe), y(r.frechet_distance), f"{r.frechet_distance:.2f} at {r.nfe:g}") for r in rows]
            return Curve(name, points)

        exact, *teacher = (row for row in rows if row.model == "teacher")
        student = [row for row in rows if row.model == "student"]
        curves = [
            curve(f"teacher, {exact.sampler}", [exact]),
            curve("teacher, euler", teacher),
            curve("student", student),
        ]
        x_ticks = [(x(row.nfe), f"{row.nfe:g}") for row in {row.nfe: row for row in rows}.values()]
        values = [max(row.frechet_distance, TINY) for row in rows]
        decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        y_ticks = [(y(10.0**d), f"{10.0**d:g}") for d in decades if 0 <= y(10.0**d) <= height - margin / 2]
        return Chart(width, height, [c for c in curves if c.points], x_ticks, y_ticks)


def _log_scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(max(min(values), TINY)), math.log(max(*values, TINY))
    return lambda value: start + (end - start) * (math.log(max(value, TINY)) - low) / max(high - low, TINY)


@dataclass(frozen=True)
class Report:
    """Everything the page shows."""

    rows: list[Row]
    feature_space: str
    reference: str
    num_samples: int
    cost: dict[str, dict[str, int]]
    checkpoint: str
    training: dict[str, Any]
    machine: str
    date: str
    pictures: Mapping[str, NDArray[np.uint8]] = field(repr=False)  # by title, uint8 [n, C, H, W]

    @property
    def title(self) -> str:
        """What was evaluated, in a line."""
        recipe, teacher = self.training["recipe"], self.training["teacher"]
        return f"A student of “{teacher}”, recipe “{recipe}”" if teacher else f"A teacher, recipe “{recipe}”"

    def write(self, folder: Path) -> None:
        """Write metrics.json, grid.png (teacher, student at 1, 2, 4), grid-all.png and report.html into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        grid_all = _png(self.pictures)
        write_atomic(folder / "grid.png", _png({t: self.pictures[t] for t in self.pictures if self._in_grid(t)}))
        write_atomic(folder / "grid-all.png", grid_all)
        write_atomic(folder / "metrics.json", json.dumps(self.as_json(), indent=1).encode())
        write_atomic(folder / "report.html", self.html(grid_all).encode())

    def _in_grid(self, title: str) -> bool:
        first = next(iter(self.pictures))  # the teacher by its own solver
        return title == first or title in {f"student, {steps}" for steps in GRID_STEPS}

    def as_json(self) -> dict[str, Any]:
        """The content of metrics.json."""
        names = ("feature_space", "reference", "num_samples", "cost", "checkpoint", "training", "machine", "date")
        return {"rows": [asdict(row) for row in self.rows], **{name: getattr(self, name) for name in names}}

    def table(self) -> Table:
        """For the terminal."""
        table = Table(
            box=SIMPLE_HEAD,
            title=f"{self.num_samples} samples a row against {self.reference}",
            caption=f"Fréchet: Fréchet distance over {self.feature_space} (not Inception's: this is no FID). "
            "RMSE: to the teacher's own solution from the same noise.\n" + self._cost_line(),
            title_justify="left",
            caption_justify="left",
        )
        for column in ("", "sampler"):
            table.add_column(column, no_wrap=True)
        for column in ("evals", "Fréchet", "precision", "recall", "RMSE", "images/s"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*cells(row), style="bold" if row.model == "student" else "")
        return table

    def _cost_line(self) -> str:
        networks = [
            f"{name} {cost['parameters']:,} parameters, {cost['flops']:,} FLOPs, {cost['macs']:,} MACs"
            for name, cost in self.cost.items()
        ]
        return "One evaluation: " + "; ".join(networks)

    def html(self, grid: bytes) -> str:
        """The self-contained page."""
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
        return environment.get_template("report.html").render(
            report=self,
            rows=[(row, cells(row)) for row in self.rows],
            chart=Chart.of(self.rows),
            grid=base64.b64encode(grid).decode(),
        )


def cells(row: Row) -> list[str]:
    """A row of the table as texts."""
    return [
        row.model,
        row.sampler,
        f"{row.nfe:g}",
        f"{row.frechet_distance:.2f}",
        f"{row.precision:.3f}",
        f"{row.recall:.3f}",
        f"{row.teacher_rmse:.4f}",
        f"{row.images_per_second:.0f}",
    ]


def _png(rows: Mapping[str, NDArray[np.uint8]]) -> bytes:
    buffer = BytesIO()
    draw_rows(rows).save(buffer, format="png")
    return buffer.getvalue()
