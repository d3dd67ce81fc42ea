"""Graceful interruption: the first Ctrl-C or SIGTERM asks the work to stop, the second one interrupts it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.progress import say


class Stop(threading.Event):
    """An event that is set when the work should stop; `signal` is the signal that set it, if one did."""

    signal: int | None = None


@contextmanager
def stoppable(message: str) -> Iterator[Stop]:
    """Yield a Stop set by SIGINT or SIGTERM; print `message` on the first signal. Only the main thread gets signals."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.signal = number
        stop.set()
        say(f"{message}; once more to stop at once")

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
