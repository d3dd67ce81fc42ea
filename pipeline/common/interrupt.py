"""Graceful interruption: the first Ctrl-C, SIGTERM or SIGHUP asks the work to stop, the second one interrupts it."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.progress import say

# Slurm sends SIGTERM to every process of a job, and torchrun forwards its own: two so close together are one request.
REPEAT_SECONDS = 5.0


class Stop(threading.Event):
    """An event that is set when the work should stop; `signal` is the signal that set it, if one did."""

    signal: int | None = None
    seconds: float = 0.0  # of the monotonic clock, when that signal came

    def is_repeated_by(self, number: int) -> bool:
        """Whether the signal `number` is no further request, but the same one from somebody else."""
        is_close = time.monotonic() - self.seconds < REPEAT_SECONDS
        return number == signal.SIGHUP or (number == self.signal == signal.SIGTERM and is_close)


@contextmanager
def stoppable(message: str) -> Iterator[Stop]:
    """Yield a Stop set by SIGINT, SIGTERM or SIGHUP; print `message` on the first signal.

    Only the main thread gets signals. A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request_stop(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if stop.is_set():
            if stop.is_repeated_by(number):  # SIGHUP comes from the kernel and from the shell
                return
            raise KeyboardInterrupt
        stop.signal, stop.seconds = number, time.monotonic()
        stop.set()
        say(f"{message}; once more to stop at once")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Send the output of this process to nowhere where it goes to a terminal: one that is closed fails every write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # a closed terminal no longer says that it is one
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
