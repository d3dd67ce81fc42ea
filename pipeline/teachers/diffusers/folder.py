"""The folder of a diffusers pipeline: what it holds, checked before anything of it is loaded. Only data are read."""

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.common.errors import BadInput, one_line, reason
from pipeline.common.suggestions import suggest
from pipeline.networks.diffusers.catalogue import PIPELINES
from pipeline.networks.diffusers.family import Family
from pipeline.networks.diffusers.weights import files_sha256, weight_files
from pipeline.storage.hashing import file_sha256

INDEX = "model_index.json"
PACKAGES = ("diffusers", "transformers")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
DATA = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a component: never code or pickles
VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.non_ema.*", "*.non_ema-*")  # of the same weights


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that passed `open_folder`. Nothing of it is loaded yet."""

    path: Path
    index: Mapping[str, Any]
    family: type[Family]

    @property
    def pipeline(self) -> str:
        """The class of the pipeline."""
        name: str = self.index["_class_name"]
        return name

    @property
    def text_parts(self) -> list[str]:
        """The components that turn a prompt into embeddings."""
        return [name for name in self.index if name.startswith(("text_encoder", "tokenizer")) and self._has(name)]

    @property
    def encodes_by_t5(self) -> bool:
        return any("T5" in str(self.index[name][1]) for name in self.text_parts)

    def _has(self, name: str) -> bool:
        part = self.index.get(name)
        return isinstance(part, list) and part[0] is not None

    @cached_property
    def network_config(self) -> dict[str, Any]:
        """The config.json of the network, without what does not decide it."""
        config = read_json(self.path / self.family.folder / "config.json")
        return {key: value for key, value in config.items() if not key.startswith("_")}

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        return read_json(self.path / "scheduler" / "scheduler_config.json")

    @cached_property
    def scale(self) -> int:
        """Pixels of a latent's side."""
        if self.family.scale is not None:
            return self.family.scale
        vae = read_json(self.path / "vae" / "config.json")
        if "temperal_downsample" in vae:
            return int(2 ** len(vae["temperal_downsample"]))
        return int(2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1))

    @property
    def network_sha256(self) -> str:
        """The identity of the velocity: the network's weights and configuration, and the noise schedule's."""
        files = files_sha256(self.path / self.family.folder)
        return _digest([self.pipeline, self.network_config, self.scheduler_config, files])

    @property
    def encoder_sha256(self) -> str:
        """The identity of the embeddings: every file of the text encoders and their tokenizers."""
        files = {
            str(path.relative_to(self.path)): file_sha256(path)
            for part in self.text_parts
            for path in sorted((self.path / part).rglob("*"))
            if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model")
        }
        return _digest([self.pipeline, files])


def open_folder(source: str) -> PipelineFolder:
    """The pipeline at the path, or of the Hub's name, `source`.

    Raises:
        BadInput: a package is missing, it is no pipeline of a family that is known here, or it holds code or pickles.
    """
    require_packages(source)
    path = _locate(source)
    index = read_json(path / INDEX)
    name = index.get("_class_name")
    family = PIPELINES.get(name) if isinstance(name, str) else None
    if family is None:
        refuse_code(path, index)
        raise BadInput(
            f"{path}: its pipeline is {name}; wanted one of {', '.join(PIPELINES)}{suggest(str(name), PIPELINES)}"
        )
    folder = PipelineFolder(path, index, family)
    refuse_code(path, index)
    _check_network(folder)
    return folder


def require_packages(source: str) -> None:
    """Raises `BadInput` if a package that reads pipelines is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            f"teacher diffusers:{source}: wanted the packages {' and '.join(PACKAGES)}; pip install {' '.join(missing)}"
        )


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise BadInput(f"{path}: wanted the folder of a diffusers pipeline; it holds no {INDEX}")
        return path.resolve()
    if not HUB_NAME.fullmatch(source):
        raise BadInput(f"diffusers:{source}: wanted the folder of a pipeline, or OWNER/NAME of the Hub; there is none")
    from huggingface_hub import snapshot_download

    try:
        wanted = [INDEX, "README.md", "LICENSE*", *(f"*/{pattern}" for pattern in DATA)]
        return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=list(VARIANTS)))
    except Exception as error:  # the Hub's client raises its own, those of its connections, and OSError
        raise BadInput(f"diffusers:{source}: cannot be downloaded ({one_line(error)[:200]})") from error


def refuse_code(path: Path, index: Mapping[str, Any]) -> None:
    """Raises `BadInput` if a pipeline brings code of its own, or two networks where one is wanted."""
    for name, part in index.items():
        if name.startswith("_") or not isinstance(part, list) or len(part) != 2 or part[0] is None:
            continue
        if name in ("transformer_2", "unet_2", "transformer_dual", "prior"):
            raise BadInput(f"{path}: it has two networks ({name} is the second); wanted a pipeline of one")
        is_used = name.startswith(("text_encoder", "tokenizer")) or name in ("transformer", "unet", "vae", "scheduler")
        if is_used and part[0] not in PACKAGES:
            raise BadInput(f"{path}: its {name} is code of its own ({part[0]}.{part[1]}), which is not run")
    if isinstance(index.get("_class_name"), list):
        raise BadInput(f"{path}: its pipeline is code of its own ({index['_class_name'][0]}), which is not run")
    for config in sorted(path.glob("*/config.json")):
        values = read_json(config)
        if "auto_map" in values:
            raise BadInput(f"{config}: it names code of its own (auto_map), which is not run")
        if "quantization_config" in values:
            raise BadInput(f"{config}: its weights are quantised; wanted plain ones")


def _check_network(folder: PipelineFolder) -> None:
    """Raises `BadInput` unless the network is the family's, and its weights and parts are safetensors."""
    family = folder.family
    found = read_json(folder.path / family.folder / "config.json").get("_class_name")
    if found != family.network:
        raise BadInput(
            f"{folder.path}: wanted the {family.folder} of a {folder.pipeline}, {family.network}; it is {found}"
        )
    try:
        _ = (*family(folder.network_config).sizes, folder.scale)
    except (KeyError, TypeError, ValueError) as error:
        lack = one_line(error)
        raise BadInput(f"{folder.path}: wanted the configuration of a {family.network} and its VAE ({lack})") from error
    for part in (family.folder, *(["vae"] if family.is_latent else []), *folder.text_parts):
        if not part.startswith("tokenizer"):
            weight_files(folder.path / part)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BadInput: it is missing, or no object.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: wanted JSON ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path}: wanted a JSON object, got {type(values).__name__}")
    return values


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def default_shift(folder: PipelineFolder, shape: tuple[int, int, int]) -> float:
    """The shift of the pipeline's own times at latents of `shape`; e^mu where mu is linear in the number of tokens."""
    config = folder.scheduler_config
    if "num_train_timesteps" not in config or "shift" not in config:
        return 1.0
    if not config.get("use_dynamic_shifting"):
        return float(config["shift"])
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    tokens = math.prod(shape[1:]) / 4
    return math.exp(low + (high - low) * (tokens - first) / (last - first))
