"""A network of diffusers as one of this program's: v(x, t, s, label), with a second time where it is a student."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipeline.common.errors import BadInput
from pipeline.networks.conditions import Conditions
from pipeline.networks.diffusers.adapter import AdapterConfig, add_adapter
from pipeline.networks.diffusers.catalogue import PIPELINES
from pipeline.networks.diffusers.family import Family, Rows
from pipeline.networks.diffusers.schedule import NoiseSchedule
from pipeline.networks.diffusers.times import TimeEmbedder, wrap_embedders
from pipeline.networks.diffusers.weights import BaseWeights, load_base


class DiffusersConfig(BaseModel):
    """What decides the velocity of a diffusers network but its weights.

    `model` is the network's own config.json, `pipeline` the class of the pipeline that calls it. Samples have `shape`
    [C, H, W]: latents, of pictures of `image_size` [height, width] pixels, or pixels. `num_classes` counts its classes,
    or the prompts of its data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    family: Literal["diffusers"] = "diffusers"
    pipeline: Literal[tuple(PIPELINES)]  # type: ignore[valid-type]
    model: dict[str, Any]
    schedule: NoiseSchedule | None = None
    shape: tuple[int, int, int]
    image_size: tuple[int, int]
    num_classes: int = Field(default=0, ge=0)
    guidance: float = 1.0  # that the network is told, where it embeds guidance
    second_time: bool = False
    adapter: AdapterConfig | None = None
    base: BaseWeights | None = None  # that the adapter changes

    def make_family(self) -> Family:
        """How the network is called."""
        family: type[Family] = PIPELINES[self.pipeline]
        return family(self.model, self.schedule, self.image_size, self.guidance)

    @property
    def label_dropout(self) -> float:
        """Of its training: what its labels stand for is never dropped here."""
        return 0.0

    @property
    def is_latent(self) -> bool:
        """Whether samples are no pictures until they are decoded."""
        return PIPELINES[self.pipeline].is_latent

    @property
    def t_start(self) -> float:
        return 1.0 if self.schedule is None else self.schedule.t_start


class DiffusersNetwork(nn.Module):
    """The velocity v(x, t, s, label) -> [B, C, H, W] of x [B, C, H, W], t and s [B] in [0, 1], label int64 [B].

    A label is a class, or a row of `conditions`; -1 is none, or the negative prompt. `s` is ignored by a network
    without a second time.
    """

    def __init__(self, config: DiffusersConfig, model: nn.Module, conditions: Conditions | None = None) -> None:
        super().__init__()
        self.config, self.family, self.conditions = config, config.make_family(), conditions
        self.model = model
        if config.adapter is not None:
            add_adapter(model, config.adapter)
        wrap_embedders(model)
        if config.second_time:
            self._add_second_time()

    def become_student(self, adapter: AdapterConfig | None, base: BaseWeights) -> None:
        """Take a second time, and train the weights, or an `adapter` of those in `base`; the start is the teacher's.

        Raises:
            BadInput: the network has no layer for the adapter, or it would change the timestep embedder.
        """
        self.requires_grad_(True)
        if adapter is not None:
            self.requires_grad_(False)
            add_adapter(self.model, adapter)
            if any(".lora_" in name for embedder in self.embedders for name, _ in embedder.named_parameters()):
                raise BadInput(
                    "lora: its targets are in the timestep embedder too, where the second time is: name others"
                )
        self._add_second_time()
        update = {"second_time": True, "adapter": adapter, "base": base if adapter else None}
        self.config = self.config.model_copy(update=update)

    def _add_second_time(self) -> None:
        for embedder in self.embedders:
            embedder.add_second_time()

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The weights; of a network with an adapter those alone that training changes."""
        state: dict[str, Tensor] = super().state_dict(*arguments, **options)
        return state if self.config.adapter is None else {name: state[name] for name in state if _is_trained(name)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what `state_dict` gives.

        Raises:
            RuntimeError: names or shapes differ.
        """
        if strict and self.config.adapter is not None and state_dict.keys() != self.state_dict().keys():
            raise RuntimeError(f"{type(self).__name__}: the state is of another adapter")
        return super().load_state_dict(state_dict, strict and self.config.adapter is None, assign)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy; of a network with an adapter it shares the weights beneath."""
        if self.config.adapter is not None:
            memo |= {id(parameter): parameter for parameter in self.parameters() if not parameter.requires_grad}
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def checkpoint_gradients(self) -> None:
        """Compute a block's activations again for its gradients, instead of keeping them.

        Raises:
            BadInput: the network cannot.
        """
        try:
            model: Any = self.model
            model.enable_gradient_checkpointing()
        except ValueError as error:
            raise BadInput(f"gradient_checkpointing: {type(self.model).__name__} cannot") from error

    @property
    def embedders(self) -> list[TimeEmbedder]:
        return [module for module in self.model.modules() if isinstance(module, TimeEmbedder)]

    def told_guidance(self, scale: float) -> None:
        """Tell the network `scale` as its guidance from here on."""
        self.config = self.config.model_copy(update={"guidance": scale})
        self.family = replace(self.family, guidance=scale)

    def train(self, mode: bool = True) -> Self:
        """The model stays in evaluation mode: its dropout is of labels, which a student of trajectories keeps."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        t = t.float()
        seen = self.family.clock(t), None if s is None else self.family.clock(s.float())
        embedders = self.embedders
        for embedder in embedders:
            embedder.tell(*seen)
        label = torch.full((len(x),), -1, device=x.device) if label is None else label
        velocity = self.family.velocity(self.model, x, t, self.rows(label, x.device))
        if not torch.is_grad_enabled():  # else gradient checkpointing may ask again
            for embedder in embedders:
                embedder.forget()
        return velocity

    def rows(self, label: Tensor, device: torch.device) -> Rows:
        """The conditions of labels [B] on `device`."""
        if self.family.num_classes:
            return {"class_labels": label}
        if not self.family.takes_prompts:
            return {}
        if self.conditions is None:
            raise BadInput(
                "this network draws from prompts, and the condition table of its data is not here: give prompts, for "
                "example with sample --prompt TEXT"
            )
        rows = self.family.collate([self.conditions.row(number) for number in label.tolist()])
        return {name: _moved(value, device) for name, value in rows.items()}


def _moved(value: Any, device: torch.device) -> Any:
    """A condition's tensors on `device`, in float32 where they are no whole numbers."""
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    return value.to(device, torch.float32 if value.is_floating_point() else None, non_blocking=True)


def _is_trained(name: str) -> bool:
    """Whether a tensor is the adapter's, or the second time's."""
    return ".lora_" in name or ".second." in name or name.endswith(".gate")


def build(config: DiffusersConfig) -> DiffusersNetwork:
    """The network of `config`, freshly initialised but for the weights beneath an adapter, in evaluation mode.

    Raises:
        BadInput: those weights are no longer where they were.
        ValueError: no network has that configuration.
    """
    import diffusers

    kind = config.make_family().network
    if config.base is not None:
        return DiffusersNetwork(config, load_base(kind, config.base)).eval()
    try:
        model = getattr(diffusers, kind).from_config(config.model)
    except Exception as error:  # the library raises whatever it meets
        raise ValueError(f"no {kind} has that configuration") from error
    return DiffusersNetwork(config, model.eval()).eval()


def require_size(config: DiffusersConfig, num_tensors: int, num_values: int) -> None:
    """Raises `ValueError` if `num_tensors` of `num_values` together cannot be the network of `config`.

    Called before a network of somebody else's configuration is built, which could take hours, or all memory.
    """
    if config.base is not None:
        return
    depths = [value for name, value in config.model.items() if "layers" in name or "blocks" in name]
    if any(isinstance(depth, int) and depth > num_tensors for depth in depths):
        raise ValueError(f"more layers than the {num_tensors} tensors that are stored")
    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build(config).state_dict().values())
    if wanted != num_values:
        raise ValueError(f"a network of {wanted:,} values; {num_values:,} are stored")
