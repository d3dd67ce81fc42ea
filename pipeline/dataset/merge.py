"""Join data sets of one plan that were made in different places: each shard is committed again in one place."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, reason
from pipeline.common.progress import bar
from pipeline.dataset.commit import commit
from pipeline.dataset.conditions import PROMPTS, Chunk, commit_chunk, missing_chunks, read_marker
from pipeline.dataset.manifest import (
    DataSet,
    Ledger,
    Manifest,
    confirmed_markers,
    read_dataset,
    require_dataset,
    write_dataset,
    write_manifest,
)
from pipeline.dataset.plan import ConditionSet, Shard
from pipeline.dataset.shards import Marker, sha256
from pipeline.storage.output import Output, hold_output
from pipeline.storage.store import Store, absolute, open_store

SHARDS_AT_ONCE = 4  # in memory


def merge(sources: Sequence[str], out: str) -> Manifest:
    """Commit to `out` every shard of the data sets `sources` that it lacks, and write its manifest.

    `out` may be new, hold a merge that was interrupted, or be one of `sources`.

    Raises:
        BadInput: a source is no data set or of another plan, or two of them hold different bytes of a shard.
        WorkFailed: a shard is not what its marker says, or a store fails; the others are committed.
    """
    stores = [open_store(source) for source in sources]
    sets = [require_dataset(store) for store in stores]
    for store, other in zip(stores, sets, strict=True):
        sets[0].plan.check_same(other.plan, store.location)
    with hold_output(Output.DATA, out) as (lease,):
        target = lease.store
        existing = read_dataset(target)
        if existing is not None:
            sets[0].plan.check_same(existing.plan, out)
        num_records = max(found.num_records for found in (*sets, *([existing] if existing else [])))
        dataset = sets[0].model_copy(update={"num_records": num_records})
        held = [] if existing is None else [target]
        owners = _owners(dataset, [*held, *(s for s in stores if absolute(s.location) != absolute(out))])
        if dataset != existing:
            _write(target, dataset)
        _copy_table(dataset, stores, target)
        manifest = _copy(dataset, owners, target)
        lease.confirm()
        write_manifest(manifest)
    return manifest


def _copy_table(dataset: DataSet, sources: Sequence[Store], target: Store) -> None:
    """Commit to `target` what it lacks of the condition table, each chunk from the first of `sources` that holds it.

    Machines that differ in kind may have encoded the same prompts with other last bits; one table is kept.

    Raises:
        WorkFailed: a chunk is not what its marker says, or a store fails.
    """
    if dataset.plan.conditions is None:
        return
    try:
        lacking = missing_chunks(target, dataset.plan.conditions)
        for source in sources if lacking else ():
            absent = missing_chunks(source, dataset.plan.conditions)
            for chunk in [chunk for chunk in lacking if chunk not in absent]:
                _copy_chunk(dataset.plan.conditions, chunk, source, target)
            lacking = [chunk for chunk in lacking if chunk in absent]
            target.write(PROMPTS, source.read(PROMPTS))
    except OSError as error:
        raise StoreFailed(f"{target.location}: the conditions cannot be copied ({reason(error)})") from error


def _copy_chunk(conditions: ConditionSet, chunk: Chunk, source: Store, target: Store) -> None:
    marker, payload = read_marker(source, conditions, chunk), source.read(chunk.name)
    if marker is None or sha256(payload) != marker.sha256:
        raise WorkFailed(f"{chunk}: {source.location} does not hold what its marker says: verify --repair it first")
    commit_chunk(target, payload, marker)


def _write(target: Store, dataset: DataSet) -> None:
    try:
        write_dataset(target, dataset)
    except OSError as error:
        raise BadInput(f"{target.location}: cannot be written ({reason(error)})") from error


def _owners(dataset: DataSet, stores: Sequence[Store]) -> dict[int, tuple[Marker, Store]]:
    """The first of `stores` that holds each shard, or the most records of it.

    Raises:
        BadInput: two of them hold different bytes.
    """
    owners: dict[int, tuple[Marker, Store]] = {}
    for store in stores:
        for marker in _markers(dataset, store):
            known, owner = owners.get(marker.shard.number, (None, store))
            if known is None or known.shard.num_records < marker.shard.num_records:
                owners[marker.shard.number] = marker, store
            elif known.shard == marker.shard and not known.agrees(marker):
                raise BadInput(
                    f"{marker.shard}: its bytes in {store.location} are not those in {owner.location} "
                    f"(made on {marker.numerics} and on {known.numerics}): remove one of them"
                )
    return owners


def _markers(dataset: DataSet, store: Store) -> Iterator[Marker]:
    try:
        yield from confirmed_markers(store, dataset.plan, dataset.num_records)
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error


def _copy(dataset: DataSet, owners: dict[int, tuple[Marker, Store]], target: Store) -> Manifest:
    """Commit the shards of `owners` to `target`, a few at a time."""
    ledger = Ledger(dataset.plan, dataset.num_records)
    left = iter(sorted(owners.items()))
    with bar("merge (shards)", len(owners)) as advance, ThreadPoolExecutor(SHARDS_AT_ONCE, "merge") as pool:
        while chunk := [owner for _, owner in islice(left, SHARDS_AT_ONCE)]:
            for marker in pool.map(partial(_commit, target), chunk):
                ledger.add(marker)
                advance(1)
    return ledger.manifest(target, dataset)


def _commit(target: Store, owner: tuple[Marker, Store]) -> Marker:
    marker, store = owner
    if store is target:
        return marker
    return commit(target, _payload(marker, store), marker)


def _payload(marker: Marker, store: Store) -> bytes:
    shard: Shard = marker.shard
    try:
        payload = store.read(shard.name)
    except OSError as error:
        raise StoreFailed(f"{shard}: {store.location} cannot be read ({reason(error)})") from error
    if not marker.describes(payload):
        raise WorkFailed(f"{shard}: {store.location} does not hold what its marker says: verify --repair it first")
    return payload
