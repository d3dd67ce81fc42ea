"""A network in shards: each rank holds a share of every weight (FSDP2: Zhao et al. 2023, arXiv 2304.11277)."""

import warnings
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.networks import DiffusersNetwork
from pipeline.networks.diffusers.times import TimeEmbedder


def shard(network: DiffusersNetwork, device: torch.device) -> None:
    """Keep this rank's share of the weights of `network`, on `device`.

    The weights of a block are whole only while it computes. Call it on all ranks of the process group.
    """
    # Networks that share tensors must not be moved by each other.
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.detach(), parameter.requires_grad))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # The velocity may be a view of what the model returns; nobody writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for unit in (*_units(network.model), network):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of `model`, without a first one that embeds times: a DiT calls that embedder from outside too."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for number, block in enumerate(child) if number or not _embeds_times(block))
        else:
            yield from _units(child)


def _embeds_times(block: nn.Module) -> bool:
    return any(isinstance(module, TimeEmbedder) for module in block.modules())


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` whole: those in shards on the CPU of the first rank, and nowhere else, though every rank takes part."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if whole is tensor:
            found[name] = tensor
        elif dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's share of the whole `tensor`, if `like` is in shards; every rank has the same `tensor`."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """`tensor` on every rank, though it was in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
