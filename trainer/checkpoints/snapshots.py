"""Snapshots of a run's power-function averages, from which averages of other widths are made after training."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_folder
from pipeline.teachers.run_folder import is_step, step_of
from trainer.checkpoints.checkpoint import Contents, FileName, State
from trainer.checkpoints.ema import Snapshot

FOLDER, DESCRIPTION = "snapshots", "snapshot.json"


class _Description(BaseModel):
    """The content of snapshot.json."""

    model_config = ConfigDict(frozen=True)

    num_images: int = Field(gt=0, lt=2**63)
    sigma_rel: dict[FileName, float]  # of each average, by name
    files: dict[FileName, str] = {}  # the sha256 of each; older snapshots have none


def save(run: Path, state: State, contents: Mapping[str, Contents], step: int, batch_size: int) -> None:
    """Save a snapshot of the averages of `state` that have a `sigma_rel`, after `step` steps, from its `contents`.

    Raises:
        WorkFailed: it cannot be written.
    """
    widths = {average.config.name: average.config.sigma_rel for average in state.averages}
    kept = {name: width for name, width in widths.items() if width is not None}
    if not kept:
        return
    folder = run / FOLDER / f"step-{step:06d}"
    try:
        with write_folder(folder, replace=True) as aside:
            for average in state.averages:
                if average.config.name in kept:
                    networks.save_tensors(
                        aside / f"{average.config.name}.safetensors", *contents[state.file_of(average)]
                    )
            files = {path.name: file_sha256(path) for path in sorted(aside.iterdir())}
            description = _Description(num_images=step * batch_size, sigma_rel=kept, files=files)
            (aside / DESCRIPTION).write_text(description.model_dump_json())
    except OSError as error:
        raise WorkFailed(f"{folder}: cannot be written ({reason(error)}); make room and run again") from error


def find_all(run: Path) -> list[Path]:
    """The folders of a run's snapshots, oldest first."""
    return sorted((path for path in (run / FOLDER).glob("step-*") if is_step(path.name)), key=step_of)


def read(run: Path) -> dict[int, list[Snapshot]]:
    """By step, the snapshots of a run.

    Raises:
        BadInput: there are none, or one is damaged.
    """
    by_step: dict[int, list[Snapshot]] = {}
    for folder in find_all(run):
        about = _read_description(folder)
        by_step[step_of(folder)] = [
            Snapshot(about.num_images, sigma_rel, folder / f"{name}.safetensors")
            for name, sigma_rel in about.sigma_rel.items()
        ]
    if not by_step:
        raise BadInput(
            f"{run}: wanted snapshots of averages; it has none: train with averages that have a sigma_rel, "
            'for example --set "trainer.ema=[{}, {name: narrow, sigma_rel: 0.05}, {name: wide, sigma_rel: 0.1}]"'
        )
    return by_step


def _read_description(folder: Path) -> _Description:
    try:
        about = _Description.model_validate_json((folder / DESCRIPTION).read_bytes())
        damaged = [name for name, digest in about.files.items() if file_sha256(folder / name) != digest]
    except (OSError, ValidationError) as error:
        raise BadInput(
            f"{folder}: not a whole snapshot that this version reads; remove it to average others"
        ) from error
    if damaged:
        raise BadInput(
            f"{folder / damaged[0]}: its bytes are not those that were written; remove the snapshot, {folder}"
        )
    return about
