"""Tables of a configuration's keys."""

from collections.abc import Collection, Iterable

from pydantic import BaseModel

from manual.text import code, table
from traflow_pipeline.keys import Key, own_keys


def options(model: type[BaseModel], skip: Collection[str] = ()) -> str:
    """The keys of `model` itself but those to `skip`; nothing without any."""
    rows = [key for key in own_keys(model, None) if key.name not in skip]
    return key_table(rows) if rows else ""


def key_table(keys: Iterable[Key]) -> str:
    """A row for each key: name, type with its unit, default, and its sentence."""
    rows = [(code(key.name), _type(key), code(key.default), key.sentence) for key in keys]
    return table(["key", "type", "default", "meaning"], rows)


def _type(key: Key) -> str:
    return f"{code(key.type)}, in {key.unit}" if key.unit else code(key.type)
