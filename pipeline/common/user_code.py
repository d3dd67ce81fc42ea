"""What the user's own code raised, on one line, with the line of it that did."""

import os
import sysconfig
import traceback
from pathlib import Path

import torch

from pipeline.common.errors import one_line

STAGES = tuple(Path(__file__).parents[2] / stage for stage in ("pipeline", "trainer", "eval", "traflow_pipeline"))
CALLERS = (*STAGES, Path(torch.__file__).parent)  # of the user's code
STANDARD, INSTALLED = (
    tuple(Path(sysconfig.get_path(name)) for name in names)
    for names in (("stdlib", "platstdlib"), ("purelib", "platlib"))
)


def describe(error: BaseException) -> str:
    """ "teacher.py:12 in velocity: ValueError: ...": the innermost place in the user's own files, and the error.

    In an installed package, the place is that at which it was called. There is none in an error of nobody's code, such
    as that of a module which cannot be found.
    """
    text = f"{type(error).__name__}: {one_line(error)}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    foreign = [frame for frame in frames if not _lies_in(frame.filename, CALLERS) and not _is_standard(frame.filename)]
    own = [frame for frame in foreign if not _lies_in(frame.filename, INSTALLED)]
    place = own[-1] if own else foreign[0] if foreign else None
    return text if place is None else f"{_shown(place)}: {text}"


def _shown(frame: traceback.FrameSummary) -> str:
    path = os.path.relpath(frame.filename)
    path = frame.filename if path.startswith("..") else path
    return f"{path}:{frame.lineno}" + ("" if frame.name == "<module>" else f" in {frame.name}")


def _is_standard(filename: str) -> bool:
    return _lies_in(filename, STANDARD) and not _lies_in(filename, INSTALLED)  # which lies in it


def _lies_in(filename: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in folders)
