"""Who runs which shard: Ray actors, or this process. The only file that imports ray."""

import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import BadInput, WorkFailed
from pipeline.generate import generate_and_commit
from pipeline.plan import Plan, Shard
from pipeline.shards import Receipt
from pipeline.teachers import load_teacher
from pipeline.teachers.teacher import Teacher

MAX_ATTEMPTS = 3  # of a shard whose worker died; a failure of the teacher itself is not tried again
CONNECT_SECONDS = 10
OBJECT_STORE_BYTES = 100 * 2**20  # receipts only; Ray's default would take a third of the memory


@dataclass(frozen=True)
class Job:
    """What every worker needs to know: the plan, where its teacher comes from, where shards go."""

    plan: Plan
    teacher: str
    folder: Path


@dataclass(frozen=True)
class Failure:
    """A shard that could not be made, and why."""

    shard: Shard
    error: str


class Worker:
    """Holds a teacher on one device and makes shards with it."""

    def __init__(self, job: Job, device: str) -> None:
        self.job = job
        self.device = torch.device(device)

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded with the first shard, so that a teacher that is not here fails a shard and not the worker."""
        teacher = load_teacher(self.job.teacher, self.device)
        if teacher.sha256 != self.job.plan.teacher_sha256:
            raise WorkFailed(f"teacher {self.job.teacher}: its weights on this machine are not those of the plan")
        return teacher

    def make(self, shard: Shard) -> Receipt | Failure:
        """Generate and commit `shard`; its failure is a result, so that it does not stop the others."""
        try:
            return generate_and_commit(self.job.plan, shard, self.teacher, self.job.folder, self.device)
        except WorkFailed as error:
            return Failure(shard, str(error))
        except BadInput as error:
            return Failure(shard, f"{shard}: {error}")
        except Exception as error:  # whatever a teacher of the user's own raises
            return Failure(shard, f"{shard}: {type(error).__name__}: {error}")


def run_inline(job: Job, shards: list[Shard]) -> Iterator[Receipt | Failure]:
    """Make `shards` one after the other in this process."""
    worker = Worker(job, "cuda" if torch.cuda.is_available() else "cpu")
    yield from map(worker.make, shards)


def run_on_ray(
    job: Job, shards: list[Shard], num_workers: int | None, address: str | None
) -> Iterator[Receipt | Failure]:
    """Make `shards` on Ray actors; results come in the order in which they are done.

    Args:
        job: the plan, the teacher and the folder.
        shards: what to make.
        num_workers: actors, by default one per GPU of the cluster or, without GPUs, one per CPU.
        address: a running cluster ("auto" or host:port); by default RAY_ADDRESS, or a local one that ends with us.

    Raises:
        BadInput: no cluster answers at `address`, or it has nothing to work with.
    """
    import ray
    from ray.exceptions import RayError

    with _connected(address):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = int(resources.get("GPU", 0))
        num_workers = num_workers or num_gpus or int(resources.get("CPU", 0))
        if not num_workers:
            raise BadInput("the Ray cluster has no CPUs yet: start workers, or say with --workers how many will come")
        actor = ray.remote(max_restarts=0, num_cpus=1, num_gpus=1 if num_gpus else 0)(Worker)

        def start_worker() -> Any:
            return actor.remote(job, "cuda" if num_gpus else "cpu")

        waiting = deque((shard, 1) for shard in shards)
        running: dict[Any, tuple[Shard, int, Any]] = {}

        def hand_out(worker: Any) -> None:
            if waiting:
                shard, attempt = waiting.popleft()
                running[worker.make.remote(shard)] = (shard, attempt, worker)

        for _ in range(min(num_workers, len(shards))):
            hand_out(start_worker())
        while running:
            (done, *_), _ = ray.wait(list(running))
            shard, attempt, worker = running.pop(done)
            try:
                yield ray.get(done)
            except RayError as error:  # the worker died, of itself or of its machine
                if attempt < MAX_ATTEMPTS:
                    waiting.append((shard, attempt + 1))
                else:
                    yield Failure(shard, f"{shard}: its worker died {attempt} times; {_last_line(error)}")
                worker = start_worker() if waiting else None
            hand_out(worker)
            # The last reference to a worker without work: its place goes to one that still waits for a place.
            worker = None


def _knock(address: str) -> None:
    """Raises OSError if nothing listens at host:port, for which `ray.init` itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (colon and port.isdigit()):
        raise BadInput(f"--address {address}: wanted host:port or auto")
    if colon:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS")
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
    try:
        yield
    finally:
        ray.shutdown()
