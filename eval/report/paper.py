"""The tables of the paper, with its figures from paper.yaml, and those of our own runs of the same rows beside them."""

import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from eval.report.comparison import cautions
from eval.report.markdown import bullets, escape
from eval.report.tables import NONE, count_text, number_text
from eval.results import FULL_NUM_SAMPLES, Report
from pipeline.common.errors import BadInput
from pipeline.common.safe_yaml import parse_yaml, read_text
from pipeline.common.suggestions import suggest

FIGURES = Path(__file__).with_name("paper.yaml")
HEADINGS = ("Method", "NFE", "FID, the paper's", "{headline}, here", "Params", "FLOPs", "MACs")

Runs = Sequence[tuple[str, Report]]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperRow(_Record):
    """A method as the paper calls it, and its published FID by the number of evaluations, where that is known."""

    method: str
    fid: dict[int, float] = {}


class PaperTable(_Record):
    """A table of the paper; its rows by the name of their config in configs/paper/, those of others by any name."""

    title: str
    rows: dict[str, PaperRow]


class Paper(_Record):
    """The paper's figures, and where they are from."""

    source: str
    tables: dict[str, PaperTable]


@cache
def load() -> Paper:
    """What paper.yaml holds."""
    return Paper.model_validate(parse_yaml(read_text(FIGURES)))


def markdown(name: str, runs: Runs) -> str:
    """The table `name` in Markdown with the `runs`, each by the name of its row; several of one row become a mean.

    Raises:
        BadInput: no such table, or a run is of none of its rows.
    """
    tables = load().tables
    if name not in tables:
        raise BadInput(f"--paper {name}: wanted one of {', '.join(tables)}{suggest(name, tables)}")
    table = tables[name]
    for row, _ in runs:
        if row not in table.rows:
            raise BadInput(
                f"{row}: wanted the run of a row of {name}, in a folder of its name: {', '.join(table.rows)}"
                f"{suggest(row, table.rows)}"
            )
    # What is drawn and measured may differ from the paper's too: the reports say it.
    headlines = dict.fromkeys(report.headline.heading for _, report in runs)
    headings = [heading.format(headline=" or ".join(headlines) or "FID") for heading in HEADINGS]
    lines = [headings, ["---", *["--:"] * (len(HEADINGS) - 1)]]
    for row, printed in table.rows.items():
        lines += _lines(printed, [report for other, report in runs if other == row])
    rows = "\n".join("| " + " | ".join(cells) + " |" for cells in [list(map(escape, lines[0])), *lines[1:]])
    notes = [f"The paper's figures: {load().source}.", *cautions(runs)]
    notes += [
        f"{row}: {report.num_samples:,} samples, where the paper took {FULL_NUM_SAMPLES:,}."
        for row, report in runs
        if report.has_few_samples
    ]
    return f"{table.title}\n\n{rows}\n\n{bullets(notes)}"


def _lines(printed: PaperRow, reports: Sequence[Report]) -> list[list[str]]:
    """The cells of a row at every number of evaluations that the paper or a run has."""
    counts = sorted({*printed.fid, *(row.nfe for report in reports for row in report.rows_of("student"))}) or [1]
    return [
        [
            escape(printed.method),
            f"{count:g}",
            f"{printed.fid[int(count)]:g}" if count in printed.fid else NONE,
            _mean(reports, count),
            *_costs(reports),
        ]
        for count in counts
    ]


def _mean(reports: Sequence[Report], count: float) -> str:
    """The headline at `count` evaluations: of one run, or the mean of several and half their range."""
    found = [report.value(row) for report in reports for row in report.rows_of("student") if row.nfe == count]
    values = [value for value in found if value is not None]
    if not values:
        return NONE
    half_range = (max(values) - min(values)) / 2
    spread = f" ± {number_text(half_range, 2)} ({len(values)} runs)" if len(values) > 1 else ""
    return number_text(statistics.fmean(values), 2) + spread


def _costs(reports: Sequence[Report]) -> list[str]:
    """Parameters, FLOPs and multiply-adds of one evaluation of the students' network."""
    costs = [report.cost["student"] for report in reports if "student" in report.cost]
    if not costs:
        return [NONE] * 3
    return [count_text(number) for number in (costs[0].parameters, costs[0].flops, costs[0].macs)]
