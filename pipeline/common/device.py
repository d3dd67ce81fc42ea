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
        raise BadInput(f"device {name!r} is not here; use auto, cpu or cuda") from error
