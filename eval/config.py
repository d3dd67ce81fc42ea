"""The configuration of `traflow-pipeline evaluate`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from eval.sample_counts import FULL_NUM_SAMPLES, MIN_SAMPLES
from pipeline.common.config import LocalPath, PathText, parse_count
from pipeline.flow.solver_config import Solver
from pipeline.storage.cache import with_mirror
from pipeline.storage.store import Location

Steps = Annotated[int, Field(ge=1)] | Annotated[tuple[float, ...], Field(min_length=2)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda x: tuple(x.split(",")) if isinstance(x, str) else x)]


class EvaluateConfig(BaseModel):
    """The configuration of `traflow-pipeline evaluate`.

    `steps` are the student's: counts of even steps, or lists of times that fall from the start of the flow to its end.
    The student and the teacher's own solver draw `num_samples` samples in each of `num_ranges` ranges of noise, which
    give mean, spread and minimum; the teacher's few-step samplers draw only the first range. The report is
    uploaded to `mirror`, and finished work on it is kept there too. An `out` that is a URL becomes the mirror, and the
    report is built in the user's cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Location
    out: LocalPath
    mirror: Location | None = None
    weights: str = "ema"
    reference: PathText | None = None  # required, except for digits, whose default is the scans
    features: Names | None = None  # of spaces.FEATURES, or module:factory; the first one gives the headline
    require: Names = ()  # the evaluation fails without these metrics
    num_samples: Annotated[int, BeforeValidator(parse_count), Field(ge=MIN_SAMPLES)] = FULL_NUM_SAMPLES
    num_ranges: int = Field(default=3, ge=1)
    steps: tuple[Steps, ...] = (1, 2, 4, 8)
    teacher: PathText | None = None  # where it is now, by default where it was in training; "none": without it
    teacher_solver: Solver = Solver()
    baselines: Names = (
        "euler",
        "midpoint",
        "heun",
    )  # the teacher's few-step samplers; or ddim, dpm-2, ..., a predictor
    baseline_grids: tuple[Literal["even", "edm"], ...] = ("even",)  # their times: even ones, and EDM's
    baseline_evaluations: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # by default the student's
    data: PathText | None = None  # trajectories to compare with, by default the training's
    num_trajectories: int = Field(default=2048, ge=1)
    lpips: Literal["auto", "none", "squeeze", "alex", "vgg"] = "auto"  # auto: alex, or none for images below 32 pixels
    precision: Literal["fp32", "tf32", "bf16"] = (
        "fp32"  # of the samplers' networks; features and distances are computed in fp32 or better
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=256, ge=1)
    device: str = "auto"

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Of each of the teacher's few-step samplers."""
        if self.baseline_evaluations is not None:
            return self.baseline_evaluations
        return tuple(dict.fromkeys(steps if isinstance(steps, int) else len(steps) - 1 for steps in self.steps))

    @model_validator(mode="before")
    @classmethod
    def _mirror(cls, values: Any) -> Any:
        return with_mirror(values)
