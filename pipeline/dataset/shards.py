"""Convert records to tar bytes and back, and commit shards atomically.

A shard is a USTAR tar of blocks; a block is one WebDataset sample whose members are .npy arrays with records as
their leading dimension: stock `webdataset` can read it, and our reader never touches single records.
"""

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.common.errors import StoreFailed, reason
from pipeline.dataset.plan import Plan, Shard
from pipeline.flow.numerics import Numerics
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Trajectories:
    """R records of a teacher's flow, with times strictly decreasing from the start of the flow to its end.

    A field is None where the plan does not store it. Floating arrays but `times` have the plan's dtype.
    """

    noise: NDArray[np.floating]  # [R, *shape], standard normal; the flow starts at t_start * noise
    sample: NDArray[np.floating]  # [R, *shape], the end of the flow
    states: NDArray[np.floating]  # [R, K, *shape], the K states between them
    velocities: NDArray[np.floating] | None  # [R, K + 2, *shape], the teacher's velocity at every time
    times: NDArray[np.float32]  # [R, K + 2]
    label: NDArray[np.int64]  # [R], -1 without a class
    index: NDArray[np.int64]  # [R], the record's index in the data set

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: slice) -> "Trajectories":
        """The records in `rows`."""
        arrays = {name: getattr(self, name) for name in MEMBERS}
        parts: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return Trajectories(**parts)

    @staticmethod
    def concatenate(parts: "list[Trajectories]") -> "Trajectories":
        """The records of all `parts`, in order."""
        columns = {name: [getattr(part, name) for part in parts] for name in MEMBERS}
        joined: dict[str, Any] = {name: None if c[0] is None else np.concatenate(c) for name, c in columns.items()}
        return Trajectories(**joined)


NPY_HEADER_BYTES = 1024  # more than numpy writes for any array of ours
MARKERS_AT_ONCE = 1000  # held in memory
COMMIT_ATTEMPTS = 3  # in a race with another machine whose bytes differ
MEMBERS = tuple(field.name for field in fields(Trajectories))  # in the order in which a block holds them


class Block(NamedTuple):
    """The position of one block: bytes [offset, offset + num_bytes) of its shard are whole tar members."""

    offset: int
    num_bytes: int
    first_index: int
    num_records: int
    crc32: int  # of those bytes, checked when a single block is read


class Marker(BaseModel):
    """A shard's completion marker: the committed bytes, their cost, and the machine that made them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    plan_sha256: str
    sha256: str
    num_bytes: int
    blocks: tuple[Block, ...]
    nfe: tuple[int, ...]  # of each integration batch: solver evaluations per sample
    wall_seconds: float
    numerics: Numerics

    def is_of(self, plan: Plan) -> bool:
        """Whether a shard of `plan` can have this marker."""
        first_index, num_records = self.shard.first_index, self.shard.num_records
        if first_index != self.shard.number * plan.shard_size or not 0 < num_records <= plan.shard_size:
            return False
        starts = range(0, num_records, plan.block_size)
        blocks = [(first_index + start, min(plan.block_size, num_records - start)) for start in starts]
        return (
            self.plan_sha256 == plan.sha256
            and [(block.first_index, block.num_records) for block in self.blocks] == blocks
            and len(self.nfe) == -(-num_records // plan.batch_size)
        )

    def agrees(self, other: "Marker") -> bool:
        """Whether both describe the same bytes; the time and the machine that made them may differ."""
        ours, theirs = (marker.model_dump(exclude={"wall_seconds", "numerics"}) for marker in (self, other))
        return ours == theirs


def write_shard(plan: Plan, blocks: Iterable[Trajectories]) -> tuple[bytes, tuple[Block, ...]]:
    """The bytes of a tar file of `blocks`, which depend on nothing else, and the position of each block in it."""
    buffer = io.BytesIO()
    index: list[Block] = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for block in blocks:
            first_index, offset = int(block.index[0]), tar.offset
            for suffix, payload in _members(plan, block):
                info = tarfile.TarInfo(f"{first_index:09d}.{suffix}")  # its other fields are constants: mtime 0, root
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
            checksum = zlib.crc32(buffer.getbuffer()[offset : tar.offset])
            index.append(Block(offset, tar.offset - offset, first_index, len(block), checksum))
    return buffer.getvalue(), tuple(index)


def _members(plan: Plan, block: Trajectories) -> Iterable[tuple[str, bytes]]:
    for name in MEMBERS:
        array = getattr(block, name)
        if array is not None:
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            yield f"{name}.npy", file.getvalue()
    description = {"teacher": plan.teacher, "seed": plan.seed, "plan_sha256": plan.sha256, "num_records": len(block)}
    yield "json", json.dumps(description, sort_keys=True).encode()


class ArraySlot(NamedTuple):
    """The position, type and shape of one array in the bytes of a block."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


Layout = Mapping[str, ArraySlot]  # of the members of a block; under one plan a function of its number of records


def read_layout(payload: bytes | memoryview) -> Layout:
    """The layout of the arrays in the bytes of one block.

    Raises:
        ValueError: they are not a block.
    """
    layout = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as tar:
            for info in tar:
                _, name, *rest = info.name.split(".")
                if rest == ["npy"]:
                    header = io.BytesIO(payload[info.offset_data : info.offset_data + NPY_HEADER_BYTES])
                    np.lib.format.read_magic(header)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
                    layout[name] = ArraySlot(info.offset_data + header.tell(), dtype, shape)
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error
    if layout.keys() | {"velocities"} != set(MEMBERS):
        raise ValueError(f"wanted the members {', '.join(MEMBERS)}; found {', '.join(layout) or 'none'}")
    return layout


def read_block(payload: bytes | memoryview, layout: Layout | None = None) -> Trajectories:
    """The records in the bytes of one block, as views of them; `layout` saves parsing it again.

    A layout without velocities leaves them unread.

    Raises:
        ValueError: they are not a block.
    """
    arrays: dict[str, Any] = {"velocities": None}
    for name, (offset, dtype, shape) in (layout or read_layout(payload)).items():
        arrays[name] = np.frombuffer(payload, dtype, math.prod(shape), offset).reshape(shape)
    return Trajectories(**arrays)


def marker_name(shard: Shard) -> str:
    """The file name of the marker of `shard`."""
    return shard.name.removesuffix(".tar") + ".json"


def commit(store: Store, payload: bytes, marker: Marker) -> Marker:
    """Write a shard and then its marker to `store`; a crash leaves the shard either whole or uncommitted.

    Two writers of one shard write the same bytes, and the first marker stays. If their machines make different bytes,
    the later writer removes the other's marker, writes its own shard, and then its own marker.

    Returns:
        The marker that is now in the store.

    Raises:
        StoreFailed: the store cannot be written; no file there is half-written.
    """
    shard, name = marker.shard, marker_name(marker.shard)
    try:
        for _ in range(COMMIT_ATTEMPTS):
            markers = store.read_all([name])
            existing = parse_marker(markers[name]) if name in markers else None
            agrees = existing is not None and existing.agrees(marker)
            if name in markers and not agrees:
                store.remove(name)
            store.write(shard.name, payload)
            if existing is not None and agrees:
                return existing
            if store.create(name, marker.model_dump_json().encode()):
                return marker
    except OSError as error:
        raise StoreFailed(f"{shard}: cannot be written to {store.location} ({reason(error)})") from error
    raise StoreFailed(
        f"{shard}: others keep committing other bytes to {store.location}: is another driver at work there?"
    )


def committed(store: Store, plan: Plan, shards: Sequence[Shard]) -> dict[int, Marker]:
    """The markers of `read_markers`, by shard number."""
    return {marker.shard.number: marker for marker in read_markers(store, plan, shards)}


def read_markers(store: Store, plan: Plan, shards: Sequence[Shard]) -> Iterator[Marker]:
    """Yield the markers of those of `shards` that are committed in `store` under `plan`, in bounded memory.

    The last shard of a data set that grew may be committed with fewer records; its marker is yielded as it is.

    Raises:
        OSError: the store cannot be read.
    """
    sizes = store.sizes()
    present = ((marker_name(shard), shard) for shard in shards if {shard.name, marker_name(shard)} <= sizes.keys())
    while chunk := dict(islice(present, MARKERS_AT_ONCE)):
        for name, payload in store.read_all(list(chunk)).items():
            shard, marker = chunk[name], parse_marker(payload)
            if marker is None or not marker.is_of(plan) or sizes[shard.name] != marker.num_bytes:
                continue
            if marker.shard.number == shard.number and marker.shard.num_records <= shard.num_records:
                yield marker


def parse_marker(text: bytes) -> Marker | None:
    """The marker in `text`; None if it is not one."""
    try:
        return Marker.model_validate_json(text)
    except ValidationError:
        return None


def sha256(payload: bytes | memoryview) -> str:
    """The digest of `payload`, as 64 hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()
