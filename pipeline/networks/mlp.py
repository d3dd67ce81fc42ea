"""Mlp: a residual network over the values of an array of any shape, for points, audio frames or robot actions."""

import copy
import math
from typing import Annotated, Any, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.networks.flow_network import ABOUT, ConventionName, FlowNetwork, FlowNetworkConfig
from pipeline.networks.layers import Init, PositionalFeatures, TimeEmbedding

INIT = Init(xavier=False)


class MlpConfig(FlowNetworkConfig):
    """Residual blocks over the values of an array of `shape`; times are embedded as in the U-Nets."""

    of_data: ClassVar[tuple[str, ...]] = ("shape", "num_classes")

    family: Literal["mlp"] = Field(default="mlp", description="A residual network for arrays of any shape.")
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Shape of an array; left out, it is that of the data."
    )
    width: int = Field(default=256, ge=1, description="Features of a residual block.")
    num_blocks: int = Field(default=4, ge=1, description="Number of residual blocks.")
    channels: int = Field(
        default=64, ge=4, multiple_of=2, description="Sines and cosines of the time; its embedding has 4 times as many."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description=ABOUT["dropout"])
    num_classes: int = Field(default=0, ge=0, le=2**20, description=ABOUT["num_classes"])
    label_dropout: float = Field(default=0.0, ge=0, lt=1, description=ABOUT["label_dropout"])
    convention: ConventionName = Field(default="flow", description=ABOUT["convention"])
    sigma_data: float = Field(default=0.5, gt=0, description=ABOUT["sigma_data"])
    time_scale: float = Field(default=16.0, gt=0, description=ABOUT["time_scale"])
    second_time: bool = Field(default=False, description=ABOUT["second_time"])
    time_channels: int | None = Field(
        default=None, ge=4, multiple_of=2, exclude_if=lambda count: count is None, description=ABOUT["time_channels"]
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_complete and self.label_dropout and not self.num_classes:
            raise ValueError("label_dropout: there is no label to drop where num_classes is 0")
        return self

    @property
    def is_complete(self) -> bool:
        return bool(self.shape)

    @property
    def num_blocks_and_width(self) -> tuple[int, int]:
        return self.num_blocks, max(self.width, math.prod(self.shape))

    def _fields_of(self, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"shape": shape}


class MlpBlock(nn.Module):
    """Two layers beside a skip connection; the embedding scales and shifts what goes in: [B, W] -> [B, W]."""

    def __init__(self, width: int, embedding_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = INIT.linear(embedding_channels, 2 * width)
        self.layer0 = INIT.linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.layer1 = INIT.linear(width, width)
        nn.init.zeros_(self.layer1.weight)
        nn.init.zeros_(self.layer1.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        h = F.silu(self.layer0(self.norm(x) * (1 + scale) + shift))
        out: Tensor = x + self.layer1(self.dropout(h))
        return out


class Mlp(FlowNetwork):
    """See `FlowNetwork`, and `MlpConfig` for the shapes."""

    config: MlpConfig

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        num_values = math.prod(config.shape)
        self.embed_t = self._time_embedding()
        if config.num_classes:
            self.embed_label = INIT.linear(config.num_classes, config.num_time_features)
        if config.second_time:
            self.add_second_time(self._time_embedding())
        self.layer_in = INIT.linear(num_values, config.width)
        self.blocks = nn.ModuleList(
            MlpBlock(config.width, self.embedding_channels, config.dropout) for _ in range(config.num_blocks)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.layer_out = INIT.linear(config.width, num_values)

    def padded(self, width: int) -> "Mlp":
        """A network that does the same, and does so still where its features are widened to `width` by zeros.

        A layer norm takes off the mean of the features, so that all that is added to them may have mean zero. Zeros
        then lower their deviation alone, which the scales behind the norms make good.
        """
        network, ratio = copy.deepcopy(self).requires_grad_(False), math.sqrt(self.config.width / width)
        blocks = [block for block in network.blocks if isinstance(block, MlpBlock)]
        for layer in (network.layer_in, *(block.layer1 for block in blocks)):
            layer.weight.sub_(layer.weight.mean(0))
            layer.bias.sub_(layer.bias.mean())
        for block in blocks:
            block.affine.weight[: self.config.width].mul_(ratio)
            block.affine.bias[: self.config.width].add_(1).mul_(ratio).sub_(1)  # the scale is 1 + this
        network.norm_out.weight.mul_(ratio)
        return network

    def _time_embedding(self) -> TimeEmbedding:
        channels = self.config.num_time_features
        return TimeEmbedding(PositionalFeatures(channels, adm=False), channels, self.embedding_channels, INIT)

    def condition(self, label: Tensor, augment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (self.embed_label(label) if self.config.num_classes else None), None

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        features = [self.layer_in(x.flatten(1))]
        for block in self.blocks:
            features.append(block(features[-1], embedding))
        return features

    def decode(self, features: list[Tensor], embedding: Tensor) -> Tensor:
        out: Tensor = self.layer_out(F.silu(self.norm_out(features[-1])))
        return out.reshape(-1, *self.config.shape)
