"""Several runs side by side: their figures, whether these may be compared, and what differs between the trainings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.report.tables import NFE, NONE, SPEED, Cell, Column, cost_columns, distance_columns, metric_columns
from eval.results import Report

Runs = Sequence[tuple[str, Report]]
Rows = list[tuple[str, list[Cell]]]  # a sampler and its cells


def table(runs: Runs) -> tuple[list[str], list[tuple[str, Rows]]]:
    """The headings of all runs' columns, and for each run its student's rows (a teacher's own, where it is alone)."""
    columns = [{column.key: column for column in _columns(report)} for _, report in runs]
    names = {column.key: column.heading for own in columns for column in own.values()}
    headings = [name if list(names.values()).count(name) == 1 else f"{name} ({key})" for key, name in names.items()]
    found = []
    for (name, report), own in zip(runs, columns, strict=True):
        rows = report.rows_of("student") or list(report.rows)
        found.append(
            (name, [(row.sampler, [own[key].cell(row) if key in own else Cell(NONE) for key in names]) for row in rows])
        )
    return headings, found


def _columns(report: Report) -> list[Column]:
    return [NFE, *metric_columns(report), *distance_columns(report), *cost_columns(report)[:1], SPEED]


def cautions(runs: Runs) -> list[str]:
    """Why figures of these runs may not be compared, a line for each reason; none where they may."""
    reasons: dict[str, Callable[[Report], object]] = {
        "headline metrics": lambda r: r.headline.heading if r.metrics else NONE,
        "references": lambda r: f"{r.reference.title}, sha256 {r.reference.sha256}",
        "numbers of samples": lambda r: f"{r.num_samples:,}",
        "feature networks": lambda r: "; ".join(f"{s.title}, {s.resizer}, sha256 {s.sha256}" for s in r.spaces),
        "quantisers": lambda r: r.quantiser,
        "seeds of the noise": lambda r: r.seed,
        "teachers (RMSE is to each one's own)": lambda r: r.training["teacher_sha256"],
        "machines (images/s is of each one)": lambda r: r.machine,
    }
    texts = []
    for what, tell in reasons.items():
        told = _runs_by(runs, tell)
        if len(told) > 1:
            parts = (f"{', '.join(names)}: {text}" for text, names in told.items())
            texts.append(f"Not the same {what}. {'. '.join(parts)}.")
    return texts


def _runs_by(runs: Runs, tell: Callable[[Report], object]) -> dict[str, list[str]]:
    """The names of the runs by what is told of them."""
    found: dict[str, list[str]] = {}
    for name, report in runs:
        found.setdefault(str(tell(report)), []).append(name)
    return found


def differences(runs: Runs) -> dict[str, list[str]]:
    """The values of each setting of the training that is not the same in all runs, by its dotted key."""
    settings = [_flat({"step": r.training["step"], **r.training["config"]}) for _, r in runs]
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: [own.get(key, NONE) for own in settings] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} as {"a.b": "1"}; places in lists are numbers."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {prefix: str(value)}
    return {
        key: text for name, item in value.items() for key, text in _flat(item, f"{prefix}.{name}".strip(".")).items()
    }
