"""Image sets of the Hugging Face Hub, or of a local folder, by the package `datasets`."""

import re
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import BadInput, one_line
from trainer.data import labels, pictures
from trainer.data.image_set import ImageSet
from trainer.data.mapped_images import Allocate, Source

# Columns that are classes by their name, where none is by its type.
CLASS_COLUMNS = ("label", "labels", "class", "class_label", "category", "target", "y")
CLASS_TYPE = re.compile(r"u?int\d+|(large_)?string")


def find_hugging_face(source: str) -> Source:
    """hf:NAME[:SPLIT][#COLUMN]: images are the first column of type Image, the split is train unless given.

    The classes are COLUMN, of type ClassLabel, whole numbers or names; without one, the first ClassLabel, else a column
    with one of the names `CLASS_COLUMNS`.
    """
    name, _, column = source.removeprefix("hf:").partition("#")
    name, _, split = name.partition(":")
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise BadInput(f"{source}: wanted the package datasets; pip install datasets") from error
    rows = _open(datasets, source, name, split or "train").with_format(None)
    image = next((key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)), None)
    if image is None or not len(rows):
        raise BadInput(
            f"{source}: wanted rows with a column of type Image; it has {len(rows)} rows of {', '.join(rows.features)}"
        )
    classes, class_names, note = _classes(datasets, source, rows, column)

    def decode(allocate: Allocate) -> ImageSet:
        cells = (row[image] for row in rows.select_columns([image]))
        decoded = ((f"{source}, row {row}", partial(next, cells)) for row in range(len(rows)))
        images, losses = pictures.stack(decoded, len(rows), allocate)
        return ImageSet(source.removeprefix("hf:"), images, classes, class_names, (*losses, *filter(None, [note])))

    # A fingerprint is of the files and of all that was done to them; `data` is arrow's table.
    fingerprint, table = getattr(rows, "_fingerprint", None), getattr(rows, "data", None)
    return Source(f"{source} {fingerprint}", table.nbytes if fingerprint and table is not None else 0, decode)


def _open(datasets: Any, source: str, name: str, split: str) -> Any:
    saved = any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub's client, its formats and arrow have no common ancestor of their errors
        raise BadInput(f"{source}: cannot be loaded with split {split!r} ({one_line(error)})") from error
    if not saved:
        return loaded
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or split): loaded}
    if split not in splits:
        raise BadInput(f"{source}: wanted split {split!r}; it has {', '.join(splits)}; say hf:{name}:SPLIT")
    return splits[split]


def _classes(
    datasets: Any, source: str, rows: Any, asked: str
) -> tuple[NDArray[np.int64], tuple[str, ...], str | None]:
    """The classes of the rows, their names, and a note on the columns that were not taken."""
    possible = list(_class_columns(datasets, rows))
    if asked and asked not in possible:
        raise BadInput(
            f"{source}: wanted a column of classes (ClassLabel, whole numbers or names); {asked!r} is none, "
            f"{', '.join(possible) or 'no column'} is"
        )
    typed = [key for key in possible if isinstance(rows.features[key], datasets.ClassLabel)]
    column = asked or next(iter([*typed, *(key for key in CLASS_COLUMNS if key in possible)]), None)
    if column is None:
        others = [key for key in rows.features if key in {*possible, *CLASS_COLUMNS}]
        note = f"no column is taken for classes, of {', '.join(others)}; hf:NAME:SPLIT#COLUMN takes one"
        return np.full(len(rows), -1, np.int64), (), note if others else None
    others = [key for key in rows.features if key in {*typed, *CLASS_COLUMNS} and key != column]
    values = list(rows.select_columns([column])[:][column])
    classes, names = labels.by_column(f"{source}, column {column}", values)
    note = f"classes are of column {column}, not of {', '.join(others)}; hf:NAME:SPLIT#COLUMN takes another"
    return classes, tuple(getattr(rows.features[column], "names", None) or names), note if others else None


def _class_columns(datasets: Any, rows: Any) -> Iterator[str]:
    for key, feature in rows.features.items():
        is_class = CLASS_TYPE.fullmatch(str(getattr(feature, "dtype", "")))
        if isinstance(feature, datasets.ClassLabel) or is_class:
            yield key
