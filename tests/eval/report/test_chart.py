import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report import chart, charts
from eval.report.chart import Chart, Curve, Drawing, Point, Scale
from eval.report.chart_labels import TEXT_WIDTH, Box
from eval.results import Figure, Line, Report
from tests.support.reports import bare_report, digits_report, row

VALUES = st.floats(-1e12, 1e12, allow_nan=False)
SIZES = ((820, 380), (344, 300), (340, 200))


def drawn(report: Report, size: tuple[int, int] = SIZES[0]) -> Drawing:
    found = charts.headline_chart(report)
    assert found is not None
    return found.draw(*size)


def assert_inside(drawing: Drawing) -> None:
    for curve in drawing.curves:
        for mark in curve.marks:
            assert drawing.left <= mark.x <= drawing.right
            assert 0 <= mark.top <= mark.y <= mark.bottom <= drawing.bottom
    for place, _ in drawing.x_ticks:
        assert drawing.left <= place <= drawing.right
    for place, _ in drawing.y_ticks:
        assert 0 <= place <= drawing.bottom


def assert_spaced(drawing: Drawing) -> None:
    """No two texts of an axis touch."""
    for (a, left), (b, right) in zip(drawing.x_ticks, drawing.x_ticks[1:], strict=False):
        assert b - a >= TEXT_WIDTH * (len(left) + len(right)) / 2
    for (a, _), (b, _) in zip(drawing.y_ticks, drawing.y_ticks[1:], strict=False):
        assert a - b >= 12
    labels = [*drawing.notes, *(curve.label for curve in drawing.curves if curve.label is not None)]
    for number, label in enumerate(labels):
        assert label.box.is_inside(Box(drawing.left, 0, drawing.width, drawing.bottom))
        assert not any(label.box.touches(other.box) for other in labels[:number])


@pytest.mark.parametrize("size", SIZES)
def test_the_chart_has_the_solver_the_best_euler_and_the_student(size: tuple[int, int]) -> None:
    drawing = drawn(digits_report(), size)
    assert [(curve.style, len(curve.marks)) for curve in drawing.curves] == [
        *(("solver", 1), ("euler", 4), ("best", 4), ("student", 4)),
    ]
    assert drawing.curves[0].level == drawing.curves[0].marks[0].y
    assert [text for _, text in drawing.x_ticks] == ["1", "2", "4", "8", "120.9"]
    assert_inside(drawing)
    assert_spaced(drawing)


@pytest.mark.parametrize("size", SIZES[:2])
def test_every_curve_has_its_name_beside_it(size: tuple[int, int]) -> None:
    for found in (charts.headline_chart(digits_report()), charts.speed_chart(digits_report())):
        assert found is not None
        drawing = found.draw(*size)
        assert drawing.is_labelled
        assert_spaced(drawing)


def test_names_without_room_leave_the_legend() -> None:
    runs = [("a run with a name as long as its folder's path " * 3, digits_report()), ("b", digits_report())]
    found = charts.comparison_chart(runs)
    assert found is not None
    assert not found.draw(*SIZES[0]).is_labelled


def test_speed_is_to_the_right_and_the_student_s_points_have_their_evaluations() -> None:
    found = charts.speed_chart(digits_report())
    assert found is not None
    *_, student = found.curves
    assert [(point.x, point.note) for point in student.points] == [(11094, "1"), (6511, "2"), (4253, "4"), (2125, "8")]
    assert found.title == "Fréchet distance against images per second (down and right is better)"
    assert not any(point.note for curve in found.curves[:-1] for point in curve.points)
    assert charts.speed_chart(bare_report(metrics=())) is None


def test_checkpoints_have_a_curve_for_each_number_of_steps_over_training_steps() -> None:
    student = [row("student", "1 step", 1, [9.0]), row("student", "2 steps", 2, [8.0])]
    others = [{"step": 400, "rows": student}, {"step": 200, "rows": student[:1]}]
    found = charts.history_chart(digits_report(other_checkpoints=others))
    assert found is not None
    points = {curve.name: [(point.x, point.y) for point in curve.points] for curve in found.curves}
    assert points["1 step"] == [(200, 9.0), (400, 9.0), (800, pytest.approx(1.157, abs=0.001))]
    assert [x for x, _ in points["2 steps"]] == [400, 800]
    assert [x for x, _ in points["4 steps"]] == [800]
    assert found.curves[-1].is_level
    assert charts.history_chart(digits_report()) is None


def test_both_axes_are_logarithmic_and_less_is_lower() -> None:
    *_, euler, _best, student = drawn(digits_report()).curves
    one, two, four, eight = (mark.x for mark in student.marks)
    assert two - one == pytest.approx(four - two) == pytest.approx(eight - four)
    assert student.marks[-1].y > student.marks[0].y > euler.marks[0].y


def test_the_best_sampler_is_no_curve_of_its_own_where_it_is_euler() -> None:
    rows = tuple(row("few-step", f"euler {n}", n, [9.0 / n], best=True) for n in (1, 2))
    assert [curve.style for curve in drawn(digits_report(rows=rows)).curves] == ["euler"]


def test_what_the_reference_has_by_itself_is_a_level_without_points() -> None:
    report = digits_report(reference_scores={"fd-digits": Figure(values=(0.3,))})
    for found in (charts.headline_chart(report), charts.speed_chart(report)):
        assert found is not None
        *_, level = found.curves
        assert (level.name, level.is_level, level.points[0].y) == ("the reference itself", True, 0.3)
        assert level.points[0].x == min(point.x for curve in found.curves for point in curve.points)
    below = charts.headline_chart(digits_report(reference_scores={"fd-digits": Figure(values=(-0.1,))}))
    assert below is not None
    assert below.curves[-1].name == "student"


def test_error_bars_span_the_spread_and_are_absent_without_one() -> None:
    rows = (row("student", "1 step", 1, [9.0, 10.0, 11.0]), row("student", "2 steps", 2, [5.0]))
    first, second = drawn(digits_report(rows=rows)).curves[0].marks
    assert first.top < first.y < first.bottom
    assert second.top == second.y == second.bottom
    assert "10 ± 1 at 1" in first.text


@pytest.mark.parametrize("value", [0.0, -1e-12, 1e-300])
def test_a_distance_of_nothing_stands_on_the_floor_below_the_others(value: float) -> None:
    rows = (*digits_report().rows, row("student", "16 steps", 16, [value]))
    drawing = drawn(digits_report(rows=rows))
    *others, last = drawing.curves[-1].marks
    assert last.is_below
    assert last.y == drawing.bottom
    assert all(last.y - other.y > 20 and not other.is_below for other in others)
    assert_inside(drawing)


@pytest.mark.parametrize("values", [[0.0], [-1.0], [3.0], [0.0, 0.0, 0.0]])
def test_a_single_point_has_a_chart(values: list[float]) -> None:
    drawing = drawn(bare_report(rows=(row("student", "1 step", 1, values),)))
    assert_inside(drawing)
    assert len(drawing.x_ticks) == 1


def test_what_is_not_finite_is_left_out() -> None:
    rows = (row("student", "1 step", 1, [math.nan]), row("student", "2 steps", 2, [math.inf]))
    assert charts.headline_chart(bare_report(rows=rows)) is None
    line = Line(name="loss", x=(0, 1, 2), y=(1.0, math.nan, 0.5))
    (loss,) = charts.training_charts(bare_report(curves=(line,)))
    assert [point.x for point in loss.curves[0].points] == [0, 2]


def test_without_a_metric_there_is_no_chart() -> None:
    report = bare_report(metrics=())
    assert charts.headline_chart(report) is None
    assert charts.comparison_chart([("run", report)]) is None


def test_a_training_has_a_chart_for_each_curve_over_its_steps() -> None:
    found = charts.training_charts(digits_report())
    assert [each.title for each in found] == [
        *("One jump from noise to the sample (output)", "The teacher's velocity (velocity)"),
        *(
            "One jump against two, over stored states (soft-consistency)",
            "Norm of the gradient, before clipping (grad_norm)",
        ),
    ]
    drawing = found[0].draw(*SIZES[2])
    assert [text for _, text in drawing.x_ticks] == ["200", "400", "600", "800"]
    assert drawing.curves[0].marks == []  # a line alone


def test_speed_and_memory_of_a_training_begin_at_zero_and_have_units() -> None:
    lines = [Line(name=name, x=(1, 2), y=(2e9, 3e9)) for name in ("images_per_second", "memory_bytes")]
    speed, memory = charts.training_charts(digits_report(curves=lines))
    assert (memory.title, memory.curves[0].points[1].y) == ("Peak memory, GB (memory_bytes)", 3.0)
    assert speed.title == "Images per second (images_per_second)"
    assert not speed.y_logarithmic


def test_the_error_of_the_velocity_starts_from_zero() -> None:
    found = charts.velocity_chart(digits_report())
    assert found is not None
    assert found.draw(*SIZES[2]).y_ticks[0] == (SIZES[2][1] - chart.BOTTOM, "0")
    assert charts.velocity_chart(bare_report()) is None


def test_runs_are_compared_by_the_first_ones_headline() -> None:
    other = digits_report(rows=(row("student", "1 step", 1, [], scores={"fd-digits": Figure(values=(7.0,))}),))
    found = charts.comparison_chart([("a", digits_report()), ("b", other)])
    assert found is not None
    assert [(curve.name, curve.style, len(curve.points)) for curve in found.curves] == [
        ("a", "run-0", 4),
        ("b", "run-1", 1),
    ]


@given(st.lists(st.tuples(st.floats(0.5, 1e4), VALUES, st.floats(0, 1e6)), min_size=1, max_size=30), st.booleans())
def test_whatever_the_values_all_is_inside_and_no_two_texts_touch(
    points: list[tuple[float, float, float]], logarithmic: bool
) -> None:
    curve = Curve("a", "student", tuple(Point(*point) for point in sorted(points)))
    found = Chart("title", "x", (curve,), True, logarithmic, tuple(x for x, *_ in points))
    for size in SIZES:
        assert_inside(found.draw(*size))
        assert_spaced(found.draw(*size))


@given(st.floats(1e-9, 1e9), st.floats(1.5, 1e6), st.integers(5, 12))
def test_a_logarithmic_axis_has_a_few_round_ticks(low: float, factor: float, most: int) -> None:
    ticks = Scale.of([low, low * factor], logarithmic=True).ticks(most)
    assert 2 <= len(ticks) <= most + 1
    assert ticks == sorted(ticks)


@given(VALUES, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_a_linear_axis_has_a_few_round_ticks(low: float, span: float, most: int) -> None:
    scale = Scale.of([low, low + span], logarithmic=False)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1
    slack = 1e-6 * (scale.high - scale.low)
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (120.9, "120.9"), (9000, "9000"), (80_000, "80k"), (2_000_000, "2M"), (1e-4, "10⁻⁴")],
)
def test_a_tick_is_written_briefly(value: float, text: str) -> None:
    assert chart.tick_text(value) == text


def test_a_tick_out_of_range_is_a_power() -> None:
    assert chart.tick_text(3e-5) == "3·10⁻⁵"
    assert chart.tick_text(-2e12) == "-2·10¹²"
