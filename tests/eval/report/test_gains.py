"""What a student gains is told in plain sentences, and so is that it gains nothing."""

import pytest

from eval.report.gains import best_within, gains, rival, shortfalls
from eval.results import Figure
from tests.support.reports import bare_report, digits_report, failed_report, row, trajectories


def test_gains_are_told_at_equal_evaluations_and_at_equal_quality() -> None:
    one, *_, eight = gains(digits_report(trajectories=None))
    assert one == (
        "At 1 evaluation the student has Fréchet distance 1.16, and the teacher 229.60 (euler 1). "
        "The teacher needs 8 evaluations to do as well (heun 8, EDM grid). "
        "The student falls short of the teacher's solver in precision, 0.77 for 0.87."
    )
    assert eight.endswith("and the teacher 0.92 (heun 8, EDM grid).")


def test_what_is_within_the_spread_or_printed_alike_is_as_good() -> None:
    rows = (
        row("few-step", "euler 1", 1, [3.0]),
        row("few-step", "midpoint 2", 2, [1.004]),
        row("student", "1 step", 1, [1.0]),
        row("student", "2 steps", 2, [0.9, 1.1]),
    )
    one, two = gains(digits_report(rows=rows, trajectories=None))
    assert one.endswith("The teacher needs 2 evaluations to do as well (midpoint 2).")
    assert two.endswith(
        "the student has Fréchet distance 1.00. That is no better than the teacher's 1.00 (midpoint 2)."
    )


def test_a_student_that_knows_its_own_trajectories_better_is_told_of() -> None:
    *_, last = gains(digits_report(trajectories=trajectories().model_copy(update={"endpoint_rmse": 0.05})))
    assert last.startswith(
        "One jump ends 0.05 from the teacher's sample on noise of the training, and 0.15 on other noise"
    )
    of_latents = [
        each.model_copy(update={"latent_rmse": 0.06 if each.nfe == 1 else None}) for each in digits_report().rows
    ]
    near = trajectories().model_copy(update={"endpoint_rmse": 0.05})
    *_, last = gains(digits_report(rows=of_latents, trajectories=near))
    assert last.startswith("At 8 evaluations")
    (alone,) = gains(digits_report(rows=digits_report().rows_of("student"), trajectories=near))
    assert alone.startswith("One jump ends")
    for changes in ({"endpoint_rmse": 0.14}, {"endpoint_rmse": 0.05, "seen_in_training": False}):
        *_, last = gains(digits_report(trajectories=trajectories().model_copy(update=changes)))
        assert last.startswith("At 8 evaluations")


def test_a_student_that_is_no_better_than_its_teacher_is_called_so() -> None:
    one, two, four = gains(failed_report())
    said = "That is no better than the teacher's"
    assert one == f"At 1 evaluation the student has Fréchet distance 0.310. {said} 0.200 (euler 1)."
    assert two.endswith(f"0.100. {said} 0.100 (euler 2).")
    assert said not in four


def test_the_rival_may_need_fewer_evaluations_and_may_be_the_teacher_s_own_solver() -> None:
    report = digits_report(
        rows=(
            row("solver", "euler 2", 2, [1.0]),
            row("few-step", "euler 1", 1, [3.0]),
            row("few-step", "midpoint 4", 4, [2.0]),
            row("student", "4 steps", 4, [2.0]),
            row("student", "1 step", 1, [2.5]),
        )
    )
    *_, four, one = report.rows
    assert rival(report, four) == best_within(report, 4) == report.rows[0]
    assert rival(report, one) is None


def test_no_gain_is_told_without_a_baseline() -> None:
    assert gains(bare_report()) == []
    assert gains(digits_report(rows=(row("solver", "dopri5", 100, [1.0]),))) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [(0.75, 0.87, True), (0.78, 0.87, False), (0.9, 0.87, False), (0.03, 0.08, True), (0.05, 0.08, False)],
)
def test_a_share_is_short_by_a_tenth_or_by_half(ours: float, theirs: float, said: bool) -> None:
    solver, student = digits_report().rows[0], digits_report().rows_of("student")[0]
    rows = tuple(
        each.model_copy(update={"scores": each.scores | {"precision-digits": Figure(values=(share,))}})
        for each, share in ((solver, theirs), (student, ours))
    )
    assert bool(shortfalls(digits_report(rows=rows), rows[1])) == said
    assert shortfalls(digits_report(rows=rows), rows[0]) == []
