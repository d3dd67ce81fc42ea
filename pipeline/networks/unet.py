"""What the U-Net families share: their images, and the trunk from image to image."""

from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from pipeline.common.config import Unit
from pipeline.networks.flow_network import ABOUT, ConventionName, FlowNetwork, FlowNetworkConfig
from pipeline.networks.layers import Block, BlockStyle, Resampling

Resolution = int | tuple[int, int]
MAX_GROUPS = 32
ATTENTION_RESOLUTIONS = "Shorter sides at which a level attends."


def _sides(resolution: object) -> object:
    """Refuses what is no resolution; a pair of equal sides is the one number, as before pairs existed."""
    sides = list(resolution) if isinstance(resolution, list | tuple) else [resolution]
    if len(sides) > 2 or not sides or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError("wanted a positive whole number, or two: [height, width]")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


class UNetConfig(FlowNetworkConfig):
    """What decides the shape of a network and the meaning of its output, whatever its family.

    Images are [image_channels, resolution, resolution], or [image_channels, H, W] where `resolution` is (H, W). Level i
    of the U-Net has `channels` * `channel_mult[i]` channels and sides of 1 / 2^i; it attends where the shorter side is
    in `attention_resolutions`. A configuration that leaves out `resolution` or `image_channels` takes them, and its
    `num_classes`, from the data; a complete one is as it says.
    """

    of_data: ClassVar[tuple[str, ...]] = ("resolution", "image_channels", "num_classes")

    resolution: Annotated[Resolution, Unit("pixels"), BeforeValidator(_sides)] = Field(
        default=0, description="Side of an image, or [height, width]; left out, it is that of the data."
    )
    image_channels: Annotated[int, Field(ge=1)] = Field(
        default=0, description="Channels of an image; left out, they are those of the data."
    )
    channels: int = Field(default=128, ge=4, description="Channels that each level's channel_mult multiplies.")
    channel_mult: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(2, 2, 2), min_length=1, description="Factor of the channels on each level; a level halves the sides."
    )
    num_blocks: int = Field(default=4, ge=1, description="Number of residual blocks on each level.")
    attention_resolutions: Annotated[tuple[int, ...], Unit("pixels")] = Field(
        default=(16,), description=ATTENTION_RESOLUTIONS
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description=ABOUT["dropout"])
    num_classes: int = Field(default=0, ge=0, le=2**20, description=ABOUT["num_classes"])
    label_dropout: float = Field(default=0.0, ge=0, lt=1, description=ABOUT["label_dropout"])
    augment_dim: int = Field(
        default=0, ge=0, description="Length of EDM's augmentation labels, which published teachers take; 0: none."
    )
    # "adm" has the cosine schedule: files older than "adm-linear" say it so.
    convention: ConventionName = Field(default="flow", description=ABOUT["convention"])
    sigma_data: float = Field(default=0.5, gt=0, description=ABOUT["sigma_data"])
    time_scale: float = Field(default=1000.0, gt=0, description=ABOUT["time_scale"])
    second_time: bool = Field(default=False, description=ABOUT["second_time"])
    time_channels: int | None = Field(
        default=None, ge=4, multiple_of=2, exclude_if=lambda count: count is None, description=ABOUT["time_channels"]
    )
    max_groups: int = Field(
        default=MAX_GROUPS,
        ge=1,
        exclude_if=lambda count: count == MAX_GROUPS,
        description="Most groups of a normalisation; a wider student has proportionally more than its teacher.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channels % 2:
            raise ValueError(f"channels: half are sines, half cosines of the time; {self.channels} is odd")
        if any(side % 2 ** (len(self.channel_mult) - 1) for side in self.shape[1:]):
            raise ValueError(
                f"resolution {self.resolution} cannot be halved {len(self.channel_mult) - 1} times, "
                f"once for each level of channel_mult after the first"
            )
        if self.is_complete and self.label_dropout and not self.num_classes:
            raise ValueError("label_dropout: there is no label to drop where num_classes is 0")
        return self

    @property
    def is_complete(self) -> bool:
        """Whether it leaves nothing to the data."""
        return bool(self.resolution and self.image_channels)

    @property
    def num_blocks_and_width(self) -> tuple[int, int]:
        return len(self.widths) * (2 * self.num_blocks + 1), max(self.widths)

    def _fields_of(self, shape: tuple[int, ...]) -> dict[str, Any]:
        if len(shape) != 3:
            raise ValueError("a U-Net is for images [C, H, W]; give a network of family mlp")
        return {"resolution": shape[1:], "image_channels": shape[0]}

    def for_training(self, second_time: bool) -> Self:
        """See above; without augmentation labels, which describe a published teacher's training images."""
        return super().for_training(second_time).model_copy(update={"augment_dim": 0})

    def grown_from(self, given: Self) -> dict[str, Any]:
        """See above; a group then joins as many channels as in `given`."""
        most = given.max_groups if isinstance(given, UNetConfig) else MAX_GROUPS
        groups = int(most * max(self.channels / given.channels, 1))
        return super().grown_from(given) | {"max_groups": groups}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        height, width = (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution
        return self.image_channels, height, width

    @property
    def attends(self) -> list[bool]:
        """Whether each level attends."""
        side = min(self.shape[1:])
        return [side >> level in self.attention_resolutions for level in range(len(self.channel_mult))]

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * mult for mult in self.channel_mult]


class UNet(FlowNetwork):
    """A `FlowNetwork` over images [B, C, H, W]."""

    config: UNetConfig
    embed_augment: nn.Linear  # with augmentation labels

    def build_trunk(self, style: BlockStyle, first_width: int, attends_everywhere: bool) -> None:
        """Makes the layers from image to image; `attends_everywhere`: not only after a decoder level's last block.

        `inputs` and `outputs`, empty here, are where the image itself joins or leaves the features: by the index of the
        encoder's block before and of the decoder's block after.
        """
        config, init = self.config, style.init

        def block(in_channels: int, out_channels: int, resample: Resampling = "none", attention: bool = False) -> Block:
            return Block(style, in_channels, out_channels, resample, attention)

        self.conv_in = init.conv(config.image_channels, first_width)
        self.encoder = nn.ModuleList()
        width, skips = first_width, [first_width]
        for level, level_width in enumerate(config.widths):
            if level:
                self.encoder.append(block(width, width, "down"))
                skips.append(width)
            for _ in range(config.num_blocks):
                self.encoder.append(block(width, level_width, attention=config.attends[level]))
                width = level_width
                skips.append(width)

        self.middle = nn.ModuleList([block(width, width, attention=True), block(width, width)])

        self.decoder = nn.ModuleList()
        self.takes_skip: list[bool] = []
        for level, level_width in reversed(list(enumerate(config.widths))):
            if level < len(config.widths) - 1:
                self.decoder.append(block(width, width, "up"))
                self.takes_skip.append(False)
            for i in range(config.num_blocks + 1):
                attention = config.attends[level] and (attends_everywhere or i == config.num_blocks)
                self.decoder.append(block(width + skips.pop(), level_width, attention=attention))
                self.takes_skip.append(True)
                width = level_width
        self.norm_out = style.norm(width)
        self.conv_out = init.conv(width, config.image_channels, gain=style.last_gain)
        self.inputs, self.outputs = nn.ModuleDict(), nn.ModuleDict()

    def encode(self, image: Tensor, embedding: Tensor) -> list[Tensor]:
        """The features after the first convolution and after every block of the encoder."""
        x = self.conv_in(image)
        features = [x]
        for i, encode in enumerate(self.encoder):
            x = encode(x, embedding)
            if str(i) in self.inputs:
                x, image = self.inputs[str(i)](x, image)
            features.append(x)
        return features

    def decode(self, features: list[Tensor], embedding: Tensor) -> Tensor:
        """From the encoder's features to an image [B, C, H, W]."""
        skips, x, image_out = [*features], features[-1], None
        for refine in self.middle:
            x = refine(x, embedding)
        for i, (decode, takes_skip) in enumerate(zip(self.decoder, self.takes_skip, strict=True)):
            if str(i) in self.outputs:
                image_out = self.outputs[str(i)](x, image_out)
            x = decode(torch.cat([x, skips.pop()], dim=1) if takes_skip else x, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out if image_out is None else out + image_out
