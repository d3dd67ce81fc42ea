import io

import pytest
from rich.console import Console

from eval.report import tables, terminal
from eval.results import Figure, Report
from tests.support.reports import UNUSUAL, bare_report, digits_report, inception_report, row


def printed(report: Report, width: int = 100, is_whole: bool = True) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal.table(report, is_whole))
    return console.export_text()


@pytest.mark.parametrize("report", [digits_report(), inception_report()])
def test_a_terminal_of_100_columns_shows_every_row_whole(report: Report) -> None:
    lines = printed(report).splitlines()
    assert max(map(len, lines)) <= 100
    for shown in report.rows:
        (line,) = [line for line in lines if line.startswith(f"  {shown.sampler} ")]
        for text in (f"{shown.nfe:g}", f"{shown.rmse:.4f}", tables.speed_text(shown.images_per_second)):
            assert text in line.split()


def test_what_the_reference_has_by_itself_stands_below_without_evaluations_or_speed() -> None:
    report = digits_report(reference_scores={"fd-digits": Figure(values=(0.41,))})
    lines = printed(report).splitlines()
    line = lines[[each.strip() for each in lines].index("The reference itself") + 1]
    assert line.split() == ["4,096", "of", "it", "against", "others", "—", "0.41", "—", "—", "—", "—"]


def test_shares_are_explained_where_they_are_shown() -> None:
    report = digits_report()
    assert tables.ABOUT_SHARES in tables.legend(report, tables.columns(report))
    assert tables.ABOUT_SHARES not in printed(report, 400, is_whole=False)


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


@pytest.mark.parametrize("report", UNUSUAL.values(), ids=UNUSUAL)
def test_whatever_is_missing_there_is_a_table(report: Report) -> None:
    assert report.rows[-1].sampler in printed(report)
