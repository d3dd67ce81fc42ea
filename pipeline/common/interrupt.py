"""Asking work to stop at its next good moment: the first Ctrl-C or SIGTERM asks, the second one interrupts."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.progress import say


class Stop(threading.Event):
    """Set once the work is to stop; `signal` is the signal that asked for it, if one did."""

    signal: int | None = None


@contextmanager
def stoppable(message: str) -> Iterator[Stop]:
    """What signals set from here on, in a main thread; `message` then says what is waited for."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.signal = number
        stop.set()
        say(f"{message}; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
