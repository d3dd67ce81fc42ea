"""Connecting to a Ray cluster, and how many workers it has room for."""

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
    """The workers that `run_on_ray` would have; a local cluster is not started to be asked.

    Raises:
        BadInput: see `run_on_ray`.
    """
    resources: Mapping[str, float] = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    if address or os.environ.get("RAY_ADDRESS"):
        import ray

        with connected(address):
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return places(resources, num_workers, gpus_per_worker)[0]


def places(resources: Mapping[str, float], num_workers: int | None, gpus_per_worker: float | None) -> tuple[int, float]:
    """How many workers a cluster of `resources` takes, or `num_workers`, and the GPUs of each.

    Raises:
        BadInput: there is no place for any.
    """
    num_gpus = resources.get("GPU", 0)
    gpus = gpus_per_worker if gpus_per_worker is not None else float(num_gpus > 0)
    num_cpus = int(resources.get("CPU", 0))  # each worker takes one
    if 0 < gpus < 1:
        room = min(num_cpus, int(num_gpus) * int(1 / gpus + 1e-6))
    else:
        room = min(num_cpus, int(num_gpus / gpus)) if gpus else num_cpus
    if not (num_workers or room):
        raise BadInput(
            f"the Ray cluster has {num_gpus:g} GPUs and {num_cpus} CPUs, no place for a worker: "
            f"start some, or say with --workers how many will come"
        )
    return num_workers or room, gpus


def _knock(address: str) -> None:
    """Raises OSError if nothing listens at host:port, for which `ray.init` itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (colon and port.isdigit()):
        raise BadInput(f"--address {address}: wanted host:port or auto")
    if colon:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A driver of the cluster at `address` ("auto" or host:port), by default RAY_ADDRESS, or of a local one of its own.

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
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if "AuthToken" in repr(error.__cause__):
            advice = "it wants its token: set RAY_AUTH_MODE=token, as `ray start` says"
        else:
            advice = "start one with `ray start --head`, or leave out --address and RAY_ADDRESS"
        reason = _last_line(error)
        raise BadInput(f"no Ray cluster at {address or 'this machine'} ({reason}): {advice}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray put its own there, which exits at once
    try:
        yield
    finally:
        ray.shutdown()
