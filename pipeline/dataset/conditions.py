"""The condition table of a data set: what its labels stand for, each prompt's embeddings once.

Row i is prompt i of prompts.jsonl; the last row, which the label -1 names too, is the negative prompt where there is
one. Rows lie in chunks, safetensors files with a marker each, which are committed before the first shard is made.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from pipeline.common.errors import StoreFailed, WorkFailed, reason
from pipeline.dataset.commit import COMMIT_ATTEMPTS
from pipeline.dataset.plan import SHA256, ConditionSet, Count, Plan
from pipeline.dataset.shards import sha256
from pipeline.flow.numerics import Numerics
from pipeline.storage.store import Store

PROMPTS = "prompts.jsonl"
CHUNK_ROWS = 256
CACHED_ROWS = 256
CHUNK_FILE = re.compile(r"conditions-(\d{6})\.(?:safetensors|json)")
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}  # safetensors' names


class Prompts(BaseModel):
    """The prompts of a data set, and the negative prompt of its guidance; "" is the pipeline's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[str, ...]
    negative: str | None = None  # None: the teacher takes none

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_rows(self) -> int:
        """Rows of the table, the negative prompt's among them."""
        return len(self.prompts) + (self.negative is not None)

    def dumped(self) -> bytes:
        """The content of prompts.jsonl."""
        lines = [{"prompt": prompt} for prompt in self.prompts]
        lines += [] if self.negative is None else [{"negative_prompt": self.negative}]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()

    @classmethod
    def parsed(cls, payload: bytes) -> Self:
        """The prompts in the bytes of prompts.jsonl.

        Raises:
            ValueError: they are none.
        """
        lines = [json.loads(line) for line in payload.decode().splitlines()]
        prompts = [line["prompt"] for line in lines if "prompt" in line]
        negatives = [line["negative_prompt"] for line in lines if "negative_prompt" in line]
        return cls(prompts=tuple(prompts), negative=negatives[0] if negatives else None)


class Chunk(BaseModel):
    """Rows [first_row, first_row + num_rows) of a condition table: the unit of its work and commitment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Count
    first_row: Count
    num_rows: Count

    @property
    def name(self) -> str:
        return f"conditions-{self.number:06d}.safetensors"

    @property
    def marker_name(self) -> str:
        return f"conditions-{self.number:06d}.json"

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + self.num_rows)

    def __str__(self) -> str:
        return f"conditions {self.number:06d} (rows {self.first_row} to {self.first_row + self.num_rows - 1})"


class Slot(NamedTuple):
    """One tensor of a chunk: its bytes [offset, offset + num_bytes), their checksum, and what they are."""

    offset: Count
    num_bytes: Count
    crc32: Count
    dtype: str
    shape: tuple[Count, ...]


class ConditionMarker(BaseModel):
    """A chunk's completion marker: the committed bytes, and the machine that made them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    chunk: Chunk
    conditions: ConditionSet
    sha256: str = Field(pattern=SHA256)
    num_bytes: Count
    slots: dict[str, Slot]  # by "row.name"
    wall_seconds: float = Field(ge=0)
    numerics: Numerics


def chunks(conditions: ConditionSet) -> list[Chunk]:
    """The chunks of a table."""
    return [chunk_of(conditions, start) for start in range(0, conditions.num_rows, CHUNK_ROWS)]


def chunk_of(conditions: ConditionSet, row: int) -> Chunk:
    """The chunk that holds `row`."""
    first = row - row % CHUNK_ROWS
    return Chunk(number=row // CHUNK_ROWS, first_row=first, num_rows=min(CHUNK_ROWS, conditions.num_rows - first))


def write_chunk(chunk: Chunk, rows: Sequence[Mapping[str, Tensor]]) -> tuple[bytes, dict[str, Slot]]:
    """The bytes of `chunk` with `rows`, which depend on nothing else, and where each tensor lies in them.

    Embeddings are stored in bfloat16, which has the range of float32: text encoders leave the range of float16.
    """
    tensors = {
        f"{number}.{name}": tensor
        for number, row in zip(chunk.rows, rows, strict=True)
        for name, tensor in as_stored(row).items()
    }
    payload = save(tensors)
    (length,) = struct.unpack("<Q", payload[:8])
    slots = {}
    for name, entry in json.loads(payload[8 : 8 + length]).items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        checksum = zlib.crc32(memoryview(payload)[start:end])
        slots[name] = Slot(start, end - start, checksum, entry["dtype"], tuple(entry["shape"]))
    return payload, dict(sorted(slots.items()))


def as_stored(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row with what is not whole numbers in bfloat16, on the CPU."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in row.items()}
    return {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in cpu.items()}


def commit_chunk(store: Store, payload: bytes, marker: ConditionMarker) -> ConditionMarker:
    """Write a chunk and then its marker to `store`; the first marker of a chunk stays.

    Shards are made from what is committed, so that a second writer must not replace it with what another kind of
    machine encodes. Where two such write at the same time, the later one removes the other's marker and writes again.

    Returns:
        The marker that is now in the store.

    Raises:
        StoreFailed: the store cannot be written; no file there is half-written.
    """
    chunk = marker.chunk
    try:
        existing = _find(store, marker.conditions, chunk, store.sizes())
        if existing is not None:
            return existing
        for _ in range(COMMIT_ATTEMPTS):
            store.remove(chunk.marker_name)
            store.write(chunk.name, payload)
            if store.create(chunk.marker_name, marker.model_dump_json().encode()):
                return marker
            existing = read_marker(store, marker.conditions, chunk)
            if existing is not None and existing.sha256 == marker.sha256:
                return existing
    except OSError as error:
        raise StoreFailed(f"{chunk}: cannot be written to {store.location} ({reason(error)})") from error
    raise StoreFailed(f"{chunk}: others keep committing other bytes to {store.location}")


def find_chunk(store: Store, plan: Plan, chunk: Chunk) -> ConditionMarker | None:
    """The marker of `chunk` of the table of `plan`; None unless it is committed.

    Raises:
        StoreFailed: the store cannot be read.
    """
    assert plan.conditions is not None
    try:
        return _find(store, plan.conditions, chunk, store.sizes())
    except OSError as error:
        raise StoreFailed(f"{chunk}: {store.location} cannot be read ({reason(error)})") from error


def _find(store: Store, conditions: ConditionSet, chunk: Chunk, sizes: Mapping[str, int]) -> ConditionMarker | None:
    """The marker of `chunk` in `store`, which holds files of `sizes`; None without a file as long as it says."""
    marker = read_marker(store, conditions, chunk)
    return marker if marker is not None and sizes.get(chunk.name) == marker.num_bytes else None


def read_marker(store: Store, conditions: ConditionSet, chunk: Chunk) -> ConditionMarker | None:
    """The marker of `chunk` in `store`; None if there is none of this table.

    Raises:
        OSError: the store cannot be read.
    """
    markers = store.read_all([chunk.marker_name])
    try:
        marker = ConditionMarker.model_validate_json(markers[chunk.marker_name])
    except (KeyError, ValidationError):
        return None
    return marker if (marker.chunk, marker.conditions) == (chunk, conditions) else None


def missing_chunks(store: Store, conditions: ConditionSet) -> list[Chunk]:
    """The chunks that are not committed to `store`.

    Raises:
        OSError: the store cannot be read.
    """
    sizes = store.sizes()
    return [chunk for chunk in chunks(conditions) if _find(store, conditions, chunk, sizes) is None]


def check_table(store: Store, plan: Plan) -> Iterator[tuple[str, str, Chunk | None]]:
    """Hash the condition table of `plan` in `store`: yield the name of each bad file, its fault, and its chunk.

    Raises:
        OSError: the store cannot be read.
    """
    if plan.conditions is None:
        return
    prompts = store.read_all([PROMPTS]).get(PROMPTS)
    if prompts is None or sha256(prompts) != plan.conditions.prompts_sha256:
        yield PROMPTS, "missing" if prompts is None else "not the prompts of the plan", None
    for chunk in chunks(plan.conditions):
        marker, payload = read_marker(store, plan.conditions, chunk), store.read_all([chunk.name]).get(chunk.name)
        if payload is None or marker is None:
            name = chunk.name if payload is None else chunk.marker_name
            yield name, f"missing, or of another table: {chunk} was not committed", chunk
        elif sha256(payload) != marker.sha256:
            yield chunk.name, "its bytes are not those that were committed (sha256 differs)", chunk


class ConditionTable:
    """The committed rows of a data set's condition table, read when they are asked for. Copies are the table itself."""

    def __init__(self, store: Store, conditions: ConditionSet) -> None:
        self._store, self._conditions = store, conditions
        self._marker = lru_cache(maxsize=None)(self._read_marker)
        self.row = lru_cache(maxsize=CACHED_ROWS)(self._read_row)

    def __len__(self) -> int:
        return self._conditions.num_prompts

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def _read_row(self, number: int) -> dict[str, Tensor]:
        """The tensors of row `number`, -1 for the last, by name.

        Raises:
            StoreFailed: the store cannot be read.
            WorkFailed: the row is not committed, or is not what was committed.
        """
        number %= self._conditions.num_rows
        chunk = chunk_of(self._conditions, number)
        slots, prefix = self._marker(chunk).slots, f"{number}."
        return {
            name.removeprefix(prefix): self._read(chunk, slot)
            for name, slot in slots.items()
            if name.startswith(prefix)
        }

    def _read_marker(self, chunk: Chunk) -> ConditionMarker:
        try:
            marker = read_marker(self._store, self._conditions, chunk)
        except OSError as error:
            raise StoreFailed(f"{self._store.location}: {chunk} cannot be read ({reason(error)})") from error
        if marker is None:
            raise WorkFailed(f"{self._store.location}: {chunk} is not committed; run traflow-pipeline generate again")
        return marker

    def _read(self, chunk: Chunk, slot: Slot) -> Tensor:
        location = f"{self._store.location}/{chunk.name}"
        try:
            payload = self._store.read_range(chunk.name, slot.offset, slot.offset + slot.num_bytes)
        except OSError as error:
            raise StoreFailed(f"{location}: cannot be read ({reason(error)})") from error
        if zlib.crc32(payload) != slot.crc32 or slot.dtype not in DTYPES:
            advice = f"see traflow-pipeline verify {self._store.location}"
            raise WorkFailed(f"{location}: its bytes are not those that were committed; {advice}")
        return torch.frombuffer(bytearray(payload), dtype=DTYPES[slot.dtype]).reshape(slot.shape)
