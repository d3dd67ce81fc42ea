"""The three stages as one plan in one place: each goes on until it is complete, and is passed over when it is."""

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
from trainer import preview
from trainer.checkpoints import checkpoint, mirror
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.config import TrainConfig
from trainer.on_ray import train_on_ray
from trainer.train import train

CONFIG = "run.yaml"


class Run(BaseModel):
    """The stages of a config, in their order, and the place where they lie unless the config says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Location
    generate: GenerateConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        made, read = self.generate, self.train
        if made and read and read.data is not None and read.data != made.out:
            raise ValueError(f"train.data is {read.data}; wanted {made.out}, where generate writes")
        if read and self.evaluate and self.evaluate.checkpoint != _location(read):
            raise ValueError(
                f"evaluate.checkpoint is {self.evaluate.checkpoint}; wanted {_location(read)}, train's run"
            )
        return self

    @property
    def stages(self) -> list[str]:
        return [stage for stage in COMMANDS if getattr(self, stage) is not None]

    def sections(self) -> dict[str, dict[str, Any]]:
        """The resolved configuration of each stage."""
        return {stage: yaml.safe_load(resolved(getattr(self, stage), stage))[stage] for stage in self.stages}


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands, by its markers alone."""

    stage: str
    location: str
    progress: str
    complete: bool
    fault: str = ""  # why it cannot go on as it is

    def __str__(self) -> str:
        state = self.fault or ("complete" if self.complete else "to do")
        return f"{self.stage:<9} {self.location}: {self.progress}; {state}"


def open_run(
    source: str, out: str | None, assignments: Sequence[str], address: str | None, anywhere: bool = False
) -> Run:
    """The run of the config `source`, in the folder or URL `out`, by default runs/NAME or where the config says.

    `source` may also be the place of a run that was started before. `assignments` are "STAGE.key=value". `anywhere`
    names places so that processes in other working folders find them.

    Raises:
        BadInput: the config, or an assignment, is none of these stages', or they do not fit together.
    """
    if is_url(source) or (Path(source) / CONFIG).is_file():
        given, place = read_run(source.rstrip("/")).sections(), source.rstrip("/")
    else:
        given, place = load_sections(source), (out or f"runs/{find_config(source).stem}").rstrip("/")
    sections = merge(given, *map(parse_assignment, assignments))
    place = absolute(place) if anywhere else place
    if unknown := [stage for stage in sections if stage not in COMMANDS]:
        raise BadInput(f"--set {unknown[0]}: wanted a key of a stage: {', '.join(f'{c}.KEY=...' for c in COMMANDS)}")
    places = {stage: values for stage, values in _places(place, sections).items() if stage in sections}
    layers = (sections, places) if out or anywhere else (places, sections)
    on_cluster = {"generate": {"address": address}} if address and "generate" in sections else {}
    return validate(Run, {"place": place, **merge(*layers, on_cluster)}, "run")


def _places(place: str, sections: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Where each stage reads and writes in `place`."""
    data = {"data": f"{place}/data"} if "generate" in sections else {}
    return {
        "generate": {"out": f"{place}/data"},
        "train": {**data, "out": f"{place}/train"},
        "evaluate": {"checkpoint": f"{place}/train", "out": f"{place}/report"},
    }


def read_run(place: str) -> Run:
    """The run whose stages lie in `place`, as it was last started.

    Raises:
        BadInput: there is none.
    """
    try:
        text = open_store(place).read(CONFIG)
    except OSError as error:
        raise BadInput(f"{place}: wanted a run ({reason(error)}: {CONFIG}); run traflow-pipeline run first") from error
    return validate(Run, {"place": place, **parse_sections(text, f"{place}/{CONFIG}")}, "run")


def run(plan: Run, on_cluster: bool, address: str | None, only: str | None = None) -> None:
    """Bring every stage to its end, or the stage `only`; on a Ray cluster or here.

    Raises:
        BadInput, WorkFailed: see the stages; a stage whose inputs have changed since is refused.
    """
    write_down(plan)
    for stage in plan.stages if only is None else [only]:
        standing = stage_status(plan, stage)
        if standing.fault:
            raise BadInput(f"{standing.location}: {standing.fault}")
        say(f"{stage}: {standing.location}, {standing.progress}{', complete' if standing.complete else ''}")
        # What is complete still says whether it is what the config asks for, and needs no cluster for that.
        _work(plan, stage, on_cluster and not standing.complete, address)


def _work(plan: Run, stage: str, on_cluster: bool, address: str | None) -> None:
    if stage == "generate" and plan.generate is not None:
        generate(plan.generate)
    elif stage == "train" and plan.train is not None:
        train_on_ray(plan.train, None, address) if on_cluster else train(plan.train)
    elif stage == "evaluate" and plan.evaluate is not None and not stage_status(plan, stage).complete:
        evaluate_on_ray(plan.evaluate, None, address) if on_cluster else evaluate(plan.evaluate)


def write_down(plan: Run) -> None:
    """Write what `status` and a later run read.

    Raises:
        BadInput: the place cannot be written.
    """
    try:
        open_store(plan.place).write(CONFIG, yaml.safe_dump(plan.sections(), sort_keys=False).encode())
    except OSError as error:
        raise BadInput(f"{plan.place}: cannot be written ({reason(error)})") from error


def stage_status(plan: Run, stage: str) -> StageStatus:
    """Where `stage` stands.

    Raises:
        BadInput: its place cannot be read.
    """
    looks = {"generate": _look_at_data, "train": _look_at_training, "evaluate": _look_at_report}
    try:
        return looks[stage](plan)
    except OSError as error:
        raise BadInput(f"{plan.place}: {stage} cannot be looked at ({reason(error)})") from error


def _look_at_data(plan: Run) -> StageStatus:
    config = plan.generate
    assert config is not None
    store = open_store(config.out)
    found = read_dataset(store)
    if found is None:
        return StageStatus("generate", config.out, "not begun", complete=False)
    num_shards = len(found.plan.shards(config.n))
    sizes = store.sizes()
    made = sum(1 for name in sizes if name.endswith(".tar") and f"{name.removesuffix('.tar')}.json" in sizes)
    whole = made >= num_shards and MANIFEST in sizes and read_manifest(store).num_records >= config.n
    progress = f"{min(made, num_shards):,} of {num_shards:,} shards, {config.n:,} records"
    # Whether they are of this plan generate says itself, for which it needs no cluster.
    return StageStatus("generate", config.out, progress, complete=whole)


def _look_at_training(plan: Run) -> StageStatus:
    config = plan.train
    assert config is not None
    location, num_steps = _location(config), config.trainer.num_steps
    info = _newest(location)
    if info is None:
        return StageStatus("train", location, f"0 of {num_steps:,} steps", complete=False)
    data = _data_sha256(plan)
    fault = ""
    if data is not None and info.data_sha256 != data:
        fault = (
            f"it was trained on other data than there is now in {config.data} (that was {info.data_sha256}, this is "
            f"{data}): remove it to train again, or choose another place"
        )
    complete = info.step >= num_steps and (preview.FILE in open_store(location).sizes())
    return StageStatus("train", location, f"{info.step:,} of {num_steps:,} steps", complete and not fault, fault)


def _look_at_report(plan: Run) -> StageStatus:
    config = plan.evaluate
    assert config is not None
    location = str(config.mirror or config.out)
    found = open_store(location).read_all([METRICS, files.CONFIG])
    if METRICS not in found:
        return StageStatus("evaluate", location, "no report", complete=False)
    try:
        report = Report.model_validate_json(found[METRICS])
    except ValidationError:
        return StageStatus("evaluate", location, "a report of another version", complete=False)
    newest = _newest(config.checkpoint)
    is_current = newest is not None and report.training.get("files") == newest.files
    is_asked = _identity(found.get(files.CONFIG, b"")) == _identity(resolved(config, "evaluate").encode())
    progress = f"a report of step {report.training['step']:,}"
    if not is_asked:
        progress += ", of another configuration"
    elif not is_current:
        progress += ", which is not the newest checkpoint"
    return StageStatus("evaluate", location, progress, complete=is_current and is_asked)


def _identity(text: bytes) -> dict[str, Any]:
    """What decides the figures of an evaluation that ran with `text`: all but where it ran, and wrote."""
    section = parse_sections(text, files.CONFIG).get("evaluate", {})
    return {key: value for key, value in section.items() if key not in ("out", "mirror", "device")}


def _location(config: TrainConfig) -> str:
    return str(config.mirror or config.out)


def _newest(location: str) -> CheckpointInfo | None:
    """The description of the newest whole checkpoint of the run at `location`, a folder or URL."""
    for name in reversed(mirror.steps(location)):
        found = open_store(f"{location}/checkpoints/{name}").read_all([checkpoint.INFO])
        if checkpoint.INFO in found:
            try:
                return CheckpointInfo.model_validate_json(found[checkpoint.INFO])
            except ValidationError:
                continue
    return None


def _data_sha256(plan: Run) -> str | None:
    """The digest of the data that `plan` trains on, where they are all there."""
    if plan.train is None or plan.train.data is None:
        return None
    store = open_store(plan.train.data)
    return read_manifest(store).sha256 if MANIFEST in store.sizes() else None
