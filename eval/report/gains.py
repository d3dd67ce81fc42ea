"""What a student gains: each of its rows against the teacher in as few evaluations, and in more."""

from collections.abc import Sequence

from eval.report.tables import evaluations_text, headline_text
from eval.results import Metric, Report, Row

SHARES = ("precision", "recall", "coverage")
SHORT = 0.1  # of a share: by as much less it is to be seen in pictures; and so is half of a small one


def gains(report: Report) -> list[str]:
    """A text for each of the student's rows, which says so where the teacher is as good; none without baselines."""
    if not report.metrics or not _scored(report, report.rows_of("few-step")):
        return []
    return [_gain(report, row) for row in _scored(report, report.rows_of("student"))]


def _gain(report: Report, row: Row) -> str:
    return " ".join([_of_headline(report, row), *shortfalls(report, row)])


def shortfalls(report: Report, row: Row) -> list[str]:
    """A text for what the headline does not see: the shares in which `row` is well below the teacher's own solver."""
    solver = next(iter(report.rows_of("solver")), None)
    if solver is None or row.group != "student":
        return []
    found = []
    for metric in report.metrics:
        ours, theirs = row.scores.get(metric.key), solver.scores.get(metric.key)
        if _is_share(report, metric) and ours and theirs and ours.mean < max(theirs.mean - SHORT, theirs.mean / 2):
            found.append(f"in {metric.heading.lower()}, {ours.mean:.2g} for {theirs.mean:.2g}")
    return [f"The student falls short of the teacher's solver {', and '.join(found)}."] if found else []


def _is_share(report: Report, metric: Metric) -> bool:
    return metric.space == report.headline.space and metric.key.split("-")[0] in SHARES


def _of_headline(report: Report, row: Row) -> str:
    student = f"At {evaluations_text(row.nfe)} the student has {report.headline.heading} {headline_text(report, row)}"
    best = best_within(report, row.nfe)
    if best is None:
        return f"{student}. {_at_equal_quality(report, row)}"
    teacher = f"{headline_text(report, best)} ({best.sampler})"
    if rival(report, row) is not None:
        return f"{student}. That is no better than the teacher's {teacher}."
    return f"{student}, and the teacher {teacher}. {_at_equal_quality(report, row)}"


def _at_equal_quality(report: Report, row: Row) -> str:
    if (found := cheapest_as_good(report, row)) is not None:
        return f"The teacher needs {evaluations_text(found.nfe)} to do as well ({found.sampler})."
    most = max(other.nfe for other in report.rows_of("few-step"))
    return f"The teacher does not do as well in up to {most:g}."


def rival(report: Report, row: Row) -> Row | None:
    """What `row` does not beat: the teacher's best sampler with at most as many evaluations, if it is as good."""
    best = best_within(report, row.nfe)
    return best if best is not None and _value(report, best) <= _value(report, row) else None


def best_within(report: Report, nfe: float) -> Row | None:
    """The teacher's best sampler with at most `nfe` evaluations."""
    within = [row for row in _scored(report, report.rows) if row.model == "teacher" and row.nfe <= nfe]
    return min(within, key=lambda row: _value(report, row), default=None)


def cheapest_as_good(report: Report, row: Row) -> Row | None:
    """The teacher's few-step sampler of the fewest evaluations whose headline is that of `row` or better."""
    few = _scored(report, report.rows_of("few-step"))
    as_good = [other for other in few if _value(report, other) <= _value(report, row)]
    return min(as_good, key=lambda other: (other.nfe, other.sampler), default=None)


def _scored(report: Report, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if report.value(row) is not None]


def _value(report: Report, row: Row) -> float:
    return row.scores[report.headline.key].mean
