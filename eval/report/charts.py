"""The charts of a report: its headline against evaluations, speed and training, and the curves of the training."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from eval.report.chart import Chart, Curve, Point
from eval.report.words import SCALES, curve_title, loss_names
from eval.results import Figure, Line, Report, Row, ScoredCheckpoint

NUM_STYLES = 6  # of runs, in the style sheet


class Axis(NamedTuple):
    """What a row has on the horizontal axis, and what is written beside the student's points."""

    of: Callable[[Row], float]
    note: Callable[[Row], str] = lambda _: ""


EVALUATIONS = Axis(lambda row: row.nfe)
SPEED = Axis(lambda row: row.images_per_second, lambda row: f"{row.nfe:g}")


def headline_chart(report: Report) -> Chart | None:
    """The headline against evaluations: the teacher's solver, its best few-step samplers, Euler, and the student."""
    return _against_evaluations(report, _curves(report, EVALUATIONS)) if report.metrics else None


def speed_chart(report: Report) -> Chart | None:
    """The headline against samples per second, of the same rows; the student's points have their evaluations."""
    if not report.metrics:
        return None
    curves = tuple(_curves(report, SPEED))
    if not curves:
        return None
    name = f"{report.noun} per second"
    towards = "down" if report.headline.lower_is_better else "up"
    return Chart(f"{report.headline.heading} against {name} ({towards} and right is better)", name, curves, True, True)


def _curves(report: Report, x: Axis) -> list[Curve]:
    few = report.rows_of("few-step")
    best, euler = [row for row in few if row.best], [row for row in few if row.sampler == f"euler {row.nfe:g}"]
    solver = report.rows_of("solver")
    curves = [
        *(_curve(report, row.title, "solver", [row], x, is_level=True) for row in solver),
        _curve(report, "teacher, Euler", "euler", euler, x),
        _curve(report, "teacher, best few-step", "best", best if best != euler else [], x),
        _curve(report, "student", "student", report.rows_of("student"), x),
    ]
    shown = [curve for curve in curves if curve.points]
    return [*shown, *_reference_level(report, shown)]


def _reference_level(report: Report, curves: Sequence[Curve]) -> list[Curve]:
    """A line at what the reference has by itself, from the leftmost point of `curves`."""
    figure = report.reference_scores.get(report.headline.key)
    if figure is None or figure.mean <= 0 or not curves:
        return []
    left = min(point.x for curve in curves for point in curve.points)
    return [Curve("the reference itself", "reference", (Point(left, figure.mean),), is_level=True)]


def comparison_chart(runs: Sequence[tuple[str, Report]]) -> Chart | None:
    """The headline of the first run against evaluations, a curve for each student that has it."""
    report = runs[0][1]
    if not report.metrics:
        return None
    curves = [
        _curve(
            other, name, f"run-{number % NUM_STYLES}", other.rows_of("student"), EVALUATIONS, key=report.headline.key
        )
        for number, (name, other) in enumerate(runs)
    ]
    return _against_evaluations(report, [curve for curve in curves if curve.points])


def history_chart(report: Report) -> Chart | None:
    """The headline against steps of training, a curve for each of the student's rows; None of one checkpoint."""
    if not report.metrics or not report.other_checkpoints:
        return None
    own = ScoredCheckpoint(step=report.training.step, rows=tuple(report.rows_of("student")))
    scored = sorted((own, *report.other_checkpoints), key=lambda each: each.step)
    curves = [
        Curve(row.sampler, f"run-{number % NUM_STYLES}", _by_step(report, row.sampler, scored))
        for number, row in enumerate(own.rows)
    ]
    end = Axis(lambda _: own.step)
    curves += [_curve(report, row.title, "solver", [row], end, is_level=True) for row in report.rows_of("solver")]
    shown = tuple(curve for curve in curves if curve.points)
    title = f"{report.headline.heading} against steps of training ({_better(report)} is better)"
    return Chart(title, "steps of training", shown, y_logarithmic=True) if shown else None


def _by_step(report: Report, sampler: str, scored: Sequence[ScoredCheckpoint]) -> tuple[Point, ...]:
    figures = [
        (each.step, row.scores.get(report.headline.key))
        for each in scored
        for row in each.rows
        if row.sampler == sampler
    ]
    return tuple(_point(step, figure) for step, figure in figures if figure is not None and math.isfinite(figure.mean))


def _against_evaluations(report: Report, curves: Sequence[Curve]) -> Chart | None:
    if not curves:
        return None
    return Chart(
        title=f"{report.headline.heading} against evaluations of the network ({_better(report)} is better)",
        x_name="evaluations of the network",
        curves=tuple(curves),
        x_logarithmic=True,
        y_logarithmic=True,
        x_values=tuple(point.x for curve in curves for point in curve.points),
    )


def _better(report: Report) -> str:
    return "lower" if report.headline.lower_is_better else "higher"


def _curve(
    report: Report,
    name: str,
    style: str,
    rows: Sequence[Row],
    x: Axis,
    key: str = "",
    is_level: bool = False,
) -> Curve:
    note = x.note if style == "student" else EVALUATIONS.note
    ordered = sorted(rows, key=lambda row: row.nfe)
    figures = [(row, row.scores.get(key or report.headline.key)) for row in ordered]
    points = [_point(x.of(row), figure, note(row)) for row, figure in figures if figure is not None]
    return Curve(name, style, tuple(point for point in points if math.isfinite(point.y)), is_level)


def _point(x: float, figure: Figure, note: str = "") -> Point:
    return Point(x, figure.mean, figure.spread or 0.0, note)


def training_charts(report: Report) -> list[Chart]:
    """A chart for each curve of the training; losses are on a logarithmic axis."""
    losses = loss_names(report.training.config)
    charts = [
        _line_chart(
            line,
            curve_title(line.name, losses),
            "steps of training",
            "student",
            y_logarithmic=line.name not in SCALES,
            scale=SCALES.get(line.name, 1.0),
        )
        for line in report.curves
    ]
    return [chart for chart in charts if chart is not None]


def velocity_chart(report: Report) -> Chart | None:
    """The error of the student's velocity over time."""
    line = report.trajectories.velocity_rmse if report.trajectories else None
    return _line_chart(line, "RMS error of the velocity", "time t (1 is noise)", "student") if line else None


def _line_chart(
    line: Line, title: str, x_name: str, style: str, y_logarithmic: bool = False, scale: float = 1.0
) -> Chart | None:
    pairs = [Point(x, scale * y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    return (
        Chart(title, x_name, (Curve(line.name, style, tuple(pairs)),), y_logarithmic=y_logarithmic) if pairs else None
    )
