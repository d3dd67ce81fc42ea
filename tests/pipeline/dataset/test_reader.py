import uuid
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import StoreFailed, WorkFailed
from pipeline.dataset import reader
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import MEMBERS, read_block
from pipeline.generation.generate import generate
from pipeline.storage.store import Bucket, Folder, Store, open_store
from tests.support.plans import config


def copy(manifest: Manifest, store: Store) -> Manifest:
    for name in manifest.store.sizes():
        store.write(name, manifest.store.read(name))
    return read_manifest(store)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten blocks of two records."""
    return generate(config(tmp_path_factory.mktemp("reader") / "data"))


@pytest.fixture
def remote(local: Manifest) -> Manifest:
    return copy(local, open_store(f"memory://{uuid.uuid4().hex}/data"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets that remote stores are asked for, in order."""
    offsets: list[int] = []
    read_range = Bucket.read_range

    def told(self: Bucket, name: str, start: int, end: int) -> memoryview:
        offsets.append(int(name.removesuffix(".tar")[-2:]) * 10**6 + start)
        return read_range(self, name, start, end)

    monkeypatch.setattr(Bucket, "read_range", told)
    return offsets


def test_a_block_is_the_same_from_a_folder_from_a_remote_store_and_as_it_was_parsed_alone(
    local: Manifest, remote: Manifest
) -> None:
    readers = BlockReader(local), BlockReader(remote)
    for i, row in enumerate(local.blocks.to_pylist()):
        shard = local.store.read(row["shard"])
        alone = read_block(shard[row["offset"] : row["offset"] + row["num_bytes"]])
        for found in (each.read(i) for each in readers):
            for name in MEMBERS:
                np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_blocks_to_come_are_fetched_ahead_and_once(remote: Manifest, asked: list[int]) -> None:
    blocks = BlockReader(remote)
    blocks.prefetch(iter(range(10)))
    for block in range(10):
        blocks.read(block)
    assert len(asked) == len(set(asked)) == 10


def test_velocities_that_are_not_needed_are_fetched_once_for_the_checksum(
    local: Manifest, remote: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MIN_GAP", 1)
    monkeypatch.setattr(reader, "CACHED_BLOCKS", 1)
    blocks = BlockReader(remote, velocities=False)
    fetched, read_range = [0], Bucket.read_range

    def counted(self: Bucket, name: str, start: int, end: int) -> memoryview:
        fetched.append(end - start)
        return read_range(self, name, start, end)

    monkeypatch.setattr(Bucket, "read_range", counted)
    plan = local.plan
    velocities = local.num_records * plan.num_times * int(np.prod(plan.shape)) * np.dtype(plan.dtype).itemsize
    for num_bytes in (local.num_bytes, local.num_bytes - velocities, local.num_bytes - velocities):
        fetched.clear()
        for block in range(10):
            found, whole = blocks.read(block), BlockReader(local, velocities=False).read(block)
            for name in MEMBERS:
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        assert sum(fetched) + trailers(local) == num_bytes
    blocks.close()


def trailers(manifest: Manifest) -> int:
    """The bytes of the shards that are in no block: the ends of their tars."""
    return manifest.num_bytes - int(manifest.blocks["num_bytes"].to_numpy().sum())


def test_no_block_is_fetched_twice_while_it_is_expected(remote: Manifest, asked: list[int]) -> None:
    blocks = BlockReader(remote)
    for block in range(10):
        blocks.prefetch([(block + ahead) % 10 for ahead in range(3)])
        blocks.read(block)
    blocks.close()
    assert len(asked) <= 12
    assert len(set(asked)) == 10


def test_a_shard_that_was_cut_after_it_was_checked_is_named(local: Manifest, tmp_path: Path) -> None:
    manifest = copy(local, Folder(tmp_path))
    blocks = BlockReader(manifest)
    for block in range(10):
        blocks.read(block)
    shard = tmp_path / "shard-000001.tar"
    Folder(tmp_path).write(shard.name, shard.read_bytes()[:1000])
    with pytest.raises(WorkFailed, match=r"shard-000001\.tar: bytes 0 to \d+ are not those that were committed"):
        blocks.read(2)


def test_a_folder_is_not_read_ahead(local: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> memoryview:
        raise AssertionError("nobody asked for it")

    blocks = BlockReader(local)
    monkeypatch.setattr(Folder, "read_range", never)
    blocks.prefetch(range(10))


def test_bytes_that_are_not_those_committed_are_named(local: Manifest, tmp_path: Path) -> None:
    manifest = copy(local, Folder(tmp_path))
    row = manifest.blocks.to_pylist()[3]
    shard = bytearray((tmp_path / row["shard"]).read_bytes())
    shard[row["offset"] + 600] ^= 1
    (tmp_path / row["shard"]).write_bytes(shard)
    blocks = BlockReader(manifest)
    blocks.read(2)
    place = rf"{row['shard']}: bytes {row['offset']} to {row['offset'] + row['num_bytes']} are not those"
    with pytest.raises(WorkFailed, match=place + ".*see traflow-pipeline verify"):
        blocks.read(3)


def test_a_cut_or_a_lost_shard_is_named(local: Manifest, tmp_path: Path) -> None:
    manifest = copy(local, Folder(tmp_path))
    (tmp_path / "shard-000001.tar").write_bytes(b"")
    (tmp_path / "shard-000002.tar").unlink()
    blocks = BlockReader(manifest)
    with pytest.raises(WorkFailed, match=r"shard-000001\.tar: bytes 0 to \d+ are not those that were committed"):
        blocks.read(2)
    with pytest.raises(StoreFailed, match=r"shard-000002\.tar: cannot be read \(No such file"):
        blocks.read(4)


def test_a_read_that_failed_can_be_tried_again(remote: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, read_range = BlockReader(remote), Bucket.read_range

    def away(*_: object) -> memoryview:
        raise TimeoutError(110, "no answer")

    monkeypatch.setattr(Bucket, "read_range", away)
    with pytest.raises(StoreFailed, match=r"cannot be read \(no answer\)"):
        blocks.read(0)
    monkeypatch.setattr(Bucket, "read_range", read_range)
    assert blocks.read(0).index.tolist() == [0, 1]
