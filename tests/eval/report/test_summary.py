from eval.report.summary import numbers, ratio, said_of
from eval.results import Figure, Metric
from tests.support.reports import bare_report, digits_report, failed_report, inception_report, row

TIMES = "\N{MULTIPLICATION SIGN}"


def test_a_student_saves_evaluations_has_a_distance_and_is_faster() -> None:
    evaluations, distance, speed = numbers(digits_report())
    assert (evaluations.value, evaluations.what) == (f"121{TIMES}", "fewer evaluations than the teacher's solver")
    assert evaluations.beside == "1 evaluation of the network for an image, instead of 120.9 with dopri5 1e-5."
    assert (distance.value, distance.what) == ("1.16", "Fréchet distance at 1 evaluation (lower is better)")
    assert distance.beside == (
        "The teacher has 0.44 with 120.9, and 229.60 with 1 (euler 1). "
        "The student falls short of the teacher's solver in precision, 0.77 for 0.87."
    )
    assert (speed.value, speed.what) == ("11,100", "images per second at 1 evaluation")
    assert speed.beside == (
        f"85{TIMES} the teacher's 131 with dopri5 1e-5, "
        f"and 5.8{TIMES} its 1,900 with heun 8, EDM grid, which is as good."
    )


def test_what_the_teacher_s_best_few_step_sampler_needs_stands_beside_what_is_saved() -> None:
    assert numbers(digits_report())[0].caveat == (
        "For as low a Fréchet distance the teacher's best few-step sampler (heun 8, EDM grid) needs 8."
    )
    rows = (*digits_report().rows_of("few-step"), row("student", "1 step", 1, [0.1]))
    assert numbers(digits_report(rows=rows))[0].caveat == ""  # no solver to compare with
    rows = (digits_report().rows[0], *rows)
    caveat = numbers(digits_report(rows=rows))[0].caveat
    assert caveat == "No few-step sampler of the teacher reaches its Fréchet distance with up to 8."


def test_the_distance_says_what_it_is_not() -> None:
    assert numbers(digits_report())[1].caveat == ("Over 4,096 images, by digit classifier, 64 features: it is no FID.")
    few = numbers(inception_report(num_samples=5000))[1].caveat
    assert few == "Over 5,000 images, where published figures take 50,000."
    assert numbers(inception_report())[1].caveat == "Over 50,000 images."


def test_a_student_without_its_teacher_is_compared_with_nothing() -> None:
    evaluations, distance, speed = numbers(bare_report())
    assert (evaluations.value, evaluations.what) == ("1", "evaluation of the network for an image")
    assert {evaluations.beside, distance.beside, speed.beside} == {""}


def test_a_student_that_is_no_better_than_the_teacher_s_own_steps_opens_with_no_gain() -> None:
    evaluations, distance, speed = numbers(failed_report())
    assert (evaluations.value, evaluations.what) == ("No gain", "at 1 evaluation: the teacher's own steps are better")
    assert evaluations.beside == "Fréchet distance 0.200 with euler 1. The student has 0.310."
    assert evaluations.caveat == "The student is better at 4 evaluations."
    assert distance.beside == "The teacher has 0.070 with 100, and 0.200 with 1 (euler 1)."
    assert speed.beside == f"1{TIMES} the teacher's 1,000 with euler 1."


def test_a_student_that_never_gains_is_called_so() -> None:
    better_at_none = failed_report().rows[:-1]
    first, *_ = numbers(digits_report(rows=better_at_none))
    assert first.caveat == "The student is no better at any other number of evaluations."
    as_good, *_ = numbers(digits_report(rows=(*better_at_none[:4], better_at_none[-1])))
    assert as_good.what == "at 2 evaluations: the teacher's own steps are as good"
    assert as_good.caveat == ""


def test_a_teacher_by_itself_is_praised_for_no_step_of_euler() -> None:
    rows = tuple(each for each in digits_report().rows if each.model == "teacher")
    evaluations, distance, _ = numbers(digits_report(rows=rows))
    assert (evaluations.value, evaluations.what) == ("120.9", "evaluations of the network for an image")
    assert (distance.value, distance.beside) == ("0.44", "")


def test_a_solver_of_few_steps_is_no_standard_for_saving() -> None:
    rows = (row("solver", "euler 2", 2, [3.0]), row("student", "2 steps", 2, [1.0]))
    evaluations, *_ = numbers(digits_report(rows=rows))
    assert (evaluations.value, evaluations.what) == ("2", "evaluations of the network for an image")


def test_the_distance_says_what_the_reference_has_by_itself() -> None:
    caveat = numbers(inception_report(reference_scores={"fid": Figure(values=(2.1,))}))[1].caveat
    assert caveat == "Over 50,000 images. The reference itself has 2.10 over as many."


def test_points_are_samples_and_not_images() -> None:
    reference = bare_report().reference.model_copy(update={"shape": (2,)})
    evaluations, _, speed = numbers(bare_report(shape=(2,), reference=reference))
    assert evaluations.what == "evaluation of the network for a sample"
    assert speed.what == "samples per second at 1 evaluation"


def test_a_row_that_is_not_finite_gives_no_number() -> None:
    rows = (row("student", "1 step", 1, [], is_finite=False), row("student", "2 steps", 2, [3.0]))
    assert numbers(bare_report(rows=rows))[0].value == "2"
    assert numbers(bare_report(rows=rows[:1])) == []
    assert said_of(bare_report(rows=rows), rows[0]) == "1 evaluation"


def test_without_metrics_there_are_evaluations_and_speed() -> None:
    assert len(numbers(bare_report(metrics=()))) == 2
    rows = (row("student", "1 step", 1, [], scores={"other": Figure(values=(1.0,))}),)
    assert len(numbers(bare_report(rows=rows))) == 2


def test_an_error_to_the_teacher_is_called_so() -> None:
    rmse = Metric(key="rmse", heading="RMSE to teacher", space="", lower_is_better=True)
    rows = tuple(
        each.model_copy(update={"scores": {} if each.group == "solver" else {"rmse": Figure(values=(each.rmse or 0,))}})
        for each in digits_report().rows
    )
    _, distance, _ = numbers(digits_report(rows=rows, metrics=(rmse,), spaces=()))
    assert (distance.value, distance.what) == ("0.151", "RMSE to teacher at 1 evaluation (lower is better)")
    assert distance.beside == "The teacher has 0.524 with 1 (euler 1)."
    assert distance.caveat.startswith("From the same noise, where the range of the data is [-1, 1].")


def test_a_ratio_has_two_digits_or_is_whole() -> None:
    assert [ratio(x, 1) for x in (0.5, 2.44, 9.96, 120.9, 12345)] == [
        f"{text}{TIMES}" for text in ("0.5", "2.4", "10", "121", "12,345")
    ]
