"""Stage 2's reading in one process on one thread: float16 [3, 32, 32] records with four states between, batches of 256.

Ours (`TrajectoryStream`: float32 tensors ready to train on; `BlockReader`: the arrays as they are stored) beside stock
WebDataset on the same arrays as one record a sample (decoded and collated by its defaults, to stored float16), stock
WebDataset on our own shards, and a plain sequential read of our shards' files. All of them whole epochs from the page
cache. GB/s count the bytes of the records' arrays.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import webdataset as wds

from benchmarks.common import in_turn, main, one_thread, random_plan, random_set, table
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Trajectories
from pipeline.storage.store import Folder
from trainer.data.stream import TrajectoryStream

BATCH_SIZE = 256
CHUNK = 2**20  # bytes of one sequential read
STOCK, PLAIN = "stock WebDataset, one record a sample", "sequential read of our files"


def benchmark(quick: bool) -> str:
    """A table without velocities and one with them, as Markdown."""
    num_records, repeats = (1024, 3) if quick else (4096, 7)
    with one_thread():
        return "\n".join(_compare(velocities, num_records, repeats) for velocities in (False, True))


def _compare(velocities: bool, num_records: int, repeats: int) -> str:
    plan = random_plan(velocities, shard_size=num_records // 4)
    members = ["noise.npy", "sample.npy", "states.npy", "times.npy", *(["velocities.npy"] if velocities else [])]
    with tempfile.TemporaryDirectory() as folder:
        manifest = random_set(Folder(Path(folder) / "ours"), plan, num_records)
        shards = sorted((Path(folder) / "ours").glob("*.tar"))
        per_record = write_per_record(manifest, Path(folder))
        stream, reader = TrajectoryStream(manifest, 0, BATCH_SIZE), BlockReader(manifest)
        sides: dict[str, Callable[[], object]] = {
            "ours, float32 tensors, first epoch": lambda: read_stream(TrajectoryStream(manifest, 0, BATCH_SIZE)),
            "ours, float32 tensors, later epochs": lambda: read_stream(stream),
            "ours, float16 arrays, later epochs": lambda: read_blocks(reader, manifest),
            "stock WebDataset on our shards": lambda: read_stock(shards, members, by_blocks=True),
            STOCK: lambda: read_stock(per_record, members, by_blocks=False),
            PLAIN: lambda: read_plain(shards),
        }
        seconds = {name: timed.seconds for name, timed in in_turn(sides, repeats).items()}
    rows = [
        [
            name,
            f"{num_records / taken:,.0f}",
            f"{num_records * plan.record_bytes / taken / 1e9:.2f}",
            f"{seconds[PLAIN] / taken:.1%}",
            f"{seconds[STOCK] / taken:.1f} x",
        ]
        for name, taken in seconds.items()
    ]
    columns = ["one thread, from the page cache", "records/s", "GB/s", "of a sequential read", "faster than stock by"]
    about = f"{plan.record_bytes / 1e3:.0f} kB a record, {'with' if velocities else 'without'} velocities"
    title = f"Reading: {about} (wanted: ours at least 20 times stock WebDataset)"
    note = "Checksums are verified in the first epoch."
    return table(title, columns, rows, note)


def write_per_record(manifest: Manifest, folder: Path) -> list[Path]:
    """The records of `manifest` as stock WebDataset shards with one record a sample: as many, with the same arrays."""
    names = ["noise", "sample", "states", "times", *(["velocities"] if manifest.plan.velocities else [])]
    reader, paths = BlockReader(manifest), []
    blocks_per_shard = manifest.plan.shard_size // manifest.plan.block_size
    for first in range(0, len(manifest.counts), blocks_per_shard):
        paths.append(folder / f"stock-{first:06d}.tar")
        with wds.TarWriter(str(paths[-1])) as tar:
            for block in range(first, first + blocks_per_shard):
                rows = reader.read(block)
                for i, index in enumerate(rows.index):
                    tar.write({"__key__": f"{index:09d}", **{f"{name}.npy": getattr(rows, name)[i] for name in names}})
    return paths


def read_stream(stream: TrajectoryStream) -> None:
    """An epoch of training batches."""
    for step in range(stream.num_records // BATCH_SIZE):
        stream.batch(step)


def read_blocks(reader: BlockReader, manifest: Manifest) -> None:
    """An epoch of batches as they are stored."""
    per_batch = BATCH_SIZE // manifest.plan.block_size
    for first in range(0, len(manifest.counts), per_batch):
        Trajectories.concatenate([reader.read(block) for block in range(first, first + per_batch)])


def read_stock(paths: list[Path], members: list[str], by_blocks: bool) -> None:
    """An epoch of batches by WebDataset's own pipeline; `by_blocks` where a sample is a block of records."""
    samples = wds.WebDataset([str(path) for path in paths], shardshuffle=False).decode().to_tuple(*members)
    records = samples.unbatched() if by_blocks else samples
    for _ in records.batched(BATCH_SIZE):
        pass


def read_plain(paths: list[Path]) -> None:
    """Every byte once, in order, into one buffer."""
    buffer = bytearray(CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


if __name__ == "__main__":
    main(__doc__, benchmark)
