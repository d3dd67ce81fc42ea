"""Samplers that turn noise into samples: a student's steps or a teacher's solver. Noise is a function of its index."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eval.results import Group, row_title
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.flow.noise import draw_start
from pipeline.flow.path import step_times, uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.teachers.teacher import Decode, Teacher, errors_named_after
from trainer.distillation.student import Student, sample

BATCH_SIZE = 256
ADAPTIVE_EVALUATIONS = 100  # about as many as dopri5 takes at a tolerance of 1e-5

# (noise [B, ...], label [B] or None) -> (samples [B, ...], evaluations per sample)
Draw = Callable[[Tensor, Tensor | None], tuple[Tensor, int]]


@dataclass(frozen=True)
class Sampler:
    """A way to turn noise into samples: a row of the report. `name` is unique in its group."""

    group: Group | Literal["checkpoint"]  # a student of another checkpoint
    name: str
    draw: Draw
    evaluations: int = 1  # of a sample, estimated where the solver is adaptive
    decode: Decode | None = None  # to pictures, where it draws latents

    @property
    def cost(self) -> int:
        """Of a sample, about: its evaluations, and one for its features."""
        return self.evaluations + 1

    @property
    def row_group(self) -> Group:
        """That of its row in the report."""
        return "student" if self.group == "checkpoint" else self.group

    @property
    def model(self) -> Literal["teacher", "student"]:
        return "student" if self.row_group == "student" else "teacher"

    @property
    def is_brief(self) -> bool:
        """Whether one range of noise and the headline alone are enough, because there are many like it."""
        return self.group in ("few-step", "checkpoint")

    @property
    def title(self) -> str:
        return row_title(self.row_group, self.name)


@dataclass(frozen=True)
class SampleBatch:
    """Samples float32 [B, *shape] and labels int64 [B] on the CPU, evaluations per sample, seconds of drawing.

    Where the sampler draws latents and decodes them, `samples` are the pictures.
    """

    samples: Tensor
    labels: Tensor | None  # without classes
    nfe: int
    wall_seconds: float
    latents: Tensor | None = None


def student_sampler(
    student: Student, steps: int | Sequence[float], t_start: float, t_end: float, shift: float = 1.0
) -> Sampler:
    """Algorithm 1 in `steps` steps, even after `shift`, or through the times `steps`; each step is one evaluation.

    Raises:
        BadInput: the times do not fall from `t_start` to `t_end`.
    """
    if isinstance(steps, int):
        times, name = step_times(steps, t_start, t_end, shift), f"{steps} step{'s' if steps > 1 else ''}"
    else:
        times, name = torch.tensor(steps, dtype=torch.float64), f"times {', '.join(f'{t:g}' for t in steps)}"
        if len(times) < 2 or (steps[0], steps[-1]) != (t_start, t_end) or bool((times.diff() >= 0).any()):
            raise BadInput(f"steps {list(steps)}: wanted times that fall from {t_start:g} to {t_end:g}, both included")

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        return sample(student, noise, times, label), len(times) - 1

    return Sampler("student", name, draw, len(times) - 1)


def teacher_sampler(teacher: Teacher, solver: Solver) -> Sampler:
    """The teacher's ODE from `t_start` to `t_end`, integrated by `solver`."""
    times = uniform_times(1, teacher.t_start, teacher.t_end)

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        with errors_named_after(teacher):
            solution = integrate(teacher.velocity, teacher.t_start * noise, times, label, solver)
        return solution.states[-1], solution.nfe

    return Sampler("solver", str(solver), draw, solver.num_steps or ADAPTIVE_EVALUATIONS)


def draw_samples(
    sampler: Sampler,
    shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    indices: range,
    batch_size: int,
    device: torch.device,
    label: int | None = None,
    classes: Sequence[int] | None = None,
    in_turn: bool = False,
) -> Iterator[SampleBatch]:
    """Batches of the samples `indices` of `seed`, of the class `label` or of `classes` (by default all) at random.

    Prompts are drawn `in_turn`.

    Sample i does not depend on which others are drawn.

    (With an adaptive solver, only up to its tolerance: it chooses steps for a whole batch.)

    Raises:
        WorkFailed: a batch does not fit into the device's memory.
    """
    for first in range(indices.start, indices.stop, batch_size):
        batch = range(first, min(first + batch_size, indices.stop))
        noise, labels = draw_start(seed, batch, shape, num_classes, device, classes, in_turn)
        if labels is not None and label is not None:
            labels = torch.full_like(labels, label)
        started = time.monotonic()
        try:
            drawn, nfe = sampler.draw(noise, labels)
            samples = drawn if sampler.decode is None else sampler.decode(drawn)
        except (torch.OutOfMemoryError, WorkFailed) as error:
            if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                raise
            raise WorkFailed(
                f"{sampler.name}: a batch of {len(batch)} samples does not fit into the memory of {device}: "
                f"take a batch_size such as {max(1, len(batch) // 2)}, or another device"
            ) from error
        samples, latents = samples.float().cpu(), None if sampler.decode is None else drawn.float().cpu()
        seconds = time.monotonic() - started
        yield SampleBatch(samples, None if labels is None else labels.cpu(), nfe, seconds, latents)
