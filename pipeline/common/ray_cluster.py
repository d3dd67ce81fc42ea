"""Connect to a Ray cluster, and count the workers that fit on it."""

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from pipeline.common.errors import BadInput, WorkFailed

CONNECT_SECONDS = 10
# The path of a socket has at most 107 bytes, and Ray appends a session's name to its temporary folder.
MAX_TEMPORARY_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10")
SHORT_TEMPORARY = "/tmp"
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


def check_address(address: str | None) -> None:
    """Raises `BadInput` unless something listens at `address`, by default RAY_ADDRESS; without one nothing is asked."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        return
    try:
        _check_listening(address)
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> BadInput:
    if "AuthToken" in repr(error.__cause__):
        advice = "it wants its token: set RAY_AUTH_MODE=token, as `ray start` says"
    else:
        advice = "start one with `ray start --head`, or leave out --address and RAY_ADDRESS"
    return BadInput(f"no Ray cluster at {address} ({last_line(error)}): {advice}")


def _not_started(error: Exception) -> WorkFailed:
    return WorkFailed(f"Ray did not start on this machine ({last_line(error)}): is it busy? Run the same command again")


@contextmanager
def _temporary_folder() -> Iterator[str | None]:
    """A temporary folder for a local cluster whose sockets' paths would be too long in the usual one; else None."""
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_TEMPORARY
    if len(os.fsencode(usual)) <= MAX_TEMPORARY_BYTES:
        yield None
        return
    try:
        short = tempfile.mkdtemp(prefix="ray-", dir=SHORT_TEMPORARY)
    except OSError as error:
        raise BadInput(
            f"{usual}: wanted a temporary folder of at most {MAX_TEMPORARY_BYTES} bytes for Ray's sockets: set "
            "RAY_TMPDIR to a shorter one, or use --executor inline"
        ) from error
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


@contextmanager
def _default_signals() -> Iterator[None]:
    """Undo what Ray does to the signals of this process; what it starts ignores the hang-up of a closed terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_term, on_hangup = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray's own handler would exit at once
        signal.signal(signal.SIGHUP, on_hangup)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` ("auto" or host:port), by default RAY_ADDRESS, or else start a local one.

    Raises:
        BadInput: no cluster answers there.
        WorkFailed: a local one does not start.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else _temporary_folder() as temporary:
        local: dict[str, Any] = {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": temporary,
        }
        try:
            with _default_signals():
                if address:
                    _check_listening(address)
                ray.init(address=address or "local", **({} if address else local), **quiet)
        except BadInput:
            raise
        except Exception as error:  # Ray raises the bare class, too
            raise (_no_cluster(address, error) if address else _not_started(error)) from error
        try:
            yield
        finally:
            ray.shutdown()
