"""Models that predict noise or v at whole steps of a schedule: DDPM, DiT, Stable Diffusion 1.5 to 2.1, and SDXL."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.networks.diffusers.family import Family, Rows
from pipeline.networks.diffusers.flows import BOTH, BOTH_POOLED


@dataclass(frozen=True)
class NoiseModel(Family):
    """What they share: the state they see, the step they are told, and what becomes of their prediction."""

    def clock(self, t: Tensor) -> Tensor:
        assert self.schedule is not None
        return self.schedule.step(t)

    def velocity(self, model: Any, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        assert self.schedule is not None
        predicted = self.predict(model, self.schedule.state(x, t), self.clock(t), rows)
        return self.schedule.velocity(predicted, x, t)

    def predict(self, model: Any, x: Tensor, step: Tensor, rows: Rows) -> Tensor:
        """The model's prediction for variance-preserving states x [B, C, H, W] at steps [B]."""
        raise NotImplementedError


@dataclass(frozen=True)
class UNetModel(NoiseModel):
    """A U-Net, whose sides are halved at each level."""

    folder = "unet"
    holds_bf16 = False  # a normalisation of groups wants both alike

    @property
    def patch(self) -> int:
        return int(2 ** (len(self.config["block_out_channels"]) - 1))


@dataclass(frozen=True)
class Ddpm(UNetModel):
    """DDPM in pixels (Ho et al. 2020, arXiv 2006.11239)."""

    pipelines = ("DDPMPipeline", "DDIMPipeline")
    network = "UNet2DModel"
    is_latent = False
    has_fixed_size = True
    scale = 1

    def predict(self, model: Any, x: Tensor, step: Tensor, rows: Rows) -> Tensor:
        predicted: Tensor = model(x, step, return_dict=False)[0]
        return predicted


@dataclass(frozen=True)
class DiT(NoiseModel):
    """DiT (Peebles & Xie 2023, arXiv 2212.09748), whose label for none is the one after its last class."""

    pipelines = ("DiTPipeline",)
    network = "DiTTransformer2DModel"
    has_fixed_size = True

    @property
    def num_classes(self) -> int:
        return int(self.config["num_embeds_ada_norm"])

    def predict(self, model: Any, x: Tensor, step: Tensor, rows: Rows) -> Tensor:
        labels = rows["class_labels"]
        labels = torch.where(labels < 0, self.num_classes, labels)
        out: Tensor = model(x, timestep=step, class_labels=labels, return_dict=False)[0]
        return out[:, : x.shape[1]]  # the rest, where there is any, is a learned variance


@dataclass(frozen=True)
class StableDiffusion(UNetModel):
    """Stable Diffusion 1.5, 2.0 and 2.1 (Rombach et al. 2022, arXiv 2112.10752)."""

    pipelines = ("StableDiffusionPipeline",)
    network = "UNet2DConditionModel"
    encoded: ClassVar[tuple[str, ...]] = BOTH

    def predict(self, model: Any, x: Tensor, step: Tensor, rows: Rows) -> Tensor:
        predicted: Tensor = model(
            x, step, encoder_hidden_states=rows["prompt_embeds"], added_cond_kwargs=self.added(rows), return_dict=False
        )[0]
        return predicted

    def added(self, rows: Rows) -> dict[str, Tensor] | None:
        """What SDXL takes besides."""
        return None


@dataclass(frozen=True)
class StableDiffusionXL(StableDiffusion):
    """SDXL (Podell et al. 2023, arXiv 2307.01952), told that the picture is whole and of the size that is drawn."""

    pipelines = ("StableDiffusionXLPipeline",)
    encoded = BOTH_POOLED

    def added(self, rows: Rows) -> dict[str, Tensor] | None:
        pooled: Tensor = rows["pooled_prompt_embeds"]
        sizes = pooled.new_tensor([*self.image_size, 0, 0, *self.image_size])
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
