"""Distribute shards over workers: Ray actors, or this process."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from pipeline.common.environment import PROGRAM, installed_version
from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, one_line
from pipeline.common.progress import say
from pipeline.common.ray_cluster import connected, last_line, worker_slots
from pipeline.dataset.commit import find_marker
from pipeline.dataset.conditions import Chunk, ConditionMarker, commit_chunk, find_chunk
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Marker
from pipeline.flow.numerics import check_precision
from pipeline.generation.backlog import MAX_ATTEMPTS, Backlog, Cause, Failure, Health, Piece, Result, piece_of
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.config import Compile
from pipeline.generation.same_flow import require_same_flow
from pipeline.generation.shard import check_room, commit_shard, draw_shard, integrate_shard
from pipeline.storage.store import Store, open_store
from pipeline.teachers.compilation import compile_teacher
from pipeline.teachers.loading import resolve
from pipeline.teachers.soundness import require_sound
from pipeline.teachers.teacher import Teacher

POLL_SECONDS = 0.5  # the longest that a signal waits
# Shards that a worker holds at once. On a GPU one is built, hashed and written while the next is integrated; on a CPU,
# with a worker for each core, writing would only take the core from integrating.
SHARDS_OF_GPU, SHARDS_OF_CPU = 2, 1
PROGRESS_SECONDS = 2.0  # between two questions to an actor how far it is
DEVICE_ERROR = re.compile("CUDA error|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error|HIP error")


@dataclass(frozen=True)
class Job:
    """What every worker is given: the plan, the source of its teacher, and the location of the data set."""

    plan: Plan
    teacher: str
    location: str
    version: str = field(default_factory=lambda: program_version())  # the driver's
    compile: Compile = "auto"
    is_part: bool = False  # others are at work on the same shards, and nobody hands them out


def program_version() -> str:
    """The installed version of this program; "of a source tree" if none is installed."""
    return installed_version(PROGRAM) or "of a source tree"


class Unfit(WorkFailed):
    """This worker cannot make any shard: for the lack of a teacher, a device or the right version."""


class Worker:
    """Holds a teacher on one device and makes shards with it, one in its teacher at a time."""

    def __init__(self, job: Job, wants_gpu: bool) -> None:
        self.job, self.wants_gpu = job, wants_gpu
        self.device = torch.device("cuda" if wants_gpu else "cpu")
        self._device_lock = threading.Lock()
        self._integrated: dict[int, int] = {}
        self._is_unchecked = False  # whether `_check_flow` found nothing to compare with as yet

    def ready(self) -> None:
        """Returns once this actor is scheduled."""

    def integrated(self) -> dict[int, int]:
        """The records that are integrated of each shard in work, by its number."""
        return dict(self._integrated)

    @cached_property
    def store(self) -> Store:
        return open_store(self.job.location)

    @cached_property
    def encoder(self) -> ChunkEncoder:
        """Loaded with the first chunk of the condition table.

        Raises:
            Unfit: it cannot be loaded here.
        """
        with _unfit():
            self._check_machine()
            return ChunkEncoder.load(self.job.plan, resolve(self.job.teacher), self.store, self.device)

    @cached_property
    def teacher(self) -> Teacher:
        """Loaded with the first shard.

        Raises:
            Unfit: it cannot be loaded here.
        """
        with _unfit():
            self._check_machine()
            check_precision(self.job.plan.precision, self.device)
            plan = self.job.plan
            source = resolve(self.job.teacher)
            teacher = source.load_planned(plan, self.store, self.device, True, plan.precision)
            if teacher.sha256 != self.job.plan.teacher_sha256:
                raise WorkFailed(f"teacher {self.job.teacher}: its weights on this machine are not those of the plan")
            if source.is_function:  # it may take no other batch than the plan's
                require_sound(teacher, self.device, self.job.plan.batch_size)
            self._is_unchecked = source.is_function
            self._check_flow(teacher)
            return compile_teacher(teacher, self.device, self.job.compile)

    def _check_flow(self, teacher: Teacher) -> None:
        """Compare a user's own function, once, with the first records that anybody has committed.

        Raises:
            Unfit: they were made by another one.
        """
        if self._is_unchecked:
            with _unfit():
                plan = self.job.plan
                found = require_same_flow(self.store, plan, teacher, self.device, plan.batch_size)
            self._is_unchecked = not found

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

        def count(num_records: int) -> None:
            self._integrated[shard.number] = self._integrated.get(shard.number, 0) + num_records
            if on_batch is not None:
                on_batch(num_records)

        try:
            return self._encode(shard) if isinstance(shard, Chunk) else self._integrate(shard, count)
        except Exception as error:  # a user's own teacher may raise anything
            message = _message(error)
            if not isinstance(error, Unfit) and not message.startswith(str(shard)):
                message = f"{shard}: {message}"
            if isinstance(error.__cause__ or error, MemoryError | torch.OutOfMemoryError):
                message += f"; use fewer workers, {self._lighter(shard)}"
            return Failure(shard, message, _cause(error), socket.gethostname())
        finally:
            self._integrated.pop(shard.number, None)

    def _lighter(self, piece: Piece) -> str:
        """What else than fewer workers needs less memory."""
        if isinstance(piece, Chunk):
            return "or a device with more memory: prompts are encoded one at a time, and the text encoders do not fit"
        return f"or plan a smaller batch_size than {self.job.plan.batch_size}: generate --dry-run tries some"

    def _encode(self, chunk: Chunk) -> ConditionMarker:
        if self.job.is_part and (marker := find_chunk(self.store, self.job.plan, chunk)):
            return marker
        with self._device_lock:
            made = self.encoder.encode(chunk)
        return commit_chunk(self.store, *made)

    def _integrate(self, shard: Shard, count: Callable[[int], None]) -> Marker:
        if self.job.is_part and (marker := find_marker(self.store, self.job.plan, shard)):
            count(shard.num_records)
            return marker
        check_room(self.job.plan, shard, self.store)
        starts = draw_shard(self.job.plan, shard)
        with self._device_lock:
            solved = integrate_shard(self.job.plan, shard, starts, self.teacher, self.store, self.device, count)
            self._check_flow(self.teacher)  # others may have begun with this worker
        return commit_shard(solved, self.store)


@contextmanager
def _unfit() -> Iterator[None]:
    """Turn any exception but the store's into `Unfit`: a user's own factory may raise anything."""
    try:
        yield
    except StoreFailed:
        raise
    except Exception as error:
        raise Unfit(_message(error)) from error


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, WorkFailed | BadInput) else f"{type(error).__name__}: {one_line(error)}"


def _cause(error: BaseException) -> Cause:
    if isinstance(error, Unfit):
        return "loading"
    if isinstance(error, StoreFailed):
        return "lost"
    if isinstance(error, torch.AcceleratorError) or DEVICE_ERROR.search(str(error)):
        return "device"
    return "shard" if error.__cause__ is None else _cause(error.__cause__)


def run_inline(job: Job, backlog: Backlog, on_batch: Callable[[int], None]) -> Iterator[Result]:
    """Make the shards of `backlog` in this process; `on_batch` is told the records of each batch.

    Raises:
        WorkFailed: the device failed, or the teacher cannot be loaded: the shards that are left would fail likewise.
    """
    wants_gpu = torch.cuda.is_available()
    worker = Worker(job, wants_gpu)
    if wants_gpu:
        yield from _run_overlapped(worker, backlog, on_batch)
    while shard := backlog.take():
        result = worker.make(shard, on_batch)
        yield from backlog.final_results(result)
        _check_fit(result, backlog)


def _check_fit(result: Result, backlog: Backlog) -> None:
    """Raises `WorkFailed` if `result` says that this process cannot make another shard."""
    if not Health().is_fit_after(result, is_first=False):
        assert isinstance(result, Failure)
        is_lost = result.cause == "loading"  # to the same command, too
        left = f"; {len(backlog)} other shards are left: run the same command again" if backlog and not is_lost else ""
        raise WorkFailed(f"{result.error}{left}")


def _run_overlapped(worker: Worker, backlog: Backlog, on_batch: Callable[[int], None]) -> Iterator[Result]:
    """Make shards in threads: one is written while the next is integrated."""
    working: set[Future[Result]] = set()
    with ThreadPoolExecutor(SHARDS_OF_GPU, "shard") as pool:
        while working or backlog:
            while len(working) < SHARDS_OF_GPU and (shard := backlog.take()):
                working.add(pool.submit(worker.make, shard, on_batch))
            done, working = wait(working, return_when=FIRST_COMPLETED)
            for future in done:
                yield from backlog.final_results(future.result())
                _check_fit(future.result(), backlog)


def run_on_ray(
    job: Job,
    backlog: Backlog,
    on_batch: Callable[[int], None],
    num_workers: int | None,
    gpus_per_worker: float | None,
    address: str | None,
) -> Iterator[Result]:
    """Make the shards of `backlog` on Ray actors; yield results as they finish.

    Once the backlog is stopped, the shards in flight are still made.

    Args:
        job: the plan, the teacher and the location.
        backlog: the shards to make.
        on_batch: told the records of each batch, or of several.
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
        yield from _ActorPool(job, backlog, on_batch, num_workers, gpus).results()


@dataclass(eq=False)
class _Hand:
    """An actor, and what is known of it; its identity is its name in the backlog."""

    actor: Any
    health: Health = field(default_factory=Health)
    asked: float = 0.0  # when it was last asked how far it is


class Progress:
    """The records that are integrated, told as they become more: what is lost or made twice is not counted again."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell, self._made, self._told = tell, 0, 0
        self._in_work: dict[int, int] = {}  # the records of each shard, by its number

    def on_answer(self, integrated: dict[int, int]) -> None:
        """Take note of how far a worker is."""
        self._in_work |= integrated
        self._update()

    def on_result(self, result: Result) -> None:
        """Take note of a shard that was made, or failed."""
        self._in_work.pop(piece_of(result).number, None)
        self._made += result.shard.num_records if isinstance(result, Marker) else 0
        self._update()

    def _update(self) -> None:
        num_records = self._made + sum(self._in_work.values())
        if num_records > self._told:
            self._tell(num_records - self._told)
            self._told = num_records


class _ActorPool:
    """Ray actors, each working on shards, idle, or pending.

    An actor gets a shard only once it is scheduled, so that stopping never waits for pending actors. One that is unfit
    is retired; another takes its place if it had made a shard, so that a machine that cannot make any is tried once.
    """

    def __init__(
        self, job: Job, backlog: Backlog, on_batch: Callable[[int], None], num_workers: int, gpus: float
    ) -> None:
        import ray

        self._job, self._backlog, self._num_workers, self._wants_gpu = job, backlog, num_workers, gpus > 0
        self._shards_at_once = SHARDS_OF_GPU if gpus else SHARDS_OF_CPU
        actor: Any = ray.remote(max_restarts=0, num_cpus=1, num_gpus=gpus)(Worker)
        self._actor = actor.options(max_concurrency=self._shards_at_once + 1)  # one more to answer
        self._working: dict[Any, tuple[Piece, _Hand]] = {}  # by the reference to the result
        self._pending: dict[Any, _Hand] = {}  # by the reference of `ready`
        self._asked: dict[Any, _Hand] = {}  # by the reference of `integrated`
        self._progress = Progress(on_batch)
        self._idle: list[_Hand] = []  # an entry for each shard that the worker could take
        self._failed_starts = 0  # since the last shard that was made
        self._last_error = ""

    def results(self) -> Iterator[Result]:
        import ray

        for _ in range(min(self._num_workers, len(self._backlog.shards))):
            self._start()
        while self._backlog.num_in_work or self._backlog:
            if not (self._working or (self._pending and not self._idle)):
                yield from self._give_up()
                break
            self._ask()
            done, _ = ray.wait([*self._working, *self._pending, *self._asked], timeout=POLL_SECONDS)
            answers, done = [r for r in done if r in self._asked], [r for r in done if r not in self._asked]
            for reference in answers:
                self._on_answer(reference)
            for reference in done:
                if reference in self._pending:
                    self._on_ready(reference)
                elif reference in self._working:
                    for result in self._on_result(reference):
                        self._progress.on_result(result)
                        yield result
            if self._backlog or not done:
                self._employ_idle()
        for _, hand in self._working.values():  # at copies of shards that others have made
            ray.kill(hand.actor)

    def _ask(self) -> None:
        """Ask the workers how far they are, each when its last answer is old enough."""
        now = time.monotonic()
        for hand in {hand for _, hand in self._working.values()}:
            if now - hand.asked > PROGRESS_SECONDS and hand not in self._asked.values():
                hand.asked = now
                self._asked[hand.actor.integrated.remote()] = hand

    def _on_answer(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError

        hand = self._asked.pop(reference)
        in_work = {shard.number for shard, other in self._working.values() if other is hand}
        try:
            integrated = ray.get(reference)
        except RayError:  # it died: its shards' results say so
            return
        self._progress.on_answer({number: count for number, count in integrated.items() if number in in_work})

    def _give_up(self) -> Iterator[Failure]:
        """Yield the shards that failed on every worker.

        Raises:
            WorkFailed: others were never tried, because no worker is left.
        """
        yield from self._backlog.give_up()
        if self._backlog:
            raise WorkFailed(f"no worker is left for {len(self._backlog)} shards; the last one: {self._last_error}")

    def _start(self) -> None:
        hand = _Hand(self._actor.remote(self._job, self._wants_gpu))
        self._pending[hand.actor.ready.remote()] = hand

    def _assign_shard(self, hand: _Hand) -> None:
        """Give `hand` the next shard, or let it wait for one."""
        shard = self._backlog.take(hand)
        if shard is None:
            self._idle.append(hand)
        else:
            self._working[hand.actor.make.remote(shard)] = (shard, hand)

    def _employ_idle(self) -> None:
        idle, self._idle = self._idle, []
        for hand in idle:
            self._assign_shard(hand)

    def _on_ready(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError

        hand = self._pending.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts == MAX_ATTEMPTS * self._num_workers:
                raise WorkFailed(f"workers die before they start ({last_line(error)})") from error
            self._start()
        else:
            self._assign_shard(hand)
            # Further ones only where the other actors that are to come will still find one each.
            for _ in range(self._shards_at_once - 1):
                if len(self._backlog) > len(self._pending):
                    self._assign_shard(hand)

    def _on_result(self, reference: Any) -> Iterator[Result]:
        import ray
        from ray.exceptions import RayError

        shard, hand = self._working.pop(reference)
        is_first = not self._backlog.has_failed(shard)
        try:
            result: Result = ray.get(reference)
        except RayError as error:
            detail = last_line(error).partition(" Some common causes")[0]
            message = f"its worker died: killed, out of memory, or its machine was lost ({detail})"
            yield from self._backlog.final_results(Failure(shard, f"{shard}: {message}", "lost"), hand)
            self._idle = [other for other in self._idle if other is not hand]
            is_last = all(other is not hand for _, other in self._working.values())
            if self._backlog and is_last:  # one actor takes the place of one, however many shards died with it
                self._start()
            return
        yield from self._backlog.final_results(result, hand)
        if not isinstance(result, Failure):
            self._failed_starts = 0
        if hand.health.is_fit_after(result, is_first):
            self._assign_shard(hand)
        elif isinstance(result, Failure):
            self._retire(hand, result)

    def _retire(self, hand: _Hand, failure: Failure) -> None:
        """End an unfit worker; its other shards go back to the backlog."""
        import ray

        self._last_error = f"on {failure.machine}: {failure.error}"
        say(f"note: a worker is retired {self._last_error}")
        for reference, (shard, other) in list(self._working.items()):
            if other is hand:
                del self._working[reference]
                self._backlog.give_back(shard)
        self._idle = [other for other in self._idle if other is not hand]
        ray.kill(hand.actor)
        if hand.health.num_made:
            self._start()
