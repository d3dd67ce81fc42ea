"""The noise schedule of a model that predicts noise or v at whole steps, as a function of this program's time."""

import math
from functools import cached_property
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.flow.path import match_dims

# Where a schedule ends in pure noise (zero terminal SNR) its last level is infinite; the step is interpolated to here.
LARGEST_LOG_SIGMA = math.log(2.0**14)


class NoiseSchedule(BaseModel):
    """The fields of a diffusers scheduler that decide what the model is told and what it predicts.

    The model sees x / sqrt((1 - t)^2 + t^2), the variance-preserving state, and the step tau whose noise level is
    sigma = t / (1 - t). With a = 1 / sqrt(1 + sigma^2) and b = sigma a, v-prediction (Salimans & Ho 2022, arXiv
    2202.00512) is a noise - b data.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: int = Field(default=1000, ge=2, le=100_000)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False

    @cached_property
    def log_sigmas(self) -> Tensor:
        """ln(sigma) of each whole step, rising, float64 [num_train_timesteps]; the last may be infinite."""
        from diffusers import DDPMScheduler

        known = self.model_dump(exclude={"trained_betas"}) | {"trained_betas": self.trained_betas or None}
        alphas: Tensor = DDPMScheduler.from_config(known).alphas_cumprod.double()
        return (1 / alphas - 1).sqrt().log()

    @property
    def t_start(self) -> float:
        """The time of the last step's noise level."""
        return float(self.log_sigmas[-1].sigmoid())

    def step(self, t: Tensor) -> Tensor:
        """The step tau at times t [B], between the whole ones: an adaptive solver would see the jumps of a rounded one.

        ln(sigma) is linear between whole steps, in double precision; float32 [B].
        """
        levels = self.log_sigmas.to(t.device).clamp(max=LARGEST_LOG_SIGMA)
        level = t.double().logit().contiguous().clamp(levels[0], levels[-1])
        above = torch.searchsorted(levels, level).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        return (above - 1 + (level - low) / (high - low)).float()

    def state(self, x: Tensor, t: Tensor) -> Tensor:
        """What the model sees of x [B, ...] at t [B]."""
        t = match_dims(t, x)
        return x / torch.hypot(1 - t, t)

    def velocity(self, predicted: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt from the model's prediction at x [B, ...] and t [B]: noise - data."""
        t = match_dims(t, x)
        if self.prediction_type == "epsilon":
            return (predicted - x) / (1 - t)
        norm = torch.hypot(1 - t, t)
        return (predicted + (2 * t - 1) / norm * x) / norm

    def prediction(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The model's prediction from dx/dt: the inverse of `velocity`."""
        t = match_dims(t, x)
        if self.prediction_type == "epsilon":
            return velocity * (1 - t) + x
        norm = torch.hypot(1 - t, t)
        return velocity * norm - (2 * t - 1) / norm * x
