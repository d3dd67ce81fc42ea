"""Choose the device that a command computes on."""

import platform
import resource

import torch

from pipeline.common.errors import BadInput
from pipeline.common.plural import counted

KIB = 2**10  # the unit of ru_maxrss on Linux


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one, else the CPU.

    Raises:
        BadInput: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r}: wanted auto or one that torch has here: {', '.join(_devices())}") from error


def machine(device: torch.device) -> str:
    """The GPU, or the CPU's architecture and number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    num_threads = torch.get_num_threads()
    return f"{platform.machine()}, {counted(num_threads, 'thread')}"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has had: of the GPU that torch has allocated, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _devices() -> list[str]:
    """The devices of this machine."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(kind for kind, is_here in kinds.items() if is_here)]
