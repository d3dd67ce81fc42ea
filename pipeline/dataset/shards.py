"""Convert records to tar bytes and back, and commit shards atomically.

A shard is a USTAR tar of blocks; a block is one WebDataset sample whose members are .npy arrays with records as
their leading dimension: stock `webdataset` can read it, and our reader never touches single records.
"""

import hashlib
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.dataset.plan import SHA256, Count, Plan, Shard
from pipeline.flow.numerics import Numerics


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


# What numpy writes before an array of ours. Read by this grammar, not by numpy, which evaluates it as Python.
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f2|<f4|<i8)', 'fortran_order': False, 'shape': \(([0-9, ]{2,200})\), \} *\n",
    re.DOTALL,
)
NPY_HEADER_BYTES = 512  # more than numpy writes for any array of ours
SHARD_FILE = re.compile(r"shard-(\d{6}|[1-9]\d{6,17})\.(?:tar|json)")
MEMBERS = tuple(field.name for field in fields(Trajectories))  # in the order in which a block holds them


class Block(NamedTuple):
    """The position of one block: bytes [offset, offset + num_bytes) of its shard are whole tar members."""

    offset: Count
    num_bytes: Count
    first_index: Count
    num_records: Count
    crc32: Annotated[int, Field(ge=0, lt=2**32)]  # of those bytes, checked when a single block is read


class Marker(BaseModel):
    """A shard's completion marker: the committed bytes, their cost, and the machine that made them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shard: Shard
    plan_sha256: str
    sha256: str = Field(pattern=SHA256)
    num_bytes: Count
    blocks: tuple[Block, ...]
    nfe: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]  # of each integration batch: solver evaluations per sample
    wall_seconds: float = Field(ge=0)
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

    def describes(self, payload: bytes) -> bool:
        """Whether `payload` is the shard that was committed; hashes all of it."""
        parts = (memoryview(payload)[block.offset : block.offset + block.num_bytes] for block in self.blocks)
        checksums = [zlib.crc32(part) for part in parts]
        return sha256(payload) == self.sha256 and checksums == [block.crc32 for block in self.blocks]

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

    @property
    def bytes(self) -> slice:
        """Where the array lies."""
        return slice(self.offset, self.offset + math.prod(self.shape) * self.dtype.itemsize)


Layout = Mapping[str, ArraySlot]  # of the members of a block; under one plan a function of its number of records


def read_layout(payload: bytes | memoryview) -> Layout:
    """The layout of the arrays in the bytes of one block, all of which lie within them.

    Raises:
        ValueError: they are not a block.
    """
    layout, offset = {}, 0
    while offset < len(payload):
        info, start = _tar_header(payload, offset), offset + tarfile.BLOCKSIZE
        _, name, *rest = info.name.split(".", 2)
        if rest == ["npy"]:
            layout[name] = _array_slot(payload, start, start + info.size)
        offset = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if layout.keys() | {"velocities"} != set(MEMBERS):
        raise ValueError(f"wanted the members {', '.join(MEMBERS)}; found {', '.join(layout) or 'none'}")
    return layout


def _tar_header(payload: bytes | memoryview, offset: int) -> tarfile.TarInfo:
    """The header of the tar member at `offset`, which lies within `payload`."""
    try:
        info = tarfile.TarInfo.frombuf(bytes(payload[offset : offset + tarfile.BLOCKSIZE]), "ascii", "strict")
    except tarfile.TarError as error:
        raise ValueError(f"no tar member at byte {offset} ({error})") from error
    if not info.isreg() or not 0 <= info.size <= len(payload) - offset - tarfile.BLOCKSIZE or "." not in info.name:
        raise ValueError(f"no file of a block at byte {offset}")
    return info


def _array_slot(payload: bytes | memoryview, start: int, end: int) -> ArraySlot:
    """The array of the .npy file in bytes [start, end) of `payload`."""
    header = NPY_HEADER.match(payload[start : min(end, start + NPY_HEADER_BYTES)])
    if header is None:
        raise ValueError(f"no array of a data set at byte {start}")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(length) for length in header[2].split(b",") if length.strip())
    if math.prod(shape) * dtype.itemsize != end - start - header.end():
        raise ValueError(f"an array of shape {shape} in {end - start - header.end()} bytes")
    return ArraySlot(start + header.end(), dtype, shape)


def check_layout(layout: Layout, plan: Plan, num_records: int) -> None:
    """Raises `ValueError` unless `layout` is that of a block of `num_records` records of `plan`."""
    value, states, times = np.dtype(plan.dtype), (plan.num_states, *plan.shape), (plan.num_times, *plan.shape)
    shapes = {
        "noise": (value, plan.shape),
        "sample": (value, plan.shape),
        "states": (value, states),
        **({"velocities": (value, times)} if plan.velocities else {}),
        "times": (np.dtype(np.float32), (plan.num_times,)),
        "label": (np.dtype(np.int64), ()),
        "index": (np.dtype(np.int64), ()),
    }
    found = {name: (slot.dtype, slot.shape) for name, slot in layout.items()}
    wanted = {name: (dtype, (num_records, *shape)) for name, (dtype, shape) in shapes.items()}
    if wrong := [name for name in MEMBERS if found.get(name) != wanted.get(name)]:
        raise ValueError(f"{', '.join(wrong)} not as planned")


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


def sha256(payload: bytes | memoryview) -> str:
    """The digest of `payload`, as 64 hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()
