"""The report of an evaluation in Markdown: what the student gains, the table, remarks and provenance."""

import re
from collections.abc import Sequence

from eval.report import tables
from eval.report.cautions import cautions
from eval.report.gains import gains
from eval.results import Report

INDENT = "    "  # marks code in Markdown; no text can end such a block


def document(report: Report) -> str:
    """The whole report: gains, the table in the layout of the paper's Tables 4 to 7, remarks and provenance."""
    parts = [
        f"# {escape(report.title)}",
        bullets(gains(report)),
        table(report),
        bullets(remarks(report)),
        "## How to reproduce",
        "In the folder where the evaluation was run:",
        f"{INDENT}{' '.join(report.command.split())}",
        bullets([f"{name}: {text}" for name, text in tables.facts(report).items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def remarks(report: Report) -> list[str]:
    """The remarks below `table`."""
    return [
        *cautions(report),
        *tables.legend(report, _columns(report)),
        "FLOPs and MACs are those of one evaluation of one sample.",
    ]


def table(report: Report) -> str:
    """The table of `document`, by itself."""
    columns = _columns(report)
    headline = 1
    lines = [["Method", *(column.heading for column in columns)], ["---", *["--:"] * len(columns)]]
    for title, rows in tables.grouped([*report.rows, *tables.reference_rows(report)]):
        lines.append([f"*{title}*", *[""] * len(columns)])
        for row in rows:
            cells = [escape(row.sampler), *(escape(str(column.cell(row))) for column in columns)]
            if row.best:
                cells[0], cells[1 + headline] = f"**{cells[0]}** {tables.BEST}", f"**{cells[1 + headline]}**"
            lines.append(cells)
    head, rule, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(map(escape, head)), rule, *rest])


def _columns(report: Report) -> list[tables.Column]:
    scores = [*tables.metric_columns(report), *tables.distance_columns(report)]
    return [tables.NFE, *scores, *tables.cost_columns(report), tables.speed_column(report)]


def bullets(texts: Sequence[str]) -> str:
    """A Markdown list of `texts`, escaped."""
    return "\n".join(f"- {escape(text)}" for text in texts)


def escape(text: str) -> str:
    """Escape `text` to one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", " ".join(text.split()))
