"""Samplers that turn noise into samples: a student's steps or a teacher's solver. Noise is a function of its index."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline.common import image_grid
from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput
from pipeline.common.image_grid import to_bytes
from pipeline.flow.noise import draw_start
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from trainer.checkpoints.model import find_model
from trainer.distillation.student import Student, sample

BATCH_SIZE = 256

# (noise [B, ...], label [B] or None) -> (samples [B, ...], evaluations per sample)
Draw = Callable[[Tensor, Tensor | None], tuple[Tensor, int]]


@dataclass(frozen=True)
class Sampler:
    """A way to turn noise into samples: a row of the report. `name` is unique among those of its model."""

    group: Literal["solver", "few-step", "student"]
    name: str
    draw: Draw

    @property
    def model(self) -> Literal["teacher", "student"]:
        return "student" if self.group == "student" else "teacher"

    @property
    def title(self) -> str:
        return f"{self.model}, {self.name}"


@dataclass(frozen=True)
class SampleBatch:
    """Samples float32 [B, C, H, W] on the CPU, evaluations per sample, and the seconds that drawing took."""

    samples: Tensor
    nfe: int
    wall_seconds: float


def student_sampler(student: Student, steps: int | Sequence[float], t_start: float, t_end: float) -> Sampler:
    """Algorithm 1 in `steps` even steps, or through the times `steps`; each step is one evaluation.

    Raises:
        BadInput: the times do not fall from `t_start` to `t_end`.
    """
    if isinstance(steps, int):
        times, name = uniform_times(steps, t_start, t_end), f"{steps} step{'s' if steps > 1 else ''}"
    else:
        times, name = torch.tensor(steps, dtype=torch.float64), f"times {', '.join(f'{t:g}' for t in steps)}"
        if len(times) < 2 or (steps[0], steps[-1]) != (t_start, t_end) or bool((times.diff() >= 0).any()):
            raise BadInput(f"steps {list(steps)}: wanted times that fall from {t_start:g} to {t_end:g}, both included")

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        return sample(student, noise, times, label), len(times) - 1

    return Sampler("student", name, draw)


def teacher_sampler(teacher: Teacher, solver: Solver) -> Sampler:
    """The teacher's ODE from `t_start` to `t_end`, integrated by `solver`."""
    times = uniform_times(1, teacher.t_start, teacher.t_end)

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        solution = integrate(teacher.velocity, teacher.t_start * noise, times, label, solver)
        return solution.states[-1], solution.nfe

    return Sampler("solver", str(solver), draw)


def draw_samples(
    sampler: Sampler,
    shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    indices: range,
    batch_size: int,
    device: torch.device,
    classes: Sequence[int] | None = None,
) -> Iterator[SampleBatch]:
    """Batches of the samples `indices` of `seed`, with labels of `classes`, by default of all.

    Sample i does not depend on which others are drawn.

    (With an adaptive solver, only up to its tolerance: it chooses steps for a whole batch.)
    """
    for first in range(indices.start, indices.stop, batch_size):
        batch = range(first, min(first + batch_size, indices.stop))
        noise, label = draw_start(seed, batch, shape, num_classes, device, classes)
        started = time.monotonic()
        samples, nfe = sampler.draw(noise, label)
        samples = samples.float().cpu()
        yield SampleBatch(samples, nfe, time.monotonic() - started)


def save_grid(source: str | Path, out: Path, indices: range, num_steps: int, seed: int, device_name: str) -> None:
    """Write a PNG of the samples `indices` of `seed`: by a student's Algorithm 1, or a trained teacher's Euler steps.

    Raises:
        BadInput: `source` names no model (see `find_model`), or `out` cannot be written.
    """
    device = pick_device(device_name)
    model = find_model(source)
    info = model.info
    shape: tuple[int, ...]
    if info.trains == "student":
        network = model.load().to(device)
        shape, num_classes = network.config.shape, network.config.num_classes
        sampler = student_sampler(Student(network), num_steps, info.t_start, info.t_end)
    else:
        teacher = load_teacher(str(model.weights), device)
        shape, num_classes = teacher.shape, teacher.num_classes
        sampler = teacher_sampler(teacher, Solver(name="euler", num_steps=num_steps))
    batches = draw_samples(sampler, shape, num_classes, seed, indices, BATCH_SIZE, device)
    samples = torch.cat([batch.samples for batch in batches])
    image_grid.save_square(out, to_bytes(samples.numpy(), info.data_range))
