"""A copy of a run in a store, such as s3://bucket/run: a machine that is lost takes nothing with it.

A checkpoint is whole there when its checkpoint.json is, which is written last.
"""

from pathlib import Path
from typing import Any

from pipeline.common.errors import WorkFailed, reason
from pipeline.common.progress import say
from pipeline.storage.cache import local_copy_of
from pipeline.storage.store import Store, is_url, open_store, write_folder
from trainer.checkpoints import checkpoint

BESIDE = ("config.yaml", "log.jsonl", "samples.png")  # what else of a run is copied, where it is there


def with_mirror(values: Any) -> Any:
    """The values of a configuration; an `out` that is a URL is the mirror of a copy in the user's cache."""
    if isinstance(values, dict) and is_url(values.get("out")):
        return values | {"mirror": values["out"], "out": local_copy_of(values["out"])}
    return values


def push(run: Path, location: str) -> None:
    """Copy the newest checkpoint of `run`, unless it is there, and what tells of the training; drop what `run` dropped.

    Raises:
        WorkFailed: the store cannot be written.
    """
    newest = checkpoint.find(run)
    try:
        place, info = _store(location, newest.name), (newest / checkpoint.INFO).read_bytes()
        if place.read_all([checkpoint.INFO]).get(checkpoint.INFO) != info:
            for path in sorted(newest.iterdir()):
                if path.name != checkpoint.INFO:
                    place.write(path.name, path.read_bytes())
            place.write(checkpoint.INFO, info)
        outer = open_store(location)
        for name in BESIDE:
            if (run / name).is_file():
                outer.write(name, (run / name).read_bytes())
        kept = {folder.name for folder in checkpoint.find_all(run)}
        for name in steps(location):
            if name not in kept:
                _remove(_store(location, name))
    except OSError as error:
        raise WorkFailed(f"{location}: {newest.name} cannot be copied there ({reason(error)})") from error


def local(location: str) -> Path:
    """The path `location`, or of a URL the copy in the user's cache, brought up to date.

    Raises:
        WorkFailed: see `pull`.
    """
    return download_run(location, local_copy_of(location)) if is_url(location) else Path(location)


def download_run(location: str, run: Path) -> Path:
    """`pull`, and the folder `run`."""
    pull(location, run)
    return run


def pull(location: str, run: Path) -> None:
    """Bring the newest whole checkpoint that is there into `run`, unless that has one as new.

    Raises:
        WorkFailed: the store cannot be read, or `run` not written.
    """
    try:
        newest = max((_step(folder.name) for folder in checkpoint.find_all(run)), default=-1)
        for name in reversed(steps(location)):
            if _step(name) <= newest:
                return
            if checkpoint.INFO in _store(location, name).sizes():
                _bring(location, name, run)
                say(f"{name} came from {location}")
                return
    except OSError as error:
        raise WorkFailed(f"{location}: its checkpoints cannot be brought to {run} ({reason(error)})") from error


def _bring(location: str, name: str, run: Path) -> None:
    store = _store(location, name)
    with write_folder(run / "checkpoints" / name) as folder:
        for file in store.sizes():
            (folder / file).write_bytes(store.read(file))
        for file, payload in open_store(location).read_all(BESIDE).items():
            (run / file).write_bytes(payload)


def steps(location: str) -> list[str]:
    """The names of the checkpoints of the run at `location`, a folder or URL, oldest first."""
    found = [name.rstrip("/") for name in open_store(f"{location}/checkpoints").sizes() if name.startswith("step-")]
    return sorted(found, key=_step)


def _step(name: str) -> int:
    return int(name.partition("-")[2])


def _store(location: str, name: str) -> Store:
    return open_store(f"{location}/checkpoints/{name}")


def _remove(place: Store) -> None:
    """The description first: what has none is no checkpoint."""
    for name in sorted(place.sizes(), key=lambda name: name != checkpoint.INFO):
        place.remove(name)
