"""The configuration of `traflow-pipeline evaluate`."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from eval.sample_counts import FULL_NUM_SAMPLES, MIN_SAMPLES
from pipeline.common.config import Count, LocalPath, PathText, Unit, split_list
from pipeline.flow.solver_config import Solver
from pipeline.storage.cache import with_mirror
from pipeline.storage.store import Location

Steps = Annotated[int, Field(ge=1)] | Annotated[tuple[float, ...], Field(min_length=2)]


Checkpoints = Annotated[
    Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(lambda x: x if x == "all" else split_list(x)),
]
Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]


class EvaluateConfig(BaseModel):
    """The configuration of `traflow-pipeline evaluate`.

    The student and the teacher's own solver draw `num_samples` samples in each of `num_ranges` ranges of noise, which
    give mean, spread and minimum; the teacher's few-step samplers draw only the first range. `prompts` is a file of
    prompts that the training has not seen, for a pipeline of diffusers: they take turns, and by default there is a
    sample of each. `clip` names the model of the CLIP score, a folder or a name in the Hub's cache. The report is
    uploaded to `mirror`, and finished work on it is kept there too. An `out` that is a URL becomes the mirror, and the
    report is built in the user's cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: ClassVar = {
        "checkpoint": "What is evaluated",
        "reference": "Metrics",
        "num_samples": "Samples",
        "teacher": "Teacher and its few-step samplers",
        "data": "Trajectories",
        "precision": "Where it runs",
    }

    checkpoint: Location = Field(description="Checkpoint, or the folder or URL of a training run.")
    out: LocalPath = Field(description="Folder or URL of the report.")
    mirror: Location | None = Field(
        default=None, description="Folder or URL that gets a copy of the report and of finished work on it."
    )
    weights: str = Field(default="ema", description="Weights of the checkpoint: ema, network, or another average.")
    checkpoints: Checkpoints = Field(
        default=(),
        description="Other checkpoints of the run to score the student of, by step, or all: distance by training step.",
    )
    reference: PathText | None = Field(
        default=None,
        description="Reference: digits, images or arrays (folder, .zip, .npz, .npy), a data set, statistics (.npz), or "
        "teacher. Only digits and prompts have a default: the scans, and teacher.",
    )
    features: Names | None = Field(
        default=None,
        description="Feature spaces: inception, inception-tf, dinov2, digits, values (of points and other arrays), "
        "FILE.safetensors, module:factory, ...; the first one's distance heads the report.",
    )
    require: Names = Field(default=(), description="Metrics without which the evaluation fails: fid, kid, lpips, ...")
    # Of prompts; left out where there are none, so that older configurations stay the same.
    prompts: PathText | None = Field(
        default=None,
        exclude_if=lambda path: path is None,
        description="File of prompts that the training has not seen, .txt or .jsonl, for a pipeline of diffusers.",
    )
    clip: PathText | None = Field(
        default=None,
        exclude_if=lambda source: source is None,
        description="Model of the CLIP score: a folder of transformers' CLIPModel, or a name in the Hub's cache.",
    )
    num_samples: Annotated[Annotated[Count, Field(ge=MIN_SAMPLES)] | None, Unit("samples")] = Field(
        default=None,
        description="Number of samples of each row and range: 4096, 50k; by default 50k, or one of each prompt.",
    )
    num_ranges: int = Field(
        default=3, ge=1, description="Number of ranges of noise, whose figures give mean, spread and minimum."
    )
    steps: Annotated[tuple[Steps, ...], BeforeValidator(split_list)] = Field(
        default=(1, 2, 4, 8),
        description="The student's samplers: each a number of steps, spaced as its recipe says, or a list of times "
        "from the flow's start to its end.",
    )
    teacher: PathText | None = Field(
        default=None, description="The teacher, by default where it was in training; none: evaluate without it."
    )
    teacher_solver: Solver = Field(default=Solver(), description="The teacher's own solver; a name alone is enough.")
    baselines: Names = Field(
        default=("euler", "midpoint", "heun"),
        description="The teacher's few-step samplers: euler, midpoint, heun, ddim, dpm-2, dpm-fast; with diffusers "
        "dpm++, unipc, deis, 3-deis; or files of predictors for AMED-Solver.",
    )
    baseline_grids: tuple[Literal["even", "edm", "own"], ...] = Field(
        default=("even",), description="Their times: even ones, EDM's, or own, those of a shifted teacher."
    )
    baseline_evaluations: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="Their numbers of evaluations; by default the student's."
    )
    data: PathText | None = Field(
        default=None, description="Data set of trajectories to compare with; by default the training's."
    )
    num_trajectories: Annotated[Count, Unit("trajectories")] = Field(
        default=2048, ge=1, description="Number of these trajectories."
    )
    lpips: Literal["auto", "none", "squeeze", "alex", "vgg"] = Field(
        default="auto", description="Backbone of LPIPS; auto is alex, or none for images below 32 pixels."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32",
        description="Precision of the samplers' networks; features and distances take fp32 or better.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the evaluation's noise.")
    batch_size: Annotated[Count, Unit("samples")] = Field(
        default=256, ge=1, description="Size of a batch of samples, in which an adaptive solver takes common steps."
    )
    device: str = Field(default="auto", description="Device: auto, cpu, cuda, cuda:1, ...")

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Of each of the teacher's few-step samplers."""
        if self.baseline_evaluations is not None:
            return self.baseline_evaluations
        return tuple(dict.fromkeys(steps if isinstance(steps, int) else len(steps) - 1 for steps in self.steps))

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        values = with_mirror(values)
        if isinstance(values, dict) and values.get("prompts") is None and values.get("num_samples") is None:
            return values | {"num_samples": FULL_NUM_SAMPLES}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.clip is not None and self.prompts is None:
            raise ValueError("clip: its score is of pictures and their prompts: wanted prompts too")
        return self
