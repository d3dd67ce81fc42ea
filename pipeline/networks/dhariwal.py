"""DhariwalUNet: the ADM U-Net of Dhariwal & Nichol (2021, arXiv 2105.05233), as EDM's Table 1 parametrises it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.common.config import Unit
from pipeline.networks.layers import BlockStyle, Init, PositionalFeatures, TimeEmbedding
from pipeline.networks.unet import ATTENTION_RESOLUTIONS, UNet, UNetConfig

INIT = Init(xavier=False)


class DhariwalUNetConfig(UNetConfig):
    """The keys of every U-Net, and the sizes of attention heads and of normalisation groups."""

    family: Literal["dhariwal"] = Field(default="dhariwal", description="The ADM U-Net.")
    attention_resolutions: Annotated[tuple[int, ...], Unit("pixels")] = Field(
        default=(32, 16, 8), description=ATTENTION_RESOLUTIONS
    )
    channels_per_head: int = Field(default=64, ge=1, description="Channels of an attention head.")
    min_channels_per_group: int = Field(
        default=4, ge=1, description="Least number of channels in a group of the group normalisation."
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        attending = [width for width, attends in zip(self.widths, self.attends, strict=True) if attends]
        for width in (*attending, self.widths[-1]):
            if width % self.channels_per_head:
                raise ValueError(f"channels_per_head: {width} channels make no heads of {self.channels_per_head}")
        return self


class DhariwalUNet(UNet):
    """See `UNet`, and `DhariwalUNetConfig` for the shapes."""

    config: DhariwalUNetConfig

    def __init__(self, config: DhariwalUNetConfig) -> None:
        super().__init__(config)
        self.embed_t = self._time_embedding()
        if config.num_classes:
            self.embed_label = nn.Linear(config.num_classes, self.embedding_channels, bias=False)
            nn.init.normal_(self.embed_label.weight)
        if config.augment_dim:
            self.embed_augment = nn.Linear(config.augment_dim, config.num_time_features, bias=False)
            nn.init.zeros_(self.embed_augment.weight)
        if config.second_time:
            self.add_second_time(self._time_embedding())
        style = BlockStyle(
            init=INIT,
            embedding_channels=self.embedding_channels,
            dropout=config.dropout,
            norm_eps=1e-5,
            max_groups=config.max_groups,
            min_channels_per_group=config.min_channels_per_group,
            skip_scale=1.0,
            scales=True,
            projects_resampled=False,
            channels_per_head=config.channels_per_head,
            attention_gain=1.0,
            last_gain=0.0,
        )
        self.build_trunk(style, config.widths[0], attends_everywhere=True)

    def _time_embedding(self) -> TimeEmbedding:
        channels = self.config.num_time_features
        return TimeEmbedding(PositionalFeatures(channels, adm=True), channels, self.embedding_channels, INIT)

    def condition(self, label: Tensor, augment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        before = self.embed_augment(augment) if self.config.augment_dim and augment is not None else None
        after = self.embed_label(label) if self.config.num_classes else None
        return before, after
