"""Which piece of the work a worker makes next, what is tried again, and which worker is unfit: decisions only."""

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.dataset.conditions import Chunk, ConditionMarker
from pipeline.dataset.plan import Shard
from pipeline.dataset.shards import Marker

MAX_ATTEMPTS = 3  # of a shard
MAX_STRIKES = 2  # shards in a row that failed first on one worker
SLOW_FACTOR = 2.0  # a shard that takes so many times the median is given to an idle worker as well
RECENT_SHARDS = 99  # of which the median is taken

# What a failure says of its shard and its worker. "loading": the worker cannot make any shard. "device": its device
# failed, and may have failed for good. "lost": it died, or the store did not answer. "shard": the work itself raised.
Cause = Literal["loading", "device", "lost", "shard"]


Piece = Shard | Chunk  # of the work


@dataclass(frozen=True)
class Failure:
    """A shard, or a chunk of the condition table, that could not be made, and why."""

    shard: Piece
    error: str
    cause: Cause = "shard"
    machine: str = ""


Result = Marker | ConditionMarker | Failure


def piece_of(result: Result) -> Piece:
    """What was made, or could not be."""
    return result.chunk if isinstance(result, ConditionMarker) else result.shard


@dataclass
class Health:
    """What is known of a worker."""

    num_made: int = 0
    strikes: int = 0

    def is_fit_after(self, result: Result, is_first: bool) -> bool:
        """Whether the worker gets another shard after `result`, which `is_first` if its shard failed nowhere before."""
        if not isinstance(result, Failure):
            self.num_made, self.strikes = self.num_made + 1, 0
            return True
        if result.cause == "shard" and is_first:
            self.strikes += 1
        return result.cause in ("lost", "shard") and self.strikes < MAX_STRIKES


@dataclass
class Backlog:
    """The shards to be made, or the chunks of a condition table, by workers that have names, with retries.

    A failed shard reports its first error.
    """

    shards: Sequence[Piece]
    stop: threading.Event  # once set, no more shards are handed out
    clock: Callable[[], float] = time.monotonic
    _num_taken: int = field(init=False, default=0)
    _retries: deque[Piece] = field(init=False, default_factory=deque)
    _errors: dict[int, list[str]] = field(init=False, default_factory=dict)
    _failed_on: dict[int, set[Hashable]] = field(init=False, default_factory=dict)
    _copies: Counter[int] = field(init=False, default_factory=Counter)  # in work, of each shard
    _begun: dict[int, tuple[Piece, float, Hashable]] = field(init=False, default_factory=dict)  # shards in work
    _seconds: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=RECENT_SHARDS))

    def __len__(self) -> int:
        """The number of shards that wait to be made."""
        return 0 if self.stop.is_set() else len(self.shards) - self._num_taken + len(self._retries)

    @property
    def num_in_work(self) -> int:
        """The number of shards that are being made."""
        return len(self._begun)

    def has_failed(self, shard: Piece) -> bool:
        """Whether `shard` has failed on some worker."""
        return bool(self._failed_on.get(shard.number))

    def take(self, worker: Hashable = None) -> Piece | None:
        """The next shard for `worker`: one that has not failed on it; else a copy of one that is slow elsewhere."""
        shard = self._next(worker) or self._slow(worker)
        if shard is not None:
            self._copies[shard.number] += 1
            self._begun.setdefault(shard.number, (shard, self.clock(), worker))
        return shard

    def _next(self, worker: Hashable) -> Piece | None:
        if self.stop.is_set():
            return None
        if self._num_taken < len(self.shards):
            self._num_taken += 1
            return self.shards[self._num_taken - 1]
        for shard in self._retries:
            if worker not in self._failed_on.get(shard.number, ()):
                self._retries.remove(shard)
                return shard
        return None

    def _slow(self, worker: Hashable) -> Piece | None:
        """The longest in work of the shards that take far longer than others did, if only one other worker is at it."""
        if self.stop.is_set() or not self._seconds:
            return None
        begun_before = self.clock() - SLOW_FACTOR * statistics.median(self._seconds)
        slow = [
            (begun, shard)
            for shard, begun, owner in self._begun.values()
            if begun < begun_before and self._copies[shard.number] == 1
            if owner != worker and worker not in self._failed_on.get(shard.number, ())
        ]
        return min(slow, key=lambda pair: pair[0])[1] if slow else None

    def give_back(self, shard: Piece) -> None:
        """Hand out `shard` again, whose worker was taken from it through no fault of its own."""
        if self._end(shard) is not None and not self._copies[shard.number]:
            del self._begun[shard.number]
            self._retries.append(shard)

    def final_results(self, result: Result, worker: Hashable = None) -> Iterator[Result]:
        """Yield `result` of `worker` unless its shard is tried again, is in work elsewhere, or has a result already.

        In this process, the worker None, only what was lost is tried again.
        """
        shard = piece_of(result)
        begun = self._end(shard)
        if begun is None:
            return  # a copy was faster
        if not isinstance(result, Failure):
            self._seconds.append(self.clock() - begun)
            del self._begun[shard.number]
            yield result
            return
        if result.cause != "loading" or worker is None:
            self._errors.setdefault(shard.number, []).append(result.error)
        if result.cause in ("device", "shard"):
            self._failed_on.setdefault(shard.number, set()).add(worker)
        if self._copies[shard.number]:
            return
        del self._begun[shard.number]
        if (result.cause == "lost" or worker is not None) and len(self._errors.get(shard.number, ())) < MAX_ATTEMPTS:
            self._retries.append(shard)
        else:
            yield self._failure(shard)

    def _end(self, shard: Piece) -> float | None:
        """When the work on `shard` began, of which one copy ended; None if it has its result."""
        self._copies[shard.number] -= 1
        if not self._copies[shard.number]:
            del self._copies[shard.number]
        return self._begun[shard.number][1] if shard.number in self._begun else None

    def give_up(self) -> Iterator[Failure]:
        """Yield the shards that failed and that no worker is left to try again."""
        tried = [shard for shard in self._retries if shard.number in self._errors]
        for shard in tried:
            self._retries.remove(shard)
            yield self._failure(shard)

    def _failure(self, shard: Piece) -> Failure:
        errors = self._errors[shard.number]
        return Failure(shard, errors[0] + (f" (tried {len(errors)} times)" if len(errors) > 1 else ""))
