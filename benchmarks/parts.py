"""A simulation of parts that steal: how much longer than perfect sharing they take, and how many shards are made twice.

`python -m benchmarks.parts` prints the table of docs/explanation/scaling.md. Each part works through its share and
then, if it steals, through what is missing of the others in a random order, as `generate --part K/N --steal` does.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

NUM_PARTS, NUM_SEEDS = 16, 20
SHARD_SPREAD = 0.05  # the standard deviation of the logarithm of a shard's time on one machine


@dataclass
class Simulation:
    """Parts, of which the first `num_alive` run, on machines whose times differ by a factor with `spread`."""

    num_shards: int
    num_alive: int = NUM_PARTS
    spread: float = 0.1
    steals: bool = True
    seed: int = 0
    committed: set[int] = field(default_factory=set)
    num_made: int = 0
    seconds: float = 0.0  # in units of a shard's

    def run(self) -> "Simulation":
        rng = random.Random(self.seed)
        speeds = [rng.lognormvariate(0, self.spread) for _ in range(self.num_alive)]
        work = [self._work(part, rng) for part in range(self.num_alive)]
        ends: list[tuple[float, int, int | None]] = [(0.0, part, None) for part in range(self.num_alive)]
        while ends:
            now, part, shard = heapq.heappop(ends)
            if shard is not None and shard not in self.committed:
                self.committed.add(shard)
                self.seconds = now
            if (following := next(work[part], None)) is not None:
                self.num_made += 1
                seconds = speeds[part] * rng.lognormvariate(0, SHARD_SPREAD)
                heapq.heappush(ends, (now + seconds, part, following))
        return self

    def _work(self, part: int, rng: random.Random) -> Iterator[int]:
        """The shards of `part`, each unless it is committed when its turn comes."""
        yield from self._uncommitted(range(part, self.num_shards, NUM_PARTS))
        if self.steals:
            others = list(self._uncommitted(range(self.num_shards)))
            rng.shuffle(others)
            yield from self._uncommitted(others)

    def _uncommitted(self, shards: list[int] | range) -> Iterator[int]:
        return (shard for shard in shards if shard not in self.committed)


def row(num_shards: int, num_alive: int, spread: float) -> str:
    """The line of the table: time against perfect sharing with and without stealing, and the work done twice."""
    alone, helped = (
        [Simulation(num_shards, num_alive, spread, steals, seed).run() for seed in range(NUM_SEEDS)]
        for steals in (False, True)
    )
    times = [fmean(run.seconds for run in runs) * num_alive / num_shards for runs in (alone, helped)]
    twice = fmean(run.num_made for run in helped) / num_shards - 1
    without = f"{times[0]:.2f}" if num_alive == NUM_PARTS else "never"
    return f"| {num_alive} | {num_shards // NUM_PARTS} | {spread:.0%} | {without} | {times[1]:.2f} | {twice:.0%} |"


if __name__ == "__main__":
    print(f"| alive of {NUM_PARTS} | shards a part | spread | time | with --steal | made twice |")
    print("|---|---|---|---|---|---|")
    for num_alive, spread in ((NUM_PARTS, 0.0), (NUM_PARTS, 0.1), (NUM_PARTS, 0.3), (8, 0.1)):
        for num_shards in (160, 1600):
            print(row(num_shards, num_alive, spread))
