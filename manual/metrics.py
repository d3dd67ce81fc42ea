"""The page of metrics.json, from the records that it is written from."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from eval.results import Report
from manual.text import code, comments, prose, table, type_name

INTRO = """# metrics.json

The results of an evaluation, from which its page and tables are made. `compare` reads it, and so may you; keys are
added, and none changes its meaning. From Python: `tp.evaluate(...)` returns it as a `Report`.
"""


def page() -> str:
    """Every record of metrics.json with its fields, from the outside in."""
    return "\n\n".join([INTRO, *map(_section, dict.fromkeys(_records(Report)))])


def _records(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """`model`, and the models of its fields."""
    yield model
    for field in model.model_fields.values():
        for below in _models(field.annotation):
            yield from _records(below)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _section(model: type[BaseModel]) -> str:
    notes = comments(model)
    rows = [
        (code(name), code(type_name(field.annotation)), _meaning(field, notes.get(name, "")))
        for name, field in model.model_fields.items()
    ]
    rows += [
        (code(name), code(type_name(field.return_type)), prose(field.description))
        for name, field in model.model_computed_fields.items()
    ]
    return "\n\n".join([f"## {model.__name__}", prose(model.__doc__), table(["key", "type", "meaning"], rows)])


def _meaning(field: Any, comment: str) -> str:
    """What is said of a field, or else of the record that it holds."""
    records = (prose(model.__doc__).partition("\n")[0] for model in _models(field.annotation))
    return field.description or comment or next(records, "")
