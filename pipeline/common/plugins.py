"""Factories of the user's own, named "module:function" or registered as an entry point.

Importing one runs its code, so it is the user who names it. A file of somebody else, a plan.json or a checkpoint.json,
may name one too; it is imported only if this user has named the same factory before, on a command line or in a
configuration, and it is found in a file in which it was named. What was named is remembered in the user's cache, in one
file per factory with a line for each place it was found in: several projects may have a "teacher:load". A module that
lies in a data set or a checkpoint is never imported: it came with the data.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.common.module_files import advise
from pipeline.common.suggestions import suggest
from pipeline.common.user_code import describe

Factory = Callable[[torch.device], object]
Made = TypeVar("Made")
MAX_SHOWN = 3  # places in one message
DATA_FILES = ("plan.json", "checkpoint.json")  # whoever made these may have put a module beside them


def import_function(source: str, kind: str) -> Factory:
    """Import the "module:function" in `source`; `kind` labels errors.

    Raises:
        BadInput: there is none, its module cannot be imported, or lies in a data set.
    """
    module_name, _, function = source.partition(":")
    with _importing(source, kind), _working_folder_first():
        if module_name.endswith(".py"):
            raise BadInput(f"{kind} {source}: wanted module:factory{advise(module_name)}")
        origin = find_origin(source)
        if origin is None:
            raise BadInput(f"{kind} {source}: wanted module:factory; {_missing(source)}")
        _refuse_data_folder(source, kind, origin)
        module = importlib.import_module(module_name)
        if not hasattr(module, function):
            known = suggest(function, [name for name, value in vars(module).items() if callable(value)])
            raise BadInput(f"{kind} {source}: wanted module:factory; {module_name} has no {function!r}{known}")
        imported: Factory = getattr(module, function)
    if "" not in sys.path:  # it may import its neighbours later: they are found if nothing else is so called
        sys.path.append("")
    return imported


def import_entry_point(group: str, name: str, kind: str) -> Factory | None:
    """Import the function that an installed package registered as `name` in `group`; None if there is none.

    Raises:
        BadInput: it cannot be imported.
    """
    point = _entry_point(group, name)
    if point is None:
        return None
    with _importing(name, kind):
        imported: Factory = point.load()
    return imported


def find_origin(source: str) -> str | None:
    """The file or folder in which the first package of "module:function" is found, without importing it."""
    with _working_folder_first():
        spec = importlib.util.find_spec(source.partition(":")[0].partition(".")[0])
    if spec is None:
        return None
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    return str(Path(found).resolve()) if found else None


def remember(source: str, folder: Path, group: str) -> None:
    """Note in `folder` that the user named the factory `source`, and where it is found now."""
    with suppress(OSError, ValueError):  # in a read-only home the user will be asked again
        origin = _where(source, group)
        if origin and "\n" not in origin and origin not in _noted(source, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _note(folder, source).open("a") as file:  # others may do so now; older files end without a newline
                file.write(f"\n{origin}\n")


def is_remembered(source: str, folder: Path, group: str) -> bool:
    """Whether the user has named the factory `source` before, where it is found now."""
    return find(source, group) in _noted(source, folder)


def find(source: str, group: str) -> str | None:
    """Where the factory `source` is found, a module or an entry point of `group`; None where there is none."""
    with suppress(ImportError, ValueError):
        return _where(source, group)
    return None


def distrust(source: str, folder: Path, group: str, remedy: str) -> str:
    """Why the factory `source`, which a file of somebody else names, was not imported; `remedy` is how to name it."""
    found, noted = find(source, group), _noted(source, folder)
    if found is not None:
        return (
            f", code that you have not named before; it was not imported: if you trust {found}, name it with {remedy}"
        )
    return f"; {_missing(source, f', with {remedy}', list(map(Path, noted)))}"


def _missing(source: str, how: str = "", origins: Sequence[Path] = ()) -> str:
    """What to do where the module of `source` is not found, which was found in `origins` before, the last one last."""
    module = source.partition(":")[0].partition(".")[0]
    there = f"in the folder of {module}.py{how}"
    if origins:
        latest = [origin for origin in reversed(origins) if origin.exists()] or [origins[-1]]
        folders = [str(origin.parents[origin.stem == "__init__"]) for origin in latest[:MAX_SHOWN]]
        there = f"in {' or '.join(folders)}, where you named it before"
    return f"no module {module!r} is in this folder or installed: run this {there}, or put that folder on PYTHONPATH"


def _noted(source: str, folder: Path) -> list[str]:
    """Where the user's factory `source` was found when it was named, the last one last."""
    with suppress(OSError, ValueError):  # a note that cannot be read is none
        return [line for line in _note(folder, source).read_text().split("\n") if line]
    return []


def _note(folder: Path, source: str) -> Path:
    return folder / hashlib.sha256(source.encode(errors="replace")).hexdigest()[:32]


def _where(source: str, group: str) -> str | None:
    if ":" in source:
        return find_origin(source)
    point = _entry_point(group, source)
    return point.value if point else None


def _entry_point(group: str, name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=group, name=name)), None)


def _refuse_data_folder(source: str, kind: str, origin: str | None) -> None:
    # A file, a package's first file, or a folder without one.
    for folder in (Path(origin), *Path(origin).parents[:2]) if origin else ():
        if any((folder / name).is_file() for name in DATA_FILES):
            raise BadInput(
                f"{kind} {source}: it lies in a data set or checkpoint, {folder}: move it elsewhere to use it"
            )


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """Find the user's own file in the working folder, as `python -m` would.

    Left in front, a file there would stand in for every package that is imported later.
    """
    was_there = "" in sys.path
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry != ""), *([""] if was_there else [])]


@contextmanager
def _importing(source: str, kind: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        raise BadInput(f"{kind} {source}: wanted module:factory; {describe(error)}") from error


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
        raise BadInput(f"{kind} {source}: the factory failed: {describe(error)}") from error
    if not isinstance(made, wanted):
        name = f"{wanted.__module__}.{wanted.__name__}"
        article = "an" if name[0] in "aeiou" else "a"
        raise BadInput(f"{kind} {source}: wanted {article} {name}, got {type(made).__name__}")
    return made
