"""The student G(x_t, t, s): the state at time s of the trajectory that is at x_t at time t.

TraFlow (arXiv 2502.16972) Eq. 6 writes G = (s/t) x_t + (1 - s/t) g(x_t, t, s). With g = x_t - t F this is
G = x_t + (s - t) F(x_t, t, s), where F is the mean velocity between t and s: nothing is divided by t, and a
teacher's velocity network put in the place of F makes G the teacher's own Euler step.
"""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Generic

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from pipeline import networks
from pipeline.flow.path import match_dims
from pipeline.networks import DiffusersNetwork, FlowNetwork, FlowNetworkConfig, Network
from pipeline.networks.diffusers.adapter import AdapterConfig
from pipeline.networks.diffusers.weights import BaseWeights
from trainer.distillation.inheritance import Inheritance, inherit

FEW_STEPS = (1, 2, 4)  # the numbers of evaluations that a student is shown at


# Of the network of a student, where it is known which.
N_co = TypeVar("N_co", bound=Network, default=Network, covariant=True)


class Student(nn.Module, Generic[N_co]):
    """x_t [B, *shape], times t and s [B] in [0, 1], label int64 [B] or None -> [B, *shape]."""

    network: N_co

    def __init__(self, network: N_co) -> None:
        super().__init__()
        if not network.config.second_time:
            raise ValueError("a student's network takes a second time")
        self.network = network

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """F(x_t, t, s); at s = t it is the velocity dx/dt that the student gives the flow at (x_t, t)."""
        velocity: Tensor = self.network(x_t, t, s, label)
        return velocity

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return x_t + match_dims(s - t, x_t) * self.mean_velocity(x_t, t, s, label)


def from_teacher(
    teacher: FlowNetwork, config: FlowNetworkConfig | None = None
) -> tuple[Student[FlowNetwork], Inheritance]:
    """The student that starts from a teacher's network, of its architecture or of `config`.

    Of the same architecture it is exactly the teacher's Euler step, G(x, t, s) = x + (s - t) v(x, t): the embedding of
    s starts from the weights of the embedding of t, behind a gate that is zero. Another one takes of each layer that
    stands in the same place what fits (`inherit`). One that only has more `channels`, or more `width`, is that step as
    well, to rounding; not quite, where a group of a normalisation joins features and a skip connection. A student keeps
    the teacher's convention, for which the weights were trained; a wider one also the sines and cosines of its times,
    and the sizes of its groups. Augmentation labels, which describe a teacher's training images, are left out; and so
    is its dropout, unless `config` has its own.
    """
    given, asked = teacher.config, config or teacher.config
    wanted = asked.model_dump() | {name: getattr(given, name) for name in ("convention", "sigma_data", "time_scale")}
    wanted |= {key: value for key, value in asked.grown_from(given).items() if key not in asked.model_fields_set}
    wanted["dropout"] = config.dropout if config else 0.0
    network = networks.build(networks.parse_own(wanted).for_training(second_time=True))
    return Student(network), inherit(network, teacher)


def from_pipeline(
    teacher: DiffusersNetwork, adapter: AdapterConfig | None, base: BaseWeights
) -> tuple[Student[DiffusersNetwork], str]:
    """The student that a pipeline's network becomes, and what of it is trained.

    It starts as the teacher's Euler step, bit for bit. `base` are the teacher's weights, which an `adapter` changes.

    Raises:
        BadInput: the network has no layer for the adapter.
    """
    teacher.become_student(adapter, base)
    trained = sum(parameter.numel() for parameter in teacher.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in teacher.parameters())
    how = "all its weights" if adapter is None else f"an adapter of rank {adapter.rank}"
    return Student(teacher), f"its network and a second time; {how}, {trained:,} of {whole:,} parameters are trained"


def sample(student: Student, noise: Tensor, times: Tensor, label: Tensor | None) -> Tensor:
    """The last state of `sample_path` from times[0] * noise, noise standard normal [B, *shape]; N evaluations."""
    (x,) = deque(sample_path(student, noise * times[0].to(noise), times, label), maxlen=1)
    return x


@torch.no_grad()
def sample_path(student: Student, x: Tensor, times: Tensor, label: Tensor | None) -> Iterator[Tensor]:
    """TraFlow's Algorithm 1, x <- G(x, t_n, t_n-1): the states [B, *shape] at `times` [N + 1], falling, from `x`."""
    yield x
    for t, s in pairwise(times.to(x)):
        x = student(x, t.expand(len(x)), s.expand(len(x)), label)
        yield x
