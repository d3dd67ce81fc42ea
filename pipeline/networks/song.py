"""SongUNet: the DDPM++ U-Net of Song et al. (2021, arXiv 2011.13456), as EDM's Table 1 parametrises it.

One class serves the teachers of this family and the students that grow out of them. A student's network
takes a second time s; its embedding starts as a copy of the first one behind a gate that starts at zero,
so that the network begins as exactly the teacher's.
"""

import math
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

SKIP_SCALE = math.sqrt(0.5)  # keeps the variance of a sum of two branches at one
NORM_EPS = 1e-6


class SongUNetConfig(BaseModel):
    """Everything that decides the shape of a `SongUNet`.

    Images are [image_channels, resolution, resolution]. Level i of the U-Net has resolution / 2^i pixels and
    `channels` * `channel_mult[i]` channels. `num_classes` = 0 makes an unconditional network. The network
    sees `time_scale` * t, so the largest angular frequency of its time embedding is `time_scale`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["song"] = "song"
    resolution: int = Field(ge=1)
    image_channels: int = Field(ge=1)
    channels: int = Field(default=128, ge=4)
    channel_mult: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: int = Field(default=4, ge=1)
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    num_classes: int = Field(default=0, ge=0)
    time_scale: float = Field(default=1000.0, gt=0)
    second_time: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channels % 2:
            raise ValueError(f"channels: half are sines, half cosines of the time; {self.channels} is odd")
        if self.resolution % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"resolution {self.resolution} cannot be halved {len(self.channel_mult) - 1} times, "
                f"once for each level of channel_mult after the first"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.image_channels, self.resolution, self.resolution


def group_norm(channels: int) -> nn.GroupNorm:
    """The most groups, up to 32, that divide the channels into at least 4 each."""
    groups = next(n for n in range(min(32, channels // 4), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


def conv(in_channels: int, out_channels: int, kernel: int = 3, init_scale: float = 1.0) -> nn.Conv2d:
    """A same-size convolution with Xavier-uniform weights times `init_scale` and zero bias."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight)
    layer.weight.data *= init_scale
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A fully connected layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TimeEmbedding(nn.Module):
    """Positional embedding of a time, then two layers: [B] -> [B, embedding_channels]."""

    def __init__(self, channels: int, embedding_channels: int, time_scale: float) -> None:
        super().__init__()
        self.num_frequencies = channels // 2
        self.time_scale = time_scale
        self.layer0 = linear(channels, embedding_channels)
        self.layer1 = linear(embedding_channels, embedding_channels)

    def forward(self, t: Tensor, label_embedding: Tensor | None = None) -> Tensor:
        exponents = torch.linspace(0, 1, self.num_frequencies, device=t.device)
        angles = (self.time_scale * t.float())[:, None] * 10_000.0**-exponents
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.layer0.weight.dtype)
        if label_embedding is not None:
            embedding = embedding + label_embedding
        out: Tensor = F.silu(self.layer1(F.silu(self.layer0(embedding))))
        return out


class Attention(nn.Module):
    """Single-head self-attention over the pixels of [B, C, H, W], with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(channels, 3 * channels, kernel=1, init_scale=math.sqrt(0.2))
        self.proj = conv(channels, channels, kernel=1, init_scale=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=2))
        a = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        out: Tensor = (x + self.proj(a.transpose(1, 2).reshape(x.shape))) * SKIP_SCALE
        return out


class Block(nn.Module):
    """Residual block (BigGAN's, as in DDPM++), optionally resampling by two: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        resample: Literal["up", "down", "none"] = "none",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm0 = group_norm(in_channels)
        self.conv0 = conv(in_channels, out_channels)
        self.affine = linear(embedding_channels, out_channels)
        self.norm1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = conv(out_channels, out_channels, init_scale=1e-5)
        changes_shape = in_channels != out_channels or resample != "none"
        self.skip = conv(in_channels, out_channels, kernel=1) if changes_shape else nn.Identity()
        self.attention = Attention(out_channels) if attention else nn.Identity()

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self._resample(F.silu(self.norm0(x))))
        h = h + self.affine(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        out: Tensor = self.attention((self.skip(self._resample(x)) + h) * SKIP_SCALE)
        return out


class SongUNet(nn.Module):
    """F(x, t, s, label) -> [B, C, H, W]; see `SongUNetConfig` for the shapes.

    `s` is ignored by a network without a second time. Labels are int64 [B]; -1 means "no label".
    """

    def __init__(self, config: SongUNetConfig) -> None:
        super().__init__()
        self.config = config
        embedding_channels = 4 * config.channels
        self.embed_t = TimeEmbedding(config.channels, embedding_channels, config.time_scale)
        if config.num_classes:
            self.embed_label = nn.Linear(config.num_classes, config.channels, bias=False)
            nn.init.normal_(self.embed_label.weight)
        if config.second_time:
            self.embed_s = TimeEmbedding(config.channels, embedding_channels, config.time_scale)
            self.gate_s = nn.Parameter(torch.zeros(embedding_channels))

        def block(in_channels: int, out_channels: int, size: int, **kwargs: object) -> Block:
            return Block(in_channels, out_channels, embedding_channels, config.dropout, **kwargs)  # type: ignore[arg-type]

        sizes = [config.resolution >> level for level in range(len(config.channel_mult))]
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = conv(config.image_channels, config.channels)
        self.encoder = nn.ModuleList()
        width, skips = config.channels, [config.channels]
        for level, (size, level_width) in enumerate(zip(sizes, widths, strict=True)):
            if level:
                self.encoder.append(block(width, width, size, resample="down"))
                skips.append(width)
            for _ in range(config.num_blocks):
                attention = size in config.attention_resolutions
                self.encoder.append(block(width, level_width, size, attention=attention))
                width = level_width
                skips.append(width)

        self.middle = nn.ModuleList([block(width, width, sizes[-1], attention=True), block(width, width, sizes[-1])])

        self.decoder = nn.ModuleList()
        self.takes_skip: list[bool] = []
        for level, (size, level_width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            if level < len(sizes) - 1:
                self.decoder.append(block(width, width, size, resample="up"))
                self.takes_skip.append(False)
            for i in range(config.num_blocks + 1):
                attention = i == config.num_blocks and size in config.attention_resolutions
                self.decoder.append(block(width + skips.pop(), level_width, size, attention=attention))
                self.takes_skip.append(True)
                width = level_width
        self.norm_out = group_norm(width)
        self.conv_out = conv(width, config.image_channels, init_scale=1e-5)

    def embedding(self, t: Tensor, s: Tensor | None, label: Tensor | None) -> Tensor:
        """Joint embedding [B, 4 * channels] of the times `t`, `s` [B] and the class `label` [B]."""
        label_embedding = None
        if self.config.num_classes and label is not None:
            classes = torch.arange(self.config.num_classes, device=t.device)
            one_hot = (label[:, None] == classes).to(self.embed_label.weight.dtype)
            label_embedding = self.embed_label(one_hot)
        embedding: Tensor = self.embed_t(t, label_embedding)
        if self.config.second_time and s is not None:
            embedding = embedding + self.gate_s * self.embed_s(s, label_embedding)
        return embedding

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        embedding = self.embedding(t, s, label)
        x = self.conv_in(x)
        skips = [x]
        for encode in self.encoder:
            x = encode(x, embedding)
            skips.append(x)
        for refine in self.middle:
            x = refine(x, embedding)
        for decode, takes_skip in zip(self.decoder, self.takes_skip, strict=True):
            x = decode(torch.cat([x, skips.pop()], dim=1) if takes_skip else x, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out
