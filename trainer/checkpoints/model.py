"""A trained model as the user names it: a run, its training, a checkpoint, a file of weights, an export, or a URL."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.dataset.conditions import ConditionTable
from pipeline.dataset.manifest import read_dataset
from pipeline.networks import DiffusersNetwork, Network
from pipeline.storage.store import open_store
from pipeline.teachers.run_folder import METADATA, WEIGHTS, check_intact, find_checkpoints, find_run
from pipeline.teachers.run_folder import find_weights as find_file
from trainer.checkpoints import checkpoint, mirror
from trainer.checkpoints.checkpoint import CheckpointInfo

DEFAULT_WEIGHTS = Path(WEIGHTS).stem


@dataclass(frozen=True)
class Model:
    """A file of weights, and the description of its training."""

    weights: Path
    info: CheckpointInfo

    @property
    def folder(self) -> Path:
        """The checkpoint, or the folder of a file that is in none."""
        return self.weights.parent

    def load(self) -> Network:
        """The network, on the CPU in evaluation mode.

        Raises:
            BadInput: it is no network, is damaged, or is not of the kind that its description says.
        """
        check_intact(self.weights)
        network = networks.load(self.weights)
        if isinstance(network, DiffusersNetwork):
            network.conditions = _conditions(self.info)
        if network.config.second_time != (self.info.trains == "student"):
            raise BadInput(
                f"{self.weights}: wanted the network of a {self.info.trains}, as its description says; "
                "it is of another kind"
            )
        return network


def _conditions(info: CheckpointInfo) -> ConditionTable | None:
    """What the labels of a student's data stand for; None where the data have gone, or draw from no prompts."""
    data = info.config.get("data")
    store = open_store(data) if isinstance(data, str) else None
    dataset = None if store is None else read_dataset(store)
    if store is None or dataset is None or dataset.plan.conditions is None:
        return None
    return ConditionTable(store, dataset.plan.conditions)


def find_model(source: str | Path, weights: str = DEFAULT_WEIGHTS) -> Model:
    """The model that `source` names, with the weights called `weights` if it is a run or a checkpoint.

    `source` is the folder or URL of a run, of its training or of a checkpoint, the newest of a run; or an exported
    folder, or a .safetensors file of `export` or `average`.

    Raises:
        BadInput: it is none of these, or lacks those weights; or its description cannot be read.
        WorkFailed: a URL cannot be read.
    """
    path, name = mirror.local(str(source)), f"{weights}.safetensors"
    if path.suffix in (".onnx", ".pt2", ".pkl", ".pt", ".pth"):
        raise BadInput(f"{path}: wanted a .safetensors file, or the folder of a run, a checkpoint or an export")
    try:
        file = find_file(path, name)
    except BadInput as error:
        raise BadInput(_complaint(path, weights)) from error
    if file == path and weights not in (DEFAULT_WEIGHTS, path.stem):
        raise BadInput(f"{path}: wanted a run or a checkpoint for the weights {weights!r}; a file holds its own only")
    return Model(file, _info(file))


def save_described(path: Path, network: Network, info: CheckpointInfo | None) -> None:
    """Write the network with the description of its training, if any, in the metadata: the file is whole by itself.

    Raises:
        OSError: the file cannot be written.
    """
    networks.save(path, network, {METADATA: info.model_dump_json()} if info else None)


def _complaint(path: Path, weights: str) -> str:
    checkpoints = [path] if (path / checkpoint.INFO).is_file() else find_checkpoints(find_run(path))
    if not checkpoints:
        return (
            f"{path}: wanted a checkpoint, the folder or URL of a run, or a .safetensors file; "
            f"{'' if path.exists() else 'there is nothing there: '}run traflow-pipeline train first"
        )
    names = [
        file.stem for file in sorted(checkpoints[-1].glob("*.safetensors")) if file.name not in checkpoint.NO_NETWORKS
    ]
    return (
        f"{checkpoints[-1]}: wanted the weights {weights!r} ({weights}.safetensors); "
        f"it holds {', '.join(names) or 'none'}: "
        "name one of these with --weights, or take another checkpoint"
    )


def _info(file: Path) -> CheckpointInfo:
    """The description beside a checkpoint's file, or inside an exported or averaged one, or what its network says."""
    if (file.parent / checkpoint.INFO).is_file():
        return checkpoint.read_info(file.parent)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if METADATA in metadata:
            return CheckpointInfo.model_validate_json(metadata[METADATA])
        return _bare_info(json.loads(metadata["network"]))
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: wanted a .safetensors file of a network, saved by this program") from error


def _bare_info(config: dict[str, Any]) -> CheckpointInfo:
    """The description of a file that only knows its network: nothing is known of its training."""
    network = networks.parse_config(config)
    return CheckpointInfo(
        step=0,
        trains="student" if network.second_time else "teacher",
        recipe="unknown",
        t_start=network.t_start,
        config={},
    )
