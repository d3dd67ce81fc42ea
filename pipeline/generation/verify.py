"""Verify a data set against its plan: hash every byte, and integrate a few batches again."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

import numpy as np
import torch

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.progress import bar, format_bytes
from pipeline.dataset.commit import marker_name, parse_marker, shards_present
from pipeline.dataset.conditions import (
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
    derive,
    digest,
    parse_manifest,
    read_dataset,
    write_manifest,
)
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import MEMBERS, Block, Marker, Trajectories, check_layout, read_block, read_layout, sha256
from pipeline.flow.numerics import fixed_numerics, has_precision, numerics_of
from pipeline.generation.chunk import ChunkEncoder
from pipeline.generation.generate import CONFIG
from pipeline.generation.shard import draw_batch, failed_batch_name, solve_batch
from pipeline.storage.lease import LEASE
from pipeline.storage.store import Store, is_aside
from pipeline.teachers.loading import TeacherSource
from pipeline.teachers.teacher import Teacher

# The largest RMS difference from a stored batch, on data of about unit scale, that another kind of machine may make.
# Rounding alone makes less; another teacher, seed or solver makes far more.
OTHER_MACHINE_RMS = 0.02


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
    repeats: bool = True  # whether the teacher makes the same bits twice

    def __str__(self) -> str:
        kind = "this kind of machine" if self.same_machine else "another kind of machine than this"
        match = f"RMS {self.rms:.1e} apart" if self.rms else "every bit the same"
        vary = "" if self.repeats else "; no two integrations by this teacher agree in every bit"
        return f"records from {self.first_index} on, made on {kind}, integrated again: {match}{vary}"


@dataclass
class VerifyResult:
    """What `verify` found; the data set is good if there are no `faults`."""

    dataset: DataSet
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    markers: dict[int, Marker] = field(default_factory=dict)  # of the shards whose bytes are as committed
    bad_chunks: list[Chunk] = field(default_factory=list)  # of the condition table; `repair` removes them
    rechecks: list[Recheck] = field(default_factory=list)
    num_bytes: int = 0  # hashed

    @property
    def bad_shards(self) -> list[Shard]:
        """The shards that `repair` removes."""
        return list({fault.shard.number: fault.shard for fault in self.faults if fault.shard}.values())

    @property
    def good_markers(self) -> list[Marker]:
        """The markers of the shards that `repair` keeps."""
        bad = {shard.number for shard in self.bad_shards}
        return [marker for number, marker in self.markers.items() if number not in bad]

    @property
    def digest(self) -> str:
        """The digest of the good shards; the data set's own if there are no faults."""
        return digest(self.good_markers)

    @property
    def advice(self) -> str:
        """What to do about the faults."""
        if self.bad_shards or self.bad_chunks:
            kind = "shards" if self.bad_shards else "conditions"
            return f"--repair removes the bad {kind}, then generate makes them again"
        if len(self.markers) < len(self.dataset.plan.shards(self.dataset.num_records)):
            return "run traflow-pipeline generate again"
        return "the shards themselves are whole"

    def __str__(self) -> str:
        plan, num_records = self.dataset.plan, self.dataset.num_records
        whole = f"{len(self.good_markers)} of {len(plan.shards(num_records))} shards are whole"
        faults = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}; " if self.faults else ""
        return f"{faults}{whole}, {format_bytes(self.num_bytes)} read"


def verify(store: Store) -> VerifyResult:
    """Hash every shard of the data set in `store`, and check its markers, blocks, manifest and file names.

    Raises:
        BadInput: there is no data set.
        StoreFailed: the store cannot be read.
    """
    dataset = read_dataset(store)
    if dataset is None:
        raise BadInput(f"{store.location}: wanted a data set; there is no {PLAN}")
    result = VerifyResult(dataset)
    try:
        sizes = store.sizes()
        shards = shards_present(dataset.plan, dataset.num_records, sizes)
        markers = store.read_all([marker_name(shard) for shard in shards if marker_name(shard) in sizes])
        for name, problem, chunk in check_table(store, dataset.plan):
            result.faults.append(Fault(name, problem))
            result.bad_chunks += [] if chunk is None else [chunk]
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error
    result.faults += _foreign_files(dataset, shards, sizes)
    result.notes += [f"{n}: left aside by a writer that was killed" for n in sizes if is_aside(n)]
    result.notes += [f"{n}: the start of a batch that could not be integrated" for n in sizes if _is_failed_batch(n)]

    def check(shard: Shard) -> Marker | list[Fault]:
        return _check_shard(store, dataset.plan, shard, sizes.get(shard.name), markers.get(marker_name(shard)))

    # hashlib releases the GIL while it hashes.
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar("verify", len(shards)) as advance:
        for shard, checked in zip(shards, pool.map(check, shards), strict=True):
            if isinstance(checked, Marker):
                result.markers[shard.number] = checked
                result.num_bytes += checked.num_bytes
            else:
                result.faults += checked
            advance(1)
    result.faults += _not_made(dataset, shards)
    result.faults += _check_manifest(store, result)
    return result


def recheck(store: Store, result: VerifyResult, teacher: Teacher, device: torch.device, num_batches: int) -> None:
    """Integrate `num_batches` evenly spread batches of the good shards again; add comparisons and faults to `result`.

    On the kind of machine that made a batch, it must be bit-identical. On another kind, or by a teacher whose own bits
    vary, its start must be, and the rest must lie within `OTHER_MACHINE_RMS`; no shard is blamed for such a teacher. A
    device that lacks the plan's precision integrates in fp32.

    Raises:
        BadInput: `teacher` is not the plan's.
        StoreFailed: a shard cannot be read.
    """
    plan = result.dataset.plan
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(f"{store.location} was made by another teacher than {teacher.name}")
    if not has_precision(plan.precision, device):  # compared as another kind of machine's then
        plan = plan.model_copy(update={"precision": "fp32"})
    starts = [
        (number, start)
        for number, marker in sorted(result.markers.items())
        for start in range(marker.shard.first_index, marker.shard.end, plan.batch_size)
    ]
    chosen = np.linspace(0, len(starts) - 1, min(num_batches, len(starts))).round().astype(int)
    for number, first_index in [starts[i] for i in chosen]:
        marker = result.markers[number]
        stored = _read_batch(store, plan, marker, first_index)
        with fixed_numerics(plan.precision):
            start = draw_batch(plan, first_index)
            remade = solve_batch(plan, start, teacher, device).rows().rows(slice(0, len(stored)))
            same_machine = numerics_of(device, plan.precision, teacher.compiled, teacher.libraries) == marker.numerics
            repeats = True
            if same_machine and _differing(stored, remade):
                once_more = solve_batch(plan, start, teacher, device).rows().rows(slice(0, len(stored)))
                repeats = not _differing(remade, once_more)
        comparison, problem = _compare(stored, remade, same_machine, repeats)
        result.rechecks.append(comparison)
        if problem:
            records = f"records {first_index} to {first_index + len(stored) - 1}"
            result.faults.append(Fault(marker.shard.name, f"{records}: {problem}", marker.shard if repeats else None))


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
    write_manifest(derive(store, result.dataset, result.good_markers))


def _is_failed_batch(name: str) -> bool:
    stem = name.removeprefix("failed-batch-").removesuffix(".safetensors")
    return stem.isdigit() and name == failed_batch_name(int(stem))


def _foreign_files(dataset: DataSet, shards: Sequence[Shard], sizes: dict[str, int]) -> Iterator[Fault]:
    ours = {PLAN, CONFIG, MANIFEST, LEASE, *(name for s in shards for name in (s.name, marker_name(s)))}
    if dataset.plan.conditions is not None:
        table = chunks(dataset.plan.conditions)
        ours |= {PROMPTS, *(name for chunk in table for name in (chunk.name, chunk.marker_name))}
    for name in sorted(sizes.keys() - ours):
        if not is_aside(name) and not _is_failed_batch(name):
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
    store: Store, plan: Plan, shard: Shard, num_bytes: int | None, text: bytes | None
) -> Marker | list[Fault]:
    """The marker of `shard` if it is good, else its faults; `text` is the marker's file."""
    if num_bytes is None or text is None:
        missing = shard.name if num_bytes is None else marker_name(shard)
        return [Fault(missing, f"missing: {shard} was not committed", shard)]
    marker = parse_marker(text)
    if marker is None:
        return [Fault(marker_name(shard), "not a marker this version reads", shard)]
    if not marker.is_of(plan):
        return [Fault(marker_name(shard), "not the marker of a shard of this plan", shard)]
    if marker.shard != shard:
        return [Fault(marker_name(shard), f"wanted {shard}, it speaks of {marker.shard}", shard)]
    if marker.num_bytes != num_bytes:
        return [Fault(shard.name, f"{num_bytes} bytes, the marker says {marker.num_bytes}", shard)]
    try:
        # Not memory-mapped: a bad sector, or a file that is truncated meanwhile, must raise an error, not SIGBUS.
        payload = memoryview(store.read(shard.name))
    except OSError as error:
        return [Fault(shard.name, f"cannot be read ({reason(error)})", shard)]
    if sha256(payload) != marker.sha256:
        return [Fault(shard.name, "its bytes are not those that were committed (sha256 differs)", shard)]
    problems = list(_check_blocks(plan, marker, payload))
    return [Fault(shard.name, problem, shard) for problem in problems] or marker


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
        manifest = parse_manifest(store, store.read(MANIFEST))
    except FileNotFoundError:
        yield Fault(MANIFEST, "missing; run generate again")
        return
    except (BadInput, OSError):
        yield Fault(MANIFEST, "not a manifest this version reads; run generate again")
        return
    names = {marker.shard.name for marker in result.markers.values()}
    listed = [row for row in manifest.blocks.to_pylist() if row["shard"] in names]
    derived = derive(store, result.dataset, result.markers.values())
    if manifest.dataset != result.dataset or listed != derived.blocks.to_pylist():
        yield Fault(MANIFEST, "does not list what is committed; run generate again")


def _read_batch(store: Store, plan: Plan, marker: Marker, first_index: int) -> Trajectories:
    blocks = [b for b in marker.blocks if first_index <= b.first_index < first_index + plan.batch_size]
    try:
        parts = [store.read_range(marker.shard.name, b.offset, b.offset + b.num_bytes) for b in blocks]
    except OSError as error:
        raise StoreFailed(f"{store.location}/{marker.shard.name}: cannot be read ({reason(error)})") from error
    return Trajectories.concatenate([read_block(part) for part in parts])


def _differing(a: Trajectories, b: Trajectories) -> list[str]:
    return [name for name in MEMBERS if not np.array_equal(getattr(a, name), getattr(b, name))]


def _compare(
    stored: Trajectories, remade: Trajectories, same_machine: bool, repeats: bool
) -> tuple[Recheck, str | None]:
    differ = _differing(stored, remade)
    squares = [_mean_square(getattr(stored, n), getattr(remade, n)) for n in differ]
    comparison = Recheck(int(stored.index[0]), same_machine, max(squares, default=0.0) ** 0.5, repeats)
    start = [name for name in differ if name in ("noise", "times", "label", "index")]
    if start:
        return comparison, f"integrated again: another {' and '.join(start)}"
    if differ and same_machine and repeats:
        return comparison, f"integrated again: other {' and '.join(differ)}, RMS {comparison.rms:.1e}"
    if comparison.rms > OTHER_MACHINE_RMS:
        where = "on another kind of machine" if repeats else "by a teacher that answers the same question differently"
        return comparison, f"integrated again {where}: RMS {comparison.rms:.1e} apart"
    return comparison, None


def _mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
