"""The page of the Python interface, from the names that `traflow_pipeline` makes public."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cached_property
from typing import Any

from pydantic import BaseModel

import traflow_pipeline as tp
from manual.text import code, comments, prose, table, type_name

WIDTH = 80  # of a signature
MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])")  # before the name of a class

KEYS = "Its fields are the keys of the [configuration](configuration.md)."
ELSEWHERE = {
    "GenerateConfig": KEYS,
    "TrainConfig": KEYS,
    "EvaluateConfig": KEYS,
    "Report": "Its fields are the keys of [metrics.json](metrics.md).",
}

INTRO = """# Python

`import traflow_pipeline as tp`. These names are public; all else in this package and in `pipeline`, `trainer` and
`eval` may change. Importing the package is cheap: torch is imported when a name is first used. Errors are
`BadInput`, `WorkFailed` and `Stopped`, each with a message of one line.

`tp.generate`, `tp.train` and `tp.evaluate` take the keys of the commands' configs, as
`tp.generate(teacher="digits", n="4k", out="data")`; or `config="quickstart"` and keys over it; or a `GenerateConfig`,
`TrainConfig` or `EvaluateConfig`. `tp.open_dataset` reads records by index (`data[5]`), by slice (`data[:64]`) or in
batches (`data.batches(64)`). The [notebook](../tutorials/notebook.md) uses all of it, and `examples/` of the repository
has scripts.

A teacher of your own also needs `pipeline.teachers.teacher.state_sha256`, which makes the digest of its weights.
"""


def page() -> str:
    """Every public name."""
    names = {name: getattr(tp, name) for name in tp.__all__}
    functions = [_function(f"tp.{name}", value) for name, value in names.items() if inspect.isfunction(value)]
    classes = [_class(name, value) for name, value in names.items() if inspect.isclass(value)]
    return "\n\n".join([INTRO, *functions, *classes])


def _function(name: str, function: Callable[..., Any], level: str = "##") -> str:
    heading = f"{level} {name.rpartition('.')[2]}"
    return f"{heading}\n\n```python\n{name}{_signature(function)}\n```\n\n{prose(function.__doc__)}"


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    text = MODULES.sub("", str(signature.replace(parameters=parameters)))
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _class(name: str, cls: type) -> str:
    parts = [f"## {name}", prose(cls.__doc__)]
    if name in ELSEWHERE:
        return "\n\n".join([*parts, ELSEWHERE[name]])
    fields = _fields(cls)
    if fields:
        parts.append(table(["field", "type", "meaning"], fields))
    properties = [(code(key), inspect.cleandoc(value)) for key, value in _properties(cls).items()]
    if properties:
        parts.append(table(["property", "meaning"], properties))
    methods = [
        _function(f"{name}.{key}", value, "###")
        for key, value in vars(cls).items()
        if inspect.isfunction(value) and not key.startswith("_")
    ]
    return "\n\n".join([*parts, *methods])


def _fields(cls: type) -> list[tuple[str, str, str]]:
    notes = comments(cls)
    if issubclass(cls, BaseModel):
        types: dict[str, Any] = {name: field.annotation for name, field in cls.model_fields.items()}
    elif dataclasses.is_dataclass(cls):
        types = {field.name: field.type for field in dataclasses.fields(cls)}
    else:
        types = {}
    return [(code(name), code(type_name(kind)), notes.get(name, "")) for name, kind in types.items()]


def _properties(cls: type) -> dict[str, str]:
    """The public properties of a class with their docstrings."""
    found = {}
    for name, value in vars(cls).items():
        function = (
            value.fget if isinstance(value, property) else value.func if isinstance(value, cached_property) else None
        )
        if function is not None and not name.startswith("_"):
            found[name] = function.__doc__ or ""
    return found
