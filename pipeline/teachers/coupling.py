"""Whether the states on some paths have the squares that states between noise and data have."""

import torch
from torch import Tensor

from pipeline.teachers.verdict import Paths

FIRST = 0.5  # time: nearer to the noise a model's errors count more than what it predicts
BEFORE_END = 0.05
MAX_DRIFT = 0.22  # flows have less than 0.12, and those that take the noise for the velocity more than 0.24
CERTAIN = 4  # standard errors
DRIFT_HINT = (
    "the squares of the states are not those of x = (1 - t) data + t noise: is the velocity dx/dt = noise - data? "
    'The noise that a model predicts is no velocity (docs/how-to/teacher.md, "A model that predicts noise"); guidance '
    "within the velocity looks alike"
)


def warn_of_drift(paths: Paths) -> str:
    """`DRIFT_HINT` if `drift` is certainly more than flows have; empty if not."""
    return DRIFT_HINT if drift(paths) > MAX_DRIFT else ""


def drift(paths: Paths) -> float:
    """By how much E[noise data] differs by the time at which the states tell it; 0 where that is not certain.

    A flow keeps the distribution of x_t = (1 - t) data + t noise (Liu et al. 2022, arXiv 2209.03003, Theorem 3.3). So
    E x_t^2 = (1 - t)^2 E data^2 + t^2 E noise^2 + 2 t (1 - t) E[noise data] at all times with the same last mean, 0
    where noise and data were drawn apart. It is given in units of the RMS of the noise times that of the samples.
    """
    inner = (paths.times >= paths.times[-1] + BEFORE_END) & (paths.times <= FIRST)
    if inner.sum() < 2 or len(paths.noise) < 2:
        return 0.0
    told = _told_couplings(paths, inner)
    means = told.mean(0)
    apart = told[:, means.argmax()] - told[:, means.argmin()]
    mean, error = float(apart.mean()), float(apart.std() / len(apart) ** 0.5)
    return mean if mean > CERTAIN * error else 0.0


def _told_couplings(paths: Paths, inner: Tensor) -> Tensor:
    """What each sample says of E[noise data] at the times `inner` [T]: [B, number of these times]."""
    t, end = (times.to(paths.states.device, torch.float64) for times in (paths.times[inner], paths.times[-1]))
    noise, last = _square(paths.noise[:, None]), _square(paths.states[:, -1:])
    left = (1 - t) / (1 - end)  # the last states are data in this share
    rest = _square(paths.states[:, inner.to(paths.states.device)]) - t**2 * noise - left**2 * (last - end**2 * noise)
    return rest / (2 * left * (t - end)) / (noise.mean() * last.mean()).sqrt()


def _square(x: Tensor) -> Tensor:
    """The mean squares of the arrays [B, T, *shape]: [B, T]."""
    return x.double().flatten(2).square().mean(2)
