"""Published files that feature networks need: where to find them, where to download them, and their checksums.

A pinned file's sha256 is checked before the file is loaded, because a TorchScript file is code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_atomic
from pipeline.teachers.download import page
from pipeline.teachers.published import FOLDER, OFFLINE, Unavailable, folder, obtain

__all__ = ["FOLDER", "OFFLINE", "Unavailable", "folder", "obtain", "require"]
DINOV2 = "facebook/dinov2-large"


@dataclass(frozen=True)
class WeightsFile:
    """A published file: its name in the folder of weights, its source for `fetch`, and its paths in other programs."""

    name: str
    source: str
    sha256: str | None  # None: not pinned, because it can only hold data
    elsewhere: Callable[[], Sequence[Path]]


def _at_clean_fid() -> Sequence[Path]:
    return [Path("/tmp/inception-2015-12-05.pt")]


def _at_torch_hub() -> Sequence[Path]:
    """Where pytorch-fid and torch-fidelity keep the same file."""
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    return [checkpoints / f"{origin}inception-2015-12-05-6726825d.pth" for origin in ("pt_", "weights-")]


def _at_hub(file: str) -> Sequence[Path]:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(DINOV2, file)
    return [Path(path)] if isinstance(path, str) else []


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


def require(key: str) -> Path:
    """The path of the file FILES[key], downloaded if this machine lacks it. A pinned file's sha256 is checked.

    Raises:
        BadInput: the file has another sha256.
        Unavailable: the file is missing and cannot be downloaded.
        WorkFailed: the file cannot be written.
    """
    file = FILES[key]
    path = folder() / file.name
    if not path.is_file():
        existing = _find_elsewhere(file, path)
        if existing is not None:
            return existing
        obtain(file.source, path)
    digest = file_sha256(path)
    if digest != (file.sha256 or digest):
        raise BadInput(
            f"{path}: wanted the file whose sha256 is {file.sha256}; it is {digest}: "
            f"replace it by the file from {page(file.source)}"
        )
    return path


def _find_elsewhere(file: WeightsFile, path: Path) -> Path | None:
    """Another program's copy of the file: its own path, or `path` for a pinned file, which is copied there."""
    for other in file.elsewhere():
        if not other.is_file():
            continue
        if file.sha256 is None:
            return other
        # Copied, because anybody may change clean-fid's file in /tmp after it was hashed.
        if _digest(other) != file.sha256:  # in parts: it may be of any length
            continue
        payload = other.read_bytes()
        if sha256(payload).hexdigest() == file.sha256:
            _put(path, payload)
            return path
    return None


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:  # of another user
        return None


def _put(path: Path, payload: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, payload)
    except OSError as error:
        raise WorkFailed(f"{path}: cannot be written ({reason(error)}); set {FOLDER} to another folder") from error
