"""SongUNet: DDPM++ and NCSN++ of Song et al. (2021, arXiv 2011.13456), as EDM's Table 1 parametrises them.

One class serves the teachers of this family and the students that grow out of them. A student's network takes a second
time s; its embedding starts as a copy of the first one behind a gate that starts at zero, so that the network begins
as exactly the teacher's.
"""

import math
from typing import Annotated, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.networks.layers import (
    BlockStyle,
    FourierFeatures,
    Init,
    PositionalFeatures,
    Resample,
    TimeEmbedding,
    group_norm,
)
from pipeline.networks.unet import UNet, UNetConfig

SKIP_SCALE = math.sqrt(0.5)
NORM_EPS = 1e-6
INIT = Init(xavier=True)


class SongUNetConfig(UNetConfig):
    """The keys of every U-Net, and the choices that lead from DDPM++ (the defaults) to NCSN++.

    NCSN++ has time_embedding fourier, encoder residual and resample_filter (1, 3, 3, 1).
    """

    family: Literal["song"] = Field(default="song", description="DDPM++ or NCSN++; the default family.")
    time_embedding: Literal["positional", "fourier"] = Field(
        default="positional", description="Features of the time: DDPM++'s, or NCSN++'s random Fourier features."
    )
    encoder: Literal["standard", "residual", "skip"] = Field(
        default="standard", description="How the image joins each level: not at all, or as in NCSN++."
    )
    decoder: Literal["standard", "skip"] = Field(
        default="standard", description="Whether the output is a sum over the levels (skip)."
    )
    resample_filter: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 1), description="Taps of the filter that halves and doubles sides; NCSN++ has [1, 3, 3, 1]."
    )

    @model_validator(mode="after")
    def _check_filter(self) -> Self:
        if len(self.resample_filter) % 2 or not self.resample_filter:
            raise ValueError(f"resample_filter: halving needs an even number of taps, got {self.resample_filter}")
        return self

    @property
    def num_time_features(self) -> int:
        """See above; as in EDM twice the width where they are random."""
        return self.time_channels or self.channels * (2 if self.time_embedding == "fourier" else 1)


class ResidualInput(nn.Module):
    """The image, convolved and halved, joins the features and goes on as what they are then."""

    def __init__(self, config: SongUNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = INIT.conv(in_channels, out_channels)
        self.resample = Resample(config.resample_filter, "down")

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        # The filter runs over the convolution's output, which therefore has to reach beyond the image's edge.
        wide = self.conv(F.pad(image, [self.resample.padding] * 4))
        x = (x + self.resample.down(wide, padding=0)) * SKIP_SCALE
        return x, x


class SkipInput(nn.Module):
    """The halved image joins the features, and goes on as it is."""

    def __init__(self, config: SongUNetConfig, out_channels: int) -> None:
        super().__init__()
        self.conv = INIT.conv(config.image_channels, out_channels, kernel=1)
        self.resample = Resample(config.resample_filter, "down")

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        image = self.resample(image)
        return x + self.conv(image), image


class SkipOutput(nn.Module):
    """A level's own image, doubled for the level above."""

    def __init__(self, config: SongUNetConfig, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, NORM_EPS, config.max_groups)
        self.conv = INIT.conv(channels, config.image_channels, gain=1e-5)
        self.resample = Resample(config.resample_filter, "up")

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        own: Tensor = self.conv(F.silu(self.norm(x)))
        doubled: Tensor = self.resample(own if image is None else image + own)
        return doubled


class SongUNet(UNet):
    """See `UNet`, and `SongUNetConfig` for the shapes."""

    config: SongUNetConfig

    def __init__(self, config: SongUNetConfig) -> None:
        super().__init__(config)
        self.embed_t = self._time_embedding()
        if config.num_classes:
            self.embed_label = INIT.linear(config.num_classes, config.num_time_features)
        if config.augment_dim:
            self.embed_augment = nn.Linear(config.augment_dim, config.num_time_features, bias=False)
            nn.init.xavier_uniform_(self.embed_augment.weight)
        if config.second_time:
            self.add_second_time(self._time_embedding())
        style = BlockStyle(
            init=INIT,
            embedding_channels=self.embedding_channels,
            dropout=config.dropout,
            norm_eps=NORM_EPS,
            max_groups=config.max_groups,
            min_channels_per_group=4,
            skip_scale=SKIP_SCALE,
            scales=False,
            projects_resampled=True,
            channels_per_head=None,
            attention_gain=math.sqrt(0.2),
            last_gain=1e-5,
            resample_filter=config.resample_filter,
        )
        self.build_trunk(style, config.channels, attends_everywhere=False)
        self._build_pyramids()

    def _time_embedding(self) -> TimeEmbedding:
        channels = self.config.num_time_features
        positional = self.config.time_embedding == "positional"
        features = PositionalFeatures(channels, adm=False) if positional else FourierFeatures(channels)
        return TimeEmbedding(features, channels, self.embedding_channels, INIT)

    def _build_pyramids(self) -> None:
        """The ways of the image beside the features: NCSN++'s input pyramid, and an output pyramid."""
        config, widths = self.config, self.config.widths
        for level in range(1, len(widths)):
            # The blocks of a level: in the encoder one that halves and `num_blocks`, in the decoder one more of them.
            down = level * (config.num_blocks + 1) - 1
            up = (len(widths) - level) * (config.num_blocks + 2) - 1
            if config.encoder == "residual":
                before = config.image_channels if level == 1 else widths[level - 2]
                self.inputs[str(down)] = ResidualInput(config, before, widths[level - 1])
            elif config.encoder == "skip":
                self.inputs[str(down)] = SkipInput(config, widths[level - 1])
            if config.decoder == "skip":
                self.outputs[str(up)] = SkipOutput(config, widths[level])

    def condition(self, label: Tensor, augment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        before = None
        if self.config.num_classes:
            before = self.embed_label(label * math.sqrt(self.config.num_classes))
        if self.config.augment_dim and augment is not None:
            augmented = self.embed_augment(augment)
            before = augmented if before is None else before + augmented
        return before, None
