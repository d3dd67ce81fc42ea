"""What all network families share: what they are told, and the velocity that comes out; a family has its own trunk."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
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
from pipeline.networks.layers import TimeEmbedding

ConventionName = Literal["flow", "rectified-flow", "rectified-flow-scaled", "edm", "adm", "adm-linear"]

# The sentences of keys that every family declares for itself.
ABOUT = {
    "dropout": "Probability of dropping a feature in training.",
    "time_channels": "Number of sines and cosines of the time; left out, `channels` decides. A wider student has its "
    "teacher's.",
    "num_classes": "Number of classes; 0 makes an unconditional network.",
    "label_dropout": "Probability of dropping a label in training, so that the network also answers without one.",
    "convention": "What the network predicts: flow is the velocity; docs/how-to/teacher.md has the others.",
    "sigma_data": "Standard deviation of the data in the convention edm.",
    "time_scale": "Factor of the noise label that the network sees.",
    "second_time": "Take a second time, the one a jump goes to, as a student does.",
}


class FlowNetworkConfig(BaseModel):
    """The configuration of a network over arrays of `shape`, whatever its family.

    One that leaves out the `of_data` that decide its shape takes them, and its `num_classes`, from the data; a complete
    one is as it says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    of_data: ClassVar[tuple[str, ...]]  # the fields that the data know

    if TYPE_CHECKING:  # each family declares its fields, in the order in which its files have had them

        @property
        def shape(self) -> tuple[int, ...]:
            """Of one sample."""

        channels: int
        time_channels: int | None
        dropout: float
        num_classes: int
        label_dropout: float
        convention: ConventionName
        sigma_data: float
        time_scale: float
        second_time: bool

    @property
    def is_complete(self) -> bool:
        """Whether it leaves nothing to the data."""
        raise NotImplementedError

    @property
    def num_time_features(self) -> int:
        """Number of sines and cosines of a time."""
        return self.time_channels or self.channels

    @property
    def num_blocks_and_width(self) -> tuple[int, int]:
        """The number of its blocks, and the width of the widest: its file has at least so many tensors and values."""
        raise NotImplementedError

    def completed(self, shape: tuple[int, ...], num_classes: int) -> Self:
        """This configuration, with what it leaves out as in data of `shape` and `num_classes`.

        Raises:
            ValueError: no such network can have that shape.
        """
        if self.is_complete:
            return self
        return self.model_validate(self._fields_of(shape) | {"num_classes": num_classes} | self.model_dump())

    def _fields_of(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The fields of a network for samples of `shape`; raises ValueError if there can be none."""
        raise NotImplementedError

    def for_training(self, second_time: bool) -> Self:
        """The configuration of a network that is trained here: a student's has a second time, a teacher's has one."""
        return self.model_copy(update={"second_time": second_time})

    def grown_from(self, given: Self) -> dict[str, Any]:
        """The fields by which a network of this configuration can do what a narrower one of `given` does."""
        has_more = self.num_time_features > given.num_time_features
        return {"time_channels": given.num_time_features} if has_more else {}

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.is_complete:
            return values
        return {key: value for key, value in values.items() if key not in self.of_data or key in self.model_fields_set}

    def make_convention(self) -> Convention:
        """The change of variables between what the network predicts and a velocity."""
        conventions: dict[ConventionName, Convention] = {
            "flow": Flow(),
            "rectified-flow": RectifiedFlow(),
            "rectified-flow-scaled": ScaledRectifiedFlow(),
            "edm": Edm(self.sigma_data),
            "adm": AdmCosine(),
            "adm-linear": AdmLinear(),
        }
        return conventions[self.convention]

    @property
    def t_start(self) -> float:
        """The time at which the network's flow starts."""
        return self.make_convention().t_start


class FlowNetwork(nn.Module):
    """The velocity v(x, t, s, label) -> [B, *shape] of x [B, *shape], t and s [B] in [0, 1], label int64 [B].

    `s` is ignored by a network without a second time; label -1, or None, means "no label"; `augment` float
    [B, augment_dim] are EDM's augmentation labels, None for none.
    """

    config: FlowNetworkConfig
    embed_t: TimeEmbedding
    embed_s: TimeEmbedding  # with a second time
    gate_s: nn.Parameter
    embed_label: nn.Linear  # with classes

    def __init__(self, config: FlowNetworkConfig) -> None:
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

    def condition(self, label: Tensor, augment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What one-hot classes [B, num_classes] and augmentation labels add to a time's features, and after them."""
        raise NotImplementedError

    def embedding(self, t: Tensor, s: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        """Joint embedding [B, embedding_channels] of all that is not the array."""
        config = self.config
        classes = torch.arange(config.num_classes, device=t.device)
        no_label = torch.full_like(t, -1, dtype=torch.long)
        is_class = (no_label if label is None else label)[:, None] == classes
        before, after = self.condition(is_class.to(self.embed_t.layer0.weight.dtype), augment)
        embedding: Tensor = self.embed_t(self._time(t), before, after)
        if config.second_time and s is not None:
            embedding = embedding + self.gate_s * self.embed_s(self._time(s), before, after)
        return embedding

    def _time(self, t: Tensor) -> Tensor:
        return self.config.time_scale * self.convention.noise_label(t.float())

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The features [B, ...] of the array x [B, *shape], layer by layer."""
        raise NotImplementedError

    def decode(self, features: list[Tensor], embedding: Tensor) -> Tensor:
        """From the features that `encode` found to an array [B, *shape]."""
        raise NotImplementedError

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """From array to array: [B, *shape] -> [B, *shape]."""
        return self.decode(self.encode(x, embedding), embedding)

    def features(self, x: Tensor, t: Tensor, label: Tensor | None) -> list[Tensor]:
        """What `encode` finds in the state x [B, *shape] at t [B]."""
        embedding, found = self.embedding(t, None, label, None), list[Tensor]()

        def predict(scaled: Tensor) -> Tensor:
            found.extend(self.encode(scaled, embedding))
            return scaled

        self.convention.velocity(predict, x, match_dims(t, x))
        return found

    def velocity_and_features(self, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The velocity at the state x [B, *shape] at t [B], and the `features` on the way to it, in one evaluation."""
        embedding, found = self.embedding(t, None, label, None), list[Tensor]()

        def predict(scaled: Tensor) -> Tensor:
            found.extend(self.encode(scaled, embedding))
            return self.decode(found, embedding)

        return self.convention.velocity(predict, x, match_dims(t, x)), found

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
