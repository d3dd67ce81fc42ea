"""A low-rank adapter (LoRA, Hu et al. 2021, arXiv 2106.09685) in a network of diffusers, by peft."""

import importlib.util
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipeline.common.errors import BadInput

# The attention of every family; a layer that a network lacks is left out.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class AdapterConfig(BaseModel):
    """A LoRA of `rank` in the linear layers whose names end in one of `targets`, scaled by `alpha` / `rank`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=64, ge=1, description="Rank of the adapter's matrices.")
    alpha: float | None = Field(
        default=None, gt=0, description="Scale of the adapter, divided by the rank; by default the rank."
    )
    targets: tuple[str, ...] = Field(
        default=ATTENTION, min_length=1, description="Endings of the names of the linear layers that get an adapter."
    )


def require_peft() -> None:
    """Raises `BadInput` if peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise BadInput("lora: wanted the package peft; pip install peft")


def add_adapter(model: nn.Module, config: AdapterConfig) -> None:
    """Put an adapter that changes nothing yet into `model`, whose own weights no longer take gradients.

    Raises:
        BadInput: peft is not installed, or no layer has one of the names.
    """
    require_peft()
    import peft

    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=list(config.targets), bias="none"
    )
    try:
        peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise BadInput(f"lora: no layer of {type(model).__name__} is called {', '.join(config.targets)}") from error


def merge_adapter(model: nn.Module) -> None:
    """Add the adapter to the weights it stands beside, and take it out: the model is of stock layers again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        merged: Any = layer
        merged.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, merged.get_base_layer())


def adapter_layers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter by layer: A [rank, in] and B [out, rank], scaled, so that B A is added to the layer's weights."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight * layer.scaling["default"])
        for name, layer in layers.items()
    }
