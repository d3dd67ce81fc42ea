"""Checkpoints as the original projects lay them out, with weights that are a function of their names.

The fixtures in `tests/fixtures/` hold names and shapes of the originals' tensors, inputs, and the outputs that the
original implementations computed with these weights; see the README there.
"""

import gzip
import json
import math
import pickle
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from pipeline.networks import DhariwalUNetConfig, SongUNetConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY_EDM = ("edm-vp", "edm-ve", "edm-skip", "edm-adm")
TINY_SCORE_SDE = ("rectified-flow", "slimflow")
TINY_ADM = ("adm", "consistency")
SCALED = "rectified-flow-256"  # NCSN++ with pyramids and a Fourier embedding, whose answer is divided by its time


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor called `name`: float32 and of one size for its role, so that every part of a network shows."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    values = torch.from_numpy(rng.standard_normal(shape)).float()
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    if name.endswith("weight"):  # of a normalisation
        return 1 + 0.1 * values
    return 0.1 * values


def buffer(name: str, shape: tuple[int, ...]) -> Tensor:
    """The buffer called `name`, as the originals compute it: a filter of two or four taps, or noise levels."""
    if name.endswith("resample_filter"):
        taps = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0])
        return torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    if name.endswith("sigmas"):
        return torch.linspace(math.log(50), math.log(0.01), *shape, dtype=torch.float64).exp()
    return weight(name, shape)


@dataclass(frozen=True)
class Original:
    """A tiny network of an original implementation: its tensors' shapes, inputs, and outputs."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # in the order of its state_dict
    buffers: frozenset[str]
    tensors: dict[str, Tensor]  # x, time, out, ...

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The state_dict; weights of another `prefix` are others."""
        return {
            name: buffer(name, shape) if name in self.buffers else weight(prefix + name, shape)
            for name, shape in self.shapes.items()
        }


def original(name: str) -> Original:
    """The fixture called `name`."""
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    layout = json.loads(about["tensors"])
    return Original(
        config=json.loads(about["config"]),
        shapes={key: tuple(value["shape"]) for key, value in layout.items()},
        buffers=frozenset(key for key, value in layout.items() if value["kind"] == "buffer"),
        tensors=tensors,
    )


def layouts() -> dict[str, Any]:
    """The tensors of the published checkpoints, at full size, by the name of the checkpoint."""
    content: dict[str, Any] = json.loads(gzip.decompress((FIXTURES / "layouts.json.gz").read_bytes()))
    return content


def config_of(name: str) -> SongUNetConfig | DhariwalUNetConfig:
    """What an entry of the catalogue would say of the network of the fixture called `name` (not of EDM's)."""
    given = original(name).config
    if name in TINY_ADM:
        return DhariwalUNetConfig(
            resolution=8,
            image_channels=3,
            channels=given["model_channels"],
            channel_mult=given["channel_mult"],
            num_blocks=given["num_res_blocks"],
            attention_resolutions=(8, 4),
            num_classes=given["num_classes"],
            convention="adm" if name == "adm" else "edm",
            time_scale=1 if name == "adm" else 1000,
        )
    model = given["model"]
    kind: dict[str, Any] = {"convention": "rectified-flow", "time_scale": 999}
    if name == SCALED:
        kind = {"convention": "rectified-flow-scaled", "time_scale": 1, "time_embedding": "fourier"}
        kind |= {"encoder": "skip", "decoder": "skip", "resample_filter": model["fir_kernel"]}
    return SongUNetConfig(
        resolution=given["data"]["image_size"],
        image_channels=3,
        channels=model["nf"],
        channel_mult=model["ch_mult"],
        num_blocks=model["num_res_blocks"],
        attention_resolutions=model["attn_resolutions"],
        **kind,
    )


def write(name: str, path: Path) -> Path:
    """The fixture called `name` as a checkpoint in the original's own format."""
    made = original(name)
    if name in TINY_EDM:
        return write_edm(path, made)
    if name in (*TINY_SCORE_SDE, SCALED):
        return write_score_sde(path, made)
    torch.save(OrderedDict(made.state()), path)
    return path


def write_score_sde(path: Path, made: Original) -> Path:
    """{optimizer, model, ema, step}; the optimiser holds a numpy number, as those of old do."""
    shadow = [weight(f"ema.{name}", shape) for name, shape in made.shapes.items() if name not in made.buffers]
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "params": []}]}
    ema = {"decay": 0.999999, "num_updates": 1, "shadow_params": shadow}
    torch.save({"optimizer": optimizer, "model": OrderedDict(made.state()), "ema": ema, "step": 1}, path)
    return path


def write_entry(name: str, folder: Path) -> Path:
    """The fixture called `name` in `folder`, and an entry `tiny-NAME.yaml` that makes it a teacher."""
    if name in TINY_EDM:
        entry: dict[str, Any] = {"format": "edm", "file": f"{name}.pkl"}
    else:
        known = "score-sde" if name in TINY_SCORE_SDE else "adm"
        entry = {"format": known, "file": f"{name}.pth", "network": config_of(name).model_dump(mode="json")}
    write(name, folder / entry["file"])
    path = folder / f"tiny-{name}.yaml"
    path.write_text(yaml.safe_dump(entry))
    return path


SOURCE = "raise SystemExit('the source code in the file was executed')"


class Persistent:
    """An object that pickles as those of EDM's torch_utils.persistence do: with its class's source code."""

    def __init__(self, class_name: str, state: Mapping[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextmanager
def persistence() -> Iterator[None]:
    """The name by which such objects are pickled, while they are."""
    module = ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise SystemExit('their loader was called')", module.__dict__)
    sys.modules |= {"torch_utils": ModuleType("torch_utils"), "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]


@contextmanager
def easy_dict() -> Iterator[type[dict[str, Any]]]:
    """EDM's own kind of dictionary, by the name that it is pickled by."""
    module = ModuleType("dnnlib.util")
    kind: type[dict[str, Any]] = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    module.EasyDict = kind  # type: ignore[attr-defined]
    sys.modules |= {"dnnlib": ModuleType("dnnlib"), "dnnlib.util": module}
    try:
        yield kind
    finally:
        del sys.modules["dnnlib.util"], sys.modules["dnnlib"]


def write_edm(path: Path, made: Original, wrap: type[dict[str, Any]] = dict, **changes: Any) -> Path:
    """{ema, loss_fn, augment_pipe, dataset_kwargs}; `changes` go over the constructor's arguments."""
    arguments = wrap({key: value for key, value in made.config.items() if key != "class"} | changes)
    state = module_state(made, made.state()) | {
        "_init_args": (),
        "_init_kwargs": arguments,
        "skip_scale": np.float64(0.5),
    }
    content = {
        "ema": Persistent("EDMPrecond", state),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "cifar10.zip"},
    }
    with persistence(), path.open("wb") as file:
        pickle.dump(content, file)
    return path


def module_state(made: Original, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """The state of the module whose tensors have names in `state` that begin with `prefix`, with its children in it."""
    own = {name.removeprefix(prefix): name for name in made.shapes if name.startswith(prefix)}
    leaves = {key: name for key, name in own.items() if "." not in key}
    children = dict.fromkeys(key.partition(".")[0] for key in own if "." in key)
    parameters = {
        key: torch.nn.Parameter(state[name], requires_grad=False)
        for key, name in leaves.items()
        if name not in made.buffers
    }
    return {
        "training": False,
        "_parameters": parameters,
        "_buffers": OrderedDict((key, state[name]) for key, name in leaves.items() if name in made.buffers),
        "_modules": {child: _module(made, state, f"{prefix}{child}.") for child in children},
    }


def _module(made: Original, state: Mapping[str, Tensor], prefix: str) -> Any:
    own = module_state(made, state, prefix)
    if prefix not in ("model.enc.", "model.dec."):
        return Persistent("Module", own)
    container = torch.nn.ModuleDict()
    container.__dict__["_modules"] = own["_modules"]
    return container
