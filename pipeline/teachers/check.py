"""Check a teacher on a few samples: does it turn noise into data, at what cost, on how straight a path?"""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from pipeline.common.plural import counted
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
MIN_SPREAD = 0.005  # of the range: samples that differ less are one sample
MIN_RESPONSE = 0.05  # of the noise: how much the velocity at the start, which is noise less data, differs by sample
MIN_CORRELATION = 0.1  # of neighbours in pictures; in noise, and so in what an untrained network makes of it, it is 0
TIME_HINT = "does its time run from 1, noise, to 0, data, and its velocity point from data to noise?"
MIN_ESTIMATES = 0.5  # the share of estimates of the data in its range, below which the model lacks a clip


@dataclass(frozen=True)
class Statistics:
    """Statistics of an array [B, ...]: moments, the share of values in the data range, correlation of neighbours.

    `least` and `largest` bound 98 % of the values.
    """

    mean: float
    std: float
    least: float
    largest: float
    share: float
    correlation: float | None  # of horizontally adjacent pixels; None if the arrays are not images


@dataclass(frozen=True)
class TeacherCheck:
    """The result of `teachers check`; `samples` [B, *shape] are on the CPU, decoded where they are latents."""

    teacher: Teacher
    noise: Statistics
    data: Statistics
    nfe: int
    straightness: float
    samples: Tensor
    spread: float  # see `_spread`, of the samples
    response: float  # likewise, of the velocities at the start, in units of the noise's
    against_noise: bool  # whether the velocity at the start, which is noise less data, points against the noise
    against_way: bool  # or against the way from the sample to it
    estimates: float  # the share of values in the data range, of x_t - t v halfway

    @property
    def is_data_like(self) -> bool:
        """Whether the samples may be data: see `complaint`."""
        return not self.complaint

    @property
    def complaint(self) -> str:
        """Why the samples cannot be data, and what to look for; empty if they may be."""
        low, high = self.teacher.data_range
        if self.spread < MIN_SPREAD * (high - low):
            return (
                f"wanted samples that differ; their standard deviation is {self.spread:.1e}: "
                "the model has collapsed to one sample, or its velocity does not depend on x"
            )
        if self.response < MIN_RESPONSE:
            return (
                "wanted a velocity that takes the noise away; at the start it is the same for all noise: is the "
                "network trained, and were its weights loaded?"
            )
        if self.against_noise and self.against_way:
            return (
                "wanted a velocity that points from data to noise at the start; it points the other way: " + TIME_HINT
            )
        if self.is_noise:
            return (
                f"wanted pictures; neighbouring pixels are as unlike as in noise (correlation "
                f"{self.data.correlation:.2f}): is the network trained, and were its weights loaded?"
            )
        if self.data.share < MIN_SHARE:
            return (
                f"wanted at least {MIN_SHARE:.0%} of the values in [{low:g}, {high:g}]; there are {self.data.share:.0%}"
                f": {self._range_hint}"
            )
        return ""

    @property
    def is_noise(self) -> bool:
        """Whether a network's pictures are uncorrelated; a function's samples may be no pictures at all."""
        return self.teacher.network is not None and self.data.correlation is not None and self.is_white

    @property
    def is_white(self) -> bool:
        """Whether neighbours are as uncorrelated as those of the noise, as far as there are any."""
        return abs((self.data.correlation or 0) - (self.noise.correlation or 0)) < MIN_CORRELATION

    @property
    def _range_hint(self) -> str:
        low, high = self.teacher.data_range
        least, largest = self.data.least, self.data.largest
        lie = f"most lie in [{least:.3g}, {largest:.3g}]"
        if self.against_noise or (self.data.std > 0.9 and abs(self.data.mean) < self.data.std / 2 and self.is_white):
            return f"{lie}, about as widely as noise: {self._declare}; else {TIME_HINT}"
        if largest - least > 2 * (high - low):
            return f"{lie}: {self._declare}"
        if self.estimates < MIN_ESTIMATES:
            return (
                "its estimates of the data, x - t v, leave the range on the way: does its own sampler clip them "
                "(clip_denoised)? Then clip them in its velocity too: v = (x - (x - t v).clamp(low, high)) / t"
            )
        return (
            f"{lie}: {self._declare}; else is the velocity that of x = (1 - t) data + t noise, "
            "with noise of standard deviation 1?"
        )

    @property
    def _declare(self) -> str:
        """What to do if the samples are right and the range is not."""
        least, largest = f"{self.data.least:.2g}", f"{self.data.largest:.2g}"
        return f"if its data do too, give its Teacher about data_range=({least}, {largest})"

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
        classes = f", {counted(teacher.num_classes, 'class')}" if teacher.num_classes else ""
        shown.add_row("shape", "", f"{list(teacher.shape)}{classes}")
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
    noise, label = first_records(teacher, num_samples, seed, device)
    times = uniform_times(NUM_INTERVALS, teacher.t_start, teacher.t_end)
    with fixed_numerics(), torch.no_grad(), errors_named_after(teacher):
        solution = integrate(teacher.velocity, teacher.t_start * noise, times, label, SOLVER)
        at_times = [
            teacher.velocity(x, t.to(x).expand(num_samples), label) for x, t in zip(solution.states, times, strict=True)
        ]
    decode = teacher.decode or (lambda x: x)
    samples = solution.states[-1].cpu()
    with torch.no_grad():
        pictures, decoded_noise = decode(solution.states[-1]).cpu(), decode(noise).cpu()
    middle = NUM_INTERVALS // 2
    estimates = solution.states[middle] - float(times[middle]) * at_times[middle]
    return TeacherCheck(
        teacher=teacher,
        noise=_statistics(decoded_noise, teacher.data_range),
        data=_statistics(pictures, teacher.data_range),
        nfe=solution.nfe,
        straightness=straightness(
            solution.states.movedim(0, 1).cpu(), torch.stack(at_times, dim=1).cpu(), times.expand(num_samples, -1)
        ),
        samples=pictures,
        spread=_spread(samples, label),
        response=_spread(at_times[0], label) / _spread(noise, label),
        against_noise=_opposes(at_times[0], noise),
        against_way=_opposes(at_times[0], solution.states[0] - solution.states[-1]),
        estimates=_statistics(decode(estimates).cpu(), teacher.data_range).share,
    )


def _spread(x: Tensor, label: Tensor | None) -> float:
    """RMS deviation of the arrays [B, ...] from their mean, or that of their class; of one array's values from theirs.

    Classes with one array do not count where others have more.
    """
    groups = [x] if label is None else [x[label == one] for one in set(label.tolist())]
    groups = [group for group in groups if len(group) > 1] or [x]
    away = [(group - group.mean(0 if len(group) > 1 else None)).flatten() for group in groups]
    return float(torch.cat(away).double().square().mean().sqrt())


def _opposes(a: Tensor, b: Tensor) -> bool:
    """Whether the angle between the arrays is clearly more than a right one."""
    a, b = a.double().flatten(), b.double().flatten()
    return bool(a @ b < -0.1 * a.norm() * b.norm())


def first_records(teacher: Teacher, num_samples: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
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
    ordered = x.flatten().sort().values
    least, largest = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return Statistics(float(x.mean()), float(x.std()), float(least), float(largest), float(share), correlation)
