"""The student G(x_t, t, s): the state at time s of the trajectory that is at x_t at time t.

TraFlow (arXiv 2502.16972) Eq. 6 writes G = (s/t) x_t + (1 - s/t) g(x_t, t, s). With g = x_t - t F this is
G = x_t + (s - t) F(x_t, t, s), where F is the mean velocity between t and s: nothing is divided by t, and a
teacher's velocity network put in the place of F makes G the teacher's own Euler step.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.flow import match_dims
from pipeline.networks import Network


class Student(nn.Module):
    """x_t [B, C, H, W], times t and s [B] in [0, 1], label int64 [B] or None -> [B, C, H, W]."""

    def __init__(self, network: Network) -> None:
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


def from_teacher(teacher: Network) -> Student:
    """The student of the teacher's own architecture that starts as its Euler step: G(x, t, s) = x + (s - t) v(x, t).

    The embedding of s starts from the weights of the embedding of t, behind a gate that is zero. Augmentation labels,
    which only tell a teacher in training what was done to its images, are left behind, and so is its dropout.
    """
    changes = {"second_time": True, "augment_dim": 0, "dropout": 0.0}
    network = networks.build(teacher.config.model_copy(update=changes))
    state = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith("embed_augment.")}
    state |= {name.replace("embed_t.", "embed_s."): value for name, value in state.items() if "embed_t." in name}
    state["gate_s"] = torch.zeros_like(network.gate_s)
    network.load_state_dict(state)
    return Student(network)


@torch.no_grad()
def sample(student: Student, noise: Tensor, times: Tensor, label: Tensor | None) -> Tensor:
    """Algorithm 1: x <- G(x, t_n, t_n-1) down `times` [N + 1], from the start times[0] * noise; N evaluations."""
    x = noise * times[0].to(noise)
    for t, s in pairwise(times.to(noise)):
        x = student(x, t.expand(len(x)), s.expand(len(x)), label)
    return x
