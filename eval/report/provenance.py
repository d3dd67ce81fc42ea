"""Where figures come from: package versions, the machine, the training, and the command that reproduces them."""

import shlex
from itertools import pairwise
from pathlib import Path

from eval.results import Generation, Line, Work
from pipeline.common.environment import installed_version
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.summary import read_ledger
from pipeline.storage.store import open_store
from trainer import log
from trainer.checkpoints.checkpoint import CheckpointInfo

PACKAGES = (
    *("traflow-pipeline", "torch", "torchvision", "torchdiffeq", "clean-fid", "torch-fidelity", "prdc", "lpips"),
    *("numpy", "scipy", "pillow", "diffusers", "transformers"),
)
HOUR = 3600.0
MAX_POINTS = 200  # of a curve on a page
NO_CURVES = {"step", "time", "images_seen", "stall", "lr", "skipped"}


def versions() -> dict[str, str]:
    """The versions of the installed packages that figures depend on."""
    found = {name: installed_version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def command(config: Path, world: int) -> str:
    """The command that repeats the evaluation, from the resolved configuration at `config`."""
    program = f"torchrun --nproc-per-node {world} -m traflow_pipeline" if world > 1 else "traflow-pipeline"
    return f"{program} evaluate --config {shlex.quote(str(config))}"


def generation(data: str | None) -> Generation | None:
    """What the trajectories at `data` are and took; None if there are none, or they cannot be read."""
    if data is None:
        return None
    try:
        store = open_store(data)
        manifest, (_, ledger) = read_manifest(store), read_ledger(store)
    except (BadInput, WorkFailed):
        return None
    return Generation(
        num_records=manifest.num_records,
        num_states=manifest.plan.num_states,
        solver=str(manifest.plan.solver),
        nfe=round(manifest.mean_nfe, 1),
        device_hours=ledger.wall_seconds / HOUR,
        machines=tuple(sorted(map(str, ledger.numerics))),
    )


def training_work(run: Path, info: CheckpointInfo) -> Work:
    """What the steps of the training in `run` took, by its log, on the machine of its last checkpoint."""
    return Work(hours=_hours(run, info), num_devices=info.ranks or 1, environment=info.environment)


def _hours(run: Path, info: CheckpointInfo) -> float | None:
    """The time of all steps: between lines of the log, images by their rate, whatever the training waited for."""
    lines = [line for line in log.read_log(run / "log.jsonl") if line.get("images_per_second")]
    if not lines or "trainer" not in info.config:
        return None
    batch_size = info.config["trainer"]["batch_size"]
    steps = [0, *(line["step"] for line in lines)]
    seconds = (
        (after - before) * batch_size / line["images_per_second"]
        for (before, after), line in zip(pairwise(steps), lines, strict=True)
    )
    return float(sum(seconds)) / HOUR


def curves(run: Path) -> tuple[Line, ...]:
    """The losses and speed of a training over its steps, from its log, thinned to `MAX_POINTS`; none without a log."""
    lines = log.read_log(run / "log.jsonl")
    kept = lines[:: -(-len(lines) // MAX_POINTS)] if lines else []
    names = dict.fromkeys(name for line in kept for name in line if name not in NO_CURVES)
    curves = []
    for name in names:
        points = [(line["step"], line[name]) for line in kept if name in line]
        curves.append(Line(name=name, x=tuple(x for x, _ in points), y=tuple(y for _, y in points)))
    return tuple(curves)
