"""Published files of weights that are no teachers: their folder, and how a missing one is obtained."""

import os
from pathlib import Path

from pipeline.common.errors import WorkFailed
from pipeline.storage.cache import cache_folder
from pipeline.teachers.download import fetch, page

FOLDER = "TRAFLOW_WEIGHTS"  # the environment variable that names the folder of weights
OFFLINE = ("TRAFLOW_OFFLINE", "HF_HUB_OFFLINE")  # the environment variables that forbid downloads


class Unavailable(WorkFailed):
    """A published file or package is missing and cannot be downloaded."""


def folder() -> Path:
    """The folder of weights: $TRAFLOW_WEIGHTS, or traflow-pipeline/weights in the user's cache."""
    return cache_folder("weights", FOLDER)


def obtain(source: str, path: Path) -> Path:
    """Download `source` to `path` unless the file exists; return `path`.

    Raises:
        Unavailable: the download failed, or downloads are forbidden.
    """
    if path.is_file():
        return path
    forbidding = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if forbidding:
        raise Unavailable(
            f"{path}: wanted this file; it is missing, and {forbidding[0]} forbids downloads: "
            f"put the file from {page(source)} there"
        )
    try:
        fetch(source, path)
    except WorkFailed as error:
        raise Unavailable(str(error)) from error
    return path
