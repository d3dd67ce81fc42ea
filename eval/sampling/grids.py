"""Times at which a sampler with a fixed number of steps evaluates: even ones, EDM's, and a teacher's own."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pipeline.flow.path import shifted, uniform_times
from pipeline.networks.convention import SIGMA_MAX, SIGMA_MIN, T_MAX, T_MIN

RHO = 7.0  # EDM's


def edm_times(num_steps: int, start: float = T_MAX, end: float = 0.0) -> Tensor:
    """`num_steps` + 1 falling float64 times [T] from `start` to `end`, spaced as EDM's noise levels are.

    sigma_i = (sigma_max^(1/7) + i / (n - 1) (sigma_min^(1/7) - sigma_max^(1/7)))^7 for i < n, then the end (Karras
    et al. 2022, arXiv 2206.00364, Eq. 5), as times t = sigma / (1 + sigma). The levels run from EDM's 80 to its 0.002,
    or from those of `start` and to those of `end` if these lie in between.
    """
    ends_below = end < T_MIN < start
    low = SIGMA_MIN if ends_below else end / (1 - end)
    high = start / (1 - start) if start < T_MAX else SIGMA_MAX
    count = num_steps if ends_below else num_steps + 1
    sigmas = torch.linspace(high ** (1 / RHO), low ** (1 / RHO), count, dtype=torch.float64) ** RHO
    inner = (sigmas / (1 + sigmas))[1:num_steps]
    return torch.cat([inner.new_tensor([start]), inner, inner.new_tensor([end])])


def own_times(num_steps: int, start: float, end: float, shift: float) -> Tensor:
    """`num_steps` + 1 falling times [T], spaced as those of a teacher's own sampler, which `shift` moves."""
    times = shifted(uniform_times(num_steps, shifted(start, 1 / shift), shifted(end, 1 / shift)), shift)
    times[0], times[-1] = start, end
    return times


# By its name: the suffix of a sampler's name, and the times.
GRIDS: dict[str, tuple[str, Callable[[int, float, float], Tensor]]] = {
    "even": ("", uniform_times),
    "edm": (", EDM grid", edm_times),
}
OWN = "own"  # the grid of a teacher's own sampler


def grid_of(name: str, shift: float) -> tuple[str, Callable[[int, float, float], Tensor]]:
    """The grid called `name`, as in `GRIDS`, of a teacher with this `shift`."""
    return (", own grid", partial(own_times, shift=shift)) if name == OWN else GRIDS[name]
