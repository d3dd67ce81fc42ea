"""Feature spaces for tests: pixels, or means of them, whose distances are known."""

import numpy as np
import torch
from numpy.typing import NDArray

from eval.features.spaces import Extracted, FeatureSpace
from eval.features.weights import Unavailable


def pixels(device: torch.device) -> FeatureSpace:
    """A factory for `features: tests.support.spaces:pixels`: images [N, ...] as [N, D], from -1 to 1."""

    def extract(images: NDArray[np.uint8]) -> Extracted:
        return Extracted(images.reshape(len(images), -1).astype(np.float32) / np.float32(127.5) - 1)

    return FeatureSpace("pixels", "pixels", "none", "0" * 64, extract)


def small_space(device: torch.device) -> FeatureSpace:
    """A factory for "tests.support.spaces:small_space": means of the quarters of the first channel."""

    def extract(images: NDArray[np.uint8]) -> Extracted:
        quarters = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images[:, :1]).float(), 2)
        return Extracted(quarters.flatten(1).numpy())

    return FeatureSpace("quarters", "means of quarters", "none", "0" * 64, extract)


def missing(device: torch.device) -> FeatureSpace:
    """A factory whose network is not to be had."""
    raise Unavailable("weights.pt: wanted this file; put it there")
