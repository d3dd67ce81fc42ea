"""Checkpoints: everything a training needs to go on bit for bit, in files that execute nothing.

A checkpoint is a folder `step-NNNNNN` with `network.safetensors`, `ema.safetensors` (either can be loaded as a
network by itself), `optimizer.safetensors` and `checkpoint.json`. Random draws are functions of (seed, step), so there
is no generator state to keep.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline import networks
from pipeline.errors import BadInput, WorkFailed
from pipeline.networks import Network
from pipeline.store import aside_of, sync
from pipeline.teachers import checkpoint as teacher_checkpoint
from trainer.ema import Ema

EMA = teacher_checkpoint.WEIGHTS  # one name, so that a trained teacher's run is found as a teacher


class CheckpointInfo(BaseModel):
    """The content of checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    step: int  # steps done
    trains: Literal["student", "teacher"]
    recipe: str
    teacher: str | None = None  # what loads it, and its weights, for a student
    teacher_sha256: str | None = None
    data_sha256: str | None = None  # of the manifest, or of the images
    t_start: float = 1.0
    t_end: float = 0.0
    guidance_scale: float = 1.0  # of the teacher
    data_range: tuple[float, float] = (-1.0, 1.0)
    config: dict[str, Any]  # the resolved configuration


def save(
    run: Path, info: CheckpointInfo, network: Network, ema: Ema, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write the checkpoint of `info.step` aside, rename it into `run`, and drop all but the newest `keep`.

    Raises:
        WorkFailed: it cannot be written; the checkpoints before it are untouched.
    """
    folder = run / "checkpoints" / f"step-{info.step:06d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder)
    aside.mkdir()
    try:
        networks.save(aside / "network.safetensors", network)
        networks.save(aside / EMA, ema.network)
        save_file(_flatten(optimizer), aside / "optimizer.safetensors")
        (aside / "checkpoint.json").write_text(info.model_dump_json(indent=1))
        for path in (*aside.iterdir(), aside):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise WorkFailed(f"{folder}: cannot be written ({error}); the checkpoint before it is untouched") from error
    for old in find_all(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def restore(folder: Path, network: Network, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    """Put the state in `folder` into `network`, `ema` and `optimizer`.

    Raises:
        BadInput: a file is damaged, or of another network.
    """
    try:
        network.load_state_dict(load_file(folder / "network.safetensors"))
        ema.network.load_state_dict(load_file(folder / EMA))
        state = _unflatten(load_file(folder / "optimizer.safetensors"), list(network.parameters()))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (OSError, SafetensorError, RuntimeError, KeyError, IndexError) as error:
        raise BadInput(
            f"{folder}: cannot be resumed ({' '.join(str(error).split())}); delete it to use the one before"
        ) from error


find_all = teacher_checkpoint.find_checkpoints


def find(path: Path) -> Path:
    """`path` if it is a checkpoint, else the newest one of the training run there.

    Raises:
        BadInput: neither.
    """
    if (path / "checkpoint.json").is_file():
        return path
    found = find_all(path)
    if not found:
        raise BadInput(f"{path}: wanted a checkpoint or the folder of a training run; run traflow-pipeline train first")
    return found[-1]


def read_info(folder: Path) -> CheckpointInfo:
    """The description of a checkpoint.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return CheckpointInfo.model_validate_json((folder / "checkpoint.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise BadInput(f"{folder}: not a checkpoint this version reads") from error


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor.contiguous() for i, values in state.items() for name, tensor in values.items()}


def _unflatten(
    tensors: dict[str, torch.Tensor], parameters: list[torch.nn.Parameter]
) -> dict[int, dict[str, torch.Tensor]]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            # Files are contiguous; a moment must lie in memory as its channels-last parameter does, because the
            # fused optimiser walks through both as they lie.
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    return state
