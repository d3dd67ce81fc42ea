"""A folder of samples, one picture each: a command that was interrupted draws only what is missing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.common.config import differences
from pipeline.common.errors import BadInput, reason
from pipeline.common.progress import Advance
from pipeline.storage.store import sweep
from traflow_pipeline.sample_source import SampleSource
from traflow_pipeline.samples import Samples, check_drawable, whole_file

SETTINGS = "sample.json"  # what the pictures were drawn with
LABELS = "dataset.json"  # EDM's: {"labels": [["000000.png", 3], ...]}


def save_folder(
    folder: Path, source: SampleSource, indices: range, seed: int, label: int | None, advance: Advance
) -> None:
    """Write the sample i of `indices` to `folder`/i.png, i in six digits or more; pictures that exist are kept.

    The classes, if there are any, are in dataset.json.

    Raises:
        BadInput: the samples are no images, the folder cannot be written, or it holds other files or samples.
    """
    check_drawable(source.image_shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        _check_same(folder, {"samples": source.identity, "seed": seed, "label": label})
        existing = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({reason(error)})") from error
    for batch in source.split(indices):
        missing = [index for index in batch if _name(index) not in existing]
        if missing:
            (samples,) = source.batches(batch, seed, label)
            _save(folder, batch, missing, samples)
        advance(len(batch), skipped=not missing)
    if source.num_classes:
        _save_labels(folder, indices, source.labels(indices, seed, label))


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `BadInput` unless `folder` is empty, or holds samples of these settings."""
    file = folder / SETTINGS
    if file.is_file():
        there = _read(file, "what the pictures were drawn with")
        if fields := differences(there, settings):
            raise BadInput(f"{folder} holds other samples ({fields}); choose another folder")
        return
    if any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty and holds no samples; choose another folder")
    with whole_file(file) as opened:
        opened.write(json.dumps(settings).encode())


def _save(folder: Path, batch: range, missing: Sequence[int], samples: Samples) -> None:
    images = samples.images
    for index in missing:
        image = images[index - batch.start]
        with whole_file(folder / _name(index)) as file:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="png")


def _save_labels(folder: Path, indices: range, labels: Sequence[int]) -> None:
    file = folder / LABELS
    known = dict(_known_labels(file)) if file.is_file() else {}
    known |= dict(zip(map(_name, indices), labels, strict=True))
    with whole_file(file) as opened:
        opened.write(json.dumps({"labels": sorted(known.items())}).encode())


def _known_labels(file: Path) -> Iterator[tuple[str, int]]:
    pairs = _read(file, "the classes of the pictures").get("labels")
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], int):
            yield pair[0], pair[1]


def _read(file: Path, wanted: str) -> dict[str, Any]:
    """The mapping in the JSON of `file`.

    Raises:
        BadInput: it holds none.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadInput(f"{file}: wanted {wanted}; it cannot be read: choose another folder")
    return content


def _name(index: int) -> str:
    return f"{index:06d}.png"
