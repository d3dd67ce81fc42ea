"""The losses of the methods that TraFlow is compared with, written for G and F as `trainer.distillation.losses` are.

Their papers' networks predict a velocity, a noise or an image at one time; here all are the student's mean velocity F,
and what is compared is what the paper compares. Where this program's choice differs, the loss says so.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.flow.path import interpolate, match_dims
from pipeline.flow.solver import Velocity
from trainer.distillation.distance import Distance, squared_error
from trainer.distillation.queries import Loss, Query

MeanVelocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # (x, t, s, label)
# (x, t, label) -> logits [B, places]; and the same with constant weights
Judge = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def bootstrap_loss(
    velocity: Velocity,
    x: Tensor,
    start: Tensor,
    t: Tensor,
    s: Tensor,
    first_velocity: Tensor,
    label: Tensor | None,
) -> Loss:
    """BOOT (Gu et al. 2023, arXiv 2306.05544, Section 3): from noise alone, the student at s from itself at t > s.

    BOOT's network predicts the signal y_t = (x_t - t noise) / (1 - t), which is noise - F(noise, 1, t). One step of the
    teacher's v = v(x_t, t) at the student's own x_t = G(noise, 1, t) takes it to y_s, here exactly as Euler's step
    takes x_t to x_s; y_s is compared over the squared step, and the boundary F(noise, 1, 1) with the teacher's v.
    The flow starts from x at `start`, which is noise at 1.
    """
    later, sooner = Query(x, start, s, label), Query(x, start, t, label, "stopped")
    mean_velocity, of_sooner, at_start = yield later, sooner, Query(x, start, start, label)
    with torch.no_grad():
        slope = velocity(sooner.arrival(of_sooner), t, label)
        target = of_sooner + match_dims((t - s) / (start - s), x) * (slope - of_sooner)
    return squared_error(mean_velocity, target) / (t - s) ** 2 + squared_error(at_start, first_velocity)


def progressive_loss(before: MeanVelocity, x_t: Tensor, t: Tensor, m: Tensor, s: Tensor, label: Tensor | None) -> Loss:
    """Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, Algorithm 2): one step does what two did before.

    `before` is the mean velocity of the student of twice as many steps. DDIM's step is Euler's on a rectified flow, so
    the target is the mean velocity of its two steps. Errors are those of velocities (their Section 4, SNR+1).
    """
    with torch.no_grad():
        x_m = x_t + match_dims(m - t, x_t) * before(x_t, t, m, label)
        x_s = x_m + match_dims(s - m, x_t) * before(x_m, m, s, label)
        target = (x_s - x_t) / match_dims(s - t, x_t)
    (mean_velocity,) = yield (Query(x_t, t, s, label),)
    return squared_error(mean_velocity, target)


def guided_loss(velocity: Velocity, x: Tensor, start: Tensor, end: Tensor, u: Tensor, label: Tensor | None) -> Loss:
    """SlimFlow's flow-guided distillation (Zhu et al. 2024, arXiv 2407.12718, Section 3.2): two steps guide the one.

    The student's single step F = F(x, start, end) goes to u; from there the guide, a 2-rectified flow of this
    `velocity`, steps to the end. No gradient goes through that target (`teacher_loss_new` in their code). Their
    one-step loss on the teacher's pairs is the output loss.
    """
    (mean_velocity,) = yield (Query(x, start, end, label),)
    with torch.no_grad():
        x_u = x + match_dims(u - start, x) * mean_velocity
        x_end = x_u + match_dims(end - u, x) * velocity(x_u, u, label)
        target = (x_end - x) / match_dims(end - start, x)
    return squared_error(mean_velocity, target)


def trajectory_consistency_loss(
    x_t: Tensor,
    t: Tensor,
    x_u: Tensor,
    u: Tensor,
    s: Tensor,
    end: Tensor,
    label: Tensor | None,
    distance: Distance = squared_error,
) -> Loss:
    """CTM's soft consistency matching (Kim et al. 2023, arXiv 2310.02279), and SCoT's Eq. 4: compared at the end.

    d(G_ema(G(x_t, t, s), s, 0), G_ema(G_ema(x_u, u, s), s, 0)), with x_u on the teacher's trajectory from x_t. The
    first G_ema is held constant, but the gradient goes through it to G(x_t, t, s).
    """
    jump, guide = Query(x_t, t, s, label), Query(x_u, u, s, label, "ema")
    velocity, of_guide = yield jump, guide
    ours = Query(jump.arrival(velocity), s, end, label, "held-ema")
    theirs = Query(guide.arrival(of_guide), s, end, label, "ema")
    of_ours, of_theirs = yield ours, theirs
    return distance(ours.arrival(of_ours), theirs.arrival(of_theirs))


def shortcut_loss(x_t: Tensor, t: Tensor, m: Tensor, s: Tensor, label: Tensor | None) -> Loss:
    """Shortcut models (Frans et al. 2024, arXiv 2410.12557, Eqs. 4 and 5): one step of 2d is two steps of d.

    |F(x_t, t, s) - sg(F(x_t, t, m) + F(x_m, m, s)) / 2|^2 with m half-way, x_m by the first of them, targets by the
    average of weights.
    """
    first = Query(x_t, t, m, label, "ema")
    jump = Query(x_t, t, s, label)
    mean_velocity, of_first = yield jump, first
    second = Query(first.arrival(of_first), m, s, label, "ema")
    (of_second,) = yield (second,)
    return squared_error(mean_velocity, (of_first + of_second) / 2)


def score_distillation_loss(
    velocity: Velocity, noise: Tensor, start: Tensor, end: Tensor, u: Tensor, label: Tensor | None
) -> Loss:
    """Score distillation on a rectified flow (FlowDreamer, arXiv 2408.05008): the teacher corrects a student's sample.

    With x = G(noise, 1, 0) and x_u on the line from x to its own noise, x moves towards the teacher's data there, x_u -
    u v(x_u, u): half the squared difference, whose gradient in x is u (v - (noise - x)). The noise is the sample's own,
    not drawn anew: FlowDreamer pushes x back along the flow to find it (its unique couple matching), and here it is
    known.
    """
    jump = Query(match_dims(start, noise) * noise, start, end, label)
    (mean_velocity,) = yield (jump,)
    x = jump.arrival(mean_velocity)
    with torch.no_grad():
        x_u = interpolate(x, noise, u)
        target = x_u - match_dims(u, x) * velocity(x_u, u, label)
    return squared_error(x, target) / 2


def adversarial_loss(
    judge: Judge,
    held_judge: Judge,
    start: Tensor,
    t: Tensor,
    end: Tensor,
    real: Tensor,
    noise: Tensor,
    u: Tensor,
    label: Tensor | None,
    real_label: Tensor | None,
) -> Loss:
    """The hinge losses of a student and of a discriminator D that sees samples noised to u; returns both, [2, B].

    The student's is -D(x_u), x_u = (1 - u) G(start, t, end) + u noise; D's is max(0, 1 + D(x_u)) + max(0, 1 -
    D(real_u)); each a mean over D's places (Geometric GAN, arXiv 1705.02894; noised as in Diffusion-GAN, arXiv
    2206.02262). `held_judge` is D with constant weights, through which the student learns.
    """
    jump = Query(start, t, end, label)
    (mean_velocity,) = yield (jump,)
    x = jump.arrival(mean_velocity)
    ours = -held_judge(interpolate(x, noise, u), u, label).mean(1)
    of_ours = judge(interpolate(x.detach(), noise, u), u, label)
    of_real = judge(interpolate(real, noise, u), u, real_label)
    return torch.stack([ours, F.relu(1 + of_ours).mean(1) + F.relu(1 - of_real).mean(1)])


def distribution_matching_loss(
    teacher: Velocity,
    score: Velocity,
    held_score: Velocity,
    start: Tensor,
    t: Tensor,
    end: Tensor,
    noise: Tensor,
    u: Tensor,
    label: Tensor | None,
) -> Loss:
    """Distribution matching (DMD, Yin et al. 2023, arXiv 2311.18828, Eqs. 7 and 8; DMD2, arXiv 2405.14867): [2, B].

    x = G(start, t, end) is noised to x_u by other `noise`. Teacher and `score`, the flow of the student's samples, say
    which data x_u comes from; x moves by their difference over the mean |x - the teacher's|. The second loss trains the
    score on x by flow matching.
    """
    jump = Query(start, t, end, label)
    (mean_velocity,) = yield (jump,)
    x = jump.arrival(mean_velocity)
    x_u = interpolate(x.detach(), noise, u)
    with torch.no_grad():
        real, fake = (x_u - match_dims(u, x) * v(x_u, u, label) for v in (teacher, held_score))
        size = (x - real).abs().flatten(1).mean(1).clamp(min=1e-6)
        target = x - (fake - real) / match_dims(size, x)
    return torch.stack([squared_error(x, target) / 2, squared_error(score(x_u, u, label), noise - x.detach())])
