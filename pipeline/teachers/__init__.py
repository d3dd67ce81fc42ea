"""The teachers by name. A new one is a file beside this and a line in `TEACHERS`."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import BadInput
from pipeline.teachers import checkpoint, digits
from pipeline.teachers.teacher import Teacher


@dataclass(frozen=True)
class Entry:
    """A line of `traflow-pipeline teachers`."""

    about: str
    licence: str
    weights: Path
    load: Callable[[torch.device], Teacher]


TEACHERS: dict[str, Entry] = {
    "digits": Entry(
        "1-rectified flow on scikit-learn's 8x8 digits; embedded", "as this project", digits.WEIGHTS, digits.load
    ),
}


def load_teacher(source: str, device: torch.device | str = "cpu") -> Teacher:
    """The teacher called `source`; or the network at that path; or what the factory `module:function` returns.

    A factory is called with the device and returns a `Teacher`.

    Raises:
        BadInput: `source` is none of these, or what it names is not a teacher.
    """
    device = torch.device(device)
    if source in TEACHERS:
        return TEACHERS[source].load(device)
    if Path(source).exists():
        return checkpoint.load(Path(source), device)
    if ":" in source:
        return _load_factory(source, device)
    raise BadInput(
        f"no teacher {source!r}: wanted one of {', '.join(TEACHERS)}, the path of a .safetensors file "
        "or training run, or module:factory"
    )


def weights_sha256(source: str) -> str | None:
    """The `sha256` of the teacher called `source`, where its file tells without being loaded; a factory's does not."""
    path = TEACHERS[source].weights if source in TEACHERS else Path(source)
    return checkpoint.file_sha256(checkpoint.find_weights(path)) if path.exists() else None


def absolute_source(source: str) -> str:
    """`source` as any process can load it, now and when the run it names has gone on: the path of its weights."""
    if source in TEACHERS or not Path(source).exists():
        return source
    return str(checkpoint.find_weights(Path(source)).resolve())


def _load_factory(source: str, device: torch.device) -> Teacher:
    module_name, _, function = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own file in the working folder, as `python -m` would find it
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"teacher {source}: wanted module:factory; {error}") from error
    try:
        teacher = factory(device)
    except Exception as error:  # it is the user's own code
        raise BadInput(f"teacher {source}: the factory failed with {type(error).__name__}: {error}") from error
    if not isinstance(teacher, Teacher):
        raise BadInput(f"teacher {source}: wanted a pipeline.teachers.teacher.Teacher, got {type(teacher).__name__}")
    return teacher
