"""Configurations: a YAML file with a section per command, overridden by flags and --set, validated by one model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from pipeline.common.errors import BadInput, suggest
from pipeline.common.safe_yaml import parse_yaml, read_text

CONFIGS = Path(__file__).parents[2] / "configs"
MAX_SHOWN = 80  # characters of a value in a message
COMMANDS = ("generate", "train", "evaluate")
SLURM = "slurm"  # the section on where the commands run
MAX_FAULTS = 20  # in one message

Model = TypeVar("Model", bound=BaseModel)


def expand_home(value: object) -> object:
    """`value`, or for a path that begins with "~" the path in the home folder; a Path in a field of text is its text.

    Raises:
        ValueError: there is no such user.
    """
    if not isinstance(value, str | Path):
        return value
    try:
        return str(Path(value).expanduser()) if str(value).startswith("~") else str(value)
    except RuntimeError as error:
        raise ValueError(f"wanted a path; {error}") from error


@dataclass(frozen=True)
class Unit:
    """The unit of a key's number, as part of its type: Annotated[int, Unit("steps")].

    A model's other notes on its keys, which `traflow_pipeline.keys` shows: each field has a `description`, and a class
    variable `groups` gives the heading above the first key of each group.
    """

    name: str


# In configurations: text that may be a path, such as a teacher or an image set, and a local path.
PathText = Annotated[str, BeforeValidator(expand_home)]
LocalPath = Annotated[Path, BeforeValidator(expand_home)]


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
        got = ", ".join(map(str, sections)) if isinstance(sections, dict) else type(sections).__name__
        raise BadInput(f"{location}: wanted sections named {', '.join((*COMMANDS, SLURM))}; found {got}")
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
        raise BadInput(f"{command}: {explain(error, model, command)}") from error


# What pydantic's types of faults ask for; {} is filled from the fault's context.
WANTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_": "a mapping of keys to values",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "{min_length} or more values",
    "too_long": "{max_length} values at most",
    "missing": "a value",
}
# What pydantic adds to the path of a fault in a union: "int", "constrained-int", "tuple[float, ...]".
UNION_MEMBER = re.compile(r"(constrained-)?(int|float|str|bool|none|list|tuple|dict|function-\w+)(\[.*)?")


def explain(error: ValidationError, model: type[BaseModel], command: str = "") -> str:
    """The faults of `error` in plain English: for each key what was wanted and what came, on one line."""
    by_key: dict[str, list[Any]] = {}
    for fault in error.errors():
        path, models = _locate(model, [str(part) for part in fault["loc"]])
        by_key.setdefault(".".join(path), []).append((fault, models))
    faults = [_describe(key, faults, command) for key, faults in list(by_key.items())[:MAX_FAULTS]]
    more = [f"and {len(by_key) - MAX_FAULTS} more"] if len(by_key) > MAX_FAULTS else []
    return "; ".join(faults + more)


def _describe(key: str, faults: Sequence[tuple[Any, list[type[BaseModel]]]], command: str) -> str:
    """One line for the faults of `key`, of which there are several where it may be of several types."""
    fault, models = faults[0]
    if fault["type"] == "extra_forbidden":
        valid = dict.fromkeys(name for candidate in models for name in candidate.model_fields)
        prefix, _, name = key.rpartition(".")
        known = suggest(name, valid).replace("'", f"'{prefix}.", 1) if prefix else suggest(name, valid)
        return f"unknown key {key!r}; valid keys: {', '.join(valid)}{known}"
    if fault["type"] == "missing" and not str(fault["loc"][-1]).isdigit():
        by_flag = f"; give it by flag, in the config or with --set {key}=..." if command in COMMANDS else ""
        return f"{key!r} is missing{by_flag}"
    message = " or ".join(dict.fromkeys(_message(fault) for fault, _ in faults)).replace(" or wanted ", " or ")
    value = fault["input"]
    name = f"{key}: " if key else ""
    is_quoted = isinstance(value, str) and bool(value) and repr(value) in message
    if isinstance(value, Mapping) or fault["type"] == "missing" or is_quoted:
        return f"{name}{message}"
    known = (
        suggest(value, fault["ctx"]["expected"].split("'"))
        if fault["type"] == "literal_error" and isinstance(value, str)
        else ""
    )
    return f"{name}{message}, got {_shorten(value)}{known}"


def _message(fault: Any) -> str:
    """A fault as "wanted ..."; the message of a check of ours is taken as it is."""
    type_ = "string_too_short" if fault["input"] == "" and fault["type"] == "too_short" else fault["type"]
    kind = next((kind for kind in WANTED if type_.startswith(kind)), None)
    if kind is None:
        return str(fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, "))
    return "wanted " + WANTED[kind].format_map(fault.get("ctx", {}))


def _shorten(value: object) -> str:
    """A value as it may be written in YAML, at most a line of it."""
    text = (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _locate(model: type[BaseModel], loc: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys that the user wrote to reach a fault, and the models that may have the last one as a field.

    Pydantic's `loc` also holds the tags of unions, which the user did not write.
    """
    models: list[type[BaseModel]] = [model]
    keys: list[str] = []
    for i, part in enumerate(loc):
        tagged = [candidate for candidate in models if tag_of(candidate) == part]
        if tagged and i < len(loc) - 1:
            models = tagged
            continue
        if UNION_MEMBER.fullmatch(part) and not any(part in candidate.model_fields for candidate in models):
            continue
        keys.append(part)
        fields = [candidate.model_fields[part] for candidate in models if part in candidate.model_fields]
        if i < len(loc) - 1 and fields:
            models = [nested for field in fields for nested in models_in(field.annotation)] or models
    return keys, models


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation, whatever they are wrapped in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [nested for part in get_args(annotation) for nested in models_in(part)]


def tag_of(model: type[BaseModel]) -> str | None:
    """The tag of a model in a discriminated union: the value of its first field with a single literal value."""
    for field in model.model_fields.values():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return str(get_args(field.annotation)[0])
    return None


def differences(existing: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str:
    """The fields in which two configurations differ, as "key: 1 there, 2 asked; ..."; empty if they are equal."""
    fields = []
    for key in [*asked, *(key for key in existing if key not in asked)]:
        there, here = existing.get(key), asked.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            fields.append(differences(there, here, f"{prefix}{key}."))
        elif there != here:
            fields.append(f"{prefix}{key}: {there} there, {here} asked")
    return "; ".join(filter(None, fields))


def resolved(config: BaseModel, command: str) -> str:
    """The resolved configuration of a command, as the YAML of a config that repeats it."""
    text: str = yaml.safe_dump({command: config.model_dump(mode="json")}, sort_keys=False)
    return text


def write_resolved(path: Path, config: BaseModel, command: str) -> None:
    """Write `resolved` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(resolved(config, command))


def parse_count(value: object) -> object:
    """ "4096", "16k" or "1M" (thousands, millions) as an integer; a value that is no text is returned unchanged.

    Raises:
        ValueError: the text is not a count.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").replace(",", "")
    factor = {"k": 10**3, "m": 10**6}.get(text[-1:].lower(), 1)
    try:
        count = Decimal(text[:-1] if factor > 1 else text) * factor
        if 1 <= count < 2**63 and count == int(count):
            return int(count)
    except InvalidOperation:
        pass
    raise ValueError("wanted a count such as 4096, 16k or 1M")
