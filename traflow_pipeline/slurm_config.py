"""What the section `slurm` of a config takes: how a run's stages are jobs of a Slurm cluster."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import Unit


def _like(pattern: str, wanted: str) -> AfterValidator:
    """Refuse text that is not like `pattern`, and say what was `wanted`."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"wanted {wanted}")
        return text

    return AfterValidator(check)


Line = Annotated[str, _like(r"--.+", "an option of sbatch, such as --constraint=a100")]
Word = Annotated[str, _like(r"[^\s#]+", "a name without spaces")]


EARLY_SECONDS = 60  # Slurm may signal a job so much earlier than it was asked to


def seconds_of(limit: str) -> int:
    """The seconds of a limit as Slurm reads it: minutes, [hours:]minutes:seconds or days-hours[:minutes[:seconds]].

    0 is no limit.
    """
    days, dash, rest = limit.rpartition("-")
    units = (3600, 60, 1) if dash or rest.count(":") == 2 else (60, 1)
    fields = zip(map(int, rest.split(":")), units, strict=False)
    return 86400 * int(days or 0) + sum(number * unit for number, unit in fields)


def _not_a_number(value: object) -> object:
    """Refuse what YAML makes of 12:00:00 without quotes: 43200, which Slurm would take for minutes."""
    if isinstance(value, int | float):
        raise ValueError('wanted a limit in quotes, such as "12:00:00", or days and hours, such as 0-12')
    return value


Limit = Annotated[
    str,
    BeforeValidator(_not_a_number),
    _like(
        r"([0-9]+-)?[0-9]+(:[0-9][0-9]){0,2}", "minutes, hours:minutes:seconds or days-hours, such as 12:00:00 or 2-12"
    ),
]


class SlurmConfig(BaseModel):
    """The section `slurm` of a config, which `traflow-pipeline run --submit slurm` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: Word | None = Field(default=None, description="Partition of every job; by default the cluster's.")
    account: Word | None = Field(default=None, description="Account that every job is charged to.")
    time: Limit = Field(default="24:00:00", description="Time limit of each job, in quotes.")
    parts: int = Field(default=8, ge=1, description="Number of tasks of the array that generates.")
    parts_at_once: int | None = Field(
        default=None, ge=1, description="Largest number of these tasks at one time; by default all."
    )
    nodes: int = Field(default=1, ge=1, description="Number of nodes of the training.")
    gpus: int = Field(
        default=0, ge=0, description="GPUs of each node of the training; a part and the evaluation take one."
    )
    ranks: int | None = Field(
        default=None, ge=1, description="Ranks of the training on each node; by default one per GPU."
    )
    cpus: int = Field(default=1, ge=1, description="CPUs of each part, each rank and the evaluation.")
    requeue: bool = Field(default=True, description="Requeue a job after a preemption, a lost node or the time limit.")
    stop_seconds: Annotated[int, Unit("seconds")] = Field(
        default=120, ge=10, description="Time before the limit at which a job saves and is requeued."
    )
    sbatch: tuple[Line, ...] = Field(default=(), description="More options of every job, such as --qos=long.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus and self.ranks is not None and self.ranks > self.gpus:
            raise ValueError(f"{self.ranks} ranks on {self.gpus} GPUs of a node: wanted at most one rank per GPU")
        if 0 < seconds_of(self.time) <= self.stop_seconds + EARLY_SECONDS:
            raise ValueError(
                f"jobs of {self.time} that stop {self.stop_seconds} s before their limit, or {EARLY_SECONDS} s "
                "earlier, as Slurm may, would never work: wanted a longer time or a smaller stop_seconds"
            )
        return self

    @property
    def ranks_per_node(self) -> int:
        return self.ranks or max(self.gpus, 1)
