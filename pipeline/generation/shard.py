"""Generate one shard: a pure function of (plan, shard, teacher)."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.common.errors import WorkFailed, reason
from pipeline.common.progress import format_bytes
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker, Trajectories, commit, sha256, write_shard
from pipeline.flow.noise import draw_labels, draw_noise
from pipeline.flow.numerics import fixed_numerics, numerics_of
from pipeline.flow.solver import SolverFailed, integrate
from pipeline.storage.store import Store
from pipeline.teachers.teacher import Teacher, errors_named_after


@dataclass(frozen=True)
class Batch:
    """The start of an integration batch; each row depends on the plan and its index alone."""

    first_index: int
    noise: Tensor  # float32 [B, *shape], already rounded to the plan's dtype
    label: Tensor  # int64 [B], -1 without a class
    times: Tensor  # float32 [K + 2]


def generate_and_commit(
    plan: Plan,
    shard: Shard,
    teacher: Teacher,
    store: Store,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> Marker:
    """Generate `shard`, commit it to `store` and return its marker; `on_batch` is told the records of each batch.

    Raises:
        WorkFailed: the flow could not be integrated, and the batch is saved in `store`; or `store` has too little
            space, which is checked before any work.
        StoreFailed: `store` cannot be written.
    """
    free, needed = store.free_bytes(), shard.num_records * plan.record_bytes
    if free is not None and free < needed:
        room = f"{store.location} has {format_bytes(free)} left"
        raise WorkFailed(f"{shard}: needs {format_bytes(needed)}, but {room}: make room")
    payload, marker = generate_shard(plan, shard, teacher, store, device, on_batch)
    return commit(store, payload, marker)


def generate_shard(
    plan: Plan,
    shard: Shard,
    teacher: Teacher,
    store: Store,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[bytes, Marker]:
    """The bytes of `shard` and its marker; only the start of a batch that fails is written to `store`."""
    started = time.monotonic()
    blocks: list[Trajectories] = []
    nfe: list[int] = []
    end = shard.first_index + shard.num_records
    with fixed_numerics():
        for first_index in range(shard.first_index, end, plan.batch_size):
            batch = draw_batch(plan, first_index)
            try:
                trajectories, batch_nfe = solve_batch(plan, batch, teacher, device)
            except SolverFailed as error:
                saved = _save_batch(store, batch)
                raise WorkFailed(f"{shard}: teacher {teacher.name}: {error}; {saved}") from error
            # The last batch is integrated whole and cut here: its records must not depend on the size of the data set.
            stop = min(plan.batch_size, end - first_index)
            starts = range(0, stop, plan.block_size)
            blocks += [trajectories.rows(slice(i, min(i + plan.block_size, stop))) for i in starts]
            nfe.append(batch_nfe)
            if on_batch is not None:
                on_batch(stop)
        numerics = numerics_of(device)
    payload, index = write_shard(plan, blocks)
    return payload, Marker(
        shard=shard,
        plan_sha256=plan.sha256,
        sha256=sha256(payload),
        num_bytes=len(payload),
        blocks=index,
        nfe=tuple(nfe),
        wall_seconds=time.monotonic() - started,
        numerics=numerics,
    )


def draw_batch(plan: Plan, first_index: int) -> Batch:
    """The starting points of records [first_index, first_index + batch_size).

    The noise is rounded to the stored dtype first, so that the stored noise is exactly what was integrated.
    """
    indices = range(first_index, first_index + plan.batch_size)
    noise = draw_noise(plan.seed, indices, plan.shape).astype(plan.dtype).astype(np.float32)
    label = draw_labels(plan.seed, indices, plan.num_classes)
    return Batch(first_index, torch.from_numpy(noise), torch.from_numpy(label), plan.times(first_index))


@torch.no_grad()
def solve_batch(plan: Plan, batch: Batch, teacher: Teacher, device: torch.device) -> tuple[Trajectories, int]:
    """The trajectories of `batch`, and the evaluations of the solver per sample (stored velocities not counted).

    Raises:
        SolverFailed: see `integrate`; or a value does not fit the stored dtype.
        WorkFailed: the teacher raised something.
    """
    with errors_named_after(teacher):
        return _solve(plan, batch, teacher, device)


def _solve(plan: Plan, batch: Batch, teacher: Teacher, device: torch.device) -> tuple[Trajectories, int]:
    label = batch.label.to(device) if plan.num_classes else None
    start = plan.t_start * batch.noise.to(device)
    solution = integrate(teacher.velocity, start, batch.times, label, plan.solver)
    states = solution.states.transpose(0, 1)
    velocities = None
    if plan.velocities:
        # At the points that the trainer reads: the exact start, and the other states as rounded for storage.
        points = [start, *_as_stored(states[:, 1:], plan).unbind(dim=1)]
        times = batch.times.to(device)
        at_points = [teacher.velocity(x, t.expand(len(x)), label).float() for x, t in zip(points, times, strict=True)]
        velocities = _to_numpy(torch.stack(at_points, dim=1), plan)
    stored_states = _to_numpy(states, plan)
    trajectories = Trajectories(
        noise=_to_numpy(batch.noise, plan),
        sample=stored_states[:, -1],
        states=stored_states[:, 1:-1],
        velocities=velocities,
        times=np.tile(batch.times.numpy(), (len(start), 1)),
        label=batch.label.numpy(),
        index=np.arange(batch.first_index, batch.first_index + len(start)),
    )
    return trajectories, solution.nfe


def _as_stored(x: Tensor, plan: Plan) -> Tensor:
    return x.to(getattr(torch, plan.dtype)).float()


def _to_numpy(x: Tensor, plan: Plan) -> np.ndarray:
    array = x.cpu().numpy().astype(plan.dtype)
    if not np.isfinite(array).all():
        raise SolverFailed(f"a value is not finite as {plan.dtype}")
    return array


def failed_batch_name(first_index: int) -> str:
    """The name of the file with the start of a batch that could not be integrated."""
    return f"failed-batch-{first_index:09d}.safetensors"


def _save_batch(store: Store, batch: Batch) -> str:
    name = failed_batch_name(batch.first_index)
    try:
        store.write(name, save({"noise": batch.noise, "label": batch.label, "times": batch.times}))
    except OSError as error:
        return f"its batch could not be saved as {name} ({reason(error)})"
    return f"the batch is in {store.location}/{name}"
