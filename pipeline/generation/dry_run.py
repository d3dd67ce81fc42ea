"""Estimate the cost of a generation from one batch that is integrated in this process."""

import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.common.device import pick_device
from pipeline.common.plural import counted
from pipeline.common.progress import format_bytes, format_seconds
from pipeline.common.ray_cluster import count_workers
from pipeline.dataset.conditions import as_stored
from pipeline.dataset.manifest import read_dataset
from pipeline.dataset.plan import Plan
from pipeline.dataset.shards import Block, write_shard
from pipeline.flow.numerics import check_precision, fixed_numerics, in_precision
from pipeline.generation.generate import GenerateConfig, device_of, missing_shards, new_plan, read_ledger
from pipeline.generation.shard import draw_batch, solve_batch
from pipeline.networks.conditions import Conditions
from pipeline.storage.store import open_store
from pipeline.teachers.batch_sizes import BatchSizes, measure_batch_sizes
from pipeline.teachers.compilation import compile_teacher
from pipeline.teachers.loading import resolve
from pipeline.teachers.teacher import errors_named_after


@dataclass(frozen=True)
class DryRun:
    """The cost of those records of a plan that are not committed yet."""

    plan: Plan
    num_records: int
    num_committed: int
    nfe: int  # evaluations per sample of the probe batch
    batch_seconds: float
    num_workers: int
    num_bytes: int  # of the missing records
    free_bytes: int | None  # None if unknown
    batch_sizes: BatchSizes | None = None  # None on a CPU
    table_bytes: int = 0  # of the condition table

    @property
    def samples_per_second(self) -> float:
        """Throughput of one worker."""
        return self.plan.batch_size / self.batch_seconds

    @property
    def seconds(self) -> float:
        """Wall time on all workers, if they scale perfectly."""
        return (self.num_records - self.num_committed) / self.samples_per_second / self.num_workers

    def lines(self) -> Iterator[str]:
        """The lines that `generate --dry-run` prints."""
        committed = f", {self.num_committed} of them committed" if self.num_committed else ""
        yield f"{counted(self.num_records, 'trajectory')}{committed}; nothing was written"
        evaluations = counted(self.nfe, "evaluation")
        yield f"{self.plan.solver}: {evaluations} per sample, tried on one batch of {self.plan.batch_size}"
        yield f"{self.samples_per_second:.1f} samples/s on a worker like this process"
        yield str(self.batch_sizes or "batch sizes: measured on a GPU only")
        hours = f"{self.seconds / 3600:.3g} hours"
        if self.seconds < 3600:
            hours += f" ({format_seconds(self.seconds)})"
        yield f"{hours} on {counted(self.num_workers, 'worker')}, if none slows another down"
        room = f"; {format_bytes(self.free_bytes)} are free there" if self.free_bytes is not None else ""
        yield f"{format_bytes(self.num_bytes)} to be stored{room}"
        if self.plan.conditions is not None:
            prompts = counted(self.plan.num_classes, "prompt")
            yield f"{format_bytes(self.table_bytes)} besides of conditions, for {prompts}"


def dry_run(config: GenerateConfig) -> DryRun:
    """Integrate one batch in this process; nothing is written.

    Raises:
        BadInput: see `generate`.
        WorkFailed: the batch could not be integrated, or the store cannot be read.
    """
    device = device_of(config) or pick_device("auto")
    check_precision(config.precision, device)
    source, store = resolve(config.teacher), open_store(config.out)
    plan = new_plan(config, source, quiet=True)
    conditions = source.encoded(source.prompts(config.prompts, config.negative_prompt), device)
    teacher = source.load(device, config.guidance_scale, False, config.size, conditions, config.precision)
    ledger = read_ledger(config, store, plan, read_dataset(store))
    sizes = [shard.num_records for shard in missing_shards(plan, config.n, ledger)]
    num_committed = config.n - sum(sizes)
    # Compiling takes half a minute for every batch size, so the sizes are tried before it.
    batch_sizes = measure_batch_sizes(teacher, plan.precision, 2 * plan.num_times, device)
    if batch_sizes is not None:
        batch_sizes.check(plan.batch_size)
    teacher = compile_teacher(teacher, device, config.compile)
    with fixed_numerics(plan.precision):
        batch, velocity = draw_batch(plan, 0), in_precision(teacher.velocity, plan.precision)
        label = batch.label.to(device) if plan.num_classes else None
        with torch.no_grad(), errors_named_after(teacher):  # warm-up
            velocity(batch.noise.to(device), batch.times[:1].to(device).expand(len(batch.noise)), label)
        started = time.perf_counter()
        solved = solve_batch(plan, batch, teacher, device)
        rows = solved.rows()
        seconds = time.perf_counter() - started
    starts = range(0, plan.batch_size, plan.block_size)
    _, blocks = write_shard(plan, [rows.rows(slice(i, i + plan.block_size)) for i in starts])
    return DryRun(
        plan=plan,
        num_records=config.n,
        num_committed=num_committed,
        nfe=solved.nfe,
        batch_seconds=seconds,
        num_workers=_count_workers(config),
        num_bytes=sum(_shard_bytes(size, blocks, plan.batch_size) for size in sizes),
        free_bytes=store.free_bytes(),
        batch_sizes=batch_sizes,
        table_bytes=_table_bytes(plan, conditions),
    )


def _shard_bytes(num_records: int, blocks: Sequence[Block], num_tried: int) -> int:
    """The size of a shard of `num_records` records, of which `num_tried` take the space of `blocks`."""
    content = num_records * sum(block.num_bytes for block in blocks) // num_tried
    end = content + 2 * tarfile.BLOCKSIZE  # two empty blocks end a tar file, which is filled up to a record
    return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _table_bytes(plan: Plan, conditions: Conditions | None) -> int:
    """About the size of the condition table, by its first row."""
    if plan.conditions is None or conditions is None:
        return 0
    return plan.conditions.num_rows * sum(tensor.nbytes for tensor in as_stored(conditions.row(0)).values())


def _count_workers(config: GenerateConfig) -> int:
    if config.executor == "inline":
        return 1
    return count_workers(config.workers, config.gpus_per_worker, config.address)
