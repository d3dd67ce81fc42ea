"""Check a teacher on a few samples: does it turn noise into data, at what cost, on how straight a path?"""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from pipeline.flow.noise import draw_labels, draw_noise
from pipeline.flow.numerics import fixed_numerics
from pipeline.flow.path import straightness, uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.teachers.classes import describe
from pipeline.teachers.teacher import Teacher, errors_named_after

SOLVER = Solver(name="dopri5", rtol=1e-5, atol=1e-5)
NUM_INTERVALS = 32  # of the times at which the straightness is measured
# With the wrong direction or scale, most values leave the range of the data.
MIN_SHARE = 0.9
MARGIN = 0.05  # of the range, on either side


@dataclass(frozen=True)
class Statistics:
    """Statistics of an array [B, ...]: moments, the share of values in the data range, correlation of neighbours."""

    mean: float
    std: float
    share: float
    correlation: float | None  # of horizontally adjacent pixels; None if the arrays are not images


@dataclass(frozen=True)
class TeacherCheck:
    """The result of `teachers check`; `samples` [B, *shape] are on the CPU."""

    teacher: Teacher
    noise: Statistics
    data: Statistics
    nfe: int
    straightness: float
    samples: Tensor

    @property
    def is_data_like(self) -> bool:
        """Whether the samples have the range of data."""
        return self.data.share >= MIN_SHARE

    @property
    def complaint(self) -> str:
        """The error message for samples that are not."""
        low, high = self.teacher.data_range
        return (
            f"wanted at least {MIN_SHARE:.0%} of the values in [{low:g}, {high:g}]; there are {self.data.share:.0%}: "
            "does its time run from 1, noise, to 0, data, and its velocity point from data to noise?"
        )

    def table(self) -> Table:
        """The table that `teachers check` prints."""
        teacher, (low, high) = self.teacher, self.teacher.data_range
        shown = Table("", "noise", "samples", box=None, pad_edge=False)
        shown.add_row("mean", f"{self.noise.mean:.3f}", f"{self.data.mean:.3f}")
        shown.add_row("standard deviation", f"{self.noise.std:.3f}", f"{self.data.std:.3f}")
        shown.add_row(f"values in [{low:g}, {high:g}]", f"{self.noise.share:.1%}", f"{self.data.share:.1%}")
        if self.noise.correlation is not None and self.data.correlation is not None:
            row = (f"{self.noise.correlation:.2f}", f"{self.data.correlation:.2f}")
            shown.add_row("correlation of neighbours", *row)
        shown.add_row("turns noise into data", "", "yes" if self.is_data_like else "NO")
        shown.add_row(f"evaluations of {SOLVER}", "", str(self.nfe))
        shown.add_row("straightness (0: straight)", "", f"{self.straightness:.4f}")
        shape = (
            f"{list(teacher.shape)}, {teacher.num_classes} classes" if teacher.num_classes else f"{list(teacher.shape)}"
        )
        shown.add_row("shape", "", shape)
        if teacher.classes:
            shown.add_row("trained on", "", describe(teacher.classes))
        if teacher.network is not None:
            count = sum(parameter.numel() for parameter in teacher.network.parameters())
            shown.add_row("parameters", "", f"{count:,}")
        shown.add_row("sha256", "", teacher.sha256)
        if teacher.weights:
            shown.add_row("weights", "", teacher.weights)
        return shown


def check_teacher(teacher: Teacher, num_samples: int, seed: int, device: torch.device) -> TeacherCheck:
    """Integrate the first `num_samples` records of `seed` in one batch, and measure the samples.

    Raises:
        SolverFailed: the integration failed.
        WorkFailed: the teacher raised an error.
    """
    noise, label = draw_start(teacher, num_samples, seed, device)
    times = uniform_times(NUM_INTERVALS, teacher.t_start, teacher.t_end)
    with fixed_numerics(), torch.no_grad(), errors_named_after(teacher):
        solution = integrate(teacher.velocity, teacher.t_start * noise, times, label, SOLVER)
        at_times = [
            teacher.velocity(x, t.to(x).expand(num_samples), label) for x, t in zip(solution.states, times, strict=True)
        ]
    samples = solution.states[-1].cpu()
    return TeacherCheck(
        teacher=teacher,
        noise=_statistics(noise.cpu(), teacher.data_range),
        data=_statistics(samples, teacher.data_range),
        nfe=solution.nfe,
        straightness=straightness(
            solution.states.movedim(0, 1).cpu(), torch.stack(at_times, dim=1).cpu(), times.expand(num_samples, -1)
        ),
        samples=samples,
    )


def draw_start(teacher: Teacher, num_samples: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The noise [B, *shape], and the labels [B] of a teacher with classes, of the first records of `seed`."""
    indices = range(num_samples)
    noise = torch.from_numpy(draw_noise(seed, indices, teacher.shape)).to(device)
    label = torch.from_numpy(draw_labels(seed, indices, teacher.num_classes, classes=teacher.labels)).to(device)
    return noise, label if teacher.num_classes else None


def _statistics(x: Tensor, data_range: tuple[float, float]) -> Statistics:
    x = x.double()
    low, high = data_range
    margin = MARGIN * (high - low)
    share = ((x >= low - margin) & (x <= high + margin)).double().mean()
    correlation = None
    if x.ndim == 4 and x.shape[-1] > 1:
        pairs = torch.stack([x[..., :-1].flatten(), x[..., 1:].flatten()])
        correlation = float(torch.corrcoef(pairs)[0, 1])
    return Statistics(float(x.mean()), float(x.std()), float(share), correlation)
