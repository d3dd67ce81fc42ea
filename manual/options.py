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
    """A row for each key: name, type, default, and its sentence with the unit."""
    rows = [(code(key.name), code(key.type), code(key.default), _meaning(key)) for key in keys]
    return table(["key", "type", "default", "meaning"], rows)


def _meaning(key: Key) -> str:
    return f"{key.sentence} Unit: {key.unit}." if key.unit else key.sentence
