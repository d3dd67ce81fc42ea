"""What `traflow-pipeline generate` takes. Nothing here needs torch, so that a configuration is checked at once."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import PathText, parse_count
from pipeline.flow.solver_config import Precision, Solver
from pipeline.storage.store import Location

Compile = Literal["auto", "graphs"] | bool


def _split(value: object) -> object:
    """ "3, 18" as a list, and 3 as one; the rest is for the model to check."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


def _sides(value: object) -> object:
    """ "512" and 512 as (512, 512), "768x512" as (768, 512); the rest is for the model to check."""
    parts = value.lower().split("x") if isinstance(value, str) else value
    if isinstance(parts, int):
        return (parts, parts)
    return parts * 2 if isinstance(parts, list) and len(parts) == 1 else parts


def _increasing(classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(sorted(set(classes)))


Side = Annotated[int, Field(ge=1, lt=2**16)]
PictureSize = Annotated[tuple[Side, Side], BeforeValidator(_sides)]


class PictureSettings(BaseModel):
    """The size that a command takes by flag."""

    size: PictureSize


class GenerateConfig(BaseModel):
    """The configuration of `traflow-pipeline generate`.

    `out`, `n`, `workers`, `gpus_per_worker`, `executor`, `address` and `compile` may change from run to run; all other
    fields define the plan. Compiled code rounds otherwise, as another kind of machine does: the markers say which.
    `prompts` is a file, .txt or .jsonl, for a pipeline of diffusers; `size` is that of its pictures, [height, width],
    and `shift` moves the times towards the noise, by default as the pipeline does.
    Labels are drawn from `classes`; by default from those that the teacher was trained on, where that is known, else
    from all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: PathText
    n: Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
    out: Location
    guidance_scale: float = Field(default=1.0, ge=0)
    classes: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None, BeforeValidator(_split), AfterValidator(_increasing)
    ] = None
    prompts: PathText | None = None
    negative_prompt: str | None = None
    size: PictureSize | None = None
    shift: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    states: int = Field(default=8, ge=0)
    velocities: bool = True
    solver: Solver = Solver()
    precision: Precision = "fp32"
    dtype: Literal["float16", "float32"] = "float16"
    shard_size: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=256, ge=1)
    block_size: int = Field(default=64, ge=1)
    workers: int | None = Field(default=None, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None
    compile: Compile = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.executor == "inline" and (self.workers or self.address or self.gpus_per_worker is not None):
            raise ValueError(
                "executor inline works in this process: it takes no workers, no gpus_per_worker, no address"
            )
        gpus = self.gpus_per_worker or 0
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker: Ray gives a part of one GPU or whole ones, got {gpus:g}")
        return self
