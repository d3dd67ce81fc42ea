"""Generate a data set: from a configuration to a store that holds every record of its plan."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from shlex import quote
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from pipeline.common.config import resolved
from pipeline.common.errors import BadInput, StoreFailed, WorkFailed, reason
from pipeline.common.faults import explain
from pipeline.common.interrupt import stoppable
from pipeline.common.plural import counted
from pipeline.common.progress import bar, say
from pipeline.dataset.conditions import PROMPTS, Chunk, ConditionMarker, Prompts, missing_chunks
from pipeline.dataset.manifest import (
    DataSet,
    Ledger,
    Manifest,
    confirmed_markers,
    read_dataset,
    write_dataset,
    write_manifest,
)
from pipeline.dataset.plan import ConditionSet, Plan, Shard, Shards
from pipeline.dataset.shards import Marker
from pipeline.flow.numerics import check_precision
from pipeline.generation import workers
from pipeline.generation.backlog import Backlog, Failure, Piece, Result
from pipeline.generation.config import GenerateConfig as GenerateConfig
from pipeline.generation.first_look import doubt
from pipeline.generation.heartbeat import sweep_heartbeats
from pipeline.generation.same_flow import require_same_flow
from pipeline.generation.workers import Job
from pipeline.storage.lease import Lease, hold_lease
from pipeline.storage.output import Output, check_output
from pipeline.storage.store import Store, absolute, open_store
from pipeline.teachers.compilation import check_compiler, check_graphs
from pipeline.teachers.loading import DiffusersSource, TeacherSource, resolve
from pipeline.teachers.teacher import Teacher

CONFIG = "config.yaml"
SHOWN_FAILURES = 20
STOPPING = "stopping when the shards in flight are committed"
OF_TEACHER = ("shape", "num_classes", "t_start", "t_end", "data_range", "latents", "shift")  # fields that a plan copies


def device_of(config: GenerateConfig) -> torch.device | None:
    """The kind of device that the workers will have; None if only a cluster knows."""
    if config.executor == "ray" and config.gpus_per_worker != 0 and (config.address or os.environ.get("RAY_ADDRESS")):
        return None
    return torch.device("cuda" if torch.cuda.is_available() and config.gpus_per_worker != 0 else "cpu")


def make_plan(config: GenerateConfig, teacher: Teacher, conditions: ConditionSet | None = None) -> Plan:
    """The plan that `config` asks for with `teacher`, whose labels stand for `conditions`.

    Raises:
        BadInput: the fields contradict each other.
    """
    names = {"teacher": teacher.name, "teacher_sha256": teacher.sha256}
    classes = teacher.labels if config.classes is None else config.classes
    return _plan(config, classes, conditions, names | {name: getattr(teacher, name) for name in OF_TEACHER})


def _plan(
    config: GenerateConfig, classes: tuple[int, ...] | None, conditions: ConditionSet | None, of_teacher: dict[str, Any]
) -> Plan:
    shared = Plan.model_fields.keys() & GenerateConfig.model_fields.keys() - {"teacher", "classes", "shift"}
    asked = {name: getattr(config, name) for name in shared} | {"num_states": config.states, "conditions": conditions}
    if config.shift is not None:
        of_teacher = of_teacher | {"shift": config.shift}
    try:
        is_all = classes is not None and classes == tuple(range(of_teacher["num_classes"]))
        return Plan(**asked, **of_teacher, classes=None if is_all else classes)
    except ValidationError as error:
        raise BadInput(f"generate: {explain(error, Plan)}") from error


def check_generate(config: GenerateConfig) -> Plan:
    """The plan of `config`, which `generate` would resume or begin; nothing is written.

    Raises:
        BadInput: see `generate`.
        StoreFailed: the store cannot be read.
    """
    store = open_store(config.out)
    _, _, plan = plan_of(config, store, quiet=True)
    read_ledger(config, store, plan, read_dataset(store))
    return plan


def plan_of(config: GenerateConfig, store: Store, quiet: bool = False) -> tuple[TeacherSource, Plan | None, Plan]:
    """The teacher's source, the plan if `store` says enough of the teacher, and the plan, else by loading it.

    Says what the user should know of it, unless `quiet`.
    """
    existing = read_dataset(store)
    check_output(store, Output.DATA)
    source = resolve(config.teacher)
    # A teacher can take minutes to load: not needed where its source and its weights are those of the plan.
    known = _known_plan(config, source, existing)
    plan = known or new_plan(config, source, quiet)
    for note in () if quiet else _notes(config, plan):
        say(f"note: {note}")
    return source, known, plan


def new_plan(config: GenerateConfig, source: TeacherSource, quiet: bool = False) -> Plan:
    """The plan that `config` asks for with the teacher of `source`.

    Raises:
        BadInput: there is no such teacher, or the fields contradict each other; or records of this plan were made by
            another function than the teacher's.
    """
    prompts = source.prompts(config.prompts, config.negative_prompt)
    num_prompts = 0 if prompts is None else len(prompts)
    teacher = source.describe(config.guidance_scale, quiet, config.size, num_prompts)
    plan = make_plan(config, teacher, None if prompts is None else source.identify(prompts, config.precision))
    if source.is_function:
        require_same_flow(open_store(config.out), plan, teacher, torch.device("cpu"))
    return plan


def generate(config: GenerateConfig) -> Manifest:
    """Generate every shard of the plan that is not committed yet, then write the manifest.

    Raises:
        BadInput: the store holds other files, another plan or more records than asked for; or it has another driver;
            or this machine lacks the precision.
        WorkFailed: shards failed; the others are committed.
        KeyboardInterrupt: a signal asked to stop; the shards in flight were committed.
    """
    check_device(config)
    store = open_store(config.out)
    source, known, plan = plan_of(config, store)
    with hold_lease(store) as lease:
        existing = read_dataset(store)
        ledger = read_ledger(config, store, plan, existing)
        missing = missing_shards(plan, config.n, ledger)
        if missing and known:
            check_teacher(config, source, known)
        elif known and source.is_function:
            _check_function(config, source, known)
        dataset = _claim(config, store, plan, source, existing)
        with stoppable(STOPPING) as stop:
            lease.on_loss = stop.set
            encode_prompts(config, dataset, source, store, stop, check=lease.check)
            failures = _fill(config, dataset, ledger, missing, lease, stop)
    report(failures, len(plan.shards(config.n)), stop)
    if len(ledger.numerics) > 1:
        say(f"note: shards of {config.out} were made on different kinds of machine: see `numerics` in their markers")
    if not missing:
        say(f"{config.out} is complete: {counted(config.n, 'record')} of this plan; nothing to do")
    return ledger.manifest(store, dataset)


def _check_function(config: GenerateConfig, source: TeacherSource, plan: Plan) -> None:
    """Raises `BadInput` if the function of a complete set was corrected since; one that is gone is not wanted."""
    try:
        teacher = source.load(guidance_scale=config.guidance_scale, quiet=True)
    except BadInput:
        return
    require_same_flow(open_store(config.out), plan, teacher, torch.device("cpu"))


def check_teacher(config: GenerateConfig, source: TeacherSource, plan: Plan) -> None:
    """Raises `BadInput` unless the teacher that `source` loads is that of `plan`, and of what is committed of it."""
    new_plan(config, source).check_same(plan, config.out)


def report(failures: Sequence[str], num_pieces: int, stop: threading.Event, pieces: str = "shards") -> None:
    """Say what failed of `num_pieces` shards, or other `pieces`.

    Raises:
        WorkFailed: some failed.
        KeyboardInterrupt: `stop` is set.
    """
    for failure in failures[:SHOWN_FAILURES]:
        say(f"failed: {failure}")
    if len(failures) > SHOWN_FAILURES:
        say(f"failed: {len(failures) - SHOWN_FAILURES} more")
    if stop.is_set():
        raise KeyboardInterrupt
    if failures:
        others = "; the others are committed" if len(failures) < num_pieces else ""
        raise WorkFailed(f"{len(failures)} of {num_pieces} {pieces} failed: {failures[0]}{others}")


def _notes(config: GenerateConfig, plan: Plan) -> Iterator[str]:
    """What the user should know before the work."""
    if plan.classes is not None and config.classes is None:
        yield f"labels are drawn from the {len(plan.classes)} of {plan.num_classes} classes that were trained"


def check_device(config: GenerateConfig) -> None:
    """Raises `BadInput` if the device that the workers will have, where it is known, lacks what was asked for."""
    device = device_of(config)
    if device is not None:
        check_precision(config.precision, device)
        if config.compile == "graphs":
            check_graphs(device)
        if config.compile in (True, "graphs"):
            check_compiler(device)


def _known_plan(config: GenerateConfig, source: TeacherSource, existing: DataSet | None) -> Plan | None:
    """The plan that `config` asks for, from what `existing` says of the teacher if it has the same source and weights.

    A factory's weights are only known once it is called: there the same source is enough.
    """
    if existing is None or existing.teacher_source != source.absolute:
        return None
    if source.sha256 not in (None, existing.plan.teacher_sha256):
        return None
    if config.classes is None and existing.plan.classes is not None:
        return None  # by default they are the teacher's
    if isinstance(source, DiffusersSource) or config.size is not None or existing.plan.shift != 1:
        return None  # a pipeline is described in a moment, and a shift may be the teacher's or what was asked
    return _plan(
        config,
        config.classes,
        None,
        {name: getattr(existing.plan, name) for name in ("teacher", "teacher_sha256", *OF_TEACHER)},
    )


def read_ledger(config: GenerateConfig, store: Store, plan: Plan, existing: DataSet | None) -> Ledger:
    """The shards of `plan` that are committed in `store`, which holds the data set `existing`.

    Raises:
        BadInput: the data set has another plan, or more records than asked for.
        StoreFailed: the store cannot be read.
    """
    if existing is None:
        return Ledger(plan, config.n)
    plan.check_same(existing.plan, config.out)
    ledger, end = Ledger(plan, config.n), 0
    try:
        for marker in confirmed_markers(store, plan, max(existing.num_records, config.n)):
            end = max(end, marker.shard.end)
            if end <= config.n:
                ledger.add(marker)
    except OSError as error:
        raise StoreFailed(f"{config.out}: cannot be read ({reason(error)})") from error
    if end > config.n:
        raise BadInput(f"{config.out} holds records up to {end}, {config.n} were asked; a set only grows")
    return ledger


def missing_shards(plan: Plan, num_records: int, ledger: Ledger) -> Shards:
    """The shards of the first `num_records` records that are not committed, or with fewer records."""
    starts = np.arange(0, num_records, plan.shard_size)
    wanted = np.minimum(plan.shard_size, num_records - starts)
    return Shards(plan, num_records, np.flatnonzero(ledger.sizes[: len(starts)] < wanted).tolist())


def _claim(
    config: GenerateConfig, store: Store, plan: Plan, source: TeacherSource, existing: DataSet | None
) -> DataSet:
    """Write the plan and the configuration over those of `existing`.

    Raises:
        BadInput: they cannot be written.
    """
    try:
        store.sweep()
        if existing is not None:
            sweep_heartbeats(store)
        dataset = DataSet(plan=plan, num_records=config.n, teacher_source=source.absolute)
        if dataset != existing:
            write_dataset(store, dataset)
        store.write(CONFIG, resolved(config, "generate").encode())
    except OSError as error:
        raise BadInput(f"{config.out}: cannot be written ({reason(error)})") from error
    return dataset


def encode_prompts(
    config: GenerateConfig,
    dataset: DataSet,
    source: TeacherSource,
    store: Store,
    stop: threading.Event,
    check: Callable[[], object] = lambda: None,
    is_part: bool = False,
) -> None:
    """Make what is missing of the condition table, before the shards that are made from it.

    `check` is called before each chunk that was made is counted. Parts of a data set share the chunks.

    Raises:
        WorkFailed: a chunk failed, or the store did.
        KeyboardInterrupt: `stop` is set.
    """
    conditions, prompts = dataset.plan.conditions, source.prompts(config.prompts, config.negative_prompt)
    if conditions is None or prompts is None:
        return
    missing = _missing_chunks(store, conditions, prompts)
    if not missing:
        return
    if is_part:
        random.shuffle(missing)
    for note in source.notes(prompts):
        say(f"note: {note}")
    failures, num_missing = list[str](), sum(chunk.num_rows for chunk in missing)
    with bar("encode prompts", conditions.num_rows, conditions.num_rows - num_missing) as advance:
        for result in _work(config, dataset, missing, stop, lambda _: None, is_part):
            check()
            if isinstance(result, Failure):
                failures.append(result.error)
            elif isinstance(result, ConditionMarker):
                advance(result.chunk.num_rows)
    report(failures, len(missing), stop, "chunks of conditions")


def _missing_chunks(store: Store, conditions: ConditionSet, prompts: Prompts) -> list[Chunk]:
    """What is not committed of the condition table of `prompts`, which are written to `store`."""
    try:
        if store.read_all([PROMPTS]).get(PROMPTS) != prompts.dumped():
            store.write(PROMPTS, prompts.dumped())
        return missing_chunks(store, conditions)
    except OSError as error:
        raise StoreFailed(f"{store.location}: cannot be read or written ({reason(error)})") from error


def _fill(
    config: GenerateConfig,
    dataset: DataSet,
    ledger: Ledger,
    missing: Sequence[Shard],
    lease: Lease,
    stop: threading.Event,
) -> list[str]:
    """Generate `missing`, record the markers in `ledger`, and write the manifest; return the errors."""
    failures: list[str] = []
    try:
        for result in make_shards(config, dataset, missing, stop):
            lease.check()
            if isinstance(result, Failure):
                failures.append(result.error)
            elif isinstance(result, Marker):
                ledger.add(result)
    finally:
        try:
            lease.confirm()  # never overwrite a successor's manifest
            write_manifest(ledger.manifest(lease.store, dataset))
        except (OSError, StoreFailed) as error:
            if not failures:
                raise StoreFailed(f"{config.out}: the manifest cannot be written ({error})") from error
            say(f"failed: {error}")
    return failures


def _work(
    config: GenerateConfig,
    dataset: DataSet,
    pieces: Sequence[Piece],
    stop: threading.Event,
    on_batch: Callable[[int], None],
    is_part: bool,
) -> Iterator[Result]:
    """Hand `pieces` of the data set to workers, which leave with the last of them."""
    job = Job(dataset.plan, dataset.teacher_source, absolute(config.out), compile=config.compile, is_part=is_part)
    backlog = Backlog(pieces, stop)
    if config.executor == "inline":
        return workers.run_inline(job, backlog, on_batch)
    return workers.run_on_ray(job, backlog, on_batch, config.workers, config.gpus_per_worker, config.address)


def make_shards(
    config: GenerateConfig, dataset: DataSet, shards: Sequence[Shard], stop: threading.Event, is_part: bool = False
) -> Iterator[Result]:
    """Make `shards` with the executor of `config`; those of a part are skipped where others have committed them."""
    if not shards:
        return
    num_records = sum(shard.num_records for shard in shards)
    total = num_records if is_part else config.n
    started, made = time.monotonic(), 0
    advice = f"see traflow-pipeline teachers check {quote(config.teacher)}"
    with bar(f"generate {dataset.plan.teacher}", total, total - num_records) as advance:
        for result in _work(config, dataset, shards, stop, advance, is_part):
            if isinstance(result, Marker):
                if result.shard.number == 0 and (problem := doubt(open_store(config.out), dataset.plan, result)):
                    say(f"note: the first records look wrong: {problem}; {advice}")
                made += result.shard.num_records
                rate = made / (time.monotonic() - started)
                nfe = sum(result.nfe) / len(result.nfe)
                advance(0, f"{rate:.0f} samples/s, {counted(round(nfe), 'evaluation')} each")
            yield result
