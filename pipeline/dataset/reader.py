"""Read blocks of a data set: memory-mapped from a local store, prefetched from a remote one."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from zlib import crc32

import numpy as np

from pipeline.common.errors import StoreFailed, WorkFailed, one_line, reason
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.plan import Shard
from pipeline.dataset.shards import Block, Layout, Trajectories, check_layout, read_block, read_layout
from pipeline.storage.store import Store, read_again

CACHED_BLOCKS = 4  # a batch may end inside a block, whose rest the next step reads
REQUESTS = 8  # concurrent
MIN_GAP = 2**18  # bytes: a second request takes about as long as fetching so many


def read_blocks(store: Store, shard: Shard, blocks: Sequence[Block]) -> Trajectories:
    """The records of `blocks` of `shard`.

    Raises:
        StoreFailed: they cannot be read.
    """
    try:
        return Trajectories.concatenate([read_block(_read_part(store, shard, block)) for block in blocks])
    except (OSError, ValueError) as error:
        raise StoreFailed(f"{store.location}/{shard.name}: cannot be read ({one_line(error)})") from error


def _read_part(store: Store, shard: Shard, block: Block) -> memoryview:
    read = partial(store.read_range, shard.name, block.offset, block.offset + block.num_bytes)
    payload = read_again(store, read, lambda payload: crc32(payload) == block.crc32)
    if crc32(payload) != block.crc32:
        raise ValueError(f"the records from {block.first_index} on are not those that were committed")
    return payload


class BlockReader:
    """Reads blocks by their row in `manifest`; verifies the checksum of each on its first read.

    Without `velocities` the records have none, and those bytes are only read for the checksum, which is of a whole
    block: once a block is verified, they are not fetched again. Steps that take turns at `num_shared` blocks find them
    cached.
    """

    def __init__(self, manifest: Manifest, velocities: bool = True, num_shared: int = 0) -> None:
        self._manifest, self._velocities = manifest, velocities
        shards = manifest.blocks["shard"].combine_chunks().dictionary_encode()
        self._shards, self._shard = shards.dictionary.to_pylist(), shards.indices.to_numpy()
        self._offset, self._num_bytes, self._crc32, self._num_records = (
            manifest.blocks[name].to_numpy() for name in ("offset", "num_bytes", "crc32", "num_records")
        )
        self._checked = np.zeros(len(self._offset), bool)
        self._layouts: dict[int, Layout] = {}  # by number of records
        self._gaps: dict[int, slice] = {}  # the bytes of such a block that are not needed
        self._blocks: dict[int, Future[Trajectories]] = {}  # oldest first
        self._capacity = CACHED_BLOCKS + num_shared
        self._pool = None if manifest.store.is_local else ThreadPoolExecutor(REQUESTS, "reader")

    def read(self, block: int) -> Trajectories:
        """The records of `block`, as read-only views.

        Raises:
            WorkFailed: the block is missing or is not what the manifest says.
        """
        future = self._keep(block)
        try:
            return future.result()
        except BaseException:
            self._blocks.pop(block, None)
            raise

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Prefetch `blocks`, in the order of their use, from a remote store; does nothing on a local one."""
        if self._pool is not None:
            wanted = list(dict.fromkeys(blocks))
            self._capacity = max(self._capacity, len(wanted) + CACHED_BLOCKS)
            for block in wanted:
                self._keep(block)

    def close(self) -> None:
        """Cancel the pending requests."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, block: int) -> "Future[Trajectories]":
        """The future of `block`, moved to the newest end of the cache; started if it is not cached."""
        future = self._blocks.pop(block) if block in self._blocks else self._start(block)
        self._blocks[block] = future
        while len(self._blocks) > self._capacity:
            self._blocks.pop(next(iter(self._blocks))).cancel()
        return future

    def _start(self, block: int) -> "Future[Trajectories]":
        if self._pool is not None:
            return self._pool.submit(self._fetch, block)
        future: Future[Trajectories] = Future()
        future.set_result(self._fetch(block))
        return future

    def _fetch(self, block: int) -> Trajectories:
        store, name = self._manifest.store, self._shards[self._shard[block]]
        start = int(self._offset[block])
        end = start + int(self._num_bytes[block])
        location = f"{store.location}/{name}"
        advice = f"see traflow-pipeline verify {store.location}"

        def is_whole(payload: memoryview) -> bool:
            is_known = len(payload) == end - start and self._checked[block]
            return bool(is_known or crc32(payload) == self._crc32[block])

        try:
            payload = read_again(store, lambda: self._read(store, name, block), is_whole)
        except OSError as error:
            raise StoreFailed(f"{location}: cannot be read ({reason(error)}); {advice}") from error
        if len(payload) != end - start or not self._checked[block]:
            if crc32(payload) != self._crc32[block]:
                raise WorkFailed(f"{location}: bytes {start} to {end} are not those that were committed; {advice}")
            try:
                self._check(payload, block)
            except ValueError as error:
                raise WorkFailed(f"{location}: bytes {start} to {end} are not a block ({error}); {advice}") from error
            self._checked[block] = True
        return read_block(payload, self._layouts[int(self._num_records[block])])

    def _read(self, store: Store, name: str, block: int) -> memoryview:
        """The bytes of `block`; after its first read with anything where a remote store's are not needed."""
        start, num_bytes = int(self._offset[block]), int(self._num_bytes[block])
        gap = self._gaps.get(int(self._num_records[block]), slice(0, 0))
        if store.is_local or not self._checked[block] or gap.stop - gap.start < MIN_GAP:
            return store.read_range(name, start, start + num_bytes)
        payload = np.empty(num_bytes, np.uint8)
        for part in (slice(0, gap.start), slice(gap.stop, num_bytes)):
            found = store.read_range(name, start + part.start, start + part.stop)
            if len(found) != part.stop - part.start:
                return found  # the shard is shorter than it was
            payload[part] = np.frombuffer(found, np.uint8)
        return payload.data

    def _check(self, payload: memoryview, block: int) -> None:
        """Raises `ValueError` unless `payload` is `block`, with its arrays where all blocks of its size have them."""
        num_records = int(self._num_records[block])
        layout = read_layout(payload)
        check_layout(layout, self._manifest.plan, num_records)
        wanted = {name: slot for name, slot in layout.items() if self._velocities or name != "velocities"}
        if "velocities" in layout and not self._velocities:
            self._gaps[num_records] = layout["velocities"].bytes
        if wanted != self._layouts.setdefault(num_records, wanted):
            raise ValueError("its arrays do not lie where those of other blocks do")
