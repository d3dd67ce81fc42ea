"""Functions of the user's own, named "module:function"."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from pipeline.common.errors import BadInput, one_line


def find(source: str, what: str) -> Callable[..., Any]:
    """The function that `source`, of which `what` is to be had, names as "module:function".

    Raises:
        BadInput: there is none, or its module cannot be imported.
    """
    module_name, _, function = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own file in the working folder, as `python -m` would find it
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module_name), function)
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        raise BadInput(f"{what} {source}: wanted module:factory; {type(error).__name__}: {one_line(error)}") from error
    return found
