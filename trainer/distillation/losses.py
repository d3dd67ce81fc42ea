"""The losses of TraFlow (arXiv 2502.16972) and their corrections; each returns one value per sample, [B].

Times t, m and s are [B], states [B, C, H, W], labels int64 [B] or None. A distance is a function of two batches
(`trainer.distillation.distance`); means over the C * H * W components carry weights over between resolutions.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.flow.path import interpolate
from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from trainer.distillation.distance import Distance, squared_error
from trainer.distillation.student import Student

# G(x_t, t, s, label) -> the state at s: a student, or one whose answers are not differentiated.
FlowMap = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def stopped(flow_map: FlowMap) -> FlowMap:
    """`flow_map` as a target, through which no gradient flows."""

    def answer(x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        with torch.no_grad():
            return flow_map(x_t, t, s, label)

    return answer


def output_loss(
    student: Student,
    x_t: Tensor,
    t: Tensor,
    x_s: Tensor,
    s: Tensor,
    label: Tensor | None,
    distance: Distance = squared_error,
) -> Tensor:
    """Eq. 8: d(G(x_1, 1, 0), x_0), from the start (x_t, t) of a trajectory to its end (x_s, s).

    Between any two states of a trajectory it is trajectory regression, the flow map learned from its own values.
    """
    return distance(student(x_t, t, s, label), x_s)


def velocity_loss(
    student: Student,
    x_t: Tensor,
    t: Tensor,
    velocity: Tensor,
    label: Tensor | None,
    distance: Distance = squared_error,
) -> Tensor:
    """Eq. 9: d(dG/ds at s = t, velocity), where that derivative is F(x_t, t, t): nothing is differentiated.

    The paper prints the target as x_0 - x_1; with t = 1 noise it is x_1 - x_0, as its Table 1 has it. On the straight
    interpolant with that target the student learns the reflowed flow of the teacher's pairs; on a stored state with
    the teacher's own velocity there, the teacher's flow.
    """
    return distance(student.mean_velocity(x_t, t, t, label), velocity)


def derivative_loss(
    student: Student,
    start: Tensor,
    t: Tensor,
    s: Tensor,
    velocity: Tensor,
    label: Tensor | None,
    distance: Distance = squared_error,
) -> Tensor:
    """Table 1: d(dG(x_1, 1, s)/ds, velocity) by forward-mode differentiation; `velocity` is x_1 - x_0."""
    _, slope = derivative(student, start, t, s, label)
    return distance(slope, velocity)


def consistency_loss(
    student: Student,
    x_t: Tensor,
    t: Tensor,
    x_m: Tensor,
    m: Tensor,
    s: Tensor,
    label: Tensor | None,
    target: FlowMap,
    distance: Distance = squared_error,
) -> Tensor:
    """Eqs. 10 and 11: d(G(x_t, t, s), target(x_m, m, s)) by way of a state x_m at m between s and t.

    Eq. 10 has x_m = G(x_t, t, m) and the student itself as target; alone it collapses. Eq. 11 has the teacher's state
    at m and a `stopped` target. There m may equal s: then the target is x_s itself, which anchors the loss.
    """
    return distance(student(x_t, t, s, label), target(x_m, m, s, label))


def lagrangian_loss(
    student: Student, velocity: Velocity, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None
) -> Tensor:
    """|dG(x_t, t, s)/ds - v(G(x_t, t, s), s)|^2, the teacher's velocity v where the student arrives.

    Lagrangian map distillation (Boffi et al. 2024, arXiv 2406.07507, Eq. 12), by one forward-mode derivative and one
    evaluation of the teacher, through which no gradient goes.
    """
    x_s, slope = derivative(student, x_t, t, s, label)
    with torch.no_grad():
        wanted = velocity(x_s.detach(), s, label)
    return squared_error(slope, wanted)


def derivative(student: Student, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """G(x_t, t, s) and its derivative in s, both [B, C, H, W] and differentiable in the weights."""
    # The fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own use of what it deprecates
        value_and_slope = torch.func.jvp(lambda s: student(x_t, t, s, label), (s,), (torch.ones_like(s),))
    return value_and_slope[0], value_and_slope[1]


def flow_matching_loss(network: Network, data: Tensor, noise: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """|v(x_t, t) - (noise - data)|^2 on the straight interpolant (Rectified Flow, arXiv 2209.03003, Eq. 1).

    With the noise and samples of a teacher's trajectories for a pair it is reflow (the same paper, Section 2.2).
    """
    return squared_error(network(interpolate(data, noise, t), t, label=label), noise - data)
