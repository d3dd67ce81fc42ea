import shutil
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import WorkFailed
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage.store import Bucket, Folder, open_store
from tests.support.problems import folder_of
from trainer.data.image_set import ImageSet
from trainer.data.stream import WINDOW_BLOCKS, ImageStream, TrajectoryStream

N = 27  # in blocks of two, the last one of one; in shards of eight


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "teacher": "tests.support.problems:gaussian",
        "n": N,
        "out": tmp_path_factory.mktemp("streams") / "data",
        "states": 1,
        "executor": "inline",
        "solver": {"name": "euler", "num_steps": 2},
        "shard_size": 8,
        "batch_size": 4,
        "block_size": 2,
    }
    return folder_of(generate(GenerateConfig.model_validate(values)))


@lru_cache
def manifest(path: Path) -> Manifest:
    return read_manifest(Folder(path))


def part(path: Path, first: int, blocks: int) -> Manifest:
    """The data set of some blocks of the one in `path`: any number of records from 1 to N."""
    return replace(manifest(path), blocks=manifest(path).blocks.slice(first, blocks))


parts = st.integers(0, 13).flatmap(lambda first: st.tuples(st.just(first), st.integers(1, 14 - first)))

windows = st.sampled_from([0, 1, 4, 16])


@pytest.fixture(scope="module")
def remote(folder: Path) -> Manifest:
    store = open_store("memory://streams/data")
    for path in folder.iterdir():
        store.write(path.name, path.read_bytes())
    return read_manifest(store)


def indices(stream: TrajectoryStream, steps: range, rank: int = 0, world: int = 1) -> list[int]:
    return [i for step in steps for i in stream.batch(step, rank, world).index.tolist()]


@settings(deadline=None, max_examples=60)
@given(blocks=parts, batch_size=st.integers(1, 9), seed=st.integers(0, 99), epochs=st.integers(1, 3), window=windows)
def test_every_epoch_has_every_record_exactly_once(
    folder: Path, blocks: tuple[int, int], batch_size: int, seed: int, epochs: int, window: int
) -> None:
    data = part(folder, *blocks)
    size, wanted = data.num_records, range(2 * blocks[0], 2 * blocks[0] + data.num_records)
    stream = TrajectoryStream(data, seed, batch_size, window_blocks=window)
    drawn = indices(stream, range(-(-epochs * size // batch_size)))
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(wanted)


@settings(deadline=None, max_examples=60)
@given(
    blocks=parts,
    share=st.integers(1, 5),
    world=st.integers(1, 6),
    step=st.integers(0, 50),
    seed=st.integers(0, 99),
    window=windows,
)
def test_any_world_size_sees_the_same_global_batches_and_all_ranks_as_many(
    folder: Path, blocks: tuple[int, int], share: int, world: int, step: int, seed: int, window: int
) -> None:
    stream = TrajectoryStream(part(folder, *blocks), seed, share * world, window_blocks=window)
    ranks = [stream.batch(step, rank, world) for rank in range(world)]
    whole = stream.batch(step)
    assert {len(rank) for rank in ranks} == {share}
    torch.testing.assert_close(torch.cat([rank.x for rank in ranks]), whole.x, rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(
    blocks=parts,
    batch_size=st.sampled_from([2, 4, 6]),
    seed=st.integers(0, 99),
    first=st.integers(0, 60),
    world=st.sampled_from([1, 2]),
)
def test_a_stream_that_starts_at_a_step_goes_on_as_one_that_came_there(
    folder: Path, blocks: tuple[int, int], batch_size: int, seed: int, first: int, world: int
) -> None:
    came, started = (TrajectoryStream(part(folder, *blocks), seed, batch_size) for _ in range(2))
    indices(came, range(first), 0, world)
    steps = range(first, first + 5)
    assert indices(came, steps, 0, world) == indices(started, steps, 0, world)


@settings(deadline=None, max_examples=20)
@given(batch_size=st.integers(1, 9), seed=st.integers(0, 99), first=st.integers(0, 30), window=windows)
def test_a_remote_stream_is_the_local_one(
    folder: Path, remote: Manifest, batch_size: int, seed: int, first: int, window: int
) -> None:
    steps = range(first, first + 8)
    here, there = (TrajectoryStream(m, seed, batch_size, window_blocks=window) for m in (manifest(folder), remote))
    assert indices(there, steps) == indices(here, steps)


def test_all_ranks_together_fetch_every_byte_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"teacher": "tests.support.problems:gaussian", "n": 2048, "states": 0, "velocities": False}
    place = {"out": "memory://fetched/data", "executor": "inline", "solver": {"name": "euler", "num_steps": 1}}
    data = generate(GenerateConfig.model_validate(values | place))  # in shards and blocks of the default sizes
    fetched, read_range = [0], Bucket.read_range

    def counted(self: Bucket, name: str, start: int, end: int) -> memoryview:
        fetched.append(end - start)
        return read_range(self, name, start, end)

    monkeypatch.setattr(Bucket, "read_range", counted)
    monkeypatch.setattr("trainer.data.stream.AHEAD_BLOCKS", 0)  # a step then prefetches the next alone
    for world in (1, 2, 8):
        fetched.clear()
        for rank in range(world):
            stream = TrajectoryStream(data, 0, 64, window_blocks=WINDOW_BLOCKS)
            indices(stream, range(2048 // 64 - 1), rank, world)  # the last step would prefetch of the next epoch
            stream.close()
        assert sum(fetched) == data.num_bytes


def test_velocities_that_a_recipe_does_not_need_are_left_on_the_disk(folder: Path) -> None:
    with_them, without = (
        TrajectoryStream(manifest(folder), 0, 7, velocities=wanted).batch(0) for wanted in (True, False)
    )
    assert with_them.velocity is not None
    assert without.velocity is None
    torch.testing.assert_close(without.x, with_them.x, rtol=0, atol=0)


def test_a_batch_that_ranks_cannot_share_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared evenly by 5 ranks"):
        TrajectoryStream(manifest(folder), 0, 12).batch(0, 0, 5)


def test_a_batch_is_what_was_generated(folder: Path) -> None:
    batch = TrajectoryStream(manifest(folder), 0, 7).batch(0)
    assert batch.x.shape == (7, 3, 1, 4, 4)
    assert batch.times.shape == (7, 3)
    assert batch.velocity is not None
    assert batch.velocity.shape == batch.x.shape
    assert batch.label is None
    # Two Euler steps: the middle state follows from the start and its velocity.
    step = (batch.times[:, 1] - batch.times[:, 0])[:, None, None, None]
    torch.testing.assert_close(batch.x[:, 1], batch.x[:, 0] + step * batch.velocity[:, 0], atol=2e-3, rtol=0)


def test_another_seed_is_another_order(folder: Path) -> None:
    one, two = (indices(TrajectoryStream(manifest(folder), seed, N), range(1)) for seed in (0, 1))
    assert one != two
    assert Counter(one) == Counter(two)


def test_a_shard_that_fails_its_checksum_is_named(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    shard = damaged / "shard-000000.tar"
    payload = bytearray(shard.read_bytes())
    payload[1000] ^= 1
    shard.write_bytes(payload)
    with pytest.raises(WorkFailed, match=r"shard-000000\.tar: bytes 0 to 8192 are not those that were committed; see"):
        TrajectoryStream(read_manifest(Folder(damaged)), 0, N).batch(0)
    shard.unlink()
    with pytest.raises(WorkFailed, match=r"shard-000000\.tar: cannot be read"):
        TrajectoryStream(read_manifest(Folder(damaged)), 0, N).batch(0)


def test_an_image_stream_gives_every_image_once_an_epoch() -> None:
    images = ImageSet("counts", np.arange(10, dtype=np.uint8).repeat(4).reshape(10, 1, 2, 2), np.arange(10))
    stream = ImageStream(images, 10, seed=0, batch_size=4)
    batches = [stream.batch(step) for step in range(5)]
    labels = torch.cat([batch.label for batch in batches if batch.label is not None])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist()) == list(range(10))
    halves = [stream.batch(1, rank, 2).index for rank in (0, 1)]
    assert torch.cat(halves).tolist() == batches[1].index.tolist()
