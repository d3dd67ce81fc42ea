"""(manifest, seed, step) -> batch: what a step trains on, as a pure function, so that resuming is arithmetic.

Noise is drawn independently for every record, so blocks are permuted whole and reads stay contiguous; what the records
of a block share is the times of their integration batch. The stream is the endless sequence epoch 0, epoch 1, ..., each
a permutation of all blocks; step n takes records [n B, (n + 1) B) of it, whatever the number of ranks. In training the
steps of a window deal its records out among themselves, so that each rank reads blocks of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Trajectories
from pipeline.flow.path import match_dims
from trainer.data.image_set import ImageSet, to_float
from trainer.data.rows import Rows

AHEAD_BLOCKS = 16  # of a remote store, beyond a batch: some megabytes each
WINDOW_BLOCKS = 16  # of a window: as many ranks can have a block each, and one rank holds them all


class Batch(Rows):
    """The samples of a batch, one a row."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class TrajectoryBatch(Batch):
    """B trajectories of a teacher with their T = K + 2 times, from the start of the flow (0) to its end (T - 1)."""

    x: Tensor  # float32 [B, T, C, H, W]
    velocity: Tensor | None  # float32 [B, T, C, H, W]
    times: Tensor  # float32 [B, T], strictly decreasing
    label: Tensor | None  # int64 [B]
    index: Tensor  # int64 [B], of the records in the data set

    @property
    def each(self) -> Tensor:
        """The rows, to pick one time of each."""
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def noise(self) -> Tensor:
        """The noise that the trajectories began as, float32 [B, C, H, W]; the flow starts at t_start times it."""
        return self.x[:, 0] / match_dims(self.times[:, 0], self.x[:, 0])

    def stored(self, i: Tensor) -> tuple[Tensor, Tensor]:
        """The states [B, C, H, W] and times [B] at the stored indices `i` [B]."""
        return self.x[self.each, i], self.times[self.each, i]

    def at(self, t: Tensor) -> Tensor:
        """The states at times t [B] of the flow: cubic Hermite interpolation of the stored states and velocities."""
        assert self.velocity is not None
        # Times fall, so the last stored one that is not below t ends the count of those that are at least t.
        i = ((self.times >= t[:, None]).sum(1) - 1).clamp(0, self.times.shape[1] - 2)
        (x_0, t_0), (x_1, t_1) = self.stored(i), self.stored(i + 1)
        v_0, v_1 = self.velocity[self.each, i], self.velocity[self.each, i + 1]
        width = match_dims(t_1 - t_0, x_0)
        u = match_dims(t - t_0, x_0) / width
        near, far = (1 - u) ** 2, u**2
        return near * (1 + 2 * u) * x_0 + far * (3 - 2 * u) * x_1 + width * (near * u * v_0 - far * (1 - u) * v_1)


@dataclass(frozen=True)
class ImageBatch(Batch):
    """B images of an image set."""

    data: Tensor  # float32 [B, C, H, W] in [-1, 1]
    label: Tensor | None  # int64 [B]
    index: Tensor  # int64 [B]


def permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order of `length` blocks or images in `epoch`."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def _share(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The first row of the part of `rank` of a batch, and its size."""
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} ranks")
    size = batch_size // world
    return rank * size, size


class TrajectoryStream:
    """Batches of a data set.

    Args:
        manifest: the data set.
        seed: of the permutations.
        batch_size: B, over all ranks.
        velocities: whether to read the stored velocities.
        window_blocks: the steps of this many blocks' records are a window of S steps. Row r of its step j is record
            r S + j of the window, so that a rank's rows over all the steps are consecutive records. 0: no windows.

    Raises:
        WorkFailed: a shard is missing or is not what the manifest says.
    """

    def __init__(
        self, manifest: Manifest, seed: int, batch_size: int, velocities: bool = True, window_blocks: int = 0
    ) -> None:
        self.plan, self.seed, self.batch_size = manifest.plan, seed, batch_size
        self._window_steps = max(1, window_blocks * manifest.plan.block_size // batch_size)
        self.counts = manifest.counts
        self.num_records = manifest.num_records
        self._reader = BlockReader(manifest, velocities, window_blocks)
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrajectoryBatch:
        """The part of `rank` (of `world`, which divides the batch size) of the batch of `step`."""
        pieces = list(self._pieces(step, rank, world))
        later = (block for n in count(step + 1) for block, _ in self._pieces(n, rank, world))
        ahead = islice(later, max(AHEAD_BLOCKS, len(pieces)))
        self._reader.prefetch(chain((block for block, _ in pieces), ahead))
        parts = [self._reader.read(block).rows(rows) for block, rows in pieces]
        return _as_batch(self.plan, Trajectories.concatenate(parts))

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()

    def _pieces(self, step: int, rank: int, world: int) -> Iterator[tuple[int, slice]]:
        """The blocks, and the rows of each, of the part of `rank` of the batch of `step`."""
        first_step, stride = self._window(step)
        first_row, size = _share(self.batch_size, rank, world)
        start = first_step * self.batch_size + first_row * stride + step - first_step
        while size:
            epoch, offset = divmod(start, self.num_records)
            order, ends = self._epoch(epoch)
            i = int(np.searchsorted(ends, offset, side="right"))
            block = int(order[i])
            left = int(ends[i]) - offset  # rows of the block from here on
            first, taken = int(self.counts[block]) - left, min(size, -(-left // stride))
            yield block, slice(first, first + (taken - 1) * stride + 1, stride)
            start, size = start + taken * stride, size - taken

    def _window(self, step: int) -> tuple[int, int]:
        """The first step of the window of `step`, and the number of its steps. It lies within an epoch.

        A step that spans two epochs is a window of its own.
        """
        epoch = step * self.batch_size // self.num_records
        start, end = epoch * self.num_records, (epoch + 1) * self.num_records
        first, last = -(-start // self.batch_size), end // self.batch_size  # the epoch's whole steps
        if not first <= step < last:
            return step, 1
        window = step - step % self._window_steps
        first = max(first, window)
        return first, min(last, window + self._window_steps) - first

    def _epoch_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = permutation(self.seed, epoch, len(self.counts))
        return order, np.cumsum(self.counts[order])


def _as_batch(plan: Plan, rows: Trajectories) -> TrajectoryBatch:
    # Joined as they are stored and widened by torch, which is several times as fast at it as numpy.
    x = torch.from_numpy(np.concatenate([rows.noise[:, None], rows.states, rows.sample[:, None]], axis=1)).float()
    if plan.t_start != 1:
        x[:, 0] *= plan.t_start
    return TrajectoryBatch(
        x=x,
        velocity=None if rows.velocities is None else torch.from_numpy(rows.velocities).float(),
        times=torch.from_numpy(rows.times),
        label=torch.from_numpy(rows.label) if plan.num_classes else None,
        index=torch.from_numpy(rows.index),
    )


class ImageStream:
    """Batches of an image set held in memory; each epoch is a permutation of it."""

    def __init__(self, images: ImageSet, num_classes: int, seed: int, batch_size: int) -> None:
        self.images, self.num_classes, self.seed, self.batch_size = images, num_classes, seed, batch_size
        self._epoch = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(images)))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ImageBatch:
        """The part of `rank` (of `world`, which divides the batch size) of the batch of `step`."""
        first_row, size = _share(self.batch_size, rank, world)
        start = step * self.batch_size + first_row
        positions = [divmod(position, len(self.images)) for position in range(start, start + size)]
        rows = np.array([self._epoch(epoch)[offset] for epoch, offset in positions])
        return ImageBatch(
            data=torch.from_numpy(to_float(self.images.images[rows])),
            label=torch.from_numpy(self.images.labels[rows]) if self.num_classes else None,
            index=torch.from_numpy(rows),
        )

    def close(self) -> None:
        """Nothing is read ahead from memory."""
