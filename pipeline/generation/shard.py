"""Generate one shard: a pure function of (plan, shard, teacher).

In two parts, so that a device need not wait for the second: `integrate_shard` on the device, then `commit_shard` on the
host, which builds, hashes and writes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.common.errors import WorkFailed, reason
from pipeline.common.progress import format_bytes
from pipeline.dataset.commit import commit
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker, Trajectories, sha256, write_shard
from pipeline.flow.noise import draw_noise
from pipeline.flow.numerics import Numerics, fixed_numerics, in_precision, numerics_of
from pipeline.flow.solver import ENDS, SolverFailed, integrate
from pipeline.storage.store import Store
from pipeline.teachers.teacher import Teacher, errors_named_after


@dataclass(frozen=True)
class Batch:
    """The start of an integration batch; each row depends on the plan and its index alone."""

    first_index: int
    noise: Tensor  # float32 [B, *shape], already rounded to the plan's dtype
    label: Tensor  # int64 [B], -1 without a class
    times: Tensor  # float32 [K + 2]


@dataclass(frozen=True)
class SolvedBatch:
    """A batch in the plan's dtype, in memory of the host that copies from a GPU may still be filling."""

    start: Batch
    noise: Tensor  # [B, *shape]
    states: Tensor  # [B, K + 2, *shape]
    velocities: Tensor | None  # [B, K + 2, *shape]
    nfe: int  # of the solver per sample; stored velocities are not counted
    copied: torch.cuda.Event | None

    def rows(self) -> Trajectories:
        """The trajectories, once they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        states, first_index = self.states.numpy(), self.start.first_index
        return Trajectories(
            noise=self.noise.numpy(),
            sample=states[:, -1],
            states=states[:, 1:-1],
            velocities=None if self.velocities is None else self.velocities.numpy(),
            times=np.tile(self.start.times.numpy(), (len(states), 1)),
            label=self.start.label.numpy(),
            index=np.arange(first_index, first_index + len(states)),
        )


@dataclass(frozen=True)
class SolvedShard:
    """The batches of a shard, the last one whole even where the shard ends within it."""

    plan: Plan
    shard: Shard
    batches: list[SolvedBatch]
    numerics: Numerics
    seconds: float

    def blocks(self) -> list[Trajectories]:
        """The records of the shard, in blocks."""
        size, end = self.plan.block_size, self.shard.first_index + self.shard.num_records
        blocks = []
        for batch in self.batches:
            rows, stop = batch.rows(), min(self.plan.batch_size, end - batch.start.first_index)
            blocks += [rows.rows(slice(i, min(i + size, stop))) for i in range(0, stop, size)]
        return blocks


def generate_and_commit(plan: Plan, shard: Shard, teacher: Teacher, store: Store, device: torch.device) -> Marker:
    """Generate `shard`, commit it to `store` and return its marker.

    Raises:
        WorkFailed: the flow could not be integrated, and the batch is saved in `store`; or `store` has too little
            space, which is checked before any work.
        StoreFailed: `store` cannot be written.
    """
    check_room(plan, shard, store)
    return commit_shard(integrate_shard(plan, shard, draw_shard(plan, shard), teacher, store, device), store)


def generate_shard(
    plan: Plan, shard: Shard, teacher: Teacher, store: Store, device: torch.device
) -> tuple[bytes, Marker]:
    """The bytes of `shard` and its marker; only the start of a batch that fails is written to `store`."""
    return build_shard(integrate_shard(plan, shard, draw_shard(plan, shard), teacher, store, device))


def check_room(plan: Plan, shard: Shard, store: Store) -> None:
    """Raises `WorkFailed` if `store` has too little space for `shard`."""
    free, needed = store.free_bytes(), shard.num_records * plan.record_bytes
    if free is not None and free < needed:
        room = f"{store.location} has {format_bytes(free)} left"
        raise WorkFailed(f"{shard}: needs {format_bytes(needed)}, but {room}: make room")


def draw_shard(plan: Plan, shard: Shard) -> list[Batch]:
    """The starts of the batches of `shard`."""
    end = shard.first_index + shard.num_records
    return [draw_batch(plan, first_index) for first_index in range(shard.first_index, end, plan.batch_size)]


def integrate_shard(
    plan: Plan,
    shard: Shard,
    starts: list[Batch],
    teacher: Teacher,
    store: Store,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> SolvedShard:
    """Integrate the batches `starts` of `shard`; the start of one that fails is written to `store`.

    `on_batch` is told the records of the shard in each batch that is done.

    Raises:
        WorkFailed: the flow could not be integrated.
    """
    started = time.monotonic()
    batches: list[SolvedBatch] = []
    with fixed_numerics(plan.precision):
        for start in starts:
            try:
                batches.append(solve_batch(plan, start, teacher, device))
            except SolverFailed as error:
                saved = _save_batch(store, start)
                raise WorkFailed(f"{shard}: teacher {teacher.name}: {error}; {saved}") from error
            if on_batch is not None:
                on_batch(min(plan.batch_size, shard.end - start.first_index))
        numerics = numerics_of(device, plan.precision, teacher.compiled, teacher.libraries)
    return SolvedShard(plan, shard, batches, numerics, time.monotonic() - started)


def build_shard(solved: SolvedShard) -> tuple[bytes, Marker]:
    """The bytes of a shard and its marker."""
    started = time.monotonic()
    payload, index = write_shard(solved.plan, solved.blocks())
    return payload, Marker(
        shard=solved.shard,
        plan_sha256=solved.plan.sha256,
        sha256=sha256(payload),
        num_bytes=len(payload),
        blocks=index,
        nfe=tuple(batch.nfe for batch in solved.batches),
        wall_seconds=solved.seconds + time.monotonic() - started,
        numerics=solved.numerics,
    )


def commit_shard(solved: SolvedShard, store: Store) -> Marker:
    """Build a shard and commit it to `store`; raises as `commit` does."""
    return commit(store, *build_shard(solved))


def draw_batch(plan: Plan, first_index: int) -> Batch:
    """The starting points of records [first_index, first_index + batch_size).

    The noise is rounded to the stored dtype first, so that the stored noise is exactly what was integrated.
    """
    indices = range(first_index, first_index + plan.batch_size)
    noise = torch.from_numpy(draw_noise(plan.seed, indices, plan.shape)).to(_dtype(plan)).float()
    label = torch.from_numpy(plan.draw_labels(indices))
    return Batch(first_index, noise, label, plan.times(first_index))


@torch.no_grad()
def solve_batch(plan: Plan, start: Batch, teacher: Teacher, device: torch.device) -> SolvedBatch:
    """The trajectories of the batch `start`, within `fixed_numerics` of the plan's precision.

    Raises:
        SolverFailed: see `integrate`; or a value does not fit the stored dtype.
        WorkFailed: the teacher raised something.
    """
    with errors_named_after(teacher):
        return _solve(plan, start, teacher, device)


def _solve(plan: Plan, batch: Batch, teacher: Teacher, device: torch.device) -> SolvedBatch:
    velocity, dtype = in_precision(teacher.velocity, plan.precision), _dtype(plan)
    label = batch.label.to(device) if plan.num_classes else None
    start = plan.t_start * batch.noise.to(device)
    solution = integrate(velocity, start, batch.times, label, plan.solver, plan.shift)
    states = solution.states.transpose(0, 1).to(dtype)
    velocities = torch.empty_like(states) if plan.velocities else None
    if velocities is not None:
        # At the points that the trainer reads: the exact start, and the other states as rounded for storage.
        points = [start, *states[:, 1:].float().unbind(dim=1)]
        for k, (x, t) in enumerate(zip(points, batch.times.to(device), strict=True)):
            velocities[:, k] = velocity(x, t.expand(len(x)), label).float()
    return SolvedBatch(
        start=batch,
        noise=batch.noise.to(dtype),
        states=_to_host(states, plan, "state", batch.times),
        velocities=None if velocities is None else _to_host(velocities, plan, "velocity", batch.times),
        nfe=solution.nfe,
        copied=_event(device),
    )


def all_states(plan: Plan, records: Trajectories) -> Tensor:
    """The states at all times, float32 [R, K + 2, *shape]: the exact start, and the others as they are stored."""
    noise, inner, sample = (torch.from_numpy(a).float() for a in (records.noise, records.states, records.sample))
    return torch.cat([plan.t_start * noise[:, None], inner, sample[:, None]], dim=1)


def _dtype(plan: Plan) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, plan.dtype)
    return dtype


def _to_host(x: Tensor, plan: Plan, name: str, times: Tensor) -> Tensor:
    """`x` [B, T, ...] in memory of the host; from a GPU, once the event after this has happened."""
    if not torch.isfinite(torch.stack(x.aminmax())).all():  # many times as fast as asking of every value
        raise SolverFailed(_not_finite(x, plan, name, times))
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)


def _not_finite(x: Tensor, plan: Plan, name: str, times: Tensor) -> str:
    """At which of the `times` [T] `x` [B, T, ...], called `name`, is not finite, and what to do."""
    finite = torch.isfinite(x).flatten(2).all(2).all(0).tolist()
    at = finite.index(False)
    advice = ENDS.get(at if at == 0 else at - len(finite)) if name == "velocity" else None
    return f"the {name} at t = {times[at]:.3g} is not finite as {plan.dtype}" + (f": {advice}" if advice else "")


def _event(device: torch.device) -> torch.cuda.Event | None:
    """An event after everything that `device` was asked for so far; None if it is a CPU, which has done it."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


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
