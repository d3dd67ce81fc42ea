"""What shard size to take with a thousand workers that may be taken away: a simulation, printed as Markdown.

    python -m benchmarks.scaling [--samples-per-second 4] [--workers 1000] ...

A worker loads its teacher, then asks the driver for one shard after the other. It is taken away after an exponentially
distributed time, and what it was working on is lost: the shard goes back to the end of the line, and another worker
comes after a while. The driver hands out one shard at a time. Runs are seeded; small ones are repeated, and the medians
shown.

How long a shard takes is `shard_size / samples_per_second` and its commit: samples per second of one worker, stored
velocities included, is what `traflow-pipeline generate --dry-run` prints. From `probe`'s evaluations per sample it is
1 / ((evaluations + stored times) * seconds of an evaluation of one sample).
"""

import argparse
import heapq
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import random_plan, table
from pipeline.common.progress import format_bytes, format_seconds
from pipeline.dataset.plan import Plan
from pipeline.generation.generate import GenerateConfig, make_plan
from pipeline.generation.shard import generate_and_commit
from pipeline.storage.store import Folder
from pipeline.teachers.loading import load_teacher

SHARD_SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
PREEMPTIONS_PER_HOUR = (0.05, 0.2)
KEYS_PER_LIST = 1000  # of S3, Google's and Azure's stores
ENOUGH_RECORDS = 10**7  # in all runs of a row together
PUTS_PER_SHARD = 2  # the shard and its marker
DRIVER_FILES = 3  # the plan, the configuration and the manifest
# Measured (docs/explanation/scaling.md): the driver's processor time for a shard through Ray, and for a marker found on
# resuming.
DISPATCH_SECONDS, MARKER_SECONDS = 0.75e-3, 0.06e-3
# Assumed: list prices of S3 Standard, us-east-1, and how long a store takes for a page of a listing.
DOLLARS_PER_PUT, DOLLARS_PER_GET, SECONDS_PER_LIST = 5e-6, 4e-7, 0.2


@dataclass(frozen=True)
class Fleet:
    """Workers that come and go, the driver that hands out shards, and the store they write to."""

    num_workers: int = 1000
    preemptions_per_hour: float = 0.05  # of one worker
    replacement_seconds: float = 120.0  # until another machine is there
    start_seconds: float = 60.0  # until its teacher is loaded
    dispatch_seconds: float = DISPATCH_SECONDS
    put_seconds: float = 0.1  # of a request, its bytes aside
    bytes_per_second: float = 1e8  # of one worker, to the store
    spread: float = 0.05  # relative standard deviation of a shard's time

    def shard_seconds(self, plan: Plan, samples_per_second: float) -> float:
        """Of a whole shard of `plan`, from its first noise to its marker."""
        commit = PUTS_PER_SHARD * self.put_seconds + plan.shard_size * plan.record_bytes / self.bytes_per_second
        return plan.shard_size / samples_per_second + commit


@dataclass(frozen=True)
class Run:
    """A simulated generation."""

    makespan_seconds: float
    useful_seconds: float  # of all workers, on shards that were committed
    wasted_seconds: float  # on shards that were lost
    num_attempts: int
    num_shards: int
    peak_markers_per_second: int  # in its busiest second

    @property
    def wasted(self) -> float:
        """The share of the work that was lost."""
        return self.wasted_seconds / (self.wasted_seconds + self.useful_seconds)


class Simulation:
    """The workers of `fleet` on shards that take `shard_seconds` each; every draw is of `seed`."""

    def __init__(self, fleet: Fleet, shard_seconds: float, num_shards: int, seed: int = 0) -> None:
        self.fleet, self.shard_seconds, self.num_shards = fleet, shard_seconds, num_shards
        self._rng = np.random.default_rng(seed)
        self._events: list[
            tuple[float, int, float | None]
        ] = []  # a worker is free: when, which, seconds it lost if any
        self._ends = [0.0] * fleet.num_workers  # when each worker is taken away
        self._idle: list[int] = []
        self._num_waiting, self._num_attempts = num_shards, 0
        self._driver_free = self._wasted = self._useful = 0.0
        self._markers: list[float] = []

    def run(self) -> Run:
        """Until the last shard is committed."""
        for worker in range(self.fleet.num_workers):
            self._join(worker, 0.0)
        while len(self._markers) < self.num_shards:
            now, worker, lost = heapq.heappop(self._events)
            if lost is None:
                self._idle.append(worker)
            else:
                self._wasted += lost
                self._num_waiting += 1
                self._join(worker, now + self.fleet.replacement_seconds)
            while self._num_waiting and self._idle:
                self._assign(self._idle.pop(), now)
        return Run(
            makespan_seconds=max(self._markers),
            useful_seconds=self._useful,
            wasted_seconds=self._wasted,
            num_attempts=self._num_attempts,
            num_shards=self.num_shards,
            peak_markers_per_second=int(np.bincount(np.array(self._markers, int)).max()),
        )

    def _join(self, worker: int, arrival: float) -> None:
        """A new machine takes the place of `worker`; it is free when its teacher is loaded, if it lives so long."""
        rate = self.fleet.preemptions_per_hour / 3600
        self._ends[worker] = arrival + (self._rng.exponential(1 / rate) if rate else math.inf)
        heapq.heappush(self._events, (arrival + self.fleet.start_seconds, worker, None))

    def _assign(self, worker: int, now: float) -> None:
        if self._ends[worker] <= now:  # it was taken away while it had nothing to do
            self._join(worker, max(now, self._ends[worker] + self.fleet.replacement_seconds))
            return
        start = self._driver_free = max(now, self._driver_free) + self.fleet.dispatch_seconds
        self._num_waiting -= 1
        self._num_attempts += 1
        seconds = self.shard_seconds * self._luck()
        if start + seconds < self._ends[worker]:
            self._useful += seconds
            self._markers.append(start + seconds)
            heapq.heappush(self._events, (start + seconds, worker, None))
        else:
            end = max(start, self._ends[worker])
            heapq.heappush(self._events, (end, worker, end - start))

    def _luck(self) -> float:
        """Log-normal around a mean of 1."""
        sigma = math.sqrt(math.log1p(self.fleet.spread**2))
        return math.exp(self._rng.normal(-(sigma**2) / 2, sigma)) if sigma else 1.0


def num_objects(num_shards: int) -> int:
    """Objects of a data set: a shard and a marker each, and the driver's own."""
    return 2 * num_shards + DRIVER_FILES


def num_lists(num_shards: int) -> int:
    """LIST requests for all objects of a data set, one after the other."""
    return math.ceil(num_objects(num_shards) / KEYS_PER_LIST)


def digits_per_second() -> float:
    """Samples per second of the digits teacher on a core of this machine: a shard of 256, noise to marker.

    By processor time, which is a worker's wall time where it has a core to itself: it works in one thread.
    """
    teacher = load_teacher("digits", quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        config = GenerateConfig(teacher="digits", n=256, out=folder, shard_size=256, batch_size=256)
        plan, store = make_plan(config, teacher), Folder(Path(folder))
        started = time.process_time()
        generate_and_commit(plan, plan.shards(256)[0], teacher, store, torch.device("cpu"))
        return 256 / (time.process_time() - started)


def section(title: str, plan: Plan, fleet: Fleet, samples_per_second: float, num_records: int, seed: int) -> str:
    """The table of one generation: a row for every shard size."""
    ideal = num_records / samples_per_second / fleet.num_workers
    seeds = range(seed, seed + max(1, ENOUGH_RECORDS // num_records))
    columns = ["shard size", "bytes", "seconds"]
    for rate in PREEMPTIONS_PER_HOUR:
        columns += [f"makespan at {rate:.0%}/h", "of the ideal", "wasted"]
    columns += ["driver busy", "markers/s, most"]
    rows = []
    for shard_size in SHARD_SIZES:
        sized = plan.model_copy(update={"shard_size": shard_size})
        seconds = fleet.shard_seconds(sized, samples_per_second)
        num_shards = math.ceil(num_records / shard_size)
        row = [str(shard_size), format_bytes(shard_size * plan.record_bytes), f"{seconds:.3g}"]
        for rate in PREEMPTIONS_PER_HOUR:
            preempted = replace(fleet, preemptions_per_hour=rate)
            runs = [Simulation(preempted, seconds, num_shards, s).run() for s in seeds]
            makespan = statistics.median(run.makespan_seconds for run in runs)
            wasted = statistics.median(run.wasted for run in runs)
            row += [format_seconds(makespan), f"{makespan / ideal:.2f} x", f"{wasted:.1%}"]
        busy = statistics.median(run.num_attempts * fleet.dispatch_seconds / run.makespan_seconds for run in runs)
        rows.append([*row, f"{busy:.1%}", str(max(run.peak_markers_per_second for run in runs))])
    about = f"{samples_per_second:.3g} samples/s a worker, {plan.record_bytes / 1e3:.3g} kB a record; "
    about += f"{format_seconds(ideal)} if all {fleet.num_workers} workers did nothing else."
    return table(f"{title}, {num_records / 1e6:.0f} M trajectories", columns, rows, about)


def requests(num_records: int) -> str:
    """The table of what a generation asks of an object store, and what it asks when it is started again."""
    columns = ["shard size", "shards", "objects", "PUTs", "dollars", "LISTs", "their seconds", "marker GETs"]
    columns += ["dollars to start again", "the driver's seconds for markers"]
    rows = []
    for shard_size in SHARD_SIZES:
        shards = math.ceil(num_records / shard_size)
        lists, puts = num_lists(shards), PUTS_PER_SHARD * shards
        making = puts * DOLLARS_PER_PUT + shards * DOLLARS_PER_GET  # a commit looks for a marker first
        again = lists * DOLLARS_PER_PUT + shards * DOLLARS_PER_GET
        row = [str(shard_size), f"{shards:,}", f"{num_objects(shards):,}", f"{puts:,}", f"{making:.2f}", f"{lists:,}"]
        row += [f"{lists * SECONDS_PER_LIST:.1f}", f"{shards:,}", f"{again:.3f}", f"{shards * MARKER_SECONDS:.1f}"]
        rows.append(row)
    return table(f"Requests, {num_records / 1e6:.0f} M trajectories", columns, rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fleet = Fleet()
    parser.add_argument("--samples-per-second", type=float, default=4.0, help="of a worker with a GPU (default 4)")
    parser.add_argument("--workers", type=int, default=fleet.num_workers)
    parser.add_argument("--replacement-seconds", type=float, default=fleet.replacement_seconds)
    parser.add_argument("--start-seconds", type=float, default=fleet.start_seconds)
    parser.add_argument("--bytes-per-second", type=float, default=fleet.bytes_per_second, help="to the store")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    fleet = Fleet(
        num_workers=asked.workers,
        replacement_seconds=asked.replacement_seconds,
        start_seconds=asked.start_seconds,
        bytes_per_second=asked.bytes_per_second,
    )
    states = GenerateConfig.model_fields["states"].default
    plan, million = random_plan(velocities=True, num_states=states), 10**6
    digits = make_plan(GenerateConfig(teacher="digits", n=1, out="."), load_teacher("digits", quiet=True))
    print(section("digits on a core like this", digits, fleet, digits_per_second(), million, asked.seed))
    for num_records in (million, 100 * million):
        print(section("3x32x32 on a GPU", plan, fleet, asked.samples_per_second, num_records, asked.seed))
        print(requests(num_records))


if __name__ == "__main__":
    main()
