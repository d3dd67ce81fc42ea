"""The files of an evaluation: figures, tables, pictures, a page, and a model card beside the weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from eval.report import model_card, page, paper, tables
from eval.results import METRICS, Report, read_report
from pipeline.common.config import resolved
from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.common.image_grid import Images, encode_rows
from pipeline.storage.store import open_store, write_file

CONFIG, PAGE, TABLE, CARD = "evaluate.yaml", "report.html", "report.md", "MODEL_CARD.md"
REPORT = "report"  # of a whole run
GRID, GRID_ALL, STRIPS = "grid.png", "grid-all.png", "strips.png"
WRITTEN = (CONFIG, TABLE, GRID, GRID_ALL, STRIPS, PAGE, METRICS)  # the metrics come last: they mark a complete report
GRID_EVALUATIONS = (1, 2, 4)  # of the student's rows in the small grid


def write(
    folder: Path,
    config: BaseModel,
    report: Report,
    grid: Mapping[str, Images],
    strips: Mapping[str, Images],
    run: Path,
) -> None:
    """Write all files of the report into `folder`, and the model card into `run`, beside the weights.

    `grid` holds images uint8 [n, C, H, W] by `Row.title`; `strips` holds states uint8 [T, C, H, W] by title.

    Raises:
        WorkFailed: a file cannot be written.
    """
    write_file(folder / CONFIG, resolved(config, "evaluate").encode())
    write_file(folder / TABLE, tables.markdown(report).encode())
    for name, rows in ((GRID, _chosen(report, grid)), (GRID_ALL, grid), (STRIPS, strips)):
        if rows:
            write_file(folder / name, encode_rows(rows))
    write_file(folder / PAGE, page.render(report, grid, strips).encode())
    write_file(run / CARD, model_card.card(report).encode())
    write_file(folder / METRICS, report.model_dump_json(indent=1).encode())


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


def _chosen(report: Report, grid: Mapping[str, Images]) -> dict[str, Images]:
    """The rows of the small grid: the teacher with its own solver, and the student with few evaluations."""
    titles = [
        row.title
        for row in report.rows
        if row.group == "solver" or (row.group == "student" and row.nfe in GRID_EVALUATIONS)
    ]
    return {title: grid[title] for title in titles if title in grid}


def paper_table(name: str, folders: Sequence[Path]) -> str:
    """The table `name` of the paper, in Markdown, with the figures of the evaluations in `folders` beside its own.

    The row of an evaluation is the name of the run's folder; several of one row become a mean.

    Raises:
        BadInput: no such table, a folder holds no evaluation, or its name is no row of the table.
    """
    found = map(_report_folder, folders)
    return paper.markdown(name, [(row_name(folder), read_report(folder)) for folder in found])


def row_name(folder: Path) -> str:
    """The name of the run that the report in `folder` is of."""
    inner = folder.resolve()
    return inner.parent.name if inner.name == REPORT else inner.name


def _report_folder(folder: Path) -> Path:
    """The report in `folder`, or in the whole run there."""
    return folder / REPORT if not (folder / METRICS).exists() and (folder / REPORT / METRICS).exists() else folder


def compare(folders: Sequence[Path], out: Path) -> None:
    """Write a page that compares the evaluations in `folders`, or of the whole runs there.

    Raises:
        BadInput: a folder holds no evaluation, or `out` cannot be written.
    """
    names, folders = _short_names(folders), [_report_folder(folder) for folder in folders]
    runs = [
        (name, read_report(folder), _read_if_present(folder / GRID))
        for name, folder in zip(names, folders, strict=True)
    ]
    try:
        write_file(out, page.render_comparison(runs).encode())
    except WorkFailed as error:
        raise BadInput(f"{error}") from error


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path if all of these differ, else the full paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _read_if_present(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
