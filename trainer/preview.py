"""Samples of a network in training: from the same noise, a row for each number of evaluations."""

from pathlib import Path

from pipeline.common import image_grid
from pipeline.common.image_grid import Images, to_bytes
from pipeline.flow.noise import draw_start
from pipeline.flow.path import uniform_times
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
    """By title, rows of samples, uint8 [N, C, H, W], of `network` (an average, in evaluation mode).

    The noise depends on the seed alone, so that the rows of one run can be compared.
    """
    device = next(network.parameters()).device
    shape, num_classes = network.config.shape, network.config.num_classes
    trained = trained_labels(provenance.classes, num_classes)
    noise, label = draw_start(config.seed, range(NUM_PICTURES), shape, num_classes, device, trained)
    rows = {}
    if config.recipe.trains == "student":
        student = Student(network)
        for steps in FEW_STEPS:
            times = uniform_times(steps, provenance.t_start, provenance.t_end)
            rows[f"{steps} evaluation{'s' if steps > 1 else ''}"] = sample(student, noise, times, label)
    else:
        start = network.config.t_start
        solution = integrate(NetworkVelocity(network), start * noise, uniform_times(1, start), label, TEACHER_SOLVER)
        rows[f"{TEACHER_SOLVER.name}, {TEACHER_SOLVER.num_steps} steps"] = solution.states[-1]
    return {title: to_bytes(x.float().cpu().numpy(), provenance.data_range) for title, x in rows.items()}


def can_draw(network: Network) -> bool:
    """Whether samples of `network` are pictures; latents stay latents in training."""
    return image_grid.is_drawable(picture_shape(network.config, can_decode=False))


def save(path: Path, config: TrainConfig, network: Network, provenance: Provenance) -> None:
    """Write the rows of `draw` as a PNG, unless samples are no images."""
    if can_draw(network):
        image_grid.save_rows(path, draw(config, network, provenance))
