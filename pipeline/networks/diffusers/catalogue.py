"""The families by the class of their pipeline."""

from pipeline.networks.diffusers.family import Family
from pipeline.networks.diffusers.flows import AuraFlow, Flux, Lumina2, QwenImage, Sana, StableDiffusion3, ZImage
from pipeline.networks.diffusers.noise_models import Ddpm, DiT, StableDiffusion, StableDiffusionXL

ALL: tuple[type[Family], ...] = (
    Ddpm,
    DiT,
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    Flux,
    Sana,
    Lumina2,
    AuraFlow,
    ZImage,
    QwenImage,
)
PIPELINES = {name: family for family in ALL for name in family.pipelines}
