"""Times at which a loss is taken: uniform numbers in [0, 1) to fractions of a flow, each an inverse distribution."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

U_SHAPE = 4.0  # the sharpness of Lee et al. 2024 (arXiv 2405.20320), Section 4.1
LOGIT_MEAN, LOGIT_STD = 0.0, 1.0  # Esser et al. 2024 (arXiv 2403.03206), Section 3.1

TimeSampler = Literal["uniform", "u-shaped", "logit-normal"]


def uniform(u: Tensor) -> Tensor:
    """Every time as likely as any other."""
    return u


def u_shaped(u: Tensor) -> Tensor:
    """Density proportional to cosh(a (t - 1/2)): more often near both ends."""
    return 0.5 + torch.asinh((2 * u - 1) * math.sinh(U_SHAPE / 2)) / U_SHAPE


def logit_normal(u: Tensor) -> Tensor:
    """The logistic function of a normal number: more often in the middle."""
    normal = math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-12, 1 - 1e-12))
    return torch.sigmoid(LOGIT_MEAN + LOGIT_STD * normal)


TIME_SAMPLERS: dict[TimeSampler, Callable[[Tensor], Tensor]] = {
    "uniform": uniform,
    "u-shaped": u_shaped,
    "logit-normal": logit_normal,
}
