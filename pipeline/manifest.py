"""What a data set holds: its plan, and a parquet table of where each committed block lies.

The markers beside the shards are the truth; the table is derived from them and can be made again at any time.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import BadInput, StoreFailed
from pipeline.plan import Plan
from pipeline.shards import Receipt
from pipeline.store import Store, reason

PLAN = "plan.json"
MANIFEST = "manifest.parquet"
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


class DataSet(BaseModel):
    """The content of plan.json: the first `num_records` records of `plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    num_records: int
    teacher_source: str  # what loads the teacher: its name, an absolute path or module:factory


@dataclass(frozen=True)
class Manifest:
    """The committed blocks of a data set, in the order of their records."""

    store: Store
    dataset: DataSet
    blocks: pa.Table  # columns as in SCHEMA
    sha256: str  # digest over the shards' sha256 in order: the identity of the data

    @property
    def plan(self) -> Plan:
        return self.dataset.plan

    @property
    def num_records(self) -> int:
        """Of the committed blocks."""
        return int(self.counts.sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Records of each block."""
        counts: NDArray[np.int64] = self.blocks["num_records"].to_numpy()
        return counts

    @property
    def num_bytes(self) -> int:
        return int(self.blocks["num_bytes"].to_numpy().sum())

    @property
    def mean_nfe(self) -> float:
        """Solver evaluations of a sample, averaged over the samples."""
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
        message = error.errors()[0]["msg"]
        raise BadInput(f"{store.location}: {PLAN} is not a plan this version reads ({message})") from error


def write_dataset(store: Store, dataset: DataSet) -> None:
    """Write plan.json; done before the first shard, so that no folder holds shards of unknown origin."""
    store.write(PLAN, dataset.model_dump_json(indent=1).encode())


def derive(store: Store, dataset: DataSet, receipts: Iterable[Receipt]) -> Manifest:
    """The manifest that the markers of the committed shards add up to."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    receipts = sorted(receipts, key=lambda receipt: receipt.shard.number)
    for receipt in receipts:
        for block in receipt.blocks:
            batch = (block.first_index - receipt.shard.first_index) // dataset.plan.batch_size
            row = {"shard": receipt.shard.name, "shard_sha256": receipt.sha256, "nfe": receipt.nfe[batch]}
            for name, value in (row | block._asdict()).items():
                columns[name].append(value)
    sha256 = digest(receipts)
    table = pa.table(columns, schema=SCHEMA.with_metadata({"dataset": dataset.model_dump_json(), "sha256": sha256}))
    return Manifest(store, dataset, table, sha256)


def digest(receipts: Iterable[Receipt]) -> str:
    """The identity of the data: sha256 over the shards' sha256 in order."""
    in_order = sorted(receipts, key=lambda receipt: receipt.shard.number)
    return hashlib.sha256("".join(receipt.sha256 for receipt in in_order).encode()).hexdigest()


def write_manifest(manifest: Manifest) -> None:
    """Write manifest.parquet.

    Raises:
        StoreFailed: it cannot be written; the one before it is untouched.
    """
    buffer = io.BytesIO()
    pq.write_table(manifest.blocks, buffer)
    try:
        manifest.store.write(MANIFEST, buffer.getvalue())
    except OSError as error:
        place = f"{manifest.store.location}: {MANIFEST}"
        raise StoreFailed(f"{place} cannot be written ({reason(error)}); run generate again") from error


def read_manifest(store: Store) -> Manifest:
    """The manifest of the data set in `store`, which holds all of its records.

    Raises:
        BadInput: there is none, it cannot be understood, or records of the set are missing.
        StoreFailed: the store cannot be read.
    """
    try:
        manifest = parse_manifest(store, store.read(MANIFEST))
    except FileNotFoundError as error:
        raise BadInput(
            f"{store.location}: wanted a data set; there is no {MANIFEST}; "
            f"run traflow-pipeline generate --out {store.location}"
        ) from error
    except OSError as error:
        raise StoreFailed(f"{store.location}: {MANIFEST} cannot be read ({reason(error)})") from error
    if not manifest.blocks.num_rows:
        raise BadInput(
            f"{store.location}: the data set is empty; run traflow-pipeline generate --out {store.location} again"
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
        # In this thread alone: a process that ends soon after arrow's pool was made may abort (pyarrow 26, seen often).
        table = pq.ParquetFile(io.BytesIO(payload), pre_buffer=False).read(use_threads=False)
        about = table.schema.metadata
        dataset = DataSet.model_validate_json(about[b"dataset"])
        if not table.schema.equals(SCHEMA):
            raise KeyError("columns")
        return Manifest(store, dataset, table, about[b"sha256"].decode())
    except (pa.ArrowException, ValidationError, KeyError, TypeError) as error:
        raise BadInput(
            f"{store.location}: {MANIFEST} is not one this version reads; run traflow-pipeline generate again"
        ) from error
