"""Who makes which shard: Ray actors, or this process. The only file that imports ray."""

import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, one_line
from pipeline.common.ray_cluster import _last_line, connected, places
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker
from pipeline.generation.shard import generate_and_commit
from pipeline.storage.store import Store, open_store
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher

# Of a shard whose worker died or whose store did not answer; what a teacher gets wrong it gets wrong again.
MAX_ATTEMPTS = 3
POLL_SECONDS = 0.5  # how long a signal may wait for its answer


@dataclass(frozen=True)
class Job:
    """What every worker needs to know: the plan, where its teacher comes from, where shards go."""

    plan: Plan
    teacher: str
    location: str
    program: str = field(default_factory=lambda: program())  # the driver's


def program() -> str:
    """The version of this program, as far as one is installed."""
    try:
        return version("traflow-pipeline")
    except PackageNotFoundError:
        return "of a source tree"


@dataclass(frozen=True)
class Failure:
    """A shard that could not be made, and why."""

    shard: Shard
    error: str
    may_pass: bool = False  # trying again is worth it


@dataclass
class Backlog:
    """The shards that wait to be made, and how often each was tried; the first error of a shard is the one told."""

    shards: Sequence[Shard]
    stop: threading.Event  # once set, nothing more is handed out
    _num_taken: int = field(init=False, default=0)
    _again: deque[Shard] = field(init=False, default_factory=deque)
    _failures: dict[int, list[str]] = field(init=False, default_factory=dict)

    def __bool__(self) -> bool:
        return (self._num_taken < len(self.shards) or bool(self._again)) and not self.stop.is_set()

    def take(self) -> Shard:
        """The next shard; there is one while the backlog is true."""
        if self._num_taken == len(self.shards):
            return self._again.popleft()
        self._num_taken += 1
        return self.shards[self._num_taken - 1]

    def settle(self, result: Marker | Failure) -> Iterator[Marker | Failure]:
        """The last word on a shard, if `result` is it; a failure that may pass goes to the end of the line."""
        if isinstance(result, Marker):
            yield result
            return
        errors = self._failures.setdefault(result.shard.number, [])
        errors.append(result.error)
        if result.may_pass and len(errors) < MAX_ATTEMPTS:
            self._again.append(result.shard)
        else:
            times = f" (tried {len(errors)} times)" if len(errors) > 1 else ""
            yield Failure(result.shard, errors[0] + times)


class Worker:
    """Holds a teacher on one device and makes shards with it."""

    def __init__(self, job: Job, wants_gpu: bool) -> None:
        self.job, self.wants_gpu = job, wants_gpu
        self.device = torch.device("cuda" if wants_gpu else "cpu")

    def ready(self) -> None:
        """Answers once there is a place for this worker."""

    @cached_property
    def store(self) -> Store:
        return open_store(self.job.location)

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded with the first shard, so that a teacher that is not here fails a shard and not the worker."""
        if program() != self.job.program:
            raise WorkFailed(
                f"{socket.gethostname()} has traflow-pipeline {program()}, the driver {self.job.program}: "
                "install the same version on every machine"
            )
        if self.wants_gpu and not torch.cuda.is_available():
            raise WorkFailed(f"Ray gave a GPU on {socket.gethostname()}, but torch {torch.__version__} sees none there")
        teacher = load_teacher(self.job.teacher, self.device, self.job.plan.guidance_scale, quiet=True)
        if teacher.sha256 != self.job.plan.teacher_sha256:
            raise WorkFailed(f"teacher {self.job.teacher}: its weights on this machine are not those of the plan")
        return teacher

    def make(self, shard: Shard) -> Marker | Failure:
        """Generate and commit `shard`; its failure is a result, so that it does not stop the others."""
        try:
            return generate_and_commit(self.job.plan, shard, self.teacher, self.store, self.device)
        except Exception as error:  # among them whatever a teacher of the user's own raises
            known = isinstance(error, WorkFailed | BadInput)
            reason = str(error) if known else f"{type(error).__name__}: {one_line(error)}"
            about = reason if reason.startswith(str(shard)) else f"{shard}: {reason}"
            if isinstance(error.__cause__ or error, MemoryError | torch.OutOfMemoryError):
                about += (
                    f"; make place with fewer workers, or plan a smaller batch_size than {self.job.plan.batch_size}"
                )
            return Failure(shard, about, isinstance(error, StoreFailed))


def run_inline(job: Job, backlog: Backlog) -> Iterator[Marker | Failure]:
    """Make the shards of `backlog` one after the other in this process."""
    worker = Worker(job, torch.cuda.is_available())
    while backlog:
        yield from backlog.settle(worker.make(backlog.take()))


def run_on_ray(
    job: Job, backlog: Backlog, num_workers: int | None, gpus_per_worker: float | None, address: str | None
) -> Iterator[Marker | Failure]:
    """Make the shards of `backlog` on Ray actors; results come in the order in which they are done.

    Once the backlog is stopped, the shards in flight are still made.

    Args:
        job: the plan, the teacher and the place.
        backlog: what to make.
        num_workers: actors, by default as many as the cluster has places for.
        gpus_per_worker: of each actor, by default 1 where the cluster has GPUs; 0.25 puts four actors on a GPU,
            0 keeps them on CPUs.
        address: a running cluster ("auto" or host:port); by default RAY_ADDRESS, or a local one that ends with us.

    Raises:
        BadInput: no cluster answers at `address`, or it has nothing to work with.
    """
    import ray

    with connected(address):
        num_workers, gpus = places(ray.cluster_resources(), num_workers, gpus_per_worker)  # type: ignore[no-untyped-call]
        yield from _Crew(job, backlog, num_workers, gpus).results()


class _Crew:
    """Ray actors: those at work on a shard, and those that wait for a place. Those have no shard yet, so that a stop
    need not wait until there is a place for them.
    """

    def __init__(self, job: Job, backlog: Backlog, num_workers: int, gpus: float) -> None:
        import ray

        self._job, self._backlog, self._num_workers, self._wants_gpu = job, backlog, num_workers, gpus > 0
        self._actor: Any = ray.remote(max_restarts=0, num_cpus=1, num_gpus=gpus)(Worker)
        self._working: dict[Any, tuple[Shard, Any]] = {}  # by the reference that will be the result
        self._waiting: dict[Any, Any] = {}  # by the reference that will be ready
        self._false_starts = 0

    def results(self) -> Iterator[Marker | Failure]:
        import ray

        for _ in range(min(self._num_workers, len(self._backlog.shards))):
            self._start()
        while self._working or self._backlog:
            done, _ = ray.wait([*self._working, *self._waiting], timeout=POLL_SECONDS)
            for reference in done:
                if reference in self._waiting:
                    self._welcome(reference)
                else:
                    yield from self._collect(reference)

    def _start(self) -> None:
        worker = self._actor.remote(self._job, self._wants_gpu)
        self._waiting[worker.ready.remote()] = worker

    def _hand_out(self, worker: Any) -> None:
        """The next shard to `worker`; without one it is let go, and its place goes to one that waits for a place."""
        if self._backlog:
            shard = self._backlog.take()
            self._working[worker.make.remote(shard)] = (shard, worker)

    def _welcome(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError

        worker = self._waiting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._false_starts += 1
            if self._false_starts == MAX_ATTEMPTS * self._num_workers:
                raise WorkFailed(f"workers die before they start to work ({_last_line(error)})") from error
            self._start()
        else:
            self._hand_out(worker)

    def _collect(self, reference: Any) -> Iterator[Marker | Failure]:
        import ray
        from ray.exceptions import RayError

        shard, worker = self._working.pop(reference)
        try:
            result: Marker | Failure = ray.get(reference)
        except RayError as error:
            detail = _last_line(error).partition(" Some common causes")[0]
            about = f"its worker died: killed, out of memory, or its machine was lost ({detail})"
            yield from self._backlog.settle(Failure(shard, f"{shard}: {about}", may_pass=True))
            if self._backlog:
                self._start()
        else:
            yield from self._backlog.settle(result)
            self._hand_out(worker)
