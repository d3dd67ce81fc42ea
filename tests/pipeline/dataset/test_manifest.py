import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import BadInput
from pipeline.dataset.commit import parse_marker
from pipeline.dataset.manifest import MANIFEST, PLAN, Manifest, read_manifest
from pipeline.dataset.summary import summarise
from pipeline.generation.generate import generate
from pipeline.generation.verify import verify
from pipeline.storage.store import Folder
from tests.support.plans import config

FIRST = "shard-000000.json"


def make(folder: Path) -> Manifest:
    return generate(config(folder, n=8, solver={"name": "euler", "num_steps": 3}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make(tmp_path_factory.mktemp("whole") / "data").store.location)


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": "0" * 64},
        {"blocks": [[0, 512, 0, 2, 7], [512, 512, 2, 2, 7]]},
        {"num_bytes": 2**63},
        {"nfe": [2**40, 3]},
        {"wall_seconds": float("nan")},
    ],
)
def test_a_shard_whose_marker_was_damaged_is_made_again_and_the_digest_stays(
    whole: Path, data: Path, fields: dict[str, Any]
) -> None:
    text = (data / FIRST).read_bytes()
    change(data / FIRST, **fields)
    assert summarise(Folder(data)).num_shards == 1
    assert make(data).sha256 == read_manifest(Folder(whole)).sha256
    remade, original = parse_marker((data / FIRST).read_bytes()), parse_marker(text)
    assert remade is not None
    assert original is not None
    assert remade.agrees(original)
    assert not verify(Folder(data)).faults


def test_a_manifest_that_was_damaged_is_written_again_and_no_shard_is(data: Path) -> None:
    digest, before = read_manifest(Folder(data)).sha256, {p.name: p.stat().st_mtime_ns for p in data.glob("*.tar")}
    (data / MANIFEST).write_bytes(b"PAR1" * 100)
    assert make(data).sha256 == read_manifest(Folder(data)).sha256 == digest
    assert {p.name: p.stat().st_mtime_ns for p in data.glob("*.tar")} == before


Change = Callable[[pa.Table], pa.Table]


def column(name: str, values: list[Any]) -> Change:
    def changed(table: pa.Table) -> pa.Table:
        field = table.schema.get_field_index(name)
        return table.set_column(field, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    return changed


def metadata(**changes: bytes) -> Change:
    named = {name.encode(): value for name, value in changes.items()}
    return lambda table: table.replace_schema_metadata(table.schema.metadata | named)


@pytest.mark.parametrize(
    "changed",
    [
        metadata(sha256=b"\xff\xfe"),
        metadata(dataset=b"\xff\xfe"),
        metadata(sha256=b"0" * 64),
        column("num_records", [2, None, 2, 2]),
        column("num_records", [2, 3, 2, 1]),
        column("offset", [0, -1, 0, 1]),
        column("first_index", [0, 2, 2, 6]),
        column("shard", ["../../x.tar"] * 4),
        column("shard", ["shard-000000.tar"] * 4),
        column("shard_sha256", ["0" * 64] * 4),
        lambda table: table.slice(0, 0),
        lambda table: table.drop(["crc32"]),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(data: Path, changed: Change) -> None:
    pq.write_table(changed(pq.read_table(data / MANIFEST)), data / MANIFEST)
    with pytest.raises(
        BadInput, match=r"manifest.parquet is not one this version reads; run traflow-pipeline generate"
    ):
        read_manifest(Folder(data))


def test_a_number_of_records_that_nothing_bears_out_takes_neither_time_nor_memory(data: Path) -> None:
    change(data / PLAN, num_records=640_000_000_000)
    started = time.process_time()
    tracemalloc.start()
    assert summarise(Folder(data)).table().row_count
    faults = [str(fault) for fault in verify(Folder(data)).faults]
    make(data)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults[0].startswith("shard-000002.tar to shard-159999999999.tar: missing: records 8 to 639999999999 ")
    assert memory < 5e7
    assert time.process_time() - started < 5


def test_evaluations_far_apart_are_counted_without_a_step_for_each(data: Path) -> None:
    change(data / FIRST, nfe=[3, 2**31 - 1])
    (data / MANIFEST).unlink()
    assert sum(records for _, records in summarise(Folder(data)).nfe) == 8
