"""Records to tar bytes and back, and the commit that makes a shard either whole or absent.

A shard is a USTAR tar of blocks; a block is one WebDataset sample whose members are .npy arrays with records as
their leading dimension, so stock `webdataset` reads it and ours reads it without touching single records.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import WorkFailed
from pipeline.plan import Plan, Shard


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
        """The records `rows` of these."""
        arrays = {name: getattr(self, name) for name in MEMBERS}
        parts: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return Trajectories(**parts)

    @staticmethod
    def concatenate(parts: "list[Trajectories]") -> "Trajectories":
        """The records of all `parts`, in order."""
        columns = {name: [getattr(part, name) for part in parts] for name in MEMBERS}
        joined: dict[str, Any] = {name: None if c[0] is None else np.concatenate(c) for name, c in columns.items()}
        return Trajectories(**joined)


MEMBERS = tuple(field.name for field in fields(Trajectories))  # in the order in which a block holds them


class Block(BaseModel):
    """Where one block lies: bytes [offset, offset + num_bytes) of its shard hold whole tar members."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: int
    num_bytes: int
    first_index: int
    num_records: int


class Numerics(BaseModel):
    """What the arithmetic of a shard ran on; shards of other numerics may differ in the last bits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch: str
    device: str
    threads: int


class Receipt(BaseModel):
    """A shard's completion marker: what was committed, what it cost, what it was made on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: Shard
    plan_sha256: str
    sha256: str
    num_bytes: int
    blocks: tuple[Block, ...]
    nfe: tuple[int, ...]  # of each integration batch: solver evaluations per sample
    wall_seconds: float
    numerics: Numerics


def write_shard(plan: Plan, blocks: Iterable[Trajectories]) -> tuple[bytes, tuple[Block, ...]]:
    """The tar file that holds `blocks`, as bytes that depend on nothing else, and where each block lies in it."""
    buffer = io.BytesIO()
    places = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for block in blocks:
            first_index, offset = int(block.index[0]), tar.offset
            for suffix, payload in _members(plan, block):
                info = tarfile.TarInfo(f"{first_index:09d}.{suffix}")  # its other fields are constants: mtime 0, root
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
            places.append(
                Block(offset=offset, num_bytes=tar.offset - offset, first_index=first_index, num_records=len(block))
            )
    return buffer.getvalue(), tuple(places)


def _members(plan: Plan, block: Trajectories) -> Iterable[tuple[str, bytes]]:
    for name in MEMBERS:
        array = getattr(block, name)
        if array is not None:
            file = io.BytesIO()
            np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            yield f"{name}.npy", file.getvalue()
    about = {"teacher": plan.teacher, "seed": plan.seed, "plan_sha256": plan.sha256, "num_records": len(block)}
    yield "json", json.dumps(about, sort_keys=True).encode()


def read_block(payload: bytes | memoryview) -> Trajectories:
    """The records in the bytes of one block."""
    arrays: dict[str, Any] = {"velocities": None}
    with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as tar:
        for info in tar:
            _, name, *rest = info.name.split(".")
            if rest == ["npy"]:
                file = tar.extractfile(info)
                assert file is not None
                arrays[name] = np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
    return Trajectories(**arrays)


def marker_path(folder: Path, shard: Shard) -> Path:
    """Where the marker of `shard` stands: beside its tar."""
    return (folder / shard.name).with_suffix(".json")


def commit(folder: Path, payload: bytes, receipt: Receipt) -> None:
    """Put a shard and then its marker into `folder`; a crash leaves the shard whole, or uncommitted.

    Raises:
        WorkFailed: the folder cannot be written; nothing half-written is left under a shard's name.
    """
    try:
        write_atomic(folder / receipt.shard.name, payload)
        write_atomic(marker_path(folder, receipt.shard), receipt.model_dump_json(indent=1).encode())
    except OSError as error:
        raise WorkFailed(f"{receipt.shard}: cannot be written to {folder} ({error.strerror})") from error


def write_atomic(path: Path, payload: bytes) -> None:
    """Write aside, sync, rename, sync the folder: after a crash `path` is the old file or the whole new one."""
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def aside_of(path: Path) -> Path:
    """A new name beside `path` for what is not whole yet; no other writer on any machine has it."""
    return path.with_name(f".{path.name}.aside-{uuid.uuid4().hex}")


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left aside in `folder`; nobody may be writing to it."""
    for aside in folder.glob(".*.aside-*"):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def committed(folder: Path, plan: Plan, shards: list[Shard]) -> dict[int, Receipt]:
    """Receipts of those of `shards` that are committed in `folder` under `plan`, by shard number.

    The last shard of a set that grew may be there with fewer records: its receipt is among them, with its own count.
    """
    receipts = {}
    for shard in shards:
        try:
            receipt = Receipt.model_validate_json(marker_path(folder, shard).read_bytes())
            whole = (folder / shard.name).stat().st_size == receipt.num_bytes
        except (FileNotFoundError, ValidationError):
            continue
        fits = receipt.shard.number == shard.number and receipt.shard.num_records <= shard.num_records
        if whole and fits and receipt.plan_sha256 == plan.sha256:
            receipts[shard.number] = receipt
    return receipts


def sha256(payload: bytes | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()
