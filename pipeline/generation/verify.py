"""Verify a data set against its plan: hash every byte, and integrate a few batches again."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.plural import counted
from pipeline.common.progress import bar, format_bytes
from pipeline.dataset.commit import MARKERS_AT_ONCE, marker_name, parse_marker, shards_present
from pipeline.dataset.conditions import (
    CHUNK_FILE,
    PROMPTS,
    Chunk,
    ConditionTable,
    as_stored,
    check_table,
    chunk_of,
    chunks,
    read_marker,
)
from pipeline.dataset.manifest import (
    MANIFEST,
    PLAN,
    DataSet,
    Ledger,
    lists_the_same,
    require_dataset,
    write_manifest,
)
from pipeline.dataset.plan import Plan, Shard, Shards
from pipeline.dataset.reader import read_blocks
from pipeline.dataset.shards import (
    MEMBERS,
    SHARD_FILE,
    Block,
    Marker,
    Trajectories,
    check_layout,
    read_block,
    read_layout,
    sha256,
)
from pipeline.flow.numerics import fixed_numerics, has_precision, numerics_of
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.generate import CONFIG
from pipeline.generation.heartbeat import FILE as HEARTBEAT_FILE
from pipeline.generation.shard import draw_batch, failed_batch_name, solve_batch
from pipeline.storage.lease import LEASE
from pipeline.storage.store import READ_ATTEMPTS, Store, is_aside, read_again
from pipeline.teachers.loading import TeacherSource
from pipeline.teachers.teacher import Teacher

# The largest RMS difference of most records from stored ones, on data of about unit scale, that another kind of machine
# may make. Rounding alone makes less; another teacher, seed or solver makes far more. A few records may differ by any
# amount: those that start between two basins.
OTHER_MACHINE_RMS = 0.02
MAX_UNREAD = 100  # shards; then the store as a whole does not answer


@dataclass(frozen=True)
class Fault:
    """A problem with a file, and the shard that it makes bad, if any."""

    name: str
    problem: str
    shard: Shard | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


@dataclass(frozen=True)
class Recheck:
    """The comparison of a stored integration batch with the same batch integrated again."""

    first_index: int
    same_machine: bool  # the kind of machine, by `Numerics`
    rms: float  # of the differences; 0 if bit-identical
    median: float  # of the records' own RMS differences
    repeats: bool = True  # whether the teacher makes the same bits twice

    def __str__(self) -> str:
        kind = "this kind of machine" if self.same_machine else "another kind of machine than this"
        match = f"RMS {self.rms:.1e} apart, the median record {self.median:.1e}" if self.rms else "every bit the same"
        vary = "" if self.repeats else "; no two integrations by this teacher agree in every bit"
        return f"records from {self.first_index} on, made on {kind}, integrated again: {match}{vary}"


@dataclass
class VerifyResult:
    """What `verify` found; the data set is good if there are no `faults`."""

    dataset: DataSet
    ledger: Ledger  # of the shards that are not bad
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad_chunks: list[Chunk] = field(default_factory=list)  # of the condition table; `repair` removes them
    unread: set[int] = field(default_factory=set)  # the numbers of shards that the store did not give
    rechecks: list[Recheck] = field(default_factory=list)
    num_bytes: int = 0  # hashed

    @property
    def bad_shards(self) -> list[Shard]:
        """The shards that `repair` removes."""
        return list({fault.shard.number: fault.shard for fault in self.faults if fault.shard}.values())

    @property
    def num_whole(self) -> int:
        """The number of shards whose bytes are as committed."""
        return int(np.count_nonzero(self.whole_sizes))

    @property
    def whole_sizes(self) -> NDArray[np.int64]:
        """The number of records of each shard whose bytes are as committed, 0 of the others; int64 [shards]."""
        sizes = self.ledger.sizes
        sizes[[number for number in self.unread if number < len(sizes)]] = 0
        return sizes

    @property
    def digest(self) -> str:
        """The digest of the good shards; the data set's own if there are no faults."""
        return self.ledger.sha256

    @property
    def advice(self) -> str:
        """What to do about the faults."""
        if self.bad_shards or self.bad_chunks:
            kind = "shards" if self.bad_shards else "conditions"
            return f"--repair removes the bad {kind}, then generate makes them again"
        if self.unread:
            return "verify again when the store gives what could not be read"
        if self.ledger.num_shards < len(self.dataset.plan.shards(self.dataset.num_records)):
            return "run traflow-pipeline generate again"
        return "the shards themselves are whole"

    @property
    def advice_when_repaired(self) -> str:
        """What to do once the bad shards are removed."""
        is_over = self.unread and not self.bad_shards and not self.bad_chunks
        return self.advice if is_over else "run traflow-pipeline generate again"

    def __str__(self) -> str:
        plan, num_records = self.dataset.plan, self.dataset.num_records
        whole = f"{self.num_whole} of {len(plan.shards(num_records))} shards are whole"
        faults = f"{counted(len(self.faults), 'fault')}; " if self.faults else ""
        return f"{faults}{whole}, {format_bytes(self.num_bytes)} read"

    def blame(self, fault: Fault) -> None:
        """Add `fault`; the shard that it makes bad is no longer among the good ones."""
        self.faults.append(fault)
        if fault.shard is not None:
            self.ledger.remove(fault.shard)


@dataclass(frozen=True)
class _Found:
    """What one shard turned out to be."""

    marker: Marker | None  # None if it is bad
    faults: list[Fault] = field(default_factory=list)
    is_read: bool = True


def verify(store: Store) -> VerifyResult:
    """Hash every shard of the data set in `store`, and check its markers, blocks, manifest and file names.

    A shard is bad for what its bytes say. One that the store does not give is read three times, and is a fault then,
    but not bad.

    Raises:
        BadInput: there is no data set.
        StoreFailed: the store cannot be read.
    """
    dataset = require_dataset(store)
    result = VerifyResult(dataset, Ledger(dataset.plan))
    try:
        sizes = store.sizes()
        for name, problem, chunk in check_table(store, dataset.plan):
            result.faults.append(Fault(name, problem))
            result.bad_chunks += [] if chunk is None else [chunk]
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error
    shards = shards_present(dataset.plan, dataset.num_records, sizes)
    result.faults += _foreign_files(dataset, sizes)
    result.notes += [f"{n}: left aside by a writer that was killed" for n in sizes if is_aside(n)]
    result.notes += [f"{n}: the start of a batch that could not be integrated" for n in sizes if _is_failed_batch(n)]
    with bar("verify", len(shards)) as advance:
        each = _find(store, dataset.plan, shards, sizes)
        del sizes  # as large as all that is kept of the shards
        for shard, found in zip(shards, each, strict=True):
            result.faults += found.faults
            if found.marker is not None:
                result.ledger.add(found.marker)
                result.num_bytes += found.marker.num_bytes * found.is_read
            if not found.is_read:
                result.unread.add(shard.number)
                _check_answers(store, result)
            advance(1)
    result.faults += _not_made(dataset, shards)
    result.faults += _check_manifest(store, result)
    return result


def _find(store: Store, plan: Plan, shards: Shards, sizes: dict[str, int]) -> Iterator[_Found]:
    """What each of `shards` turns out to be; their markers are held in memory a part at a time."""
    num_threads = os.cpu_count() or 1
    check = partial(_check_shard, store, plan, num_threads)
    pool = ThreadPoolExecutor(num_threads)  # hashlib releases the GIL while it hashes
    try:
        for start in range(0, len(shards), MARKERS_AT_ONCE):
            some = shards[start : start + MARKERS_AT_ONCE]
            texts = _read_markers(store, [marker_name(shard) for shard in some if marker_name(shard) in sizes])
            their_sizes = [sizes.get(shard.name) for shard in some]
            their_texts = [texts.get(marker_name(shard)) for shard in some]
            yield from pool.map(check, some, their_sizes, their_texts)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_markers(store: Store, names: Sequence[str]) -> dict[str, bytes]:
    """The markers `names`, each empty where it could not be read with the others."""
    try:
        return dict.fromkeys(names, b"") | store.read_all(names)
    except OSError:
        return dict.fromkeys(names, b"")


def _check_answers(store: Store, result: VerifyResult) -> None:
    """Raises `StoreFailed` if so much could not be read that the store is to blame."""
    if len(result.unread) == MAX_UNREAD:
        raise StoreFailed(f"{store.location}: {MAX_UNREAD} shards cannot be read, the last one as {result.faults[-1]}")


def recheck(store: Store, result: VerifyResult, teacher: Teacher, device: torch.device, num_batches: int) -> None:
    """Integrate `num_batches` evenly spread batches of the whole shards again; add comparisons and faults to `result`.

    On the kind of machine that made a batch, it must be bit-identical. On another kind, or by a teacher whose own bits
    vary, its start must be, and most records must lie within `OTHER_MACHINE_RMS`; no shard is blamed for them. A device
    that lacks the plan's precision integrates in fp32.

    Raises:
        BadInput: `teacher` is not the plan's.
        StoreFailed: a shard cannot be read.
    """
    plan = result.dataset.plan
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(f"{store.location} was made by another teacher than {teacher.name}")
    if not has_precision(plan.precision, device):  # compared as another kind of machine's then
        plan = plan.model_copy(update={"precision": "fp32"})
    for shard, first_index in _spread_batches(result, num_batches):
        stored = _read_batch(store, result.ledger, shard, first_index)
        with fixed_numerics(plan.precision):
            start = draw_batch(plan, first_index)
            remade = solve_batch(plan, start, teacher, device).rows().rows(slice(0, len(stored)))
            here = numerics_of(device, plan.precision, teacher.compiled, teacher.libraries)
            same_machine, repeats = here == result.ledger.numerics_of(shard.number), True
            if same_machine and _differing(stored, remade):
                once_more = solve_batch(plan, start, teacher, device).rows().rows(slice(0, len(stored)))
                repeats = not _differing(remade, once_more)
        comparison, problem, is_bad = _compare(stored, remade, same_machine, repeats)
        result.rechecks.append(comparison)
        if problem:
            records = f"records {first_index} to {first_index + len(stored) - 1}"
            result.blame(Fault(shard.name, f"{records}: {problem}", shard if is_bad else None))


def _spread_batches(result: VerifyResult, num_batches: int) -> list[tuple[Shard, int]]:
    """Evenly spread integration batches of the whole shards: the shard of each, and its first record."""
    plan = result.dataset.plan
    ends = np.cumsum(-(-result.whole_sizes // plan.batch_size))
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.linspace(0, total - 1, min(num_batches, total)).round().astype(int)
    numbers = np.searchsorted(ends, chosen, side="right")
    befores = [int(ends[number - 1]) if number else 0 for number in numbers]
    shards = plan.shards(result.dataset.num_records)
    return [
        (shards[number], shards[number].first_index + (int(batch) - before) * plan.batch_size)
        for number, batch, before in zip(numbers.tolist(), chosen, befores, strict=True)
    ]


def recheck_table(
    store: Store, result: VerifyResult, source: TeacherSource, device: torch.device, num_rows: int = 2
) -> None:
    """Encode `num_rows` evenly spread rows of the condition table again, and compare; add what differs to `result`.

    On the kind of machine that made a row it must be bit-identical; elsewhere the last bits may differ.

    Raises:
        BadInput, WorkFailed: the text encoders are not those of the plan, or a row cannot be read.
    """
    conditions = result.dataset.plan.conditions
    if conditions is None:
        return
    encoder = ChunkEncoder.load(result.dataset.plan, source, store, device)
    table, bad = ConditionTable(store, conditions), {chunk.number for chunk in result.bad_chunks}
    for number in np.linspace(0, conditions.num_rows - 1, num_rows).round().astype(int).tolist():
        chunk = chunk_of(conditions, number)
        marker = None if chunk.number in bad else read_marker(store, conditions, chunk)
        if marker is None:
            continue
        with fixed_numerics():
            same_machine = encoder.numerics == marker.numerics
            remade = as_stored(encoder.encoder.row(encoder.prompts, number))
        differ = [name for name, tensor in table.row(number).items() if not torch.equal(tensor, remade[name])]
        match = f"other {' and '.join(differ)}" if differ else "every bit the same"
        result.notes.append(f"{chunk.name}: row {number}, encoded again: {match}")
        if differ and same_machine:
            result.faults.append(Fault(chunk.name, f"row {number}, encoded again: other {' and '.join(differ)}"))


def repair(store: Store, result: VerifyResult) -> None:
    """Remove the bad shards of `result`, and write the manifest of the good ones; foreign files stay.

    Hold the lease of `store` since before `verify`: otherwise another driver may have remade the shards meanwhile.

    Raises:
        StoreFailed: the store cannot be written.
    """
    try:
        for shard in result.bad_shards:
            store.remove(marker_name(shard))  # first: a shard without a marker is not committed
            store.remove(shard.name)
        for chunk in result.bad_chunks:
            store.remove(chunk.marker_name)
            store.remove(chunk.name)
        store.sweep()
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be repaired ({reason(error)})") from error
    write_manifest(result.ledger.manifest(store, result.dataset))


def _is_failed_batch(name: str) -> bool:
    stem = name.removeprefix("failed-batch-").removesuffix(".safetensors")
    return stem.isdigit() and name == failed_batch_name(int(stem))


def _foreign_files(dataset: DataSet, sizes: Iterable[str]) -> Iterator[Fault]:
    num_shards = len(dataset.plan.shards(dataset.num_records))
    conditions = dataset.plan.conditions
    num_chunks, table = (0, set()) if conditions is None else (len(chunks(conditions)), {PROMPTS})
    for name in sorted(sizes):
        shard, chunk = SHARD_FILE.fullmatch(name), CHUNK_FILE.fullmatch(name)
        is_ours = name in {PLAN, CONFIG, MANIFEST, LEASE} | table
        is_ours |= HEARTBEAT_FILE.fullmatch(name) is not None
        is_ours |= shard is not None and int(shard[1]) < num_shards
        is_ours |= chunk is not None and int(chunk[1]) < num_chunks
        if not is_ours and not is_aside(name) and not _is_failed_batch(name):
            yield Fault(name, "does not belong to this data set; move it away")


def _not_made(dataset: DataSet, present: Sequence[Shard]) -> Iterator[Fault]:
    """One fault for each run of consecutive shards that do not exist: an unfinished data set may miss many."""
    shards = dataset.plan.shards(dataset.num_records)
    for before, after in pairwise([-1, *(shard.number for shard in present), len(shards)]):
        if after - before > 1:
            first, last = shards[before + 1], shards[after - 1]
            names = first.name if first == last else f"{first.name} to {last.name}"
            yield Fault(names, f"missing: records {first.first_index} to {last.end - 1} were not made yet")


def _check_shard(
    store: Store, plan: Plan, at_once: int, shard: Shard, num_bytes: int | None, text: bytes | None
) -> _Found:
    """What `shard` turns out to be; `text` is the marker's file, None if there is none."""
    if num_bytes is None or text is None:
        missing = shard.name if num_bytes is None else marker_name(shard)
        return _bad(shard, missing, f"missing: {shard} was not committed")
    try:
        marker = parse_marker(text) or parse_marker(_read_marker(store, shard))
        if marker is None:
            return _bad(shard, marker_name(shard), "not a marker this version reads")
        if not marker.is_of(plan):
            return _bad(shard, marker_name(shard), "not the marker of a shard of this plan")
        if marker.shard != shard:
            return _bad(shard, marker_name(shard), f"wanted {shard}, it speaks of {marker.shard}")
    except OSError as error:
        return _unread(marker_name(shard), error)
    if marker.num_bytes != num_bytes:
        return _bad(shard, shard.name, f"{num_bytes} bytes, the marker says {marker.num_bytes}")
    try:
        payload = memoryview(_read_shard(store, marker, at_once))
    except OSError as error:
        return _unread(shard.name, error, marker)
    if sha256(payload) != marker.sha256:
        return _bad(shard, shard.name, "its bytes are not those that were committed (sha256 differs)")
    problems = list(_check_blocks(plan, marker, payload))
    return _bad(shard, shard.name, *problems) if problems else _Found(marker)


def _bad(shard: Shard, name: str, *problems: str) -> _Found:
    return _Found(None, [Fault(name, problem, shard) for problem in problems])


def _unread(name: str, error: OSError, marker: Marker | None = None) -> _Found:
    problem = f"cannot be read ({reason(error)}), tried {READ_ATTEMPTS} times: nothing is known of it, and it stays"
    return _Found(marker, [Fault(name, problem)], is_read=False)


def _read_marker(store: Store, shard: Shard) -> bytes:
    """The file of a marker that did not come whole with the others."""
    return read_again(store, lambda: store.read(marker_name(shard)), lambda text: parse_marker(text) is not None)


def _read_shard(store: Store, marker: Marker, at_once: int) -> bytes:
    """The bytes of a shard. Not memory-mapped: a bad sector, or a file that is truncated meanwhile, must raise an
    error, not SIGBUS."""
    read = partial(store.read, marker.shard.name, at_once)
    return read_again(store, read, lambda payload: sha256(payload) == marker.sha256)


def _check_blocks(plan: Plan, marker: Marker, payload: memoryview) -> Iterator[str]:
    """The problems of the blocks of a shard, as its marker lists them, under `plan`."""
    first_index, offset = marker.shard.first_index, 0
    for block in marker.blocks:
        if (block.first_index, block.offset) != (first_index, offset):
            yield f"the marker's block at record {block.first_index} does not follow the one before"
            return
        first_index, offset = first_index + block.num_records, offset + block.num_bytes
        try:
            part = payload[block.offset : offset]
            if crc32(part) != block.crc32:
                yield f"records from {block.first_index}: the marker has another checksum"
                return
            layout = read_layout(part)
            check_layout(layout, plan, block.num_records)
            yield from _check_records(plan, block, read_block(part, layout))
        except ValueError as error:
            yield f"records from {block.first_index}: not a block ({error})"
    if first_index != marker.shard.end:
        yield f"its blocks end before record {first_index}, wanted {marker.shard.end}"


def _check_records(plan: Plan, block: Block, rows: Trajectories) -> Iterator[str]:
    batch = block.first_index - block.first_index % plan.batch_size
    expected = {
        "index": rows.index.tolist() == list(range(block.first_index, block.first_index + block.num_records)),
        "times": bool((rows.times == plan.times(batch).numpy()).all()),
        "label": plan.has_labels(rows.label),
    }
    for name, holds in expected.items():
        if not holds:
            yield f"records {block.first_index} to {rows.index[-1]}: {name} not as planned"


def _check_manifest(store: Store, result: VerifyResult) -> Iterator[Fault]:
    try:
        if not lists_the_same(store.read(MANIFEST), result.ledger.manifest(store, result.dataset)):
            yield Fault(MANIFEST, "does not list what is committed; run generate again")
    except FileNotFoundError:
        yield Fault(MANIFEST, "missing; run generate again")
    except BadInput:
        yield Fault(MANIFEST, "not a manifest this version reads; run generate again")
    except OSError as error:
        yield Fault(MANIFEST, f"cannot be read ({reason(error)})")


def _read_batch(store: Store, ledger: Ledger, shard: Shard, first_index: int) -> Trajectories:
    blocks = ledger.blocks(first_index, min(ledger.plan.batch_size, shard.end - first_index))
    return read_blocks(store, shard, blocks)


def _differing(a: Trajectories, b: Trajectories) -> list[str]:
    return [name for name in MEMBERS if not np.array_equal(getattr(a, name), getattr(b, name))]


def _compare(
    stored: Trajectories, remade: Trajectories, same_machine: bool, repeats: bool
) -> tuple[Recheck, str | None, bool]:
    """The comparison, what is wrong if anything is, and whether that is the shard's fault."""
    differ = _differing(stored, remade)
    squares = [_squares(getattr(stored, n), getattr(remade, n)) for n in differ]
    rms = max((float(s.mean()) ** 0.5 for s in squares), default=0.0)
    median = max((float(np.median(s)) ** 0.5 for s in squares), default=0.0)
    comparison = Recheck(int(stored.index[0]), same_machine, rms, median, repeats)
    start = [name for name in differ if name in ("noise", "times", "label", "index")]
    if start:
        return comparison, f"integrated again: another {' and '.join(start)}", True
    if differ and same_machine and repeats:
        return comparison, f"integrated again: other {' and '.join(differ)}, RMS {rms:.1e}", True
    if median > OTHER_MACHINE_RMS:
        where = "on another kind of machine" if repeats else "by a teacher that answers the same question differently"
        advice = "" if same_machine else "; verify on the kind of machine that made it"
        return comparison, f"integrated again {where}: RMS {rms:.1e} apart{advice}", False
    return comparison, None, False


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean square difference of each record."""
    squares: np.ndarray = np.square(a.astype(np.float64) - b.astype(np.float64)).reshape(len(a), -1).mean(axis=1)
    return squares
