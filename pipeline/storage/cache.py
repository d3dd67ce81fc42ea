"""Folders in the user's cache, or where an environment variable points."""

import hashlib
import os
from pathlib import Path

from pipeline.common.errors import BadInput
from pipeline.storage.store import is_url


def cache_folder(kind: str, variable: str = "") -> Path:
    """The folder that the environment `variable` names, or traflow-pipeline/`kind` in the user's cache.

    Raises:
        BadInput: there is no such user.
    """
    given = os.environ.get(variable)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    path = Path(given) if given else cache_home / "traflow-pipeline" / kind
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise BadInput(f"{path}: wanted a folder for {kind}; {error}") from error


def local_copy_of(location: str) -> Path:
    """The local folder that mirrors the URL `location`."""
    return cache_folder("copies") / hashlib.sha256(location.rstrip("/").encode()).hexdigest()[:16]


def with_mirror(values: object) -> object:
    """The values of a configuration; an `out` that is a URL becomes the mirror of a folder in the user's cache."""
    if isinstance(values, dict) and is_url(values.get("out")):
        return values | {"mirror": values["out"], "out": local_copy_of(values["out"])}
    return values
