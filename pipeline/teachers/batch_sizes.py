"""The largest batch that a GPU integrates, and the throughput of its teacher at each size on the way there."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.flow.numerics import Precision, fixed_numerics, in_precision
from pipeline.flow.solver import Velocity
from pipeline.teachers.teacher import Teacher, errors_named_after

SMALLEST, LARGEST = 32, 2**16
STAGES = 10  # states and slopes that the solvers hold at once, dopri5's seven slopes among them
LONGEST_SECONDS = 5.0  # of an evaluation: a larger batch has nothing left to gain


@dataclass(frozen=True)
class BatchSizes:
    """The teacher's rows a second by batch size, and the first size that did not fit."""

    rows_per_second: dict[int, float]
    too_large: int | None

    @property
    def largest(self) -> int:
        """The largest size that was tried and fits."""
        return max(self.rows_per_second, default=0)

    def check(self, batch_size: int) -> None:
        """Raises `BadInput` if `batch_size` does not fit."""
        if self.too_large is not None and batch_size >= self.too_large:
            raise BadInput(f"batch_size {batch_size} does not fit on this GPU; {self.largest} does")

    def __str__(self) -> str:
        speeds = ", ".join(f"{size}: {speed:,.0f}" for size, speed in self.rows_per_second.items())
        fits = f"{self.largest} fits, " + (f"{self.too_large} does not" if self.too_large else "no larger was tried")
        return f"batch sizes: {fits}; evaluations of one sample per second: {speeds or 'none'}"


def measure_batch_sizes(
    teacher: Teacher, precision: Precision, num_arrays: int, device: torch.device
) -> BatchSizes | None:
    """Evaluate `teacher`, not compiled, at doubled batch sizes until one does not fit.

    None on a CPU, which would swap or kill instead of refusing.

    Args:
        teacher: on `device`.
        precision: of the evaluations.
        num_arrays: states and velocities that a plan keeps of each sample.
        device: which.

    Raises:
        WorkFailed: the teacher raised something else.
    """
    if device.type != "cuda":
        return None
    with fixed_numerics(precision), torch.no_grad(), errors_named_after(teacher):
        return double_until_full(teacher, in_precision(teacher.velocity, precision), num_arrays + STAGES, device)


def double_until_full(teacher: Teacher, velocity: Velocity, num_arrays: int, device: torch.device) -> BatchSizes:
    """See `measure_batch_sizes`."""
    speeds: dict[int, float] = {}
    for size in _doubled():
        try:
            seconds = _seconds(teacher, velocity, size, num_arrays, device)
        except torch.OutOfMemoryError:
            _release(device)
            return BatchSizes(speeds, size)
        speeds[size] = size / seconds
        if seconds > LONGEST_SECONDS:
            break
    return BatchSizes(speeds, None)


def _doubled() -> Iterator[int]:
    size = SMALLEST
    while size <= LARGEST:
        yield size
        size *= 2


def _seconds(teacher: Teacher, velocity: Velocity, size: int, num_arrays: int, device: torch.device) -> float:
    """Seconds of one evaluation of `size` rows, with the memory of an integration taken; the first one warms up."""
    held: Tensor = torch.empty(num_arrays, size, *teacher.shape, device=device)
    x, t = torch.zeros_like(held[0]), torch.ones(size, device=device)
    label = torch.zeros(size, dtype=torch.int64, device=device) if teacher.num_classes else None
    velocity(x, t, label)
    _wait(device)
    started = time.perf_counter()
    velocity(x, t, label)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
