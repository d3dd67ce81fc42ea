"""`pipeline.generation.verify.verify` beside `sha256sum` on the same shards, from the page cache.

`verify` hashes each shard, reads every block and compares it with the plan. `sha256sum` only hashes: once all shards in
one process, and once in a process for every core, since `verify` uses them all. Without OpenSSL it does not use the
processor's SHA instructions, as Python does; so Python's hashing alone is there too.
"""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import in_turn, main, random_plan, random_set, table
from pipeline.generation.verify import verify
from pipeline.storage.store import Folder


def benchmark(quick: bool) -> str:
    """The table, as Markdown."""
    plan = random_plan(velocities=True, shard_size=256)
    num_records, repeats = (64_000_000 if quick else 512_000_000) // plan.record_bytes, 3 if quick else 7
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        random_set(Folder(Path(folder)), plan, num_records)
        shards = sorted(Path(folder).glob("*.tar"))
        num_bytes = sum(path.stat().st_size for path in shards)
        sides: dict[str, Callable[[], object]] = {
            f"verify, {cores} threads": lambda: verify_whole(Path(folder)),
            "sha256sum, one process": lambda: sha256sum(shards, 1),
            f"sha256sum, {cores} processes": lambda: sha256sum(shards, cores),
            f"Python's hashlib alone, {cores} threads": lambda: hash_alone(shards, cores),
        }
        seconds = {name: timed.seconds for name, timed in in_turn(sides, repeats).items()}
    ours, *others = seconds.values()
    ratios = ["", *(f"{other / ours:.2f} x" for other in others)]
    rows = [
        [name, f"{num_bytes / taken / 1e9:.2f}", ratio]
        for (name, taken), ratio in zip(seconds.items(), ratios, strict=True)
    ]
    title = f"Verifying: {num_bytes / 1e6:.0f} MB in {len(shards)} shards"
    return table(title, ["from the page cache", "GB/s", "verify faster by"], rows)


def verify_whole(folder: Path) -> None:
    """Verify the data set in `folder`, and see that it is whole: a fault would cut the work short."""
    findings = verify(Folder(folder))
    assert not findings.faults, findings


def hash_alone(paths: list[Path], threads: int) -> None:
    """Hash all `paths` in this process."""

    def digest(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(digest, paths))


def sha256sum(paths: list[Path], processes: int) -> None:
    """Hash all `paths`: one call in one process, else one file at a time in each of `processes`."""
    names = [str(path) for path in paths]
    if processes == 1:
        subprocess.run(["sha256sum", *names], check=True, stdout=subprocess.DEVNULL)
    else:
        xargs = ["xargs", "-P", str(processes), "-n", "1", "sha256sum"]
        subprocess.run(xargs, input="\n".join(names), text=True, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(__doc__, benchmark)
