"""The commit of a shard: its bytes, then its marker; and finding what is committed."""

from collections.abc import Iterable, Iterator, Set
from itertools import islice

from pydantic import ValidationError

from pipeline.common.errors import StoreFailed, reason
from pipeline.dataset.plan import Plan, Shard, Shards
from pipeline.dataset.shards import SHARD_FILE, Marker
from pipeline.storage.store import Store

MARKERS_AT_ONCE = 1000  # held in memory
COMMIT_ATTEMPTS = 3  # in a race with another machine whose bytes differ


def marker_name(shard: Shard) -> str:
    """The file name of the marker of `shard`."""
    return shard.name.removesuffix(".tar") + ".json"


def commit(store: Store, payload: bytes, marker: Marker) -> Marker:
    """Write a shard and then its marker to `store`; a crash leaves the shard either whole or uncommitted.

    Two writers of one shard write the same bytes, and the first marker stays. If their machines make different bytes,
    the later writer removes the other's marker, writes its own shard, and then its own marker.

    Returns:
        The marker that is now in the store.

    Raises:
        StoreFailed: the store cannot be written; no file there is half-written.
    """
    shard, name = marker.shard, marker_name(marker.shard)
    try:
        for _ in range(COMMIT_ATTEMPTS):
            markers = store.read_all([name])
            existing = parse_marker(markers[name]) if name in markers else None
            agrees = existing is not None and existing.agrees(marker)
            if name in markers and not agrees:
                store.remove(name)
            store.write(shard.name, payload)
            if existing is not None and agrees:
                return existing
            if store.create(name, marker.model_dump_json().encode()):
                return marker
    except OSError as error:
        raise StoreFailed(f"{shard}: cannot be written to {store.location} ({reason(error)})") from error
    raise StoreFailed(
        f"{shard}: others keep committing other bytes to {store.location}: is another driver at work there?"
    )


def shards_present(plan: Plan, num_records: int, names: Iterable[str]) -> Shards:
    """The shards of the first `num_records` records that have a file among `names`.

    A number of records is a claim, which a damaged plan.json makes too large: what lies in the store bounds the work.
    """
    last = len(plan.shards(num_records)) - 1
    numbers = {int(match[1]) for match in map(SHARD_FILE.fullmatch, names) if match}
    return Shards(plan, num_records, sorted(number for number in numbers if number <= last))


def read_markers(store: Store, plan: Plan, num_records: int, at_once: int = MARKERS_AT_ONCE) -> Iterator[Marker]:
    """Yield the markers of the shards of the first `num_records` records that are committed, `at_once` in memory.

    The last shard of a data set that grew may be committed with fewer records; its marker is yielded as it is.

    Raises:
        OSError: the store cannot be read.
    """
    sizes = store.sizes()
    shards = shards_present(plan, num_records, sizes)
    present = ((marker_name(shard), shard) for shard in shards if {shard.name, marker_name(shard)} <= sizes.keys())
    while chunk := dict(islice(present, at_once)):
        for name, payload in store.read_all(list(chunk)).items():
            shard, marker = chunk[name], parse_marker(payload)
            if marker is None or not marker.is_of(plan) or sizes[shard.name] != marker.num_bytes:
                continue
            if marker.shard.number == shard.number and marker.shard.num_records <= shard.num_records:
                yield marker


def find_marker(store: Store, plan: Plan, shard: Shard) -> Marker | None:
    """The marker of `shard` of `plan`; None unless the whole shard is committed.

    Raises:
        StoreFailed: the store cannot be read.
    """
    name = marker_name(shard)
    try:
        marker = parse_marker(store.read_all([name]).get(name, b""))
    except OSError as error:
        raise StoreFailed(f"{shard}: {store.location} cannot be read ({reason(error)})") from error
    return marker if marker is not None and marker.is_of(plan) and marker.shard == shard else None


def uncommitted(shards: Iterable[Shard], names: Set[str]) -> Iterator[Shard]:
    """Those of `shards` that lack their file or their marker among `names`."""
    return (shard for shard in shards if not {shard.name, marker_name(shard)} <= names)


def parse_marker(text: bytes) -> Marker | None:
    """The marker in `text`; None if it is not one."""
    try:
        return Marker.model_validate_json(text)
    except ValidationError:
        return None
