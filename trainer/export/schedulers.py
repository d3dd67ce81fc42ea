"""Schedulers of diffusers whose steps are those of TraFlow's Algorithm 1 on a grid of times."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.schedule import NoiseSchedule

TRAIN_STEPS = 1000  # about so many of a scheduler that is made for a grid, spread over its steps


class Candidate(NamedTuple):
    """A scheduler by its class and settings, and by what a pipeline scales the noise that it starts from."""

    name: str
    settings: dict[str, Any]
    start: float = 1.0

    def make(self) -> Any:
        import diffusers

        return getattr(diffusers, self.name)(**self.settings)


def candidates(network: DiffusersNetwork, times: Tensor, shift: float) -> Iterator[Candidate]:
    """Those that may step between `times` [N + 1], falling, even ones after `shift`.

    Which one a pipeline can take depends on what it passes.
    """
    schedule, t = network.config.schedule, float(times[0])
    if schedule is None:
        yield Candidate("FlowMapEulerDiscreteScheduler", {"shift": shift})
        yield Candidate("FlowMatchEulerDiscreteScheduler", {"shift": shift, "use_dynamic_shifting": False})
        return
    settings = _settings(schedule, times)
    if t < 1:  # its states are x / (1 - t)
        yield Candidate("EulerDiscreteScheduler", settings, start=t)
    # Its states have unit variance, so that it starts from the whole noise.
    yield Candidate("DDIMScheduler", settings | {"clip_sample": False}, start=math.hypot(1 - t, t))


def _settings(schedule: NoiseSchedule, times: Tensor) -> dict[str, Any]:
    """A noise schedule whose evenly spaced steps have the noise levels of all `times` but the last.

    In variance-preserving coordinates, where the signal's variance is (1 - t)^2 / ((1 - t)^2 + t^2), DDIM and Euler's
    method in sigma step from t to s by the velocity.
    """
    t = times[:-1].double().flip(0).numpy()
    signal = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)
    each = max(TRAIN_STEPS // len(t), 1)
    return {
        "num_train_timesteps": each * len(t),
        "trained_betas": list(_betas(signal, each)),
        "prediction_type": schedule.prediction_type,
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # as pipelines want; it moves no trailing step
    }


def _betas(signal: np.ndarray[Any, np.dtype[np.float64]], each: int) -> Iterator[float]:
    """The betas, `each` for a level, of which the products of 1 - beta are `signal`, though all are rounded to fp32."""
    product, before = 1.0, 1.0
    for level in signal:
        for part in np.arange(1, each + 1) / each:
            wanted = before ** (1 - part) * level**part if level or part == 1 else before
            beta = np.float32(1 - wanted / product)
            product *= float(np.float32(1) - beta)
            yield float(beta)
        before = float(level)
