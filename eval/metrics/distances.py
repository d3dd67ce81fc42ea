"""How far one set of features is from another. The maths are clean-fid's, torch-fidelity's and prdc's own."""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from eval.features.spaces import Extracted, Features
from eval.results import Metric, NotComputed
from pipeline.common.errors import WorkFailed

NEIGHBOURHOOD = 3  # k of precision and recall, as Kynkaanniemi et al. 2019 and ADM's evaluator use
NEAREST = 5  # k of density and coverage, as Naeem et al. 2020 use
MIN_SAMPLES = NEIGHBOURHOOD + 1  # a sample, and the neighbours that span its ball
MOST_NEIGHBOURS = 10_000  # samples and images of which manifolds are made: Naeem et al. 2020 and others take as many
NUM_SPLITS = 10  # of the Inception Score (Salimans et al. 2016)
KERNEL_SEED = 0  # of the subsets that the kernel distance is a mean over
CHUNK = 4096  # features that are in float64 at a time


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of a set of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceStats:
    """What samples are compared with in the feature space called `space`."""

    space: str
    moments: Moments
    features: Features | None  # of at most MOST_NEIGHBOURS images; None: statistics alone
    num_images: int | None  # None: statistics that do not tell


class RunningMoments:
    """Moments of features that come in batches [B, D], in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(())
        self._scatter = np.zeros(())

    def add(self, features: Features) -> None:
        """Count `features` in; at most `CHUNK` of them are in float64 at a time."""
        for start in range(0, len(features), CHUNK):
            chunk = features[start : start + CHUNK].astype(np.float64)
            mean = chunk.mean(axis=0)
            centred = chunk - mean
            shift, total = mean - self._mean, self.count + len(chunk)
            self._scatter = self._scatter + centred.T @ centred
            self._scatter += np.outer(shift, shift) * (self.count * len(chunk) / total)
            self._mean = self._mean + shift * (len(chunk) / total)
            self.count = total

    def result(self) -> Moments:
        """The covariance is unbiased, as numpy's; `count` must be above 1."""
        return Moments(self._mean, self._scatter / (self.count - 1))


def moments(features: Features) -> Moments:
    """Of features [N, D], N > 1."""
    running = RunningMoments()
    running.add(features)
    return running.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) (Heusel et al. 2017, Eq. 6), by clean-fid.

    Raises:
        WorkFailed: the root of the covariances' product is not real, which singular ones bring about.
    """
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # scipy's notice that sqrtm's `disp` is going
        from cleanfid.fid import frechet_distance as distance

        try:
            return float(distance(a.mean, a.covariance, b.mean, b.covariance))
        except ValueError as error:
            raise WorkFailed(
                f"no Fréchet distance between singular covariances ({error}): take more samples"
            ) from error


def kernel_distance(samples: Features, reference: Features) -> float:
    """The squared MMD with the kernel (x.y / D + 1)^3, unbiased (KID; Binkowski et al. 2018, Eq. 4), by clean-fid.

    A mean over 100 random subsets of at most 1,000, the same ones in every run. May be slightly negative.
    """
    with warnings.catch_warnings(), _drawing_from(KERNEL_SEED):
        from cleanfid.fid import kernel_distance as distance

        return float(distance(reference, samples))


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Numpy's global generator begins at `seed`, and is afterwards as it was."""
    state = np.random.get_state()  # noqa: NPY002 - clean-fid draws from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def precision_recall(samples: Features, reference: Features) -> tuple[float, float]:
    """Shares of samples inside the reference's manifold, and of the reference inside theirs; by torch-fidelity.

    Manifolds are unions of balls to the third neighbour (Kynkaanniemi et al. 2019, arXiv 1904.06991).
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    # In float64, since torch's matrix form of distances loses the near ones in float32.
    found = prc_features_to_metric(
        torch.from_numpy(samples).double(),
        torch.from_numpy(reference).double(),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found["precision"]), float(found["recall"])


def density_coverage(samples: Features, reference: Features) -> tuple[float, float]:
    """How many of the reference's balls a sample is in, over k; the share of them that hold a sample; by prdc.

    Balls reach to the fifth neighbour (Naeem et al. 2020, arXiv 2002.09797, Eqs. 5 and 6). Density may exceed 1.
    """
    from prdc import compute_prdc

    with redirect_stdout(io.StringIO()):
        found = compute_prdc(real_features=reference, fake_features=samples, nearest_k=NEAREST)
    return float(found["density"]), float(found["coverage"])


def inception_score(probabilities: Features) -> float:
    """exp(E KL(p(y|x) | p(y))) (Salimans et al. 2016, arXiv 1606.03498), the mean over 10 splits; by torch-fidelity.

    `probabilities` [N, K], N >= 10.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    # It takes logits, which these are up to a constant; a probability may have underflown.
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return float(isc_features_to_metric(torch.from_numpy(logits), splits=NUM_SPLITS)[KEY_METRIC_ISC_MEAN])


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that are computed together, from what they need of the samples and of the reference."""

    names: tuple[str, ...]
    lower_is_better: bool
    needs: Literal["moments", "features", "probabilities"]  # the last of the samples, the others of the reference
    num_needed: int  # samples, and images where features of them are needed
    compute: Callable[[Extracted, ReferenceStats], tuple[float, ...]]


def _neighbours(sample: Extracted, reference: ReferenceStats) -> tuple[Features, Features]:
    assert reference.features is not None
    return sample.features[:MOST_NEIGHBOURS], reference.features[:MOST_NEIGHBOURS]


def _kernel_distance(sample: Extracted, reference: ReferenceStats) -> tuple[float]:
    assert reference.features is not None
    return (kernel_distance(sample.features, reference.features),)


def _inception_score(sample: Extracted, reference: ReferenceStats) -> tuple[float]:
    assert sample.probabilities is not None
    return (inception_score(sample.probabilities),)


# In the order of columns.
MEASURES = (
    MetricGroup(("fd",), True, "moments", 2, lambda s, r: (frechet_distance(moments(s.features), r.moments),)),
    MetricGroup(("kd",), True, "features", 2, _kernel_distance),
    MetricGroup(("is",), False, "probabilities", NUM_SPLITS, _inception_score),
    MetricGroup(
        ("precision", "recall"), False, "features", NEIGHBOURHOOD + 1, lambda s, r: precision_recall(*_neighbours(s, r))
    ),
    # prdc asks for a neighbour more than it uses.
    MetricGroup(
        ("density", "coverage"), False, "features", NEAREST + 2, lambda s, r: density_coverage(*_neighbours(s, r))
    ),
)
# The key and the heading of a metric where they are not "NAME-SPACE" and the one below. Only distances over Inception's
# features have the names that published figures have, and only with clean-fid's resizer are they without an addition.
PUBLISHED = {
    ("fd", "inception"): ("fid", "FID"),
    ("fd", "inception-tf"): ("fid-tf", "FID (legacy TensorFlow)"),
    ("fd", "inception-torch"): ("fid-torch", "FID (legacy PyTorch)"),
    ("kd", "inception"): ("kid", "KID"),
    ("kd", "inception-tf"): ("kid-tf", "KID (legacy TensorFlow)"),
    ("kd", "inception-torch"): ("kid-torch", "KID (legacy PyTorch)"),
    ("is", "inception-tf"): ("is", "Inception Score"),
}
HEADINGS = {
    "fd": "Fréchet distance",
    "kd": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


def columns(space: str, has_features: bool, has_probabilities: bool) -> list[Metric]:
    """The metrics in `space` against a reference whose features are at hand or not, of samples with probabilities."""
    return [
        Metric(key=key, heading=heading, space=space, lower_is_better=measure.lower_is_better)
        for measure in _measures(space)
        if _is_given(measure, has_features, has_probabilities)
        for key, heading in _names(measure, space)
    ]


def score(sample: Extracted, reference: ReferenceStats, distance_only: bool = False) -> dict[str, float]:
    """The values of `columns` by key, or the Fréchet distance alone; those that `not_computed` names are left out.

    Raises:
        WorkFailed: see `frechet_distance`.
    """
    scores: dict[str, float] = {}
    for measure in _measures(reference.space)[: 1 if distance_only else None]:
        given = _is_given(measure, reference.features is not None, sample.probabilities is not None)
        if given and not _shortage(measure, len(sample.features), reference):
            keys = [key for key, _ in _names(measure, reference.space)]
            scores.update(zip(keys, measure.compute(sample, reference), strict=True))
    return scores


def not_computed(num_samples: int, reference: ReferenceStats) -> list[NotComputed]:
    """What `score` leaves out of `num_samples` samples, and why."""
    found = []
    for measure in _measures(reference.space):
        reason = (
            "the reference is statistics alone: give its images"
            if measure.needs == "features" and reference.features is None
            else _shortage(measure, num_samples, reference)
        )
        if reason:
            found.append(NotComputed(metrics=tuple(key for key, _ in _names(measure, reference.space)), reason=reason))
    return found


def cautions(num_samples: int, reference: ReferenceStats) -> list[str]:
    """Why the Fréchet distance of `num_samples` samples says little, if it does: covariances that are singular."""
    num_features = len(reference.moments.mean)
    heading = PUBLISHED.get(("fd", reference.space), ("", HEADINGS["fd"]))[1]
    return [
        f"{heading} in {reference.space}: {count} {what} do not span {num_features} features, so that their "
        f"covariance is singular and the figure compares with no other: take at least {num_features + 1}"
        for count, what in ((num_samples, "samples"), (reference.num_images, "images of the reference"))
        if count is not None and count <= num_features
    ]


def spread(num_images: int) -> NDArray[np.int64]:
    """The rows of a reference whose features are kept: all, or `MOST_NEIGHBOURS` at even distances.

    Not the first ones: folders are sorted by class.
    """
    kept = min(num_images, MOST_NEIGHBOURS)
    return np.arange(kept, dtype=np.int64) * num_images // kept


def keys(spaces: Iterable[str]) -> tuple[str, ...]:
    """Of every metric against images in `spaces`."""
    return tuple(metric.key for space in spaces for metric in columns(space, True, True))


def _measures(space: str) -> list[MetricGroup]:
    return [measure for measure in MEASURES if measure.needs != "probabilities" or ("is", space) in PUBLISHED]


def _is_given(measure: MetricGroup, has_features: bool, has_probabilities: bool) -> bool:
    return {"moments": True, "features": has_features, "probabilities": has_probabilities}[measure.needs]


def _names(measure: MetricGroup, space: str) -> list[tuple[str, str]]:
    """(key, heading) of each metric."""
    return [PUBLISHED.get((name, space)) or (f"{name}-{space}", HEADINGS[name]) for name in measure.names]


def _shortage(measure: MetricGroup, num_samples: int, reference: ReferenceStats) -> str:
    """What there is too little of; empty if there is enough."""
    counts = [(num_samples, "samples")]
    if measure.needs == "features" and reference.features is not None:
        counts.append((len(reference.features), "images of the reference"))
    count, what = min(counts)
    return f"wanted at least {measure.num_needed} {what}; there are {count}" if count < measure.num_needed else ""
