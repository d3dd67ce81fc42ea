"""Checkpoints: all that resuming a training bit for bit takes, in files that execute nothing.

A checkpoint is a folder `step-NNNNNN` with `network.safetensors`, `ema.safetensors` (either can be loaded as a
network by itself), `optimizer.safetensors` and `checkpoint.json`; networks that terms of the recipe
own lie with their optimisers in `owned.safetensors`. Random draws are functions of (seed, step), so there is no
generator state to keep.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import networks
from pipeline.common.environment import Environment
from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.networks import Network
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_folder
from pipeline.teachers import run_folder
from pipeline.teachers.classes import TrainedClass
from pipeline.teachers.run_folder import INFO as INFO
from pipeline.teachers.run_folder import Damaged as Damaged
from trainer.checkpoints.companion import Companion
from trainer.checkpoints.ema import Ema
from trainer.checkpoints.sharding import gather, placed

EMA = run_folder.WEIGHTS  # one name, so that a trained teacher's run is found as a teacher
OPTIMIZER = "optimizer.safetensors"
OWNED = "owned.safetensors"
NO_NETWORKS = (OPTIMIZER, OWNED)  # files that are no network
SCALE = "scale"  # of the gradients, in half precision
# Of a file in the checkpoint's folder, whose bytes are hashed: never of a device or another folder's file.
FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]


class CheckpointInfo(BaseModel):
    """The content of checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1  # of checkpoint.json
    step: int = Field(ge=0, lt=2**63)  # steps done
    trains: Literal["student", "teacher"]  # what was trained
    recipe: str  # its name
    teacher: str | None = None  # what loads it, and its weights, for a student
    teacher_sha256: str | None = None  # of its weights, or what a function of the user's gives as its digest
    data_sha256: str | None = None  # of the manifest, or of the images
    start_sha256: str | None = None  # of the weights that the run started from, where `start` names a model
    t_start: float = 1.0  # where the flow begins, at noise
    t_end: float = 0.0  # and where it ends, at data
    step_shift: float = Field(default=1.0, gt=0, exclude_if=lambda shift: shift == 1)  # of the student's times
    guidance_scale: float = 1.0  # of the teacher
    data_range: tuple[float, float] = (-1.0, 1.0)  # of samples; of images black and white
    classes: tuple[TrainedClass, ...] = Field(default=(), exclude_if=lambda classes: not classes)
    distance_sha256: dict[str, str] = Field(default={}, exclude_if=lambda digests: not digests)  # of LPIPS's networks
    environment: Environment | None = Field(default=None, exclude_if=lambda known: known is None)
    ranks: int | None = Field(default=None, exclude_if=lambda ranks: ranks is None)  # processes that trained
    config: dict[str, Any]  # the resolved configuration
    files: dict[FileName, str] = {}  # the sha256 of each


@dataclass(frozen=True)
class Provenance:
    """What a network was trained on: the fields of `CheckpointInfo` that a run's data and teacher decide."""

    data_sha256: str
    teacher: str | None = None
    teacher_sha256: str | None = None
    start_sha256: str | None = None
    t_start: float = 1.0
    t_end: float = 0.0
    guidance_scale: float = 1.0
    data_range: tuple[float, float] = (-1.0, 1.0)
    classes: tuple[TrainedClass, ...] = ()  # those with images, where the network has classes
    distance_sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The mutable training state that a checkpoint restores."""

    network: Network
    averages: Sequence[Ema]  # the first is what teachers and evaluations take
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    owned: Mapping[str, Companion] = field(default_factory=dict)  # by the title of the term that owns it

    def networks(self) -> dict[str, Network]:
        """By the name of its file, the network and its averages."""
        return {"network.safetensors": self.network} | {self.file_of(one): one.network for one in self.averages}

    def file_of(self, average: Ema) -> str:
        """The name of the file of one of its averages."""
        return EMA if average is self.averages[0] else f"ema-{average.config.name}.safetensors"


class Contents(NamedTuple):
    """The tensors and the metadata of a file."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] | None = None


def collect(state: State) -> dict[str, Contents]:
    """The contents of a checkpoint's files by their names; of a state in shards on the first rank, if all call it."""
    contents = {name: _contents(network) for name, network in state.networks().items()}
    contents[OPTIMIZER] = Contents(gather(_flatten(state)))
    if state.owned:
        contents[OWNED] = Contents(dict(_flatten_owned(state.owned)))
    return contents


def _contents(network: Network) -> Contents:
    whole = gather(network.state_dict())
    return Contents({name: tensor.float().contiguous() for name, tensor in whole.items()}, networks.described(network))


def save(run: Path, info: CheckpointInfo, contents: Mapping[str, Contents], keep: int) -> Path:
    """Write the checkpoint of `info.step` aside, rename it into `run`, and drop all but the newest `keep`.

    Raises:
        WorkFailed: it cannot be written; the checkpoints before it are untouched.
    """
    folder = run / "checkpoints" / f"step-{info.step:06d}"
    try:
        with write_folder(folder, replace=True) as aside:
            for name, (tensors, metadata) in contents.items():
                networks.save_tensors(aside / name, tensors, metadata)
            files = {path.name: file_sha256(path) for path in sorted(aside.iterdir())}
            (aside / INFO).write_text(info.model_copy(update={"files": files}).model_dump_json(indent=1))
    except OSError as error:
        raise WorkFailed(
            f"{folder}: cannot be written ({reason(error)}); the checkpoint before it is untouched"
        ) from error
    for old in find_all(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def restore(folder: Path, info: CheckpointInfo, state: State) -> None:
    """Load the checkpoint `folder`, described by `info`, into `state`.

    Raises:
        Damaged: a file differs from what was written, or belongs to another network.
    """
    try:
        for name, digest in info.files.items():
            if file_sha256(folder / name) != digest:
                raise Damaged(f"{folder / name}: its bytes are not those that were written")
        for name, network in state.networks().items():
            _load_weights(network, load_file(folder / name))
        tensors = load_file(folder / OPTIMIZER)
        scale = tensors.pop(SCALE, None)
        if scale is not None and state.scaler.is_enabled():
            state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale.item()})
        _load_moments(state.optimizer, state.network, tensors)
        if state.owned:
            _restore_owned(state.owned, load_file(folder / OWNED))
    except (OSError, SafetensorError, RuntimeError, KeyError, IndexError) as error:
        raise Damaged(f"{folder}: cannot be resumed ({' '.join(str(error).split())})") from error


def _load_weights(network: Network, tensors: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    network.load_state_dict({name: placed(tensor, own.get(name, tensor)) for name, tensor in tensors.items()})


find_all = run_folder.find_checkpoints


def find(path: Path) -> Path:
    """`path` if it is a checkpoint, else the newest one of the training run, or of the whole run, there.

    Raises:
        BadInput: neither.
    """
    if (path / INFO).is_file():
        return path
    checkpoints = find_all(run_folder.find_run(path))
    if not checkpoints:
        raise BadInput(f"{path}: wanted a checkpoint or the folder of a training run; run traflow-pipeline train first")
    return checkpoints[-1]


def read_info(folder: Path) -> CheckpointInfo:
    """The checkpoint.json of the checkpoint `folder`.

    Raises:
        Damaged: the file is missing or invalid.
    """
    try:
        return CheckpointInfo.model_validate_json((folder / INFO).read_bytes())
    except (OSError, ValidationError) as error:
        raise Damaged(f"{folder}: not a checkpoint this version reads") from error


def _flatten_owned(owned: Mapping[str, Companion]) -> Iterator[tuple[str, Tensor]]:
    for number, companion in enumerate(owned.values()):
        for name, tensor in companion.network.state_dict().items():
            yield f"{number}.weights.{name}", tensor.contiguous()
        if companion.optimizer is not None:
            yield from ((f"{number}.moments.{name}", tensor) for name, tensor in _moments(companion.optimizer).items())


def _restore_owned(owned: Mapping[str, Companion], tensors: Mapping[str, Tensor]) -> None:
    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    for number, companion in enumerate(owned.values()):
        companion.network.load_state_dict(below(f"{number}.weights."))
        if companion.optimizer is not None:
            _load_moments(companion.optimizer, companion.network, below(f"{number}.moments."))


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What an optimiser of `network` gets, in the order in which moments are numbered."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _load_moments(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    moments = _unflatten(tensors, trained_parameters(network))
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor.contiguous() for i, values in moments.items() for name, tensor in values.items()}


def _flatten(state: State) -> dict[str, Tensor]:
    tensors = _moments(state.optimizer)
    if state.scaler.is_enabled():
        tensors[SCALE] = torch.tensor(state.scaler.get_scale())
    return tensors


def _unflatten(tensors: dict[str, Tensor], parameters: list[torch.nn.Parameter]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            # Files are contiguous; a moment must lie in memory as its channels-last parameter does, because the
            # fused optimiser walks through both as they lie.
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(placed(tensor, like))
        state.setdefault(int(number), {})[name] = tensor
    return state
