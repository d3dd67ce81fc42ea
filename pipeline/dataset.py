"""Stage 1 as a whole: from a config to a folder that holds every record of its plan."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline import cluster
from pipeline.config import parse_count, write_resolved
from pipeline.errors import BadInput, WorkFailed
from pipeline.manifest import DataSet, Manifest, read_dataset, write_dataset, write_manifest
from pipeline.plan import Plan, Shard
from pipeline.progress import bar, say
from pipeline.shards import Receipt, committed, sweep
from pipeline.solver import Solver
from pipeline.teachers import absolute_source, load_teacher


class GenerateConfig(BaseModel):
    """What `traflow-pipeline generate` takes; all but `out`, `n`, `workers`, `executor` and `address` make the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    n: Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
    out: Path
    seed: int = Field(default=0, ge=0, lt=2**63)
    states: int = Field(default=8, ge=0)
    velocities: bool = True
    solver: Solver = Solver()
    dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=256, ge=1)
    block_size: int = Field(default=64, ge=1)
    workers: int | None = Field(default=None, ge=1)
    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.executor == "inline" and (self.workers or self.address):
            raise ValueError("executor inline works in this process: it takes no workers and no address")
        return self


def make_plan(config: GenerateConfig) -> Plan:
    """The plan that `config` asks for; loads the teacher to know its weights and its shape.

    Raises:
        BadInput: no such teacher, or sizes that do not fit together.
    """
    teacher = load_teacher(config.teacher)
    try:
        return Plan(
            teacher=teacher.name,
            teacher_sha256=teacher.sha256,
            shape=teacher.shape,
            num_classes=teacher.num_classes,
            t_start=teacher.t_start,
            t_end=teacher.t_end,
            seed=config.seed,
            solver=config.solver,
            num_states=config.states,
            velocities=config.velocities,
            dtype=config.dtype,
            shard_size=config.shard_size,
            batch_size=config.batch_size,
            block_size=config.block_size,
        )
    except ValidationError as error:
        raise BadInput("generate: " + error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def generate(config: GenerateConfig) -> Manifest:
    """Make every shard of the plan that is not committed yet, and the manifest of all.

    Raises:
        BadInput: the folder holds another plan, or more records than asked for.
        WorkFailed: shards failed; the others are committed.
    """
    plan = make_plan(config)
    dataset = _claim(config, plan)
    shards = plan.shards(config.n)
    receipts = committed(config.out, plan, shards)
    missing = [s for s in shards if s.number not in receipts or receipts[s.number].shard != s]
    failures: list[cluster.Failure] = []
    try:
        if missing:
            for result in _make(config, plan, missing, config.n - sum(s.num_records for s in missing)):
                if isinstance(result, cluster.Failure):
                    failures.append(result)
                else:
                    receipts[result.shard.number] = result
    finally:
        manifest = write_manifest(config.out, dataset, receipts.values())
    if failures:
        raise WorkFailed(
            f"{len(failures)} of {len(shards)} shards failed; the others are committed. First: {failures[0].error}"
        )
    if len({receipt.numerics for receipt in receipts.values()}) > 1:
        say(f"note: shards of {config.out} were made on different kinds of machine: see `numerics` in their markers")
    if not missing:
        say(f"{config.out} is complete: {config.n} records of this plan; nothing to do")
    return manifest


def _claim(config: GenerateConfig, plan: Plan) -> DataSet:
    found = read_dataset(config.out)
    if found is not None:
        plan.check_same(found.plan, str(config.out))
        receipts = committed(config.out, plan, plan.shards(found.num_records)).values()
        num_records = sum(receipt.shard.num_records for receipt in receipts)
        if num_records > config.n:
            raise BadInput(f"{config.out} holds {num_records} records, {config.n} were asked; a set only grows")
    elif config.out.is_file():
        raise BadInput(f"{config.out} is a file; wanted a folder")
    sweep(config.out)
    if found is None and config.out.exists() and any(config.out.iterdir()):
        raise BadInput(f"{config.out} is not empty and holds no plan; choose another folder")
    dataset = DataSet(plan=plan, num_records=config.n, teacher_source=absolute_source(config.teacher))
    try:
        write_dataset(config.out, dataset)
        write_resolved(config.out / "config.yaml", config, "generate")
    except OSError as error:
        raise BadInput(f"{config.out}: cannot be written ({error.strerror})") from error
    return dataset


def _make(
    config: GenerateConfig, plan: Plan, shards: list[Shard], num_done: int
) -> Iterator[Receipt | cluster.Failure]:
    job = cluster.Job(plan, absolute_source(config.teacher), config.out.resolve())
    if config.executor == "inline":
        results = cluster.run_inline(job, shards)
    else:
        results = cluster.run_on_ray(job, shards, config.workers, config.address)
    started, made = time.monotonic(), 0
    with bar(f"generate {plan.teacher}", config.n, num_done) as advance:
        for result in results:
            if isinstance(result, Receipt):
                made += result.shard.num_records
                rate = made / (time.monotonic() - started)
                nfe = sum(result.nfe) / len(result.nfe)
                advance(result.shard.num_records, f"{rate:.0f} samples/s, {nfe:.0f} evaluations each")
            yield result
