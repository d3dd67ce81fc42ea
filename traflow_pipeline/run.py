"""The three stages as one run in one folder or store: each stage is resumed until complete, then skipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from eval.config import EvaluateConfig
from eval.evaluate import evaluate
from eval.on_ray import evaluate_on_ray
from eval.report import files
from eval.results import METRICS, Report
from pipeline.common.config import (
    COMMANDS,
    find_config,
    load_sections,
    merge,
    parse_assignment,
    parse_sections,
    resolved,
    validate,
)
from pipeline.common.errors import BadInput, reason
from pipeline.common.progress import say
from pipeline.dataset.manifest import MANIFEST, read_dataset, read_manifest
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage.store import Location, absolute, is_url, open_store
from traflow_pipeline.settings import follow_recipe
from trainer import preview
from trainer.checkpoints import checkpoint, mirror
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.config import TrainConfig
from trainer.on_ray import train_on_ray
from trainer.train import train

CONFIG = "run.yaml"
StageConfig = GenerateConfig | TrainConfig | EvaluateConfig


class Run(BaseModel):
    """The stages of a config, in order, and the folder or URL of the run, the default place of their outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: Location
    generate: GenerateConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        data, training, evaluation = self.generate, self.train, self.evaluate
        if data and training and training.data is not None and training.data != data.out:
            raise ValueError(f"train.data is {training.data}; wanted {data.out}, where generate writes")
        if training and evaluation and evaluation.checkpoint != _output_of(training):
            raise ValueError(
                f"evaluate.checkpoint is {evaluation.checkpoint}; wanted {_output_of(training)}, train's run"
            )
        return self

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The configuration of each stage, in order."""
        configs = {"generate": self.generate, "train": self.train, "evaluate": self.evaluate}
        return {stage: config for stage, config in configs.items() if config is not None}

    def sections(self) -> dict[str, dict[str, Any]]:
        """The resolved configuration of each stage, as in a YAML file."""
        return {stage: yaml.safe_load(resolved(config, stage))[stage] for stage, config in self.stages.items()}


@dataclass(frozen=True)
class StageStatus:
    """A stage's progress, read from its markers."""

    stage: str
    location: str
    progress: str
    complete: bool
    fault: str = ""  # why the stage cannot be resumed

    def __str__(self) -> str:
        state = self.fault or ("complete" if self.complete else "to do")
        return f"{self.stage:<9} {self.location}: {self.progress}; {state}"

    @property
    def message(self) -> str:
        """What a run says before it starts or skips the stage."""
        return f"{self.stage}: {self.location}, {self.progress}{', complete' if self.complete else ''}"


def open_run(
    source: str, out: str | None, assignments: Sequence[str], address: str | None, anywhere: bool = False
) -> Run:
    """The run of the config `source`, in the folder or URL `out`, by default runs/NAME or as the config says.

    `source` may also be the folder or URL of an existing run. `assignments` are "STAGE.key=value". With `anywhere`,
    paths are absolute, so that processes in other working folders find them.

    Raises:
        BadInput: the config or an assignment is invalid, or the stages do not fit together.
    """
    if is_url(source) or (Path(source) / CONFIG).is_file():
        given, location = read_run(source.rstrip("/")).sections(), source.rstrip("/")
    else:
        given, location = load_sections(source), (out or f"runs/{find_config(source).stem}").rstrip("/")
    sections = merge(given, *map(parse_assignment, assignments))
    location = absolute(location) if anywhere else location
    if unknown := [stage for stage in sections if stage not in COMMANDS]:
        raise BadInput(f"--set {unknown[0]}: wanted a key of a stage: {', '.join(f'{c}.KEY=...' for c in COMMANDS)}")
    locations = {stage: values for stage, values in _locations(location, sections).items() if stage in sections}
    layers = (sections, locations) if out or anywhere else (locations, sections)
    on_cluster = {"generate": {"address": address}} if address and "generate" in sections else {}
    return validate(Run, {"location": location, **follow_recipe(merge(*layers, on_cluster))}, "run")


def _locations(location: str, sections: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The inputs and outputs of each stage inside the run at `location`."""
    data = {"data": f"{location}/data"} if "generate" in sections else {}
    return {
        "generate": {"out": f"{location}/data"},
        "train": {**data, "out": f"{location}/train"},
        "evaluate": {"checkpoint": f"{location}/train", "out": f"{location}/report"},
    }


def read_run(location: str) -> Run:
    """The run at `location`, as it was last started.

    Raises:
        BadInput: there is no run.
    """
    try:
        text = open_store(location).read(CONFIG)
    except OSError as error:
        raise BadInput(
            f"{location}: wanted a run ({reason(error)}: {CONFIG}); run traflow-pipeline run first"
        ) from error
    return validate(Run, {"location": location, **parse_sections(text, f"{location}/{CONFIG}")}, "run")


def save_run(run: Run) -> None:
    """Write the run's configuration, which `read_run` reads.

    Raises:
        BadInput: the run's folder or store cannot be written.
    """
    try:
        open_store(run.location).write(CONFIG, yaml.safe_dump(run.sections(), sort_keys=False).encode())
    except OSError as error:
        raise BadInput(f"{run.location}: cannot be written ({reason(error)})") from error


def run_stages(run: Run, on_cluster: bool, address: str | None, only: str | None = None) -> None:
    """Complete every stage, or only the stage `only`, on a Ray cluster or in this process.

    Raises:
        BadInput, WorkFailed: see the stages; or a stage's inputs have changed since its outputs were made.
    """
    save_run(run)
    for stage in run.stages if only is None else [only]:
        status = resumable_status(run, stage)
        say(status.message)
        # A complete stage still checks that it is what the config asks for, which needs no cluster.
        _run_stage(run.stages[stage], status, on_cluster and not status.complete, address)


def _run_stage(config: StageConfig, status: StageStatus, on_cluster: bool, address: str | None) -> None:
    match config:
        case GenerateConfig():
            generate(config)
        case TrainConfig():
            train_on_ray(config, None, address) if on_cluster else train(config)
        case EvaluateConfig() if not status.complete:
            evaluate_on_ray(config, None, address) if on_cluster else evaluate(config)


def resumable_status(run: Run, stage: str) -> StageStatus:
    """`stage_status` of a stage that can be resumed.

    Raises:
        BadInput: its inputs have changed since its outputs were made, or its outputs cannot be read.
    """
    status = stage_status(run, stage)
    if status.fault:
        raise BadInput(f"{status.location}: {status.fault}")
    return status


def stage_status(run: Run, stage: str) -> StageStatus:
    """The progress of `stage`.

    Raises:
        BadInput: its outputs cannot be read.
    """
    try:
        match run.stages[stage]:
            case GenerateConfig() as config:
                return _data_status(config)
            case TrainConfig() as config:
                return _training_status(config)
            case EvaluateConfig() as config:
                return _report_status(config)
    except OSError as error:
        raise BadInput(f"{run.location}: the status of {stage} cannot be read ({reason(error)})") from error


def _data_status(config: GenerateConfig) -> StageStatus:
    store = open_store(config.out)
    dataset = read_dataset(store)
    if dataset is None:
        return StageStatus("generate", config.out, "not begun", complete=False)
    num_shards = len(dataset.plan.shards(config.n))
    sizes = store.sizes()
    num_made = sum(1 for name in sizes if name.endswith(".tar") and f"{name.removesuffix('.tar')}.json" in sizes)
    complete = num_made >= num_shards and MANIFEST in sizes and read_manifest(store).num_records >= config.n
    progress = f"{min(num_made, num_shards):,} of {num_shards:,} shards, {config.n:,} records"
    # generate itself checks, without a cluster, that the shards are of the configured plan.
    return StageStatus("generate", config.out, progress, complete)


def _training_status(config: TrainConfig) -> StageStatus:
    location, num_steps = _output_of(config), config.trainer.num_steps
    info = _newest_checkpoint(location)
    if info is None:
        return StageStatus("train", location, f"0 of {num_steps:,} steps", complete=False)
    data_sha256 = _data_sha256(config)
    fault = ""
    if data_sha256 is not None and info.data_sha256 != data_sha256:
        fault = (
            f"it was trained on other data than {config.data} holds now (that was {info.data_sha256}, this is "
            f"{data_sha256}): remove it to train again, or choose another folder"
        )
    complete = info.step >= num_steps and (preview.FILE in open_store(location).sizes())
    return StageStatus("train", location, f"{info.step:,} of {num_steps:,} steps", complete and not fault, fault)


def _report_status(config: EvaluateConfig) -> StageStatus:
    location = _output_of(config)
    contents = open_store(location).read_all([METRICS, files.CONFIG])
    if METRICS not in contents:
        return StageStatus("evaluate", location, "no report", complete=False)
    try:
        report = Report.model_validate_json(contents[METRICS])
    except ValidationError:
        return StageStatus("evaluate", location, "a report of another version", complete=False)
    newest = _newest_checkpoint(config.checkpoint)
    is_current = newest is not None and report.training.files == newest.files
    is_same_config = _identity(contents.get(files.CONFIG, b"")) == _identity(resolved(config, "evaluate").encode())
    progress = f"a report of step {report.training.step:,}"
    if not is_same_config:
        progress += ", of another configuration"
    elif not is_current:
        progress += ", which is not the newest checkpoint"
    return StageStatus("evaluate", location, progress, complete=is_current and is_same_config)


def _identity(text: bytes) -> dict[str, Any]:
    """The settings in an evaluation's configuration that decide its figures: all but where it ran and wrote."""
    section = parse_sections(text, files.CONFIG).get("evaluate", {})
    return {key: value for key, value in section.items() if key not in ("out", "mirror", "device")}


def _output_of(config: TrainConfig | EvaluateConfig) -> str:
    return str(config.mirror or config.out)


def _newest_checkpoint(location: str) -> CheckpointInfo | None:
    """The description of the newest readable checkpoint of the training run at `location`, a folder or URL."""
    for name in reversed(mirror.steps(location)):
        contents = open_store(f"{location}/checkpoints/{name}").read_all([checkpoint.INFO])
        if checkpoint.INFO in contents:
            try:
                return CheckpointInfo.model_validate_json(contents[checkpoint.INFO])
            except ValidationError:
                continue
    return None


def _data_sha256(config: TrainConfig) -> str | None:
    """The digest of the data that `config` trains on; None unless it is a complete data set."""
    if config.data is None:
        return None
    store = open_store(config.data)
    return read_manifest(store).sha256 if MANIFEST in store.sizes() else None
