"""Networks that a term of a recipe owns: a discriminator, a weighting, a score, a student of before.

They are trained beside the student, by losses of their own and with optimisers of their own, or copied from it; they
are saved with it, and resumed bit for bit.
"""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.networks import FlowNetwork
from trainer.data.image_set import ImageSet, to_float

HEAD_CHANNELS = 32
NUM_FREQUENCIES = 8  # of a weighting


class Discriminator(nn.Module):
    """Whether a noised sample is real: a head on each feature of a frozen teacher's encoder.

    The encoder is no part of the state: it is the teacher's. A head is a small convolutional network and judges every
    place of its feature by itself, as in ADD and LADD (arXiv 2311.17042, 2403.12015) and DMD2 (arXiv 2405.14867); of
    arrays that are no images it judges the whole. `images`, if any, are its real samples, in place of the teacher's
    stored ones.
    """

    def __init__(self, teacher: FlowNetwork, images: ImageSet | None = None) -> None:
        super().__init__()
        self.images = images
        self._teacher = (copy.deepcopy(teacher).eval().requires_grad_(False),)  # in a tuple: no submodule
        with torch.no_grad():
            one = torch.zeros(1)
            features = teacher.features(torch.zeros(1, *teacher.config.shape), one, None)
        self.heads = nn.ModuleList(_head(feature) for feature in features)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """Logits [B, places] of the states x [B, C, H, W] at times t [B]: positive for real ones."""
        features = self._teacher[0].features(x, t, label)
        return torch.cat([head(feature).flatten(1) for head, feature in zip(self.heads, features, strict=True)], dim=1)

    def real(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Its images [B, C, H, W] in [-1, 1] and their labels int64 [B], by `index` [B]."""
        assert self.images is not None
        rows = index.cpu().numpy()
        data, label = to_float(self.images.images[rows]), self.images.labels[rows]
        return torch.from_numpy(data).to(index.device), torch.from_numpy(label).to(index.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves the heads moves the encoder too."""
        self._teacher[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


def _head(feature: Tensor) -> nn.Module:
    channels = feature.shape[1]
    if feature.ndim == 2:
        return nn.Sequential(nn.Linear(channels, HEAD_CHANNELS), nn.SiLU(), nn.Linear(HEAD_CHANNELS, 1))
    return nn.Sequential(
        nn.Conv2d(channels, HEAD_CHANNELS, 3, padding=1),
        nn.GroupNorm(4, HEAD_CHANNELS),
        nn.SiLU(),
        nn.Conv2d(HEAD_CHANNELS, 1, 1),
    )


class Weighting(nn.Module):
    """The logarithm of a loss's weight at t [B]: a linear function of sines and cosines of t (EDM2, arXiv 2312.02696).

    It starts as 0, the same weight at every time.
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * torch.arange(1, NUM_FREQUENCIES + 1), persistent=False)
        self.linear = nn.Linear(2 * NUM_FREQUENCIES, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        phases = t.float()[:, None] * self.frequencies
        log_weight: Tensor = self.linear(torch.cat([phases.sin(), phases.cos()], dim=1))
        return log_weight[:, 0]


def held(network: nn.Module) -> Callable[..., Tensor]:
    """`network` with constant weights: gradients go through it to its input."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return lambda *inputs: functional_call(network, weights, inputs)
