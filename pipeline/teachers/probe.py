"""Measure the cost of accuracy with a teacher: evaluations, error and time of each solver setting and precision.

Where asked, each is measured again with the teacher compiled, and on a GPU once more with it replayed as CUDA graphs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from rich.table import Table
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.common.progress import Advance
from pipeline.common.suggestions import suggest
from pipeline.dataset.plan import stratified_times
from pipeline.flow.numerics import Precision, check_precision, fixed_numerics
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, SolverFailed, integrate
from pipeline.teachers.check import first_records
from pipeline.teachers.compilation import Compiled, check_compilable, compile_teacher, ways_to_run
from pipeline.teachers.precision import as_on_gpu
from pipeline.teachers.teacher import Teacher, errors_named_after

REFERENCE = Solver(name="dopri5", rtol=1e-7, atol=1e-7)
FIRST = Solver(name="euler", num_steps=1)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
SOLVERS = (
    *(Solver(name=name, rtol=tolerance, atol=tolerance) for name in ("dopri5", "bosh3") for tolerance in TOLERANCES),
    *(Solver(name="rk4", num_steps=steps) for steps in (2, 4, 8, 16, 32)),
    *(Solver(name=name, num_steps=steps) for name in ("heun2", "midpoint") for steps in (4, 8, 16, 32)),
    *(Solver(name="euler", num_steps=steps) for steps in (8, 16, 32, 64, 128)),
)


@dataclass(frozen=True)
class Point:
    """The cost and the error of one solver setting in one precision."""

    solver: Solver
    precision: Precision
    nfe: int  # evaluations per sample
    # Quantiles of the samples' RMS errors against the reference. No mean: a few samples that start between two basins
    # may end in the other one, and would dominate it.
    median: float
    p90: float  # the 90th-percentile error, by which settings are compared
    worst: float
    seconds: float  # wall time per sample
    compiled: Compiled | None = None  # None: nothing else was measured

    @property
    def flags(self) -> str:
        """The command-line flags of `generate` for this point."""
        precision = "" if self.precision == "fp32" else f" --precision {self.precision}"
        compiled = "" if self.compiled is None else f" --set compile={str(self.compiled).lower()}"
        return f"{self.solver.flags}{precision}{compiled}"

    @property
    def arithmetic(self) -> str:
        """The precision, and how the teacher was compiled, if it was."""
        kernels = {"graphs": ", CUDA graphs", True: ", compiled"}.get(self.compiled or "", "")
        return f"{self.precision}{kernels}"


@dataclass(frozen=True)
class ProbeResult:
    """Every solver setting that finished, and the errors of those that failed.

    The cost of a point is its evaluations, and its seconds where evaluations do not all cost the same: in several
    precisions of a GPU, or compiled and not.
    """

    points: list[Point]
    refusals: list[str]
    num_samples: int
    reference_nfe: int
    num_states: int = 0
    is_complete: bool = True  # False: interrupted before the last setting
    by_seconds: bool = False

    def cost(self, point: Point) -> float:
        """What an efficient point has little of."""
        return point.seconds if self.by_seconds else point.nfe

    @property
    def efficient(self) -> list[Point]:
        """The Pareto front: points that no other one beats in both cost and error, by cost."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda point: (self.cost(point), point.p90)):
            if not best or point.p90 < best[-1].p90:
                best.append(point)
        return best

    def recommend(self, max_error: float) -> Point:
        """The cheapest point whose 90th-percentile error is at most `max_error`.

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
            "solver",
            "precision",
            "evaluations",
            "median error",
            "9 of 10",
            "worst",
            "ms per sample",
            "",
            box=None,
            pad_edge=False,
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
            table.add_row(str(point.solver), point.arithmetic, *figures, mark)
        return table


def choose_solvers(names: str | None) -> tuple[Solver, ...]:
    """The settings in `SOLVERS` of the solvers in `names`, separated by commas; all without names.

    Raises:
        BadInput: a name is not among them.
    """
    known = tuple(dict.fromkeys(solver.name for solver in SOLVERS))
    wanted = known if names is None else tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in wanted if name not in known]:
        close = suggest(unknown[0], known)
        raise BadInput(f"no solver {unknown[0]!r} to measure: wanted some of {','.join(known)}{close}")
    return tuple(solver for solver in SOLVERS if solver.name in wanted)


def probe(
    teacher: Teacher,
    num_samples: int,
    seed: int,
    device: torch.device,
    advance: Advance | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    solvers: Sequence[Solver] = SOLVERS,
    num_states: int = 0,
    compiled: bool = False,
) -> ProbeResult:
    """Integrate the first `num_samples` records of `seed` in one batch by each of `solvers` in each of `precisions`.

    If `compiled`, all of it again with the teacher compiled, in all `ways_to_run`, and `teacher` stays so.
    All are measured against a tight reference, dopri5 at 1e-7 with its state in float64 and its teacher in fp32. A
    fixed-step solver steps on the jittered times of `num_states` states, as in `generate`, or of as many as it has
    steps between. A precision that the device lacks is imitated: its errors and evaluations count, its seconds mean
    nothing. An interrupt ends the measurement, and keeps what is finished.

    Raises:
        SolverFailed: the reference could not be integrated.
        BadInput: `compiled`, and it cannot be compiled, or a precision is imitated.
        WorkFailed: the teacher raised an error.
    """
    if compiled:
        check_compilable(teacher, device)
        for precision in precisions:
            check_precision(precision, device)
    noise, classes = first_records(teacher, num_samples, seed, device)
    start = teacher.t_start * noise

    def widened(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return teacher.velocity(x.float(), t.float(), label).double()

    points: list[Point] = []
    refusals: list[str] = []
    with fixed_numerics(), errors_named_after(teacher):
        whole = uniform_times(1, teacher.t_start, teacher.t_end)
        reference = integrate(widened, start.double(), whole, classes, REFERENCE)
    end, is_complete = reference.states[-1], True
    try:
        for way in ways_to_run(device) if compiled else (None,):
            measured = compile_teacher(teacher, device, way or False)
            for precision, solver in product(precisions, solvers):
                times = _times(teacher, seed, solver, num_states)
                try:
                    point = _measure(measured, solver, precision, start, times, classes, end)
                    points.append(replace(point, compiled=way))
                except SolverFailed as error:
                    refusals.append(f"{error}, in {precision}")
                if advance:
                    advance(1)
    except KeyboardInterrupt:
        is_complete = False
    by_seconds = compiled or (device.type == "cuda" and len(precisions) > 1)
    return ProbeResult(points, refusals, num_samples, reference.nfe, num_states, is_complete, by_seconds)


def _times(teacher: Teacher, seed: int, solver: Solver, num_states: int) -> Tensor:
    """The times of the first batch of `generate` with this solver."""
    if solver.num_steps is not None:
        num_states = min(num_states, solver.num_steps - 1)
    return stratified_times(seed, 0, num_states, teacher.t_start, teacher.t_end)


def _measure(
    teacher: Teacher,
    solver: Solver,
    precision: Precision,
    start: Tensor,
    times: Tensor,
    classes: Tensor | None,
    end: Tensor,
) -> Point:
    """The cost of `solver` in `precision` from `start` [B, ...], and its error at the end against `end`, float64."""
    velocity = as_on_gpu(teacher.velocity, precision, start.device)
    with fixed_numerics(precision), errors_named_after(teacher):
        integrate(velocity, start, times[[0, -1]], classes, FIRST)  # kernels are chosen, or compiled
        _wait(start.device)
        started = time.perf_counter()
        solution = integrate(velocity, start, times, classes, solver)
        _wait(start.device)
        seconds = (time.perf_counter() - started) / len(start)
    errors = (solution.states[-1].double() - end).square().flatten(1).mean(1).sqrt()
    median, p90, worst = errors.quantile(errors.new_tensor([0.5, 0.9, 1.0])).tolist()
    return Point(solver, precision, solution.nfe, median, p90, worst, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
