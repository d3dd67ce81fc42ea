"""The arrays of an .npz, each checked against the file's length before memory is taken for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_RATIO = 1040  # bytes that deflate makes of one, at most


PART_BYTES = 2**22


class Header(NamedTuple):
    """What an .npy file says of its array."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


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
        entry = self._entry(name)
        self.header(name)
        with self._archive.open(entry) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        return array

    def header(self, name: str) -> Header:
        """The shape and the type of the array called `name`; raises as reading it does."""
        entry = self._entry(name)
        with self._archive.open(entry) as file:
            header = _read_header(file)
            wanted = file.tell() + header.num_bytes
        if wanted != entry.file_size or wanted > MAX_RATIO * (entry.compress_size + 1):
            raise ValueError(f"array {name} has {entry.file_size} bytes, its header says {wanted}")
        return header

    def parts(self, name: str) -> Iterator[NDArray[Any]]:
        """The array called `name`, in parts of consecutive rows, so that it is never whole in memory."""
        shape, is_fortran, dtype = self.header(name)
        if is_fortran or not shape or 0 in shape:
            yield self[name]
            return
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        with self._archive.open(self._entry(name)) as file:
            _read_header(file)
            while part := file.read(max(1, PART_BYTES // row_bytes) * row_bytes):
                yield np.frombuffer(part, dtype).reshape(-1, *shape[1:])

    def _entry(self, name: str) -> ZipInfo:
        entry = self._archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # zipfile unpacks the others whole, whatever is asked
            raise ValueError(f"array {name} is packed by another method than deflate")
        return entry


def _read_header(file: IO[bytes]) -> Header:
    """The header of an .npy file, up to its data."""
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
    if read_header is None:
        raise ValueError("it is in a version of .npy that is not for numbers")
    header = Header(*read_header(file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects")
    return header


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """The .npz at `path`; raises `zipfile.BadZipFile` or OSError."""
    with ZipFile(path) as archive:
        yield Npz(archive)
