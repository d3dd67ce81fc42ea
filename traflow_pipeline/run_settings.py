"""The settings of a run, gathered from its config, flags and assignments, and checked without torch, at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from eval.config import EvaluateConfig
from pipeline.common.config import (
    COMMANDS,
    SLURM,
    expand_home,
    find_config,
    load_sections,
    merge,
    name_of_config,
    parse_assignment,
    parse_sections,
    validate,
)
from pipeline.common.errors import BadInput, reason
from pipeline.common.suggestions import suggest
from pipeline.generation.config import GenerateConfig
from pipeline.storage.store import Location, absence, absolute, is_url, open_store
from traflow_pipeline.slurm_config import SlurmConfig
from trainer.settings import TrainSettings

CONFIG = "run.yaml"
FORMAT = b"format: 2\n"  # paths inside the run are relative to it
INSIDE = {"out", "data", "checkpoint", "mirror"}  # keys of locations that may lie inside the run


class RunSettings(BaseModel):
    """The stages of a config, in order, and the folder or URL of the run, the default place of their outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: Location
    generate: GenerateConfig | None = None
    train: TrainSettings | None = None
    evaluate: EvaluateConfig | None = None
    slurm: SlurmConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        data, training, evaluation = self.generate, self.train, self.evaluate
        if data and training and training.data is not None and training.data != data.out:
            raise ValueError(f"train.data is {training.data}; wanted {data.out}, where generate writes")
        if training and evaluation and evaluation.checkpoint != output_of(training):
            raise ValueError(
                f"evaluate.checkpoint is {evaluation.checkpoint}; wanted {output_of(training)}, train's run"
            )
        return self


def output_of(config: TrainSettings | EvaluateConfig) -> str:
    """Where the stage's output lies for others: its mirror if it has one."""
    return str(config.mirror or config.out)


def check_settings(source: str, out: str | None, assignments: Sequence[str], address: str | None) -> None:
    """Check what `gather` describes as far as that takes no torch.

    Raises:
        BadInput: the config or an assignment is invalid, or the stages do not fit together.
    """
    validate(RunSettings, gather(source, out, assignments, address), "run")


def gather(
    source: str, out: str | None, assignments: Sequence[str], address: str | None, anywhere: bool = False
) -> dict[str, Any]:
    """The settings of the run of the config `source`, in the folder or URL `out`, by default runs/NAME.

    `source` may also be the folder or URL of an existing run. `assignments` are "STAGE.key=value". With `anywhere`,
    paths are absolute, so that processes in other working folders find them.

    Raises:
        BadInput: there is no such config or run, or an assignment is none or of no stage.
    """
    location = existing_run(source)
    if location is not None:
        given = read_sections(location)
    else:
        given = load_sections(source)
        location = str(expand_home((out or f"runs/{name_of_config(find_config(source))}").rstrip("/")))
    sections = merge(given, *map(parse_assignment, assignments))
    location = absolute(location) if anywhere else location
    if unknown := [stage for stage in sections if stage not in (*COMMANDS, SLURM)]:
        wanted = ", ".join(f"{command}.KEY=..." for command in COMMANDS)
        raise BadInput(f"--set {unknown[0]}: wanted a key of a stage: {wanted}{suggest(unknown[0], COMMANDS)}")
    locations = {stage: values for stage, values in _locations(location, sections).items() if stage in sections}
    layers = (sections, locations) if out or anywhere else (locations, sections)
    on_cluster = {"generate": {"address": address}} if address and "generate" in sections else {}
    return {"location": location, **merge(*layers, on_cluster)}


def existing_run(source: str) -> str | None:
    """The folder or URL of the run that `source` names; None if it names a config."""
    if is_url(source) or (Path(source).expanduser() / CONFIG).is_file():
        return str(expand_home(source.rstrip("/") or "/"))
    return None


def _locations(location: str, sections: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The inputs and outputs of each stage inside the run at `location`."""
    data, training, report = (join(location, name) for name in ("data", "train", "report"))
    return {
        "generate": {"out": data},
        "train": {"out": training} | ({"data": data} if "generate" in sections else {}),
        "evaluate": {"checkpoint": training, "out": report},
    }


def read_sections(location: str) -> dict[str, dict[str, Any]]:
    """The sections of the run at `location`, as it was last started, with the paths that they have now.

    Raises:
        BadInput: there is no run.
    """
    store = open_store(location)
    try:
        text = store.read(CONFIG)
    except OSError as error:
        found = absence(store, CONFIG) if isinstance(error, FileNotFoundError) else f"{reason(error)}: {CONFIG}"
        raise BadInput(f"{location}: wanted a run; {found}; run traflow-pipeline run first") from error
    sections = parse_sections(text.removeprefix(FORMAT), f"{location}/{CONFIG}")
    if text.startswith(FORMAT):  # before it, paths were relative to the working folder
        sections = map_locations(sections, lambda path: join(location, path))
    return sections


def map_locations(sections: Mapping[str, Mapping[str, Any]], change: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """`sections`, with the paths that may lie inside the run changed."""
    return {
        stage: {key: change(value) if key in INSIDE and value else value for key, value in values.items()}
        for stage, values in sections.items()
    }


def join(location: str, path: str) -> str:
    """The `path` of a run's file, relative to the run at `location` unless it is absolute or a URL."""
    if is_url(path) or Path(path).is_absolute():
        return path
    if is_url(location):
        return location if path == "." else f"{location}/{path}"
    return str(Path(location) / path)
