"""A teacher from a network of our own: a .safetensors file, or the folder of a training run."""

import hashlib
from pathlib import Path

import torch

from pipeline import networks
from pipeline.errors import BadInput
from pipeline.teachers.teacher import NetworkVelocity, Teacher

WEIGHTS = "ema.safetensors"


def find_weights(path: Path) -> Path:
    """`path` itself if it is a file, else the EMA weights of the newest checkpoint in the training run at `path`.

    Raises:
        BadInput: there are none.
    """
    if path.is_file():
        return path
    found = sorted(path.glob(f"checkpoints/step-*/{WEIGHTS}")) or sorted(path.glob(WEIGHTS))
    if not found:
        raise BadInput(f"{path}: wanted a .safetensors file, a checkpoint or a training run; it holds no {WEIGHTS}")
    return found[-1]


def load(path: Path, device: torch.device) -> Teacher:
    """The flow whose weights lie at `path` (see `find_weights`)."""
    weights = find_weights(path)
    network = networks.load(weights).to(device).requires_grad_(False)
    config = network.config
    if config.second_time:
        raise BadInput(f"{weights}: this is a student's network, with a second time; a teacher has one time")
    return Teacher(
        name=path.stem,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        velocity=NetworkVelocity(network),
        shape=config.shape,
        num_classes=config.num_classes,
        network=network,
    )
