"""Weights that this program wrote: a .safetensors file, or the folder of an export, a checkpoint or a run.

A checkpoint's files are only used if they have the sha256 that its checkpoint.json gives.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks.unet import UNet
from pipeline.storage.hashing import file_sha256
from pipeline.teachers.classes import TrainedClass

WEIGHTS, INFO = "ema.safetensors", "checkpoint.json"
EXPORTED = ("student.safetensors", "teacher.safetensors")
STAGE = "train"  # the training inside a whole run
DIFFUSERS = ("model_index.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Damaged(BadInput):
    """A checkpoint whose files differ from what was written; an older one may be intact."""


class _Info(BaseModel):
    """What a checkpoint.json says of the classes that were trained; the trainer reads the rest."""

    classes: tuple[TrainedClass, ...] = ()


def find_run(path: Path) -> Path:
    """The training run at `path`, or of the whole run there: the first of both that holds checkpoints, else `path`."""
    return next((run for run in (path, path / STAGE) if find_checkpoints(run)), path)


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the training run in `run`, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))


def find_weights(path: Path, name: str = WEIGHTS) -> Path:
    """`path` itself if it is a file, else its weights called `name`; of a run those of the newest checkpoint.

    Raises:
        BadInput: there are none.
    """
    if path.is_file():
        return path
    exported = [path / file for file in EXPORTED] if name == WEIGHTS else []
    for file in (path / name, *exported, *(folder / name for folder in reversed(find_checkpoints(find_run(path))))):
        if file.is_file():
            return file
    if any((path / file).is_file() for file in DIFFUSERS):
        raise BadInput(
            f"{path}: this is a folder of the diffusers library, which is not read as it is: load it in a function of "
            "your own, by its subfolder such as unet or transformer, and name that as module:factory (docs/teachers.md)"
        )
    raise BadInput(
        f"{path}: wanted a .safetensors file, or the folder of a run, a checkpoint or an export; it holds no {name}"
    )


def check_intact(weights: Path) -> None:
    """Raises `Damaged` if the checkpoint that `weights` belongs to says that it had other bytes."""
    try:
        files = json.loads((weights.parent / INFO).read_bytes())["files"]
        wanted = files.get(weights.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # not in a checkpoint, or in one that is none: whoever reads its description says so
    if wanted is not None and file_sha256(weights) != wanted:
        raise Damaged(
            f"{weights}: its bytes are not those that were written; name the checkpoint before it, or copy it again"
        )


def load(weights: Path) -> UNet:
    """The teacher's network in the file `weights`.

    Raises:
        BadInput: it is not a network, or a student's, or damaged.
    """
    check_intact(weights)
    network = networks.load(weights)
    if network.config.second_time or not isinstance(network, UNet):
        raise BadInput(f"{weights}: this is a student's network, with a second time; a teacher has one time")
    return network


def read_classes(weights: Path) -> tuple[TrainedClass, ...]:
    """The classes that the network in `weights` was trained on, by the checkpoint.json beside it; none without one."""
    try:
        return _Info.model_validate_json((weights.parent / INFO).read_bytes()).classes
    except (OSError, ValidationError):
        return ()
