"""What all families of diffusers' networks share: sizes, conditions, and the call from (x, t) to a velocity."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.networks.diffusers.schedule import NoiseSchedule

# What a condition holds, or a batch of them, by the names of the pipeline's arguments.
Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Family(ABC):
    """One of diffusers' networks and how its pipeline calls it; `config` is the network's own."""

    config: Mapping[str, Any]
    schedule: NoiseSchedule | None = None
    image_size: tuple[int, int] = (0, 0)  # of the pictures in pixels, (height, width)
    guidance: float = 1.0  # that the network is told, where it `embeds_guidance`

    pipelines: ClassVar[tuple[str, ...]]
    network: ClassVar[str]  # its class
    folder: ClassVar[str] = "transformer"  # of the network in a pipeline
    encoded: ClassVar[tuple[str, ...]] = ()  # what `encode_prompt` returns, by its names; empty without prompts
    is_latent: ClassVar[bool] = True
    holds_bf16: ClassVar[bool] = True  # whether its weights may be bf16 where its states are fp32
    is_packed: ClassVar[bool] = False  # whether the pipeline's latents are tokens
    has_fixed_size: ClassVar[bool] = False
    scale: ClassVar[int | None] = None  # of pixels to latents, where the pipeline does not take it from its VAE
    guidance_argument: ClassVar[str] = "guidance_scale"

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """What reaches the timestep embedder at times t [B]."""

    @abstractmethod
    def velocity(self, model: nn.Module, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """dx/dt at x [B, C, H, W] and t [B] under the conditions `rows`."""

    @property
    def takes_prompts(self) -> bool:
        return bool(self.encoded)

    @property
    def takes_negative(self) -> bool:
        """Whether guidance is between a prompt and a negative one."""
        return self.takes_prompts and not self.embeds_guidance

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told the scale of its guidance, and is guided by that alone."""
        return False

    @property
    def num_classes(self) -> int:
        return 0

    @property
    def channels(self) -> int:
        channels: int = self.config["in_channels"]
        return channels

    @property
    def patch(self) -> int:
        """What divides the sides of the latents."""
        patch: int = self.config.get("patch_size", 1)
        return patch

    @property
    def sizes(self) -> tuple[int, ...]:
        """All that a plan takes from the network's configuration."""
        return self.channels, self.patch, self.default_size, self.num_classes, self.embeds_guidance

    @property
    def default_size(self) -> int:
        """The side of the latents that the pipeline takes by default."""
        side: int = self.config.get("sample_size") or 128
        return side

    def pipeline_guidance(self, scale: float) -> float:
        """What the pipeline calls a guidance of `scale`, of which 1 is none."""
        return scale

    def with_guidance(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """The velocity under classifier-free guidance of `scale`, from both velocities [B, C, H, W]."""
        return unconditional + scale * (conditional - unconditional)

    def encode(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """The condition of one prompt, without a dimension of the batch."""
        found = pipeline.encode_prompt(prompt, **self._encode_arguments(pipeline))
        return self._condition(found, negative=False)

    def encode_negative(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        """The condition of a negative prompt, by its own way through the pipeline; "" is the pipeline's default."""
        arguments = self._encode_arguments(pipeline) | {"do_classifier_free_guidance": True}
        default = inspect.signature(type(pipeline).__call__).parameters["negative_prompt"].default
        found = pipeline.encode_prompt("", negative_prompt=prompt or default, **arguments)
        return self._condition(found, negative=True)

    def _encode_arguments(self, pipeline: Any) -> dict[str, Any]:
        """The arguments of `encode_prompt` that the pipeline's own call would give."""
        takes, calls = (inspect.signature(f).parameters for f in (pipeline.encode_prompt, type(pipeline).__call__))
        names = [name for name in ("max_sequence_length", "complex_human_instruction") if {name} <= {*takes, *calls}]
        called = {name: calls[name].default for name in names if name in calls}
        fixed = {
            "do_classifier_free_guidance": False,
            "num_images_per_prompt": 1,
            "device": pipeline.text_encoder.device,
        }
        fixed |= dict.fromkeys(("prompt_2", "prompt_3"))
        return {name: value for name, value in (called | fixed).items() if name in takes}

    def _condition(self, found: Any, negative: bool) -> dict[str, Tensor]:
        returned = dict(zip(self.encoded, found if isinstance(found, tuple) else (found,), strict=True))
        prefix = "negative_" if negative else ""
        names = [name for name in self.encoded if name.startswith("negative_") == negative and name != "text_ids"]
        return {name.removeprefix(prefix): returned[name][0] for name in names if returned[name] is not None}

    def collate(self, rows: Sequence[Mapping[str, Tensor]]) -> Rows:
        """A batch of conditions; where their lengths differ they are filled up with zeros, masks too."""
        return {name: stack_padded([row[name] for row in rows]) for name in rows[0]}


def stack_padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors that may differ in their first dimension, filled up with zeros."""
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True) if tensors[0].ndim else torch.stack(list(tensors))


def pack(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as tokens of 2 x 2 of them, [B, H W / 4, 4 C], as FLUX and Qwen-Image take them."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`, to latents of `shape` [B, C, H, W]."""
    b, c, h, w = shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
