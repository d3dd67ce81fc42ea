import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.flow import solver as solver_module
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import (
    ADAPTIVE,
    CAUTIOUS,
    SOLVERS,
    CautiousDopri5,
    Solver,
    SolverFailed,
    integrate,
    refine,
    rms_norm,
)
from tests.support.problems import GaussianFlow

FLOW = GaussianFlow()
NOISE = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([1.0, 0.83, 0.4, 0.11, 0.0])


def exact(times: Tensor) -> Tensor:
    one = torch.ones(len(NOISE))
    return torch.stack([FLOW.state(NOISE, one, t * one) for t in times])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_reach_the_known_solution_at_every_time(name: str) -> None:
    solution = integrate(FLOW.velocity, NOISE, TIMES, None, Solver(name=name, rtol=1e-5, atol=1e-5))
    assert (solution.states - exact(TIMES)).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("name", "evaluations_a_step", "tolerance"),
    [("euler", 1, 0.1), ("midpoint", 2, 1e-2), ("heun2", 2, 1e-2), ("heun3", 3, 1e-3), ("rk4", 4, 1e-4)],
)
def test_fixed_step_solvers_reach_it_with_the_evaluations_they_say(
    name: str, evaluations_a_step: int, tolerance: float
) -> None:
    solution = integrate(FLOW.velocity, NOISE, TIMES, None, Solver(name=name, num_steps=32))
    assert (solution.states - exact(TIMES)).abs().max() < tolerance
    assert solution.nfe == 32 * evaluations_a_step


@pytest.mark.parametrize("solver", [Solver(), Solver(name="rk4", num_steps=9)])
def test_every_evaluation_is_counted_and_inside_the_flow(solver: Solver) -> None:
    asked = []

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        asked.append(t)
        return FLOW.velocity(x, t)

    solution = integrate(velocity, NOISE, TIMES, None, solver)
    assert solution.nfe == len(asked)
    assert all(((t >= 0) & (t <= 1)).all() and t.shape == (16,) for t in asked)


def test_a_cautious_dopri5_does_not_grow_right_after_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[bool, float, float]] = []  # accepted, how long it was, how long the next one is to be

    class Watched(CautiousDopri5):
        def _adaptive_step(self, state: Any) -> Any:
            after = super()._adaptive_step(state)
            steps.append((bool(after.t1 > state.t1), float(after.t1 - after.t0), float(after.dt)))
            return after

    def turning(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return (-(((t - 0.3) / 0.05) ** 2)).exp()[:, None, None, None] * 20 * x

    monkeypatch.setitem(SOLVERS, CAUTIOUS, Watched)
    solver = Solver(rtol=1e-6, atol=1e-6, cautious=True)
    found = integrate(turning, NOISE, uniform_times(1), None, solver).states[-1]
    # The logarithm moves by minus the integral of 20 exp(-((t - 0.3) / 0.05)^2).
    torch.testing.assert_close(found, NOISE * math.exp(-math.sqrt(math.pi)), rtol=1e-4, atol=1e-5)
    repaired = [after for before, after in pairwise(steps) if after[0] and not before[0]]
    assert repaired
    assert all(following <= width for _, width, following in repaired)


def test_caution_is_no_part_of_a_plan_that_does_not_ask_for_it() -> None:
    assert "cautious" not in Solver().model_dump()
    assert Solver(cautious=True).model_dump()["cautious"] is True
    assert str(Solver(cautious=True)) == "cautious dopri5 1e-5"
    with pytest.raises(ValidationError, match="cautious is a step control of dopri5"):
        Solver(name="rk4", num_steps=4, cautious=True)


def test_more_times_cost_an_adaptive_solver_nothing() -> None:
    few = integrate(FLOW.velocity, NOISE, uniform_times(1), None, Solver())
    many = integrate(FLOW.velocity, NOISE, uniform_times(20), None, Solver())
    assert few.nfe == many.nfe
    torch.testing.assert_close(few.states[-1], many.states[-1])


def test_a_teacher_in_half_precision_does_not_round_the_solvers_sums() -> None:
    def half(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return FLOW.velocity(x, t).bfloat16()

    def rounded(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return half(x, t, label).float()

    solver = Solver(name="rk4", num_steps=8)
    found = integrate(half, NOISE, uniform_times(1), None, solver).states
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, integrate(rounded, NOISE, uniform_times(1), None, solver).states, rtol=0, atol=0)


def test_a_flow_that_is_not_finite_is_said_to_be_so() -> None:
    def broken(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return torch.where(t[:, None, None, None] < 0.5, torch.nan, x)

    for solver in (Solver(), Solver(name="euler", num_steps=4)):
        with pytest.raises(SolverFailed, match=solver.name):
            integrate(broken, NOISE, uniform_times(1), None, solver)


def test_a_velocity_that_is_not_finite_on_the_way_is_not_cut_off_at_an_end() -> None:
    def broken(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return torch.where(t[:, None, None, None] < 0.3, torch.nan, x)

    with pytest.raises(SolverFailed, match=r"the velocity is not finite at t = 0\.25$"):
        integrate(broken, NOISE, uniform_times(1), None, Solver(name="rk4", num_steps=4))


@pytest.mark.parametrize("solver", [Solver(), Solver(name="rk4", num_steps=4)], ids=str)
@pytest.mark.parametrize(("end", "field"), [(1.0, "a smaller t_start"), (0.0, "a larger t_end")])
def test_a_velocity_that_is_not_finite_at_an_end_is_told_how_to_leave_it_out(
    end: float, field: str, solver: Solver
) -> None:
    def divided(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return x / (t - end)[:, None, None, None].abs()

    with pytest.raises(SolverFailed, match=rf"; the velocity is not finite at t = {end:g}: give its Teacher {field}"):
        integrate(divided, NOISE, uniform_times(1), None, solver)


def test_a_solver_that_runs_out_of_steps_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_module, "MAX_NUM_STEPS", 3)
    with pytest.raises(SolverFailed, match="gave up after"):
        integrate(FLOW.velocity, NOISE, uniform_times(1), None, Solver(rtol=1e-7, atol=1e-7))


def test_the_error_norm_does_not_depend_on_threads() -> None:
    x = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        norms = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(rms_norm(x).item())
    finally:
        torch.set_num_threads(threads)
    assert len(set(norms)) == 1


@given(
    inner=st.lists(st.floats(0.01, 0.99), max_size=8, unique=True),
    extra=st.integers(0, 20),
)
def test_a_refined_grid_passes_through_every_time_with_the_steps_asked(inner: list[float], extra: int) -> None:
    times = torch.tensor([1.0, *sorted(inner, reverse=True), 0.0], dtype=torch.float64)
    grid, places = refine(times, len(times) - 1 + extra)
    assert len(grid) == len(times) + extra
    torch.testing.assert_close(grid[places], times)
    assert (grid.diff() < 0).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "rk4"}, "give it num_steps"),
        ({"name": "rk4", "num_steps": 4, "rtol": 1e-3}, "not rtol or atol"),
        ({"name": "dopri5", "num_steps": 4}, "not num_steps"),
        ({"name": "dopri5", "rtol": 0}, "positive"),
        ({"name": "rk45"}, "dopri5"),
    ],
)
def test_a_solver_is_refused_the_accuracy_of_the_other_kind(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Solver.model_validate(values)
