"""The batches of a training, step by step: for a GPU a thread reads them ahead and copies them while it computes."""

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Generic, Protocol, Self, TypeVar

import torch

AHEAD = 2


class Movable(Protocol):
    """What can be pinned and copied to a device."""

    def pinned(self) -> Self: ...

    def to(self, device: torch.device) -> Self: ...


Input = TypeVar("Input", bound=Movable)


class InPlace(Generic[Input]):
    """Calls `read(step)` when a batch is asked for: on a CPU a reading thread only takes cores from training.

    (Its share of torch's pool of threads waits by spinning: 800 images/s against 1,732 on two cores.)
    """

    def __init__(self, read: Callable[[int], Input], first: int, end: int, device: torch.device) -> None:
        self.read, self.stall_seconds = read, 0.0

    def batch(self, step: int) -> Input:
        """The batch of `step`."""
        started = time.perf_counter()
        batch = self.read(step)
        self.stall_seconds += time.perf_counter() - started
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to stop."""


class Prefetcher(Generic[Input]):
    """Calls `read(step)` in a thread for the steps from `first` up to `end`, up to `AHEAD` batches early.

    `stall_seconds` is the time spent waiting for batches that were not ready.
    """

    def __init__(self, read: Callable[[int], Input], first: int, end: int, device: torch.device) -> None:
        self.device, self.stall_seconds = device, 0.0
        self._queue: Queue[tuple[int, Input | BaseException]] = Queue(maxsize=AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(read, first, end), daemon=True)
        self._thread.start()

    def batch(self, step: int) -> Input:
        """The batch of `step` on the device.

        Raises:
            Exception: whatever reading it raised.
        """
        started = time.perf_counter()
        read_step, batch = self._queue.get()
        self.stall_seconds += time.perf_counter() - started
        if isinstance(batch, BaseException):
            raise batch
        assert read_step == step, f"got the batch of step {read_step} for step {step}"
        return batch.to(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except Empty:
                continue
        self._thread.join()

    def _work(self, read: Callable[[int], Input], first: int, end: int) -> None:
        for step in range(first, end):
            if self._stop.is_set():
                return
            try:
                batch = read(step)
                self._queue.put((step, batch.pinned() if self.device.type == "cuda" else batch))
            except BaseException as error:
                self._queue.put((step, error))
                return
