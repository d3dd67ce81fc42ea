"""Configurations: a YAML file with a section per command, overridden by flags and --set, validated by one model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from pipeline.common.errors import BadInput
from pipeline.common.faults import MAX_SHOWN, explain
from pipeline.common.module_files import name_instead
from pipeline.common.plural import parse_count
from pipeline.common.safe_yaml import parse_yaml, read_text
from pipeline.common.suggestions import suggest

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = ("generate", "train", "evaluate")
LABELS = ("name", "family", "loss")  # keys by which a mapping is told from others
MAX_SHOWN_FIELDS = 8  # that differ, in one message
SLURM = "slurm"  # the section on where the commands run

Model = TypeVar("Model", bound=BaseModel)


def expand_home(value: object) -> object:
    """`value`, or for a path that begins with "~" the path in the home folder; a Path in a field of text is its text.

    Raises:
        ValueError: there is no such user, or it is a function, whose name is wanted.
    """
    if callable(value):
        raise ValueError(name_instead(value))
    if not isinstance(value, str | Path):
        return value
    try:
        return str(Path(value).expanduser()) if str(value).startswith("~") else str(value)
    except RuntimeError as error:
        raise ValueError(f"wanted a path; {error}") from error


def _not_empty(path: object) -> object:
    """Refuses what would be the working folder."""
    if path == "":
        raise ValueError("wanted a path that is not empty")
    return path


@dataclass(frozen=True)
class Unit:
    """The unit of a key's number, as part of its type: Annotated[int, Unit("steps")].

    A model's other notes on its keys, which `traflow_pipeline.keys` shows: each field has a `description`, and a class
    variable `groups` gives the heading above the first key of each group.
    """

    name: str


# In configurations: a number of things, text that may be a path, such as a teacher or an image set, and a local path.
Count = Annotated[int, BeforeValidator(parse_count)]
PathText = Annotated[str, BeforeValidator(expand_home)]
LocalPath = Annotated[Path, BeforeValidator(_not_empty), BeforeValidator(expand_home)]


def load_section(source: str | None, command: str) -> dict[str, Any]:
    """The section of `command` in the config `source`, see `load_sections`; nothing without a source.

    Raises:
        BadInput: there is no such section.
    """
    if source is None:
        return {}
    sections = load_sections(source)
    if command not in sections:
        raise BadInput(f"{find_config(source)}: it has no section {command!r}, only {', '.join(sections)}")
    return sections[command]


def load_sections(source: str) -> dict[str, dict[str, Any]]:
    """The sections of the config `source`: a name in configs/ or the path of a YAML file, over those of its `base`.

    A base is the path of another config, from the folder of the one that names it.

    Raises:
        BadInput: no such config, not YAML, or sections that no command reads; or the bases lead back to a config.
    """
    layers: list[dict[str, dict[str, Any]]] = []
    paths: list[Path] = []
    path: Path | None = find_config(source)
    while path is not None:
        if path.resolve() in paths:
            raise BadInput(f"{path}: it is its own base; take a base out of {' or '.join(each.name for each in paths)}")
        paths.append(path.resolve())
        try:
            sections, base = _parse(read_text(path), str(path))
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
        layers.insert(0, sections)
        path = path.parent / base if base else None
    return merge(*layers)


def config_names() -> list[str]:
    """The configs in configs/, by path without the suffix; recipes are none."""
    paths = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != "recipes")


def name_of_config(path: Path) -> str:
    """The name of the config at `path`: in configs/ its path there, elsewhere its file's, without the suffix."""
    inner, configs = path.resolve(), CONFIGS.resolve()
    return inner.relative_to(configs).with_suffix("").as_posix() if inner.is_relative_to(configs) else path.stem


def find_config(source: str) -> Path:
    """The file of the config `source`, see `load_sections`."""
    given = Path(str(expand_home(source)))
    path = next((p for p in (CONFIGS / f"{source}.yaml", given) if p.is_file()), None)
    if path is None:
        names = config_names()
        known = suggest(source, names)
        raise BadInput(f"no config {source!r}: wanted one of {', '.join(names)}, or the path of a YAML file{known}")
    return path


def parse_sections(text: bytes, location: str) -> dict[str, dict[str, Any]]:
    """The sections in the YAML `text`, which was read from `location`.

    Raises:
        BadInput: see `load_sections`.
    """
    sections, base = _parse(text, location)
    if base:
        raise BadInput(f"{location}: wanted sections named {', '.join(COMMANDS)}; found base")
    return sections


def _parse(text: bytes, location: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """The sections in the YAML `text` of `location`, and the base that it names."""
    try:
        sections = parse_yaml(text) or {}
    except ValueError as error:
        raise BadInput(f"{location}: not YAML: {error}") from error
    base = sections.pop("base", None) if isinstance(sections, dict) else None
    if not isinstance(base, str | None):
        raise BadInput(f"{location}: wanted the path of a config as base; it is {str(base)[:MAX_SHOWN]}")
    if not isinstance(sections, dict) or not set(sections) <= {*COMMANDS, SLURM}:
        found = [str(name) for name in sections] if isinstance(sections, dict) else [type(sections).__name__]
        known = next(filter(None, (suggest(name, COMMANDS) for name in found if name not in COMMANDS)), "")
        raise BadInput(
            f"{location}: wanted sections named {', '.join((*COMMANDS, SLURM))}; found {', '.join(found)}{known}"
        )
    for command, section in sections.items():
        if not isinstance(section, dict | None):
            raise BadInput(f"{location}: section {command!r} is not a mapping of keys to values")
    return {command: section or {} for command, section in sections.items()}, base


def parse_assignment(assignment: str) -> dict[str, Any]:
    """`a.b=value`, the value in YAML, as {"a": {"b": value}}."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise BadInput(f"--set {assignment}: wanted key=value, for example --set seed=1")
    try:
        nested: Any = parse_yaml(value)
    except ValueError as error:
        raise BadInput(f"--set {assignment}: the value is not YAML") from error
    return nest(key, nested)


def nest(key: str, value: Any) -> dict[str, Any]:
    """`value` under the key "a.b", as {"a": {"b": value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later layers override earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping | None):
                merged[key] = merge(below or {}, value)
            else:
                merged[key] = value
    return merged


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are not None, in nested mappings too."""
    values = {key: given(value) if isinstance(value, Mapping) else value for key, value in flags.items()}
    return {key: value for key, value in values.items() if value not in (None, {})}


def validate(model: type[Model], values: Mapping[str, Any], command: str) -> Model:
    """Validate `values` against `model`.

    Raises:
        BadInput: one line with every fault; for an unknown key it lists the valid ones.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{command}: {explain(error, model, values, by_flag=command in COMMANDS)}") from error


def differences(existing: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The fields in which two configurations differ, as "key: 1 there, 2 asked; ..."; empty if they are equal."""
    found = [f"{key}: {_brief(there)} there, {_brief(here)} asked" for key, there, here in _differing(existing, asked)]
    more = [f"and {len(found) - MAX_SHOWN_FIELDS} more"] if len(found) > MAX_SHOWN_FIELDS else []
    return "; ".join(found[:MAX_SHOWN_FIELDS] + more)


def _differing(existing: Any, asked: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys below `key` at which two values differ, and both values; things of different names are not compared."""
    if existing == asked:
        return
    there, here = _parts(existing), _parts(asked)
    is_list = isinstance(existing, list) or isinstance(asked, list)
    if not there or not here or (key and _name(there) != _name(here)) or (is_list and len(there) != len(here)):
        yield key, existing, asked
        return
    for name in dict.fromkeys([*here, *there]):
        yield from _differing(there.get(name), here.get(name), f"{key}.{name}" if key else name)


def _parts(value: Any) -> Mapping[str, Any]:
    """What a mapping, or a list of mappings, is made of, by key or index; nothing of other values."""
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return {str(i): item for i, item in enumerate(value)}
    return value if isinstance(value, Mapping) else {}


def _name(value: Mapping[str, Any]) -> Any:
    """What says which thing a mapping describes: a recipe, a solver, a network, a loss."""
    return next((value[label] for label in LABELS if label in value), None)


def _brief(value: Any) -> str:
    if isinstance(value, Mapping) and _name(value) is not None:
        return str(_name(value))
    text = f"{len(value)} entries" if isinstance(value, list) and len(str(value)) > MAX_SHOWN else str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def resolved(config: BaseModel, command: str) -> str:
    """The resolved configuration of a command, as the YAML of a config that repeats it."""
    text: str = yaml.safe_dump({command: config.model_dump(mode="json")}, sort_keys=False)
    return text


def write_resolved(path: Path, config: BaseModel, command: str) -> None:
    """Write `resolved` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(resolved(config, command))


def split_list(value: object) -> object:
    """ "3, 18" as a list, and 3 as one; the rest is for the model to check."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value
