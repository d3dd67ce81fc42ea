"""The table of an evaluation for a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.features.clip import NAME as CLIP
from eval.report.cautions import cautions
from eval.report.tables import (
    BEST,
    NFE,
    Column,
    distance_columns,
    grouped,
    legend,
    metric_columns,
    reference_rows,
    reference_text,
    speed_column,
    student_first,
)
from eval.results import Report, Row
from pipeline.common.plural import counted


def table(report: Report, is_whole: bool = False) -> Group:
    """The table for a terminal: the student, its teacher and the best few-step samplers in 80 columns.

    With `is_whole`, every row, and every metric of the first space, in 100 columns.
    """
    metrics = metric_columns(report, [*report.spaces[:1], *(space for space in report.spaces if space.name == CLIP)])
    columns = [NFE, *(metrics if is_whole else metrics[:1]), *distance_columns(report)[:1], speed_column(report)]
    rows = report.rows if is_whole else [row for row in report.rows if row.group != "few-step" or row.best]
    num_hidden = len(report.rows) - len(rows)
    more = ""
    if not is_whole and (num_hidden or metrics[1:]):
        what = f"{counted(num_hidden, 'more row')} and all metrics" if num_hidden else "All metrics"
        more = f"{what}: the same command with --all."
    shown = Table(box=SIMPLE_HEAD, padding=0)
    shown.add_column("sampler", overflow="fold")
    for column in columns:
        width = max(len(_short(column, row, columns)) for row in rows)
        shown.add_column(Text(column.heading), justify="right", min_width=width, overflow="fold")
    for title, members in student_first(grouped([*rows, *reference_rows(report)])):
        shown.add_row(Text(title, style="dim"))
        for row in members:
            texts = [f" {row.sampler}" + f" {BEST}" * row.best, *(_short(column, row, columns) for column in columns)]
            shown.add_row(*map(Text, texts), style="bold" if row.best or row.group == "student" else "")
        shown.add_section()
    title = f"{report.num_samples:,} samples per row against {reference_text(report)}"
    notes = [*cautions(report), *legend(report, columns), _cost_line(report), *filter(None, [more])]
    return Group(Text(title, style="italic"), shown, Text("\n".join(notes), style="dim"))


def _short(column: Column, row: Row, columns: Sequence[Column]) -> str:
    """A figure's mean; the first metric also has its spread."""
    cell = column.cell(row)
    return str(cell._replace(minimum="")) if column is columns[1] else cell.text


def _cost_line(report: Report) -> str:
    networks = [
        f"{name} {cost.parameters:,} parameters, {cost.flops:,} FLOPs, {cost.macs:,} MACs"
        for name, cost in report.cost.items()
    ]
    return "One evaluation: " + "; ".join(networks) if networks else ""
