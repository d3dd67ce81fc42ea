import re
from pathlib import Path

import pytest

from eval import results
from eval.results import Figure, Report
from pipeline.common.errors import BadInput
from tests.support.reports import bare_report, digits_report, inception_report, row


@pytest.mark.parametrize("made", [digits_report(), bare_report(), inception_report()])
def test_a_report_is_read_as_it_was_written(tmp_path: Path, made: Report) -> None:
    (tmp_path / results.METRICS).write_text(made.model_dump_json(indent=1))
    assert results.read_report(tmp_path) == made
    assert results.read_report(tmp_path / results.METRICS) == made


def test_the_report_of_a_whole_run_is_found(tmp_path: Path) -> None:
    assert results.find_report(str(tmp_path)) == str(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / results.METRICS).touch()
    assert results.find_report(f"{tmp_path}/") == str(tmp_path / "report")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1}', "<html>"])
def test_what_is_no_report_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / results.METRICS).write_text(text)
    with pytest.raises(BadInput, match=r"wanted the metrics.json of an evaluation") as caught:
        results.read_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_figure_has_a_spread_over_several_ranges_only() -> None:
    assert Figure(values=(2.0,)).spread is None
    figure = Figure(values=(1.0, 2.0, 3.0))
    assert (figure.mean, figure.spread, figure.minimum) == (2.0, 1.0, 1.0)


def test_gains_are_told_at_equal_evaluations_and_at_equal_quality() -> None:
    one, *_, eight = results.gains(digits_report())
    assert "At 1 evaluation the student has Fréchet distance 1.16" in one
    assert "with at most as many is 229.60 (euler 1)" in one
    assert "it needs 8 to do as well (heun 8, EDM grid)" in one
    assert "with 8 it does not yet do as well" in eight


def test_no_gain_is_told_without_a_baseline() -> None:
    assert results.gains(bare_report()) == []
    assert results.gains(digits_report(rows=(row("solver", "dopri5", 100, [1.0]),))) == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e308", "null"])
def test_a_report_whose_figure_is_no_finite_number_is_refused(tmp_path: Path, value: str) -> None:
    text = digits_report().model_dump_json()
    (tmp_path / results.METRICS).write_text(re.sub(r'"values":\[[^,\]]+', f'"values":[{value}', text, count=1))
    with pytest.raises(BadInput):
        results.read_report(tmp_path)


def test_a_metric_without_values_is_refused(tmp_path: Path) -> None:
    text = digits_report().model_dump_json()
    (tmp_path / results.METRICS).write_text(re.sub(r'"values":\[[^\]]+', '"values":[', text, count=1))
    with pytest.raises(BadInput):
        results.read_report(tmp_path)
