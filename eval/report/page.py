"""A self-contained page for one evaluation, or for several side by side: no scripts, no external resources."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.report import charts, comparison, summary, tables, words
from eval.report.cautions import cautions
from eval.report.gains import gains
from eval.report.pictures import Pictures
from eval.report.prompts import prompt_table
from eval.report.tiles import CLASSES, EVERY, GRIDS, NEAREST, PATHS, STRIP, Tiles, tile
from eval.results import Grid, Report, Row, TrajectoryFit
from pipeline.common.image_grid import Images
from pipeline.common.progress import format_bytes

TEMPLATES = Path(__file__).with_name("templates")
STRIP_EVALUATIONS = (1, 2, 4)  # of the student's rows in the strip on top
MAX_PICTURE = 400_000  # bytes of a run's picture in a comparison
DEEPEST = 0.45  # the share of colour behind a heat map's largest value, on which text stays readable


@dataclass(frozen=True)
class HeatMap:
    """A grid's values as texts, each with the share of colour behind it, in [0, 1]."""

    title: str
    times: list[str]
    rows: list[tuple[str, list[tuple[str, float]]]]

    @staticmethod
    def of(title: str, grid: Grid) -> "HeatMap":
        """The rows and columns of `grid` that hold a value."""
        largest = max((value for row in grid.values for value in row if value is not None), default=0.0)
        times = [f"{time:.2g}" for time in grid.times]
        columns = [j for j in range(len(times)) if any(row[j] is not None for row in grid.values)]

        def cell(value: float | None) -> tuple[str, float]:
            return ("", 0.0) if value is None else (f"{value:.3f}", round(DEEPEST * value / (largest or 1), 3))

        rows = [
            (time, [cell(values[j]) for j in columns])
            for time, values in zip(times, grid.values, strict=True)
            if any(value is not None for value in values)
        ]
        return HeatMap(title, [times[j] for j in columns], rows)


def render(report: Report, pictures: Pictures | None = None) -> str:
    """The page of `report` with its `pictures`, in HTML."""
    pictures = pictures or Pictures()
    chosen = [row for row in report.rows if _is_chosen(row, report)]
    are_all_chosen = len(chosen) == len(report.rows)
    facts = {name: words.without_paths(text) for name, text in tables.facts(_without_folders(report)).items()}
    return _fill(
        "report.html",
        report=report,
        reference=tables.reference_text(report),
        numbers=summary.numbers(report),
        strip=_strip(report, pictures),
        every=_every(report, pictures.samples),
        sentences=gains(report),
        cautions=cautions(report),
        legend=tables.legend(report, tables.columns(report)),
        columns=tables.columns(report),
        chosen=tables.student_first(tables.grouped([*chosen, *tables.reference_rows(report)])),
        others=[] if are_all_chosen else tables.grouped(report.rows_of("few-step")),
        prompts=prompt_table(report, pictures.samples),
        charts=[chart for chart in (charts.headline_chart(report), charts.speed_chart(report)) if chart is not None],
        history=charts.history_chart(report),
        grids=_grids(report, pictures.samples),
        classes={title: tile(rows, CLASSES.shared(len(pictures.classes))) for title, rows in pictures.classes.items()},
        nearest=pictures.nearest,
        neighbours=_neighbours(pictures),
        paths=_paths(pictures.paths),
        heats=_heat_maps(report.trajectories) if report.trajectories else [],
        velocity=charts.velocity_chart(report),
        curves=charts.training_charts(report),
        facts=facts,
        command=words.command_without_paths(report.command),
        configuration=yaml.safe_dump(
            words.config_without_paths(report.training.config), sort_keys=False, allow_unicode=True
        ),
    )


def _without_folders(report: Report) -> Report:
    """`report` with the last part of the locations in it."""
    reference = report.reference.model_copy(update={"source": words.last_part(report.reference.source)})
    teacher = report.training.teacher and words.last_part(report.training.teacher)
    training = report.training.model_copy(update={"teacher": teacher})
    checkpoint = words.last_part(report.checkpoint)
    return report.model_copy(update={"reference": reference, "training": training, "checkpoint": checkpoint})


def _strip(report: Report, pictures: Pictures) -> Tiles | None:
    """The `strip_rows`, from the same noise, and before them the reference where it is one picture."""
    chosen = strip_rows(report, pictures.samples)
    rows = {row.title: pictures.samples[row.title] for row in chosen}
    if rows and pictures.reference is not None:
        rows = {"reference": pictures.reference, **rows}
    return tile(rows, STRIP, {row.title: summary.said_of(report, row) for row in chosen})


def strip_rows(report: Report, samples: Mapping[str, Images]) -> list[Row]:
    """The rows in `samples` that say most: the teacher, its Euler, and the student in a few evaluations."""
    student = [row for row in report.rows_of("student") if row.title in samples]
    few = [row for row in student if row.nfe in STRIP_EVALUATIONS] or student[:3]
    teacher = [row for row in report.rows_of("solver") if row.title in samples]
    return [*teacher, *_euler(report, samples, few), *few]


def _euler(report: Report, samples: Mapping[str, Images], student: Sequence[Row]) -> list[Row]:
    """The teacher's Euler sampler with the fewest evaluations of the student's, else its best one with so few."""
    fewest = min((row.nfe for row in student), default=1)
    few = [row for row in report.rows_of("few-step") if row.nfe == fewest and row.title in samples]
    euler = [row for row in few if row.sampler == f"euler {fewest:g}"]
    return (euler or [row for row in few if row.best])[:1]


def _every(report: Report, samples: Mapping[str, Images]) -> Tiles | None:
    """Every row from the same noise; None where the strip has them all."""
    rows = {row.title: samples[row.title] for row in report.rows if row.title in samples}
    return tile(rows, EVERY) if 0 < len(strip_rows(report, samples)) < len(rows) else None


def _grids(report: Report, samples: Mapping[str, Images]) -> list[Tiles]:
    """A grid of samples for each of the student's rows and the teacher's own solver; none of single pictures."""
    rows = [row for row in report.rows_of("student") + report.rows_of("solver") if len(samples.get(row.title, ())) > 1]
    style = GRIDS.shared(len(rows))
    grids = [tile({row.title: samples[row.title]}, style, {row.title: summary.said_of(report, row)}) for row in rows]
    return [grid for grid in grids if grid is not None]


def _paths(paths: Mapping[str, Images]) -> Tiles | None:
    """The paths from as many noises as the budget has room for with all of their states; from one in any case."""
    named = list(paths.items())
    for count in range(len(named), 2, -2):  # of the teacher and of the student
        tiles = tile(dict(named[:count]), PATHS)
        if tiles is not None and len(tiles.rows[0].images) == len(named[0][1]):
            return tiles
    return tile(dict(named[:2]), replace(PATHS, budget=2 * PATHS.budget))


def _neighbours(pictures: Pictures) -> Tiles | None:
    """A row for each sample: itself, and its neighbours."""
    if pictures.nearest is None:
        return None
    pairs = zip(pictures.nearest.samples, pictures.nearest.neighbours, strict=True)
    rows = {f"Sample {number}": np.stack([sample, *others]) for number, (sample, others) in enumerate(pairs, 1)}
    return tile(rows, NEAREST)


def _is_chosen(row: Row, report: Report) -> bool:
    """Whether the row is in the first table, which has only the best of the teacher's few-step samplers."""
    few = report.rows_of("few-step")
    return row.group != "few-step" or row.best or not any(other.best for other in few)


def _heat_maps(trajectories: TrajectoryFit) -> list[HeatMap]:
    return [
        HeatMap.of("Error of the state: G(x_t, t, s) to the stored x_s", trajectories.state_rmse),
        HeatMap.of("Consistency: G(x_t, t, 0) to G(G(x_t, t, s), s, 0)", trajectories.consistency_gap),
    ]


def render_comparison(runs: Sequence[tuple[str, Report, bytes | None]]) -> str:
    """The page that compares several runs, in HTML. Each has a name, a report, and the PNG of its grid or None."""
    named = [(name, report) for name, report, _ in runs]
    headings, rows = comparison.table(named)
    return _fill(
        "compare.html",
        cautions=comparison.cautions(named),
        headings=headings,
        runs=rows,
        chart=charts.comparison_chart(named),
        differences=comparison.differences(named),
        grids=[(name, _png(png)) for name, _, png in runs if png is not None],
    )


def _fill(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["bytes"] = format_bytes
    environment.filters["named"] = words.without_paths
    return environment


def _png(png: bytes) -> str | None:
    """The picture as text; None where it would make the page too large to forward."""
    return base64.b64encode(png).decode() if len(png) <= MAX_PICTURE else None
