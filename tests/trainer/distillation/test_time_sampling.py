import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.distillation.time_sampling import TIME_SAMPLERS, U_SHAPE, TimeSampler

U = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


@pytest.mark.parametrize("name", TIME_SAMPLERS)
@given(u=st.floats(0, 1, exclude_max=True), v=st.floats(0, 1, exclude_max=True))
def test_a_sampler_is_monotone_and_stays_within_the_flow(name: TimeSampler, u: float, v: float) -> None:
    low, high = TIME_SAMPLERS[name](torch.tensor(sorted([u, v]), dtype=torch.float64))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_a_sampler_is_symmetric(name: TimeSampler) -> None:
    torch.testing.assert_close(TIME_SAMPLERS[name](1 - U), 1 - TIME_SAMPLERS[name](U), rtol=0, atol=1e-9)


def density(name: TimeSampler) -> torch.Tensor:
    times = TIME_SAMPLERS[name](U)
    return torch.histc(times, 20, 0, 1) / len(U) * 20


def test_the_densities_are_the_published_ones() -> None:
    middle = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    cosh = torch.cosh(U_SHAPE * (middle - 0.5)) * U_SHAPE / 2 / math.sinh(U_SHAPE / 2)
    logit = (middle / (1 - middle)).log()
    normal = (-(logit**2) / 2).exp() / math.sqrt(2 * math.pi) / (middle * (1 - middle))
    torch.testing.assert_close(density("uniform"), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(density("u-shaped"), cosh, rtol=0.02, atol=0)
    torch.testing.assert_close(density("logit-normal"), normal, rtol=0.02, atol=0.02)
