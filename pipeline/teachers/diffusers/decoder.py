"""From latents to pictures: the VAE of a pipeline, loaded when it is first used."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.networks.diffusers.weights import quiet
from pipeline.teachers.diffusers.folder import PipelineFolder

DECODED_AT_ONCE = 4  # a picture of 1024 pixels takes gigabytes on the way


class Decoder:
    """Latents float32 [B, C, H, W] to pictures float32 [B, 3, H, W], in about [-1, 1], on the same device."""

    def __init__(self, folder: PipelineFolder, device: torch.device) -> None:
        self._folder, self._device = folder, device

    @cached_property
    def _vae(self) -> Any:
        import diffusers

        kind = getattr(diffusers, self._folder.index["vae"][1])
        with quiet():
            vae = kind.from_pretrained(
                self._folder.path / "vae", use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
            )
        return vae.to(self._device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        parts = torch.split(latents.to(self._device).float(), DECODED_AT_ONCE)
        return torch.cat([self._decode(part) for part in parts]).to(latents.device)

    def _decode(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (latents.new_tensor(values)[:, None, None] for values in (mean, std))
            latents = latents * std / config.get("scaling_factor", 1.0) + mean
        else:
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        is_video = "temperal_downsample" in config  # a picture is one frame of it
        decoded: Tensor = self._vae.decode(latents[:, :, None] if is_video else latents, return_dict=False)[0]
        return decoded[:, :, 0] if is_video else decoded
