"""Check a teacher on a few samples: does it turn noise into data, at what cost, on how straight a path?"""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from pipeline.common.image_grid import num_shown
from pipeline.common.plural import counted
from pipeline.flow.noise import draw_labels, draw_noise
from pipeline.flow.numerics import fixed_numerics
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.networks import draws_in_turn
from pipeline.teachers.classes import describe, shown_classes
from pipeline.teachers.coupling import warn_of_drift
from pipeline.teachers.teacher import OwnedVelocity, Teacher, errors_named_after
from pipeline.teachers.verdict import Motion, Paths, Verdict, judge

SOLVER = Solver(name="dopri5", rtol=1e-5, atol=1e-5)
MIN_COLUMNS, MAX_COLUMNS = 2, 10  # pictures of a class
NUM_INTERVALS = 32  # of the times at which the straightness is measured


@dataclass(frozen=True)
class TeacherCheck:
    """The result of `teachers check`."""

    teacher: Teacher
    nfe: int
    verdict: Verdict
    motion: Motion
    warning: str  # what of the paths is unlike a flow's, though their ends may be right; empty if nothing

    def table(self) -> Table:
        """The table that `teachers check` prints."""
        teacher, (low, high) = self.teacher, self.teacher.data_range
        noise, data = self.verdict.noise, self.verdict.data
        shown = Table("", "noise", "samples", box=None, pad_edge=False)
        shown.add_row("mean", f"{noise.mean:.3f}", f"{data.mean:.3f}")
        shown.add_row("standard deviation", f"{noise.std:.3f}", f"{data.std:.3f}")
        shown.add_row(f"values in [{low:g}, {high:g}]", f"{noise.share:.1%}", f"{data.share:.1%}")
        if noise.correlation is not None and data.correlation is not None:
            row = (f"{noise.correlation:.2f}", f"{data.correlation:.2f}")
            shown.add_row("correlation of neighbours", *row)
        shown.add_row("turns noise into data", "", "NO" if self.verdict.complaint else "yes")
        shown.add_row(f"evaluations of {SOLVER}", "", str(self.nfe))
        shown.add_row("straightness (0: straight)", "", f"{self.motion.straightness:.4f}")
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
    paths = Paths(noise, solution.states.movedim(0, 1), torch.stack(at_times, dim=1), times, label)
    with torch.no_grad():
        verdict = judge(paths, teacher.data_range, teacher.decode, is_network=teacher.network is not None)
    assert verdict.motion is not None
    # Guidance changes the distribution of the states, and our own networks' conventions are known.
    drifts = warn_of_drift(paths) if isinstance(teacher.velocity, OwnedVelocity) else ""
    return TeacherCheck(teacher, solution.nfe, verdict, verdict.motion, verdict.warning or drifts)


def draw_classes(teacher: Teacher, num_samples: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """About `num_samples` samples [B, *picture_shape] in all, by the title of their class, each from the same noise.

    Of classes that were trained; of many, evenly spaced ones. None where labels stand for prompts.

    Raises:
        SolverFailed: the integration failed.
        WorkFailed: the teacher raised an error.
    """
    if not teacher.num_classes or draws_in_turn(teacher.network):
        return {}
    classes = shown_classes(teacher.labels or range(teacher.num_classes), teacher.classes)
    count = min(max(MIN_COLUMNS, num_samples // len(classes)), num_shown(teacher.picture_shape, MAX_COLUMNS))
    noise, _ = first_records(teacher, count, seed, device)
    labels = torch.tensor(list(classes), dtype=torch.int64, device=device).repeat_interleave(count)
    # In batches of as many as were checked: a function may take no other.
    rows = torch.arange(-(-len(labels) // num_samples) * num_samples, device=device) % len(labels)
    batches = [_draw_labels(teacher, noise[batch % count], labels[batch]) for batch in torch.split(rows, num_samples)]
    return dict(zip(classes.values(), torch.split(torch.cat(batches)[: len(labels)], count), strict=True))


def _draw_labels(teacher: Teacher, noise: Tensor, labels: Tensor) -> Tensor:
    times = uniform_times(1, teacher.t_start, teacher.t_end)
    with fixed_numerics(), torch.no_grad(), errors_named_after(teacher):
        samples = integrate(teacher.velocity, teacher.t_start * noise, times, labels, SOLVER).states[-1]
        return (samples if teacher.decode is None else teacher.decode(samples)).cpu()


def first_records(teacher: Teacher, num_samples: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The noise [B, *shape], and the labels [B] of a teacher with classes, of the first records of `seed`."""
    indices = range(num_samples)
    noise = torch.from_numpy(draw_noise(seed, indices, teacher.shape)).to(device)
    label = torch.from_numpy(draw_labels(seed, indices, teacher.num_classes, classes=teacher.labels)).to(device)
    return noise, label if teacher.num_classes else None
