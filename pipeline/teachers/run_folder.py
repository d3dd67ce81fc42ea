"""Weights that this program wrote: a .safetensors file, or the folder of an export, a checkpoint or a run.

A checkpoint's files are only used if they have the sha256 that its checkpoint.json gives.
"""

import re
from pathlib import Path

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import FlowNetwork
from pipeline.storage.hashing import file_sha256
from pipeline.teachers.classes import TrainedClass

WEIGHTS, INFO = "ema.safetensors", "checkpoint.json"
METADATA = "checkpoint"  # of an exported or averaged file: the description of the checkpoint that it is made from
EXPORTED = ("student.safetensors", "teacher.safetensors")
CHECKPOINTS = "checkpoints"
STAGE = "train"  # the training inside a whole run
STEP = re.compile("step-[0-9]{1,18}")
DIFFUSERS = ("model_index.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Damaged(BadInput):
    """A checkpoint whose files differ from what was written; an older one may be intact."""


class Training(BaseModel):
    """What a checkpoint.json says of a teacher's files and of its data; the trainer reads the rest."""

    classes: tuple[TrainedClass, ...] = ()
    data_range: tuple[float, float] = (-1.0, 1.0)
    files: dict[str, str] = {}  # the sha256 of each


def find_run(path: Path) -> Path:
    """The training run at `path`, of the whole run there, or whose folder of checkpoints it is; else `path`."""
    around = [path.parent] if path.name == CHECKPOINTS else []
    return next((run for run in (path, path / STAGE, *around) if find_checkpoints(run)), path)


def find_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of the training run in `run`, oldest first."""
    return sorted((path for path in (run / CHECKPOINTS).glob("step-*") if is_step(path.name)), key=step_of)


def is_step(name: str) -> bool:
    """Whether `name` is a checkpoint's, "step-000800"; others' folders may lie beside them ("step-best")."""
    return STEP.fullmatch(name) is not None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.partition("-")[2])


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
            "your own, by its subfolder such as unet or transformer, and name that as module:factory "
            "(docs/how-to/teacher.md)"
        )
    raise BadInput(
        f"{path}: wanted a .safetensors file, or the folder of a run, a checkpoint or an export; it holds no {name}"
    )


def check_intact(weights: Path) -> None:
    """Raises `Damaged` if the checkpoint that `weights` belongs to says that it had other bytes, or cannot be read."""
    beside = weights.parent / INFO
    wanted = _read_info(beside).files.get(weights.name) if beside.is_file() else None
    if wanted is not None and file_sha256(weights) != wanted:
        raise Damaged(
            f"{weights}: its bytes are not those that were written; name the checkpoint before it, or copy it again"
        )


def load(weights: Path) -> FlowNetwork:
    """The teacher's network in the file `weights`.

    Raises:
        BadInput: it is not a network, or a student's, or damaged.
    """
    check_intact(weights)
    network = networks.load(weights)
    if network.config.second_time or not isinstance(network, FlowNetwork):
        raise BadInput(f"{weights}: this is a student's network, with a second time; a teacher has one time")
    return network


def read_training(weights: Path) -> Training:
    """What is known of the training of the network in `weights`; nothing where nothing describes it.

    That is a checkpoint's checkpoint.json, or in the metadata of an exported or averaged file.

    Raises:
        Damaged: the checkpoint.json cannot be read.
    """
    beside = weights.parent / INFO
    if beside.is_file():
        return _read_info(beside)
    try:
        with safe_open(weights, framework="pt") as file:
            return Training.model_validate_json((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValidationError):
        return Training()


def _read_info(file: Path) -> Training:
    try:
        return Training.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise Damaged(
            f"{file}: not a checkpoint this version reads: name the one before it, or copy it again"
        ) from error
