"""Where figures come from: package versions, the machine, the training, and the command that reproduces them."""

import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from eval.results import Line
from trainer import log

PACKAGES = (
    *("traflow-pipeline", "torch", "torchvision", "torchdiffeq", "clean-fid", "torch-fidelity", "prdc", "lpips"),
    *("numpy", "scipy", "pillow", "diffusers", "transformers"),
)
MAX_POINTS = 200  # of a curve on a page
NO_CURVES = {"step", "stall", "lr", "skipped"}


def versions() -> dict[str, str]:
    """The versions of the installed packages that figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def machine(device: torch.device) -> str:
    """The GPU, or the CPU's architecture and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"{platform.machine()}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def command(config: Path, world: int) -> str:
    """The command that repeats the evaluation, from the resolved configuration at `config`."""
    program = f"torchrun --nproc-per-node {world} -m traflow_pipeline" if world > 1 else "traflow-pipeline"
    return f"{program} evaluate --config {shlex.quote(str(config))}"


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
