"""Heartbeats: a small file in the store for each part that is at work there, which tells who makes it.

They keep nobody out, unlike the lease: parts may overlap. Two processes that make the same part share its file.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from pipeline.common.repeat import repeated
from pipeline.storage.lease import Holder, is_alive, this_process
from pipeline.storage.store import Store

FILE = re.compile(r"part-(\d{1,9})-of-(\d{1,9})\.json")
BEAT_SECONDS = 30.0
SILENT_SECONDS = 4 * BEAT_SECONDS  # then a part on another machine, whose clock may be off a little, counts as lost


class Heartbeat(BaseModel):
    """The content of a part's file: who makes it, and when they last said so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: Holder
    seen: AwareDatetime

    @property
    def is_beating(self) -> bool:
        """Whether the part is at work: its process is alive, or on another machine has said so lately."""
        alive = is_alive(self.holder)
        return datetime.now(UTC) - self.seen < timedelta(seconds=SILENT_SECONDS) if alive is None else alive


@contextmanager
def beating(store: Store, number: int, count: int) -> Iterator[None]:
    """Tell in `store`, while the block runs, that this process makes the part `number` of `count`.

    What cannot be written stays untold: if the store is away, the work itself fails.
    """
    name, holder = _name(number, count), this_process()

    def beat() -> None:
        with suppress(OSError):
            store.write(name, Heartbeat(holder=holder, seen=datetime.now(UTC)).model_dump_json().encode())

    beat()
    try:
        with repeated(beat, BEAT_SECONDS, "heartbeat"):
            yield
    finally:
        with suppress(OSError):
            store.remove(name)


def heartbeats(store: Store, names: Iterable[str]) -> dict[tuple[int, int], Heartbeat]:
    """The heartbeats among the files `names` of `store`, by the number of the part and how many there are.

    Raises:
        OSError: the store cannot be read.
    """
    parts = {name: (int(match[1]), int(match[2])) for name in names if (match := FILE.fullmatch(name))}
    found = {}
    for name, text in store.read_all(sorted(parts)).items():
        with suppress(ValidationError):  # half of it, or no heartbeat
            found[parts[name]] = Heartbeat.model_validate_json(text)
    return found


def sweep_heartbeats(store: Store) -> None:
    """Remove the heartbeats of parts that were lost.

    Raises:
        OSError: the store cannot be read or written.
    """
    for (number, count), heartbeat in heartbeats(store, store.sizes()).items():
        if not heartbeat.is_beating:
            store.remove(_name(number, count))


def _name(number: int, count: int) -> str:
    return f"part-{number}-of-{count}.json"
