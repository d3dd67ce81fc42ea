"""(manifest, seed, step) -> batch: what a step trains on, as a pure function, so that resuming is arithmetic.

Noise is drawn independently for every record, so blocks are permuted whole and reads stay contiguous; what the records
of a block share is the times of their integration batch. The stream is the endless sequence epoch 0, epoch 1, ..., each
a permutation of all blocks; step n takes records [n B, (n + 1) B) of it, whatever the number of ranks.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import WorkFailed
from pipeline.manifest import Manifest
from pipeline.shards import Trajectories, read_block, sha256
from trainer.images import ImageSet, to_float

CACHED_BLOCKS = 4  # a batch that ends inside a block leaves the rest of it to the next step
OPEN_SHARDS = 64  # a process may hold about a thousand files


class Batch:
    """Tensors whose leading dimension is the batch; a field is None where the data has none."""

    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Self:
        """This batch on `device`."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def rows(self, rows: slice) -> Self:
        """The samples `rows` of this batch."""
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: None if x is None else change(x) for name, x in vars(self).items()})


@dataclass(frozen=True)
class TrajectoryBatch(Batch):
    """B trajectories of a teacher with their T = K + 2 times, from the start of the flow (0) to its end (T - 1)."""

    x: Tensor  # float32 [B, T, C, H, W]
    velocity: Tensor | None  # float32 [B, T, C, H, W]
    times: Tensor  # float32 [B, T], strictly decreasing
    label: Tensor | None  # int64 [B]
    index: Tensor  # int64 [B], of the records in the data set


@dataclass(frozen=True)
class ImageBatch(Batch):
    """B images of an image set."""

    data: Tensor  # float32 [B, C, H, W] in [-1, 1]
    label: Tensor | None  # int64 [B]
    index: Tensor  # int64 [B]


def permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order of `length` things in `epoch`."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def _share(batch_size: int, step: int, rank: int, world: int) -> tuple[int, int]:
    """Where the part of `rank` of the batch of `step` starts in the stream, and its size."""
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} ranks")
    size = batch_size // world
    return step * batch_size + rank * size, size


class TrajectoryStream:
    """Batches of a data set.

    A shard's checksum is verified when it is first opened.

    Raises:
        WorkFailed: a shard is missing or is not what the manifest says.
    """

    def __init__(self, manifest: Manifest, seed: int, batch_size: int) -> None:
        self.manifest, self.seed, self.batch_size = manifest, seed, batch_size
        self.counts = manifest.counts
        self.num_records = manifest.num_records
        self._rows = manifest.blocks.to_pylist()
        self._digests = {row["shard"]: row["shard_sha256"] for row in self._rows}
        self._verified: set[str] = set()
        self._open = lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)
        self._block = lru_cache(maxsize=CACHED_BLOCKS)(self._read_block)
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrajectoryBatch:
        """The part of `rank` (of `world`, which divides the batch size) of the batch of `step`."""
        start, size = _share(self.batch_size, step, rank, world)
        parts: list[Trajectories] = []
        while size:
            block, first, count = self._locate(start, size)
            parts.append(self._block(block).rows(slice(first, first + count)))
            start, size = start + count, size - count
        return _as_batch(self.manifest, Trajectories.concatenate(parts))

    def _locate(self, position: int, size: int) -> tuple[int, int, int]:
        """Block, first row and number of rows of the stream from `position`: at most `size`, up to the block's end."""
        epoch, offset = divmod(position, self.num_records)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, offset, side="right"))
        block = int(order[place])
        left = int(ends[place]) - offset
        return block, int(self.counts[block]) - left, min(size, left)

    def _epoch_order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = permutation(self.seed, epoch, len(self.counts))
        return order, np.cumsum(self.counts[order])

    def _read_block(self, block: int) -> Trajectories:
        row = self._rows[block]
        start = row["offset"]
        return read_block(self._open(row["shard"])[start : start + row["num_bytes"]])

    def _open_shard(self, name: str) -> memoryview:
        path = self.manifest.folder / name
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise WorkFailed(f"{path}: cannot be read ({error}); run traflow-pipeline generate again") from error
        if name not in self._verified and sha256(mapped) != self._digests[name]:
            raise WorkFailed(
                f"{path}: its bytes are not those that were committed (sha256 differs); "
                f"delete it and its .json and run traflow-pipeline generate again"
            )
        self._verified.add(name)
        return mapped


def _as_batch(manifest: Manifest, rows: Trajectories) -> TrajectoryBatch:
    noise = rows.noise[:, None].astype(np.float32) * np.float32(manifest.plan.t_start)
    x = np.concatenate([noise, rows.states, rows.sample[:, None]], axis=1, dtype=np.float32)
    return TrajectoryBatch(
        x=torch.from_numpy(x),
        velocity=None if rows.velocities is None else torch.from_numpy(rows.velocities.astype(np.float32)),
        times=torch.from_numpy(rows.times.copy()),
        label=torch.from_numpy(rows.label.copy()) if manifest.plan.num_classes else None,
        index=torch.from_numpy(rows.index.copy()),
    )


class ImageStream:
    """Batches of an image set held in memory; each epoch is a permutation of it."""

    def __init__(self, images: ImageSet, num_classes: int, seed: int, batch_size: int) -> None:
        self.images, self.num_classes, self.seed, self.batch_size = images, num_classes, seed, batch_size
        self._epoch = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(images)))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ImageBatch:
        """The part of `rank` (of `world`, which divides the batch size) of the batch of `step`."""
        start, size = _share(self.batch_size, step, rank, world)
        places = [divmod(position, len(self.images)) for position in range(start, start + size)]
        rows = np.array([self._epoch(epoch)[offset] for epoch, offset in places])
        return ImageBatch(
            data=torch.from_numpy(to_float(self.images.images[rows])),
            label=torch.from_numpy(self.images.labels[rows]) if self.num_classes else None,
            index=torch.from_numpy(rows),
        )
