"""How a training on Ray is told to stop: its ranks run in threads, which get no signals.

A rank stops at the first SIGTERM of its process, as on a machine that is taken away, and when the command that waits
for the ranks is interrupted.
"""

import signal
import threading
import time
from typing import Any

from pipeline.common.interrupt import Stop

POLL_SECONDS = 1.0

here = Stop()  # of this process, as a rank


class Request:
    """An actor that holds the signal that interrupted the command, once one has."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def make(self, number: int) -> None:
        """Ask the ranks to stop because of the signal `number`."""
        self._signal = number

    def signal(self) -> int | None:
        """The signal; None while there was none."""
        return self._signal


def open_request() -> Any:
    """The handle of a new `Request` on the cluster, which takes no CPU of its own."""
    import ray

    return ray.remote(num_cpus=0)(Request).remote()


def asked(request: Any) -> int | None:
    """The signal of `request`."""
    import ray

    number: int | None = ray.get(request.signal.remote())
    return number


def follow(request: Any) -> None:
    """Set `here` as soon as `request` is made."""

    def poll() -> None:
        while (number := asked(request)) is None:
            time.sleep(POLL_SECONDS)
        here.signal = number
        here.set()

    threading.Thread(target=poll, daemon=True).start()


def hear_sigterm() -> None:
    """Set `here` at the first SIGTERM; the second does what it did before. To be called in a rank's main thread."""
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def request_stop(number: int, frame: object) -> None:
        signal.signal(number, before)
        here.signal = number
        here.set()

    signal.signal(signal.SIGTERM, request_stop)


def torch_config() -> Any:
    """Ray Train's configuration of torch, whose ranks also `hear_sigterm`.

    Ray Train calls a backend's hooks in a rank's main thread; nothing else of it runs there.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(hear_sigterm)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config()
