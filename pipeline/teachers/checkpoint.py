"""A teacher from a network of our own: a .safetensors file, or the folder of a training run."""

import hashlib
from pathlib import Path

import torch

from pipeline import networks
from pipeline.errors import BadInput
from pipeline.teachers.teacher import NetworkVelocity, Teacher

WEIGHTS = "ema.safetensors"


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the training run in `run`, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))


def find_weights(path: Path) -> Path:
    """`path` itself if it is a file, else the EMA weights of the checkpoint, or of a run's newest one, at `path`.

    Raises:
        BadInput: there are none.
    """
    if path.is_file():
        return path
    for folder in (path, *reversed(find_checkpoints(path))):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise BadInput(f"{path}: wanted a .safetensors file, a checkpoint or a training run; it holds no {WEIGHTS}")


def file_sha256(weights: Path) -> str:
    """The identity of a teacher whose weights are this file."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path, device: torch.device) -> Teacher:
    """The flow whose weights lie at `path` (see `find_weights`)."""
    weights = find_weights(path)
    network = networks.load(weights).to(device).requires_grad_(False)
    config = network.config
    if config.second_time:
        raise BadInput(f"{weights}: this is a student's network, with a second time; a teacher has one time")
    return Teacher(
        name=path.stem,
        sha256=file_sha256(weights),
        velocity=NetworkVelocity(network),
        shape=config.shape,
        num_classes=config.num_classes,
        network=network,
    )
