"""Feature spaces in which sets of images are compared. A new one is a line in `FEATURES`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eval import digit_classifier
from trainer.images import to_float

BATCH_SIZE = 1024


@dataclass(frozen=True)
class FeatureSpace:
    """Maps images uint8 [N, *shape] to features float64 [N, D].

    A distance over any of these but Inception's is not an FID, and is never called one.
    """

    name: str
    shape: tuple[int, ...]
    extract: Callable[[NDArray[np.uint8]], NDArray[np.float64]]


def digits() -> FeatureSpace:
    """The 64 hidden units of the embedded digit classifier."""
    classifier = digit_classifier.load()

    def extract(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        batches = np.array_split(images, -(-len(images) // BATCH_SIZE))
        with torch.no_grad():
            features = [classifier.features(torch.from_numpy(to_float(batch))) for batch in batches]
        return torch.cat(features).double().numpy()

    return FeatureSpace("digit classifier, 64 features", (1, 8, 8), extract)


FEATURES: dict[str, Callable[[], FeatureSpace]] = {"digits": digits}
