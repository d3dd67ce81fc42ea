"""Whether a teacher is still the flow that a data set was made with: no digest covers the code of a user's function."""

import torch
from torch import Tensor

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.dataset.commit import read_markers
from pipeline.dataset.manifest import read_dataset
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import read_blocks
from pipeline.dataset.shards import Marker, Trajectories
from pipeline.flow.numerics import fixed_numerics, has_precision, in_precision, numerics_of
from pipeline.generation.shard import all_states, draw_batch, solve_batch
from pipeline.storage.store import Store
from pipeline.teachers.soundness import BATCH_TOLERANCE, NUM_ROWS, REPEAT_TOLERANCE
from pipeline.teachers.teacher import Teacher

AGREEING = 0.9  # of the records: a few may start between two basins, and end in the other one elsewhere


def require_same_flow(
    store: Store, plan: Plan, teacher: Teacher, device: torch.device, num_rows: int = NUM_ROWS
) -> bool:
    """Compare `teacher` with the first records of `plan` that are committed in `store`; return whether there are any.

    One batch of `num_rows` rows is evaluated at each stored time. A plan without velocities is integrated again, one
    batch of its own, where `num_rows` is its batch size. A teacher that refuses the question is left to the
    work, and a damaged shard to `verify`.

    Raises:
        BadInput: the teacher answers otherwise than it did by more than rounding can explain.
        StoreFailed: the store cannot be read.
    """
    marker = _first_marker(store, plan)
    if marker is None:
        return False
    is_whole_batch = num_rows == plan.batch_size
    if not plan.velocities and not is_whole_batch:
        return True
    here = plan if has_precision(plan.precision, device) else plan.model_copy(update={"precision": "fp32"})
    with fixed_numerics(here.precision):
        is_same_machine = marker.numerics == numerics_of(device, here.precision, libraries=teacher.libraries)
        try:
            stored = read_blocks(store, marker.shard, marker.blocks[:1])
            gap, t = _largest_gap(here, stored, teacher, device, num_rows)
        except Exception:  # the work says it, with the teacher's name; of a damaged shard, verify
            return True
    tolerance = REPEAT_TOLERANCE if is_same_machine and is_whole_batch else BATCH_TOLERANCE
    if not gap <= tolerance:
        raise BadInput(
            f"{store.location}: wanted the velocity that its records were made with; teacher {teacher.name}, of the "
            f"same weights, answers {gap:.1%} of its size apart at t = {t:.3g}: its code has changed; restore it, "
            "or generate with another --out"
        )
    return True


def _first_marker(store: Store, plan: Plan) -> Marker | None:
    """The marker of the first shard of `plan` that is committed."""
    dataset = read_dataset(store)
    if dataset is None or dataset.plan != plan:
        return None
    try:
        return next(read_markers(store, plan, dataset.num_records, at_once=1), None)
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error


def _largest_gap(
    plan: Plan, stored: Trajectories, teacher: Teacher, device: torch.device, num_rows: int
) -> tuple[float, float]:
    """The largest gap between what is stored and what `teacher` makes of it now, and its time."""
    if plan.velocities:
        gaps = _velocity_gaps(plan, stored, teacher, device, num_rows)
    else:
        remade = solve_batch(plan, draw_batch(plan, int(stored.index[0])), teacher, device).rows()
        before, now = (all_states(plan, records) for records in (stored, remade.rows(slice(0, len(stored)))))
        gaps = _gaps(before, now, before)
    most = int(gaps.argmax())  # that of NaN, if there is one
    return float(gaps[most]), float(stored.times[0, most])


@torch.no_grad()
def _velocity_gaps(plan: Plan, stored: Trajectories, teacher: Teacher, device: torch.device, num_rows: int) -> Tensor:
    """The gap of the velocity at each stored time [K + 2], at the points where the stored ones were taken."""
    rows = torch.arange(num_rows) % len(stored)  # a teacher may take no other batch than the plan's
    velocity = in_precision(teacher.velocity, plan.precision)
    states, before = all_states(plan, stored)[rows], torch.from_numpy(stored.velocities)[rows]
    label = torch.from_numpy(stored.label)[rows].to(device) if plan.num_classes else None
    now = [
        velocity(x.to(device), torch.full((num_rows,), t, device=device), label).to("cpu", before.dtype)
        for x, t in zip(states.unbind(1), stored.times[0].tolist(), strict=True)
    ]
    return _gaps(before.float(), torch.stack(now, dim=1).float(), states)


def _gaps(before: Tensor, now: Tensor, states: Tensor) -> Tensor:
    """At each time, how far nine of ten records [R, T, ...] are apart at most, relative to them or their states."""
    size = torch.stack([_rms(x) for x in (before, now, states)]).amax(0)
    return (_rms(before - now) / size.clamp(min=1e-12)).nan_to_num(torch.inf).quantile(AGREEING, dim=0)


def _rms(x: Tensor) -> Tensor:
    """The root mean square of each array: [R, T, ...] to [R, T]."""
    return x.double().flatten(2).square().mean(2).sqrt()
