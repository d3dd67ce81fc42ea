"""What a data folder holds: its plan, and a parquet table of where each committed block lies.

The markers beside the shards are the truth; the table is derived from them and can be made again at any time.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import BadInput, WorkFailed
from pipeline.plan import Plan
from pipeline.shards import Receipt, write_atomic

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
    """The committed blocks of a data folder, in the order of their records."""

    folder: Path
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


def read_dataset(folder: Path) -> DataSet | None:
    """The plan of `folder`, or None if it has none yet.

    Raises:
        BadInput: plan.json is not a plan.
    """
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        return DataSet.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{path}: not a plan this version reads ({error.errors()[0]['msg']})") from error


def write_dataset(folder: Path, dataset: DataSet) -> None:
    """Write plan.json; done before the first shard, so that no folder holds shards of unknown origin."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PLAN, dataset.model_dump_json(indent=1).encode())


def write_manifest(folder: Path, dataset: DataSet, receipts: Iterable[Receipt]) -> Manifest:
    """Write manifest.parquet from the markers of the committed shards."""
    rows = []
    digest = hashlib.sha256()
    for receipt in sorted(receipts, key=lambda receipt: receipt.shard.number):
        digest.update(receipt.sha256.encode())
        shard = {"shard": receipt.shard.name, "shard_sha256": receipt.sha256}
        for block in receipt.blocks:
            batch = (block.first_index - receipt.shard.first_index) // dataset.plan.batch_size
            rows.append({**shard, **block.model_dump(), "nfe": receipt.nfe[batch]})
    about = {"dataset": dataset.model_dump_json(), "sha256": digest.hexdigest()}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(about))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    try:
        write_atomic(folder / MANIFEST, buffer.getvalue())
    except OSError as error:
        raise WorkFailed(f"{folder / MANIFEST}: cannot be written ({error.strerror}); run generate again") from error
    return Manifest(folder, dataset, table, digest.hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data folder.

    Raises:
        BadInput: there is none, it cannot be read, or records of the set are missing.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise BadInput(
            f"{folder}: wanted a data set; there is no {MANIFEST}; run traflow-pipeline generate --out {folder}"
        )
    try:
        table = pq.read_table(path)
        about = table.schema.metadata
        dataset = DataSet.model_validate_json(about[b"dataset"])
        digest = about[b"sha256"].decode()
    except (pa.ArrowException, ValidationError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a manifest this version reads; run traflow-pipeline generate again") from error
    if not table.num_rows:
        raise BadInput(f"{folder}: the data set is empty; run traflow-pipeline generate --out {folder} again")
    manifest = Manifest(folder, dataset, table, digest)
    if manifest.num_records < dataset.num_records:
        raise BadInput(
            f"{folder} holds {manifest.num_records} of its {dataset.num_records} records; "
            f"run traflow-pipeline generate again, or ask it for --n {manifest.num_records}"
        )
    return manifest
