"""Summarise a data set in figures and a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pipeline.common.errors import BadInput, StoreFailed, reason
from pipeline.common.image_grid import Images, has_pictures, is_drawable, to_bytes, to_pictures
from pipeline.common.plural import counted
from pipeline.common.progress import format_bytes, format_seconds
from pipeline.dataset.manifest import DataSet, Ledger, Manifest, confirmed_markers, require_dataset
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Trajectories
from pipeline.flow.numerics import Numerics
from pipeline.flow.path import straightness
from pipeline.storage.store import Store

MAX_BINS = 12
SAMPLED_BLOCKS = 16  # evenly spread


@dataclass(frozen=True)
class Summary:
    """The figures of a data set, complete or not."""

    manifest: Manifest  # of what is committed
    num_shards: int  # committed
    wall_seconds: float  # of all workers together
    numerics: tuple[Numerics, ...]  # of the machines that made them
    records: Trajectories  # of the sampled blocks

    @property
    def nfe(self) -> list[tuple[str, int]]:
        """Histogram of solver evaluations per sample: (title of the bin, records)."""
        values, of_block = np.unique(self.manifest.blocks["nfe"].to_numpy(), return_inverse=True)
        records_of = np.bincount(of_block, self.manifest.counts).astype(int)
        counts = dict(zip(values.tolist(), records_of.tolist(), strict=True))
        low, high = min(counts), max(counts)
        width = -(-(high - low + 1) // MAX_BINS)
        bins = [range(start, min(start + width, high + 1)) for start in range(low, high + 1, width)]
        titles = [f"{b[0]}" if len(b) == 1 else f"{b[0]}-{b[-1]}" for b in bins]
        totals = [sum(records for nfe, records in counts.items() if nfe in b) for b in bins]
        return list(zip(titles, totals, strict=True))

    @property
    def straightness(self) -> float | None:
        """See `flow.straightness`; None without velocities."""
        rows = self.records
        if rows.velocities is None:
            return None
        states, velocities, times = (torch.from_numpy(x) for x in (_states(self, rows), rows.velocities, rows.times))
        return straightness(states, velocities, times)

    @property
    def detour(self) -> float:
        """Mean ratio of the length of the path through the stored states to the distance of its ends; 1 if straight."""
        states = _states(self, self.records)
        steps = np.linalg.norm(np.diff(states, axis=1).reshape(*states.shape[:1], states.shape[1] - 1, -1), axis=-1)
        ends = np.linalg.norm((states[:, -1] - states[:, 0]).reshape(len(states), -1), axis=-1)
        return float((steps.sum(axis=1) / ends).mean())

    def table(self) -> Table:
        """The table that `inspect` prints."""
        manifest, plan = self.manifest, self.manifest.plan
        rows = {name: str(value) for name, value in plan.model_dump(exclude={"format"}).items()}
        rows["solver"] = str(plan.solver)
        rows["records"] = f"{manifest.num_records} of {manifest.dataset.num_records}"
        rows["shards"] = f"{self.num_shards} of {len(plan.shards(manifest.dataset.num_records))}"
        rows["size"] = format_bytes(manifest.num_bytes)
        rows["digest"] = manifest.sha256
        rows["work"] = f"{format_seconds(self.wall_seconds)} of one worker"
        rows["made on"] = "\n".join(str(numerics) for numerics in self.numerics)
        if self.straightness is not None:
            rows["straightness"] = (
                f"{self.straightness:.4f} (mean |mean velocity - velocity|^2; 0: straight, at even speed)"
            )
        rows["detour"] = f"{self.detour:.4f} (path over the distance of its ends; 1: straight)"
        largest = max(records for _, records in self.nfe)
        bars = [f"{title:>9} {'█' * round(30 * records / largest)} {records}" for title, records in self.nfe]
        rows["evaluations"] = "\n".join(bars)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows.items():
            table.add_row(name, Text(text))
        return table

    def pictures(self, num_rows: int, decode: Callable[[Tensor], Tensor] | None = None) -> dict[str, Images] | None:
        """A row of images per trajectory, from noise to sample, `decode`d if they are latents; of points, all at once.

        None if the records have no pictures.
        """
        plan = self.manifest.plan
        if decode is None and (plan.latents or not has_pictures(plan.shape)):
            return None
        if decode is None and not is_drawable(plan.shape):
            states = _states(self, self.records).astype(np.float32)
            rows = [to_pictures(states[:, i], plan.data_range) for i in range(states.shape[1])]
            return {counted(len(states), "record"): np.concatenate(rows)}
        indices = np.linspace(0, len(self.records) - 1, min(num_rows, len(self.records))).round().astype(int)
        states = _states(self, self.records)
        shown = decode or (lambda x: x)
        return {
            self._title(i): to_bytes(shown(torch.from_numpy(states[i]).float()).numpy(), plan.data_range)
            for i in indices
        }

    def _title(self, i: int) -> str:
        plan, records = self.manifest.plan, self.records
        has_classes = plan.num_classes and plan.conditions is None  # else labels stand for prompts
        return f"record {records.index[i]}" + (f", class {records.label[i]}" if has_classes else "")


def summarise(store: Store) -> Summary:
    """The summary of the data set in `store`.

    Raises:
        BadInput: there is none, or no shard is committed yet.
        WorkFailed: the store cannot be read.
    """
    dataset, ledger = read_ledger(store)
    if not ledger.num_shards:
        raise BadInput(f"{store.location}: no shard of it is committed yet; run traflow-pipeline generate again")
    manifest = ledger.manifest(store, dataset)
    reader, num_blocks = BlockReader(manifest), manifest.blocks.num_rows
    sampled = np.linspace(0, num_blocks - 1, min(SAMPLED_BLOCKS, num_blocks)).round().astype(int).tolist()
    reader.prefetch(sampled)
    return Summary(
        manifest=manifest,
        num_shards=ledger.num_shards,
        wall_seconds=ledger.wall_seconds,
        numerics=tuple(sorted(ledger.numerics, key=str)),
        records=Trajectories.concatenate([reader.read(block) for block in sampled]),
    )


def read_ledger(store: Store) -> tuple[DataSet, Ledger]:
    """The data set in `store`, and what is committed of it.

    Raises:
        BadInput: there is none.
        WorkFailed: the store cannot be read.
    """
    dataset = require_dataset(store)
    ledger = Ledger(dataset.plan)
    try:
        for marker in confirmed_markers(store, dataset.plan, dataset.num_records):
            ledger.add(marker)
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read ({reason(error)})") from error
    return dataset, ledger


def _states(summary: Summary, rows: Trajectories) -> np.ndarray:
    start = summary.manifest.plan.t_start * rows.noise[:, None].astype(np.float64)
    return np.concatenate([start, rows.states, rows.sample[:, None]], axis=1)
