"""What `traflow-pipeline generate` takes. Nothing here needs torch, so that a configuration is checked at once."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.config import Count, PathText, Unit, split_list
from pipeline.flow.solver_config import Precision, Solver
from pipeline.storage.store import Location

Compile = Literal["auto", "graphs"] | bool


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
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: ClassVar = {
        "teacher": "What is generated",
        "states": "What is stored",
        "solver": "Accuracy",
        "dtype": "Files",
        "workers": "Where it runs",
    }

    teacher: PathText = Field(description="Name that `teachers` lists, path, diffusers:PATH or module:factory.")
    n: Annotated[Count, Unit("trajectories")] = Field(
        ge=1, description="Number of trajectories, such as 4096, 16k or 1M; a larger number extends the data set."
    )
    out: Location = Field(description="Folder or URL of the data set; an existing one of the same plan is resumed.")
    guidance_scale: float = Field(default=1.0, ge=0, description="Scale of classifier-free guidance; 1 means none.")
    classes: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None, BeforeValidator(split_list), AfterValidator(_increasing)
    ] = Field(default=None, description="Classes to draw labels from; by default those that were trained, else all.")
    prompts: PathText | None = Field(
        default=None, description="File of prompts for a diffusers pipeline: .txt with one a line, or .jsonl."
    )
    negative_prompt: str | None = Field(
        default=None, description="Prompt that guidance leads away from; by default the pipeline's own."
    )
    size: Annotated[PictureSize | None, Unit("pixels")] = Field(
        default=None, description="Height and width of a diffusers pipeline's pictures; by default its own."
    )
    shift: float | None = Field(
        default=None, gt=0, description="Shift of the times towards the noise; by default the pipeline's own, else 1."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of noise, labels and jittered times.")
    states: int = Field(
        default=8, ge=0, description="Number of states to store on each trajectory, between noise and sample."
    )
    velocities: bool = Field(
        default=True,
        description="Store the teacher's velocity at each state; a config that leaves the key out, beside a train "
        "section, stores them only if the recipe needs them.",
    )
    solver: Solver = Field(default=Solver(), description="Solver of the teacher's ODE; a name alone is enough.")
    precision: Precision = Field(default="fp32", description="Precision of the teacher's matrix products.")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="Type in which states are stored.")
    shard_size: Annotated[Count, Unit("trajectories")] = Field(default=1024, ge=1, description="Length of a shard.")
    batch_size: Annotated[Count, Unit("trajectories")] = Field(
        default=256, ge=1, description="Size of an integration batch, in which an adaptive solver takes common steps."
    )
    block_size: Annotated[Count, Unit("trajectories")] = Field(
        default=64, ge=1, description="Length of a block, the part of a shard that a reader fetches at once."
    )
    workers: int | None = Field(
        default=None, ge=1, description="Number of Ray actors; by default one per GPU, or one per CPU without GPUs."
    )
    gpus_per_worker: float | None = Field(
        default=None, ge=0, description="GPUs of each actor: 0.25 puts four on one GPU, 0 uses CPUs only."
    )
    executor: Literal["ray", "inline"] = Field(
        default="ray", description="Work on Ray actors, or inline: in this process."
    )
    address: str | None = Field(
        default=None, description="Address of a running Ray cluster; by default RAY_ADDRESS, else a local one."
    )
    compile: Compile = Field(
        default="auto", description="Compile the teacher; auto does so for a large network on a GPU."
    )

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
