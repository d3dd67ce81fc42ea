"""Samples from a student or a teacher: deterministic noise by index, in batches, timed, evaluations counted."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import networks, pictures
from pipeline.device import pick_device
from pipeline.flow import uniform_times
from pipeline.noise import Stream, draw_labels, draw_noise
from pipeline.pictures import to_bytes
from pipeline.solver import Solver, integrate
from pipeline.teachers import load_teacher
from pipeline.teachers.teacher import Teacher
from trainer import checkpoint
from trainer.student import Student, sample

BATCH_SIZE = 256

# (noise [B, ...], label [B] or None) -> (samples [B, ...], evaluations per sample)
Draw = Callable[[Tensor, Tensor | None], tuple[Tensor, int]]


@dataclass(frozen=True)
class Sampler:
    """A way to turn noise into samples: a row of the report."""

    model: str  # "teacher" or "student"
    name: str
    draw: Draw


@dataclass(frozen=True)
class SampleBatch:
    """Samples float32 [B, C, H, W] on the CPU, what they cost, and how long they took."""

    samples: Tensor
    nfe: int
    wall_seconds: float


def student_sampler(student: Student, num_steps: int, t_start: float, t_end: float) -> Sampler:
    """Algorithm 1 on `num_steps` even steps: `num_steps` evaluations."""
    times = uniform_times(num_steps, t_start, t_end)

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        return sample(student, noise, times, label), num_steps

    return Sampler("student", f"{num_steps} step{'s' if num_steps > 1 else ''}", draw)


def teacher_sampler(teacher: Teacher, solver: Solver) -> Sampler:
    """The teacher's own ODE by `solver`."""
    times = uniform_times(1, teacher.t_start, teacher.t_end)

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        solution = integrate(teacher.velocity, teacher.t_start * noise, times, label, solver)
        return solution.states[-1], solution.nfe

    return Sampler("teacher", str(solver), draw)


def draw_samples(
    sampler: Sampler,
    shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    num_samples: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[SampleBatch]:
    """Samples 0 to `num_samples` - 1 of `seed`: sample i is the same whatever else is drawn.

    (Of an adaptive solver only up to its tolerance: it picks its steps for a whole batch.)
    """
    for first in range(0, num_samples, batch_size):
        indices = range(first, min(first + batch_size, num_samples))
        noise = torch.from_numpy(draw_noise(seed, indices, shape, Stream.EVALUATION_NOISE)).to(device)
        labels = torch.from_numpy(draw_labels(seed, indices, num_classes, Stream.EVALUATION_LABEL)).to(device)
        started = time.monotonic()
        samples, nfe = sampler.draw(noise, labels if num_classes else None)
        samples = samples.float().cpu()
        yield SampleBatch(samples, nfe, time.monotonic() - started)


def save_grid(path: Path, out: Path, num_images: int, num_steps: int, seed: int, device_name: str) -> None:
    """Write a PNG of `num_images` samples: a student's by Algorithm 1, a trained teacher's by Euler steps.

    Raises:
        BadInput: no checkpoint at `path`, or `out` cannot be written.
    """
    device = pick_device(device_name)
    folder = checkpoint.find(path)
    info = checkpoint.read_info(folder)
    if info.trains == "student":
        network = networks.load(folder / checkpoint.EMA).to(device)
        sampler = student_sampler(Student(network), num_steps, info.t_start, info.t_end)
    else:
        teacher = load_teacher(str(folder), device)
        sampler = teacher_sampler(teacher, Solver(name="euler", num_steps=num_steps))
        assert teacher.network is not None
        network = teacher.network
    drawn = draw_samples(
        sampler, network.config.shape, network.config.num_classes, seed, num_images, BATCH_SIZE, device
    )
    samples = torch.cat([batch.samples for batch in drawn])
    pictures.save_square(out, to_bytes(samples.numpy(), info.data_range))
