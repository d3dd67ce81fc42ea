import os
import signal
import subprocess
import sys

import pytest

from pipeline.common.interrupt import REPEAT_SECONDS, stoppable

CLOSED_TERMINAL = """
import os, pty, signal, sys
from pipeline.common.interrupt import stoppable
controller, terminal = pty.openpty()
os.dup2(terminal, 1), os.dup2(terminal, 2), os.close(terminal)
with stoppable("stopping") as stop:
    os.close(controller)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)  # as the shell does, after the kernel
    print("saved", flush=True)
    sys.exit(7 if stop.signal == signal.SIGHUP else 1)
"""


def test_a_closed_terminal_asks_to_stop_and_breaks_no_output() -> None:
    assert subprocess.run([sys.executable, "-c", CLOSED_TERMINAL], check=False).returncode == 7


def test_a_second_ctrl_c_interrupts() -> None:
    with stoppable("stopping") as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_that_comes_twice_at_once_is_one_request_and_a_later_one_interrupts() -> None:
    """As from Slurm and from torchrun."""
    with stoppable("stopping") as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        stop.seconds -= REPEAT_SECONDS
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_under_nohup_a_closed_terminal_is_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable("stopping") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
