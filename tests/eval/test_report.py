import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from eval.report import Chart, Report, Row

ROWS = [
    Row("teacher", "dopri5 1e-5", 98.0, 0.5, 0.9, 0.8, 0.0, 70.0),
    Row("teacher", "euler 1", 1, 200.0, 0.1, 0.0, 0.5, 7000.0),
    Row("teacher", "euler 8", 8, 5.0, 0.8, 0.7, 0.1, 900.0),
    Row("student", "1 step", 1, 2.0, 0.8, 0.7, 0.1, 7000.0),
    Row("student", "2 steps", 2, 1.0, 0.8, 0.7, 0.1, 3500.0),
]


def report(**training: str) -> Report:
    titles = [f"{row.model}, {row.sampler}" for row in ROWS]
    images = np.zeros((3, 1, 8, 8), np.uint8)
    return Report(
        rows=ROWS,
        feature_space="nothing much",
        reference="3 images of nothing",
        num_samples=3,
        cost={"student": {"parameters": 1234567, "flops": 2, "macs": 1}},
        checkpoint="runs/x",
        training={"recipe": "anchored", "teacher": "digits", "teacher_sha256": "", "data_sha256": "", "step": 1}
        | {"config": {"trainer": {"lr": 0.001}}}
        | training,
        machine="abacus",
        date="2026-11-21",
        pictures=dict.fromkeys(titles, images),
    )


class Links(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_report_leaves_figures_pictures_and_a_page(tmp_path: Path) -> None:
    report().write(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [row["frechet_distance"] for row in metrics["rows"]] == [0.5, 200.0, 5.0, 2.0, 1.0]
    assert set(metrics["rows"][0]) == {
        *("model", "sampler", "nfe", "frechet_distance", "precision", "recall", "teacher_rmse", "images_per_second")
    }
    all_rows, chosen = Image.open(tmp_path / "grid-all.png"), Image.open(tmp_path / "grid.png")
    assert all_rows.height > chosen.height  # the teacher, one and two steps
    page = (tmp_path / "report.html").read_text()
    for row in ROWS:
        assert f"<td>{row.sampler}</td>" in page
    assert "1,234,567" in page


def test_the_table_has_every_row_and_the_cost() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report().table())
    text = console.export_text()
    for row in ROWS:
        assert row.sampler in text
    assert "1,234,567 parameters, 2 FLOPs, 1 MACs" in " ".join(text.split())


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    links = Links()
    links.feed(report().html(b"png"))
    assert links.found
    assert all(link.startswith("data:") for link in links.found)


def test_what_the_page_is_given_is_escaped() -> None:
    page = report(teacher="<script>alert(1)</script>").html(b"png")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_value_over_other_features_is_never_called_fid() -> None:
    page = report().html(b"png")
    assert not re.search(r"\bFID\b(?! and compares with none)", page)


def test_the_chart_is_logarithmic_both_ways_and_stays_inside() -> None:
    chart = Chart.of(ROWS)
    exact, euler, student = chart.curves
    assert (len(exact.points), len(euler.points), len(student.points)) == (1, 2, 2)
    for x, y, _ in [point for curve in chart.curves for point in curve.points]:
        assert 0 <= x <= chart.width
        assert 0 <= y <= chart.height
    (x1, y1, _), (x2, y2, _) = student.points
    assert x2 > x1
    assert y2 > y1  # a smaller distance lies lower
    assert euler.points[0][1] < y1


def test_a_distance_of_zero_has_a_place_on_the_chart() -> None:
    perfect = Row("student", "1 step", 1, -1e-12, 1, 1, 0, 1)
    assert Chart.of([*ROWS, perfect]).curves[-1].points[-1][1] <= Chart.of(ROWS).height


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[:3]])
def test_a_teacher_alone_has_a_report_too(rows: list[Row]) -> None:
    assert Chart.of(rows).curves[0].name == "teacher, dopri5 1e-5"
