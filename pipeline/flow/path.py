"""The time convention: t = 1 is noise, t = 0 is data.

A rectified flow moves along ``x_t = (1 - t) * data + t * noise`` with velocity
``v = dx/dt = noise - data`` (Liu et al. 2022, arXiv 2209.03003, Eq. 1). Solvers run from 1 down to 0,
and every teacher converts to this convention.
"""

from typing import TypeVar

import torch
from torch import Tensor

Times = TypeVar("Times", float, Tensor)


def match_dims(t: Tensor, x: Tensor) -> Tensor:
    """Reshape times `t` [B] to [B, 1, ..., 1] so that they broadcast against `x` [B, ...]."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The straight interpolant x_t = (1 - t) data + t noise; `data`, `noise` [B, ...], `t` [B] in [0, 1]."""
    t = match_dims(t, data)
    return (1 - t) * data + t * noise


def straightness(states: Tensor, velocities: Tensor, times: Tensor) -> float:
    """S, the mean over time, samples and components of |mean velocity - v(x_t, t)|^2 (arXiv 2209.03003, S(Z)).

    0 for straight paths at even speed. `states` and `velocities` [B, T, ...] at `times` [B, T], from start to end.
    """
    states, velocities, times = states.double(), velocities.double(), times.double()
    spans = times[:, -1] - times[:, 0]
    chord = (states[:, -1] - states[:, 0]) / match_dims(spans, states[:, 0])
    squares = (velocities - chord[:, None]).square().flatten(2).mean(2)
    return float((torch.trapezoid(squares, times, dim=1) / spans).mean())


def uniform_times(num_steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    """`num_steps` + 1 evenly spaced float64 times from `start` down to `end`."""
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


def step_times(num_steps: int, start: float = 1.0, end: float = 0.0, shift: float = 1.0) -> Tensor:
    """`num_steps` + 1 float64 times from `start` down to `end`, even ones `shifted`: with 2, two steps meet at 2/3."""
    return end + (start - end) * shifted(uniform_times(num_steps), shift)


def shifted(t: Times, shift: float) -> Times:
    """Times moved towards the noise: shift t / (1 + (shift - 1) t) (Esser et al. 2024, arXiv 2403.03206, Eq. 23).

    1 changes nothing, and 1 / shift is the inverse. Larger pictures, whose noise hides less of them, take a larger one.
    """
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)
