"""A set of images or other arrays, in memory or mapped from a file, with its classes."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.teachers.classes import TrainedClass, describe


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] and their classes int64 [N] in [0, num_classes), or -1 where there are none.

    Instead of images there may be arrays float32 [N, *shape], with values of any range.
    `class_names` are by number, empty where classes have only numbers. `notes` say in one line each what was left out
    of the source, or lost. `known_sha256` is the digest where it was computed before.
    """

    name: str
    images: NDArray[Any]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    known_sha256: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image (C, H, W), or of one array."""
        return self.images.shape[1:]

    @cached_property
    def data_range(self) -> tuple[float, float]:
        """The range of `to_float`'s values: of bytes [-1, 1], of other arrays from their least to their largest."""
        if self.images.dtype == np.uint8:
            return -1.0, 1.0
        return float(self.images.min()), float(self.images.max())

    @cached_property
    def sha256(self) -> str:
        """Digest of the images and their labels."""
        if self.known_sha256 is not None:
            return self.known_sha256
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    @cached_property
    def classes(self) -> tuple[TrainedClass, ...]:
        """The classes that have images, by number."""
        labels, counts = np.unique(self.labels[self.labels >= 0], return_counts=True)
        names = dict(enumerate(self.class_names))
        return tuple(
            TrainedClass(label=label, name=names.get(label, ""), num_images=count)
            for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
        )

    @property
    def num_classes(self) -> int:
        """The number of classes that a network for all labels needs; 0 if any image has none."""
        is_labelled = len(self.labels) > 0 and int(self.labels.min()) >= 0
        return max(int(self.labels.max()) + 1, len(self.class_names)) if is_labelled else 0

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        classes = describe(self.classes) if self.classes else "no classes"
        kind = "images" if self.images.dtype == np.uint8 else "arrays"
        return f"{self.name}: {len(self)} {kind} of {list(self.shape)}, {classes}"


def to_float(images: NDArray[Any]) -> NDArray[np.float32]:
    """Bytes [0, 255] to the range of the flows, [-1, 1]; floating-point arrays are values already."""
    if images.dtype == np.float32:
        return images
    return images.astype(np.float32) / np.float32(127.5) - 1
