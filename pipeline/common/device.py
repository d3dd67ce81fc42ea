"""Choose the device that a command computes on."""

import torch

from pipeline.common.errors import BadInput


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


def _devices() -> list[str]:
    """The devices of this machine."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(kind for kind, is_here in kinds.items() if is_here)]
