"""Measure the cost of accuracy with a teacher: evaluations, error and time of each solver setting."""

import time
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.common.progress import Advance
from pipeline.flow.numerics import fixed_numerics
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, SolverFailed, integrate
from pipeline.teachers.check import draw_start
from pipeline.teachers.teacher import Teacher, errors_named_after

REFERENCE = Solver(name="dopri5", rtol=1e-7, atol=1e-7)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
SOLVERS = (
    *(Solver(name=name, rtol=tolerance, atol=tolerance) for name in ("dopri5", "bosh3") for tolerance in TOLERANCES),
    *(Solver(name="rk4", num_steps=steps) for steps in (2, 4, 8, 16, 32)),
    *(Solver(name=name, num_steps=steps) for name in ("heun2", "midpoint") for steps in (4, 8, 16, 32)),
    *(Solver(name="euler", num_steps=steps) for steps in (8, 16, 32, 64, 128)),
)


@dataclass(frozen=True)
class Point:
    """The cost and the error of one solver setting."""

    solver: Solver
    nfe: int  # evaluations per sample
    # Quantiles of the samples' RMS errors against the reference. No mean: a few samples that start between two basins
    # may end in the other one, and would dominate it.
    median: float
    p90: float  # the 90th-percentile error, by which settings are compared
    worst: float
    seconds: float  # wall time per sample


@dataclass(frozen=True)
class ProbeResult:
    """Every solver setting that finished, and the errors of those that failed."""

    points: list[Point]
    refusals: list[str]
    num_samples: int
    reference_nfe: int

    @property
    def efficient(self) -> list[Point]:
        """The Pareto front: points that no other one beats in both evaluations and error, by evaluations."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda point: (point.nfe, point.p90)):
            if not best or point.p90 < best[-1].p90:
                best.append(point)
        return best

    def recommend(self, max_error: float) -> Point:
        """The point of fewest evaluations whose 90th-percentile error is at most `max_error`.

        Raises:
            BadInput: there is none.
        """
        good = [point for point in self.efficient if point.p90 <= max_error]
        if not good:
            best = min((point.p90 for point in self.points), default=float("nan"))
            raise BadInput(f"no solver comes within {max_error:.1e} of the reference, the best within {best:.1e}")
        return good[0]

    def table(self, recommended: Point | None) -> Table:
        """The table that `probe` prints."""
        table = Table(
            "solver", "evaluations", "median error", "9 of 10", "worst", "ms per sample", "", box=None, pad_edge=False
        )
        for point in self.points:
            mark = "recommended" if point is recommended else "efficient" if point in self.efficient else ""
            figures = (
                f"{point.nfe}",
                f"{point.median:.1e}",
                f"{point.p90:.1e}",
                f"{point.worst:.1e}",
                f"{point.seconds * 1e3:.2f}",
            )
            table.add_row(str(point.solver), *figures, mark)
        return table


def probe(
    teacher: Teacher, num_samples: int, seed: int, device: torch.device, advance: Advance | None = None
) -> ProbeResult:
    """Integrate the first `num_samples` records of `seed` in one batch by each of `SOLVERS`, and by a tight reference.

    The reference is dopri5 at 1e-7 with its state in float64.

    Raises:
        SolverFailed: the reference could not be integrated.
        WorkFailed: the teacher raised an error.
    """
    noise, classes = draw_start(teacher, num_samples, seed, device)
    start = teacher.t_start * noise

    def widened(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return teacher.velocity(x.float(), t.float(), label).double()

    times = uniform_times(1, teacher.t_start, teacher.t_end)
    points: list[Point] = []
    refusals: list[str] = []
    with fixed_numerics(), errors_named_after(teacher):
        reference = integrate(widened, start.double(), times, classes, REFERENCE)
        for solver in SOLVERS:
            _wait(device)
            started = time.perf_counter()
            try:
                solution = integrate(teacher.velocity, start, times, classes, solver)
            except SolverFailed as error:
                refusals.append(str(error))
            else:
                _wait(device)
                seconds = (time.perf_counter() - started) / num_samples
                errors = (solution.states[-1].double() - reference.states[-1]).square().flatten(1).mean(1).sqrt()
                median, p90, worst = errors.quantile(errors.new_tensor([0.5, 0.9, 1.0])).tolist()
                points.append(Point(solver, solution.nfe, median, p90, worst, seconds))
            if advance:
                advance(1)
    return ProbeResult(points, refusals, num_samples, reference.nfe)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
