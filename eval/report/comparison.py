"""Several runs side by side: their figures, why these may not be comparable, and how the trainings differ."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval.report.tables import (
    NFE,
    NONE,
    Cell,
    Column,
    cost_columns,
    distance_columns,
    metric_columns,
    reference_rows,
    speed_column,
)
from eval.report.words import config_without_paths
from eval.results import Report, Row

Runs = Sequence[tuple[str, Report]]
FIRST = 2  # columns that a terminal has room for: evaluations and the headline
Rows = list[tuple[str, list[Cell]]]  # a sampler and its cells


def table(runs: Runs) -> tuple[list[str], list[tuple[str, Rows]]]:
    """The headings of all runs' columns, and each run's student rows (all rows, for a teacher alone)."""
    columns = [{column.key: column for column in _columns(report)} for _, report in runs]
    names = {column.key: column.heading for own in columns for column in own.values()}
    headings = [name if list(names.values()).count(name) == 1 else f"{name} ({key})" for key, name in names.items()]
    run_rows = []
    for (name, report), own in zip(runs, columns, strict=True):
        rows = report.rows_of("student") or list(report.rows)
        run_rows.append(
            (name, [(row.sampler, [own[key].cell(row) if key in own else Cell(NONE) for key in names]) for row in rows])
        )
    return headings, run_rows


def _columns(report: Report) -> list[Column]:
    return [NFE, *metric_columns(report), *distance_columns(report), *cost_columns(report)[:1], speed_column(report)]


def terminal(runs: Runs) -> Table:
    """The table for a terminal: of `table` each run's evaluations, first metric, RMSE to the teacher and images/s."""
    headings, rows = table(runs)
    shown = [i for i, heading in enumerate(headings) if i < FIRST or heading == "RMSE" or heading.endswith("/s")]
    found = Table(box=SIMPLE_HEAD, padding=0)
    for title in ("run", "sampler"):
        found.add_column(title, overflow="fold")
    for i in shown:
        found.add_column(Text(headings[i]), justify="right", overflow="fold")
    for name, samplers in rows:
        for sampler, cells in samplers:
            found.add_row(*map(Text, (name, sampler, *(str(cells[i]._replace(minimum="")) for i in shown))))
        found.add_section()
    return found


def as_csv(runs: Runs) -> str:
    """Every row of every run with all its figures, unrounded: metrics as means, and in KEY_sd their spread."""
    keys = dict.fromkeys(metric.key for _, report in runs for metric in report.metrics)
    lines = [
        _figures(name, report, row, keys) for name, report in runs for row in [*report.rows, *reference_rows(report)]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _figures(name: str, report: Report, row: Row, keys: Iterable[str]) -> dict[str, object]:
    figures: dict[str, object] = {"run": name, "model": row.model, "group": row.group, "sampler": row.sampler}
    figures["evaluations"] = row.nfe or None
    for key in keys:
        figure = row.scores.get(key)
        figures |= {key: figure and figure.mean, f"{key}_sd": figure and figure.spread}
    return figures | {
        "rmse_to_teacher": row.rmse,
        "lpips_to_teacher": row.lpips,
        "images_per_second": row.images_per_second or None,
        "num_samples": report.num_samples,
    }


def cautions(runs: Runs) -> list[str]:
    """Why figures of these runs are not comparable, a line for each reason; none if they are."""
    properties: dict[str, Callable[[Report], object]] = {
        "headline metrics": lambda r: r.headline.heading if r.metrics else NONE,
        "references": lambda r: f"{r.reference.title}, sha256 {r.reference.sha256}",
        "prompts": lambda r: NONE if r.prompts is None else f"{r.prompts.num_prompts:,}, sha256 {r.prompts.sha256}",
        "numbers of samples": lambda r: f"{r.num_samples:,}",
        "feature networks": lambda r: "; ".join(f"{s.title}, {s.resizer}, sha256 {s.sha256}" for s in r.spaces),
        "quantisers": lambda r: r.quantiser,
        "seeds of the noise": lambda r: r.seed,
        "teachers (RMSE is to each run's own)": lambda r: r.training.teacher_sha256,
        "machines (images/s depends on them)": lambda r: r.machine,
    }
    texts = []
    for name, describe in properties.items():
        groups = _group_runs(runs, describe)
        if len(groups) > 1:
            parts = (f"{', '.join(names)}: {text}" for text, names in groups.items())
            texts.append(f"Not the same {name}. {'. '.join(parts)}.")
    return texts


def _group_runs(runs: Runs, describe: Callable[[Report], object]) -> dict[str, list[str]]:
    """The names of the runs, grouped by their descriptions."""
    groups: dict[str, list[str]] = {}
    for name, report in runs:
        groups.setdefault(str(describe(report)), []).append(name)
    return groups


def differences(runs: Runs) -> dict[str, list[str]]:
    """The training settings that differ between runs: the dotted key, and each run's value."""
    settings = [_flat({"step": r.training.step, **config_without_paths(r.training.config)}) for _, r in runs]
    keys = dict.fromkeys(key for own in settings for key in own if key != "out")
    values = {key: [own.get(key, NONE) for own in settings] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} as {"a.b": "1"}; a list's keys are indices."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {prefix: str(value)}
    return {
        key: text for name, item in value.items() for key, text in _flat(item, f"{prefix}.{name}".strip(".")).items()
    }
