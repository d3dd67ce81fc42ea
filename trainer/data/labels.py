"""Classes of images: from the names of their folders, from EDM's dataset.json, or from a column of values."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from pipeline.common.errors import BadInput, one_line
from pipeline.common.faults import explain

INDEX = "dataset.json"

Label = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


def _pairs(labels: object) -> object:
    """EDM's own loader takes a mapping too."""
    return list(labels.items()) if isinstance(labels, dict) else labels


class _Index(BaseModel):
    """The dataset.json of EDM's dataset_tool: the class of each image by name, or null where there are no classes."""

    labels: Annotated[list[tuple[str, Label]] | None, BeforeValidator(_pairs)]


def posix(name: str) -> PurePosixPath:
    """The path that `name` means, also where a program on Windows wrote it."""
    return PurePosixPath(name.replace("\\", "/"))


def number_names(names: Iterable[str]) -> dict[str, int]:
    """Class numbers of `names` in natural order: "2" comes before "10"."""
    return {name: number for number, name in enumerate(sorted(set(names), key=_natural))}


def _natural(name: str) -> tuple[Any, ...]:
    """A path's key of sorting, folder by folder; runs of digits compare as numbers."""
    return tuple(_natural_part(part) for part in name.split("/")), name


def _natural_part(part: str) -> list[tuple[int, str]]:
    pieces = re.split(r"([0-9]+)", part)
    # Numbers compare by their length first; text between them is at even positions, so kinds never meet.
    return [(len(digits := piece.lstrip("0")), digits) if i % 2 else (0, piece) for i, piece in enumerate(pieces)]


def by_folder(pictures: Sequence[PurePosixPath]) -> tuple[list[int], tuple[str, ...]]:
    """The classes of `pictures` by their folders, -1 outside of any, and the names of the classes."""
    numbers = number_names(str(file.parent) for file in pictures if file.parent != PurePosixPath())
    return [numbers.get(str(file.parent), -1) for file in pictures], tuple(numbers)


def by_index(location: str, folder: PurePosixPath, content: bytes, pictures: Sequence[PurePosixPath]) -> list[int]:
    """The classes of `pictures` by the dataset.json with `content` in `folder`; it is at `location`, for errors.

    Raises:
        BadInput: it is not as EDM's dataset_tool writes it, or lacks a picture.
    """
    given = _parse_index(location, content)
    if given is None:
        return [-1] * len(pictures)
    # Names are relative to the index: a set is often packed together with the folder it lies in.
    labels = {folder / posix(name): label for name, label in given}
    missing = [file for file in pictures if file not in labels]
    if missing:
        raise BadInput(
            f"{location}: wanted a label for each of {len(pictures)} images; {len(missing)} have none, "
            f"{missing[0]} the first; complete it, or set its labels to null"
        )
    return [labels[file] for file in pictures]


def _parse_index(location: str, content: bytes) -> list[tuple[str, int]] | None:
    try:
        text = content.decode(json.detect_encoding(content))  # Windows' tools put a byte order mark first
        return _Index.model_validate_json(text).labels
    except ValidationError as error:
        problem = explain(error, _Index)
    except ValueError as error:
        problem = one_line(error)
    raise BadInput(
        f'{location}: wanted {{"labels": [["00000/img00000000.png", 3], ...]}} or null for the list, '
        f"as EDM's dataset_tool writes it; {problem}"
    )


def by_column(location: str, values: Sequence[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The classes in a column of whole numbers (-1 and None: no class) or of names, and their names.

    Raises:
        BadInput: a number is out of range.
    """
    if any(isinstance(value, str) for value in values):
        numbers = number_names(value for value in values if value is not None)
        return np.array([-1 if value is None else numbers[value] for value in values], np.int64), tuple(numbers)
    labels = [-1 if value is None else int(value) for value in values]
    check_range(location, labels)
    return np.array(labels, np.int64), ()


def check_range(location: str, labels: Sequence[int]) -> None:
    """Raises `BadInput` unless all `labels` are classes, or -1 for none."""
    if labels and not -1 <= min(labels) <= max(labels) < 2**31:
        raise BadInput(f"{location}: wanted classes from 0 on, -1 for none; they are {min(labels)} to {max(labels)}")
