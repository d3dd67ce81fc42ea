"""What the U-Net families share: the times and classes they see, the trunk, and the velocity that comes out."""

from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from pipeline.flow.path import match_dims
from pipeline.networks.convention import (
    AdmCosine,
    AdmLinear,
    Convention,
    Edm,
    Flow,
    RectifiedFlow,
    ScaledRectifiedFlow,
)
from pipeline.networks.layers import Block, BlockStyle, Resampling, TimeEmbedding

Resolution = int | tuple[int, int]
OF_DATA = ("resolution", "image_channels", "num_classes")  # fields that the data know


def _sides(resolution: object) -> object:
    """Refuses what is no resolution; a pair of equal sides is the one number, as before pairs existed."""
    sides = list(resolution) if isinstance(resolution, list | tuple) else [resolution]
    if len(sides) > 2 or not sides or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError("wanted a positive whole number, or two: [height, width]")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


class UNetConfig(BaseModel):
    """What decides the shape of a network and the meaning of its output, whatever its family.

    Images are [image_channels, resolution, resolution], or [image_channels, H, W] where `resolution` is (H, W). Level i
    of the U-Net has `channels` * `channel_mult[i]` channels and sides of 1 / 2^i; it attends where the shorter side is
    in `attention_resolutions`. A configuration that leaves out `resolution` or `image_channels` takes them, and its
    `num_classes`, from the data; a complete one is as it says. `num_classes` = 0 makes an unconditional network; one
    that was trained with `label_dropout` also answers without a label. `augment_dim` > 0 takes augmentation labels, as
    EDM's do.
    `convention` says what the network predicts (see `convention.py`); it sees `time_scale` times the noise label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: Annotated[Resolution, BeforeValidator(_sides)] = 0  # 0: left out
    image_channels: Annotated[int, Field(ge=1)] = 0
    channels: int = Field(default=128, ge=4)
    channel_mult: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: int = Field(default=4, ge=1)
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    num_classes: int = Field(default=0, ge=0, le=2**20)
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    augment_dim: int = Field(default=0, ge=0)
    # "adm" has the cosine schedule: files older than "adm-linear" say it so.
    convention: Literal["flow", "rectified-flow", "rectified-flow-scaled", "edm", "adm", "adm-linear"] = "flow"
    sigma_data: float = Field(default=0.5, gt=0)  # of the convention edm
    time_scale: float = Field(default=1000.0, gt=0)
    second_time: bool = False

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

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.is_complete:
            return values
        return {key: value for key, value in values.items() if key not in OF_DATA or key in self.model_fields_set}

    @property
    def is_complete(self) -> bool:
        """Whether it leaves nothing to the data."""
        return bool(self.resolution and self.image_channels)

    def completed(self, shape: tuple[int, ...], num_classes: int) -> Self:
        """This configuration, with what it leaves out as in data of `shape` (C, H, W) and `num_classes`.

        Raises:
            pydantic.ValidationError: no such network can have that shape.
        """
        if self.is_complete:
            return self
        of_data = {"resolution": shape[1:], "image_channels": shape[0], "num_classes": num_classes}
        return self.model_validate(of_data | self.model_dump())

    @property
    def t_start(self) -> float:
        """The time at which the network's flow starts."""
        return self.make_convention().t_start

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

    def make_convention(self) -> Convention:
        """The change of variables between what the network predicts and a velocity."""
        conventions: dict[str, Convention] = {
            "flow": Flow(),
            "rectified-flow": RectifiedFlow(),
            "rectified-flow-scaled": ScaledRectifiedFlow(),
            "edm": Edm(self.sigma_data),
            "adm": AdmCosine(),
            "adm-linear": AdmLinear(),
        }
        return conventions[self.convention]


class UNet(nn.Module):
    """The velocity v(x, t, s, label) -> [B, C, H, W] of x [B, C, H, W], t and s [B] in [0, 1], label int64 [B].

    `s` is ignored by a network without a second time; label -1, or None, means "no label"; `augment` float
    [B, augment_dim] are EDM's augmentation labels, None for none.
    """

    embed_t: TimeEmbedding
    embed_s: TimeEmbedding  # with a second time
    gate_s: nn.Parameter
    embed_label: nn.Linear  # with classes
    embed_augment: nn.Linear  # with augmentation labels

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.convention = config.make_convention()

    @property
    def embedding_channels(self) -> int:
        return 4 * self.config.channels

    def add_second_time(self, embedding: TimeEmbedding) -> None:
        """The embedding of the student's second time, behind a gate that is zero."""
        self.embed_s = embedding
        self.gate_s = nn.Parameter(torch.zeros(self.embedding_channels))

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

    def condition(self, label: Tensor, augment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What one-hot classes [B, num_classes] and augmentation labels add to a time's features, and after them."""
        raise NotImplementedError

    def embedding(self, t: Tensor, s: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """Joint embedding [B, embedding_channels] of all that is not an image."""
        config = self.config
        classes = torch.arange(config.num_classes, device=t.device)
        no_label = torch.full_like(t, -1, dtype=torch.long)
        one_hot = ((no_label if label is None else label)[:, None] == classes).to(self.conv_in.weight.dtype)
        before, after = self.condition(one_hot, augment)
        embedding: Tensor = self.embed_t(self._time(t), before, after)
        if config.second_time and s is not None:
            embedding = embedding + self.gate_s * self.embed_s(self._time(s), before, after)
        return embedding

    def _time(self, t: Tensor) -> Tensor:
        return self.config.time_scale * self.convention.noise_label(t.float())

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """From image to image: [B, C, H, W] -> [B, C, H, W]."""
        image_in, image_out = x, None
        x = self.conv_in(x)
        skips = [x]
        for i, encode in enumerate(self.encoder):
            x = encode(x, embedding)
            if str(i) in self.inputs:
                x, image_in = self.inputs[str(i)](x, image_in)
            skips.append(x)
        for refine in self.middle:
            x = refine(x, embedding)
        for i, (decode, takes_skip) in enumerate(zip(self.decoder, self.takes_skip, strict=True)):
            if str(i) in self.outputs:
                image_out = self.outputs[str(i)](x, image_out)
            x = decode(torch.cat([x, skips.pop()], dim=1) if takes_skip else x, embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out if image_out is None else out + image_out

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        embedding = self.embedding(t, s, label, augment)
        return self.convention.velocity(lambda scaled: self.trunk(scaled, embedding), x, match_dims(t, x))
