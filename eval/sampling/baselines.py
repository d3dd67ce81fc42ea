"""The teacher's own few-step samplers: what a user would use instead of distilling.

Every solver runs on a grid of even times and on EDM's grid, with exactly as many evaluations as a student.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.sampling import amed, dpm_solver
from eval.sampling.amed import AmedSolver
from eval.sampling.grids import GRIDS, grid_of
from eval.sampling.samplers import Draw, Sampler
from pipeline.common.errors import BadInput
from pipeline.common.suggestions import suggest
from pipeline.flow.solver import Solver, SolverFailed, Velocity, integrate
from pipeline.teachers.teacher import Teacher

# diffusers' multistep solvers and their orders: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095), UniPC (Zhao et al.
# 2023, arXiv 2302.04867) and DEIS (Zhang & Chen 2022, arXiv 2204.13902).
SCHEDULERS = {
    "dpm++2": ("DPMSolverMultistepScheduler", 2),
    "unipc2": ("UniPCMultistepScheduler", 2),
    "deis2": ("DEISMultistepScheduler", 2),
    "deis3": ("DEISMultistepScheduler", 3),
}
DPM_ORDERS = {"ddim": 1, "dpm2": 2, "dpm3": 3}  # steps of DPM-Solver
MIN_MULTISTEP = 3  # in two steps they equal Euler: the first step and the last one are of first order
MIN_THIRD_ORDER = 5
PREDICTOR = ".safetensors"  # for AMED-Solver
SIGMA_MARGIN = 1e-6  # as in diffusers' UniPC; log(alpha / sigma) is infinite at t = 0 and t = 1


@dataclass(frozen=True)
class Baseline:
    """A solver: its name in a report, and its steps for N evaluations, none if it cannot take exactly N."""

    title: str
    steps: Callable[[int], tuple[str, ...]]
    needs_diffusers: bool = False


def _euler(num_evaluations: int) -> tuple[str, ...]:
    return ("euler",) * num_evaluations


def _midpoint(num_evaluations: int) -> tuple[str, ...]:
    return () if num_evaluations % 2 else ("midpoint",) * (num_evaluations // 2)


def _heun(num_evaluations: int) -> tuple[str, ...]:
    # With an odd number, the last step is Euler's, as in EDM's sampler (arXiv 2206.00364, Algorithm 1).
    return ("heun2",) * (num_evaluations // 2) + ("euler",) * (num_evaluations % 2)


def _ddim(num_evaluations: int) -> tuple[str, ...]:
    return ("ddim",) * num_evaluations


def _dpm_2(num_evaluations: int) -> tuple[str, ...]:
    return () if num_evaluations % 2 else ("dpm2",) * (num_evaluations // 2)


def _dpm_fast(num_evaluations: int) -> tuple[str, ...]:
    """Steps of order 3 and what is left over, the last of them of lower order (DPM-Solver, Section 3.4)."""
    threes, left = divmod(num_evaluations, 3)
    last = {0: ("dpm2", "ddim"), 1: ("ddim",), 2: ("dpm2",)}[left]
    return ("dpm3",) * (threes - (left == 0)) + last


def _multistep(scheduler: str) -> Callable[[int], tuple[str, ...]]:
    return lambda num_evaluations: (scheduler if num_evaluations >= MIN_MULTISTEP else "euler",) * num_evaluations


def _deis_3(num_evaluations: int) -> tuple[str, ...]:
    # The first two steps and the last two are of lower order: below five there is none of third.
    return _multistep("deis3" if num_evaluations >= MIN_THIRD_ORDER else "deis2")(num_evaluations)


BASELINES = {
    "euler": Baseline("euler", _euler),
    "midpoint": Baseline("midpoint", _midpoint),
    "heun": Baseline("heun", _heun),
    "ddim": Baseline("DDIM", _ddim),
    "dpm-2": Baseline("DPM-Solver-2", _dpm_2),
    "dpm-fast": Baseline("DPM-Solver-fast", _dpm_fast),
    "dpm++": Baseline("DPM-Solver++", _multistep("dpm++2"), needs_diffusers=True),
    "unipc": Baseline("UniPC", _multistep("unipc2"), needs_diffusers=True),
    "deis": Baseline("DEIS", _multistep("deis2"), needs_diffusers=True),
    "3-deis": Baseline("3-DEIS", _deis_3, needs_diffusers=True),
}


def baseline_samplers(
    teacher: Teacher, num_evaluations: int, names: Sequence[str] = tuple(BASELINES), grids: Sequence[str] = tuple(GRIDS)
) -> list[Sampler]:
    """The teacher's samplers with `num_evaluations` >= 1, on every grid; of samplers that coincide, the first.

    `names` are those of `BASELINES`, and files of predictors for AMED-Solver, each for one number of evaluations on its
    own grid; `grids` are those of `GRIDS`, or `grids.OWN`. A solver whose steps are all Euler steps, as with one
    evaluation, is listed as Euler; so is DDIM beside it, whose step on these flows is Euler's. The sampler "heun 4"
    takes 4 evaluations.

    Raises:
        BadInput: a name is unknown, a solver needs diffusers, which is not installed, or a predictor is of another
            teacher.
    """
    samplers: dict[tuple[tuple[str, ...], tuple[float, ...]], Sampler] = {}
    for baseline in _select([name for name in names if not name.endswith(PREDICTOR)]):
        steps = baseline.steps(num_evaluations)
        title = "euler" if set(steps) == {"euler"} else baseline.title
        for suffix, grid in (grid_of(name, teacher.shift) for name in grids):
            same = tuple("euler" if step == "ddim" else step for step in steps)
            if steps:
                times = grid(len(steps), teacher.t_start, teacher.t_end)
                draw = _draw(teacher, num_evaluations, steps, times)
                sampler = Sampler("few-step", f"{title} {num_evaluations}{suffix}", draw, num_evaluations)
                samplers.setdefault((same, tuple(times.tolist())), sampler)
    learned = [amed.load(Path(name), teacher) for name in names if name.endswith(PREDICTOR)]
    found = [_amed_sampler(solver, teacher) for solver in learned if solver.num_evaluations == num_evaluations]
    return [*samplers.values(), *found]


def _amed_sampler(solver: AmedSolver, teacher: Teacher) -> Sampler:
    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        return solver.sample(teacher.t_start * noise, label), solver.num_evaluations

    name = f"AMED-Solver {solver.num_evaluations}{GRIDS[solver.facts.grid][0]}"
    return Sampler("few-step", name, draw, solver.num_evaluations)


def _select(names: Sequence[str]) -> list[Baseline]:
    if unknown := [name for name in names if name not in BASELINES]:
        raise BadInput(
            f"no baseline {unknown[0]!r}: wanted one of {', '.join(BASELINES)}, or the {PREDICTOR} file of a predictor"
            f"{suggest(unknown[0], BASELINES)}"
        )
    wanted = [name for name in names if BASELINES[name].needs_diffusers]
    if wanted and not _has_diffusers():
        raise BadInput(
            f"baseline {wanted[0]}: wanted diffusers 0.32 or newer; pip install 'diffusers>=0.32', or leave it out"
        )
    return [BASELINES[name] for name in names]


def _has_diffusers() -> bool:
    """Whether diffusers is installed and supports flows, as it does from 0.32 on."""
    try:
        from diffusers import DEISMultistepScheduler
    except (ImportError, RuntimeError):  # RuntimeError: diffusers raises it when one of its own imports fails
        return False
    return "use_flow_sigmas" in inspect.signature(DEISMultistepScheduler).parameters


def _draw(teacher: Teacher, num_evaluations: int, steps: tuple[str, ...], times: Tensor) -> Draw:
    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        start = teacher.t_start * noise
        if steps[0] in SCHEDULERS:
            return _run_scheduler(teacher.velocity, start, times, label, *SCHEDULERS[steps[0]])
        if steps[0] in DPM_ORDERS:
            orders = [DPM_ORDERS[step] for step in steps]
            return dpm_solver.integrate(teacher.velocity, start, times, label, orders)
        try:
            return _integrate(teacher.velocity, start, times, label, steps)
        except SolverFailed:  # fixed steps fail by a state that is not finite, and a sampler hands that out
            return torch.full_like(noise, torch.nan), num_evaluations

    return draw


def _integrate(
    velocity: Velocity, x: Tensor, times: Tensor, label: Tensor | None, steps: tuple[str, ...]
) -> tuple[Tensor, int]:
    """The state at times[-1] and the number of evaluations; steps[i] integrates the i-th interval of `times`."""
    nfe = 0
    for name, (t, s) in zip(steps, pairwise(times), strict=True):
        solution = integrate(velocity, x, torch.stack([t, s]), label, Solver(name=name, num_steps=1))
        x, nfe = solution.states[-1], nfe + solution.nfe
    return x, nfe


@torch.no_grad()
def _run_scheduler(
    velocity: Velocity, x: Tensor, times: Tensor, label: Tensor | None, name: str, order: int
) -> tuple[Tensor, int]:
    """The state at times[-1] and the number of evaluations, by diffusers' scheduler `name` of `order`.

    diffusers' flows are x = (1 - sigma) data + sigma noise and predict noise - data, so sigma is t here.
    """
    import diffusers

    scheduler: Any = getattr(diffusers, name)(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=order
    )
    scheduler.set_timesteps(len(times) - 1)
    # The scheduler's own sigmas always start at 0.999, and DEIS's end one step before data.
    scheduler.sigmas = times.clamp(SIGMA_MARGIN, 1 - SIGMA_MARGIN)
    scheduler.set_begin_index(0)
    start, nfe = x, 0
    x = x.double()  # DEIS subtracts terms as large as 1 / (1 - t), which cancel in float32 near t = 1
    for sigma in scheduler.sigmas[:-1]:
        v = velocity(x.to(start), sigma.to(start).expand(len(x)), label)
        nfe += 1
        x = scheduler.step(v, sigma, x).prev_sample
    return x.to(start), nfe
