"""What a network predicts, and how that is a velocity: the change of variables of each kind of model.

Time and velocity are those of `pipeline.flow`: t = 1 is noise, x_t = (1 - t) data + t noise, v = dx/dt. A model of the
"variance exploding" process x_sigma = data + sigma noise is the same process in other units, with sigma = t / (1 - t)
and x_sigma = x_t / (1 - t); from its denoiser D(x_sigma; sigma) the velocity is v = (x_t - D) / t. The formulas below
are this one with the model's own D put in, and simplified until nothing is divided by t.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Predict = Callable[[Tensor], Tensor]

# The noise levels between which EDM samples (Karras et al. 2022, arXiv 2206.00364, Table 1), as times.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
T_MIN, T_MAX = SIGMA_MIN / (1 + SIGMA_MIN), SIGMA_MAX / (1 + SIGMA_MAX)


class Convention(Protocol):
    """How a network is asked and answered. Times t are float [B]; `t_start` is where its flow starts."""

    t_start: float

    def noise_label(self, t: Tensor) -> Tensor:
        """What the network is told of the time t, before its own `time_scale`."""

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t) for x [B, C, H, W] and t [B, 1, 1, 1], where `predict` maps the network's input to its output."""


class Flow:
    """The network is the velocity: this program's own, and any rectified flow in its convention."""

    t_start = 1.0

    def noise_label(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        return predict(x)


class RectifiedFlow:
    """Rectified Flow (Liu et al. 2022, arXiv 2209.03003) as published: time runs from noise at 0 to data at 1.

    It was trained, and is sampled, from time 1e-3 on; nearer to the noise it is asked there.
    """

    t_start = 1.0

    def noise_label(self, t: Tensor) -> Tensor:
        return (1 - t).clamp(min=1e-3)

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        return -predict(x)


class ScaledRectifiedFlow:
    """Rectified Flow's networks of 256x256 pixels: told ln(999 tau) at their time tau, they predict 999 tau times it.

    These are NCSN++ with a Fourier embedding and `scale_by_sigma`, where "sigma" is what the network is told otherwise.
    """

    t_start = 1.0

    def noise_label(self, t: Tensor) -> Tensor:
        return self._told(t).log()

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        return -predict(x) / self._told(t)

    def _told(self, t: Tensor) -> Tensor:
        return 999 * (1 - t).clamp(min=1e-3)


class Edm:
    """EDM: D = c_skip x_sigma + c_out F(c_in x_sigma; ln(sigma) / 4) (Karras et al. 2022, Eq. 7 and Table 1).

    With S = (1 - t)^2 sigma_data^2 + t^2, v = (t - sigma_data^2 (1 - t)) / S x_t -
    sigma_data / sqrt(S) F(x_t / sqrt(S)).
    Beyond the noise levels that EDM samples, the network is asked at the nearest one; so the flow can go on to t = 0,
    as the last step of EDM's sampler does.
    """

    t_start = T_MAX

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def noise_label(self, t: Tensor) -> Tensor:
        return t.clamp(T_MIN, T_MAX).logit() / 4

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        variance = (1 - t) ** 2 * self.sigma_data**2 + t**2
        std = variance.sqrt()
        return (t - self.sigma_data**2 * (1 - t)) / variance * x - self.sigma_data / std * predict(x / std)


class Adm:
    """ADM: the noise epsilon(x_sigma / sqrt(1 + sigma^2); tau), on a schedule of 1000 steps.

    Dhariwal & Nichol 2021, arXiv 2105.05233. The denoiser is D = x_sigma - sigma epsilon, so
    v = (epsilon(x_t / sqrt((1 - t)^2 + t^2)) - x_t) / (1 - t). The step tau is continuous, because an adaptive solver
    would see the jumps of a rounded one. As in EDM's use of this model (its Table 1) the flow starts at sigma = 80,
    away from t = 1, where the formula is 0 / 0.
    """

    t_start = T_MAX
    num_steps = 1000

    def noise_label(self, t: Tensor) -> Tensor:
        return self.step(t).clamp(0, self.num_steps - 1).to(t.dtype)

    def step(self, t: Tensor) -> Tensor:
        """The step tau whose noise level is t / (1 - t); any number beyond its ends."""
        raise NotImplementedError

    def velocity(self, predict: Predict, x: Tensor, t: Tensor) -> Tensor:
        return (predict(x / torch.hypot(1 - t, t)) - x) / (1 - t)


class AdmCosine(Adm):
    """ADM on the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 17), as its ImageNet-64 model."""

    offset = 0.008

    def step(self, t: Tensor) -> Tensor:
        # The root of alpha-bar, (1 - t) / sqrt((1 - t)^2 + t^2), is cos(angle) / sin(end). Its arc cosine would lose
        # the digits of a small angle; this tangent, of the same angle, keeps them in single precision.
        end = math.pi / 2 / (1 + self.offset)
        x = math.sin(end) * (1 - t)
        angle = (torch.hypot(t, math.cos(end) * (1 - t)) / x).atan()
        return 2 / math.pi * self.num_steps * (1 + self.offset) * angle - (1 + self.num_steps * self.offset)


class AdmLinear(Adm):
    """ADM on the linear schedule of DDPM (Ho et al. 2020, arXiv 2006.11239), guided-diffusion's default.

    Beta rises evenly from 1e-4 to 0.02. Between the whole steps, ln(sigma) is linear in the step.
    """

    def step(self, t: Tensor) -> Tensor:
        t = t.double()  # in single precision the step near data would be wrong by more than a thousandth
        betas = torch.linspace(1e-4, 0.02, self.num_steps, dtype=torch.float64, device=t.device)
        # sigma^2 = 1 / alpha-bar - 1
        levels = (-(-betas).log1p().cumsum(0)).expm1().log() / 2
        level = t.logit().contiguous()
        above = torch.searchsorted(levels, level).clamp(1, self.num_steps - 1)
        low, high = levels[above - 1], levels[above]
        return above - 1 + (level - low) / (high - low)
