import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.common.errors import WorkFailed
from pipeline.dataset.commit import commit, read_markers
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.shards import MEMBERS, Trajectories, read_block, write_shard
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage.store import Folder
from tests.support.plans import make_plan
from tests.support.problems import folder_of


def records(plan: Plan, first: int, count: int) -> Trajectories:
    rng = np.random.default_rng(first)

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal((count, *shape, *plan.shape)).astype(plan.dtype)

    return Trajectories(
        noise=values(),
        sample=values(),
        states=values(plan.num_states),
        velocities=values(plan.num_times) if plan.velocities else None,
        times=np.tile(plan.times(first).numpy(), (count, 1)),
        label=np.full(count, -1),
        index=np.arange(first, first + count),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten records of the Gaussian flow in two shards."""
    config = {
        "teacher": "tests.support.problems:gaussian",
        "n": 10,
        "out": tmp_path_factory.mktemp("data") / "set",
        "states": 3,
        "executor": "inline",
        "shard_size": 8,
        "batch_size": 4,
        "block_size": 2,
    }
    return generate(GenerateConfig.model_validate(config))


def test_a_block_read_back_is_the_block_written() -> None:
    plan = make_plan()
    blocks = [records(plan, 0, 2), records(plan, 2, 2)]
    payload, places = write_shard(plan, blocks)
    for block, place in zip(blocks, places, strict=True):
        found = read_block(payload[place.offset : place.offset + place.num_bytes])
        for name in MEMBERS:
            np.testing.assert_array_equal(getattr(found, name), getattr(block, name))


def test_the_bytes_depend_on_the_records_alone() -> None:
    plan = make_plan()
    first, _ = write_shard(plan, [records(plan, 0, 2)])
    second, _ = write_shard(plan, [records(plan, 0, 2)])
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}


def test_a_plan_without_velocities_stores_none() -> None:
    plan = make_plan(velocities=False)
    payload, (place,) = write_shard(plan, [records(plan, 0, 2)])
    assert b"velocities" not in payload
    assert read_block(payload[: place.num_bytes]).velocities is None


def test_stock_webdataset_reads_the_shards(data: Manifest) -> None:
    urls = [str(path) for path in sorted(folder_of(data).glob("*.tar"))]
    blocks = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [block["__key__"] for block in blocks] == [f"{i:09d}" for i in range(0, 10, 2)]
    assert blocks[0]["states.npy"].shape == (2, 3, 1, 4, 4)
    assert blocks[0]["velocities.npy"].shape == (2, 5, 1, 4, 4)
    assert blocks[0]["json"]["teacher"] == "gaussian"

    members = ("noise.npy", "sample.npy", "index.npy")
    rows = list(wds.WebDataset(urls, shardshuffle=False).decode().to_tuple(*members).unbatched())
    assert [int(index) for _, _, index in rows] == list(range(10))
    assert rows[0][0].shape == rows[0][1].shape == (1, 4, 4)


def test_the_manifest_knows_where_every_block_lies(data: Manifest) -> None:
    found = read_manifest(data.store)
    assert found.sha256 == data.sha256
    assert found.num_records == 10
    for row in found.blocks.to_pylist():
        shard = (folder_of(data) / row["shard"]).read_bytes()
        block = read_block(shard[row["offset"] : row["offset"] + row["num_bytes"]])
        assert block.index.tolist() == list(range(row["first_index"], row["first_index"] + row["num_records"]))


def test_a_folder_that_cannot_be_written_names_the_shard_and_keeps_nothing(
    data: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = next(read_markers(data.store, data.plan, 10))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailed, match=r"shard 000000 \(records 0 to 7\).*No space left"):
        commit(Folder(tmp_path), b"bytes", marker)
    assert list(tmp_path.iterdir()) == []
