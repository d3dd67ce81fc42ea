"""An evaluation in three numbers, each with what it is compared with and what it does not say."""

from collections.abc import Sequence
from typing import NamedTuple

from eval.report import gains, tables
from eval.report.cautions import compared_text
from eval.report.tables import evaluations_text
from eval.results import FULL_NUM_SAMPLES, Report, Row

TIMES = "\N{MULTIPLICATION SIGN}"


class Number(NamedTuple):
    """A number as text, what it counts, what it is compared with, and its caveat."""

    value: str
    what: str
    beside: str
    caveat: str


def numbers(report: Report) -> list[Number]:
    """Evaluations, the headline and speed of the student's row with the fewest evaluations, or of the teacher's solver.

    Where the teacher's own steps are as good as the student's, the first says so and the last compares with them.
    """
    rows = [row for row in _candidates(report) if row.is_finite]
    if not rows:
        return []
    row = min(rows, key=lambda row: row.nfe)
    solver = next((other for other in report.rows_of("solver") if other != row), None)
    is_scored = bool(report.metrics) and report.value(row) is not None
    rival = gains.rival(report, row) if is_scored and row.group == "student" else None
    evaluations = _evaluations(report, row, solver) if rival is None else _no_gain(report, row, rival)
    distance = [_distance(report, row, solver)] if is_scored else []
    return [evaluations, *distance, _speed(report, row, rival or solver)]


def _candidates(report: Report) -> Sequence[Row]:
    return report.rows_of("student") or report.rows_of("solver") or report.rows


def said_of(report: Report, row: Row) -> str:
    """The evaluations and the headline of a row, in a few words."""
    if not report.metrics or report.value(row) is None:
        return evaluations_text(row.nfe)
    return f"{evaluations_text(row.nfe)}, {report.headline.heading} {tables.headline_text(report, row)}"


def ratio(larger: float, smaller: float) -> str:
    """How many times larger: two digits below ten, whole numbers above, and the sign."""
    value = larger / smaller
    return (f"{value:,.0f}" if value >= 10 else f"{value:.2g}") + TIMES


def _evaluations(report: Report, row: Row, solver: Row | None) -> Number:
    what = f"of the network for {'an image' if report.noun == 'images' else 'a sample'}"
    if solver is None or solver.nfe <= row.nfe:
        number, noun = evaluations_text(row.nfe).split(" ")
        return Number(number, f"{noun} {what}", "", "")
    beside = f"{evaluations_text(row.nfe)} {what}, instead of {solver.nfe:g} with {solver.sampler}."
    made = report.generation
    if made is not None and made.nfe < solver.nfe:
        beside += f" The trajectories took {made.nfe:.3g} each ({made.solver})."
    what = "fewer evaluations than the teacher's solver"
    return Number(ratio(solver.nfe, row.nfe), what, beside, _cheapest(report, row))


def _no_gain(report: Report, row: Row, rival: Row) -> Number:
    """The student's row beside what the teacher does as well."""
    ours, theirs = tables.headline_text(report, row), tables.headline_text(report, rival)
    is_tie = gains.is_as_good(report, row, rival)
    what = f"at {evaluations_text(row.nfe)}: the teacher's own steps are {'as good' if is_tie else 'better'}"
    beside = f"{report.headline.heading} {theirs} with {rival.sampler}. The student has {ours}."
    return Number("No gain", what, beside, _where_better(report))


def _where_better(report: Report) -> str:
    rows = [row for row in report.rows_of("student") if report.value(row) is not None]
    better = [row.nfe for row in rows if gains.rival(report, row) is None]
    if not better:
        return "The student is no better at any other number of evaluations." if len(rows) > 1 else ""
    return f"The student is better at {', '.join(f'{nfe:g}' for nfe in better)} evaluations."


def _cheapest(report: Report, row: Row) -> str:
    """What the student saves against the teacher's best few-step samplers."""
    few = report.rows_of("few-step")
    if not report.metrics or report.value(row) is None or not few:
        return "The teacher's few-step samplers were not measured beside it."
    name = report.headline.heading
    if (found := gains.cheapest_as_good(report, row)) is not None:
        return f"For as low a {name} the teacher's best few-step sampler ({found.sampler}) needs {found.nfe:g}."
    return f"No few-step sampler of the teacher reaches its {name} with up to {max(r.nfe for r in few):g}."


def _distance(report: Report, row: Row, solver: Row | None) -> Number:
    better = "lower" if report.headline.lower_is_better else "higher"
    what = f"{report.headline.heading} at {evaluations_text(row.nfe)} ({better} is better)"
    best = gains.best_within(report, row.nfe) if row.group == "student" else None
    beside = []
    if solver is not None and report.value(solver) is not None:
        beside.append(f"{tables.headline_text(report, solver)} with {solver.nfe:g}")
    if best is not None and best != solver:
        beside.append(f"{tables.headline_text(report, best)} with {best.nfe:g} ({best.sampler})")
    texts = [f"The teacher has {', and '.join(beside)}."] if beside else []
    text = " ".join([*texts, *gains.shortfalls(report, row)])
    return Number(tables.headline_text(report, row), what, text, _figure_caveat(report))


def _figure_caveat(report: Report) -> str:
    space = next((space for space in report.spaces if space.name == report.headline.space), None)
    if space is None:
        return f"From the same noise, {tables.RMSE_UNITS}. How good samples are by themselves was not measured."
    counted = f"Over {compared_text(report)}"
    if report.noun != "images":
        return f"{counted}.{_floor(report)}"
    if not tables.is_inception(report, space):
        return f"{counted}, by {space.title}: it is no FID.{_floor(report)}"
    published = f", where published figures take {FULL_NUM_SAMPLES:,}" if report.has_few_samples else ""
    return f"{counted}{published}.{_floor(report)}"


def _floor(report: Report) -> str:
    """What perfect samples have in the headline, where it was measured."""
    rows = tables.reference_rows(report)
    return f" The reference itself has {tables.headline_text(report, rows[0])} over as many." if rows else ""


def _speed_as_good(report: Report, row: Row, other: Row) -> str:
    """The speed beside that of the teacher's cheapest sampler that is as good, unless that is `other`."""
    found = gains.cheapest_as_good(report, row) if report.metrics and report.value(row) is not None else None
    if found is None or found == other:
        return ""
    theirs = found.images_per_second
    as_good = f"{tables.speed_text(theirs)} with {found.sampler}, which is as good"
    return f", and {ratio(row.images_per_second, theirs)} its {as_good}"


def _speed(report: Report, row: Row, other: Row | None) -> Number:
    speed = row.images_per_second
    beside = ""
    if other is not None:
        theirs = other.images_per_second
        beside = f"{ratio(speed, theirs)} the teacher's {tables.speed_text(theirs)} with {other.sampler}"
        beside += f"{_speed_as_good(report, row, other)}."
    return Number(
        tables.speed_text(speed),
        f"{report.noun} per second at {evaluations_text(row.nfe)}",
        beside,
        f"One process on {report.machine}; drawing alone, without features.",
    )
