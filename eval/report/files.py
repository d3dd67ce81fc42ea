"""The files of an evaluation: figures, tables, pictures, a page, and a model card beside the weights."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.table import Table

from eval.report import comparison, markdown, model_card, page, paper
from eval.report.pictures import Pictures
from eval.results import METRICS, Report, find_report, read_report
from pipeline.common.config import differences, resolved
from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.common.image_grid import encode_rows
from pipeline.storage.store import is_url, open_store, write_file

CONFIG, PAGE, TABLE, CARD = "evaluate.yaml", "report.html", "report.md", "MODEL_CARD.md"
REPORT = "report"  # of a whole run
GRID, GRID_ALL, STRIPS = "grid.png", "grid-all.png", "strips.png"
WRITTEN = (CONFIG, TABLE, GRID, GRID_ALL, STRIPS, PAGE, METRICS)  # the metrics come last: they mark a complete report
# The settings of every sample, in a configuration.
SAMPLES = (
    "weights",
    "reference",
    "features",
    "prompts",
    "num_samples",
    "seed",
    "teacher_solver",
    "precision",
    "batch_size",
)
NUM_COLUMNS = 16  # of the grids


def write(
    folder: Path,
    config: BaseModel,
    report: Report,
    pictures: Pictures,
    run: Path,
) -> None:
    """Write all files of the report into `folder`, and the model card into `run`, beside the weights.

    Raises:
        WorkFailed: a file cannot be written.
    """
    write_file(folder / CONFIG, resolved(config, "evaluate").encode())
    write_file(folder / TABLE, markdown.document(report).encode())
    grid = {title: images[:NUM_COLUMNS] for title, images in pictures.samples.items()}
    strip = {row.title: grid[row.title] for row in page.strip_rows(report, grid)}
    for name, rows in ((GRID, strip), (GRID_ALL, grid), (STRIPS, pictures.paths)):
        if rows:
            write_file(folder / name, encode_rows(rows))
    write_file(folder / PAGE, page.render(report, pictures).encode())
    write_file(run / CARD, model_card.card(report).encode())
    write_file(folder / METRICS, report.model_dump_json(indent=1).encode())


def check_same(config: BaseModel, location: str) -> None:
    """Raises `BadInput` if `location` holds a report over other samples, which one of `config` would replace."""
    there, asked = _evaluated(location), config.model_dump(mode="json")
    # What one of them leaves out is its default, which may be the other's choice.
    said = [key for key in SAMPLES if there.get(key) is not None and asked.get(key) is not None]
    said += ["checkpoint"] if _is_another_run(there.get("checkpoint"), asked["checkpoint"]) else []
    if fields := differences(*({key: each[key] for key in said} for each in (there, asked))):
        raise BadInput(f"{location} holds another evaluation ({fields}); choose another --out, or remove it")


def _evaluated(location: str) -> dict[str, Any]:
    """The settings of the report at `location`; nothing where there is none that can be read."""
    with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        contents = open_store(location).read_all([CONFIG, METRICS])
        if METRICS in contents:
            return dict(yaml.safe_load(contents[CONFIG])["evaluate"])
    return {}


def _is_another_run(there: Any, asked: str) -> bool:
    """Whether both are places that exist, and neither lies in the other."""
    if not isinstance(there, str) or is_url(there) or is_url(asked) or not Path(there).exists():
        return False
    a, b = Path(there).resolve(), Path(asked).resolve()
    return a != b and a not in b.parents and b not in a.parents


def upload(folder: Path, location: str, names: Sequence[str] = WRITTEN) -> None:
    """Upload those of the files `names` that exist in `folder` to the store at `location`.

    Raises:
        WorkFailed: the store cannot be written.
    """
    store = open_store(location)
    try:
        for name in names:
            if (folder / name).is_file():
                store.write(name, (folder / name).read_bytes())
    except OSError as error:
        raise WorkFailed(f"{location}: {name} cannot be uploaded there ({reason(error)})") from error


def paper_table(name: str, locations: Sequence[str]) -> str:
    """The table `name` of the paper, in Markdown, with the figures of the evaluations at `locations` beside its own.

    The row of an evaluation is the name of the run's folder; several of one row become a mean.

    Raises:
        BadInput: no such table, one holds no evaluation or cannot be read, or its name is no row of the table.
    """
    return paper.markdown(name, [_open(row_name(location), location)[:2] for location in locations])


def row_name(location: str) -> str:
    """The name of the run that the report at `location` is of."""
    parts = location.rstrip("/").split("/") if is_url(location) else list(Path(location).resolve().parts)
    return parts[-2] if parts[-1] == REPORT and len(parts) > 1 else parts[-1]


def compare(locations: Sequence[str], out: Path, csv: Path | None = None) -> tuple[Table, list[str]]:
    """Write a page that compares the evaluations at `locations`: folders or URLs of reports, or of whole runs.

    Their figures go into the file `csv` too. Returns a table for a terminal, and why its figures are not comparable.

    Raises:
        BadInput: one holds no evaluation or cannot be read, or a file cannot be written.
    """
    runs = [_open(name, location) for name, location in zip(_short_names(locations), locations, strict=True)]
    named = [(name, report) for name, report, _ in runs]
    try:
        write_file(out, page.render_comparison(runs).encode())
        if csv is not None:
            write_file(csv, comparison.as_csv(named).encode())
    except WorkFailed as error:
        raise BadInput(f"{error}") from error
    return comparison.terminal(named), comparison.cautions(named)


def _open(name: str, location: str) -> tuple[str, Report, bytes | None]:
    """The evaluation at `location`, called `name`, and the picture of its samples, if there is one."""
    try:
        found = find_report(location)
        return name, read_report(found), open_store(found).read_all([GRID]).get(GRID)
    except OSError as error:
        raise BadInput(f"{location}: cannot be read ({reason(error)})") from error


def _short_names(locations: Sequence[str]) -> list[str]:
    """The last part of each path or URL if all of these differ, else all of it."""
    names = [
        location.rstrip("/").rpartition("/")[2] if is_url(location) else Path(location).resolve().name
        for location in locations
    ]
    return names if len(set(names)) == len(names) else list(locations)
