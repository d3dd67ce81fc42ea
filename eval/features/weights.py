"""Files of others that feature networks need: where they lie, where they come from, and that they are the right ones.

The sha256 of a pinned file is checked before anything loads it: a TorchScript file is code.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.storage.cache import cache_folder
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_atomic
from pipeline.teachers.download import fetch, page

FOLDER = "TRAFLOW_WEIGHTS"  # the environment variable that names the folder of weights
OFFLINE = ("TRAFLOW_OFFLINE", "HF_HUB_OFFLINE")  # the environment variables that forbid downloads
DINOV2 = "facebook/dinov2-large"


class Unavailable(WorkFailed):
    """A file or a package that others publish is not here and could not be had."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file: its name in the folder of weights, its source for `fetch`, and where other programs put it."""

    name: str
    source: str
    sha256: str | None  # None: not pinned, since it is data whatever it holds
    elsewhere: Callable[[], Sequence[Path]]


def _at_clean_fid() -> Sequence[Path]:
    return [Path("/tmp/inception-2015-12-05.pt")]


def _at_torch_hub() -> Sequence[Path]:
    """Where pytorch-fid and torch-fidelity keep the same file."""
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    return [checkpoints / f"{origin}inception-2015-12-05-6726825d.pth" for origin in ("pt_", "weights-")]


def _at_hub(file: str) -> Sequence[Path]:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(DINOV2, file)
    return [Path(found)] if isinstance(found, str) else []


FILES: dict[str, WeightsFile] = {
    "inception": WeightsFile(
        "inception-2015-12-05.pt",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        _at_clean_fid,
    ),
    "inception-torch": WeightsFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        _at_torch_hub,
    ),
    "dinov2": WeightsFile(
        "dinov2-large/model.safetensors",
        f"hf://{DINOV2}/model.safetensors",
        None,
        lambda: _at_hub("model.safetensors"),
    ),
    "dinov2-config": WeightsFile(
        "dinov2-large/config.json", f"hf://{DINOV2}/config.json", None, lambda: _at_hub("config.json")
    ),
}


def folder() -> Path:
    """The folder of weights: $TRAFLOW_WEIGHTS, or traflow-pipeline/weights in the user's cache."""
    return cache_folder("weights", FOLDER)


def require(key: str) -> Path:
    """The path of the file FILES[key], which is downloaded if it is nowhere; a pinned one has its sha256.

    Raises:
        BadInput: another file has its place.
        Unavailable: it could not be had.
    """
    file = FILES[key]
    path = folder() / file.name
    if not path.is_file():
        found = _adopt(file, path)
        if found is not None:
            return found
        obtain(file.source, path)
    digest = file_sha256(path)
    if digest != (file.sha256 or digest):
        raise BadInput(
            f"{path}: wanted the file whose sha256 is {file.sha256}; it is {digest}: "
            f"remove it, and put the file from {page(file.source)} there"
        )
    return path


def _adopt(file: WeightsFile, path: Path) -> Path | None:
    """Where another program has put the file: copied from there to `path` if it is pinned, else in its place."""
    for other in file.elsewhere():
        if not other.is_file():
            continue
        if file.sha256 is None:
            return other
        # What is loaded must be what was hashed, and clean-fid's /tmp is open to everybody.
        payload = other.read_bytes()
        if sha256(payload).hexdigest() == file.sha256:
            _put(path, payload)
            return path
    return None


def _put(path: Path, payload: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, payload)
    except OSError as error:
        raise WorkFailed(f"{path} could not be written: {reason(error)}; choose another folder by {FOLDER}") from error


def obtain(source: str, path: Path) -> Path:
    """`path`, downloaded from `source` unless it is there.

    Raises:
        Unavailable: it could not be had, or downloads are forbidden.
    """
    if path.is_file():
        return path
    forbidding = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if forbidding:
        raise Unavailable(
            f"{path}: wanted this file; it is not there, and {forbidding[0]} forbids to download it: "
            f"put the file from {page(source)} there"
        )
    try:
        fetch(source, path)
    except WorkFailed as error:
        raise Unavailable(str(error)) from error
    return path
