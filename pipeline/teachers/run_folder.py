"""Networks of this program as teachers: a .safetensors file, or the folder of a training run."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import Network
from pipeline.teachers.classes import TrainedClass

WEIGHTS, INFO = "ema.safetensors", "checkpoint.json"
DIFFUSERS = ("model_index.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class _Info(BaseModel):
    """What a checkpoint.json says of the classes that were trained; the trainer reads the rest."""

    classes: tuple[TrainedClass, ...] = ()


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
    if any((path / name).is_file() for name in DIFFUSERS):
        raise BadInput(
            f"{path}: this is a folder of the diffusers library, which is not read as it is: load it in a function of "
            "your own, by its subfolder such as unet or transformer, and name that as module:factory (docs/teachers.md)"
        )
    raise BadInput(f"{path}: wanted a .safetensors file, a checkpoint or a training run; it holds no {WEIGHTS}")


def load(weights: Path) -> Network:
    """The network in the file `weights`.

    Raises:
        BadInput: it is not a network, or a student's.
    """
    network = networks.load(weights)
    if network.config.second_time:
        raise BadInput(f"{weights}: this is a student's network, with a second time; a teacher has one time")
    return network


def read_classes(weights: Path) -> tuple[TrainedClass, ...]:
    """The classes that the network in `weights` was trained on, by the checkpoint.json beside it; none without one."""
    try:
        return _Info.model_validate_json((weights.parent / INFO).read_bytes()).classes
    except (OSError, ValidationError):
        return ()
