"""A copy of a run in a store, such as s3://bucket/run, so that losing a machine loses no checkpoint.

A checkpoint there is complete once it has its checkpoint.json, which is written last; a snapshot, its snapshot.json.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.common.errors import WorkFailed, reason
from pipeline.common.progress import say
from pipeline.storage.cache import local_copy_of
from pipeline.storage.store import Folder, Store, is_url, open_store, write_file, write_folder
from pipeline.teachers.run_folder import STAGE, is_step
from trainer.checkpoints import checkpoint, snapshots

RUN_FILES = ("config.yaml", "log.jsonl", "samples.png")  # copied besides checkpoints, where they exist


def push(run: Path, location: str) -> None:
    """Upload the newest checkpoint, the snapshots, configuration and log of `run`; delete what `run` has pruned.

    Snapshots, of which a run prunes none, all stay.

    Raises:
        WorkFailed: the store cannot be written.
    """
    newest = checkpoint.find(run)
    try:
        _upload(snapshots.find_all(run), f"{location}/{snapshots.FOLDER}", snapshots.DESCRIPTION)
        _upload([newest], f"{location}/checkpoints", checkpoint.INFO)
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


def _upload(folders: Sequence[Path], location: str, mark: str) -> None:
    """Copy to `location` those of `folders` that are not there yet; the file `mark` comes last."""
    there = open_store(location).read_all([f"{folder.name}/{mark}" for folder in folders])
    for folder in folders:
        payload = (folder / mark).read_bytes()
        if there.get(f"{folder.name}/{mark}") == payload:
            continue
        store = open_store(f"{location}/{folder.name}")
        store.remove(mark)  # of other files
        for path in sorted(folder.iterdir()):
            if path.name != mark:
                store.write(path.name, path.read_bytes())
        store.write(mark, payload)


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
    found = find_run(location)
    return download_run(found, local_copy_of(found))


def local_snapshots(location: str) -> Path:
    """The path `location`; for the URL of a run, an up-to-date copy in the user's cache with all of its snapshots.

    Raises:
        WorkFailed: see `pull`.
    """
    if not is_url(location):
        return Path(location).expanduser()
    found = find_run(location)
    run, source = download_run(found, local_copy_of(found)), f"{found}/{snapshots.FOLDER}"
    mark = snapshots.DESCRIPTION
    try:
        there = open_store(source).read_all([f"{name}/{mark}" for name in _steps_in(source)])
        here = Folder(run / snapshots.FOLDER).read_all(list(there))
        for name in (name.removesuffix(f"/{mark}") for name in there if there[name] != here.get(name)):
            with write_folder(run / snapshots.FOLDER / name, replace=True) as folder:
                _copy(open_store(f"{source}/{name}"), folder)
    except OSError as error:
        raise WorkFailed(f"{source}: cannot be copied to {run} ({reason(error)})") from error
    return run


def find_run(location: str) -> str:
    """The training at the URL `location`, or the one of the whole run there."""
    runs = (location, f"{location.rstrip('/')}/{STAGE}")
    return next((candidate for candidate in runs if _has_steps(candidate)), location)


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
        _copy(store, folder)
        for file, payload in open_store(location).read_all(RUN_FILES).items():
            (run / file).write_bytes(payload)


def _copy(store: Store, folder: Path) -> None:
    for name in store.sizes():
        (folder / name).write_bytes(store.read(name))


def steps(location: str) -> list[str]:
    """The names of the checkpoints of the run at `location`, a folder or URL, oldest first."""
    return _steps_in(f"{location}/checkpoints")


def _steps_in(location: str) -> list[str]:
    names = [name.rstrip("/") for name in open_store(location).sizes()]
    return sorted(filter(is_step, names), key=_step)


def _step(name: str) -> int:
    return int(name.partition("-")[2])


def _store(location: str, name: str) -> Store:
    return open_store(f"{location}/checkpoints/{name}")


def _remove(store: Store) -> None:
    """Delete checkpoint.json first: without it the rest is no checkpoint."""
    for name in sorted(store.sizes(), key=lambda name: name != checkpoint.INFO):
        store.remove(name)
