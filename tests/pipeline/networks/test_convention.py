"""One flow with a known solution, told through the eyes of each kind of model, and recovered."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.flow.path import match_dims, uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.networks.convention import (
    SIGMA_MAX,
    SIGMA_MIN,
    T_MAX,
    T_MIN,
    AdmCosine,
    AdmLinear,
    Convention,
    Edm,
    Flow,
    Predict,
    RectifiedFlow,
    ScaledRectifiedFlow,
)
from tests.support.problems import GaussianFlow, MixtureFlow

FLOW = MixtureFlow()
TIMES = torch.cat([torch.tensor([1e-4, T_MIN, 0.01]), torch.linspace(0.05, 0.95, 19), torch.tensor([T_MAX])]).double()
X = torch.randn(len(TIMES), 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

Exact = Callable[[Tensor, Tensor], Tensor]  # v(x, t)


def denoised(flow: Exact, x_sigma: Tensor, t: Tensor) -> Tensor:
    """D(x_sigma; sigma) = E[data | data + sigma noise = x_sigma] at sigma = t / (1 - t)."""
    at = match_dims(t, x_sigma)
    x_t = (1 - at) * x_sigma
    return x_t - at * flow(x_t, t)


def ideal_flow(flow: Exact, t: Tensor) -> Predict:
    return lambda x: flow(x, t)


def ideal_rectified_flow(flow: Exact, t: Tensor) -> Predict:
    """data - noise."""
    return lambda x: -flow(x, t)


def ideal_scaled_flow(flow: Exact, t: Tensor) -> Predict:
    """999 tau (data - noise), at tau = 1 - t."""
    return lambda x: -999 * match_dims((1 - t).clamp(min=1e-3), x) * flow(x, t)


def ideal_edm(flow: Exact, t: Tensor) -> Predict:
    """F, from Eq. 7 of Karras et al. (2022) with their c_skip, c_out and c_in."""

    def predict(scaled: Tensor) -> Tensor:
        sd, sigma = 0.5, match_dims(t / (1 - t), scaled)
        x_sigma = scaled * (sigma**2 + sd**2).sqrt()
        c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
        return (denoised(flow, x_sigma, t) - c_skip * x_sigma) / c_out

    return predict


def ideal_adm(flow: Exact, t: Tensor) -> Predict:
    """epsilon = (x_sigma - D) / sigma."""

    def predict(scaled: Tensor) -> Tensor:
        sigma = match_dims(t / (1 - t), scaled)
        x_sigma = scaled * (1 + sigma**2).sqrt()
        return (x_sigma - denoised(flow, x_sigma, t)) / sigma

    return predict


MODELS: dict[str, tuple[Convention, Callable[[Exact, Tensor], Predict]]] = {
    "flow": (Flow(), ideal_flow),
    "rectified-flow": (RectifiedFlow(), ideal_rectified_flow),
    "edm": (Edm(0.5), ideal_edm),
    "rectified-flow-scaled": (ScaledRectifiedFlow(), ideal_scaled_flow),
    "adm": (AdmCosine(), ideal_adm),
    "adm-linear": (AdmLinear(), ideal_adm),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_mixture_of_gaussians_is_recovered_through_every_convention(name: str) -> None:
    convention, ideal = MODELS[name]
    velocity = convention.velocity(ideal(FLOW.velocity, TIMES), X, match_dims(TIMES, X))
    torch.testing.assert_close(velocity, FLOW.velocity(X, TIMES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_in_single_precision_too(name: str) -> None:
    convention, ideal = MODELS[name]
    exact = ideal(FLOW.velocity, TIMES)
    velocity = convention.velocity(lambda x: exact(x.double()).float(), X.float(), match_dims(TIMES.float(), X))
    # ADM's formula divides rounding errors by 1 - t, which is 1/81 at the start of its flow.
    atol = 1e-4 if name.startswith("adm") else 2e-5
    torch.testing.assert_close(velocity.double(), FLOW.velocity(X, TIMES), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", MODELS)
def test_integrating_it_reaches_the_known_end(name: str) -> None:
    gaussian, (convention, ideal) = GaussianFlow(), MODELS[name]

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        t = t.clamp(min=1e-9)
        return convention.velocity(ideal(gaussian.velocity, t), x, match_dims(t, x))

    start, times = convention.t_start * X, uniform_times(1, convention.t_start)
    found = integrate(velocity, start, times, None, Solver(name="dopri5", rtol=1e-8, atol=1e-8)).states[-1]
    known = gaussian.state(start, times[:1].expand(len(X)), torch.zeros(len(X), dtype=torch.float64))
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_blows_up_between_the_start_and_the_end(name: str) -> None:
    convention, _ = MODELS[name]
    t = torch.cat([torch.tensor([0.0, 1e-30, 1e-7]), torch.linspace(0, convention.t_start, 100)])
    x = torch.randn(len(t), 1, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(convention.noise_label(t)).all()
    velocity = convention.velocity(lambda scaled: scaled, x, match_dims(t, x))
    assert torch.isfinite(velocity).all()
    assert velocity.abs().max() < 1e3


def test_edm_is_told_a_quarter_of_the_logarithm_of_sigma_within_the_levels_it_samples() -> None:
    sigma = torch.tensor([0.002, 0.1, 1.0, 20.0, 80.0], dtype=torch.float64)
    torch.testing.assert_close(Edm(0.5).noise_label(sigma / (1 + sigma)), sigma.log() / 4)
    ends = Edm(0.5).noise_label(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([SIGMA_MIN, SIGMA_MAX], dtype=torch.float64).log() / 4)


def test_adm_is_told_the_step_of_its_schedule_that_has_the_noise_level() -> None:
    def f(u: Tensor) -> Tensor:
        return ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2

    steps = torch.arange(0, 990, dtype=torch.float64)
    alpha_bar = f((steps + 1) / 1000) / f(torch.zeros(1, dtype=torch.float64))  # Nichol & Dhariwal 2021, Eq. 17
    sigma = (1 / alpha_bar - 1).sqrt()
    torch.testing.assert_close(AdmCosine().noise_label(sigma / (1 + sigma)), steps, rtol=0, atol=1e-6)
    assert AdmCosine().noise_label(torch.zeros(1)) == 0


def test_adms_default_schedule_is_linear() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    sigma = (1 / (1 - betas).cumprod(0) - 1).sqrt()
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(AdmLinear().noise_label(sigma / (1 + sigma)), steps, rtol=0, atol=1e-6)
    between = AdmLinear().noise_label((sigma[1:] + sigma[:-1]) / 2 / (1 + (sigma[1:] + sigma[:-1]) / 2))
    assert ((between > steps[:-1]) & (between < steps[1:])).all()
    assert AdmLinear().noise_label(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


@pytest.mark.parametrize("convention", [AdmCosine(), AdmLinear()])
def test_the_step_near_data_is_exact_for_single_precision_times(convention: Convention) -> None:
    t = torch.linspace(1e-3, 0.3, 1000)
    told = convention.noise_label(t)
    torch.testing.assert_close(told.double(), convention.noise_label(t.double()), rtol=1e-6, atol=1e-6)


def test_rectified_flow_runs_the_other_way_and_is_not_asked_nearer_to_noise_than_it_was_trained() -> None:
    told = RectifiedFlow().noise_label(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    torch.testing.assert_close(told, torch.tensor([1.0, 0.75, 1e-3], dtype=torch.float64))
