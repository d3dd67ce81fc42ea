"""An evaluation in three numbers, each with what it is compared with and what it does not say."""

from typing import NamedTuple

from eval.report import tables
from eval.results import FULL_NUM_SAMPLES, Report, Row, cheapest_as_good
from pipeline.common.plural import counted

TIMES = "\N{MULTIPLICATION SIGN}"


class Number(NamedTuple):
    """A number as text, what it counts, what it is compared with, and its caveat."""

    value: str
    what: str
    beside: str
    caveat: str


def numbers(report: Report) -> list[Number]:
    """Evaluations, the headline and speed of the row with the fewest evaluations: a student's, else the teacher's."""
    rows = [row for row in report.rows_of("student") or report.rows if row.is_finite]
    if not rows:
        return []
    row = min(rows, key=lambda row: row.nfe)
    solver = next((other for other in report.rows_of("solver") if other != row), None)
    distance = [_distance(report, row, solver)] if report.metrics and report.value(row) is not None else []
    return [_evaluations(report, row, solver), *distance, _speed(report, row, solver)]


def said_of(report: Report, row: Row) -> str:
    """The evaluations and the headline of a row, in a few words."""
    if not report.metrics or report.value(row) is None:
        return count(row.nfe)
    return f"{count(row.nfe)}, {report.headline.heading} {tables.headline_text(report, row)}"


def count(nfe: float) -> str:
    """ "1 evaluation", "120.9 evaluations"."""
    return counted(nfe, "evaluation")


def ratio(larger: float, smaller: float) -> str:
    """How many times larger: two digits below ten, whole numbers above, and the sign."""
    value = larger / smaller
    return (f"{value:,.0f}" if value >= 10 else f"{value:.2g}") + TIMES


def _evaluations(report: Report, row: Row, solver: Row | None) -> Number:
    what = f"of the network for {'an image' if report.noun == 'images' else 'a sample'}"
    if solver is None:
        number, noun = count(row.nfe).split(" ")
        return Number(number, f"{noun} {what}", "", "")
    beside = f"{count(row.nfe)} {what}, instead of {solver.nfe:g} with {solver.sampler}."
    what = "fewer evaluations than the teacher's solver"
    return Number(ratio(solver.nfe, row.nfe), what, beside, _cheapest(report, row))


def _cheapest(report: Report, row: Row) -> str:
    """What the student saves against the teacher's best few-step samplers."""
    few = report.rows_of("few-step")
    value = report.value(row) if report.metrics else None
    if value is None or not few:
        return "The teacher's few-step samplers were not measured beside it."
    name = report.headline.heading
    if (found := cheapest_as_good(report, value)) is not None:
        return f"For as low a {name} the teacher's best few-step sampler ({found.sampler}) needs {found.nfe:g}."
    return f"No few-step sampler of the teacher reaches its {name} with up to {max(r.nfe for r in few):g}."


def _distance(report: Report, row: Row, solver: Row | None) -> Number:
    better = "lower" if report.headline.lower_is_better else "higher"
    what = f"{report.headline.heading} at {count(row.nfe)} ({better} is better)"
    same = [other for other in report.rows_of("few-step") if other.best and other.nfe == row.nfe and other != row]
    others = [(each, "") for each in [solver] if each] + [(each, f" ({each.sampler})") for each in same]
    beside = [
        f"{tables.headline_text(report, other)} with {other.nfe:g}{name}"
        for other, name in others
        if report.value(other) is not None
    ]
    text = f"The teacher has {', and '.join(beside)}." if beside else ""
    return Number(tables.headline_text(report, row), what, text, _figure_caveat(report))


def _figure_caveat(report: Report) -> str:
    space = next((space for space in report.spaces if space.name == report.headline.space), None)
    if space is None:
        return "From the same noise, in units of [-1, 1]. How good samples are by themselves was not measured."
    counted = f"Over {report.num_samples:,} {report.noun}"
    if not tables.is_inception(report, space):
        return f"{counted}, by features of {space.title}: it is no FID."
    return f"{counted}, where published figures take {FULL_NUM_SAMPLES:,}." if report.has_few_samples else f"{counted}."


def _speed(report: Report, row: Row, solver: Row | None) -> Number:
    speed = row.images_per_second
    beside = ""
    if solver is not None:
        theirs = solver.images_per_second
        beside = f"{ratio(speed, theirs)} the teacher's {tables.speed_text(theirs)} with {solver.sampler}."
    return Number(
        tables.speed_text(speed),
        f"{report.noun} per second at {count(row.nfe)}",
        beside,
        f"One process on {report.machine}; drawing alone, without features.",
    )
