"""Exponential moving average of a network's weights, its memory measured in images."""

import copy

import torch
from torch import Tensor

from pipeline.networks import Network


class Ema:
    """An average whose weights halve every `half_life_images` images.

    While few images were seen the half-life is `ramp_up` of them, so that the average forgets the start
    (Karras et al. 2022, arXiv 2206.00364, training code).
    """

    def __init__(self, network: Network, half_life_images: float, ramp_up: float | None = 0.05) -> None:
        self.network: Network = copy.deepcopy(network).eval().requires_grad_(False)
        self.half_life_images, self.ramp_up = half_life_images, ramp_up

    @torch.no_grad()
    def update(self, network: Network, batch_size: int, num_images: int) -> None:
        """Average in `network` after a step of `batch_size` images, `num_images` having been seen in all."""
        half_life = self.half_life_images
        if self.ramp_up is not None:
            half_life = min(half_life, self.ramp_up * num_images)
        beta = 0.5 ** (batch_size / max(half_life, 1e-8))
        averages: list[Tensor] = list(self.network.parameters())
        values: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, values, 1 - beta)
