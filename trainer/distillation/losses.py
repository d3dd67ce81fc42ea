"""The losses of TraFlow (arXiv 2502.16972) and their corrections; each ends with one value per sample, [B].

Times t, m and s are [B], states [B, C, H, W], labels int64 [B] or None. A distance is a function of two batches
(`trainer.distillation.distance`); means over the C * H * W components carry weights over between resolutions.
A loss asks networks by queries (`trainer.distillation.queries`), so that several losses can share a call.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from pipeline.flow.path import interpolate, match_dims
from pipeline.flow.solver import Velocity
from trainer.distillation.distance import Distance, squared_error
from trainer.distillation.queries import IN_S, Loss, Query, Source, Tangent

TANGENT_C = 0.1  # added to the size of a tangent that is normalised (arXiv 2410.11081, Section 4.1)
MEANFLOW_C = 1e-3  # added to the error by which MeanFlow's weight divides


def output_loss(
    x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, label: Tensor | None, distance: Distance = squared_error
) -> Loss:
    """Eq. 8: d(G(x_1, 1, 0), x_0), from the start (x_t, t) of a trajectory to its end (x_s, s).

    Between any two states of a trajectory it is trajectory regression, the flow map learned from its own values.
    """
    jump = Query(x_t, t, s, label)
    (velocity,) = yield (jump,)
    return distance(jump.arrival(velocity), x_s)


def velocity_loss(
    x_t: Tensor, t: Tensor, velocity: Tensor, label: Tensor | None, distance: Distance = squared_error
) -> Loss:
    """Eq. 9: d(dG/ds at s = t, velocity), where that derivative is F(x_t, t, t): nothing is differentiated.

    The paper prints the target as x_0 - x_1; with t = 1 noise it is x_1 - x_0, as its Table 1 has it. On the straight
    interpolant with that target the student learns the reflowed flow of the teacher's pairs; on a stored state with
    the teacher's own velocity there, the teacher's flow.
    """
    (found,) = yield (Query(x_t, t, t, label),)
    return distance(found, velocity)


def derivative_loss(
    start: Tensor, t: Tensor, s: Tensor, velocity: Tensor, label: Tensor | None, distance: Distance = squared_error
) -> Loss:
    """Table 1: d(dG(x_1, 1, s)/ds, velocity) by forward-mode differentiation.

    `velocity` is the mean velocity of the whole trajectory, (x_1 - x_0) / (t_1 - t_0): x_1 - x_0 on [0, 1].
    """
    jump = Query(start, t, s, label, tangent=IN_S)
    (answer,) = yield (jump,)
    return distance(jump.departure(answer), velocity)


def consistency_loss(
    x_t: Tensor,
    t: Tensor,
    x_m: Tensor | None,
    m: Tensor,
    s: Tensor,
    label: Tensor | None,
    target: Source,
    distance: Distance = squared_error,
) -> Loss:
    """Eqs. 10 and 11: d(G(x_t, t, s), G_target(x_m, m, s)) by way of a state x_m at m between s and t.

    Eq. 10 has x_m = G(x_t, t, m), here `x_m` None, and the student itself as target; alone it collapses. Eq. 11 has the
    teacher's state at m and a "stopped" target. There m may equal s: then the target is x_s itself, which anchors the
    loss.
    """
    jump = Query(x_t, t, s, label)
    if x_m is None:
        half = Query(x_t, t, m, label, target)
        velocity, to_middle = yield jump, half
        rest = Query(half.arrival(to_middle), m, s, label, target)
        (from_middle,) = yield (rest,)
    else:
        rest = Query(x_m, m, s, label, target)
        velocity, from_middle = yield jump, rest
    return distance(jump.arrival(velocity), rest.arrival(from_middle))


def lagrangian_loss(velocity: Velocity | None, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Loss:
    """|dG(x_t, t, s)/ds - v(G(x_t, t, s), s)|^2, the velocity v where the student arrives.

    With the teacher's `velocity` it is Lagrangian map distillation (Boffi et al. 2024, arXiv 2406.07507). With
    None v is the student's own, F(x, s, s): Lagrangian self-distillation (Boffi et al. 2025, arXiv 2505.18825), which
    another loss must teach the velocity. No gradient goes through v.
    """
    jump = Query(x_t, t, s, label, tangent=IN_S)
    (answer,) = yield (jump,)
    x_s = jump.arrival(answer[0]).detach()
    if velocity is None:
        (wanted,) = yield (Query(x_s, s, s, label, "stopped"),)
    else:
        with torch.no_grad():
            wanted = velocity(x_s, s, label)
    return squared_error(jump.departure(answer), wanted)


def eulerian_loss(
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    velocity: Tensor,
    label: Tensor | None,
    rate: Tensor | float = 1.0,
    normalise: bool = True,
) -> Loss:
    """|F - sg(F + g)|^2 with g = v - F + r (s - t) dF/dt, which at r = 1 is dG(x_t, t, s)/dt along the `velocity` v.

    Eulerian map distillation (AYF-EMD of Align Your Flow, arXiv 2506.14603, Algorithm 1, with the weight 1 / (t - s)):
    an exact G does not change as (x_t, t) moves along a trajectory. With s = 0 it is the consistency loss in continuous
    time (sCM, arXiv 2410.11081, Section 4.2; on stored trajectories, TBCM, arXiv 2511.20410); where s = t, velocity
    matching. `normalise` divides g by its root mean square plus 0.1, where sCM has its norm; the `rate` r [B] in [0, 1]
    of the warm-up weighs the derivative.
    """
    mean_velocity, change = yield from _along(x_t, t, s, velocity, label)
    slope = velocity - mean_velocity + match_dims(rate * (s - t), x_t) * change
    if normalise:
        slope = slope / (match_dims(slope.square().flatten(1).mean(1).sqrt(), x_t) + TANGENT_C)
    return squared_error(mean_velocity, (mean_velocity + slope).detach())


def weighted_loss(error: Tensor, log_weight: Tensor) -> Tensor:
    """exp(w) error of the student, and exp(w) error - w of the weighting that gives w [B]: [2, B].

    sCM's adaptive weighting (arXiv 2410.11081, Eq. 8), at whose minimum the error of every time weighs the same.
    """
    return torch.stack([log_weight.detach().exp() * error, log_weight.exp() * error.detach() - log_weight])


def meanflow_loss(x_t: Tensor, t: Tensor, s: Tensor, velocity: Tensor, label: Tensor | None) -> Loss:
    """w |F - sg(v + (s - t) dF/dt)|^2 with w = 1 / sg(|F - sg(...)|^2 + 1e-3): MeanFlow's identity.

    MeanFlow (Geng et al. 2025, arXiv 2505.13447, Eqs. 6 and 22, p = 1), whose v is noise - data; with the teacher's
    `velocity` at a state of its trajectory it is a distillation.
    """
    mean_velocity, change = yield from _along(x_t, t, s, velocity, label)
    error = squared_error(mean_velocity, (velocity + match_dims(s - t, x_t) * change).detach())
    return error / (error.detach() + MEANFLOW_C)


def _along(
    x_t: Tensor, t: Tensor, s: Tensor, velocity: Tensor, label: Tensor | None
) -> Generator[tuple[Query, ...], list[Tensor], tuple[Tensor, Tensor]]:
    """F(x_t, t, s), and its derivative as (x_t, t) moves along the velocity, through which no gradient goes.

    They are asked for apart, since gradients of the derivative would be recorded with it and thrown away: on a CPU
    that took 1.6 times as long (digits network, batch of 128, 2026-11-28).
    """
    moving = Tangent(velocity, t=1.0)
    mean_velocity, answer = yield Query(x_t, t, s, label), Query(x_t, t, s, label, "stopped", moving)
    return mean_velocity, answer[1]


def flow_matching_loss(data: Tensor, noise: Tensor, t: Tensor, label: Tensor | None) -> Loss:
    """|v(x_t, t) - (noise - data)|^2 on the straight interpolant (Rectified Flow, arXiv 2209.03003, Eq. 1).

    With the noise and samples of a teacher's trajectories for a pair it is reflow (the same paper, Section 2.2).
    """
    (velocity,) = yield (Query(interpolate(data, noise, t), t, None, label),)
    return squared_error(velocity, noise - data)
