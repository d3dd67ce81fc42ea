"""Strips from noise to image: the states of the teacher's and the student's paths from the same noise."""

import numpy as np
import torch

from eval.models import EvaluatedModels
from pipeline.common.image_grid import Images, is_drawable, num_shown, shrink, to_bytes, to_pictures
from pipeline.flow.noise import draw_start
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from trainer.distillation.student import sample_path

NUM_STRIPS = 3
NUM_STEPS = 8


@torch.no_grad()
def draw_strips(models: EvaluatedModels, solver: Solver, seed: int, device: torch.device) -> dict[str, Images]:
    """By title, the states uint8 [T, C, H, W] at T = `NUM_STEPS` + 1 even times, from the evaluation's first noises.

    Of points in the plane a strip shows many at once. A fixed-step solver with fewer steps gives fewer states.
    """
    count = num_shown(models.picture_shape, NUM_STRIPS)
    noise, label = draw_start(
        seed, range(count), models.shape, models.num_classes, device, models.classes, models.prompts is not None
    )
    times = uniform_times(min(NUM_STEPS, solver.num_steps or NUM_STEPS), models.t_start, models.t_end)
    paths = {}
    start = times[0].to(noise) * noise
    if models.teacher is not None:
        paths["teacher"] = integrate(models.teacher.velocity, start, times, label, solver).states
    if models.student is not None:
        paths["student"] = torch.stack(list(sample_path(models.student, start, times, label)))
    if not is_drawable(models.picture_shape):
        return {
            model: np.concatenate([to_pictures(x.float().cpu().numpy(), models.data_range) for x in states])
            for model, states in paths.items()
        }
    shown = models.decode or (lambda x: x)
    return {
        f"{model}, noise {row + 1}": shrink(to_bytes(shown(states[:, row].float()).cpu().numpy(), models.data_range))
        for row in range(NUM_STRIPS)
        for model, states in paths.items()
    }
