"""A self-contained page for one evaluation, or for several side by side: no scripts, no external resources."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.report import chart, comparison, tables
from eval.report.prompts import prompt_table
from eval.results import Grid, Report, Row, TrajectoryFit, gains
from pipeline.common.image_grid import Images, encode_rows
from pipeline.common.progress import format_bytes

TEMPLATES = Path(__file__).with_name("templates")
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


def render(report: Report, pictures: Mapping[str, Images], strips: Mapping[str, Images] | None = None) -> str:
    """The page of `report`, in HTML.

    `pictures` holds images uint8 [n, C, H, W] by `Row.title`, from the same noise in every row; `strips` holds states
    uint8 [T, C, H, W] from noise to image, by title.
    """
    chosen = [row for row in report.rows if _is_chosen(row, report)]
    grid = {row.title: pictures[row.title] for row in chosen if row.title in pictures}
    are_all_chosen = len(chosen) == len(report.rows)
    return _fill(
        "report.html",
        report=report,
        reference=tables.reference_text(report),
        sentences=gains(report),
        cautions=tables.cautions(report),
        legend=tables.legend(report),
        columns=tables.columns(report),
        chosen=tables.grouped(chosen),
        others=[] if are_all_chosen else tables.grouped(report.rows_of("few-step")),
        chart=chart.headline_chart(report),
        prompts=prompt_table(report, pictures),
        grid=_png(grid),
        grid_all=None if are_all_chosen else _png(pictures),
        strips=_png(strips or {}),
        heats=_heat_maps(report.trajectories) if report.trajectories else [],
        velocity=chart.velocity_chart(report),
        curves=chart.training_charts(report),
        facts=tables.facts(report),
        configuration=yaml.safe_dump(report.training.config, sort_keys=False, allow_unicode=True),
    )


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
        chart=chart.comparison_chart(named),
        differences=comparison.differences(named),
        grids=[(name, base64.b64encode(png).decode()) for name, _, png in runs if png is not None],
    )


def _fill(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["bytes"] = format_bytes
    return environment


def _png(rows: Mapping[str, Images]) -> str | None:
    """The picture of `rows` as text, None of no rows."""
    return base64.b64encode(encode_rows(rows)).decode() if rows else None
