"""The batches of a training, step by step: beside a GPU they are read ahead in a thread, and copied while it works."""

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any, Self

import torch

from trainer.data.stream import Batch

AHEAD = 2


class InPlace:
    """Calls `read(step)` when a batch is asked for: on a CPU a second thread only takes cores from the first.

    (Its share of torch's pool of threads waits by spinning: 800 images/s against 1,732 on two cores.)
    """

    def __init__(self, read: Callable[[int], Any], first: int, end: int, device: torch.device) -> None:
        self.read, self.stall_seconds = read, 0.0

    def batch(self, step: int) -> Any:
        """The batch of `step`."""
        started = time.perf_counter()
        batch = self.read(step)
        self.stall_seconds += time.perf_counter() - started
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing goes on."""


class Prefetcher:
    """Calls `read(step)` for the steps from `first` to `end`, in order, ahead of who asks for them.

    `stall_seconds` is what was waited for batches that were not ready.
    """

    def __init__(self, read: Callable[[int], Any], first: int, end: int, device: torch.device) -> None:
        self.device, self.stall_seconds = device, 0.0
        self._queue: Queue[tuple[int, Batch | BaseException]] = Queue(maxsize=AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(read, first, end), daemon=True)
        self._thread.start()

    def batch(self, step: int) -> Any:
        """The batch of `step` on the device.

        Raises:
            Exception: whatever reading it raised.
        """
        started = time.perf_counter()
        at, found = self._queue.get()
        self.stall_seconds += time.perf_counter() - started
        if isinstance(found, BaseException):
            raise found
        assert at == step, f"batch {at} came for step {step}"
        return found.to(self.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read nothing more."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except Empty:
                continue
        self._thread.join()

    def _work(self, read: Callable[[int], Any], first: int, end: int) -> None:
        for step in range(first, end):
            if self._stop.is_set():
                return
            try:
                batch = read(step)
                self._queue.put((step, batch.pinned() if self.device.type == "cuda" else batch))
            except BaseException as error:
                self._queue.put((step, error))
                return
