"""The losses of TraFlow (arXiv 2502.16972) and their corrections; each returns one value per sample, [B].

Times t and s are [B], states [B, C, H, W], labels int64 [B] or None. Values are means over the C * H * W
components, so that weights carry over between resolutions.
"""

import torch
from torch import Tensor

from pipeline.flow import interpolate
from pipeline.networks import Network
from trainer.student import Student


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """Mean over the components of (x - target)^2: [B, ...] -> [B]."""
    return (x - target).square().flatten(1).mean(dim=1)


def output_loss(student: Student, noise: Tensor, t: Tensor, sample: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
    """Eq. 8: |G(x_1, 1, 0) - x_0|^2, from the start (noise, t) of the flow straight to its end (sample, s)."""
    return squared_error(student(noise, t, s, label), sample)


def velocity_loss(student: Student, x_t: Tensor, t: Tensor, velocity: Tensor, label: Tensor | None) -> Tensor:
    """Eq. 9: |dG/ds at s = t - velocity|^2, where that derivative is F(x_t, t, t): nothing is differentiated.

    The paper prints the target as x_0 - x_1; with t = 1 noise it is x_1 - x_0, as its Table 1 has it. On the straight
    interpolant with that target the student learns the reflowed flow of the teacher's pairs; on a stored state with
    the teacher's own velocity there, the teacher's flow.
    """
    return squared_error(student.mean_velocity(x_t, t, t, label), velocity)


def consistency_loss(student: Student, x_t: Tensor, t: Tensor, m: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
    """Eq. 10: |G(x_t, t, s) - G(x_m, m, s)|^2 with the student's own x_m = G(x_t, t, m), differentiated throughout."""
    return squared_error(student(x_t, t, s, label), student(student(x_t, t, m, label), m, s, label))


def soft_consistency_loss(
    student: Student, x_t: Tensor, t: Tensor, x_u: Tensor, u: Tensor, s: Tensor, label: Tensor | None
) -> Tensor:
    """Eq. 11: |G(x_t, t, s) - stop_gradient(G(x_u, u, s))|^2, x_u the teacher's state at u in [s, t).

    Where u = s the target is x_s itself, which anchors the loss: it cannot fall by the student collapsing.
    """
    with torch.no_grad():
        target = student(x_u, u, s, label)
    return squared_error(student(x_t, t, s, label), target)


def flow_matching_loss(network: Network, data: Tensor, noise: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """|v(x_t, t) - (noise - data)|^2 on the straight interpolant (Rectified Flow, arXiv 2209.03003, Eq. 1)."""
    return squared_error(network(interpolate(data, noise, t), t, label=label), noise - data)
