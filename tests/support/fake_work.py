"""Drives a command over shards that cost nothing: `python -m tests.support.fake_work HOW SHARDS` prints the cost.

HOW is `make`, where workers answer at once with markers of their own invention, or `resume`, `verify` or `inspect`,
where a store says that every shard is committed already. In a process of its own, so that its memory is the command's.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pipeline.dataset.commit import marker_name
from pipeline.dataset.manifest import DataSet, Manifest, write_dataset
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Block, Marker, Trajectories, sha256
from pipeline.dataset.summary import summarise
from pipeline.flow.numerics import Numerics
from pipeline.generation import workers
from pipeline.generation.generate import GenerateConfig, generate, make_plan
from pipeline.generation.verify import verify
from pipeline.generation.workers import Job
from pipeline.storage.store import Folder
from tests.support.killing import ended, fork
from tests.support.problems import SHAPE, GaussianFlow

SHARD_SIZE, BATCH_SIZE, BLOCK_SIZE = 1024, 256, 64  # the defaults of `generate`
NUMERICS = Numerics(torch="2.0", device="none", threads=1)
RECORDS = Trajectories(
    noise=np.ones((1, *SHAPE), np.float16),
    sample=np.zeros((1, *SHAPE), np.float16),
    states=np.zeros((1, 8, *SHAPE), np.float16),
    velocities=np.zeros((1, 10, *SHAPE), np.float16),
    times=np.linspace(1, 0, 10, dtype=np.float32)[None],
    label=np.full(1, -1),
    index=np.zeros(1, np.int64),
)
fake_seconds = 0.0  # spent on inventing markers


def config(folder: Path, num_shards: int) -> GenerateConfig:
    return GenerateConfig(
        teacher="tests.support.problems:gaussian",
        n=num_shards * SHARD_SIZE,
        out=str(folder),
        executor="inline",
        shard_size=SHARD_SIZE,
        batch_size=BATCH_SIZE,
        block_size=BLOCK_SIZE,
    )


def marker(plan: Plan, shard: Shard) -> Marker:
    """What a worker could have said of `shard`: different for every shard and block."""
    return Marker(
        shard=shard,
        plan_sha256=plan.sha256,
        sha256=sha256(shard.name.encode()),
        num_bytes=len(shard.name),
        blocks=tuple(
            Block(offset, 10**6, shard.first_index + i, BLOCK_SIZE, (shard.first_index + i) * 7919 % 2**32)
            for offset, i in enumerate(range(0, shard.num_records, BLOCK_SIZE))
        ),
        nfe=tuple(40 + (shard.number + i) % 20 for i in range(shard.num_records // BATCH_SIZE)),
        wall_seconds=1.0,
        numerics=NUMERICS,
    )


@contextmanager
def faking() -> Iterator[None]:
    """What is done within is no work of the driver's."""
    global fake_seconds
    started = time.process_time()
    yield
    fake_seconds += time.process_time() - started


class FakeWorker:
    """A worker that has done its work before it begins."""

    def __init__(self, job: Job, wants_gpu: bool) -> None:
        self.job = job

    def make(self, shard: Shard, on_batch: Callable[[int], None] | None = None) -> Marker:
        with faking():
            return marker(self.job.plan, shard)


class FullStore(Folder):
    """A folder in which every shard of its plan is committed."""

    def __init__(self, path: Path, plan: Plan, num_records: int) -> None:
        super().__init__(path)
        self.plan, self.shards = plan, plan.shards(num_records)

    def sizes(self) -> dict[str, int]:
        return super().sizes() | {n: len(s.name) for s in self.shards for n in (s.name, marker_name(s))}

    def read(self, name: str, at_once: int = 1) -> bytes:
        """A shard holds its name."""
        return name.encode() if name.endswith(".tar") else super().read(name)

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        with faking():
            return {name: self._marker(int(name.removeprefix("shard-").removesuffix(".json"))) for name in names}

    def _marker(self, number: int) -> bytes:
        return marker(self.plan, self.shards[number]).model_dump_json().encode()


def make(folder: Path, num_shards: int) -> Manifest:
    """A generation whose workers are fakes."""
    with patch.object(workers, "Worker", FakeWorker):
        return generate(config(folder, num_shards))


def full_store(folder: Path, num_shards: int) -> FullStore:
    """A store in which everything is made."""
    asked = config(folder, num_shards)
    store = FullStore(folder, make_plan(asked, GaussianFlow().teacher()), asked.n)
    write_dataset(store, DataSet(plan=store.plan, num_records=asked.n, teacher_source=asked.teacher))
    return store


def resume(folder: Path, num_shards: int) -> Manifest:
    """A generation that finds everything made."""
    store = full_store(folder, num_shards)
    with patch("pipeline.generation.generate.open_store", lambda location: store):
        return generate(config(folder, num_shards))


def listed(folder: Path, num_shards: int) -> FullStore:
    """A store in which everything is made, and listed in a manifest that another process has written."""
    assert ended(fork(lambda: resume(folder, num_shards))) == 0
    return full_store(folder, num_shards)


def check(folder: Path, num_shards: int) -> Manifest:
    """A verification that finds everything whole; blocks are not looked into."""
    store = listed(folder, num_shards)
    with patch("pipeline.generation.verify._check_blocks", lambda *_: ()):
        result = verify(store)
    assert not result.faults, result.faults
    return result.ledger.manifest(store, result.dataset)


def inspect(folder: Path, num_shards: int) -> Manifest:
    """The summary of a set of many shards, all of the same records."""
    store = listed(folder, num_shards)
    with patch.object(BlockReader, "read", lambda self, block: RECORDS):
        summary = summarise(store)
    summary.table()
    return summary.manifest


def megabytes(of: str) -> float:
    """VmRSS, this process's memory now, or VmHWM, the most it ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(of))


def measure(work: Callable[[Path, int], Manifest], folder: Path, num_shards: int) -> dict[str, object]:
    """What `work` on `num_shards` costs a process that has done it with a few."""
    global fake_seconds
    work(folder / "few", 100)
    before, started, fake_seconds = megabytes("VmRSS"), time.process_time(), 0.0
    manifest = work(folder / "many", num_shards)
    seconds = time.process_time() - started - fake_seconds
    return {
        "megabytes": megabytes("VmHWM") - before,
        "milliseconds_per_shard": 1e3 * seconds / num_shards,
        "num_records": manifest.num_records,
        "sha256": manifest.sha256,
    }


if __name__ == "__main__":
    ways = {"make": make, "resume": resume, "verify": check, "inspect": inspect}
    how, num_shards = ways[sys.argv[1]], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(measure(how, Path(root), num_shards)))
