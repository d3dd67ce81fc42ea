import re
from pathlib import Path

import pytest

import manual.metrics
from eval import results
from eval.results import Figure, Report
from pipeline.common.errors import BadInput
from tests.support.reports import TRAINING, bare_report, digits_report, inception_report


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


def test_a_report_is_called_after_the_teacher_s_own_name_where_it_is_known() -> None:
    training = {**TRAINING, "teacher": "moons:load"}
    assert digits_report(training=training).title == "A student of “moons:load”, recipe “anchored”"
    named = digits_report(training=training, teacher_name="moons")
    assert named.title == "A student of “moons”, recipe “anchored”"
    assert "teacher_name" not in digits_report().model_dump()


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


def test_every_key_of_metrics_json_has_a_meaning_in_the_reference() -> None:
    rows = [line for line in manual.metrics.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row for row in rows if row.endswith("|  |")] == []
