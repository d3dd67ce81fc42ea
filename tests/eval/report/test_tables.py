import math

from hypothesis import given
from hypothesis import strategies as st

from eval.report import tables
from eval.results import Figure
from tests.support.reports import (
    TRAINING,
    digits_report,
)


def test_a_speed_has_three_digits_at_most() -> None:
    speeds = (0.4249, 9.96, 53.4, 131, 6691, 100_160)
    assert [tables.speed_text(speed) for speed in speeds] == ["0.42", "10", "53", "131", "6,690", "100,000"]


def test_a_reference_that_is_too_small_is_said_to_have_no_row() -> None:
    report = digits_report()
    text = (
        "The reference itself has no row: that takes at most 2,500 samples a row, and a reference of 4 times as many."
    )
    assert text in tables.legend(report, tables.columns(report))
    measured = digits_report(reference_scores={"fd-digits": Figure(values=(0.41,))})
    assert text not in tables.legend(measured, tables.columns(measured))


def test_only_a_sha256_is_called_so() -> None:
    training = TRAINING | {"teacher": "ring:load", "teacher_sha256": "ring-v1"}
    assert tables.facts(digits_report(training=training))["teacher"] == "ring:load, digest ring-v1"
    assert tables.facts(digits_report())["teacher"] == f"digits, sha256 {'c3' * 32}"


@given(st.floats(-1e9, 1e9), st.integers(0, 5))
def test_a_number_is_as_near_as_its_decimals(value: float, decimals: int) -> None:
    text = tables.number_text(value, decimals)
    assert abs(float(text) - value) <= 0.5 * 10.0**-decimals * (1 + 1e-6) + abs(value) * 1e-15
    assert text.strip("0.") != "-"


@given(st.floats(1, 1e14))
def test_a_count_keeps_three_digits(count: float) -> None:
    number, _, unit = tables.count_text(count).partition(" ")
    assert float(number) < 1000
    assert math.isclose(float(number) * 1000 ** ["", "k", "M", "G", "T"].index(unit), count, rel_tol=5.1e-3)
