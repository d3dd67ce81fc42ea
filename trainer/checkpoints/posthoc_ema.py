"""Snapshots of a run's power-function averages, and averages of other widths made from them after training."""

import json
from pathlib import Path

from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.storage.store import write_folder
from pipeline.teachers import run_folder
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import CheckpointInfo, State
from trainer.checkpoints.ema import Snapshot, profile_error, reconstruct
from trainer.checkpoints.model import save_described

FOLDER = "snapshots"
POOR = 0.05  # of the profile; below it an average is hard to tell from the one that training would have kept


def save(run: Path, state: State, step: int, batch_size: int) -> None:
    """Save a snapshot of the averages of `state` that have a `sigma_rel`, after `step` steps.

    Raises:
        WorkFailed: it cannot be written.
    """
    kept = [average for average in state.averages if average.config.sigma_rel is not None]
    if not kept:
        return
    folder = run / FOLDER / f"step-{step:06d}"
    widths = {average.config.name: average.config.sigma_rel for average in kept}
    description = {"num_images": step * batch_size, "sigma_rel": widths}
    try:
        with write_folder(folder, replace=True) as aside:
            for average in kept:
                networks.save(aside / f"{average.config.name}.safetensors", average.network)
            (aside / "snapshot.json").write_text(json.dumps(description))
    except OSError as error:
        raise WorkFailed(f"{folder}: cannot be written ({reason(error)}); make room and run again") from error


def read(run: Path) -> dict[int, list[Snapshot]]:
    """By step, the snapshots of a run.

    Raises:
        BadInput: there are none.
    """
    by_step: dict[int, list[Snapshot]] = {}
    for about in sorted((run / FOLDER).glob("step-*/snapshot.json")):
        content = json.loads(about.read_text())
        by_step[int(about.parent.name.partition("-")[2])] = [
            Snapshot(content["num_images"], sigma_rel, about.with_name(f"{name}.safetensors"))
            for name, sigma_rel in content["sigma_rel"].items()
        ]
    if not by_step:
        raise BadInput(
            f"{run}: wanted snapshots of averages; it has none: train with averages that have a sigma_rel, "
            'for example --set "trainer.ema=[{}, {name: narrow, sigma_rel: 0.05}, {name: wide, sigma_rel: 0.1}]"'
        )
    return by_step


def average(run: Path, sigma_rel: float, out: Path, step: int | None = None) -> float:
    """Write the average of width `sigma_rel` after `step` steps, by default the last; returns its `profile_error`.

    Raises:
        BadInput: no snapshots, none at that step, or a width that no average has; or `out` cannot be written.
    """
    run = run_folder.find_run(run)
    by_step = read(run)
    step = max(by_step) if step is None else step
    if step not in by_step:
        raise BadInput(f"{run}: wanted the snapshot of a step, one of {', '.join(map(str, by_step))}; got {step}")
    snapshots = [snapshot for at, group in by_step.items() if at <= step for snapshot in group]
    num_images = by_step[step][0].num_images
    state = reconstruct(snapshots, num_images, sigma_rel)
    network = networks.load(snapshots[0].path)
    network.load_state_dict(state)
    try:
        save_described(out, network, _describe(run, step))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({reason(error)}); choose another --out") from error
    return profile_error([(one.num_images, one.sigma_rel) for one in snapshots], num_images, sigma_rel)


def _describe(run: Path, step: int) -> CheckpointInfo | None:
    """What the newest checkpoint says of the training, but after `step` steps; None without checkpoints."""
    checkpoints = checkpoint.find_all(run)
    if not checkpoints:
        return None
    return checkpoint.read_info(checkpoints[-1]).model_copy(update={"step": step, "files": {}})
