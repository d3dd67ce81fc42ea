"""The arrays of an .npz, each checked against the file's length before memory is taken for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_RATIO = 1040  # bytes that deflate makes of one, at most


class Npz:
    """An open .npz; an array is read when it is asked for, and nothing in the file is executed."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array called `name`.

        Raises:
            KeyError: there is none.
            ValueError: it holds objects, or has another length than its header says.
        """
        entry = self._archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # zipfile unpacks the others whole, whatever is asked
            raise ValueError(f"array {name} is packed by another method than deflate")
        with self._archive.open(entry) as file:
            wanted = _num_bytes(file)
        if wanted != entry.file_size or wanted > MAX_RATIO * (entry.compress_size + 1):
            raise ValueError(f"array {name} has {entry.file_size} bytes, its header says {wanted}")
        with self._archive.open(entry) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        return array


def _num_bytes(file: IO[bytes]) -> int:
    """The length of an .npy file by its header."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
    if read_header is None:
        raise ValueError("it is in a version of .npy that is not for numbers")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return file.tell() + math.prod(shape) * dtype.itemsize


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """The .npz at `path`; raises `zipfile.BadZipFile` or OSError."""
    with ZipFile(path) as archive:
        yield Npz(archive)
