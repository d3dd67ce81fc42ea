"""DPM-Solver (Lu et al. 2022, arXiv 2206.00927): exponential integrators of one to three evaluations a step.

On a flow x_t = (1 - t) data + t noise, alpha = 1 - t and sigma = t; the solver works in the half log-SNR
lambda = log(alpha / sigma), and its model is the noise, which is x + (1 - t) v where the velocity is v.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.flow.solver import Velocity
from pipeline.networks.convention import T_MAX, T_MIN


@torch.no_grad()
def integrate(
    velocity: Velocity, x: Tensor, times: Tensor, label: Tensor | None, orders: Sequence[int]
) -> tuple[Tensor, int]:
    """The state at times[-1] and the number of evaluations; the i-th step, of order orders[i], takes as many.

    lambda is infinite at both ends of a flow, so steps are placed between EDM's noise levels: the first one goes from
    t = 1 to T_MAX by the velocity that it asks for anyway, and the last one to t = 0 by its last noise.
    """
    start, nfe = x, 0

    def ask(x: Tensor, t: float) -> Tensor:
        nonlocal nfe
        nfe += 1
        return velocity(x.to(start), start.new_full((len(x),), t), label).double()

    x = x.double()
    for order, (t, s) in zip(orders, pairwise(times.tolist()), strict=True):
        v = ask(x, t)
        if t > T_MAX:
            x, t = x + (T_MAX - t) * v, T_MAX
        x = _step(ask, x, t, s, x + (1 - t) * v, order)
    return x.to(start), nfe


def _step(ask: Callable[[Tensor, float], Tensor], x: Tensor, t: float, s: float, noise: Tensor, order: int) -> Tensor:
    """From t to s with the noise at (x, t): their Algorithms 4 (r = 1/2) and 5 (r = 1/3, 2/3), and DDIM at order 1."""
    start, h = _log_snr(t), _log_snr(max(s, min(T_MIN, t / 2))) - _log_snr(t)
    if order == 1:
        return _move(x, t, s, noise)
    between = _time(start + h / order)
    x_between = _move(x, t, between, noise)
    there = x_between + (1 - between) * ask(x_between, between)
    if order == 2:
        return _move(x, t, s, there)
    later = _time(start + 2 * h / 3)
    x_later = _move(x, t, later, noise) - 2 * _curvature(t, later, 2 * h / 3) * (there - noise)
    change = x_later + (1 - later) * ask(x_later, later) - noise
    return _move(x, t, s, noise) - 1.5 * _curvature(t, s, h) * change


def _move(x: Tensor, t: float, s: float, noise: Tensor) -> Tensor:
    """alpha_s / alpha_t x - sigma_s (e^h - 1) noise: the exact solution with constant noise, which is DDIM's step."""
    return (1 - s) / (1 - t) * (x - t * noise) + s * noise


def _curvature(t: float, s: float, h: float) -> float:
    """sigma_s ((e^h - 1) / h - 1), where sigma_s e^h = alpha_s sigma_t / alpha_t is finite at s = 0."""
    return ((1 - s) * t / (1 - t) - s) / h - s


def _log_snr(t: float) -> float:
    return math.log((1 - t) / t)


def _time(log_snr: float) -> float:
    return 1 / (1 + math.exp(log_snr))
