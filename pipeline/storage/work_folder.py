"""Finished parts of work: in a folder, and in a store if there is one, so that a lost machine loses none of them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import StoreFailed, reason
from pipeline.storage.store import Folder, Store, open_store, write_file


@dataclass(frozen=True)
class WorkFolder:
    """A folder of files, and its copy at `location`, where a file is before it is in the folder.

    Every method raises `StoreFailed` if the store cannot be read or written.
    """

    path: Path
    location: str | None = None

    def __truediv__(self, name: str) -> "WorkFolder":
        return WorkFolder(self.path / name, self.location and f"{self.location}/{name}")

    @property
    def _stores(self) -> list[Store]:
        return [Folder(self.path), *([open_store(self.location)] if self.location else [])]

    def names(self) -> set[str]:
        """The names of the files, wherever they are; those of folders end in "/"."""
        with self._said():
            return {name for store in self._stores for name in store.sizes()}

    def write(self, name: str, payload: bytes) -> None:
        """Create or replace a file.

        Raises:
            WorkFailed: it cannot be written.
        """
        if self.location:
            with self._said():
                open_store(self.location).write(name, payload)
        write_file(self.path / name, payload)

    def fetch(self, name: str) -> Path:
        """The path of a file, which is downloaded unless the folder has it; if neither place has it, nothing is there.

        Raises:
            WorkFailed: it cannot be written.
        """
        if self.location and not (self.path / name).is_file():
            with self._said():
                for payload in open_store(self.location).read_all([name]).values():
                    write_file(self.path / name, payload)
        return self.path / name

    def remove(self) -> None:
        """Remove all files, those of folders inside too."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.location:
            with self._said():
                _empty(self.location)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreFailed(f"{self.location or self.path}: cannot be read or written ({reason(error)})") from error


def _empty(location: str) -> None:
    store = open_store(location)
    for name in store.sizes():
        if name.endswith("/"):
            _empty(f"{location}/{name.rstrip('/')}")
        else:
            store.remove(name)
