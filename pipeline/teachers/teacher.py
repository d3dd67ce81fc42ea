"""What a teacher is: a velocity field in the convention of `flow`, and what a data set must know of it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import BadInput, WorkFailed
from pipeline.networks import Network
from pipeline.solver import Velocity


@dataclass(frozen=True)
class Teacher:
    """A pre-trained flow over arrays of `shape` with values in about [-1, 1].

    `velocity(x, t, label)` takes float32 x [B, *shape], t [B] with 1 = noise and 0 = data, and int64 labels [B] in
    [0, num_classes), or None for an unconditional flow (num_classes = 0); it returns dx/dt [B, *shape]. The flow
    starts at x = t_start * noise and ends at t_end. A student can start from `network` where there is one.
    """

    name: str
    sha256: str  # of the weights: the teacher's identity in every plan
    velocity: Velocity
    shape: tuple[int, ...]
    num_classes: int = 0
    t_start: float = 1.0
    t_end: float = 0.0
    network: Network | None = None


@contextmanager
def blamed(teacher: Teacher) -> Iterator[None]:
    """Turns whatever a teacher of the user's own raises into `WorkFailed` with its name."""
    try:
        yield
    except (BadInput, WorkFailed):
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise WorkFailed(f"teacher {teacher.name}: {type(error).__name__}: {message}") from error


class NetworkVelocity(nn.Module):
    """A network of ours, read as a velocity field."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        velocity: Tensor = self.network(x, t, label=label)
        return velocity


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest over the names, types, shapes and bytes of the tensors in `state`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
