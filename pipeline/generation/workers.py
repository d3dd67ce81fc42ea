"""Distribute shards over workers: Ray actors, or this process."""

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, one_line
from pipeline.common.ray_cluster import connected, last_line, worker_slots
from pipeline.dataset.conditions import Chunk, ConditionMarker, commit_chunk
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker
from pipeline.flow.numerics import check_precision
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.config import Compile
from pipeline.generation.shard import check_room, commit_shard, draw_shard, integrate_shard
from pipeline.storage.store import Store, open_store
from pipeline.teachers.compilation import compile_teacher
from pipeline.teachers.loading import resolve
from pipeline.teachers.teacher import Teacher

# Of a shard whose worker died or whose store failed; a teacher's own error would only repeat itself.
MAX_ATTEMPTS = 3
Piece = Shard | Chunk
POLL_SECONDS = 0.5  # the longest that a signal waits
# Shards that a worker holds at once. On a GPU one is built, hashed and written while the next is integrated; on a CPU,
# with a worker for each core, writing would only take the core from integrating.
SHARDS_OF_GPU, SHARDS_OF_CPU = 2, 1


@dataclass(frozen=True)
class Job:
    """What every worker is given: the plan, the source of its teacher, and the location of the data set."""

    plan: Plan
    teacher: str
    location: str
    version: str = field(default_factory=lambda: program_version())  # the driver's
    compile: Compile = "auto"


def program_version() -> str:
    """The installed version of this program; "of a source tree" if none is installed."""
    try:
        return version("traflow-pipeline")
    except PackageNotFoundError:
        return "of a source tree"


@dataclass(frozen=True)
class Failure:
    """A shard, or a chunk of the condition table, that could not be made, and why."""

    shard: Piece
    error: str
    is_transient: bool = False  # a retry may succeed


Result = Marker | ConditionMarker | Failure


@dataclass
class Backlog:
    """The shards to be made, or the chunks, with retries. A failed shard reports its first error."""

    shards: Sequence[Piece]
    stop: threading.Event  # once set, no more shards are handed out
    _num_taken: int = field(init=False, default=0)
    _retries: deque[Piece] = field(init=False, default_factory=deque)
    _failures: dict[int, list[str]] = field(init=False, default_factory=dict)

    def __len__(self) -> int:
        return 0 if self.stop.is_set() else len(self.shards) - self._num_taken + len(self._retries)

    def take(self) -> Piece:
        """The next shard; there is one while the backlog is truthy."""
        if self._num_taken == len(self.shards):
            return self._retries.popleft()
        self._num_taken += 1
        return self.shards[self._num_taken - 1]

    def final_results(self, result: Result) -> Iterator[Result]:
        """Yield `result`, unless it is a failure to retry: then its shard goes to the end of the backlog."""
        if not isinstance(result, Failure):
            yield result
            return
        errors = self._failures.setdefault(result.shard.number, [])
        errors.append(result.error)
        if result.is_transient and len(errors) < MAX_ATTEMPTS:
            self._retries.append(result.shard)
        else:
            attempts = f" (tried {len(errors)} times)" if len(errors) > 1 else ""
            yield Failure(result.shard, errors[0] + attempts)


class Worker:
    """Holds a teacher on one device and makes shards with it, one in its teacher at a time."""

    def __init__(self, job: Job, wants_gpu: bool) -> None:
        self.job, self.wants_gpu = job, wants_gpu
        self.device = torch.device("cuda" if wants_gpu else "cpu")
        self._device_lock = threading.Lock()

    def ready(self) -> None:
        """Returns once this actor is scheduled."""

    @cached_property
    def store(self) -> Store:
        return open_store(self.job.location)

    @cached_property
    def encoder(self) -> ChunkEncoder:
        """Loaded with the first chunk of the condition table."""
        self._check_machine()
        return ChunkEncoder.load(self.job.plan, resolve(self.job.teacher), self.store, self.device)

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded with the first shard, so that a missing teacher fails a shard and not the worker."""
        self._check_machine()
        check_precision(self.job.plan.precision, self.device)
        teacher = resolve(self.job.teacher).load_planned(self.job.plan, self.store, self.device, quiet=True)
        if teacher.sha256 != self.job.plan.teacher_sha256:
            raise WorkFailed(f"teacher {self.job.teacher}: its weights on this machine are not those of the plan")
        return compile_teacher(teacher, self.device, self.job.compile)

    def _check_machine(self) -> None:
        """Raises `WorkFailed` if this machine lacks what the driver has."""
        if program_version() != self.job.version:
            raise WorkFailed(
                f"{socket.gethostname()} has traflow-pipeline {program_version()}, the driver {self.job.version}: "
                "install the same version on every machine"
            )
        if self.wants_gpu and not torch.cuda.is_available():
            raise WorkFailed(f"Ray gave a GPU on {socket.gethostname()}, but torch {torch.__version__} sees none there")

    def make(self, shard: Piece, on_batch: Callable[[int], None] | None = None) -> Result:
        """Generate and commit `shard`, or a chunk of the condition table.

        A failure is returned, so that it does not stop the other shards.

        Called from several threads, it integrates one shard while others are drawn, built, hashed and written.
        `on_batch` is told the records of each batch.
        """
        try:
            return self._encode(shard) if isinstance(shard, Chunk) else self._integrate(shard, on_batch)
        except Exception as error:  # a user's own teacher may raise anything
            is_ours = isinstance(error, WorkFailed | BadInput)
            message = str(error) if is_ours else f"{type(error).__name__}: {one_line(error)}"
            if not message.startswith(str(shard)):
                message = f"{shard}: {message}"
            if isinstance(error.__cause__ or error, MemoryError | torch.OutOfMemoryError):
                size = self.job.plan.batch_size
                message += (
                    f"; use fewer workers, or plan a smaller batch_size than {size}: generate --dry-run tries some"
                )
            return Failure(shard, message, isinstance(error, StoreFailed))

    def _encode(self, chunk: Chunk) -> ConditionMarker:
        with self._device_lock:
            made = self.encoder.encode(chunk)
        return commit_chunk(self.store, *made)

    def _integrate(self, shard: Shard, on_batch: Callable[[int], None] | None) -> Marker:
        check_room(self.job.plan, shard, self.store)
        starts = draw_shard(self.job.plan, shard)
        with self._device_lock:
            solved = integrate_shard(self.job.plan, shard, starts, self.teacher, self.store, self.device, on_batch)
        return commit_shard(solved, self.store)


def run_inline(job: Job, backlog: Backlog, on_batch: Callable[[int], None]) -> Iterator[Result]:
    """Make the shards of `backlog` in this process; `on_batch` is told the records of each batch."""
    wants_gpu = torch.cuda.is_available()
    worker = Worker(job, wants_gpu)
    if wants_gpu:
        yield from _run_overlapped(worker, backlog, on_batch)
    while backlog:
        yield from backlog.final_results(worker.make(backlog.take(), on_batch))


def _run_overlapped(worker: Worker, backlog: Backlog, on_batch: Callable[[int], None]) -> Iterator[Result]:
    """Make shards in threads: one is written while the next is integrated."""
    working: set[Future[Result]] = set()
    with ThreadPoolExecutor(SHARDS_OF_GPU, "shard") as pool:
        while working or backlog:
            while backlog and len(working) < SHARDS_OF_GPU:
                working.add(pool.submit(worker.make, backlog.take(), on_batch))
            done, working = wait(working, return_when=FIRST_COMPLETED)
            for future in done:
                yield from backlog.final_results(future.result())


def run_on_ray(
    job: Job, backlog: Backlog, num_workers: int | None, gpus_per_worker: float | None, address: str | None
) -> Iterator[Result]:
    """Make the shards of `backlog` on Ray actors; yield results as they finish.

    Once the backlog is stopped, the shards in flight are still made.

    Args:
        job: the plan, the teacher and the location.
        backlog: the shards to make.
        num_workers: actors, by default as many as fit on the cluster.
        gpus_per_worker: of each actor, by default 1 where the cluster has GPUs; 0.25 puts four actors on a GPU,
            0 keeps them on CPUs.
        address: a running cluster ("auto" or host:port); by default RAY_ADDRESS, or a local one of this process.

    Raises:
        BadInput: no cluster answers at `address`, or not one worker fits on it.
    """
    import ray

    with connected(address):
        num_workers, gpus = worker_slots(ray.cluster_resources(), num_workers, gpus_per_worker)  # type: ignore[no-untyped-call]
        yield from _ActorPool(job, backlog, num_workers, gpus).results()


class _ActorPool:
    """Ray actors, working on a shard or pending.

    An actor gets a shard only once it is scheduled, so that stopping never waits for pending actors.
    """

    def __init__(self, job: Job, backlog: Backlog, num_workers: int, gpus: float) -> None:
        import ray

        self._job, self._backlog, self._num_workers, self._wants_gpu = job, backlog, num_workers, gpus > 0
        self._shards_at_once = SHARDS_OF_GPU if gpus else SHARDS_OF_CPU
        actor: Any = ray.remote(max_restarts=0, num_cpus=1, num_gpus=gpus)(Worker)
        self._actor = actor.options(max_concurrency=self._shards_at_once)
        self._working: dict[Any, tuple[Piece, Any]] = {}  # by the reference to the result
        self._pending: dict[Any, Any] = {}  # by the reference of `ready`
        self._failed_starts = 0

    def results(self) -> Iterator[Result]:
        import ray

        for _ in range(min(self._num_workers, len(self._backlog.shards))):
            self._start()
        while self._working or self._backlog:
            done, _ = ray.wait([*self._working, *self._pending], timeout=POLL_SECONDS)
            for reference in done:
                if reference in self._pending:
                    self._on_ready(reference)
                else:
                    yield from self._on_result(reference)

    def _start(self) -> None:
        worker = self._actor.remote(self._job, self._wants_gpu)
        self._pending[worker.ready.remote()] = worker

    def _assign_shard(self, worker: Any) -> None:
        """Give `worker` the next shard. Without one it is released, and a pending actor takes its resources."""
        if self._backlog:
            shard = self._backlog.take()
            self._working[worker.make.remote(shard)] = (shard, worker)

    def _on_ready(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError

        worker = self._pending.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts == MAX_ATTEMPTS * self._num_workers:
                raise WorkFailed(f"workers die before they start ({last_line(error)})") from error
            self._start()
        else:
            self._assign_shard(worker)
            # Further ones only where the other actors that are to come will still find one each.
            for _ in range(self._shards_at_once - 1):
                if len(self._backlog) > len(self._pending):
                    self._assign_shard(worker)

    def _on_result(self, reference: Any) -> Iterator[Result]:
        import ray
        from ray.exceptions import RayError

        shard, worker = self._working.pop(reference)
        try:
            result: Result = ray.get(reference)
        except RayError as error:
            detail = last_line(error).partition(" Some common causes")[0]
            message = f"its worker died: killed, out of memory, or its machine was lost ({detail})"
            yield from self._backlog.final_results(Failure(shard, f"{shard}: {message}", is_transient=True))
            is_last = all(other is not worker for _, other in self._working.values())
            if self._backlog and is_last:  # one actor takes the place of one, however many shards died with it
                self._start()
        else:
            yield from self._backlog.final_results(result)
            self._assign_shard(worker)
