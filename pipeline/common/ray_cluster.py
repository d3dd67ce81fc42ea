"""Connect to a Ray cluster, and count the workers that fit on it."""

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.common.errors import BadInput

CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 100 * 2**20  # markers only; Ray's default would take a third of the memory


def count_workers(num_workers: int | None, gpus_per_worker: float | None, address: str | None) -> int:
    """The number of workers that `run_on_ray` would start; no local cluster is started to find out.

    Raises:
        BadInput: see `run_on_ray`.
    """
    resources: Mapping[str, float] = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    if address or os.environ.get("RAY_ADDRESS"):
        import ray

        with connected(address):
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return worker_slots(resources, num_workers, gpus_per_worker)[0]


def worker_slots(
    resources: Mapping[str, float], num_workers: int | None, gpus_per_worker: float | None
) -> tuple[int, float]:
    """The number of workers that fit on a cluster of `resources`, or `num_workers`, and the GPUs of each.

    Every worker takes one CPU, and `gpus_per_worker` GPUs; by default one GPU where the cluster has any.

    Raises:
        BadInput: not one fits.
    """
    num_gpus = resources.get("GPU", 0)
    gpus = gpus_per_worker if gpus_per_worker is not None else float(num_gpus > 0)
    num_cpus = int(resources.get("CPU", 0))  # each worker takes one
    if 0 < gpus < 1:
        slots = min(num_cpus, int(num_gpus) * int(1 / gpus + 1e-6))
    else:
        slots = min(num_cpus, int(num_gpus / gpus)) if gpus else num_cpus
    if not (num_workers or slots):
        raise BadInput(
            f"the Ray cluster has {num_gpus:g} GPUs and {num_cpus} CPUs, no room for a worker: "
            f"start some, or give the number that will join with --workers"
        )
    return num_workers or slots, gpus


def _check_listening(address: str) -> None:
    """Raises OSError if nothing listens at host:port: `ray.init` itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (colon and port.isdigit()):
        raise BadInput(f"--address {address}: wanted host:port or auto")
    if colon:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def last_line(error: Exception) -> str:
    """The last line of an error's text: Ray's own are tracebacks."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` ("auto" or host:port), by default RAY_ADDRESS, or else start a local one.

    Raises:
        BadInput: no cluster answers there.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS")
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _check_listening(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if "AuthToken" in repr(error.__cause__):
            advice = "it wants its token: set RAY_AUTH_MODE=token, as `ray start` says"
        else:
            advice = "start one with `ray start --head`, or leave out --address and RAY_ADDRESS"
        raise BadInput(f"no Ray cluster at {address or 'this machine'} ({last_line(error)}): {advice}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's own handler would exit at once
    try:
        yield
    finally:
        ray.shutdown()
