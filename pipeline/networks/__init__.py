"""The network families, each once, and the one file format of a network: safetensors that know their own shape."""

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

import torch
from pydantic import Discriminator, Tag, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import BadInput, one_line
from pipeline.networks.dhariwal import DhariwalUNet, DhariwalUNetConfig
from pipeline.networks.diffusers import network as diffusers_network
from pipeline.networks.diffusers.network import DiffusersConfig, DiffusersNetwork
from pipeline.networks.first import network_for
from pipeline.networks.flow_network import FlowNetwork, FlowNetworkConfig
from pipeline.networks.mlp import Mlp, MlpConfig
from pipeline.networks.song import SongUNet, SongUNetConfig
from pipeline.networks.unet import UNet, UNetConfig


def _family(config: Any) -> Any:
    return config.get("family", "song") if isinstance(config, dict) else getattr(config, "family", None)


# Any network that is a velocity, and its configuration: one of this program's families, or of diffusers.
Network = FlowNetwork | DiffusersNetwork
AnyConfig = FlowNetworkConfig | DiffusersConfig
Laid = TypeVar("Laid", bound=FlowNetwork | DiffusersNetwork)
__all__ = [
    "AnyConfig",
    "DhariwalUNet",
    "DhariwalUNetConfig",
    "DiffusersConfig",
    "DiffusersNetwork",
    "FlowNetwork",
    "FlowNetworkConfig",
    "Mlp",
    "MlpConfig",
    "Network",
    "NetworkConfig",
    "SongUNet",
    "SongUNetConfig",
    "build",
    "described",
    "draws_in_turn",
    "lay_out",
    "load",
    "network_for",
    "num_labels",
    "parse_config",
    "parse_own",
    "picture_shape",
    "require_size",
    "save",
    "save_tensors",
]
# The configuration of a network of this program; the default family is song. Those of diffusers are never trained
# from scratch.
NetworkConfig = Annotated[
    Annotated[SongUNetConfig, Tag("song")]
    | Annotated[DhariwalUNetConfig, Tag("dhariwal")]
    | Annotated[MlpConfig, Tag("mlp")],
    Discriminator(_family),
]
parse_own: Callable[[Any], SongUNetConfig | DhariwalUNetConfig | MlpConfig] = TypeAdapter(NetworkConfig).validate_python


def parse_config(config: Any) -> AnyConfig:
    """The configuration in the values of a mapping, or `config` itself.

    Raises:
        pydantic.ValidationError: it is none.
    """
    return DiffusersConfig.model_validate(config) if _family(config) == "diffusers" else parse_own(config)


@overload
def build(config: UNetConfig) -> UNet: ...


@overload
def build(config: FlowNetworkConfig) -> FlowNetwork: ...


@overload
def build(config: AnyConfig) -> Network: ...


def build(config: AnyConfig) -> Network:
    """A freshly initialised network, laid out for a CPU; beneath an adapter it has its published weights.

    Raises:
        BadInput: the configuration leaves something to the data, or those weights are not where they were.
    """
    if isinstance(config, DiffusersConfig):
        return diffusers_network.build(config)
    if not config.is_complete:
        lacking = " and ".join(name for name in config.of_data if name != "num_classes")
        raise BadInput(f"network: wanted its {lacking}, which only training takes from the data")
    if isinstance(config, DhariwalUNetConfig):
        return lay_out(DhariwalUNet(config))
    if isinstance(config, MlpConfig):
        return lay_out(Mlp(config))
    assert isinstance(config, SongUNetConfig)
    return lay_out(SongUNet(config))


def picture_shape(config: AnyConfig, can_decode: bool) -> tuple[int, ...]:
    """The shape of a network's sample as it is shown; () where it is latents that cannot be decoded."""
    if not isinstance(config, DiffusersConfig) or not config.is_latent:
        return config.shape
    return (3, *config.image_size) if can_decode else ()


def num_labels(network: Network) -> int:
    """The number of its labels: its classes, or the prompts of its conditions."""
    if isinstance(network, DiffusersNetwork) and network.conditions is not None:
        return len(network.conditions)
    return network.config.num_classes


def draws_in_turn(network: Network | None) -> bool:
    """Whether the labels of `network` are prompts, which take turns."""
    return isinstance(network, DiffusersNetwork) and network.family.takes_prompts


def lay_out(network: Laid, compiled: bool = False) -> Laid:
    """`network` in the memory format that is fastest on its device: channels-last on CPUs, and on GPUs if `compiled`.

    On GPUs torch's own group normalisation makes channels-last slower by a fifth to a third; compiled code does not.
    """
    if isinstance(network, DiffusersNetwork):
        return network  # as its own library has it
    on_gpu = next(network.parameters()).device.type == "cuda"
    return network.to(memory_format=torch.contiguous_format if on_gpu and not compiled else torch.channels_last)


def require_size(path: Path, config: FlowNetworkConfig, num_tensors: int, num_values: int) -> None:
    """Raises `BadInput` if `path`, with `num_tensors` of `num_values` together, cannot hold the network of `config`.

    Called before a network of somebody else's configuration is built: its blocks alone could take hours.
    """
    num_blocks, width = config.num_blocks_and_width
    if num_blocks > num_tensors or width > num_values:
        raise BadInput(
            f"{path}: its network would have {num_blocks:,} blocks of up to {width:,} channels; "
            f"it stores {num_tensors:,} tensors of {num_values:,} values"
        )


def save(path: Path, network: Network, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights, fp32, with the network's configuration and `metadata` in the file's metadata.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: tensor.float().contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(path, tensors, {**described(network), **(metadata or {})})


def described(network: Network) -> dict[str, str]:
    """The metadata of a network's file."""
    return {"network": network.config.model_dump_json()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors to a safetensors file.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(errno.EIO, one_line(error)) from error


def load(path: Path) -> Network:
    """The network in `path`, in evaluation mode. Nothing in the file is executed.

    Raises:
        BadInput: not a file of `save`, or its tensors are not those of its configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the file is memory-mapped, and may change while the network is in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = parse_config(json.loads(metadata["network"]))
        if isinstance(config, FlowNetworkConfig) and not config.is_complete:
            raise KeyError("shape")
        num_values = sum(tensor.numel() for tensor in tensors.values())
        if isinstance(config, DiffusersConfig):
            diffusers_network.require_size(config, len(tensors), num_values)
            network: Network = build(config)  # it makes some of its buffers itself
        else:
            require_size(path, config, len(tensors), num_values)
            with torch.device("meta"):
                network = build(config)
        network.load_state_dict(tensors, assign=not isinstance(config, DiffusersConfig))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path}: wanted a safetensors file of a network; {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: wanted a network saved by this program; its metadata is missing or wrong") from error
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise BadInput(f"{path}: the tensors are not those of its own configuration: {problem}") from error
    return lay_out(network).eval()
