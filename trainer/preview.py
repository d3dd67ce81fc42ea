"""Samples of a network in training: from the same noise, a row for each number of evaluations."""

from pathlib import Path

from pipeline.common import image_grid
from pipeline.common.image_grid import Images, has_pictures, num_shown, to_pictures
from pipeline.common.plural import counted
from pipeline.flow.noise import draw_start
from pipeline.flow.path import step_times, uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.networks import Network, picture_shape
from pipeline.teachers.classes import trained_labels
from pipeline.teachers.teacher import NetworkVelocity
from trainer.checkpoints.checkpoint import Provenance
from trainer.config import TrainConfig
from trainer.distillation.student import FEW_STEPS, Student, sample

FILE = "samples.png"
NUM_PICTURES = 12
TEACHER_SOLVER = Solver(name="rk4", num_steps=16)


def draw(config: TrainConfig, network: Network, provenance: Provenance) -> dict[str, Images]:
    """By title, rows of pictures, uint8 [N, C, H, W], of `network` (an average, in evaluation mode).

    The noise depends on the seed alone, so that the rows of one run can be compared.
    """
    device = next(network.parameters()).device
    shape, num_classes = network.config.shape, network.config.num_classes
    trained = trained_labels(provenance.classes, num_classes)
    noise, label = draw_start(config.seed, range(num_shown(shape, NUM_PICTURES)), shape, num_classes, device, trained)
    rows = {}
    if config.recipe.trains == "student":
        student = Student(network)
        for steps in FEW_STEPS:
            times = step_times(steps, provenance.t_start, provenance.t_end, config.recipe.step_shift)
            rows[counted(steps, "evaluation")] = sample(student, noise, times, label)
    else:
        start = network.config.t_start
        solution = integrate(NetworkVelocity(network), start * noise, uniform_times(1, start), label, TEACHER_SOLVER)
        rows[f"{TEACHER_SOLVER.name}, {TEACHER_SOLVER.num_steps} steps"] = solution.states[-1]
    return {title: to_pictures(x.float().cpu().numpy(), provenance.data_range) for title, x in rows.items()}


def is_saved(path: Path, network: Network) -> bool:
    """Whether `save` has written what there is to write."""
    return path.exists() or not can_draw(network)


def can_draw(network: Network) -> bool:
    """Whether samples of `network` have pictures; latents stay latents in training."""
    return has_pictures(picture_shape(network.config, can_decode=False))


def save(path: Path, config: TrainConfig, network: Network, provenance: Provenance) -> None:
    """Write the rows of `draw` as a PNG, unless samples have no pictures."""
    if can_draw(network):
        image_grid.save_rows(path, draw(config, network, provenance))
