"""What the benchmarks share: timing in turn, Markdown tables, the command line, and data sets of random numbers."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.dataset.commit import commit
from pipeline.dataset.manifest import DataSet, Manifest, derive, write_dataset, write_manifest
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker, Trajectories, sha256, write_shard
from pipeline.flow.numerics import Numerics
from pipeline.flow.solver import Solver
from pipeline.storage.store import Store

T = TypeVar("T")


class Timed(NamedTuple, Generic[T]):
    """The median wall time of a side, and what it returned the first time."""

    seconds: float
    result: T


def in_turn(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, Timed[T]]:
    """Time `sides` A, B, A, B, ..., so that whatever else the machine does meets all of them alike.

    Each runs once untimed first: caches fill, kernels are chosen. What they print goes to standard error.
    """
    with redirect_stdout(sys.stderr):
        return _in_turn(sides, repeats)


def _in_turn(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, Timed[T]]:
    results = {name: side() for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timed(statistics.median(seconds[name]), results[name]) for name in sides}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for numpy: sides that use several wait for cores that others use, and differ by it."""
    from threadpoolctl import threadpool_limits  # of the development's packages, which benchmarks/gpu.py does without

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def table(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> str:
    """A Markdown section with one table; the first column is text, the others are numbers."""
    lines = [f"## {title}", "", *([note, ""] if note else [])]
    lines += [_row(columns), _row(["---"] + ["--:"] * (len(columns) - 1)), *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(about: str | None, benchmark: Callable[[bool], str]) -> None:
    """The command line of one benchmark: print its section; `benchmark` takes whether to be quick."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not how fast")
    print(benchmark(parser.parse_args().quick))


def random_plan(velocities: bool, shard_size: int = 1024, num_states: int = 4) -> Plan:
    """Records as CIFAR-10's: float16 [3, 32, 32] with `num_states` states between."""
    return Plan(
        teacher="random",
        teacher_sha256="0" * 64,
        shape=(3, 32, 32),
        num_classes=0,
        seed=0,
        solver=Solver(),
        num_states=num_states,
        velocities=velocities,
        dtype="float16",
        shard_size=shard_size,
        batch_size=256,
        block_size=64,
    )


def random_set(store: Store, plan: Plan, num_records: int) -> Manifest:
    """Put a data set of random numbers into `store`: what `generate` would, without the integration."""
    dataset = DataSet(plan=plan, num_records=num_records, teacher_source=plan.teacher)
    write_dataset(store, dataset)
    manifest = derive(store, dataset, [_commit_random(store, plan, shard) for shard in plan.shards(num_records)])
    write_manifest(manifest)
    return manifest


def _commit_random(store: Store, plan: Plan, shard: Shard) -> Marker:
    payload, places = write_shard(plan, _random_blocks(plan, shard))
    marker = Marker(
        shard=shard,
        plan_sha256=plan.sha256,
        sha256=sha256(payload),
        num_bytes=len(payload),
        blocks=places,
        nfe=(0,) * -(-shard.num_records // plan.batch_size),
        wall_seconds=0.0,
        numerics=Numerics(torch="", device="random", threads=1),
    )
    return commit(store, payload, marker)


def _random_blocks(plan: Plan, shard: Shard) -> Iterator[Trajectories]:
    rng = np.random.default_rng(shard.number)
    end = shard.first_index + shard.num_records
    for first_index in range(shard.first_index, end, plan.block_size):
        index = np.arange(first_index, min(first_index + plan.block_size, end))

        def draw(*inner: int, size: int = len(index)) -> np.ndarray[Any, Any]:
            return rng.standard_normal((size, *inner, *plan.shape), np.float32).astype(plan.dtype)

        times = plan.times(first_index - first_index % plan.batch_size).numpy()
        yield Trajectories(
            noise=draw(),
            sample=draw(),
            states=draw(plan.num_states),
            velocities=draw(plan.num_times) if plan.velocities else None,
            times=np.tile(times, (len(index), 1)),
            label=np.full(len(index), -1),
            index=index,
        )
