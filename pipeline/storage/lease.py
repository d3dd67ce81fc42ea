"""One driver at a time: a lease file in the store names its holder, who renews it while alive."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.common.errors import BadInput, WorkFailed, reason
from pipeline.common.progress import say
from pipeline.storage.store import Store

LEASE = "driver.json"
BEAT_SECONDS = 10.0
SINCE = "%Y-%m-%d %H:%M:%S UTC"  # the format of a holder's start
SILENT_BEATS = 4  # missed in a row: then a driver on another machine counts as dead


class Held(BadInput):
    """Another driver that is alive holds the lease."""


class Holder(BaseModel):
    """The content of the lease: its holder, and the number of renewals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    machine: str  # the boot and the PID namespace within which `process` is unique
    process: int
    process_start: str  # tells apart two processes that had the same number
    since: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        return f"host {self.host}, process {self.process}, since {self.since}"


class Lease:
    """The lease of a driver, renewed by a thread; `check` raises once another driver has taken it over."""

    def __init__(self, store: Store, holder: Holder) -> None:
        self.store, self._holder = store, holder
        self._successor: str | None = None
        self.on_loss: Callable[[], None] | None = None  # called in any thread when the lease is lost
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `WorkFailed` if another driver has taken over the lease."""
        if self._successor is not None:
            raise WorkFailed(
                f"{self.store.location}: this driver was silent for so long that another took over "
                f"({self._successor}); nothing is lost"
            )

    def confirm(self) -> None:
        """As `check`, but reads the store first.

        Raises:
            WorkFailed: as `check`.
            OSError: the store cannot be read.
        """
        self._is_lost()
        self.check()

    def _is_lost(self) -> bool:
        if _holds(self.store, self._holder):
            return False
        successor = _read(self.store)
        self._successor = str(successor or "which has ended")
        if self.on_loss is not None:
            self.on_loss()
        return True

    def release(self) -> None:
        """Stop renewing the lease, and remove it."""
        self._done.set()
        self._thread.join()
        try:
            if self._successor is None and _holds(self.store, self._holder):
                self.store.remove(LEASE)
        except (OSError, BadInput):
            return  # the next driver will see that this process has ended

    def _renew(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                if self._is_lost():
                    return
                renewed = self._holder.model_copy(update={"beat": self._holder.beat + 1})
                self.store.write(LEASE, _payload(renewed))
                self._holder = renewed
            except (OSError, BadInput):
                continue  # the store is unreachable; if it stays so, the work itself will fail


@contextmanager
def hold_lease(store: Store) -> Iterator[Lease]:
    """Hold the lease of `store`.

    Raises:
        Held: another driver holds it.
        BadInput: the store cannot be written.
    """
    try:
        lease = Lease(store, _acquire(store))
    except OSError as error:
        raise BadInput(f"{store.location}: cannot be written ({reason(error)})") from error
    try:
        yield lease
    finally:
        lease.release()


def _acquire(store: Store) -> Holder:
    ours, taken_over = this_process(), False
    while not store.create(LEASE, _payload(ours)) or (taken_over and not _is_kept(store, ours)):
        holder = _read(store)
        if holder is None:
            continue  # just released
        if not _is_dead(store, holder):
            raise Held(f"{store.location}: another driver is at work there ({holder}); wait for it or stop it")
        store.remove(LEASE)
        taken_over = True
    return ours


def this_process() -> Holder:
    """This process, as a holder that begins now."""
    process = os.getpid()
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        process=process,
        process_start=_process_start(process) or "",
        since=datetime.now(UTC).strftime(SINCE),
        token=uuid.uuid4().hex,
    )


def _is_kept(store: Store, ours: Holder) -> bool:
    """Whether the lease is still ours after a pause: another driver that saw the same dead one may remove it."""
    time.sleep(BEAT_SECONDS / 20)
    return _holds(store, ours)


def read_holder(store: Store) -> Holder | None:
    """Who holds the lease of `store`, as its file says; None if nobody does.

    Raises:
        BadInput: the file is not a lease.
    """
    return _read(store)


def is_alive(holder: Holder) -> bool | None:
    """Whether the holder's process is at work; None on another machine, which cannot be asked."""
    if (holder.host, holder.machine) != (socket.gethostname(), _machine()):
        return None
    return _process_start(holder.process) == holder.process_start


def _is_dead(store: Store, holder: Holder) -> bool:
    alive = is_alive(holder)
    if alive is not None:
        return not alive
    # Its process cannot be checked from here, and clocks differ: only a renewed lease shows that it is alive.
    seconds = SILENT_BEATS * BEAT_SECONDS
    say(f"{store.location}: waiting up to {seconds:.0f} s for a sign of life of its last driver ({holder})")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
        if (current := _read(store)) != holder:
            return current is None
    return True


def _read(store: Store) -> Holder | None:
    """The holder of the lease; None if there is none.

    Raises:
        BadInput: the file is not a lease, so that it must not be removed.
    """
    try:
        return Holder.model_validate_json(store.read(LEASE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadInput(f"{store.location}: its {LEASE} is not a driver's lease; move it away") from error


def _holds(store: Store, holder: Holder) -> bool:
    current = _read(store)
    return current is not None and current.token == holder.token


def _payload(holder: Holder) -> bytes:
    return holder.model_dump_json(indent=1).encode()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - it names no path
    except OSError:
        return ""


def _process_start(process: int) -> str | None:
    """The start time of `process` on this machine, only good for comparison; None if there is no such process."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    else:
        state, *rest = status.rpartition(")")[2].split()  # the name before it may contain anything
        return None if state in "ZX" else rest[18]
    try:  # without /proc, only whether it is alive is known
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
