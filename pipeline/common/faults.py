"""The faults of a configuration in plain English: for each key what was wanted, what came, and what was meant."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.common.suggestions import meant, question, spelt_alike, suggest

MAX_SHOWN = 80  # characters of a value in a message
MAX_FAULTS = 20  # in one message
MAX_TAGS = 3  # models that are named for a key of theirs

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
    "union_tag_not_found": "a mapping of keys to values",
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


@dataclass(frozen=True)
class Place:
    """Where a fault lies: the keys that the user wrote to reach it, and the models that may have the last of them."""

    keys: tuple[str, ...]
    models: tuple[type[BaseModel], ...]
    others: tuple[type[BaseModel], ...] = ()  # that a tag would have chosen instead of them

    @property
    def name(self) -> str:
        return ".".join(self.keys)

    @property
    def prefix(self) -> str:
        return "".join(f"{key}." for key in self.keys[:-1])

    @property
    def inner(self) -> list[type[BaseModel]]:
        """The models of the value there."""
        return [nested for field in self.fields for nested in models_in(field.annotation)] or list(self.models)

    @property
    def fields(self) -> list[FieldInfo]:
        """What the models have there."""
        return [model.model_fields[self.keys[-1]] for model in self.models if self.keys[-1] in model.model_fields]


def explain(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any] | None = None, by_flag: bool = False
) -> str:
    """The faults of `error`, of `values` that make no `model`, on one line; `by_flag`: there are flags for its keys."""
    by_key: dict[str, list[tuple[Any, Place]]] = {}
    for fault in _causes(error.errors()):
        place = _locate(model, [str(part) for part in fault["loc"]], values)
        by_key.setdefault(place.name, []).append((fault, place))
    faults = [_describe(faults, model, by_flag) for faults in list(by_key.values())[:MAX_FAULTS]]
    more = [f"and {len(by_key) - MAX_FAULTS} more"] if len(by_key) > MAX_FAULTS else []
    return "; ".join(faults + more)


def _causes(faults: Sequence[Any]) -> list[Any]:
    """`faults` without the lists that pydantic calls too short because it leaves out their faulty items."""

    def holds_another(loc: tuple[object, ...]) -> bool:
        return any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in faults)

    return [fault for fault in faults if fault["type"] != "too_short" or not holds_another(fault["loc"])]


def _describe(faults: Sequence[tuple[Any, Place]], root: type[BaseModel], by_flag: bool) -> str:
    """One line for the faults of a key, of which there are several where it may be of several types."""
    fault, place = faults[0]
    value, type_ = fault["input"], fault["type"]
    if type_ == "extra_forbidden":
        return _describe_unknown(place, root)
    if type_ == "missing" and not place.keys[-1].isdigit():
        return _describe_missing(place, by_flag)
    if type_.startswith("union_tag"):
        return _describe_tag(fault, place)
    message = " or ".join(dict.fromkeys(_message(fault) for fault, _ in faults)).replace(" or wanted ", " or ")
    name = f"{place.name}: " if place.name else ""
    is_quoted = isinstance(value, str) and bool(value) and repr(value) in message
    if isinstance(value, Mapping) or type_ == "missing" or is_quoted:
        return f"{name}{message}"
    is_choice = type_ == "literal_error" and isinstance(value, str)
    known = suggest(value, re.findall("'([^']*)'", fault["ctx"]["expected"])) if is_choice else ""
    return f"{name}{message}, got {_shorten(value)}{known}"


def _describe_missing(place: Place, by_flag: bool) -> str:
    """A key that is missing; of a mapping, those of its keys that have no default."""
    inner = [model for field in place.fields for model in models_in(field.annotation)]
    required = [name for name, field in inner[0].model_fields.items() if field.is_required()] if len(inner) == 1 else []
    names = [f"{place.name}.{name}" for name in required] or [place.name]
    advice = f"; give it by flag, in the config or with --set {names[0]}=..." if by_flag else ""
    return f"{' and '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'} missing{advice}"


def _describe_unknown(place: Place, root: type[BaseModel]) -> str:
    """An unknown key, with the valid ones of its level and what was probably meant."""
    valid = list(dict.fromkeys(name for model in place.models for name in model.model_fields))
    tags = [f"{key}: {tag}" for key, tag, model in _tagged(place.others) if place.keys[-1] in model.model_fields]
    of_tag = "".join(f" of {key} {tag}" for key, tag, _ in _tagged(place.models)) if place.others else ""
    advice = f"; it goes with {' or '.join(tags[:MAX_TAGS])}" if tags else _describe_meant(place, valid, root)
    return f"unknown key {place.name!r}; valid keys{of_tag}: {', '.join(valid)}{advice}"


def _describe_meant(place: Place, valid: Iterable[str], root: type[BaseModel]) -> str:
    """The question for the key that was meant, with its tag where that is another than the one given."""
    found = _meant(place, valid, root)
    name = (found or "").removeprefix(place.prefix)
    tags = (
        []
        if name in valid
        else [f"{key}: {tag}" for key, tag, model in _tagged(place.others) if name in model.model_fields]
    )
    return question(found) + (f" It goes with {' or '.join(tags[:MAX_TAGS])}" if tags else "")


def _meant(place: Place, valid: Iterable[str], root: type[BaseModel]) -> str | None:
    """The key that was meant: of this level, else of another one, the nearest first."""
    here = {name: f"{place.prefix}{name}" for name in valid}
    elsewhere: dict[str, str] = {}
    for name, path in sorted(_paths(root), key=lambda found: -_num_shared(place.keys, found[1].split("."))):
        elsewhere.setdefault(name, path)
    return meant(place.keys[-1], here, elsewhere)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The name and path of each key of `model`, without those of lists of several models."""
    for name, field in model.model_fields.items():
        yield name, f"{prefix}{name}"
        inner = models_in(field.annotation)
        if len(inner) == 1 or get_origin(field.annotation) is not tuple:
            for nested in inner:
                yield from _paths(nested, f"{prefix}{name}.")


def _num_shared(keys: Sequence[str], others: Sequence[str]) -> int:
    """The length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(keys, others, strict=False)) if a != b), min(len(keys), len(others)))


def _describe_tag(fault: Any, place: Place) -> str:
    """A mapping whose tag chooses no model, or has none; or something else than a mapping."""
    tagged = _tagged(place.inner)
    key, tags = tagged[0][0], [tag for _, tag, _ in tagged]
    wanted, value = f"wanted one of {', '.join(tags)}", fault["input"]
    if not isinstance(value, Mapping):
        example = spelt_alike(str(value), tags) or tags[0]
        return f"{place.name}: {_message(fault)} such as {{{key}: {example}}}, got {_shorten(value)}"
    if key not in value:
        return f"'{place.name}.{key}' is missing: {wanted}"
    return f"{place.name}.{key}: {wanted}, got {_shorten(value[key])}{suggest(str(value[key]), tags)}"


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


def _locate(model: type[BaseModel], loc: Sequence[str], values: Any) -> Place:
    """The place of a fault in `values`.

    Pydantic's `loc` also holds what the user did not write: tags of unions, and the index of an item that stands alone.
    """
    models: tuple[type[BaseModel], ...] = (model,)
    others: tuple[type[BaseModel], ...] = ()
    keys: list[str] = []
    for i, part in enumerate(loc):
        is_last = i == len(loc) - 1
        tagged = tuple(candidate for candidate in models if tag_of(candidate) == part)
        if tagged and not is_last:
            models, others = tagged, tuple(candidate for candidate in models if candidate not in tagged)
            continue
        if UNION_MEMBER.fullmatch(part) and not any(part in candidate.model_fields for candidate in models):
            continue
        if part.isdigit() and isinstance(values, Mapping):
            continue
        keys.append(part)
        values = _value(values, part)
        fields = [candidate.model_fields[part] for candidate in models if part in candidate.model_fields]
        if not is_last and fields:
            models = tuple(nested for field in fields for nested in models_in(field.annotation)) or models
            others = ()
    return Place(tuple(keys), models, others)


def _value(values: Any, part: str) -> Any:
    """The value at the key or index `part` of `values`; None if there is none."""
    if isinstance(values, Mapping):
        return values.get(part)
    is_index = isinstance(values, list | tuple) and part.isdigit() and int(part) < len(values)
    return values[int(part)] if is_index else None


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation, whatever they are wrapped in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [nested for part in get_args(annotation) for nested in models_in(part)]


def tag_of(model: type[BaseModel]) -> str | None:
    """The tag of a model in a discriminated union: the value of its first field with a single literal value."""
    return next((tag for _, tag, _ in _tagged([model])), None)


def _tagged(models: Iterable[type[BaseModel]]) -> list[tuple[str, str, type[BaseModel]]]:
    """Of each of `models` that has one, the key of its tag, the tag, and the model itself."""
    found = {
        model: (name, str(get_args(field.annotation)[0]), model)
        for model in models
        for name, field in reversed(model.model_fields.items())
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }
    return list(found.values())
