"""The keys of every configuration, from the models that check them: as rows for a reference, and as commented YAML.

The models are imported when they are asked for: train's and the recipe's need torch.
"""

import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from pipeline.common.config import COMMANDS, Unit
from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.faults import models_in, tag_of
from pipeline.storage.store import write_file

# A recipe is a file of its own; the others are sections of a config.
MODELS = {
    "generate": "pipeline.generation.config:GenerateConfig",
    "train": "trainer.config:TrainConfig",
    "evaluate": "eval.config:EvaluateConfig",
    "slurm": "traflow_pipeline.slurm_config:SlurmConfig",
    "recipe": "trainer.distillation.recipes:Recipe",
}
RECIPE = "recipe"
# What `run` fills in where its config leaves it out.
FILLED_BY_RUN = {
    "generate": {"out", "velocities"},
    "train": {"out", "data"},
    "evaluate": {"checkpoint", "out"},
}
WIDTH = 88  # of a line of YAML
TYPES = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", NoneType: "null"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """A key of a configuration, with its default `value`, which is PydanticUndefined where it has none."""

    name: str  # as --set takes it: "trainer.lr"
    case: str  # where one of several models may hold it, the tag of that model: "song", "velocity"; else empty
    group: str  # heading
    sentence: str
    field: FieldInfo
    value: Any

    @property
    def models(self) -> list[type[BaseModel]]:
        """The models of the keys below this one, unless they have a page of their own."""
        return [model for model in models_in(self.field.annotation) if not has_own_page(model)]

    @property
    def type(self) -> str:
        """Such as "integer >= 1 | null"."""
        return type_text(self.field.annotation, self.field.metadata)

    @property
    def choices(self) -> str:
        """ " One of a, b." where its type is a choice of words; else empty."""
        words = get_args(self.field.annotation) if get_origin(self.field.annotation) is Literal else ()
        return f" One of {', '.join(map(str, words))}." if words else ""

    @property
    def default(self) -> str:
        """In YAML; "required" where there is none, unless the keys below it have theirs."""
        if self.value is PydanticUndefined:
            return "" if self.models else "required"
        return in_yaml(self.value.name if has_own_page(type(self.value)) else self.value)

    @property
    def unit(self) -> str:
        return next((entry.name for entry in self.field.metadata if isinstance(entry, Unit)), "")

    @property
    def note(self) -> str:
        """Type, unit, and whether it is required."""
        required = "required" if self.default == "required" else ""
        return "; ".join(filter(None, ("" if self.type == self.default else self.type, self.unit, required)))


def keys(topic: str) -> Iterator[Key]:
    """Every key of `topic`, one of `MODELS`, nested ones after the key they belong to."""
    return keys_of(import_model(MODELS[topic]), default_recipe() if topic == RECIPE else None)


def import_model(source: str) -> type[BaseModel]:
    """The model "module:name"."""
    module, _, name = source.partition(":")
    model: type[BaseModel] = getattr(import_module(module), name)
    return model


def has_own_page(model: type) -> bool:
    """Whether `model` is a topic of its own."""
    return f"{model.__module__}:{model.__name__}" in MODELS.values()


def default_recipe() -> BaseModel:
    """The recipe that `train` takes by default."""
    recipe: BaseModel = import_model(MODELS["train"]).model_fields[RECIPE].get_default(call_default_factory=True)
    return recipe


def keys_of(
    model: type[BaseModel], instance: BaseModel | None = None, prefix: str = "", case: str = "", group: str = ""
) -> Iterator[Key]:
    """Every key of `model`, see `keys`; `group` is the heading above them."""
    for key in own_keys(model, instance, prefix, case, group):
        yield key
        for inner in key.models:
            inner_case = tag_of(inner) or "" if len(key.models) > 1 else case
            yield from keys_of(inner, _instance(key, inner), f"{key.name}.", inner_case, key.group)


def own_keys(
    model: type[BaseModel], instance: BaseModel | None, prefix: str = "", case: str = "", group: str = ""
) -> Iterator[Key]:
    """The keys of `model` itself, with the values of `instance`, by default the model's own; `group` is the heading."""
    groups = getattr(model, "groups", {})
    for name, field in model.model_fields.items():
        group = groups.get(name, group)
        value = field.get_default(call_default_factory=True) if instance is None else getattr(instance, name)
        yield Key(f"{prefix}{name}", case, group, _sentence(model, field), field, value)


def _sentence(model: type[BaseModel], field: FieldInfo) -> str:
    """A field's description; without one a tag has the first line of its model's docstring, a mapping of its own."""
    inner = models_in(field.annotation)
    own = model if field.default is not PydanticUndefined and field.default == tag_of(model) else None
    about = own or next(iter(inner), None)
    return field.description or (first_line(about) if about else "")


def _instance(key: Key, model: type[BaseModel]) -> BaseModel | None:
    """The first value of `key` that is of `model`."""
    return next((value for value in _values(key) if type(value) is model), None)


def _values(key: Key) -> tuple[Any, ...]:
    return key.value if isinstance(key.value, tuple) else (key.value,)


def first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n")[0]


def type_text(annotation: Any, metadata: Collection[Any] = ()) -> str:
    """A type in words: "integer >= 1", "euler | rk4", "[text, ...]", "mapping | null"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_text(parts[0], annotation.__metadata__)
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(type_text(part, metadata) for part in parts))
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is tuple:
        return f"[{', '.join('...' if part is Ellipsis else type_text(part) for part in parts)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "name | mapping" if has_own_page(annotation) else "mapping"
    text = TYPES.get(annotation, "any")
    return f"{text}{_bounds(metadata)}" if annotation in (int, float) else text


def _bounds(metadata: Collection[Any]) -> str:
    """Such as " >= 0 and < 1", from the annotations of a type, and from those inside a field among them."""
    flat = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    found = [
        f" {sign} {_bound(getattr(part, name))}"
        for part in flat
        for name, sign in BOUNDS.items()
        if hasattr(part, name)
    ]
    return " and".join(found)


def _bound(number: float) -> str:
    exponent = int(number).bit_length() - 1
    return f"2^{exponent}" if exponent > 9 and number == 2**exponent else f"{number:g}"


def in_yaml(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def commented(topic: str) -> str:
    """The YAML of a config with every key of `topic`, or of all stages for "run": default, type, unit and sentence.

    What is required is commented out, so that a command says what it lacks.
    """
    if topic == RECIPE:
        recipe = default_recipe()
        return "\n".join([*_comment(first_line(type(recipe))), *_mapping(type(recipe), recipe)]) + "\n"
    names = COMMANDS if topic == "run" else (topic,)
    return "\n".join(line for name in names for line in _section(name, topic == "run"))


def write(path: Path, topic: str) -> None:
    """Write `commented` to the new file `path`.

    Raises:
        BadInput: there is a file, or it cannot be written.
    """
    if path.exists():
        raise BadInput(f"{path} exists: choose another --out, or remove it")
    try:
        write_file(path, commented(topic).encode())
    except WorkFailed as error:
        raise BadInput(f"{error}") from error


def _section(name: str, in_run: bool) -> list[str]:
    model = import_model(MODELS[name])
    lines = _mapping(model, None, FILLED_BY_RUN[name] if in_run else ())
    return [*_comment(first_line(model)), f"{name}:", *_indented(lines), ""]


def _mapping(
    model: type[BaseModel], instance: BaseModel | None, unset: Collection[str] = (), known: Collection[Any] = ()
) -> list[str]:
    """The keys of `model`, a comment above each, without those `known`; those `unset` are commented out."""
    lines: list[str] = []
    group = ""
    for key in own_keys(model, instance):
        if _identity(key) in known:
            continue
        if key.group != group:
            group = key.group
            lines += ["", f"# ---- {group} ----"]
        entry = _entry(key)
        lines += [*_comment(key.sentence), *(_disabled(entry) if key.name in unset else entry)]
    return lines


def _entry(key: Key) -> list[str]:
    """A key and its value. Models that might stand there, and do not, follow as comments."""
    values = [value for value in _values(key) if type(value) in key.models]
    if key.value is PydanticUndefined and key.models:
        return [f"{key.name}:", *_indented(_mapping(key.models[0], None))]
    if not values:
        return [*_line(key), *_alternatives(key, [])]
    blocks = [_mapping(type(value), value) for value in values]
    if isinstance(key.value, tuple):
        blocks = [_item(block) for block in blocks]
    return [f"{key.name}:", *_indented([line for block in blocks for line in block]), *_alternatives(key, values)]


def _line(key: Key) -> list[str]:
    """A key and its default on one line, commented out if it is required."""
    note = f"  # {key.note}" if key.note else ""
    return _disabled([f"{key.name}:{note}"]) if key.default == "required" else [f"{key.name}: {key.default}{note}"]


def _alternatives(key: Key, values: Collection[Any]) -> list[str]:
    """The models of `key` that none of its `values` is of, commented out, each with the keys that are not yet shown
    and the names of those that are."""
    lines: list[str] = []
    used = {type(value) for value in values}
    known = {_identity(own) for model in used for own in own_keys(model, None)}
    for model in key.models:
        if model not in used:
            shared = [own.name for own in own_keys(model, None) if _identity(own) in known]
            block = _mapping(model, None, known=known)
            block += _comment(f"Also, as above: {', '.join(shared)}") if shared else []
            lines += _item(block) if isinstance(key.value, tuple) else [f"{key.name}:", *_indented(block)]
            known |= {_identity(own) for own in own_keys(model, None)}
    return _disabled(_indented(lines) if isinstance(key.value, tuple) else lines)


def _identity(key: Key) -> tuple[str, str, str]:
    return key.name, key.sentence, key.default


def _item(block: list[str]) -> list[str]:
    """A mapping as an item of a list: a dash before its first key."""
    first = next(i for i, line in enumerate(block) if line and not line.startswith("#"))
    return [*block[:first], f"- {block[first]}", *_indented(block[first + 1 :])]


def _comment(sentence: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(sentence.replace("`", ""), WIDTH)]


def _disabled(lines: Collection[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]


def _indented(lines: Collection[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]
