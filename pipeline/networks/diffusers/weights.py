"""The weights of a diffusers network as they are published: safetensors files in a folder."""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from pipeline.common.environment import installed_version
from pipeline.common.errors import BadInput, one_line
from pipeline.storage.hashing import file_sha256


class BaseWeights(BaseModel):
    """The published weights that an adapter changes: a folder, and the digest of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, one or several that an index lists.

    Raises:
        BadInput: there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    plain = [path for path in files if not re.search(r"\.(fp16|bf16|fp32|ema|non_ema)[.-]", path.name)]
    if plain:
        return plain
    others = sorted(folder.glob("*.bin")) + files
    found = f"it holds {others[0].name}" if others else "it holds none"
    raise BadInput(
        f"{folder}: wanted weights in .safetensors, without a variant; {found}: save them with "
        "save_pretrained(..., safe_serialization=True)"
    )


def files_sha256(folder: Path) -> str:
    """The digest of the weights in `folder`."""
    return hashlib.sha256(json.dumps([file_sha256(path) for path in weight_files(folder)]).encode()).hexdigest()


def load_weights(kind: str, folder: Path) -> Any:
    """The network of diffusers' class `kind` in `folder`, in float32 on the CPU, in evaluation mode.

    Raises:
        BadInput: its weights cannot be loaded, or are not those of its configuration.
    """
    import diffusers

    try:
        with quiet():
            model, report = getattr(diffusers, kind).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # the library raises whatever it meets
        raise BadInput(f"{folder}: cannot be loaded ({one_line(error)[:300]})") from error
    wrong = [name for key in ("missing_keys", "unexpected_keys") for name in report[key]]
    if wrong:
        raise BadInput(f"{folder}: its weights are not those of its configuration: {', '.join(wrong[:4])}")
    return model.eval()


def load_base(kind: str, base: BaseWeights) -> Any:
    """The network that an adapter changes.

    Raises:
        BadInput: it is no longer where it was, or has other weights.
    """
    folder = Path(base.path)
    if not folder.is_dir():
        raise BadInput(f"{folder}: wanted the weights that this adapter changes; they are not there")
    if files_sha256(folder) != base.sha256:
        raise BadInput(f"{folder}: wanted the weights that this adapter changes; they are others")
    return load_weights(kind, folder)


def versions(*packages: str) -> str:
    """The names and versions of installed `packages`."""
    return ", ".join(f"{package} {installed_version(package)}" for package in packages)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries log and warn of, which a user of this program cannot act on."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
