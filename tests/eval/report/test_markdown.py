"""The report in Markdown: its table, remarks and provenance, whatever it is given."""

import pytest
from markdown_it import MarkdownIt

from eval.report import markdown, tables
from eval.results import Figure, Report
from tests.support.reports import (
    DIGITS,
    DIGITS_METRICS,
    INCEPTION,
    INCEPTION_METRICS,
    TRAINING,
    UNUSUAL,
    bare_report,
    digits_report,
    inception_report,
    row,
)


def html(text: str) -> str:
    """What a reader of Markdown with tables shows."""
    return str(MarkdownIt("commonmark").enable("table").render(text))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_columns_stand_in_the_order_of_the_papers_tables() -> None:
    head = cells(markdown.table(inception_report()).splitlines()[0])
    assert head == [
        *("Method", "NFE", "FID", "KID", "Precision", "Recall", "Density", "Coverage", "RMSE", "LPIPS"),
        *("Params", "FLOPs", "MACs", "images/s"),
    ]


def test_frechet_distances_of_all_spaces_stand_side_by_side_and_one_heading_names_its_space() -> None:
    both = inception_report(metrics=(*INCEPTION_METRICS, *DIGITS_METRICS), spaces=(INCEPTION, DIGITS))
    head = cells(markdown.table(both).splitlines()[0])
    assert head[2:5] == ["FID", "Fréchet distance", "KID"]
    assert {"Precision (inception)", "Precision (digits)"} < set(head)


def test_rows_are_grouped_and_the_best_of_few_evaluations_is_bold_with_a_star() -> None:
    own = {"fd-digits": Figure(values=(0.41,))}
    lines = [cells(line) for line in markdown.table(digits_report(reference_scores=own)).splitlines()[2:]]
    titles = [line[0].strip("*") for line in lines if not line[1]]
    assert titles == list(tables.GROUPS.values())
    starred = [line for line in lines if tables.BEST in line[0]]
    assert [line[0] for line in starred][2:] == ["**DPM-Solver++ 4** ★", "**heun 8, EDM grid** ★"]
    assert [line[2] for line in starred] == ["**229.60**", "**21.30**", "**3.12**", "**0.92**"]


def test_figures_over_ranges_have_their_spread_and_the_least_of_them() -> None:
    text = markdown.table(inception_report())
    assert "| 3.42 ± 0.03, min 3.39 |" in text
    assert "| 0.652 ± 0.003 |" in text  # the least precision would be no one's boast


def test_no_column_rounds_a_distance_or_a_spread_to_nothing() -> None:
    small = bare_report(rows=(row("student", "1 step", 1, [0.00123]), row("student", "2 steps", 2, [3.0])))
    assert "| 0.0012 |" in markdown.table(small)
    assert "| 3.0000 |" in markdown.table(small)
    assert "| 3.4200 ± 0.0003, min 3.4197 |" in markdown.table(
        bare_report(rows=(row("student", "1 step", 1, [3.42, 3.4203, 3.4197]),))
    )


def test_what_is_zero_but_for_rounding_is_shown_as_zero() -> None:
    assert "| 0.00 |" in markdown.table(bare_report(rows=(row("student", "1 step", 1, [-1e-12]),)))


def test_the_footnotes_say_everything_that_decides_the_figures() -> None:
    report = digits_report()
    text = markdown.document(report)
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
    text = markdown.document(digits_report(not_computed=()))
    assert text.count("FID") == text.count("is not an FID and not comparable with one") == 1
    assert "no FID" not in markdown.document(inception_report())


def test_few_samples_are_labelled_and_as_many_as_usual_are_not() -> None:
    assert "4,096 samples: not comparable with FIDs over 50,000" in markdown.document(
        inception_report(num_samples=4096)
    )
    assert "not comparable" not in markdown.document(inception_report())


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
    shown = html(markdown.document(report))
    assert "<script" not in shown
    assert "<a " not in shown
    assert "<img" not in shown
    assert shown.count("<h1>") == 1
    assert shown.count("<tr>") == 3  # the head, the group, the row
    assert shown.count(" ".join(name.split()).replace("<", "&lt;").replace(">", "&gt;")) >= 4


@pytest.mark.parametrize("report", UNUSUAL.values(), ids=UNUSUAL)
def test_whatever_is_missing_there_is_a_table(report: Report) -> None:
    assert report.rows[-1].sampler in markdown.document(report)
