import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eval.sampling.baselines import BASELINES, baseline_samplers
from eval.sampling.grids import GRIDS, OWN, edm_times, own_times
from eval.sampling.samplers import Sampler
from pipeline.common.errors import BadInput
from pipeline.flow.path import shifted, uniform_times
from pipeline.flow.solver import Solver, Velocity, integrate
from pipeline.networks.convention import T_MAX, T_MIN
from pipeline.teachers.teacher import OwnedVelocity, Teacher
from tests.support.problems import SHAPE, GaussianFlow, MixtureFlow

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # numpy's, of diffusers and torch
FLOW = GaussianFlow()
NOISE = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
ENDS = [(1.0, 0.0), (T_MAX, 0.0), (1.0, 1e-3), (0.9, 0.1)]  # of flows: ours, EDM's, and two cut short


class Watched:
    """A velocity that writes down when it is asked."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.times = velocity, list[float]()

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert x.dtype == t.dtype == torch.float32
        assert t.shape == (len(x),)
        assert (t == t[0]).all()
        self.times.append(float(t[0]))
        return self.velocity(x, t, label)


def teacher(flow: GaussianFlow | MixtureFlow = FLOW, t_start: float = 1.0, t_end: float = 0.0) -> Teacher:
    return Teacher("flow", "0" * 64, Watched(flow.velocity), SHAPE, t_start=t_start, t_end=t_end)


def names(num_evaluations: int) -> list[str]:
    return [sampler.name for sampler in baseline_samplers(teacher(), num_evaluations)]


def only(num_evaluations: int, name: str, grid: str, of: Teacher) -> Sampler:
    """The sampler of one solver on one grid."""
    wanted = f"{BASELINES[name].title} {num_evaluations}{grid}"
    return next(sampler for sampler in baseline_samplers(of, num_evaluations, [name]) if sampler.name == wanted)


def solution(of: Teacher) -> Tensor:
    times = uniform_times(1, of.t_start, of.t_end)
    tight = Solver(name="dopri5", rtol=1e-7, atol=1e-7)
    return integrate(of.velocity, of.t_start * NOISE, times, None, tight).states[-1]


def error(sampler: Sampler, of: Teacher) -> float:
    return float((sampler.draw(NOISE, None)[0] - solution(of)).square().mean().sqrt())


def test_one_evaluation_is_one_euler_step_and_is_listed_once() -> None:
    (sampler,) = baseline_samplers(teacher(), 1)
    samples, nfe = sampler.draw(NOISE, None)
    assert (sampler.title, sampler.group, nfe) == ("teacher, euler 1", "few-step", 1)
    torch.testing.assert_close(samples, NOISE - FLOW.velocity(NOISE, torch.ones(len(NOISE))))


def test_samplers_are_listed_by_evaluations_and_grid_and_none_twice() -> None:
    # One step has no grid, and DDIM is Euler.
    assert names(2) == ["euler 2", "euler 2, EDM grid", "midpoint 2", "heun 2", "DPM-Solver-2 2"]
    assert names(3) == [
        *("euler 3", "euler 3, EDM grid", "heun 3", "heun 3, EDM grid", "DPM-Solver-fast 3"),
        *("DPM-Solver-fast 3, EDM grid", "DPM-Solver++ 3", "DPM-Solver++ 3, EDM grid"),
        *("UniPC 3", "UniPC 3, EDM grid", "DEIS 3", "DEIS 3, EDM grid"),
    ]
    assert len(names(6)) == (len(BASELINES) - 1) * len(GRIDS)


def test_ddims_step_is_eulers() -> None:
    of = teacher(MixtureFlow())
    for grid in (", EDM grid", ""):
        ddim, euler = (only(5, name, grid, of).draw(NOISE, None)[0] for name in ("ddim", "euler"))
        torch.testing.assert_close(ddim, euler, atol=2e-4, rtol=0)  # of T_MAX, where DPM-Solver begins


def test_dpm_solver_fast_takes_steps_of_order_three_and_the_rest() -> None:
    """DPM-Solver, Section 3.4: 3M + 1, 3M + 2 and 3M evaluations."""
    steps = BASELINES["dpm-fast"].steps
    assert steps(7) == ("dpm3", "dpm3", "ddim")
    assert steps(8) == ("dpm3", "dpm3", "dpm2")
    assert steps(9) == ("dpm3", "dpm3", "dpm2", "ddim")
    assert steps(3) == ("dpm2", "ddim")
    assert steps(1) == ("ddim",)


def test_no_two_samplers_of_as_many_evaluations_agree() -> None:
    for num_evaluations in (2, 3, 4, 5):
        drawn = [sampler.draw(NOISE, None)[0] for sampler in baseline_samplers(teacher(MixtureFlow()), num_evaluations)]
        for i, samples in enumerate(drawn):
            assert all((samples - other).abs().max() > 1e-5 for other in drawn[:i])


@pytest.mark.parametrize(("t_start", "t_end"), ENDS)
@given(num_evaluations=st.integers(1, 12))
@settings(max_examples=6, deadline=None)
def test_evaluations_are_those_asked_for_and_inside_the_flow(
    t_start: float, t_end: float, num_evaluations: int
) -> None:
    of = teacher(MixtureFlow(), t_start, t_end)
    assert isinstance(of.velocity, OwnedVelocity)
    watched = of.velocity.velocity
    assert isinstance(watched, Watched)
    low, high = torch.tensor([t_end, t_start]).tolist()  # in single precision, as a network is asked
    for sampler in baseline_samplers(of, num_evaluations):
        watched.times.clear()
        samples, nfe = sampler.draw(NOISE[:2], None)
        assert nfe == len(watched.times) == num_evaluations, sampler.name
        assert low <= min(watched.times) <= max(watched.times) <= high, sampler.name
        assert samples.dtype == torch.float32
        assert samples.isfinite().all()


@pytest.mark.parametrize("grid", [suffix for suffix, _ in GRIDS.values()])
@pytest.mark.parametrize(("name", "least"), [("euler", 1.9), ("midpoint", 3.6), ("heun", 3.4), ("dpm-2", 3.0)])
def test_doubling_the_evaluations_divides_the_error_as_the_order_says(name: str, least: float, grid: str) -> None:
    of = teacher(MixtureFlow())
    coarse, fine = (error(only(n, name, grid, of), of) for n in (64, 128))
    assert least < coarse / fine < 2 * least + 1


@pytest.mark.parametrize("grid", [suffix for suffix, _ in GRIDS.values()])
@pytest.mark.parametrize("name", ["dpm++", "unipc", "deis"])
def test_multistep_solvers_are_of_second_order(name: str, grid: str) -> None:
    """Over two doublings, because their errors change sign on the way."""
    of = teacher(MixtureFlow())
    coarse, fine = (error(only(n, name, grid, of), of) for n in (32, 128))
    assert coarse / fine > 3**2 * 0.75


@pytest.mark.parametrize(("t_start", "t_end"), ENDS)
def test_all_samplers_arrive_at_the_solution(t_start: float, t_end: float) -> None:
    of = teacher(FLOW, t_start, t_end)
    for sampler in baseline_samplers(of, 128):
        assert error(sampler, of) < (1e-2 if "euler" in sampler.name else 1e-3), sampler.name


def test_the_same_noise_gives_the_same_samples() -> None:
    for sampler in baseline_samplers(teacher(MixtureFlow()), 4):
        assert torch.equal(sampler.draw(NOISE, None)[0], sampler.draw(NOISE, None)[0])


def test_labels_reach_the_teacher() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return label[:, None, None, None].expand_as(x).to(x)

    of = replace(teacher(), velocity=velocity, num_classes=3)
    label = torch.arange(len(NOISE)) % 3
    for sampler in baseline_samplers(of, 4):
        torch.testing.assert_close(sampler.draw(NOISE, label)[0], NOISE - label[:, None, None, None], atol=1e-5, rtol=0)


@given(
    num_steps=st.integers(1, 20),
    start=st.floats(0.05, 1.0),
    end=st.one_of(st.just(0.0), st.floats(0.0, 0.04)),
)
@settings(max_examples=50, deadline=None)
def test_grids_fall_from_the_start_of_the_flow_to_its_end(num_steps: int, start: float, end: float) -> None:
    for _, grid in GRIDS.values():
        times = grid(num_steps, start, end)
        assert (len(times), float(times[0]), float(times[-1])) == (num_steps + 1, start, end)
        assert (times.diff() < 0).all()


def test_the_edm_grid_is_that_of_its_paper() -> None:
    """Karras et al. 2022, Eq. 5, of 4 steps: sigma = 80, 9.72, 0.47, 0.002, 0, computed by hand."""
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = torch.tensor([80.0, (2 * a / 3 + b / 3) ** 7, (a / 3 + 2 * b / 3) ** 7, 0.002, 0.0], dtype=torch.float64)
    torch.testing.assert_close(edm_times(4), sigmas / (1 + sigmas), atol=1e-12, rtol=0)
    assert edm_times(4)[3] == pytest.approx(T_MIN)


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(BadInput, match="no baseline 'ddpm': wanted one of euler, "):
        baseline_samplers(teacher(), 4, ["euler", "ddpm"])


@pytest.mark.parametrize("installed", [None, SimpleNamespace(DEISMultistepScheduler=object)])
def test_without_a_diffusers_that_knows_flows_only_its_own_samplers_are_refused(
    monkeypatch: pytest.MonkeyPatch, installed: SimpleNamespace | None
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", installed)
    found = baseline_samplers(teacher(), 4, ["euler", "midpoint", "heun"], ["even"])
    assert [sampler.name for sampler in found] == ["euler 4", "midpoint 4", "heun 4"]
    with pytest.raises(BadInput, match=r"baseline unipc: wanted diffusers 0\.32 or newer; pip install"):
        baseline_samplers(teacher(), 4, ["heun", "unipc"])


def test_a_teachers_own_times_are_even_before_they_are_shifted() -> None:
    times = own_times(4, 1.0, 0.0, 3.0)
    torch.testing.assert_close(times, shifted(uniform_times(4), 3.0))
    ends = own_times(4, 0.9, 0.1, 3.0)
    assert (float(ends[0]), float(ends[-1])) == (0.9, 0.1)
    torch.testing.assert_close(shifted(ends, 1 / 3.0).diff(), shifted(ends, 1 / 3.0).diff()[:1].expand(4))


def test_the_own_grid_is_that_of_the_teachers_shift() -> None:
    moved = replace(teacher(), shift=3.0)
    found = [sampler.name for sampler in baseline_samplers(moved, 2, ["euler"], ["even", OWN])]
    assert found == ["euler 2", "euler 2, own grid"]
    assert [s.name for s in baseline_samplers(teacher(), 2, ["euler"], ["even", OWN])] == ["euler 2"]
