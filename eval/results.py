"""The results of an evaluation: the content of metrics.json, from which every table and page is made."""

import statistics
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from eval.sample_counts import FULL_NUM_SAMPLES as FULL_NUM_SAMPLES
from pipeline.common.environment import Environment
from pipeline.common.errors import BadInput
from pipeline.common.image_grid import is_drawable
from pipeline.storage.store import open_store
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.export.card import short_name

METRICS = "metrics.json"
STAGE = "report"  # the evaluation inside a whole run
LARGEST = 1e100  # of a figure that is read: tables and charts square and scale them


class _Record(BaseModel):
    # Not "forbid": computed fields are written too, and ignored when read.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figure(_Record):
    """The values of a metric, one for each range of noise."""

    values: tuple[float, ...] = Field(min_length=1)  # in the order of the ranges

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> float:
        """Over the ranges."""
        return statistics.fmean(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spread(self) -> float | None:
        """Unbiased standard deviation over the ranges; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def minimum(self) -> float:
        """What EDM and its successors report."""
        return min(self.values)


class Metric(_Record):
    """A column: its key in `Row.scores`, its heading, and the feature space it is measured in."""

    key: str  # "fid", "kid-tf", "precision-digits", ...
    heading: str  # of the column
    space: str  # the name of a Space
    lower_is_better: bool  # as of a distance; of a precision or a recall more is


class Space(_Record):
    """The features in which sets of images are compared."""

    name: str  # as --features takes it
    title: str  # for people
    resizer: str  # from the sample's size to the network's
    sha256: str  # of the network's weights


class Reference(_Record):
    """The images or statistics that samples are compared with."""

    source: str  # as configured
    title: str  # for people
    num_images: int | None  # None if the statistics do not say
    shape: tuple[int, ...] | None  # [C, H, W], likewise
    sha256: str  # of the images' bytes, or of the file of statistics


class PromptSet(_Record):
    """The held-out prompts that samples are drawn from, in turn."""

    source: str  # the file, as configured
    num_prompts: int  # in the file
    sha256: str  # of the file
    shown: tuple[str, ...]  # the first ones, of the pictures


class NotComputed(_Record):
    """Metrics that could not be computed, with the reason and what to do."""

    metrics: tuple[str, ...]  # their keys
    reason: str  # and what to do


Group = Literal["solver", "few-step", "student", "reference"]
TITLES: dict[str, str] = {
    "solver": "teacher's solver",
    "few-step": "teacher",
    "student": "student",
    "reference": "reference",
}


def row_title(group: str, sampler: str) -> str:
    """What pictures of a sampler are called: unique in a report, where the solver may be a few-step sampler too."""
    return f"{TITLES[group]}, {sampler}"


class Row(_Record):
    """One sampler's figures."""

    model: Literal["teacher", "student", "reference"]  # whose samples; in metrics.json the reference has no row
    sampler: str  # such as "euler 4" or "2 steps"
    group: Group  # few-step: the teacher's, of few evaluations
    nfe: float  # counted network evaluations per sample; a mean, if the solver adapts
    scores: dict[str, Figure]  # by Metric.key
    rmse: float | None = None  # to the teacher's own solution from the same noise, where the data's range is [-1, 1]
    latent_rmse: float | None = Field(default=None, exclude_if=lambda value: value is None)  # in units of the latents
    lpips: float | None = None  # to the same, over the same samples
    images_per_second: float  # drawn on this machine
    is_finite: bool = True  # whether all samples are; if not, there are no figures
    best: bool = False  # whether it is the teacher's best few-step sampler at this nfe

    @property
    def title(self) -> str:
        return row_title(self.group, self.sampler)

    @property
    def values(self) -> list[float]:
        """Every number of the row."""
        figures = [value for figure in self.scores.values() for value in figure.values]
        others = (self.nfe, self.images_per_second, self.rmse, self.latent_rmse, self.lpips)
        return [*figures, *(value for value in others if value is not None)]


class Cost(_Record):
    """The cost of one evaluation of a network; FLOPs and multiply-adds (MACs) are for one sample."""

    parameters: int  # of the network
    flops: int  # of its matrix products and convolutions
    macs: int  # half of them
    latency_ms: float  # of one evaluation at batch 1, median
    peak_memory_bytes: int | None  # of one evaluation at the configured batch size; None on a CPU


class Grid(_Record):
    """Values over pairs of times t > s: `values[i][j]` at t = times[i], s = times[j], None where t <= s."""

    times: tuple[float, ...]  # from noise to data
    values: tuple[tuple[float | None, ...], ...]  # a row for each t


class Line(_Record):
    """Values over time, or over steps."""

    name: str  # such as "loss" or "images_per_second"
    x: tuple[float, ...]  # times or steps
    y: tuple[float, ...]  # the values there


class TrajectoryFit(_Record):
    """How well a student fits stored trajectories of its teacher. Errors are RMS, where the data's range is [-1, 1]."""

    data: str  # the data set, as configured
    data_sha256: str  # its digest
    seen_in_training: bool  # whether the student was trained on them
    num_records: int  # that were compared
    endpoint_rmse: float  # G(x_1, 1, 0) to the stored sample
    state_rmse: Grid  # G(x_t, t, s) to the stored x_s
    consistency_gap: Grid  # G(x_t, t, 0) to G(G(x_t, t, s), s, 0)
    velocity_rmse: Line | None  # F(x_t, t, t) to the stored velocity; None if none are stored
    student_straightness: float  # see pipeline.flow.path.straightness, of the student's own many-step path
    teacher_straightness: float | None  # likewise, of the stored paths; None without velocities


class Generation(_Record):
    """What the trajectories of a training are, and what they took."""

    num_records: int  # trajectories
    num_states: int  # stored between noise and sample
    solver: str  # and its tolerance or steps
    nfe: float  # solver evaluations per sample, a mean
    device_hours: float  # of all workers together
    machines: tuple[str, ...]  # with torch and its threads, of every kind that made shards


class Work(_Record):
    """What a stage took, and where it worked."""

    hours: float | None  # wall-clock, without interruptions
    num_devices: int  # processes, each with a GPU or some threads
    environment: Environment | None

    @property
    def device_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.num_devices


class ScoredCheckpoint(_Record):
    """The student's rows after `step` steps of training, over the first range of noise and by the headline alone."""

    step: int  # of the training
    rows: tuple[Row, ...]


class EvaluatedCheckpoint(CheckpointInfo):
    """The checkpoint's description, and the name of the weights that were evaluated."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights: str  # such as "ema"


class Report(_Record):
    """Everything that tables and pages show."""

    format: Literal[2] = 2  # of this file
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]  # the columns, the headline first
    spaces: tuple[Space, ...]
    shape: tuple[int, ...] | None = None  # of a sample; None in older reports, which are of images
    reference: Reference
    reference_scores: dict[str, Figure] = Field(
        default={},
        exclude_if=lambda scores: not scores,
        description="By Metric.key: random parts of the reference, as many as a row has samples, against others "
        "of it; what perfect samples would have.",
    )
    prompts: PromptSet | None = Field(default=None, exclude_if=lambda prompts: prompts is None)
    not_computed: tuple[NotComputed, ...] = ()
    warnings: tuple[str, ...] = ()  # what a reader should know before comparing
    num_samples: int  # of each row and range
    num_ranges: int  # of noise; range r has the indices from r * num_samples
    seed: int  # of the noise
    quantiser: str  # how samples become bytes
    precision: str | None = None  # of the samplers' networks; None in reports that did not fix it
    cost: dict[str, Cost]  # "teacher", "student"
    trajectories: TrajectoryFit | None = None
    curves: tuple[Line, ...] = ()  # of the training, over its steps
    other_checkpoints: tuple[ScoredCheckpoint, ...] = ()  # of the same training, where they were asked for
    checkpoint: str  # the folder that was evaluated
    training: EvaluatedCheckpoint
    teacher_name: str | None = Field(default=None, exclude_if=lambda name: name is None)  # as it calls itself
    command: str  # runs this evaluation again
    versions: dict[str, str]  # of the packages that decide figures
    machine: str  # of the evaluation
    date: str  # of the evaluation
    generation: Generation | None = None  # None if the data set is not here, as in older reports
    training_work: Work | None = None
    evaluation_work: Work | None = None

    @property
    def title(self) -> str:
        """What was evaluated, in a few words."""
        recipe = self.training.recipe
        if self.training.trains == "teacher":
            return f"A teacher, recipe “{recipe}”"
        return f"A student of “{self.teacher}”, recipe “{recipe}”"

    @property
    def teacher(self) -> str:
        """The name of the student's teacher, or the last part of what loads it."""
        return short_name(self.teacher_name or self.training.teacher)

    @property
    def headline(self) -> Metric:
        """The metric of charts and comparisons."""
        return self.metrics[0]

    @property
    def noun(self) -> str:
        """What samples are: latents are compared as the images that they decode to."""
        are_images = self.shape is None or is_drawable(self.shape) or is_drawable(self.reference.shape or ())
        return "images" if are_images else "samples"

    @property
    def has_few_samples(self) -> bool:
        """Whether its figures are over fewer samples than published ones are."""
        return self.num_samples < FULL_NUM_SAMPLES

    def rows_of(self, group: str) -> list[Row]:
        """The rows of `group`, in order."""
        return [row for row in self.rows if row.group == group]

    def value(self, row: Row) -> float | None:
        """The headline's mean in `row`."""
        figure = row.scores.get(self.headline.key)
        return None if figure is None else figure.mean


def read_report(location: Path | str) -> Report:
    """The report at `location`, the folder or URL of an evaluation, or its metrics.json.

    Raises:
        BadInput: there is no report, or this version cannot read it.
    """
    try:
        report = Report.model_validate_json(open_store(str(location).removesuffix(f"/{METRICS}")).read(METRICS))
    except (OSError, ValidationError) as error:
        raise BadInput(f"{location}: wanted the {METRICS} of an evaluation; run traflow-pipeline evaluate") from error
    if not all(abs(value) < LARGEST for row in report.rows for value in row.values):
        raise BadInput(f"{location}: {METRICS} holds a figure that is no finite number; run traflow-pipeline evaluate")
    return report


def find_report(location: str) -> str:
    """The report at `location`, or of the whole run there."""
    whole_run = f"{location.rstrip('/')}/{STAGE}"
    return whole_run if METRICS in open_store(whole_run).sizes() else location
