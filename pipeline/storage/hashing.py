"""The sha256 of a file, computed once for each version of it."""

import hashlib
from functools import cache
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The sha256 of the file at `path`, as 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return _file_sha256(path, (status.st_size, status.st_mtime_ns))


@cache
def _file_sha256(path: Path, _version: tuple[int, int]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
