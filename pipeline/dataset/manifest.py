"""The manifest of a data set: its plan, and a parquet table with the position of each committed block.

The markers beside the shards are authoritative; the table is derived from them and can be rebuilt at any time.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from shlex import quote
from typing import Annotated
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.faults import explain
from pipeline.dataset.commit import read_markers
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import SHARD_FILE, Block, Marker
from pipeline.flow.numerics import Numerics
from pipeline.storage.store import Store, absence

PLAN = "plan.json"
MANIFEST = "manifest.parquet"
ROW_BYTES = 4  # at least: a row has a crc32, which nothing compresses
ROWS_AT_ONCE = 2**16  # decoded from their dictionaries in memory while the table is written
# What a file that is no manifest raises; arrow, its parser's errors as OSError.
MALFORMED = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "shard_sha256": pa.string(),
        "offset": pa.int64(),
        "num_bytes": pa.int64(),
        "first_index": pa.int64(),
        "num_records": pa.int64(),
        "crc32": pa.uint32(),
        "nfe": pa.int32(),
    }
)
# The same in every row of a shard; dictionary-encoded in memory.
OF_SHARD = ("shard", "shard_sha256")
IN_MEMORY = pa.schema({f.name: pa.dictionary(pa.int32(), f.type) if f.name in OF_SHARD else f.type for f in SCHEMA})


class DataSet(BaseModel):
    """The content of plan.json: the first `num_records` records of `plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    num_records: Annotated[int, Field(ge=1, lt=2**63)]
    teacher_source: str  # what loads the teacher: its name, an absolute path or module:factory


@dataclass(frozen=True)
class Manifest:
    """The committed blocks of a data set, in the order of their records."""

    store: Store
    dataset: DataSet
    blocks: pa.Table  # columns as in IN_MEMORY
    sha256: str  # digest over the shards' sha256 in order: the identity of the data

    @property
    def plan(self) -> Plan:
        return self.dataset.plan

    @property
    def num_records(self) -> int:
        """Number of committed records."""
        return int(self.counts.sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Records of each block, int64 [blocks]."""
        counts: NDArray[np.int64] = self.blocks["num_records"].to_numpy()
        return counts

    @property
    def num_bytes(self) -> int:
        return int(self.blocks["num_bytes"].to_numpy().sum())

    def num_records_of(self, sha256: str | None) -> int | None:
        """The number of its first records that were all when its digest was `sha256`; None if there never was such."""
        starts = np.flatnonzero(self.blocks["first_index"].to_numpy() % self.plan.shard_size == 0)
        digest = hashlib.sha256()
        for shard, end in zip(self.blocks["shard_sha256"].take(starts).to_pylist(), [*starts[1:], None], strict=True):
            digest.update(shard.encode())
            if digest.hexdigest() == sha256:
                return int(self.counts[:end].sum())
        return None

    @property
    def mean_nfe(self) -> float:
        """Mean number of solver evaluations per sample."""
        return float(np.average(self.blocks["nfe"].to_numpy(), weights=self.counts))


def read_dataset(store: Store) -> DataSet | None:
    """The plan of the data set in `store`, or None if it has none yet.

    Raises:
        BadInput: plan.json is not a plan.
        StoreFailed: the store cannot be read.
    """
    try:
        return DataSet.model_validate_json(store.read(PLAN))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise BadInput(f"{store.location}: wanted a folder; it, or one that it lies in, is a file") from error
    except OSError as error:
        raise StoreFailed(f"{store.location}: {PLAN} cannot be read ({reason(error)})") from error
    except ValidationError as error:
        faults = explain(error, DataSet)
        raise BadInput(f"{store.location}: {PLAN} is not a plan this version reads ({faults})") from error


def require_dataset(store: Store) -> DataSet:
    """`read_dataset`, of a store that has one.

    Raises:
        BadInput: there is none.
    """
    dataset = read_dataset(store)
    if dataset is None:
        raise BadInput(f"{store.location}: wanted a data set; {absence(store, PLAN)}")
    return dataset


def write_dataset(store: Store, dataset: DataSet) -> None:
    """Write plan.json, before the first shard: so that no store holds shards of an unknown plan."""
    store.write(PLAN, dataset.model_dump_json(indent=1).encode())


class Ledger:
    """The committed shards of `plan`, in about fifty bytes a block.

    The columns have a row for every block of the first `num_records` records, and of more once a marker lies beyond
    them, so that markers can be added in any order and need not be kept.
    """

    def __init__(self, plan: Plan, num_records: int = 0) -> None:
        self.plan, self.num_records = plan, 0
        names = (*Block._fields, "nfe")
        self._columns = {n: np.zeros(0, SCHEMA.field(n).type.to_pandas_dtype()) for n in names}
        self._seconds = np.zeros(0)
        self._sha256: list[str] = []
        self._numerics: list[Numerics | None] = []
        self._kinds: dict[Numerics, Numerics] = {}  # equal ones are stored once
        self._reach(num_records)

    def add(self, marker: Marker) -> None:
        """Record a marker of the plan (see `Marker.is_of`); it replaces an earlier one of the same shard."""
        if marker.shard.end > self.num_records:
            self._reach(max(marker.shard.end, 2 * self.num_records))
        number, rows = marker.shard.number, self._rows(marker.shard)
        for name, values in zip(Block._fields, zip(*marker.blocks, strict=True), strict=True):
            self._columns[name][rows] = values
        blocks_per_batch = self.plan.batch_size // self.plan.block_size
        self._columns["nfe"][rows] = np.repeat(marker.nfe, blocks_per_batch)[: len(marker.blocks)]
        self._sha256[number], self._seconds[number] = marker.sha256, marker.wall_seconds
        self._numerics[number] = self._kinds.setdefault(marker.numerics, marker.numerics)

    def remove(self, shard: Shard) -> None:
        """Forget what was recorded of `shard`."""
        for column in self._columns.values():
            column[self._rows(shard)] = 0
        self._sha256[shard.number], self._seconds[shard.number], self._numerics[shard.number] = "", 0, None

    def _reach(self, num_records: int) -> None:
        """Make room for the first `num_records` records."""
        num_shards, num_blocks = -(-num_records // self.plan.shard_size), -(-num_records // self.plan.block_size)
        for name, column in self._columns.items():  # one by one: together they are what takes memory
            self._columns[name] = _extended(column, num_blocks)
        self._seconds = _extended(self._seconds, num_shards)
        self._sha256 += [""] * (num_shards - len(self._sha256))
        self._numerics += [None] * (num_shards - len(self._numerics))
        self.num_records = num_records

    def _rows(self, shard: Shard) -> slice:
        """The rows of the blocks of `shard`."""
        first = shard.first_index // self.plan.block_size
        return slice(first, first + -(-shard.num_records // self.plan.block_size))

    @property
    def numerics(self) -> set[Numerics]:
        """The kinds of machine that the shards were made on."""
        return {numerics for numerics in self._numerics if numerics is not None}

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of committed records of each shard, int64 [shards]."""
        blocks_per_shard = self.plan.shard_size // self.plan.block_size
        first_blocks = np.arange(0, len(self._columns["num_records"]), blocks_per_shard)
        sizes: NDArray[np.int64] = np.add.reduceat(self._columns["num_records"], first_blocks)
        return sizes

    @property
    def num_shards(self) -> int:
        """The number of committed shards."""
        return len(self._sha256) - self._sha256.count("")

    @property
    def wall_seconds(self) -> float:
        """What the shards took, all workers together."""
        return float(self._seconds.sum())

    @property
    def sha256(self) -> str:
        """The identity of the data: sha256 over the shards' sha256 in order."""
        return _digest(self._sha256)

    def blocks(self, first_index: int, num_records: int) -> list[Block]:
        """The committed blocks of the records from `first_index` on, at most `num_records`."""
        size = self.plan.block_size
        rows = slice(first_index // size, -(-(first_index + num_records) // size))
        columns = (self._columns[name][rows].tolist() for name in Block._fields)
        return [block for block in map(Block._make, zip(*columns, strict=True)) if block.num_records]

    def numerics_of(self, number: int) -> Numerics | None:
        """The kind of machine that the shard of this number was made on; None unless it is committed."""
        return self._numerics[number]

    def manifest(self, store: Store, dataset: DataSet) -> Manifest:
        """The manifest of the recorded shards. It shares memory with this ledger: add nothing afterwards."""
        # Not the room that was made for shards beyond the last one.
        sizes = self.sizes
        num_shards = len(sizes) - int(np.argmax(sizes[::-1] > 0)) if sizes.any() else 0
        num_records = min(num_shards * self.plan.shard_size, self.num_records)
        shards, num_blocks = self.plan.shards(num_records), -(-num_records // self.plan.block_size)
        columns = {name: column[:num_blocks] for name, column in self._columns.items()}
        is_committed = columns["num_records"] > 0
        blocks_per_shard = self.plan.shard_size // self.plan.block_size
        numbers = pa.array(np.arange(num_blocks, dtype=np.int32) // blocks_per_shard)
        names, digests = [shard.name for shard in shards], self._sha256[: len(shards)]
        of_shard = [pa.DictionaryArray.from_arrays(numbers, values) for values in (names, digests)]
        columns |= dict(zip(OF_SHARD, of_shard, strict=True))
        metadata = {"dataset": dataset.model_dump_json(), "sha256": self.sha256}
        table = pa.table(columns, schema=IN_MEMORY.with_metadata(metadata))
        blocks = table if is_committed.all() else table.filter(pa.array(is_committed))
        return Manifest(store, dataset, blocks, self.sha256)


def _extended(column: np.ndarray, length: int) -> np.ndarray:
    """`column` with zeros behind it."""
    longer = np.zeros(length, column.dtype)
    longer[: len(column)] = column
    return longer


def derive(store: Store, dataset: DataSet, markers: Iterable[Marker]) -> Manifest:
    """The manifest of the committed shards with these markers."""
    ledger = Ledger(dataset.plan)
    for marker in markers:
        ledger.add(marker)
    return ledger.manifest(store, dataset)


def lists_the_same(payload: bytes, derived: Manifest) -> bool:
    """Whether the manifest.parquet `payload` lists the shards of `derived` as that does; others in it do not count.

    It is read a part at a time: a whole one takes as much memory as all that is known of the shards.

    Raises:
        BadInput: it is no manifest.
    """
    num_same, ours = 0, derived.blocks["shard"].unique().dictionary_decode()
    try:
        file = _open_table(payload)
        metadata = file.schema_arrow.metadata
        if DataSet.model_validate_json(metadata[b"dataset"]) != derived.dataset:
            return False
        for part in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
            listed = pa.table(part).filter(pc.is_in(part["shard"].dictionary_decode(), ours)).cast(SCHEMA)
            if not listed.equals(derived.blocks.slice(num_same, listed.num_rows).cast(SCHEMA)):
                return False
            num_same += listed.num_rows
        is_whole = file.metadata.num_rows == num_same == derived.blocks.num_rows
        return num_same == derived.blocks.num_rows and (not is_whole or metadata[b"sha256"].decode() == derived.sha256)
    except MALFORMED as error:
        raise BadInput(f"{derived.store.location}: {MANIFEST} is not one this version reads") from error


def _starts(num_rows: int) -> range:
    return range(0, num_rows, ROWS_AT_ONCE)


def confirmed_markers(store: Store, plan: Plan, num_records: int) -> Iterator[Marker]:
    """Yield the markers of `read_markers`, but none that the manifest contradicts and its own shard refutes.

    To hash every shard would take as long as `verify` does. A manifest repeats what the markers say, so the two are
    compared, and where they differ the shard decides. A marker of a shard that no manifest lists yet is believed.

    Raises:
        OSError: the store cannot be read.
    """
    listing = _Listing.read(store)
    for marker in read_markers(store, plan, num_records):
        if not listing.contradicts(marker) or marker.describes(store.read(marker.shard.name)):
            yield marker


class _Listing:
    """What a manifest says of each shard, as a checksum: its rows would take as much memory as the ledger."""

    def __init__(self, checksums: Mapping[str, int]) -> None:
        self._checksums = checksums

    @staticmethod
    def read(store: Store) -> "_Listing":
        """That of the manifest in `store`; it lists nothing if there is none that can be read."""
        try:
            payload = store.read(MANIFEST)
        except FileNotFoundError:
            return _Listing({})
        try:
            return _Listing(_checksums(payload))
        except MALFORMED:
            return _Listing({})

    def contradicts(self, marker: Marker) -> bool:
        """Whether the shard of `marker` is listed with other blocks or another sha256."""
        wanted = self._checksums.get(marker.shard.name)
        return wanted is not None and wanted != _checksum(marker.blocks, crc32(marker.sha256.encode()))


def _checksums(payload: bytes) -> dict[str, int]:
    """The checksum of the rows of each shard in the manifest.parquet `payload`, which is read a part at a time.

    Raises:
        MALFORMED: it is no manifest.
    """
    found: dict[str, int] = {}
    for part in _open_table(payload).iter_batches(ROWS_AT_ONCE, use_threads=False):
        rows = np.stack([part[name].to_numpy(zero_copy_only=False) for name in Block._fields], axis=1).astype(np.int64)
        ends = np.flatnonzero(np.diff(part["shard"].indices.to_numpy(), append=-1)) + 1
        for start, end in pairwise([0, *ends.tolist()]):
            name, sha256 = part["shard"][start].as_py(), part["shard_sha256"][start].as_py()
            found[name] = _checksum(rows[start:end], found.get(name, crc32(sha256.encode())))
    return found


def _checksum(blocks: ArrayLike, before: int) -> int:
    """The CRC-32 of `blocks` after that of what stands `before` them."""
    return crc32(np.asarray(blocks, np.int64).tobytes(), before)


def _digest(in_order: Iterable[str]) -> str:
    return hashlib.sha256("".join(in_order).encode()).hexdigest()


def write_manifest(manifest: Manifest) -> None:
    """Write manifest.parquet.

    Raises:
        StoreFailed: it cannot be written; the one before it is untouched.
    """
    buffer, schema = io.BytesIO(), SCHEMA.with_metadata(manifest.blocks.schema.metadata)
    with pq.ParquetWriter(buffer, schema) as writer:
        for start in _starts(manifest.blocks.num_rows):
            for batch in manifest.blocks.slice(start, ROWS_AT_ONCE).cast(schema).to_batches():
                writer.write_batch(batch)
    try:
        manifest.store.write(MANIFEST, buffer.getvalue())
    except OSError as error:
        name = f"{manifest.store.location}: {MANIFEST}"
        raise StoreFailed(f"{name} cannot be written ({reason(error)}); run generate again") from error


def read_manifest(store: Store) -> Manifest:
    """The manifest of the data set in `store`, which holds all of its records.

    Raises:
        BadInput: there is none, it cannot be parsed, or records of the data set are missing.
        StoreFailed: the store cannot be read.
    """
    try:
        manifest = parse_manifest(store, store.read(MANIFEST))
    except FileNotFoundError as error:
        raise BadInput(
            f"{store.location}: wanted a data set; {absence(store, MANIFEST)}; "
            f"run traflow-pipeline generate --out {quote(store.location)}"
        ) from error
    except OSError as error:
        raise StoreFailed(f"{store.location}: {MANIFEST} cannot be read ({reason(error)})") from error
    if not manifest.blocks.num_rows:
        raise BadInput(
            f"{store.location}: the data set is empty; "
            f"run traflow-pipeline generate --out {quote(store.location)} again"
        )
    if manifest.num_records != manifest.dataset.num_records:
        raise BadInput(
            f"{store.location} holds {manifest.num_records} of its {manifest.dataset.num_records} records; "
            f"run traflow-pipeline generate again, or ask it for --n {manifest.num_records}"
        )
    return manifest


def parse_manifest(store: Store, payload: bytes) -> Manifest:
    """The manifest in the bytes of a manifest.parquet, whole or partial.

    Raises:
        BadInput: it is none.
    """
    try:
        table = _open_table(payload).read(use_threads=False)
        metadata = table.schema.metadata
        dataset = DataSet.model_validate_json(metadata[b"dataset"])
        manifest = Manifest(store, dataset, table, metadata[b"sha256"].decode())
        _check_rows(manifest)
        return manifest
    except MALFORMED as error:
        raise BadInput(
            f"{store.location}: {MANIFEST} is not one this version reads; run traflow-pipeline generate again"
        ) from error


def _open_table(payload: bytes) -> pq.ParquetFile:
    """Without arrow's thread pool: a process that exits soon after its creation often aborts (pyarrow 26)."""
    file = pq.ParquetFile(io.BytesIO(payload), pre_buffer=False, read_dictionary=OF_SHARD)
    if file.metadata.num_rows * ROW_BYTES > len(payload):
        raise ValueError("more rows than bytes")
    return file


def _check_rows(manifest: Manifest) -> None:
    """Raises `ValueError` unless the rows are blocks of the plan, in order, whose digest is the manifest's."""
    table, plan = manifest.blocks, manifest.plan
    if not table.schema.equals(IN_MEMORY) or any(column.null_count for column in table.columns):
        raise ValueError("wanted other columns")
    first, counts = table["first_index"].to_numpy(), manifest.counts
    in_order = (first >= 0).all() and (first % plan.block_size == 0).all() and (np.diff(first) >= plan.block_size).all()
    are_blocks = (counts > 0).all() and (counts <= plan.block_size).all()
    are_places = all((table[name].to_numpy() >= 0).all() for name in ("offset", "num_bytes", "nfe"))
    shards = table["shard"].combine_chunks()
    names = shards.dictionary.to_pylist()
    numbers = np.array([int(name[6:-4]) for name in names if SHARD_FILE.fullmatch(name)], np.int64)
    if not (in_order and are_blocks and are_places and len(numbers) == len(names)):
        raise ValueError("wanted blocks in order")
    if (numbers[shards.indices.to_numpy()] != first // plan.shard_size).any():
        raise ValueError("wanted blocks of their shards")
    starts = np.flatnonzero(first % plan.shard_size == 0)
    if _digest(table["shard_sha256"].take(starts).to_pylist()) != manifest.sha256:
        raise ValueError("wanted the digest of its shards")
