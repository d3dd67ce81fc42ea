"""Stores of files: a local folder, or a prefix of an object store. After any crash a write is either whole or absent.

Object stores are fsspec's: `s3://bucket/prefix` needs s3fs, `gs://` gcsfs, `az://` adlfs. They take their
credentials from the environment, configuration files or the machine's role; nothing here reads, stores or prints them.
"""

import errno
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import fsspec
from fsspec.exceptions import FSTimeoutError
from pydantic import Field

from pipeline.common.config import PathText
from pipeline.common.errors import BadInput, WorkFailed, one_line, reason

FILES_AT_ONCE = 1000  # small files requested together from a remote store
ONE_PUT_BYTES = 5 * 2**30  # S3's limit for one PUT
MAPPED_FILES = 64  # kept open; the usual limit of a process is 1024
# The timeout of a request, and the slowest transfer on top of it. The backends' own timeouts do not suffice: a PUT that
# waits for the server's "100 Continue" waits for ever (aiobotocore 3.10).
REQUEST_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 1e6
READ_ATTEMPTS = 3  # where the store fails, or something else comes: a part, or a page about an error
WRITE_ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # after a failure; then twice as long

Result = TypeVar("Result")
Payload = TypeVar("Payload", bytes, memoryview)

# In configurations: a path or a URL, for `open_store`.
Location = Annotated[PathText, Field(min_length=1)]


def is_url(location: object) -> bool:
    """Whether `location` is a URL rather than a path."""
    return isinstance(location, str) and "://" in location


class Store(Protocol):
    """A flat set of named files. Every method raises an OSError with a one-line `strerror` if it fails.

    `open_store(location)` opens the same store on any machine that can reach it.
    """

    location: str
    is_local: bool

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file, by name; a folder has a name that ends in "/", and size 0."""

    def read(self, name: str, at_once: int = 1) -> bytes:
        """A whole file; a remote store has the longer for it, the larger it is and the more are read `at_once`."""

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of `names` that exist; a remote store reads many at a time."""

    def read_range(self, name: str, start: int, end: int) -> memoryview:
        """Bytes [start, end) of a file, fewer if it ends earlier; a memory map for a local file."""

    def write(self, name: str, payload: bytes) -> None:
        """Create or replace a file atomically."""

    def create(self, name: str, payload: bytes) -> bool:
        """Create a file unless it exists, and return whether it was created.

        Atomic where the store supports it; elsewhere existence is checked first.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def sweep(self) -> None:
        """Remove what killed writers left aside; no writer may be active."""

    def free_bytes(self) -> int | None:
        """Free space in bytes; None if it is unknown."""


def open_store(location: str) -> Store:
    """The store at `location`: a path, or a URL whose scheme fsspec knows. Nothing is touched yet.

    Raises:
        BadInput: it is empty, no such scheme, its package is missing, or the URL holds credentials.
    """
    if not location:
        raise BadInput("wanted the path or URL of a folder, got nothing")
    scheme, separator, rest = location.partition("://")
    if not separator:
        return Folder(Path(location).expanduser())
    scheme = scheme.lower()
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            raise BadInput(f"{location}: wanted {scheme}:///and/an/absolute/path, or a path alone")
        return Folder(Path(rest))
    if ":" in rest.rpartition("@")[0]:  # a secret may hold any character
        raise BadInput(f"{scheme}://...:...@...: credentials belong in the environment, not in the location")
    try:
        # Other processes write to the same prefix: a cached listing would be stale.
        filesystem, prefix = fsspec.url_to_fs(location, use_listings_cache=False)
    except (ImportError, OSError, ValueError) as error:
        raise BadInput(f"{location}: {one_line(error)}") from error
    return Bucket(location.rstrip("/"), filesystem, prefix.rstrip("/"))


def absence(store: Store, name: str) -> str:
    """ "there is no such folder", or where there is one, "there is no plan.json" or whatever `name` is."""
    is_there = not store.is_local or Path(store.location).exists()
    return f"there is no {name if is_there else 'such folder'}"


class Folder:
    """A local folder, or one of a shared file system."""

    is_local = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self._mapped = lru_cache(maxsize=MAPPED_FILES)(self._map)

    def sizes(self) -> dict[str, int]:
        try:
            entries = os.scandir(self.path)
        except FileNotFoundError:
            return {}
        sizes = {}
        with entries:
            for entry in entries:
                try:
                    sizes[f"{entry.name}/" if entry.is_dir() else entry.name] = 0 if entry.is_dir() else _size(entry)
                except FileNotFoundError:  # another writer has just renamed or removed it
                    continue
        return sizes

    def read(self, name: str, at_once: int = 1) -> bytes:
        return (self.path / name).read_bytes()

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        payloads = {}
        for name in names:
            try:
                payloads[name] = self.read(name)
            except FileNotFoundError:
                continue
        return payloads

    def read_range(self, name: str, start: int, end: int) -> memoryview:
        path = self.path / name
        status = path.stat()  # a file that was replaced is mapped anew
        return self._mapped(path, (status.st_ino, status.st_mtime_ns, status.st_size))[start:end]

    @staticmethod
    def _map(path: Path, version: tuple[int, ...]) -> memoryview:
        with path.open("rb") as file:
            try:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError:  # an empty file cannot be mapped
                return memoryview(b"")

    def write(self, name: str, payload: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _again_if_swept(lambda: write_atomic(self.path / name, payload))

    def create(self, name: str, payload: bytes) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        return _again_if_swept(lambda: self._create(self.path / name, payload))

    def _create(self, path: Path, payload: bytes) -> bool:
        aside = _write_aside(path, payload)
        try:
            os.link(aside, path)  # unlike a rename, it fails if `path` exists
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync(self.path)
        return True

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        sweep(self.path)

    def free_bytes(self) -> int | None:
        nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        return shutil.disk_usage(nearest).free


def _size(entry: "os.DirEntry[str]") -> int:
    is_dangling = entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - an entry is no Path
    return entry.stat(follow_symlinks=not is_dangling).st_size


class Bucket:
    """A prefix of an object store: a file is one PUT, which is atomic, and nothing is renamed."""

    is_local = False

    def __init__(self, location: str, filesystem: Any, prefix: str) -> None:
        self.location, self._filesystem, self._prefix = location, filesystem, prefix

    def sizes(self) -> dict[str, int]:
        try:
            entries = self._request("ls", self._prefix, detail=True)
        except FileNotFoundError:
            return {}
        names = {entry["name"].removeprefix(self._prefix).strip("/"): entry for entry in entries}
        names.pop("", None)  # the prefix itself, which some tools mark with an empty object
        return {f"{n}/" if e["type"] == "directory" else n: e["size"] or 0 for n, e in names.items()}

    def read(self, name: str, at_once: int = 1) -> bytes:
        for _ in range(READ_ATTEMPTS):  # a file may be replaced between the two requests
            size = self._request("info", self._path(name))["size"] or 0
            payload: bytes = self._request("cat_file", self._path(name), num_bytes=size * at_once)
            if len(payload) == size:
                return payload
        raise OSError(errno.EIO, f"{len(payload)} bytes came of {size}")

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        payloads: dict[str, bytes] = {}
        for start in range(0, len(names), FILES_AT_ONCE):
            paths = [self._path(name) for name in names[start : start + FILES_AT_ONCE]]
            # Not `cat`, which expands brackets and stars in a path as a pattern.
            results = self._request("cat_ranges", paths, None, None, on_error="return")
            for path, payload in zip(paths, results, strict=True):
                if isinstance(payload, bytes):
                    payloads[path.removeprefix(self._prefix).lstrip("/")] = payload
                elif not isinstance(payload, FileNotFoundError):
                    raise _as_os_error(payload)
        return payloads

    def read_range(self, name: str, start: int, end: int) -> memoryview:
        return memoryview(self._request("cat_file", self._path(name), num_bytes=end - start, start=start, end=end))

    def write(self, name: str, payload: bytes) -> None:
        self._put(name, payload)

    def create(self, name: str, payload: bytes) -> bool:
        try:
            self._put(name, payload, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if not isinstance(error.__cause__, TypeError | NotImplementedError | ValueError):
                raise
            # A file system without this mode.
            if self._request("exists", self._path(name)):
                return False
            self._put(name, payload)
        return True

    def remove(self, name: str) -> None:
        try:
            self._request("rm_file", self._path(name))
        except FileNotFoundError:
            return

    def sweep(self) -> None:
        return  # an interrupted PUT leaves nothing

    def free_bytes(self) -> int | None:
        return None

    def _put(self, name: str, payload: bytes, **mode: str) -> None:
        # Above their chunk size s3fs and gcsfs upload parts, which a kill leaves behind, invisible and billed.
        chunks = {"chunksize": ONE_PUT_BYTES} if self._filesystem.protocol[0] in ("s3", "gs", "gcs") else {}
        self._request("pipe_file", self._path(name), payload, num_bytes=len(payload), **chunks, **mode)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _request(self, method: str, *arguments: Any, num_bytes: int = 0, **options: Any) -> Any:
        """Call `method` of the file system; every exception of a backend becomes an OSError."""
        seconds = REQUEST_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND
        if self._filesystem.async_impl:
            options["timeout"] = seconds
        try:
            return getattr(self._filesystem, method)(*arguments, **options)
        except (FileNotFoundError, FileExistsError):
            raise
        except FSTimeoutError as error:
            raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:.0f} s") from error
        except Exception as error:
            raise _as_os_error(error) from error


def _as_os_error(error: Exception) -> OSError:
    # Azure's go on with the page that came, which may repeat the request that was signed.
    message = one_line(error).partition(" RequestId:")[0]
    return OSError(getattr(error, "errno", None) or errno.EIO, message)


def read_again(store: Store, read: Callable[[], Payload], is_whole: Callable[[Payload], bool]) -> Payload:
    """What `read` reads of `store`: again where it fails, or where a remote store answers what is not whole.

    The last answer is returned whatever it is.

    Raises:
        OSError: the last attempt failed.
    """
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            payload = read()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == READ_ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS * attempt)
        else:
            if store.is_local or is_whole(payload):
                break
    return payload


def _again_if_swept(write: Callable[[], Result]) -> Result:
    """What `write` returns, which is called again if a driver that begins has swept its temporary file away."""
    for _ in range(WRITE_ATTEMPTS - 1):
        with suppress(FileNotFoundError):
            return write()
    return write()


def write_atomic(path: Path, payload: bytes) -> None:
    """Write aside, sync, rename, sync the folder: after a crash `path` is the old file or the whole new one."""
    aside = _write_aside(path, payload)
    try:
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _write_aside(path: Path, payload: bytes) -> Path:
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


@contextmanager
def write_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder to fill; then sync it and rename it to `path`, which is whole or unchanged after any crash.

    `path` must not exist, or must be an empty folder; with `replace`, a folder there is removed first. If anything
    raises, the new folder is removed.

    Raises:
        OSError: the folder cannot be written, or `path` holds files.
    """
    path = path.absolute()
    aside = aside_of(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        for written in (*aside.rglob("*"), aside):
            sync(written)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush the file or folder at `path` to disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside_of(path: Path) -> Path:
    """A unique temporary path beside `path`, for a file or folder that is still being written."""
    return path.with_name(f".{path.name}.aside-{uuid.uuid4().hex}")


def is_aside(name: str) -> bool:
    """Whether `name` was made by `aside_of`."""
    return name.startswith(".") and ".aside-" in name


def sweep(folder: Path) -> None:
    """Remove what killed writers left aside in `folder`; no writer may be active there."""
    for aside in folder.glob(".*.aside-*"):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def absolute(location: str) -> str:
    """`location` in a form that a process in another working folder can open."""
    store = open_store(location)
    return str(store.path.resolve()) if isinstance(store, Folder) else location


def write_file(path: Path, payload: bytes) -> None:
    """`write_atomic`, after creating the folder of `path`.

    Raises:
        WorkFailed: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, payload)
    except OSError as error:
        raise WorkFailed(f"{path}: cannot be written ({reason(error)}); make room and run again") from error
