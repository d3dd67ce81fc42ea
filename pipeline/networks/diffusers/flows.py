"""Rectified flows: SD3, FLUX.1, SANA, Lumina 2, AuraFlow, Z-Image and Qwen-Image. Their sigma is our time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.networks.diffusers.family import Family, Rows, pack, unpack

BOTH = ("prompt_embeds", "negative_prompt_embeds")
BOTH_MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
BOTH_POOLED = (*BOTH, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@dataclass(frozen=True)
class StableDiffusion3(Family):
    """SD3 and SD3.5 (Esser et al. 2024, arXiv 2403.03206)."""

    pipelines = ("StableDiffusion3Pipeline",)
    network = "SD3Transformer2DModel"
    encoded = BOTH_POOLED

    def clock(self, t: Tensor) -> Tensor:
        return 1000 * t

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        velocity: Tensor = model(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=rows["prompt_embeds"],
            pooled_projections=rows["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return velocity


@dataclass(frozen=True)
class Flux(Family):
    """FLUX.1: dev is told its guidance, schnell has none."""

    pipelines = ("FluxPipeline",)
    network = "FluxTransformer2DModel"
    encoded = ("prompt_embeds", "pooled_prompt_embeds", "text_ids")
    is_packed = True
    patch = 2
    default_size = 128

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.config["guidance_embeds"])

    @property
    def takes_negative(self) -> bool:
        return False

    @property
    def channels(self) -> int:
        return int(self.config["in_channels"]) // 4

    def clock(self, t: Tensor) -> Tensor:
        return 1000 * t

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        ids = torch.zeros(height, width, 3, device=x.device)
        ids[..., 1] += torch.arange(height, device=x.device)[:, None]
        ids[..., 2] += torch.arange(width, device=x.device)
        tokens = model(
            hidden_states=pack(x),
            timestep=t,
            guidance=torch.full_like(t, self.guidance) if self.embeds_guidance else None,
            pooled_projections=rows["pooled_prompt_embeds"],
            encoder_hidden_states=rows["prompt_embeds"],
            txt_ids=torch.zeros(rows["prompt_embeds"].shape[1], 3, device=x.device),
            img_ids=ids.view(-1, 3),
            return_dict=False,
        )[0]
        return unpack(tokens, x.shape)


@dataclass(frozen=True)
class Sana(Family):
    """SANA (Xie et al. 2024, arXiv 2410.10629)."""

    pipelines = ("SanaPipeline",)
    network = "SanaTransformer2DModel"
    encoded = BOTH_MASKED

    def clock(self, t: Tensor) -> Tensor:
        scale: float = self.config["timestep_scale"]
        return 1000 * t * scale

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        out: Tensor = model(
            x,
            encoder_hidden_states=rows["prompt_embeds"],
            encoder_attention_mask=rows["prompt_attention_mask"],
            timestep=self.clock(t),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # the rest, where there is any, is a learned variance


@dataclass(frozen=True)
class Lumina2(Family):
    """Lumina-Image 2.0, whose time runs from noise to data; guidance keeps the length of each row of pixels."""

    pipelines = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    network = "Lumina2Transformer2DModel"
    encoded = BOTH_MASKED
    scale = 8
    default_size = 128

    def clock(self, t: Tensor) -> Tensor:
        return 1 - t

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        out: Tensor = model(
            hidden_states=x,
            timestep=1 - t,
            encoder_hidden_states=rows["prompt_embeds"],
            encoder_attention_mask=rows["prompt_attention_mask"].bool(),
            return_dict=False,
        )[0]
        return -out

    def with_guidance(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return as_long_as(conditional, super().with_guidance(conditional, unconditional, scale))


@dataclass(frozen=True)
class AuraFlow(Family):
    """AuraFlow."""

    pipelines = ("AuraFlowPipeline",)
    network = "AuraFlowTransformer2DModel"
    encoded = BOTH_MASKED

    def clock(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        velocity: Tensor = model(x, encoder_hidden_states=rows["prompt_embeds"], timestep=t, return_dict=False)[0]
        return velocity


@dataclass(frozen=True)
class ZImage(Family):
    """Z-Image, whose time runs from noise to data, and whose pipeline counts its guidance from 0."""

    pipelines = ("ZImagePipeline",)
    network = "ZImageTransformer2DModel"
    encoded = BOTH
    default_size = 128
    patch = 2

    def clock(self, t: Tensor) -> Tensor:
        scale: float = self.config["t_scale"]
        return (1 - t) * scale

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        out = model(list(x.unsqueeze(2)), 1 - t, rows["prompt_embeds"], return_dict=False)[0]
        return -torch.stack(list(out)).squeeze(2)

    def pipeline_guidance(self, scale: float) -> float:
        return scale - 1

    def _condition(self, found: Any, negative: bool) -> dict[str, Tensor]:
        return {"prompt_embeds": found[negative][0]}

    def collate(self, rows: Sequence[Mapping[str, Tensor]]) -> Rows:
        return {"prompt_embeds": [row["prompt_embeds"] for row in rows]}  # each of its own length


@dataclass(frozen=True)
class QwenImage(Family):
    """Qwen-Image; guidance keeps the length of each token."""

    pipelines = ("QwenImagePipeline",)
    network = "QwenImageTransformer2DModel"
    encoded = ("prompt_embeds", "prompt_embeds_mask")
    guidance_argument = "true_cfg_scale"
    is_packed = True
    default_size = 128
    patch = 2

    @property
    def channels(self) -> int:
        return int(self.config["in_channels"]) // 4

    def clock(self, t: Tensor) -> Tensor:
        return t

    def encode_negative(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        return self.encode(pipeline, prompt or " ")

    def _condition(self, found: Any, negative: bool) -> dict[str, Tensor]:
        embeds, mask = found
        return {
            "prompt_embeds": embeds[0],
            "prompt_embeds_mask": torch.ones(embeds.shape[1], dtype=torch.int64) if mask is None else mask[0],
        }

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        tokens = model(
            hidden_states=pack(x),
            timestep=t,
            encoder_hidden_states=rows["prompt_embeds"],
            encoder_hidden_states_mask=rows["prompt_embeds_mask"],
            img_shapes=[[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x),
            return_dict=False,
        )[0]
        return unpack(tokens, x.shape)

    def with_guidance(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        guided = super().with_guidance(conditional, unconditional, scale)
        return unpack(as_long_as(pack(conditional), pack(guided)), conditional.shape)


def as_long_as(wanted: Tensor, x: Tensor) -> Tensor:
    """`x` with its last dimension scaled to the length that `wanted` has there."""
    scaled: Tensor = x * (wanted.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True))
    return scaled
