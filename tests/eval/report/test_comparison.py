"""Several evaluations as a table for a terminal, and every figure as CSV."""

import csv
import io
from pathlib import Path

from rich.console import Console

from eval.report import comparison, files
from eval.results import METRICS
from pipeline.storage.store import write_file
from tests.support.reports import bare_report, digits_report, inception_report


def test_a_terminal_shows_the_student_of_every_run_in_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison.terminal([("a", digits_report()), ("b", inception_report())]))
    said = console.export_text()
    for part in ("a", "b", "1 step", "8 steps", "NFE", "RMSE", "images/s", "1.16"):
        assert part in said
    assert "euler" not in said


def test_a_comparison_says_in_the_terminal_why_figures_are_not_comparable(tmp_path: Path) -> None:
    reports = [digits_report(), inception_report()]
    for name, report in zip("ab", reports, strict=True):
        write_file(tmp_path / name / METRICS, report.model_dump_json().encode())
    table, cautions = files.compare([str(tmp_path / name) for name in "ab"], tmp_path / "page.html")
    assert table.row_count
    assert any(caution.startswith("Not the same headline metrics. a: ") for caution in cautions)
    assert files.compare([str(tmp_path / "a")] * 2, tmp_path / "page.html")[1] == []


def test_csv_has_every_row_unrounded_and_nothing_where_there_is_no_figure() -> None:
    report, other = digits_report(), bare_report()
    rows = list(csv.DictReader(io.StringIO(comparison.as_csv([("a", report), ("b", other)]))))
    assert [row["run"] for row in rows] == ["a"] * len(report.rows) + ["b"] * len(other.rows)
    found, row = rows[0], report.rows[0]
    assert (found["model"], found["sampler"], float(found["evaluations"])) == ("teacher", row.sampler, row.nfe)
    assert [each["group"] for each in rows[:2]] == ["solver", "few-step"]
    assert float(found["fd-digits"]) == row.scores["fd-digits"].mean
    assert float(found["fd-digits_sd"]) == row.scores["fd-digits"].spread
    assert rows[-1]["lpips_to_teacher"] == ""
