"""Averages of other widths than those that a training kept, made from its snapshots."""

from pathlib import Path

from pipeline import networks
from pipeline.common.errors import BadInput, reason
from pipeline.teachers import run_folder
from trainer.checkpoints import checkpoint, snapshots
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.ema import profile_error, reconstruct
from trainer.checkpoints.model import save_described

POOR = 0.05  # of the profile; below it an average is hard to tell from the one that training would have kept


def average(run: Path, sigma_rel: float, out: Path, step: int | None = None) -> float:
    """Write the average of width `sigma_rel` after `step` steps, by default the last; returns its `profile_error`.

    Raises:
        BadInput: no snapshots, none at that step, or a width that no average has; or `out` cannot be written.
    """
    run = run_folder.find_run(run)
    by_step = snapshots.read(run)
    step = max(by_step) if step is None else step
    if step not in by_step:
        raise BadInput(f"{run}: wanted the snapshot of a step, one of {', '.join(map(str, by_step))}; got {step}")
    taken = [snapshot for at, group in by_step.items() if at <= step for snapshot in group]
    num_images = by_step[step][0].num_images
    state = reconstruct(taken, num_images, sigma_rel)
    network = networks.load(taken[0].path)
    network.load_state_dict(state)
    try:
        save_described(out, network, _describe(run, step))
    except OSError as error:
        raise BadInput(f"{out}: cannot be written ({reason(error)}); choose another --out") from error
    return profile_error([(one.num_images, one.sigma_rel) for one in taken], num_images, sigma_rel)


def _describe(run: Path, step: int) -> CheckpointInfo | None:
    """What the newest checkpoint says of the training, but after `step` steps; None without checkpoints."""
    checkpoints = checkpoint.find_all(run)
    if not checkpoints:
        return None
    return checkpoint.read_info(checkpoints[-1]).model_copy(update={"step": step, "files": {}})
