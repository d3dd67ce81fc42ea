"""The terms of compared methods: what they draw, on a Gaussian flow whose map is known."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.flow.path import interpolate
from tests.support.problems import ExactStudent, GaussianFlow, loss_values
from trainer.data.stream import TrajectoryBatch
from trainer.distillation.compared import ConsistencyTraining
from trainer.distillation.models import Models
from trainer.distillation.queries import Loss
from trainer.distillation.random_draws import TermDraws
from trainer.distillation.recipes import Recipe, load_recipe
from trainer.distillation.terms import BaseTerm

FLOW = GaussianFlow()
B = 512
RNG = torch.Generator().manual_seed(0)
NOISE, OTHER = torch.randn(2, B, 1, 4, 4, generator=RNG)
ONE, ZERO = torch.ones(B), torch.zeros(B)
BATCH = TrajectoryBatch(
    torch.stack([NOISE, FLOW.state(NOISE, ONE, ZERO)], dim=1), None, torch.stack([ONE, ZERO], 1), None, torch.arange(B)
)


def loss_of(term: BaseTerm, progress: float, noise: Tensor) -> Loss:
    """The loss of trajectories from NOISE, with `noise` drawn, when the part `progress` of a training is done."""
    uniforms = iter(torch.rand(3, B, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    draws = TermDraws(uniforms, torch.rand(B), torch.full((B,), progress), noise)
    student = ExactStudent(FLOW)
    return term.compute(Models(student, student), BATCH, draws)  # type: ignore[arg-type]


def test_consistency_training_begins_with_one_step_from_noise_to_data() -> None:
    """The one target of its first step is the sample, which the exact map finds from the sample's own noise."""
    loss = loss_of(ConsistencyTraining(), 0, NOISE)
    assert loss_values(loss, ExactStudent(FLOW)).max() < 1e-10  # type: ignore[arg-type]


@pytest.mark.parametrize("progress", [0.0, 0.01, 0.3, 0.9999])
def test_the_times_of_consistency_training_are_as_many_as_its_paper_says(progress: float) -> None:
    """N(k) of Appendix C counts the times, both ends included: there is one step less."""
    wanted = math.ceil(math.sqrt(progress * (151**2 - 2**2) + 2**2) - 1) + 1
    now, sooner = next(loss_of(ConsistencyTraining(), progress, OTHER))
    steps = wanted - 1
    torch.testing.assert_close(now.t - sooner.t, torch.full((B,), 1 / steps), atol=1e-6, rtol=0)
    torch.testing.assert_close(now.t * steps, (now.t * steps).round(), atol=1e-4, rtol=0)
    assert now.t.max() == 1
    assert sooner.t.min() == 0


@pytest.mark.parametrize(("part", "own"), [(0.0, False), (0.3, False), (0.375, True), (0.9, True)])
def test_slimflows_reflow_has_the_trajectories_own_noise_after_three_eighths(part: float, own: bool) -> None:
    """Until then it fades in; what guides the second stage has been trained on nothing else for most of the first."""
    stage = Recipe.model_validate(load_recipe("slimflow")).phases[0]
    (query,) = next(loss_of(stage.terms[0], part * stage.share, OTHER))
    on_line = interpolate(BATCH.x[:, -1], BATCH.noise, query.t)
    assert torch.allclose(query.x, on_line, atol=1e-6) == own
