"""The plan: everything that decides the bytes of a data set. Two data sets of one plan are the same data set."""

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_jsonable_python
from torch import Tensor

from pipeline.common.config import differences
from pipeline.common.errors import BadInput
from pipeline.flow.noise import Stream, draw_labels, generator, take_turns
from pipeline.flow.numerics import Precision
from pipeline.flow.path import shifted
from pipeline.flow.solver import Solver

Count = Annotated[int, Field(ge=0, lt=2**63)]  # fits the columns of a manifest
Length = Annotated[int, Field(ge=1, lt=2**31)]
SHA256 = r"^[0-9a-f]{64}$"
JITTER_LEVELS = 1024  # jitter is a multiple of 1/1024 of a stratum: never 0, and neighbouring times stay apart


def stratified_times(
    seed: int, first_index: int, num_states: int, t_start: float, t_end: float, shift: float = 1.0
) -> Tensor:
    """`Plan.times` of a plan with these fields."""
    rng = generator(seed, Stream.TIMES, first_index)
    jitter = rng.integers(1, JITTER_LEVELS, num_states) / JITTER_LEVELS
    inner = (np.arange(num_states) + jitter) / max(num_states, 1)
    fractions = torch.from_numpy(np.concatenate([[0.0], inner, [1.0]]))
    start, end = shifted(t_start, 1 / shift), shifted(t_end, 1 / shift)
    times = shifted(start + (end - start) * fractions, shift)
    times[0], times[-1] = t_start, t_end
    return times.float()


class Shard(BaseModel):
    """Records [first_index, first_index + num_records) of a data set: the unit of work and of commitment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Count
    first_index: Count
    num_records: Count

    @property
    def name(self) -> str:
        return f"shard-{self.number:06d}.tar"

    @property
    def end(self) -> int:
        """The index after its last record."""
        return self.first_index + self.num_records

    def __str__(self) -> str:
        return f"shard {self.number:06d} (records {self.first_index} to {self.end - 1})"


class ConditionSet(BaseModel):
    """What the labels of a data set stand for, where they are prompts: the identity of its condition table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts_sha256: str = Field(pattern=SHA256, description="of prompts.jsonl")
    encoder_sha256: str = Field(pattern=SHA256, description="of the text encoders and their tokenizers")
    num_prompts: Length
    has_negative: bool

    @property
    def num_rows(self) -> int:
        """Rows of the table, the negative prompt's among them."""
        return self.num_prompts + self.has_negative


class Plan(BaseModel):
    """The identity of a data set; only the number of its records may grow.

    An adaptive solver chooses one step for a whole batch, so a sample depends on the others in its batch. Therefore
    the batch size is part of the plan, and shards are fixed ranges of indices cut into fixed batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[2] = 2  # of the shards and their markers; raised when their layout changes
    teacher: str
    teacher_sha256: str
    shape: tuple[Length, ...] = Field(description="(C, H, W) of one record")
    num_classes: int = Field(ge=0, lt=2**31, description="0 for an unconditional teacher")
    t_start: float = 1.0
    t_end: float = 0.0
    # Defaults are left out of the JSON, so that plans older than these fields keep their digests.
    guidance_scale: float = Field(default=1.0, exclude_if=lambda scale: scale == 1)
    data_range: tuple[float, float] = Field(default=(-1.0, 1.0), exclude_if=lambda values: values == (-1, 1))
    classes: tuple[int, ...] | None = Field(
        default=None,
        exclude_if=lambda classes: classes is None,
        description="the classes to draw, increasing; None: all",
    )
    precision: Precision = Field(default="fp32", exclude_if=lambda precision: precision == "fp32")
    conditions: ConditionSet | None = Field(
        default=None,
        exclude_if=lambda conditions: conditions is None,
        description="what the labels stand for, where they are prompts; None: classes",
    )
    shift: float = Field(
        default=1.0, gt=0, exclude_if=lambda shift: shift == 1, description="of the times, see `shifted`; 1: even"
    )
    latents: bool = Field(
        default=False, exclude_if=lambda latents: not latents, description="whether samples need a decoder"
    )
    seed: int = Field(ge=0, lt=2**63)
    solver: Solver
    num_states: int = Field(ge=0, lt=2**16, description="states stored between the noise and the sample")
    velocities: bool
    dtype: Literal["float16", "float32"]
    shard_size: Length = Field(description="records of a shard")
    batch_size: Length = Field(description="records integrated together")
    block_size: Length = Field(description="records of one WebDataset sample")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shard_size % self.batch_size or self.batch_size % self.block_size:
            raise ValueError(
                "shard_size must be a multiple of batch_size, and batch_size of block_size; "
                f"they are {self.shard_size}, {self.batch_size} and {self.block_size}"
            )
        if not 1 >= self.t_start > self.t_end >= 0:
            raise ValueError(f"a flow runs from t_start down to t_end in [0, 1]; they are {self.t_start}, {self.t_end}")
        if not self.data_range[0] < self.data_range[1]:
            raise ValueError(f"a data range goes from its least to its largest value; it is {self.data_range}")
        if self.classes is not None and not _are_labels(self.classes, self.num_classes):
            raise ValueError(
                f"classes: wanted increasing numbers from 0 to {self.num_classes - 1} of this teacher, "
                f"got {list(self.classes)}"
                if self.num_classes
                else "classes: this teacher has none"
            )
        if self.conditions is not None and self.conditions.num_prompts != self.num_classes:
            raise ValueError(
                f"conditions: wanted a label for each prompt; there are {self.conditions.num_prompts} prompts and "
                f"{self.num_classes} labels"
            )
        if self.solver.num_steps is not None and self.solver.num_steps < self.num_states + 1:
            raise ValueError(
                f"{self.solver.name} steps on every stored state: {self.num_states} states "
                f"need at least {self.num_states + 1} steps (--steps or solver.num_steps), got {self.solver.num_steps}"
            )
        return self

    def draw_labels(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Labels int64 [len(indices)]; -1 for an unconditional teacher.

        Classes are uniform over `classes`; prompts take turns.
        """
        if self.conditions is not None:
            return take_turns(indices, self.num_classes)
        return draw_labels(self.seed, indices, self.num_classes, classes=self.classes)

    def has_labels(self, labels: NDArray[np.int64]) -> bool:
        """Whether `labels` are some that this plan draws."""
        classes = range(self.num_classes) if self.classes is None else self.classes
        return not self.num_classes or bool(np.isin(labels, classes).all())

    @property
    def num_times(self) -> int:
        """Number of times of a trajectory: the start, `num_states` in between, and the end."""
        return self.num_states + 2

    @property
    def record_bytes(self) -> int:
        """Bytes of one record in a shard, without the headers of its block."""
        arrays = 2 + self.num_states + (self.num_times if self.velocities else 0)
        return arrays * math.prod(self.shape) * np.dtype(self.dtype).itemsize + 4 * self.num_times + 16

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON of the plan."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()

    def shards(self, num_records: int) -> "Shards":
        """The shards of the first `num_records` records; the last one may be short."""
        return Shards(self, num_records)

    def times(self, first_index: int) -> Tensor:
        """Times float32 [num_times] of the integration batch that starts at `first_index`, strictly decreasing.

        The interior ones are jittered within `num_states` strata, equal but for `shift`, so that the batches together
        cover the whole flow although each record stores only a few states.
        """
        return stratified_times(self.seed, first_index, self.num_states, self.t_start, self.t_end, self.shift)

    def with_defaults(self) -> dict[str, Any]:
        """Every field, as in JSON, also those that the JSON leaves out."""
        fields = type(self).model_fields.items()
        defaults = {name: field.default for name, field in fields if not field.is_required()}
        values: dict[str, Any] = to_jsonable_python(defaults) | self.model_dump(mode="json")
        return values

    def check_same(self, existing: "Plan", location: str) -> None:
        """Raises `BadInput` with the fields in which the `existing` plan at `location` differs from this one."""
        if fields := differences(existing.with_defaults(), self.with_defaults()):
            raise BadInput(f"{location} holds another plan ({fields}); choose another folder or ask for that plan")


def _are_labels(classes: tuple[int, ...], num_classes: int) -> bool:
    is_increasing = all(a < b for a, b in pairwise((-1, *classes)))
    return bool(classes) and is_increasing and classes[-1] < num_classes


class Shards(Sequence[Shard]):
    """The shards of the first `num_records` records of `plan`, or those of `numbers` among them; the last may be short.

    Each is made when it is asked for, because a plan may have millions of them.
    """

    def __init__(self, plan: Plan, num_records: int, numbers: Sequence[int] | None = None) -> None:
        self._plan, self._num_records = plan, num_records
        self._numbers = range(-(-num_records // plan.shard_size)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Shard: ...

    @overload
    def __getitem__(self, index: slice) -> "Shards": ...

    def __getitem__(self, index: int | slice) -> "Shard | Shards":
        if isinstance(index, slice):
            return Shards(self._plan, self._num_records, self._numbers[index])
        number, size = self._numbers[index], self._plan.shard_size
        first_index = number * size
        return Shard(number=number, first_index=first_index, num_records=min(size, self._num_records - first_index))
