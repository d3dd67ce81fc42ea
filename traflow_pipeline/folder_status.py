"""What is known of any folder or store of ours: how far its work is, how fast it goes, whether somebody is at it."""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.results import METRICS, read_report
from pipeline.common.config import parse_sections
from pipeline.common.errors import BadInput, reason
from pipeline.common.progress import format_clock
from pipeline.dataset.manifest import MANIFEST, PLAN, DataSet, read_dataset
from pipeline.storage.lease import SINCE, Holder, is_alive, read_holder
from pipeline.storage.store import Store, is_url, open_store
from traflow_pipeline.run import CONFIG as RUN
from traflow_pipeline.run import read_run, stage_status

LOG, CONFIG = "log.jsonl", "config.yaml"
WATCH_SECONDS = 5.0  # between two looks
RECENT_LINES = 20  # of a log, whose mean speed counts
FRESH_SECONDS = 120.0  # a log that was written to so recently belongs to a training at work


def status_lines(location: str) -> list[str]:
    """The status of the run, or of the data set, training or report, at `location`.

    Raises:
        BadInput: it is none of these, or cannot be read.
    """
    location = location.rstrip("/")
    sizes = open_store(location).sizes()
    if sizes and RUN not in sizes:
        return [folder_status(location)]
    plan, lines = read_run(location), list[str]()
    for stage in plan.stages:
        known = stage_status(plan, stage)
        lines.append(str(known))
        if not known.complete and open_store(known.location).sizes():
            lines.append(f"          {folder_status(known.location)}")
    return lines


def watch_status(location: str) -> Iterator[list[str]]:
    """`status_lines` now and after each change, until all is complete."""
    shown: list[str] = []
    while not shown or not all(line.endswith("; complete") for line in shown):
        lines = status_lines(location)
        if lines != shown:
            yield lines
            shown = lines
        else:
            time.sleep(WATCH_SECONDS)


def folder_status(location: str) -> str:
    """One line on the data set, training or report at `location`: its state, progress, rate and time left.

    Raises:
        BadInput: it is none of these, or cannot be read.
    """
    store = open_store(location)
    try:
        sizes, holder = store.sizes(), read_holder(store)
        if PLAN in sizes and (dataset := read_dataset(store)) is not None:
            progress, is_complete = _of_data(store, dataset, sizes, holder)
        elif LOG in sizes:
            progress, is_complete = _of_training(store)
        elif METRICS in sizes:
            progress, is_complete = f"report of {len(read_report(location).rows)} rows", True
        elif "samples/" in sizes:
            progress, is_complete = f"report, {_count(location, 'samples/*/*/*/range-*.json')} ranges scored", False
        else:
            raise BadInput(f"{location}: wanted a run, data set, training or report of this program; it holds none")
    except OSError as error:
        raise BadInput(f"{location}: cannot be read ({reason(error)})") from error
    return f"{location}: {progress}; {_state(store, holder, is_complete)}"


def _state(store: Store, holder: Holder | None, is_complete: bool) -> str:
    if holder is not None and is_alive(holder) is not False:
        return f"running ({holder})"
    if is_complete:
        return "complete"
    return "running" if _age(store, LOG) < FRESH_SECONDS else "stopped"


def _of_data(store: Store, dataset: DataSet, sizes: Mapping[str, int], holder: Holder | None) -> tuple[str, bool]:
    total = len(dataset.plan.shards(dataset.num_records))
    made = [name for name in sizes if name.startswith("shard-") and name.endswith(".json")]
    text = f"data set, {len(made):,} of {total:,} shards"
    if holder is not None and len(made) < total:
        seconds = time.time() - datetime.strptime(holder.since, SINCE).replace(tzinfo=UTC).timestamp()
        num_new = sum(_age(store, name) < seconds for name in made)
        text += _pace(num_new * dataset.plan.shard_size / seconds, "samples", (total - len(made)) * seconds, num_new)
    return text, len(made) >= total and MANIFEST in sizes


def _of_training(store: Store) -> tuple[str, bool]:
    contents = store.read_all([LOG, CONFIG])
    trainer = parse_sections(contents.get(CONFIG, b""), CONFIG).get("train", {}).get("trainer", {})
    lines = [line for line in map(_parse, contents[LOG].splitlines()) if "step" in line]
    step, num_steps = int(lines[-1]["step"]) if lines else 0, int(trainer.get("num_steps", 0))
    text = f"training, {step:,} of {num_steps:,} steps"
    rates = [line["images_per_second"] for line in lines[-RECENT_LINES:] if "images_per_second" in line]
    if rates and step < num_steps:
        text += _pace(fmean(rates), "images", (num_steps - step) * trainer.get("batch_size", 0), fmean(rates))
    return text, bool(num_steps) and step >= num_steps


def _parse(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:  # cut short by a crash, or damaged
        return {}
    return values if isinstance(values, dict) else {}


def _pace(rate: float, what: str, left: float, speed: float) -> str:
    """The rate, and the time that `left` takes at `speed`."""
    return f", {rate:.0f} {what}/s, {format_clock(left / speed)} left" if speed > 0 else ""


def _age(store: Store, name: str) -> float:
    """Seconds since a file was last written; infinite where that is not known."""
    if is_url(store.location):
        return float("inf")
    try:
        return time.time() - (Path(store.location) / name).stat().st_mtime
    except OSError:
        return float("inf")


def _count(location: str, pattern: str) -> int:
    return 0 if is_url(location) else sum(1 for _ in Path(location).glob(pattern))
