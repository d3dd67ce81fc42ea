"""How far one set of features is from another. The maths are clean-fid's and torch-fidelity's own."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

NEIGHBOURHOOD = 3  # k of the k-nearest-neighbour manifolds, as Kynkaanniemi et al. 2019 and ADM's evaluator use
MIN_SAMPLES = NEIGHBOURHOOD + 1  # a sample, and the neighbours that span its ball
Features = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of a set of features."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def moments(features: Features) -> Moments:
    """Of features [N, D], N > 1."""
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) (Heusel et al. 2017, Eq. 6), by clean-fid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's notice that sqrtm's `disp` is going
        from cleanfid.fid import frechet_distance as distance

        return float(distance(a.mean, a.covariance, b.mean, b.covariance))


def precision_recall(samples: Features, reference: Features) -> tuple[float, float]:
    """Shares of samples inside the reference's manifold, and of the reference inside theirs; by torch-fidelity.

    Manifolds are unions of balls to the third neighbour (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(
        torch.from_numpy(samples),
        torch.from_numpy(reference),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found["precision"]), float(found["recall"])
