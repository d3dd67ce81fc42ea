"""A copy of a run in a store, such as s3://bucket/run, so that losing a machine loses no checkpoint.

A checkpoint there is complete once it has its checkpoint.json, which is written last.
"""

from pathlib import Path

from pipeline.common.errors import WorkFailed, reason
from pipeline.common.progress import say
from pipeline.storage.cache import local_copy_of
from pipeline.storage.store import Store, is_url, open_store, write_file, write_folder
from pipeline.teachers.run_folder import STAGE, is_step
from trainer.checkpoints import checkpoint

RUN_FILES = ("config.yaml", "log.jsonl", "samples.png")  # copied besides checkpoints, where they exist


def push(run: Path, location: str) -> None:
    """Upload the newest checkpoint, configuration and log of `run`; delete the checkpoints that `run` has pruned.

    Raises:
        WorkFailed: the store cannot be written.
    """
    newest = checkpoint.find(run)
    try:
        store, info = _store(location, newest.name), (newest / checkpoint.INFO).read_bytes()
        if store.read_all([checkpoint.INFO]).get(checkpoint.INFO) != info:
            for path in sorted(newest.iterdir()):
                if path.name != checkpoint.INFO:
                    store.write(path.name, path.read_bytes())
            store.write(checkpoint.INFO, info)
        run_store = open_store(location)
        for name in RUN_FILES:
            if (run / name).is_file():
                run_store.write(name, (run / name).read_bytes())
        kept = {folder.name for folder in checkpoint.find_all(run)}
        for name in steps(location):
            if name not in kept:
                _remove(_store(location, name))
    except OSError as error:
        raise WorkFailed(f"{location}: {newest.name} cannot be copied there ({reason(error)})") from error


def local(location: str) -> Path:
    """The path `location`; for the URL of a run, a checkpoint or a file, an up-to-date copy in the user's cache.

    Raises:
        WorkFailed: see `pull`; or the file cannot be read.
    """
    if not is_url(location):
        return Path(location).expanduser()
    run, _, step = location.rstrip("/").rpartition("/checkpoints/")
    if location.endswith(".safetensors"):
        return _download_file(location)
    if run and is_step(step):
        return _download_step(run, step)
    runs = (location, f"{location.rstrip('/')}/{STAGE}")  # a training, or the one of a whole run
    found = next((candidate for candidate in runs if _has_steps(candidate)), location)
    return download_run(found, local_copy_of(found))


def _has_steps(location: str) -> bool:
    try:
        return bool(steps(location))
    except OSError as error:
        raise WorkFailed(f"{location}: cannot be read ({reason(error)})") from error


def _download_file(url: str) -> Path:
    folder, _, name = url.rpartition("/")
    path = local_copy_of(folder) / name
    try:
        write_file(path, open_store(folder).read(name))
    except OSError as error:
        raise WorkFailed(f"{url}: cannot be read ({reason(error)})") from error
    return path


def _download_step(location: str, name: str) -> Path:
    """A copy of one checkpoint, apart from the copy of its run, whose newest checkpoint counts."""
    run = local_copy_of(f"{location}/checkpoints/{name}")
    path = run / "checkpoints" / name
    try:
        if not path.exists():
            _download(location, name, run)
    except OSError as error:
        raise WorkFailed(f"{location}: {name} cannot be copied to {run} ({reason(error)})") from error
    return path


def download_run(location: str, run: Path) -> Path:
    """`pull`, then return `run`."""
    pull(location, run)
    return run


def pull(location: str, run: Path) -> None:
    """Download the newest complete checkpoint at `location` into `run`, unless `run` has it or a newer one.

    Raises:
        WorkFailed: the store cannot be read, or `run` cannot be written.
    """
    try:
        newest = max((_step(folder.name) for folder in checkpoint.find_all(run)), default=-1)
        for name in reversed(steps(location)):
            if _step(name) <= newest:
                return
            if checkpoint.INFO in _store(location, name).sizes():
                _download(location, name, run)
                say(f"downloaded {name} from {location}")
                return
    except OSError as error:
        raise WorkFailed(f"{location}: its checkpoints cannot be copied to {run} ({reason(error)})") from error


def _download(location: str, name: str, run: Path) -> None:
    store = _store(location, name)
    with write_folder(run / "checkpoints" / name) as folder:
        for file in store.sizes():
            (folder / file).write_bytes(store.read(file))
        for file, payload in open_store(location).read_all(RUN_FILES).items():
            (run / file).write_bytes(payload)


def steps(location: str) -> list[str]:
    """The names of the checkpoints of the run at `location`, a folder or URL, oldest first."""
    names = [name.rstrip("/") for name in open_store(f"{location}/checkpoints").sizes()]
    return sorted(filter(is_step, names), key=_step)


def _step(name: str) -> int:
    return int(name.partition("-")[2])


def _store(location: str, name: str) -> Store:
    return open_store(f"{location}/checkpoints/{name}")


def _remove(store: Store) -> None:
    """Delete checkpoint.json first: without it the rest is no checkpoint."""
    for name in sorted(store.sizes(), key=lambda name: name != checkpoint.INFO):
        store.remove(name)
