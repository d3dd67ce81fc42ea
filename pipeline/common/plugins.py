"""Factories of the user's own, named "module:function" or registered as an entry point."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TypeVar

import torch

from pipeline.common.errors import BadInput, WorkFailed, one_line

Factory = Callable[[torch.device], object]
Made = TypeVar("Made")


def import_function(source: str, kind: str) -> Factory:
    """Import the "module:function" in `source`; `kind` labels errors.

    Raises:
        BadInput: there is none, or its module cannot be imported.
    """
    module_name, _, function = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own file in the working folder, as `python -m` would find it
    with _importing(source, kind):
        imported: Factory = getattr(importlib.import_module(module_name), function)
    return imported


def import_entry_point(group: str, name: str, kind: str) -> Factory | None:
    """Import the function that an installed package registered as `name` in `group`; None if there is none.

    Raises:
        BadInput: it cannot be imported.
    """
    points = list(entry_points(group=group, name=name))
    if not points:
        return None
    with _importing(name, kind):
        imported: Factory = points[0].load()
    return imported


@contextmanager
def _importing(source: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        raise BadInput(f"{kind} {source}: wanted module:factory; {type(error).__name__}: {one_line(error)}") from error


def call_factory(factory: Factory, device: torch.device, wanted: type[Made], source: str, kind: str) -> Made:
    """What the user's `factory` makes on `device`; `kind` and `source` label errors.

    Raises:
        BadInput: it raised something, or did not return a `wanted`.
        WorkFailed: it raised this itself.
    """
    try:
        made = factory(device)
    except (BadInput, WorkFailed):
        raise
    except Exception as error:  # it is the user's own code
        raise BadInput(f"{kind} {source}: the factory failed with {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(made, wanted):
        name = f"{wanted.__module__}.{wanted.__name__}"
        article = "an" if name[0] in "aeiou" else "a"
        raise BadInput(f"{kind} {source}: wanted {article} {name}, got {type(made).__name__}")
    return made
