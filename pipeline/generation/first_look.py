"""What the first records of a data set say of its teacher, without asking it anything."""

import torch

from pipeline.common.errors import StoreFailed
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import read_blocks
from pipeline.dataset.shards import Marker, Trajectories
from pipeline.generation.shard import all_states
from pipeline.storage.store import Store
from pipeline.teachers.verdict import Paths, judge


def doubt(store: Store, plan: Plan, marker: Marker) -> str:
    """What makes the first records of the shard of `marker` unlike those of a flow to data; empty if nothing does.

    Latents are not judged: only a decoder knows their range.
    """
    if plan.latents:
        return ""
    try:
        records = read_blocks(store, marker.shard, marker.blocks[:1])
    except StoreFailed:  # whoever needs them will say so
        return ""
    verdict = judge(_paths(plan, records), plan.data_range)
    return verdict.complaint or verdict.warning


def _paths(plan: Plan, records: Trajectories) -> Paths:
    return Paths(
        noise=torch.from_numpy(records.noise).float(),
        states=all_states(plan, records),
        velocities=None if records.velocities is None else torch.from_numpy(records.velocities).float(),
        times=torch.from_numpy(records.times[0]),
        label=torch.from_numpy(records.label) if plan.num_classes else None,
    )
