"""The three stages as one run in one folder or store: each stage is resumed until complete, then skipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eval.config import EvaluateConfig
from eval.evaluate import check_evaluate, evaluate
from eval.models import NO_TEACHER
from eval.on_ray import evaluate_on_ray
from eval.report import files
from eval.results import METRICS, Report
from pipeline.common.config import SLURM, expand_home, merge, parse_assignment, parse_sections, resolved, validate
from pipeline.common.errors import BadInput, reason
from pipeline.common.plural import counted
from pipeline.common.progress import say
from pipeline.common.ray_cluster import check_address
from pipeline.dataset.manifest import MANIFEST, read_dataset, read_manifest
from pipeline.dataset.plan import Plan
from pipeline.generation.generate import GenerateConfig, check_generate, generate
from pipeline.generation.parts import Part, generate_part
from pipeline.storage.cache import local_copy_of
from pipeline.storage.output import Output, check_output
from pipeline.storage.store import is_url, open_store
from pipeline.teachers import catalogue
from pipeline.teachers.loading import resolve
from traflow_pipeline.named_code import remember, require_named
from traflow_pipeline.run_settings import (
    CONFIG,
    FORMAT,
    RunSettings,
    existing_run,
    gather,
    map_locations,
    output_of,
    read_sections,
)
from traflow_pipeline.settings import follow_recipe
from trainer.checkpoints import checkpoint, mirror
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.config import TrainConfig
from trainer.on_ray import check_packages, train_on_ray
from trainer.setup import data_change
from trainer.train import check_train, train

INPUTS = {"teacher", "images", "reference", "start", "prompts", "clip"}  # keys of files that a run reads
KEYWORDS = {"digits", "none", "teacher", "scratch"}  # values of these keys that are no paths
StageConfig = GenerateConfig | TrainConfig | EvaluateConfig


class Run(RunSettings):
    """`RunSettings` whose recipe and network are checked too."""

    train: TrainConfig | None = None

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The configuration of each stage, in order."""
        configs = {"generate": self.generate, "train": self.train, "evaluate": self.evaluate}
        return {stage: config for stage, config in configs.items() if config is not None}

    def sections(self) -> dict[str, dict[str, Any]]:
        """The resolved configuration of each stage, and of Slurm if there is one, as in a YAML file."""
        sections = {
            stage: _as_given(yaml.safe_load(resolved(config, stage))[stage]) for stage, config in self.stages.items()
        }
        return sections if self.slurm is None else sections | {SLURM: self.slurm.model_dump(mode="json")}


def _as_given(section: dict[str, Any]) -> dict[str, Any]:
    """The `section` of a stage whose `out` was a URL, with that instead of the copy in this user's cache."""
    mirror = section.get("mirror")
    if mirror is not None and section["out"] == str(local_copy_of(mirror)):
        return section | {"out": mirror, "mirror": None}
    return section


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
    """The run that `gather` describes.

    Raises:
        BadInput: the config or an assignment is invalid, the stages do not fit together, or the run names code that
            this user has not named.
    """
    sections = gather(source, out, assignments, address, anywhere)
    if (location := existing_run(source)) is not None:
        require_named(location, sections, merge(*map(parse_assignment, assignments)))
    remember(sections)
    return validate(Run, follow_recipe(_independent(sections)), "run")


def _independent(sections: Mapping[str, Any]) -> dict[str, Any]:
    """`sections` with absolute paths of the input files that exist, so that any working folder finds them."""
    return {
        stage: {key: _input(key, value) for key, value in values.items()} if isinstance(values, Mapping) else values
        for stage, values in sections.items()
    }


def _input(key: str, value: object) -> object:
    if key not in INPUTS or not isinstance(value, str) or is_url(value) or catalogue.find(value) is not None:
        return value
    path = Path(str(expand_home(value)))
    return str(path.absolute()) if value not in KEYWORDS and path.exists() else value


def read_run(location: str) -> Run:
    """The run at `location`, as it was last started, wherever it lies now.

    Raises:
        BadInput: there is no run.
    """
    return validate(Run, {"location": location, **read_sections(location)}, "run")


def _relative(location: str, path: str) -> str:
    """`path` relative to the run at `location` if it lies inside, else absolute."""
    if path == location:
        return "."
    if path.startswith(f"{location}/"):
        return path.removeprefix(f"{location}/")
    if is_url(path) or is_url(location):
        return path
    inner, outer = Path(path).absolute(), Path(location).absolute()
    return str(inner.relative_to(outer)) if inner.is_relative_to(outer) else str(inner)


def save_run(run: Run) -> None:
    """Write the run's configuration, which `read_run` reads; paths inside the run are relative to it.

    Raises:
        BadInput: the run's folder or store cannot be written, or holds something else.
    """
    store = open_store(run.location)
    try:
        if CONFIG not in store.sizes():
            check_output(store, Output.RUN)
        sections = map_locations(run.sections(), lambda path: _relative(run.location, path))
        store.write(CONFIG, FORMAT + yaml.safe_dump(sections, sort_keys=False).encode())
    except OSError as error:
        raise BadInput(f"{run.location}: cannot be written ({reason(error)})") from error


def run_stages(
    run: Run, on_cluster: bool, address: str | None, only: str | None = None, part: Part | None = None
) -> None:
    """Complete every stage, or only the stage `only`, on a Ray cluster or in this process.

    With `part`, the stage generate is completed together with other parts, see `generate_part`.

    Raises:
        BadInput, WorkFailed: see the stages; or a stage's inputs have changed since its outputs were made.
    """
    check_stages(run, on_cluster, address)
    save_run(run)
    for stage in run.stages if only is None else [only]:
        status = resumable_status(run, stage)
        say(status.message)
        # A complete stage still checks that it is what the config asks for, which needs no cluster.
        _run_stage(run.stages[stage], status, on_cluster and not status.complete, address, part)


def check_stages(run: Run, on_cluster: bool, address: str | None) -> None:
    """Check what every stage needs before the first one works and before anything is written.

    Raises:
        BadInput: a stage cannot be run or resumed, a file, package or cluster that it needs is missing, or its inputs
            have changed since its outputs were made.
    """
    statuses = {stage: resumable_status(run, stage) for stage in run.stages}
    to_do = {stage: config for stage, config in run.stages.items() if not statuses[stage].complete}
    uses_ray = (on_cluster and bool(to_do)) or (run.generate is not None and run.generate.executor == "ray")
    if uses_ray:
        check_address(address or (run.generate.address if run.generate else None))
    if on_cluster and to_do.keys() & {"train", "evaluate"}:
        check_packages()
    plan = None if run.generate is None else check_generate(run.generate)
    if run.train is not None:
        check_train(run.train, plan, _newest_checkpoint(output_of(run.train)))
    if "generate" in to_do and "train" in run.stages:
        _check_growth(run)
    if run.evaluate is not None and "evaluate" in to_do:
        _check_evaluate(run.evaluate, run.generate, plan)


def _check_evaluate(config: EvaluateConfig, generation: GenerateConfig | None, plan: Plan | None) -> None:
    """Raises as `check_evaluate` does, with what `generation` and its `plan` say of the samples, if there are any."""
    if generation is None or plan is None:
        check_evaluate(config, None, None)
        return
    source = resolve(generation.teacher)
    training = source.prompts(generation.prompts, generation.negative_prompt)
    teacher = None if config.teacher == NO_TEACHER else source
    check_evaluate(config, source.shown_shape(plan), generation.out, teacher, training)


def _check_growth(run: Run) -> None:
    """Raises `BadInput` if the data set would grow under a training that has begun on it."""
    assert run.generate is not None
    assert run.train is not None
    existing = read_dataset(open_store(run.generate.out))
    begun = _newest_checkpoint(output_of(run.train))
    if existing is not None and begun is not None and existing.num_records != run.generate.n:
        raise BadInput(
            f"{output_of(run.train)}: it was trained on other data than are asked now ({existing.num_records:,} "
            f"records, {run.generate.n:,} asked): remove it to train again, or choose another folder, there with --set "
            "train.start=RUN to train on"
        )


def _run_stage(
    config: StageConfig, status: StageStatus, on_cluster: bool, address: str | None, part: Part | None
) -> None:
    match config:
        case GenerateConfig() if part is not None:
            generate_part(config, part, steals=True)
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
    progress = f"{min(num_made, num_shards):,} of {num_shards:,} shards, {counted(config.n, 'record')}"
    # generate itself checks, without a cluster, that the shards are of the configured plan.
    return StageStatus("generate", config.out, progress, complete)


def _training_status(config: TrainConfig) -> StageStatus:
    location, num_steps = output_of(config), config.trainer.num_steps
    info = _newest_checkpoint(location)
    if info is None:
        return StageStatus("train", location, f"0 of {num_steps:,} steps", complete=False)
    data_sha256 = _data_sha256(config)
    fault = ""
    if data_sha256 is not None and info.data_sha256 != data_sha256:
        fault = f"{data_change(config, info.data_sha256)}: remove it to train again, or choose another folder"
    complete = info.step >= num_steps and not fault  # `train` still draws samples that a kill left out
    return StageStatus("train", location, f"{info.step:,} of {num_steps:,} steps", complete, fault)


def _report_status(config: EvaluateConfig) -> StageStatus:
    location = output_of(config)
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
    """The settings in an evaluation's configuration that decide its figures: all but where it ran, read and wrote.

    What it read from the run is known by the checkpoint's digests.
    """
    section = _independent(parse_sections(text, files.CONFIG)).get("evaluate", {})
    return {key: value for key, value in section.items() if key not in {"device", "out", "mirror", "checkpoint"}}


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
