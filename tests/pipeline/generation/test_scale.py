"""What the driver keeps of a set of very many shards, and what it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.commit import parse_marker
from pipeline.dataset.manifest import MANIFEST, SCHEMA, DataSet, Ledger, derive, read_manifest, write_manifest
from pipeline.dataset.plan import Plan, Shards
from pipeline.dataset.shards import Marker, sha256
from pipeline.generation.generate import generate, missing_shards
from pipeline.storage.store import Folder
from tests.support import fake_work
from tests.support.plans import config, make_plan
from tests.support.problems import shard_bytes

MEGABYTES = {10_000: 100, 100_000: 300}  # a third to a half more than was measured; markers as objects take 6 kB each


def cost(how: str, num_shards: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.support.fake_work", how, str(num_shards)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


@pytest.mark.parametrize("how", ["make", "resume", "verify", "inspect"])
@pytest.mark.parametrize("num_shards", [10_000, pytest.param(100_000, marks=pytest.mark.proof)])
def test_a_command_on_very_many_shards_takes_little_memory_and_less_than_a_millisecond_each(
    how: str, num_shards: int
) -> None:
    found = cost(how, num_shards)
    assert found["num_records"] == num_shards * fake_work.SHARD_SIZE
    assert found["megabytes"] < MEGABYTES[num_shards]
    assert found["milliseconds_per_shard"] < 1


def receipts_of(plan: Plan, num_shards: int) -> list[Marker]:
    return [fake_work.marker(plan, shard) for shard in plan.shards(num_shards * plan.shard_size)]


PLAN = make_plan(shard_size=fake_work.SHARD_SIZE, batch_size=fake_work.BATCH_SIZE, block_size=fake_work.BLOCK_SIZE)
RECEIPTS = receipts_of(PLAN, 6)


@given(num_records=st.integers(1, 100))
def test_shards_made_when_asked_for_are_those_of_the_plan(num_records: int) -> None:
    plan = make_plan()
    shards, whole = plan.shards(num_records), list(plan.shards(num_records))
    assert len(shards) == len(whole) == -(-num_records // plan.shard_size)
    assert sum(shard.num_records for shard in whole) == num_records
    assert list(shards[1:3]) == whole[1:3]
    assert shards[-1] == whole[-1]
    assert list(Shards(plan, num_records, [0])) == whole[:1]


@settings(deadline=None)  # arrow starts with the first
@given(committed=st.lists(st.sampled_from(RECEIPTS), unique=True))
def test_the_manifest_lists_the_blocks_of_the_markers_in_order_however_they_come(committed: list[Marker]) -> None:
    dataset = DataSet(plan=PLAN, num_records=6 * PLAN.shard_size, teacher_source="x")
    manifest = derive(Folder(Path("nowhere")), dataset, committed)
    in_order = sorted(committed, key=lambda marker: marker.shard.number)
    assert manifest.blocks.to_pylist() == [
        {
            "shard": marker.shard.name,
            "shard_sha256": marker.sha256,
            **block._asdict(),
            "nfe": marker.nfe[i * PLAN.block_size // PLAN.batch_size],
        }
        for marker in in_order
        for i, block in enumerate(marker.blocks)
    ]
    assert manifest.sha256 == sha256("".join(marker.sha256 for marker in in_order).encode())


@given(committed=st.sets(st.integers(0, 5)), num_records=st.integers(1, 6 * PLAN.shard_size))
def test_the_shards_to_make_are_those_that_are_not_there_whole(committed: set[int], num_records: int) -> None:
    ledger = Ledger(PLAN, 6 * PLAN.shard_size)
    for number in committed:
        ledger.add(RECEIPTS[number])
    missing = [shard for shard in PLAN.shards(num_records) if shard.number not in committed]
    assert list(missing_shards(PLAN, num_records, ledger)) == missing


def test_a_manifest_of_more_rows_than_are_written_at_once_is_read_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = DataSet(plan=PLAN, num_records=6 * PLAN.shard_size, teacher_source="x")
    manifest = derive(Folder(tmp_path), dataset, RECEIPTS)
    monkeypatch.setattr("pipeline.dataset.manifest.ROWS_AT_ONCE", 7)
    write_manifest(manifest)
    found = read_manifest(manifest.store)
    assert found.blocks.to_pylist() == manifest.blocks.to_pylist()
    assert found.sha256 == manifest.sha256
    assert pq.read_schema(tmp_path / MANIFEST).equals(SCHEMA), "as files of earlier versions, which spell it out"


def test_a_manifest_is_the_file_that_a_table_written_at_once_would_be(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    table = pq.read_table(tmp_path / "data" / MANIFEST)
    pq.write_table(table, tmp_path / "at-once.parquet")
    assert (tmp_path / "data" / MANIFEST).read_bytes() == (tmp_path / "at-once.parquet").read_bytes()


def test_a_marker_whose_blocks_are_not_those_of_the_plan_counts_as_missing(tmp_path: Path) -> None:
    before = shard_bytes(generate(config(tmp_path / "data")))
    path = tmp_path / "data" / "shard-000001.json"
    marker = parse_marker(path.read_bytes())
    assert marker is not None
    no_records = {"shard": marker.shard.model_copy(update={"num_records": 0}), "blocks": (), "nfe": ()}
    too_long = marker.blocks[0]._replace(num_records=3)
    for wrong in (
        {"blocks": marker.blocks[:1]},
        {"blocks": marker.blocks[::-1]},
        {"blocks": (too_long,)},
        no_records,
    ):
        path.write_text(marker.model_copy(update=wrong).model_dump_json())
        assert shard_bytes(generate(config(tmp_path / "data"))) == before
        assert parse_marker(path.read_bytes()).blocks == marker.blocks  # type: ignore[union-attr]
