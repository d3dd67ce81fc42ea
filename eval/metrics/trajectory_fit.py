"""How well a student fits stored trajectories of its teacher: from the shards, without the teacher."""

from contextlib import closing
from shlex import quote

import numpy as np
import torch
from torch import Tensor

from eval.prompts import conditioned
from eval.results import Grid, Line, TrajectoryFit
from pipeline.common.config import differences
from pipeline.common.errors import BadInput
from pipeline.dataset.conditions import ConditionTable
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import Plan
from pipeline.flow.path import straightness, uniform_times
from pipeline.storage.store import open_store
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.data.stream import TrajectoryBatch, TrajectoryStream
from trainer.distillation.distance import squared_error
from trainer.distillation.student import Student, sample_path

MAX_TIMES = 10  # of a grid: a data set's default number of states
PATH_STEPS = 16  # of the student's path, for its straightness
BATCH_SIZE = 64  # whole trajectories, the stored ones and the student's, are in memory
SEED = 0  # of the choice of records


def measure(student: Student, info: CheckpointInfo, data: str, num_records: int, device: torch.device) -> TrajectoryFit:
    """The fit of `student`, on `device`, to at most `num_records` of the trajectories in `data`.

    States and velocities are compared at the stored times, at most `MAX_TIMES` of them, evenly spaced from the start of
    a trajectory to its end. Stratified times differ between integration batches, so the grids show their means. `data`
    may be the student's training data or other trajectories of its teacher; `seen_in_training` tells whether it is the
    same data set. Every call takes the same records.

    Raises:
        BadInput: there is no data set, or it is not of the student's teacher.
        WorkFailed: the data set cannot be read.
    """
    manifest = read_manifest(open_store(data))
    _check_teacher(student, info, manifest.plan, data)
    num_records = min(num_records, manifest.num_records)
    totals: dict[str, Tensor] = {}
    with (
        conditioned(student.network, _conditions(manifest)),
        closing(TrajectoryStream(manifest, SEED, min(BATCH_SIZE, num_records))) as stream,
    ):
        for step, start in enumerate(range(0, num_records, stream.batch_size)):
            batch = stream.batch(step).rows(slice(num_records - start)).to(device)
            for name, mean in _means(student, batch, info.t_start, info.t_end).items():
                totals[name] = totals.get(name, torch.zeros(())) + mean.cpu() * len(batch) / num_records
    low, high = manifest.plan.data_range
    unit = 2 / (high - low)
    times = tuple(totals["times"].tolist())
    return TrajectoryFit(
        data=data,
        data_sha256=manifest.sha256,
        seen_in_training=manifest.sha256 == info.data_sha256,
        num_records=num_records,
        endpoint_rmse=float(totals["states"][0, -1].sqrt() * unit),
        state_rmse=Grid(times=times, values=_upper_triangle(totals["states"].sqrt() * unit)),
        consistency_gap=Grid(times=times, values=_upper_triangle(totals["gaps"].sqrt() * unit)),
        velocity_rmse=_line(times, totals["velocities"].sqrt() * unit) if "velocities" in totals else None,
        student_straightness=float(totals["student"] * unit**2),
        teacher_straightness=float(totals["teacher"] * unit**2) if "teacher" in totals else None,
    )


def _conditions(manifest: Manifest) -> ConditionTable | None:
    """What the labels of the trajectories stand for, where they are prompts."""
    conditions = manifest.plan.conditions
    return None if conditions is None else ConditionTable(manifest.store, conditions)


def _check_teacher(student: Student, info: CheckpointInfo, plan: Plan, data: str) -> None:
    """Raises `BadInput` unless the plan's trajectories are of the student's teacher, guidance, times and data."""
    config = student.network.config
    wanted = {
        "teacher_sha256": info.teacher_sha256,
        "guidance_scale": info.guidance_scale,
        "shape": config.shape,
        **({} if plan.conditions else {"num_classes": config.num_classes}),
        "t_start": info.t_start,
        "t_end": info.t_end,
        "data_range": info.data_range,
    }
    if differing := differences({name: getattr(plan, name) for name in wanted}, wanted):
        raise BadInput(
            f"{data}: wanted trajectories of the student's own teacher ({differing}); "
            f"make some with traflow-pipeline generate --teacher {quote(info.teacher or 'TEACHER')}"
        )


@torch.no_grad()
def _means(student: Student, batch: TrajectoryBatch, t_start: float, t_end: float) -> dict[str, Tensor]:
    """Means over a batch, float64: squared errors [P, P] and [P] at P of the times, the times [P], straightness."""
    count = batch.times.shape[1]
    indices = np.linspace(0, count - 1, min(count, MAX_TIMES)).round().astype(int).tolist()
    x, times = [batch.x[:, i] for i in indices], [batch.times[:, i] for i in indices]
    means = {"times": torch.stack(times).double().mean(1)}
    states, gaps = torch.zeros(2, len(indices), len(indices), dtype=torch.float64)
    for i, t in enumerate(times):
        reached = {j: student(x[i], t, s, batch.label) for j, s in enumerate(times) if j > i}
        for j, x_s in reached.items():
            states[i, j] = _mean_square(x_s, x[j])
            # A jump to the last time is the same either way: the gap is 0.
            if j < len(indices) - 1:
                finished = student(x_s, times[j], times[-1], batch.label)
                gaps[i, j] = _mean_square(finished, reached[len(indices) - 1])
    means |= {"states": states, "gaps": gaps}
    path, velocities, path_times = _path(student, batch, uniform_times(PATH_STEPS, t_start, t_end))
    means["student"] = torch.tensor(straightness(path, velocities, path_times), dtype=torch.float64)
    if batch.velocity is not None:
        own = [student.mean_velocity(x_t, t, t, batch.label) for x_t, t in zip(x, times, strict=True)]
        errors = [_mean_square(v, batch.velocity[:, i]) for v, i in zip(own, indices, strict=True)]
        means["velocities"] = torch.stack(errors)
        means["teacher"] = torch.tensor(straightness(batch.x, batch.velocity, batch.times), dtype=torch.float64)
    return means


def _path(student: Student, batch: TrajectoryBatch, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The states [B, T, ...] that Algorithm 1 goes through, the student's velocities there, and the times [B, T]."""
    x, label = batch.x[:, 0], batch.label
    columns = list(times.to(x)[:, None].expand(-1, len(x)))
    states = list(sample_path(student, x, times, label))
    velocities = [student.mean_velocity(x_t, t, t, label) for x_t, t in zip(states, columns, strict=True)]
    return torch.stack(states, 1), torch.stack(velocities, 1), torch.stack(columns, 1)


def _mean_square(x: Tensor, target: Tensor) -> Tensor:
    return squared_error(x.double(), target.double()).mean()


def _upper_triangle(values: Tensor) -> tuple[tuple[float | None, ...], ...]:
    """The rows of `values` [P, P], with None unless the second time is below the first."""
    return tuple(tuple(v if j > i else None for j, v in enumerate(row)) for i, row in enumerate(values.tolist()))


def _line(times: tuple[float, ...], values: Tensor) -> Line:
    return Line(name="velocity", x=times, y=tuple(values.tolist()))
