"""The images of the reference that are nearest to samples: what a student may have copied, or is close to."""

from dataclasses import dataclass

import numpy as np

from eval.features.spaces import FeatureSpace
from eval.metrics.distances import ReferenceStats, kept_rows
from pipeline.common.image_grid import Images
from trainer.data.image_set import to_float

NUM_NEIGHBOURS = 3


@dataclass(frozen=True)
class NearestImages:
    """Samples uint8 [N, C, H, W], the nearest images [N, K, C, H, W] of each, and among how many in which features."""

    sampler: str  # its title
    samples: Images
    neighbours: Images
    num_images: int
    space: str  # its title


def nearest_images(
    sampler: str, samples: Images, images: Images, space: FeatureSpace, stats: ReferenceStats
) -> NearestImages | None:
    """The `NUM_NEIGHBOURS` images nearest to each of `samples`, by the Euclidean distance of their features.

    `images` are all of the reference's, and `stats` has the features of their `kept_rows`; None if it has none.
    """
    from scipy.spatial.distance import cdist

    rows = kept_rows(len(images))
    if stats.features is None or len(stats.features) != len(rows):
        return None
    features = space.extract(to_float(samples) if space.of == "values" else samples).features
    order = np.argsort(cdist(features, stats.features), axis=1, kind="stable")[:, :NUM_NEIGHBOURS]
    return NearestImages(sampler, samples, images[rows[order]], len(rows), space.title)
