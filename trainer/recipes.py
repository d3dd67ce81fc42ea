"""Recipes: which losses, at which weights, over which times, in which phase of a training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.flow import interpolate, match_dims
from pipeline.networks import Network
from trainer import losses
from trainer.stream import Batch, ImageBatch, TrajectoryBatch
from trainer.student import Student

# A loss with its times: (model, batch, rng) -> [B]. Times are drawn on the CPU: the same on every device.
Objective = Callable[[Any, Any, torch.Generator], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss of a phase, on every `stride`-th row of the batch from the `first`.

    A loss that reads every second row costs half, so that the others can have more steps.
    """

    name: str
    objective: Objective
    weight: float = 1.0
    first: int = 0
    stride: int = 1

    def __call__(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
        """The mean of the loss over its rows."""
        return self.objective(model, batch.rows(slice(self.first, None, self.stride)), rng).mean()


@dataclass(frozen=True)
class Phase:
    """Losses minimised together during `share` of the training."""

    share: float
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Recipe:
    """What is trained ("student" on trajectories, or "teacher" on images), and how."""

    about: str
    trains: Literal["student", "teacher"]
    phases: tuple[Phase, ...]
    needs_velocities: bool = False

    def phase(self, step: int, num_steps: int) -> Phase:
        """The phase that `step` of `num_steps` belongs to."""
        end = 0.0
        for phase in self.phases:
            end += phase.share * num_steps
            if step < end:
                return phase
        return self.phases[-1]


def output(student: Student, batch: TrajectoryBatch, rng: torch.Generator) -> Tensor:
    """Eq. 8, from the noise to the sample."""
    t, s = batch.times[:, 0], batch.times[:, -1]
    return losses.output_loss(student, batch.x[:, 0], t, batch.x[:, -1], s, batch.label)


def velocity_on_line(student: Student, batch: TrajectoryBatch, rng: torch.Generator) -> Tensor:
    """Eq. 9 on the straight line from sample to noise, t uniform over the flow, target noise - sample."""
    start, end = batch.times[:, 0], batch.times[:, -1]
    noise, sample = batch.x[:, 0] / match_dims(start, batch.x[:, 0]), batch.x[:, -1]
    t = _between(end, start, rng)
    return losses.velocity_loss(student, interpolate(sample, noise, t), t, noise - sample, batch.label)


def velocity_at_states(student: Student, batch: TrajectoryBatch, rng: torch.Generator) -> Tensor:
    """Eq. 9 on a stored state, any with equal chance, with the teacher's velocity there."""
    assert batch.velocity is not None
    rows, i = _rows(batch), _integers(rng, batch, 0, batch.times.shape[1])
    return losses.velocity_loss(student, batch.x[rows, i], batch.times[rows, i], batch.velocity[rows, i], batch.label)


def consistency(student: Student, batch: TrajectoryBatch, rng: torch.Generator) -> Tensor:
    """Eq. 10 from a stored state at t, s uniform from the end to t, by way of the midpoint m = (t + s) / 2."""
    rows, i = _rows(batch), _integers(rng, batch, 0, batch.times.shape[1] - 1)
    t = batch.times[rows, i]
    s = _between(batch.times[:, -1], t, rng)
    return losses.consistency_loss(student, batch.x[rows, i], t, (t + s) / 2, s, batch.label)


def soft_consistency(student: Student, batch: TrajectoryBatch, rng: torch.Generator) -> Tensor:
    """Eq. 11 over stored states: t any but the last, s any after it, u any after t up to s itself."""
    last = batch.times.shape[1] - 1
    rows = _rows(batch)
    i = _integers(rng, batch, 0, last)
    j = _integers(rng, batch, i + 1, last + 1)
    k = _integers(rng, batch, i + 1, j + 1)
    x, times = batch.x, batch.times
    return losses.soft_consistency_loss(
        student, x[rows, i], times[rows, i], x[rows, k], times[rows, k], times[rows, j], batch.label
    )


def flow_matching(network: Network, batch: ImageBatch, rng: torch.Generator) -> Tensor:
    """Straight-line flow matching, t uniform in [0, 1]: one time in each of B strata, which lowers the variance."""
    size = len(batch.data)
    t = ((torch.randperm(size, generator=rng) + torch.rand(size, generator=rng)) / size).to(batch.data.device)
    noise = torch.randn(batch.data.shape, generator=rng).to(batch.data.device)
    label = batch.label
    if label is not None and network.config.label_dropout:
        dropped = torch.rand(size, generator=rng) < network.config.label_dropout
        label = label.masked_fill(dropped.to(label.device), -1)
    return losses.flow_matching_loss(network, batch.data, noise, t, label)


def _between(low: Tensor, high: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform times [B] from `low` to `high` [B]."""
    return low + (high - low) * torch.rand(len(low), generator=rng).to(low.device)


def _rows(batch: TrajectoryBatch) -> Tensor:
    return torch.arange(len(batch.x), device=batch.x.device)


def _integers(rng: torch.Generator, batch: TrajectoryBatch, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Uniform integers [B] in [low, high), on the batch's device."""
    u = torch.rand(len(batch.x), generator=rng, dtype=torch.float64).to(batch.x.device)
    return low + (u * (high - low)).long()


RECIPES: dict[str, Recipe] = {
    # On digits, consistency at a tenth of the output loss was as good at one evaluation as at its full weight, and
    # better at two and four; at half the rows of both other losses the steps saved bought more than the rows.
    "anchored": Recipe(
        "output + velocity at the stored states + soft consistency between them (our default)",
        "student",
        (
            Phase(
                1.0,
                (
                    Term("output", output),
                    Term("velocity", velocity_at_states, 0.1, first=0, stride=2),
                    Term("consistency", soft_consistency, 0.1, first=1, stride=2),
                ),
            ),
        ),
        needs_velocities=True,
    ),
    "traflow": Recipe(
        "the paper's two phases: consistency (Eq. 10), then output + velocity (Eqs. 8, 9)",
        "student",
        (
            Phase(0.5, (Term("consistency", consistency),)),
            Phase(0.5, (Term("output", output), Term("velocity", velocity_on_line, 0.1))),
        ),
    ),
    "flow-matching": Recipe(
        "a teacher on an image set: the velocity of the straight lines from noise to data",
        "teacher",
        (Phase(1.0, (Term("velocity", flow_matching),)),),
    ),
}
