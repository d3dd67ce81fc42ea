import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from eval.report import tables
from eval.results import Figure, Report
from tests.support.reports import (
    DIGITS,
    DIGITS_METRICS,
    INCEPTION,
    INCEPTION_METRICS,
    TRAINING,
    bare_report,
    digits_report,
    inception_report,
    row,
)


def printed(report: Report, width: int = 100, is_whole: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.terminal(report, is_whole))
    return console.export_text()


def html(text: str) -> str:
    """What a reader of Markdown with tables shows."""
    return str(MarkdownIt("commonmark").enable("table").render(text))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("report", [digits_report(), inception_report()])
def test_a_terminal_of_100_columns_shows_every_row_whole(report: Report) -> None:
    lines = printed(report).splitlines()
    assert max(map(len, lines)) <= 100
    for shown in report.rows:
        (line,) = [line for line in lines if line.startswith(f"  {shown.sampler} ")]
        for text in (f"{shown.nfe:g}", f"{shown.rmse:.4f}", f"{shown.images_per_second:,.0f}"):
            assert text in line.split()


@pytest.mark.parametrize("report", [digits_report(), inception_report()])
def test_a_terminal_of_80_columns_reads_with_the_student_first(report: Report) -> None:
    lines = printed(report, 80, is_whole=False).splitlines()
    assert max(map(len, lines)) <= 80
    samplers = [shown for shown in report.rows if any(line.startswith(f"  {shown.sampler} ") for line in lines)]
    assert samplers == [shown for shown in report.rows if shown.group != "few-step" or shown.best]
    titles = [line.strip() for line in lines if line.strip() in tables.GROUPS.values()]
    assert titles[:2] == [tables.GROUPS["student"], tables.GROUPS["solver"]]
    for shown in samplers:
        (line,) = [line for line in lines if line.startswith(f"  {shown.sampler} ")]
        assert f"{shown.rmse:.4f}" in line
    assert "--all" in lines[-1]


def test_a_name_that_is_too_long_is_folded_and_no_figure_is() -> None:
    name = "DPM-Solver++ of order 3, 16, on the EDM grid"
    rows = tuple(r.model_copy(update={"sampler": name}) for r in inception_report().rows[:1])
    lines = printed(inception_report(rows=rows)).splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if "3.42 ± 0.03" in line]
    assert line.split()[-7:] == ["0.00122", "0.652", "0.652", "0.652", "0.652", "0.0000", "131"]


def test_the_terminal_has_the_cost_and_what_was_not_computed_and_what_to_do() -> None:
    text = " ".join(printed(digits_report()).split())
    assert "194,081 parameters, 9,420,800 FLOPs, 4,710,400 MACs" in text
    assert "Not computed (FID, KID): Inception's weights are not there: put inception.pt into" in text
    assert "4,096 samples: not comparable" in text


def test_markup_in_a_name_is_shown_and_not_obeyed() -> None:
    name = "[red]euler[/red] [/]"
    assert name in printed(bare_report(rows=(row("student", name, 1, [1.0]),), warnings=("[bold]x[/bold]",)))
    assert "[bold]x[/bold]" in printed(bare_report(warnings=("[bold]x[/bold]",)))


def test_the_columns_stand_in_the_order_of_the_papers_tables() -> None:
    head = cells(tables.table(inception_report()).splitlines()[0])
    assert head == [
        *("Method", "NFE", "FID", "KID", "Precision", "Recall", "Density", "Coverage", "RMSE", "LPIPS"),
        *("Params", "FLOPs", "MACs", "images/s"),
    ]


def test_frechet_distances_of_all_spaces_stand_side_by_side_and_one_heading_names_its_space() -> None:
    both = inception_report(metrics=(*INCEPTION_METRICS, *DIGITS_METRICS), spaces=(INCEPTION, DIGITS))
    head = cells(tables.table(both).splitlines()[0])
    assert head[2:5] == ["FID", "Fréchet distance", "KID"]
    assert {"Precision (inception)", "Precision (digits)"} < set(head)


def test_rows_are_grouped_and_the_best_of_few_evaluations_is_bold_with_a_star() -> None:
    lines = [cells(line) for line in tables.table(digits_report()).splitlines()[2:]]
    titles = [line[0].strip("*") for line in lines if not line[1]]
    assert titles == list(tables.GROUPS.values())
    starred = [line for line in lines if tables.BEST in line[0]]
    assert [line[0] for line in starred][2:] == ["**DPM-Solver++ 4** ★", "**heun 8, EDM grid** ★"]
    assert [line[2] for line in starred] == ["**229.60**", "**21.30**", "**3.12**", "**0.92**"]


def test_figures_over_ranges_have_their_spread_and_the_least_of_them() -> None:
    text = tables.table(inception_report())
    assert "| 3.42 ± 0.03, min 3.39 |" in text
    assert "| 0.652 ± 0.003 |" in text  # the least precision would be no one's boast


def test_no_column_rounds_a_distance_or_a_spread_to_nothing() -> None:
    small = bare_report(rows=(row("student", "1 step", 1, [0.00123]), row("student", "2 steps", 2, [3.0])))
    assert "| 0.0012 |" in tables.table(small)
    assert "| 3.0000 |" in tables.table(small)
    assert "| 3.4200 ± 0.0003, min 3.4197 |" in tables.table(
        bare_report(rows=(row("student", "1 step", 1, [3.42, 3.4203, 3.4197]),))
    )


def test_what_is_zero_but_for_rounding_is_shown_as_zero() -> None:
    assert "| 0.00 |" in tables.table(bare_report(rows=(row("student", "1 step", 1, [-1e-12]),)))


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


def test_the_footnotes_say_everything_that_decides_the_figures() -> None:
    report = digits_report()
    text = tables.markdown(report)
    for part in (
        *(
            "4,096",
            "noise of seed 0",
            "3 ranges",
            "1,797 images",
            report.reference.sha256,
            DIGITS.resizer,
            DIGITS.sha256,
        ),
        *("127.5 x + 128", "ema.safetensors", report.training.files["ema.safetensors"], report.command),
        *(
            str(report.training.teacher_sha256),
            str(report.training.data_sha256),
            "Not computed (FID, KID)",
            "torch 2.15.0",
        ),
    ):
        assert part in text, part


def test_a_value_over_other_features_is_never_called_fid() -> None:
    text = tables.markdown(digits_report(not_computed=()))
    assert text.count("FID") == text.count("is not an FID and not comparable with one") == 1
    assert "no FID" not in tables.markdown(inception_report())


def test_few_samples_are_labelled_and_as_many_as_usual_are_not() -> None:
    assert "4,096 samples: not comparable with FIDs over 50,000" in tables.markdown(inception_report(num_samples=4096))
    assert "not comparable" not in tables.markdown(inception_report())


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a | b", "**a**", "`a`", "[a](b)", "![a](b)", "a\nb\n\n# c"]
)
def test_a_name_in_markdown_is_text_wherever_it_stands(name: str) -> None:
    report = digits_report(
        rows=(row("student", name, 1, [1.0], best=True),),
        warnings=(name,),
        training={**TRAINING, "teacher": name, "recipe": name},
        command=name,
        machine=name,
    )
    shown = html(tables.markdown(report))
    assert "<script" not in shown
    assert "<a " not in shown
    assert "<img" not in shown
    assert shown.count("<h1>") == 1
    assert shown.count("<tr>") == 3  # the head, the group, the row
    assert shown.count(" ".join(name.split()).replace("<", "&lt;").replace(">", "&gt;")) >= 4


@pytest.mark.parametrize(
    "report",
    [
        bare_report(),
        bare_report(
            metrics=(), spaces=(), rows=(row("student", "1 step", 1, [], scores={"fd-digits": Figure(values=(1.0,))}),)
        ),
        digits_report(rows=tuple(row("few-step", f"euler {n}", n, [1.0 / n]) for n in range(1, 41))),
    ],
    ids=["bare", "no metrics", "40 rows"],
)
def test_whatever_is_missing_there_is_a_table(report: Report) -> None:
    assert report.rows[-1].sampler in printed(report)
    assert report.rows[-1].sampler in tables.markdown(report)
