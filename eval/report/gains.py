"""What a student gains: each of its rows against the teacher in as few evaluations, and in more."""

from collections.abc import Mapping, Sequence

from eval.report.tables import evaluations_text, headline_text, kind
from eval.results import Figure, Metric, Report, Row

SHARES = ("precision", "recall", "coverage")
ACCURATE = 16  # evaluations of a solver whose error is small beside a student's
MEMORISED = 1.5  # times the error on trajectories of the training
SHORT = 0.1  # of a share: by as much less it is to be seen in pictures; and so is half of a small one


def gains(report: Report) -> list[str]:
    """A text for each of the student's rows, if there are baselines, and one if it fits its own trajectories better.

    A row's says so where the teacher is as good.
    """
    has_baselines = report.metrics and _scored(report, report.rows_of("few-step"))
    rows = _scored(report, report.rows_of("student")) if has_baselines else []
    return [*(_gain(report, row) for row in rows), *_memorised(report)]


def _gain(report: Report, row: Row) -> str:
    return " ".join([_of_headline(report, row), *shortfalls(report, row)])


def shortfalls(report: Report, row: Row) -> list[str]:
    """A text for what the headline does not see: the shares in which `row` is well below the teacher's own solver."""
    solver = next(iter(report.rows_of("solver")), None)
    if solver is None or row.group != "student":
        return []
    short = short_of(report, row.scores, solver.scores)
    return [f"The student falls short of the teacher's solver {short}."] if short else []


def short_of(report: Report, ours: Mapping[str, Figure], theirs: Mapping[str, Figure]) -> str:
    """Such as "in precision, 0.62 for 0.98": the shares of the headline's space that are well below others."""
    found = []
    for metric in report.metrics:
        mine, other = ours.get(metric.key), theirs.get(metric.key)
        if _is_share(report, metric) and mine and other and mine.mean < max(other.mean - SHORT, other.mean / 2):
            found.append(f"in {metric.heading.lower()}, {mine.mean:.2g} for {other.mean:.2g}")
    return ", and ".join(found)


def _memorised(report: Report) -> list[str]:
    """A text where one jump is much nearer to the teacher's samples on trajectories of the training than on others.

    Samples of a solver of few evaluations differ from the teacher's own in any case.
    """
    fit, made = report.trajectories, report.generation
    fresh = next((_error(row) for row in report.rows_of("student") if row.nfe == 1), None)
    if fit is None or fresh is None or not fit.seen_in_training or (made is not None and made.nfe < ACCURATE):
        return []
    if fresh < MEMORISED * fit.endpoint_rmse:
        return []
    return [
        f"One jump ends {fit.endpoint_rmse:.2g} from the teacher's sample on noise of the training, and {fresh:.2g} on "
        "other noise: more trajectories, and a training long enough to use them, would help."
    ]


def _error(row: Row) -> float | None:
    """To the teacher's own samples, as stored trajectories have them: of latents, where samples are such."""
    return row.rmse if row.latent_rmse is None else row.latent_rmse


def _is_share(report: Report, metric: Metric) -> bool:
    return metric.space == report.headline.space and kind(metric) in SHARES


def _of_headline(report: Report, row: Row) -> str:
    student = f"At {evaluations_text(row.nfe)} the student has {report.headline.heading} {headline_text(report, row)}"
    best = best_within(report, row.nfe)
    if best is None:
        return f"{student}. {_at_equal_quality(report, row)}"
    teacher = f"{headline_text(report, best)} ({best.sampler})"
    if rival(report, row) is not None:
        return f"{student}. That is no better than the teacher's {teacher}."
    return f"{student}, and the teacher {teacher}. {_at_equal_quality(report, row)}".rstrip()


def _at_equal_quality(report: Report, row: Row) -> str:
    if (found := cheapest_as_good(report, row)) is not None:
        return f"The teacher needs {evaluations_text(found.nfe)} to do as well ({found.sampler})."
    most = max(other.nfe for other in report.rows_of("few-step"))
    return f"The teacher does not do as well in up to {most:g}." if most > row.nfe else ""


def rival(report: Report, row: Row) -> Row | None:
    """What `row` does not beat: the teacher's best sampler with at most as many evaluations, if it is as good."""
    best = best_within(report, row.nfe)
    return best if best is not None and is_as_good(report, best, row) else None


def best_within(report: Report, nfe: float) -> Row | None:
    """The teacher's best sampler with at most `nfe` evaluations."""
    within = [row for row in _scored(report, report.rows) if row.model == "teacher" and row.nfe <= nfe]
    return min(within, key=lambda row: _value(report, row), default=None)


def cheapest_as_good(report: Report, row: Row) -> Row | None:
    """The teacher's few-step sampler of the fewest evaluations whose headline is that of `row` or better."""
    as_good = [other for other in _scored(report, report.rows_of("few-step")) if is_as_good(report, other, row)]
    return min(as_good, key=lambda other: (other.nfe, other.sampler), default=None)


def is_as_good(report: Report, other: Row, row: Row) -> bool:
    """Whether the headline of `other` is that of `row` or better, as far as their spreads and decimals tell."""
    spreads = [each.scores[report.headline.key].spread or 0.0 for each in (other, row)]
    is_same = headline_text(report, other) == headline_text(report, row)
    return is_same or _value(report, other) <= _value(report, row) + max(spreads)


def _scored(report: Report, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if report.value(row) is not None]


def _value(report: Report, row: Row) -> float:
    return row.scores[report.headline.key].mean
