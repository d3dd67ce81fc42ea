"""The processes of one training: a single one, or several that torchrun or Ray Train started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput
from pipeline.common.progress import console

TIMEOUT = timedelta(minutes=30)  # while one rank evaluates or writes, the others wait


@dataclass(frozen=True)
class Ranks:
    """This process, `rank` of `world`, on its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process is the first of its machine."""
        return self.world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    def any(self, *flags: bool) -> list[bool]:
        """Whether each of the flags is set on any rank; all ranks get the same answer."""
        if self.world == 1:
            return list(flags)
        found = torch.tensor(flags, device=self.device, dtype=torch.float32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def agree(self, value: int) -> bool:
        """Whether all ranks have the same value."""
        if self.world == 1:
            return True
        ends = torch.tensor([value, -value], device=self.device, dtype=torch.float64)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        return bool((ends[0] == -ends[1]).item())

    def of_first(self, text: str) -> str:
        """The first rank's text, on every rank."""
        if self.world == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, device=self.device)
        return texts[0]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of `x` over the ranks."""
        if self.world == 1:
            return x
        x = x.clone()
        dist.all_reduce(x)
        return x / self.world

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def join_ranks(device_name: str) -> Iterator[Ranks]:
    """The ranks of the environment (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun sets them), or a single one.

    The process group is created, and destroyed afterwards, unless it exists already.

    Raises:
        BadInput: there is no such device, or a variable of the environment is missing.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1, pick_device(device_name))
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and not dist.is_initialized():
        raise BadInput(f"WORLD_SIZE is {world}, but {', '.join(missing)} not set: start it with torchrun")
    device = pick_device(device_name)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    makes_group = not dist.is_initialized()
    if makes_group:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    console.quiet = dist.get_rank() > 0  # the first rank speaks for all
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if makes_group:
            dist.destroy_process_group()
