"""Strips from noise to image: the states of the teacher's path, and the student's, from the same noise."""

import torch

from eval.models import EvaluatedModels
from pipeline.common.image_grid import Images, to_bytes
from pipeline.flow.noise import draw_start
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from trainer.distillation.student import sample_path

NUM_STRIPS = 3
NUM_STEPS = 8


@torch.no_grad()
def draw_strips(subject: EvaluatedModels, solver: Solver, seed: int, device: torch.device) -> dict[str, Images]:
    """By title, the states at `NUM_STEPS` + 1 even times, uint8 [T, C, H, W], of the first noises of the evaluation.

    A fixed-step solver of fewer steps has fewer states.
    """
    noise, label = draw_start(seed, range(NUM_STRIPS), subject.shape, subject.num_classes, device)
    times = uniform_times(min(NUM_STEPS, solver.num_steps or NUM_STEPS), subject.t_start, subject.t_end)
    paths = {}
    start = times[0].to(noise) * noise
    if subject.teacher is not None:
        paths["teacher"] = integrate(subject.teacher.velocity, start, times, label, solver).states
    if subject.student is not None:
        paths["student"] = torch.stack(list(sample_path(subject.student, start, times, label)))
    return {
        f"{model}, noise {row + 1}": to_bytes(states[:, row].float().cpu().numpy(), subject.data_range)
        for row in range(NUM_STRIPS)
        for model, states in paths.items()
    }
