"""Strips from noise to image: the states of the teacher's and the student's paths from the same noise."""

from itertools import pairwise

import torch
from torch import Tensor

from eval.models import EvaluatedModels
from eval.sampling.samplers import draw_start
from pipeline.common.image_grid import Images, to_bytes
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate

NUM_STRIPS = 3
NUM_STEPS = 8


@torch.no_grad()
def draw_strips(models: EvaluatedModels, solver: Solver, seed: int, device: torch.device) -> dict[str, Images]:
    """By title, the states uint8 [T, C, H, W] at T = `NUM_STEPS` + 1 even times, from the evaluation's first noises.

    A fixed-step solver with fewer steps gives fewer states.
    """
    noise, label = draw_start(seed, range(NUM_STRIPS), models.shape, models.num_classes, device)
    times = uniform_times(min(NUM_STEPS, solver.num_steps or NUM_STEPS), models.t_start, models.t_end)
    paths = {}
    if models.teacher is not None:
        paths["teacher"] = integrate(models.teacher.velocity, times[0].item() * noise, times, label, solver).states
    if models.student is not None:
        paths["student"] = _student_path(models, noise, times, label)
    return {
        f"{model}, noise {row + 1}": to_bytes(states[:, row].float().cpu().numpy(), models.data_range)
        for row in range(NUM_STRIPS)
        for model, states in paths.items()
    }


def _student_path(models: EvaluatedModels, noise: Tensor, times: Tensor, label: Tensor | None) -> Tensor:
    """The states of Algorithm 1 at `times` [T]: [T, B, ...]."""
    assert models.student is not None
    states = [times[0].to(noise) * noise]
    for t, s in pairwise(times.to(noise)):
        x = states[-1]
        states.append(models.student(x, t.expand(len(x)), s.expand(len(x)), label))
    return torch.stack(states)
