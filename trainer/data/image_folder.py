"""Image sets of picture files: a folder, or a .zip as the folder that it would unpack to."""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from pipeline.common.errors import BadInput, one_line, reason
from pipeline.common.plural import counted
from pipeline.common.progress import format_bytes
from trainer.data import labels, pictures
from trainer.data.image_set import ImageSet
from trainer.data.mapped_images import Allocate, Source


@dataclass(frozen=True)
class File:
    """A file of a folder or zip, unread: its size as declared, its first bytes, at most so many, and its time."""

    size: int
    read: Callable[[int], bytes]
    modified: int = 0  # nanoseconds


Entry = tuple[PurePosixPath, File]


def find_folder(path: Path) -> Source:
    """A folder of equally sized pictures; sub-folders, if there are any, are the classes in natural order.

    With EDM's dataset.json in it the classes are those it gives instead. What is hidden or no picture is left out, and
    counted in the notes.
    """
    with _readable(path):
        entries = sorted(_walk(path, PurePosixPath(), frozenset()), key=lambda entry: entry[0])
    files = [f"{name} {file.size} {file.modified}" for name, file in entries]
    version = "\n".join([str(path.resolve()), *files])
    return Source(version, sum(file.size for _, file in entries), partial(_load_folder, path, entries))


def _load_folder(path: Path, entries: Iterable[Entry], allocate: Allocate) -> ImageSet:
    with _readable(path):
        return _from_files(path, path.name, entries, allocate)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename or path}: cannot be read ({reason(error)})") from error


def _walk(folder: Path, name: PurePosixPath, above: frozenset[str]) -> Iterator[Entry]:
    """The files in `folder`, also behind links, by their names relative to the set."""
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that it is in
        return
    for entry in folder.iterdir():
        entry_name = name / labels.posix(entry.name)
        if entry.is_dir():
            yield from _walk(entry, entry_name, above | {here})
        else:
            status = entry.stat() if entry.is_file() else None
            size, modified = (status.st_size, status.st_mtime_ns) if status else (0, 0)
            yield entry_name, File(size, partial(_read_file, entry), modified)


def _read_file(path: Path, limit: int) -> bytes:
    if not path.is_file():  # a device or a pipe may never answer
        raise FileNotFoundError(errno.ENOENT, "a broken link, or no file", str(path))
    with path.open("rb") as file:
        return file.read(limit)


def load_zip(path: Path, allocate: Allocate) -> ImageSet:
    """A .zip of equally sized pictures, as the folder that it would unpack to; nothing is unpacked."""
    try:
        with ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            files = [
                (labels.posix(entry.filename), File(entry.file_size, partial(_read_entry, archive, entry)))
                for entry in entries
            ]
            return _from_files(path, path.stem, files, allocate)
    except (*pictures.UNREADABLE, UnicodeDecodeError, BadZipFile) as error:
        raise BadInput(f"{path}: wanted a .zip of images; {one_line(error)}; pack or download it again") from error


def _read_entry(archive: ZipFile, entry: ZipInfo, limit: int) -> bytes:
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # zipfile unpacks the others whole, whatever is asked
        raise ValueError(f"{entry.filename} is packed by another method than deflate")
    with archive.open(entry) as file:
        return file.read(limit)


def _from_files(path: Path, name: str, entries: Iterable[Entry], allocate: Allocate) -> ImageSet:
    """The pictures among the files that lie at, or in, `path`, in the sorted order of their names."""
    files, left_out = _sort_out(entries)
    indices = [file for file in files if file.name == labels.INDEX]
    names = [file for file in files if file.name != labels.INDEX]
    if not names:
        raise BadInput(
            f"{path}: wanted pictures in it (PNG, JPEG, WebP, ...); it holds none{_describe(left_out, '; ')}"
        )
    class_names: tuple[str, ...] = ()
    if indices:
        index = min(indices, key=lambda file: len(file.parts))
        content = _read_whole(str(path / index), files[index])
        classes = labels.by_index(str(path / index), index.parent, content, names)
    else:
        classes, class_names = labels.by_folder(names)
    decoded = ((str(path / file), partial(_open, str(path / file), files[file])) for file in names)
    images, losses = pictures.stack(decoded, len(names), allocate)
    notes = (*losses, *filter(None, [_describe(left_out)]))
    return ImageSet(name, images, np.array(classes, np.int64), class_names, notes)


def _sort_out(entries: Iterable[Entry]) -> tuple[dict[PurePosixPath, File], list[tuple[str, PurePosixPath]]]:
    """The pictures and indices by name, in order; and the kind and name of every file that is left out."""
    suffixes, files = pictures.suffixes(), dict[PurePosixPath, File]()
    left_out: list[tuple[str, PurePosixPath]] = []
    for name, file in sorted(entries, key=lambda entry: entry[0]):
        if kind := _kind_left_out(name, file, suffixes):
            left_out.append((kind, name))
            continue
        if name in files:  # the last one stays, as in unpacking
            left_out.append(("of a repeated name", name))
        files[name] = file
    return files, left_out


def _kind_left_out(name: PurePosixPath, file: File, suffixes: set[str]) -> str | None:
    # __MACOSX is where macOS puts a "._" file for every file of a zip.
    if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
        return "hidden"
    if name.name == labels.INDEX or name.suffix.lower() in suffixes:
        return None
    try:
        is_picture = pictures.SIGNATURE.match(file.read(pictures.SIGNATURE_BYTES))
    except pictures.UNREADABLE:
        is_picture = None
    return None if is_picture else name.suffix.lower() or "without a suffix"


def _describe(left_out: list[tuple[str, PurePosixPath]], before: str = "") -> str:
    """One line on what was left out: of which kinds, how many of each, and the first of each."""
    if not left_out:
        return ""
    firsts = dict(reversed(left_out))
    kinds = [f"{count} {kind} ({firsts[kind]})" for kind, count in Counter(kind for kind, _ in left_out).most_common(5)]
    return f"{before}{counted(len(left_out), 'file')} left out, no pictures: {', '.join(kinds)}"


def _read_whole(name: str, file: File) -> bytes:
    limit = pictures.MAX_FILE_BYTES
    if file.size <= limit and len(content := file.read(file.size + 1)) <= limit:
        return content
    raise BadInput(f"{name}: wanted a file of at most {format_bytes(limit)}; it is larger")


def _open(name: str, file: File) -> Image.Image:
    return pictures.open_picture(BytesIO(_read_whole(name, file)))
