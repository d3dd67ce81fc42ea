"""What is known of any folder or store of ours: how far its work is, how fast it goes, whether somebody is at it."""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from eval.results import METRICS, read_report
from pipeline.common.config import parse_sections
from pipeline.common.errors import BadInput, reason
from pipeline.common.plural import counted
from pipeline.common.progress import format_clock
from pipeline.dataset.manifest import MANIFEST, PLAN, DataSet, read_dataset
from pipeline.generation.heartbeat import Heartbeat, heartbeats
from pipeline.storage.lease import SINCE, Holder, is_alive, read_holder
from pipeline.storage.store import Store, is_url, open_store
from traflow_pipeline import slurm
from traflow_pipeline.run import read_run, stage_status
from traflow_pipeline.run_settings import CONFIG as RUN
from trainer.log import parse_line
from trainer.settings import TrainerConfig

Parts = dict[tuple[int, int], Heartbeat]  # by number, and how many there are
LOG, CONFIG = "log.jsonl", "config.yaml"
WATCH_SECONDS = 5.0  # between two looks
RECENT_LINES = 20  # of a log, whose mean speed counts
SLOWEST, FASTEST = 1e-6, 1e12  # images a second that are believed
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
    plan, jobs = read_run(location), slurm.job_states(location)
    lines: list[str] = []
    for stage in plan.stages:
        known = stage_status(plan, stage)
        lines.append(str(known))
        if known.complete:
            continue
        if stage in jobs:
            lines.append(f"          {jobs[stage]}")
        if open_store(known.location).sizes():
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
        sizes, holder, parts = store.sizes(), read_holder(store), Parts()
        if PLAN in sizes and (dataset := read_dataset(store)) is not None:
            parts = heartbeats(store, sizes)
            progress, is_complete = _of_data(store, dataset, sizes, _workers(holder, parts))
        elif LOG in sizes:
            progress, is_complete = _of_training(store)
        elif METRICS in sizes:
            progress, is_complete = f"report of {counted(len(read_report(location).rows), 'row')}", True
        elif "samples/" in sizes:
            num_ranges = _count(location, "samples/*/*/*/range-*.json")
            progress, is_complete = f"report, {counted(num_ranges, 'range')} scored", False
        else:
            raise BadInput(f"{location}: wanted a run, data set, training or report of this program; it holds none")
    except OSError as error:
        raise BadInput(f"{location}: cannot be read ({reason(error)})") from error
    return f"{location}: {progress}; {_state(store, holder, parts, is_complete)}"


def _workers(holder: Holder | None, parts: Parts) -> list[Holder]:
    """The processes that are at work, as far as is known."""
    driver = [holder] if holder is not None and is_alive(holder) is not False else []
    return [*driver, *(part.holder for part in parts.values() if part.is_beating)]


def _state(store: Store, holder: Holder | None, parts: Parts, is_complete: bool) -> str:
    if holder is not None and is_alive(holder) is not False:
        return f"running ({holder})"
    beating = {part: heartbeat for part, heartbeat in parts.items() if heartbeat.is_beating}
    if is_complete and not beating:
        return "complete"
    is_running = beating or _age(store, LOG) < FRESH_SECONDS
    lost = {part: heartbeat for part, heartbeat in parts.items() if part not in beating}
    told = [*([_name_parts(beating)] if beating else []), *([f"lost: {_name_parts(lost)}"] if lost else [])]
    return ("running" if is_running else "stopped") + (f" ({'; '.join(told)})" if told else "")


def _name_parts(parts: Parts) -> str:
    """The numbers of `parts`, and the hosts that make them."""
    numbers = groupby(sorted(parts, key=lambda part: part[::-1]), key=lambda part: part[1])
    named = [f"part {', '.join(str(number) for number, _ in group)} of {count}" for count, group in numbers]
    hosts = sorted({heartbeat.holder.host for heartbeat in parts.values()})
    return f"{'; '.join(named)} on {', '.join(hosts)}"


def _of_data(store: Store, dataset: DataSet, sizes: Mapping[str, int], workers: list[Holder]) -> tuple[str, bool]:
    total = len(dataset.plan.shards(dataset.num_records))
    made = [name for name in sizes if name.startswith("shard-") and name.endswith(".json")]
    text = f"data set, {len(made):,} of {total:,} shards"
    seconds = max(map(_elapsed, workers), default=0.0)
    if seconds and len(made) < total:
        num_new = sum(_age(store, name) < seconds for name in made)
        text += _pace(num_new * dataset.plan.shard_size / seconds, "samples", (total - len(made)) * seconds, num_new)
    return text, len(made) >= total and MANIFEST in sizes


def _of_training(store: Store) -> tuple[str, bool]:
    contents = store.read_all([LOG, CONFIG])
    num_steps, batch_size = _read_length(contents.get(CONFIG, b""))
    lines = [line for text in contents[LOG].splitlines() if (line := parse_line(text.decode(errors="replace")))]
    step = int(lines[-1]["step"]) if lines else 0
    text = f"training, {step:,} of {num_steps:,} steps" if num_steps else f"training, {counted(step, 'step')}"
    rates = [rate for line in lines[-RECENT_LINES:] if 0 < (rate := line.get("images_per_second", 0)) < FASTEST]
    if rates and step < num_steps:
        text += _pace(fmean(rates), "images", (num_steps - step) * batch_size, fmean(rates))
    return text, bool(num_steps) and step >= num_steps


def _read_length(config: bytes) -> tuple[int, int]:
    """The number of steps and the batch size in a training's configuration; 0 where it cannot be read."""
    try:
        section = parse_sections(config, CONFIG).get("train", {})
        trainer = TrainerConfig.model_validate(section.get("trainer"))
    except (BadInput, ValidationError):
        return 0, 0
    return trainer.num_steps, trainer.batch_size


def _elapsed(holder: Holder) -> float:
    """Seconds since the holder of a lease began; 0 where its text does not say."""
    try:
        started = datetime.strptime(holder.since, SINCE).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return max(time.time() - started.timestamp(), 0)


def _pace(rate: float, what: str, left: float, speed: float) -> str:
    """The rate, and the time that `left` takes at `speed`."""
    return f", {rate:.0f} {what}/s, {format_clock(left / speed)} left" if speed > SLOWEST else ""


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
