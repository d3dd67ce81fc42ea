"""The parts that both U-Net families are made of."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["up", "down", "none"]


def group_norm(channels: int, eps: float, max_groups: int, min_channels: int = 4) -> nn.GroupNorm:
    """The most groups, up to `max_groups`, that divide the channels into at least `min_channels` each."""
    groups = next(n for n in range(min(max_groups, channels // min_channels), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


@dataclass(frozen=True)
class Init:
    """How the layers of a family start: Xavier-uniform with zero bias, or torch's own uniform within 1 / sqrt(fan-in).

    A layer with a `gain` has weights times it; with gain 0 its bias is zero as well, so that it starts as nothing.
    """

    xavier: bool

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3, gain: float = 1.0) -> nn.Conv2d:
        """A same-size convolution."""
        layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self._start(layer, gain)
        return layer

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """A fully connected layer."""
        layer = nn.Linear(in_features, out_features)
        self._start(layer, 1.0)
        return layer

    def _start(self, layer: nn.Conv2d | nn.Linear, gain: float) -> None:
        assert layer.bias is not None
        if self.xavier:
            nn.init.xavier_uniform_(layer.weight)
        if self.xavier or gain == 0:
            nn.init.zeros_(layer.bias)
        layer.weight.data *= gain


class Resample(nn.Module):
    """Halve or double the pixels of [B, C, H, W] with a separable filter; (1, 1) averages and repeats."""

    filter: Tensor

    def __init__(self, taps: tuple[int, ...], direction: Resampling) -> None:
        super().__init__()
        self.direction = direction
        self.is_box = taps == (1, 1)
        line = torch.tensor(taps, dtype=torch.float32, device="cpu")  # even where the weights are made on "meta"
        self.register_buffer("filter", (torch.outer(line, line) / line.sum() ** 2)[None, None], persistent=False)
        self.padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "none":
            return x
        if self.is_box:
            return F.avg_pool2d(x, 2) if self.direction == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        return self.up(x) if self.direction == "up" else self.down(x, self.padding)

    def up(self, x: Tensor) -> Tensor:
        taps = (4 * self.filter.to(x.dtype)).expand(x.shape[1], 1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self.padding, groups=x.shape[1])

    def down(self, x: Tensor, padding: int) -> Tensor:
        taps = self.filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class PositionalFeatures(nn.Module):
    """Sines and cosines of a time at `channels` / 2 frequencies from 1 down to 1 / 10,000: [B] -> [B, channels].

    ADM puts the cosines first and stops one frequency short of the last.
    """

    def __init__(self, channels: int, adm: bool) -> None:
        super().__init__()
        self.num_frequencies, self.adm = channels // 2, adm

    def forward(self, time: Tensor) -> Tensor:
        n = self.num_frequencies
        exponents = torch.linspace(0, 1 - 1 / n if self.adm else 1, n, device=time.device)
        angles = time.float()[:, None] * 10_000.0**-exponents
        waves = angles.cos(), angles.sin()
        return torch.cat(waves if self.adm else waves[::-1], dim=1)


class FourierFeatures(nn.Module):
    """Sines and cosines of a time at random frequencies (Tancik et al. 2020, arXiv 2006.10739), as above."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * (2 * math.pi * self.freqs.float())
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """A time as features, then two layers: [B] -> [B, embedding_channels].

    What else conditions the network is added to the features (`before`) or to the second layer's output (`after`).
    """

    def __init__(self, features: nn.Module, channels: int, embedding_channels: int, init: Init) -> None:
        super().__init__()
        self.features = features
        self.layer0 = init.linear(channels, embedding_channels)
        self.layer1 = init.linear(embedding_channels, embedding_channels)

    def forward(self, time: Tensor, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        h = self.features(time).to(self.layer0.weight.dtype)
        h = h if before is None else h + before
        h = self.layer1(F.silu(self.layer0(h)))
        return F.silu(h if after is None else h + after)


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common."""

    init: Init
    embedding_channels: int
    dropout: float
    norm_eps: float
    max_groups: int
    min_channels_per_group: int
    skip_scale: float  # of the sum of two branches; sqrt(1/2) keeps its variance at one
    scales: bool  # whether the embedding scales the features, or only shifts them
    projects_resampled: bool  # whether a resampled skip branch has a convolution even where the width stays
    channels_per_head: int | None  # None: one head
    attention_gain: float  # of the weights of queries, keys and values at the start
    last_gain: float  # of the weights of a branch's last layer at the start
    resample_filter: tuple[int, ...] = (1, 1)

    def norm(self, channels: int) -> nn.GroupNorm:
        """A normalisation of the network's kind."""
        return group_norm(channels, self.norm_eps, self.max_groups, self.min_channels_per_group)


class Attention(nn.Module):
    """Self-attention over the pixels of [B, C, H, W], with a residual connection; weights are (three, head, dim)."""

    def __init__(self, style: BlockStyle, channels: int) -> None:
        super().__init__()
        self.num_heads = channels // style.channels_per_head if style.channels_per_head else 1
        self.skip_scale = style.skip_scale
        self.norm = style.norm(channels)
        self.qkv = style.init.conv(channels, 3 * channels, kernel=1, gain=style.attention_gain)
        self.proj = style.init.conv(channels, channels, kernel=1, gain=style.last_gain)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # [B, pixels, 3 C]
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, pixels, dim]
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = (x + self.proj(a.transpose(1, 2).reshape(x.shape))) * self.skip_scale
        return out


class Block(nn.Module):
    """Residual block (BigGAN's), optionally resampling by two: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(
        self,
        style: BlockStyle,
        in_channels: int,
        out_channels: int,
        resample: Resampling = "none",
        attention: bool = False,
    ) -> None:
        super().__init__()
        init = style.init
        self.skip_scale, self.scales = style.skip_scale, style.scales
        self.norm0 = style.norm(in_channels)
        self.resample = Resample(style.resample_filter, resample)
        self.conv0 = init.conv(in_channels, out_channels)
        self.affine = init.linear(style.embedding_channels, out_channels * (2 if style.scales else 1))
        self.norm1 = style.norm(out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = init.conv(out_channels, out_channels, gain=style.last_gain)
        projects = in_channels != out_channels or (resample != "none" and style.projects_resampled)
        self.skip = init.conv(in_channels, out_channels, kernel=1) if projects else nn.Identity()
        self.attention = Attention(style, out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        affine = self.affine(embedding)[:, :, None, None]
        if self.scales:
            scale, shift = affine.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + affine)
        h = self.conv1(self.dropout(F.silu(h)))
        out: Tensor = self.attention((self.skip(self.resample(x)) + h) * self.skip_scale)
        return out
