"""Integrate a teacher's ODE from noise to data, counting every evaluation. The solvers are torchdiffeq's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl.dopri5 import Dopri5Solver
from torchdiffeq._impl.odeint import SOLVERS as SOLVERS

from pipeline.common.errors import WorkFailed
from pipeline.flow.path import shifted
from pipeline.flow.solver_config import ADAPTIVE as ADAPTIVE
from pipeline.flow.solver_config import FIXED as FIXED
from pipeline.flow.solver_config import Solver as Solver

# torchdiffeq's own limit is 2^31 steps, which on a broken teacher is for ever.
MAX_NUM_STEPS = 10_000


class Velocity(Protocol):
    """dx/dt of a flow: x [B, ...], t [B] in [0, 1], label int64 [B] or None -> [B, ...]."""

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor: ...


class CautiousDopri5(Dopri5Solver):  # type: ignore[misc]
    """dopri5 that does not try a longer step right after one that failed.

    torchdiffeq may make a step ten times as long after one that it had to make a fifth as long, which fails again.
    """

    has_failed = False

    def _adaptive_step(self, state: Any) -> Any:
        after = super()._adaptive_step(state)
        is_accepted = bool(after.t1 > state.t1)
        if is_accepted and self.has_failed:
            after = after._replace(dt=torch.minimum(after.dt, after.t1 - after.t0))
        self.has_failed = not is_accepted
        return after


# What to do about a velocity that is not finite, or huge, at the first or at the last time of a flow.
ENDS = {0: "give its Teacher a smaller t_start", -1: "give its Teacher a larger t_end"}

NUM_ASKED = 9  # of the times at which a velocity that broke a solution is asked for again

CAUTIOUS = "cautious-dopri5"
SOLVERS[CAUTIOUS] = CautiousDopri5


class SolverFailed(WorkFailed):
    """The integration did not reach the end: a non-finite velocity, or no step small enough."""


@dataclass(frozen=True)
class Solution:
    """States [T, B, ...] at the T times asked for, and the velocity evaluations they cost per sample."""

    states: Tensor
    nfe: int


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square, summed in float64: a float32 sum depends on the number of threads, and the steps on it."""
    return x.double().square().mean().sqrt().to(x.dtype)


def refine(times: Tensor, num_steps: int) -> tuple[Tensor, list[int]]:
    """A grid of `num_steps` steps through all `times` [T], float64, and the indices of `times` in it.

    Each further step halves, thirds, ... the interval whose steps are longest, so steps are as even as they can be.

    Raises:
        ValueError: fewer steps than intervals.
    """
    widths = (times[1:] - times[:-1]).abs()
    if num_steps < len(widths):
        raise ValueError(f"{num_steps} steps cannot pass through {len(widths)} intervals")
    counts = torch.ones_like(widths)
    for _ in range(num_steps - len(widths)):
        counts[(widths / counts).argmax()] += 1
    pieces = [times[:1]]
    for start, end, count in zip(times[:-1], times[1:], counts.int().tolist(), strict=True):
        pieces.append(torch.linspace(float(start), float(end), count + 1, dtype=times.dtype)[1:])
    indices = [0, *counts.int().cumsum(0).tolist()]
    return torch.cat(pieces), indices


@torch.no_grad()
def integrate(
    velocity: Velocity, x: Tensor, times: Tensor, label: Tensor | None, solver: Solver, shift: float = 1.0
) -> Solution:
    """Solve dx/dt = velocity(x, t) from `x` [B, ...] at times[0] to times[-1], which may lie below it.

    Args:
        velocity: the flow.
        x: float32 start [B, ...]; the state stays float32, because half-precision states cost an adaptive
            solver several times the evaluations.
        times: strictly monotonic [T], the times whose states are wanted.
        label: classes int64 [B], or None.
        solver: which solver and how accurate. An adaptive one reads its states from its dense output, so
            more times cost no evaluations; a fixed-step one steps exactly on them.
        shift: where the steps of a fixed-step solver are even, see `path.shifted`; 1: in time.

    Raises:
        SolverFailed: a state is not finite, or the solver ran out of steps.
    """
    nfe = 0

    def func(t: Tensor, x: Tensor) -> Tensor:
        nonlocal nfe
        nfe += 1
        # A teacher may compute in half precision; the solver's own sums must not.
        return velocity(x, t.to(x.dtype).expand(len(x)), label).to(x.dtype)

    # A float32 grid would put the end of an interval a rounding error past the time asked for.
    times = times.to(device=x.device, dtype=torch.float64)
    if solver.is_adaptive:
        grid, indices = times, list(range(len(times)))
        # step_t: without it the last step passes the end and asks the teacher for times outside the flow.
        options = {"norm": rms_norm, "max_num_steps": MAX_NUM_STEPS, "step_t": times[-1:]}
        tolerances = {"rtol": solver.rtol, "atol": solver.atol}
    else:
        assert solver.num_steps is not None
        grid, indices = refine(shifted(times.cpu(), 1 / shift), solver.num_steps)
        grid, options, tolerances = shifted(grid, shift).to(x.device), {}, {}
    try:
        states = odeint(
            func, x, grid, method=CAUTIOUS if solver.cautious else solver.name, options=options, **tolerances
        )[indices]
    except AssertionError as error:  # torchdiffeq's word for both "too many steps" and "step too small"
        gave_up = f"{solver} gave up after {nfe} evaluations ({error})"
        raise SolverFailed(gave_up + _broken(func, x, times)) from error
    if not torch.isfinite(states).all():
        broken = f"{solver}: the state is not finite after {nfe} evaluations"
        raise SolverFailed(broken + _broken(func, x, times))
    return Solution(states, nfe)


def _broken(func: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> str:
    """Where between the ends of the flow the velocity is not finite, and what to do if at an end alone."""
    grid = torch.linspace(float(times[0]), float(times[-1]), NUM_ASKED, dtype=times.dtype, device=times.device)
    broken = [i for i, t in enumerate(grid) if not torch.isfinite(func(t, x)).all()]
    if not broken:
        return ""
    advice = {0: ENDS[0], NUM_ASKED - 1: ENDS[-1]}.get(broken[0]) if len(broken) == 1 else None
    return f"; the velocity is not finite at t = {grid[broken[0]]:.3g}" + (f": {advice}" if advice else "")
