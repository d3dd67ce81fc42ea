"""The stock pipeline around a network, to see what it computes: without text encoders, on conditions that are here."""

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.teachers.diffusers.folder import PipelineFolder, read_json


class _WithoutWeights:
    """Stands in a VAE's place where only its configuration counts; it decodes nothing."""

    dtype = torch.float32

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(**config)
        self.temperal_downsample = config.get("temperal_downsample", ())

    def decode(self, latents: Tensor, **_: Any) -> Any:
        return SimpleNamespace(sample=latents)


def assemble(folder: PipelineFolder, model: Any, scheduler: Any) -> Any:
    """The stock pipeline around the bare network `model`, without text encoders and the weights of its VAE."""
    import diffusers

    kind = getattr(diffusers, folder.pipeline)
    parts: dict[str, Any] = {folder.family.folder: model, "scheduler": scheduler}
    if folder.family.is_latent:
        parts["vae"] = _WithoutWeights(read_json(folder.path / "vae" / "config.json"))
    required = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    pipeline = kind(**{name: None for name in required if name != "self"} | parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_arguments(pipeline: Any, network: DiffusersNetwork, guidance_scale: float, num_steps: int) -> dict[str, Any]:
    """The arguments of the pipeline's call that draw one picture for label 0 under the conditions of `network`."""
    family, takes = network.family, inspect.signature(type(pipeline).__call__).parameters
    height, width = network.config.image_size
    wanted: dict[str, Any] = {
        "num_inference_steps": num_steps,
        "output_type": "latent",
        "height": height,
        "width": width,
    }
    wanted |= {"use_resolution_binning": False, "prompt": None, "negative_prompt": None, "class_labels": [0]}
    wanted |= {
        "generator": torch.Generator().manual_seed(0),
        family.guidance_argument: family.pipeline_guidance(guidance_scale),
    }
    if "class_labels" in takes or not family.takes_prompts:  # those that decode whatever is asked
        wanted["output_type"] = "np"
    if family.takes_prompts:
        wanted |= _embeddings(network, family.takes_negative and guidance_scale != 1)
    return {name: value for name, value in wanted.items() if name in takes}


def _embeddings(network: DiffusersNetwork, with_negative: bool) -> dict[str, Any]:
    device = next(network.parameters()).device
    found: dict[str, Any] = dict(network.rows(torch.zeros(1, dtype=torch.int64), device))
    if with_negative:
        negative: Mapping[str, Any] = network.rows(torch.full((1,), -1), device)
        found |= {f"negative_{name}": value for name, value in negative.items()}
    return found
