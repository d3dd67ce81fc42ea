"""A data set of trajectories for Python: by index, by slice or in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Trajectories


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One record: a trajectory of the teacher from noise to sample.

    Its K + 2 times fall strictly from the start of the flow, where the state is times[0] * noise, to its end.
    """

    noise: NDArray[np.floating]  # [*shape], standard normal
    sample: NDArray[np.floating]  # [*shape]
    states: NDArray[np.floating]  # [K, *shape], between start and end
    velocities: NDArray[np.floating] | None  # [K + 2, *shape], at every time; None if the plan stores none
    times: NDArray[np.float32]  # [K + 2]
    label: int  # -1 without classes
    index: int


class TrajectoryDataset:
    """The records of a data set in the order of their index. Blocks are read when needed, and their checksums checked.

    Reading raises WorkFailed where a shard is missing or damaged.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._reader = BlockReader(manifest)

    @property
    def plan(self) -> Plan:
        """What decides the bytes: teacher, shape, solver, seed, ..."""
        return self._manifest.plan

    @property
    def digest(self) -> str:
        """sha256 over the shards: two data sets with the same digest are identical to the last bit."""
        return self._manifest.sha256

    def __len__(self) -> int:
        return self._manifest.num_records

    @overload
    def __getitem__(self, item: int) -> Trajectory: ...

    @overload
    def __getitem__(self, item: slice) -> Trajectories: ...

    def __getitem__(self, item: int | slice) -> Trajectory | Trajectories:
        """The record `item`, or the records of a slice.

        Raises:
            IndexError: no such record.
            ValueError: a slice with a step.
        """
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of records has the step 1, got {step}")
            return self._read(start, max(start, stop))
        index = item + len(self) if item < 0 else item
        if not 0 <= index < len(self):
            raise IndexError(f"record {item} of a data set of {len(self)}")
        return _only(self._read(index, index + 1))

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[index] for index in range(len(self)))

    def batches(self, size: int) -> Iterator[Trajectories]:
        """All records in order, `size` at a time; the last batch may be smaller.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"size: wanted 1 or more, got {size}")
        for start in range(0, len(self), size):
            self._reader.prefetch(self._blocks(start, start + 2 * size))
            yield self[start : start + size]

    def _blocks(self, start: int, stop: int) -> range:
        """The blocks that hold the records [start, stop), at least one."""
        size, last = self.plan.block_size, len(self) - 1
        return range(min(start, last) // size, min(max(stop - 1, start), last) // size + 1)

    def _read(self, start: int, stop: int) -> Trajectories:
        parts = []
        for block in self._blocks(start, stop):
            first = block * self.plan.block_size
            parts.append(self._reader.read(block).rows(slice(max(start - first, 0), max(stop - first, 0))))
        return Trajectories.concatenate(parts)


def _only(rows: Trajectories) -> Trajectory:
    return Trajectory(
        noise=rows.noise[0],
        sample=rows.sample[0],
        states=rows.states[0],
        velocities=None if rows.velocities is None else rows.velocities[0],
        times=rows.times[0],
        label=int(rows.label[0]),
        index=int(rows.index[0]),
    )
