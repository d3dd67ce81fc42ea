"""Distances between sets of features: Fréchet, Wasserstein and energy distance here, the others by other packages."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.features.spaces import Extracted, Features
from eval.results import Metric, NotComputed
from eval.sample_counts import MAX_MANIFOLD_SIZE as MAX_MANIFOLD_SIZE
from eval.sample_counts import MAX_PAIRS, NEIGHBOURHOOD, OTHERS
from eval.sample_counts import MIN_SAMPLES as MIN_SAMPLES

CPU = torch.device("cpu")
NEAREST = 5  # k of density and coverage, as Naeem et al. 2020 use
NUM_SPLITS = 10  # of the Inception Score (Salimans et al. 2016)
KERNEL_SEED = 0  # of the random subsets that the kernel distance averages over
NUM_PARTS = 3  # of a reference that are compared with the rest of it
PARTS_SEED = 0
CHUNK = 4096  # feature vectors converted to float64 at a time


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of a set of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceSize:
    """How much a reference's statistics in one feature space hold, which may be known before they are."""

    space: str  # its name
    num_features: int
    num_kept: int | None  # images whose features are kept; None if only moments are known
    num_images: int | None  # None if the statistics do not say
    is_teacher: bool = False  # its own samples, so that no distance has a published name


@dataclass(frozen=True)
class ReferenceStats:
    """The reference's statistics in one feature space."""

    space: str  # its name
    moments: Moments
    features: Features | None  # of at most MAX_MANIFOLD_SIZE images; None if only moments are known
    num_images: int | None  # None if the statistics do not say
    is_teacher: bool = False

    @property
    def size(self) -> ReferenceSize:
        num_kept = None if self.features is None else len(self.features)
        return ReferenceSize(self.space, len(self.moments.mean), num_kept, self.num_images, self.is_teacher)


class RunningMoments:
    """Moments of features that come in batches [B, D], in float64 (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(())
        self._scatter = np.zeros(())

    def add(self, features: Features) -> None:
        """Update the moments with features [B, D], in chunks of `CHUNK` to bound the memory of their float64 copies."""
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
        """Mean and unbiased covariance (as numpy's); needs `count` > 1."""
        return Moments(self._mean, self._scatter / (self.count - 1))


def moments(features: Features) -> Moments:
    """Mean and unbiased covariance of features [N, D], N > 1."""
    running = RunningMoments()
    running.add(features)
    return running.result()


def teacher_stats(space: str, features: Features) -> ReferenceStats:
    """Statistics of the features [N, D] of the teacher's own samples, as a reference."""
    return ReferenceStats(space, moments(features), features[kept_rows(len(features))], len(features), is_teacher=True)


def frechet_distance(a: Moments, b: Moments, device: torch.device = CPU) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) (Heusel et al. 2017, Eq. 6), in float64 on `device`.

    With S_a = R R^T, the product's eigenvalues are those of R^T S_b R, which is symmetric: their roots are real, and
    the result is clean-fid's without its general matrix square root. Covariances may be singular.
    """
    shift = a.mean - b.mean
    covariances = [torch.from_numpy(each.covariance).to(device) for each in (a, b)]
    traces = float(sum(covariance.trace() for covariance in covariances))
    return float(shift @ shift) + traces - 2 * _trace_of_root(*covariances)


def _trace_of_root(a: Tensor, b: Tensor) -> float:
    """tr (a b)^1/2 of covariances float64 [D, D]."""
    root_a, root_b = _root(a), _root(b)
    # Through the one of lower rank: the other's product has eigenvalues that are zero, but for their rounding errors.
    root, other = (root_a, b) if root_a.shape[1] <= root_b.shape[1] else (root_b, a)
    return float(torch.linalg.eigvalsh(root.T @ other @ root).clamp(min=0).sqrt().sum())


def _root(covariance: Tensor) -> Tensor:
    """R [D, rank] with R R^T = `covariance` [D, D], up to eigenvalues below its rounding error."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors[:, kept] * values[kept].sqrt()
    return root


def wasserstein_distance(samples: Features, reference: Features) -> float:
    """W2, the root of the least mean square distance of pairs: exact, over as many of each, at most `MAX_PAIRS`.

    Both arguments are features [N, D]. Of two sets of one distribution it is not 0: it falls with their number.
    """
    from scipy.optimize import linear_sum_assignment

    count = min(len(samples), len(reference), MAX_PAIRS)
    squares = _distances(spread_rows(samples, count), spread_rows(reference, count)) ** 2
    return math.sqrt(squares[linear_sum_assignment(squares)].mean())


def energy_distance(samples: Features, reference: Features) -> float:
    """The root of 2 E|x - y| - E|x - x'| - E|y - y'| (Székely & Rizzo 2013, Eq. 3), pairs of two; 0 only if equal.

    Both arguments are features [N, D], of which at most `MAX_MANIFOLD_SIZE` are compared.
    """
    x, y = (spread_rows(each, MAX_MANIFOLD_SIZE) for each in (samples, reference))
    own = [_mean_distance(each, each) * len(each) / (len(each) - 1) for each in (x, y)]
    return math.sqrt(max(0.0, 2 * _mean_distance(x, y) - sum(own)))


def _mean_distance(x: Features, y: Features) -> float:
    parts = (x[start : start + MAX_PAIRS] for start in range(0, len(x), MAX_PAIRS))
    return sum(float(_distances(part, y).sum()) for part in parts) / (len(x) * len(y))


def _distances(x: Features, y: Features) -> NDArray[np.float64]:
    """Euclidean distances [N, M] between features [N, D] and [M, D], in float64."""
    from scipy.spatial.distance import cdist

    distances: NDArray[np.float64] = cdist(x, y)
    return distances


def kernel_distance(samples: Features, reference: Features) -> float:
    """The unbiased squared MMD with the kernel (x.y / D + 1)^3 (KID; Binkowski et al. 2018, Eq. 4), by clean-fid.

    The mean over 100 random subsets of at most 1,000 features, the same subsets in every run. May be slightly negative.
    Both arguments are features [N, D].
    """
    with warnings.catch_warnings(), _numpy_seed(KERNEL_SEED):
        from cleanfid.fid import kernel_distance as distance

        return float(distance(reference, samples))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, and restore its state afterwards."""
    state = np.random.get_state()  # noqa: NPY002 - clean-fid draws from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def precision_recall(samples: Features, reference: Features) -> tuple[float, float]:
    """The share of samples in the reference's manifold, and of the reference in the samples'; by torch-fidelity.

    A manifold is the union of balls that reach to each point's third neighbour (Kynkaanniemi et al. 2019, arXiv
    1904.06991). Both arguments are features [N, D]; both results are in [0, 1].
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    # In float64: torch computes distances by a matrix product, which loses small ones in float32.
    values = prc_features_to_metric(
        torch.from_numpy(samples).double(),
        torch.from_numpy(reference).double(),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(values["precision"]), float(values["recall"])


def density_coverage(samples: Features, reference: Features) -> tuple[float, float]:
    """The mean number of the reference's balls that hold a sample, over k, and the share that hold any; by prdc.

    Each ball reaches to the fifth neighbour (Naeem et al. 2020, arXiv 2002.09797, Eqs. 5 and 6). Both arguments are
    features [N, D]. Density may exceed 1; coverage is in [0, 1].
    """
    from prdc import prdc

    prdc.print = _print_nothing  # standard output is not redirected: other threads write there meanwhile
    values = prdc.compute_prdc(real_features=reference, fake_features=samples, nearest_k=NEAREST)
    return float(values["density"]), float(values["coverage"])


def _print_nothing(*_: object) -> None:
    pass


def inception_score(probabilities: Features) -> float:
    """exp(E KL(p(y|x) | p(y))) (Salimans et al. 2016, arXiv 1606.03498), the mean over 10 splits; by torch-fidelity.

    `probabilities` are [N, K], N >= 10. The result is in [1, K].
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    # The function takes logits; log-probabilities equal them up to a constant. A probability may be 0 by underflow.
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return float(isc_features_to_metric(torch.from_numpy(logits), splits=NUM_SPLITS)[KEY_METRIC_ISC_MEAN])


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that are computed together, and what they need."""

    names: tuple[str, ...]
    lower_is_better: bool
    needs: Literal["moments", "features", "probabilities"]  # probabilities of the samples, the others of the reference
    num_needed: int  # samples, and reference images if their features are needed
    compute: Callable[[Extracted, ReferenceStats, torch.device], tuple[float, ...]]
    space: str | None = None  # the only one it is for; its groups come before those of every space
    no_space: str | None = None  # one that it is not for


def _frechet_distance(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float]:
    return (frechet_distance(moments(sample.features), reference.moments, device),)


def _kernel_distance(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float]:
    assert reference.features is not None
    return (kernel_distance(sample.features, reference.features),)


def _wasserstein_distance(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float]:
    assert reference.features is not None
    return (wasserstein_distance(sample.features, reference.features),)


def _energy_distance(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float]:
    assert reference.features is not None
    return (energy_distance(sample.features, reference.features),)


def _inception_score(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float]:
    assert sample.probabilities is not None
    return (inception_score(sample.probabilities),)


def _precision_recall(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float, float]:
    return precision_recall(*_neighbours(sample, reference))


def _density_coverage(sample: Extracted, reference: ReferenceStats, device: torch.device) -> tuple[float, float]:
    return density_coverage(*_neighbours(sample, reference))


def _neighbours(sample: Extracted, reference: ReferenceStats) -> tuple[Features, Features]:
    assert reference.features is not None
    return sample.features[:MAX_MANIFOLD_SIZE], reference.features[:MAX_MANIFOLD_SIZE]


# In the order of columns.
METRIC_GROUPS = (
    # Two moments say little of points in the plane.
    MetricGroup(("w2",), True, "features", 2, _wasserstein_distance, "values"),
    MetricGroup(("energy",), True, "features", 2, _energy_distance, "values"),
    MetricGroup(("fd",), True, "moments", 2, _frechet_distance),
    # Of values the energy distance says more, in a fraction of the time.
    MetricGroup(("kd",), True, "features", 2, _kernel_distance, no_space="values"),
    MetricGroup(("is",), False, "probabilities", NUM_SPLITS, _inception_score),
    MetricGroup(("precision", "recall"), False, "features", NEIGHBOURHOOD + 1, _precision_recall),
    # prdc asks for a neighbour more than it uses.
    MetricGroup(("density", "coverage"), False, "features", NEAREST + 2, _density_coverage),
)
# Key and heading of a metric in a space, by default "NAME-SPACE" and the heading below. Only distances over Inception's
# features have the published names, and only those with clean-fid's resizer have them without a suffix.
PUBLISHED = {
    ("fd", "inception"): ("fid", "FID"),
    ("fd", "inception-tf"): ("fid-tf", "FID (legacy TensorFlow)"),
    ("fd", "inception-torch"): ("fid-torch", "FID (legacy PyTorch)"),
    ("kd", "inception"): ("kid", "KID"),
    ("kd", "inception-tf"): ("kid-tf", "KID (legacy TensorFlow)"),
    ("kd", "inception-torch"): ("kid-torch", "KID (legacy PyTorch)"),
    ("is", "inception-tf"): ("is", "Inception Score"),
}
DISTANCES = ("w2", "energy", "fd", "kd")  # that a published name says to be to data
HEADINGS = {
    "w2": "Wasserstein distance",
    "energy": "energy distance",
    "fd": "Fréchet distance",
    "kd": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


def columns(space: str, has_features: bool, has_probabilities: bool, is_teacher: bool = False) -> list[Metric]:
    """The metrics in `space`, given whether the reference has features and the samples have probabilities.

    `is_teacher`: the reference is the teacher's own samples.
    """
    return [
        Metric(key=key, heading=heading, space=space, lower_is_better=group.lower_is_better)
        for group in _groups(space)
        if _is_available(group, has_features, has_probabilities)
        for key, heading in _names(group, space, is_teacher)
    ]


def score(
    sample: Extracted, reference: ReferenceStats, distance_only: bool = False, device: torch.device = CPU
) -> dict[str, float]:
    """The values of `columns` by key, or only the Fréchet distance. Metrics that `not_computed` lists are left out."""
    scores: dict[str, float] = {}
    for group in _groups(reference.space)[: 1 if distance_only else None]:
        is_available = _is_available(group, reference.features is not None, sample.probabilities is not None)
        if is_available and not _shortage(group, len(sample.features), reference.size):
            keys = [key for key, _ in _names(group, reference.space, reference.is_teacher)]
            scores.update(zip(keys, group.compute(sample, reference, device), strict=True))
    return scores


def score_itself(reference: ReferenceStats, num_samples: int) -> list[dict[str, float]]:
    """The values of `columns` for `num_samples` of the reference, against its others: what perfect samples have.

    Of `NUM_PARTS` random parts, without the coverage, which depends much on how many others there are. Empty unless
    `OTHERS` times as many samples are kept: a distance depends on that too.
    """
    features, num_images = reference.features, reference.num_images
    if features is None or num_images is None or len(features) < OTHERS * num_samples:
        return []
    rng, found = np.random.default_rng(PARTS_SEED), []
    for _ in range(NUM_PARTS):
        order = rng.permutation(len(features))
        drawn, others = features[order[:num_samples]], features[order[num_samples:]]
        less = moments_without(reference.moments, num_images, drawn)
        rest = replace(reference, moments=less, features=others, num_images=num_images - num_samples)
        scores = score(Extracted(drawn), rest)
        found.append({key: value for key, value in scores.items() if not key.startswith("coverage-")})
    return found


def moments_without(whole: Moments, count: int, part: Features) -> Moments:
    """Those of `count` features of moments `whole`, less the features `part` [N, D] of them, N < count - 1."""
    left, own = count - len(part), moments(part)
    mean = (count * whole.mean - len(part) * own.mean) / left
    shift = own.mean - mean
    scatter = (count - 1) * whole.covariance - (len(part) - 1) * own.covariance
    scatter -= np.outer(shift, shift) * (len(part) * left / count)
    return Moments(mean, scatter / (left - 1))


def not_computed(num_samples: int, reference: ReferenceSize) -> list[NotComputed]:
    """The metrics that `score` leaves out for `num_samples` samples, with the reasons."""
    missing = []
    for group in _groups(reference.space):
        reason = (
            "the reference holds only statistics: give its images"
            if group.needs == "features" and reference.num_kept is None
            else _shortage(group, num_samples, reference)
        )
        if reason:
            names = _names(group, reference.space, reference.is_teacher)
            missing.append(NotComputed(metrics=tuple(key for key, _ in names), reason=reason))
    return missing


def cautions(num_samples: int, reference: ReferenceSize) -> list[str]:
    """A warning for each set that is too small for the Fréchet distance, because its covariance is singular."""
    num_features = reference.num_features
    num_others = None if reference.is_teacher else reference.num_images  # the teacher's are as many as the samples
    _, heading = _name("fd", reference.space, reference.is_teacher)
    return [
        f"{heading} in {reference.space}: {count} {what} do not span {num_features} features, so their covariance is "
        f"singular and the figure is not comparable with others: take at least {num_features + 1}"
        for count, what in ((num_samples, "samples"), (num_others, "images of the reference"))
        if count is not None and count <= num_features
    ]


def kept_rows(num_images: int) -> NDArray[np.int64]:
    """The indices of the images whose features are kept: all, or `MAX_MANIFOLD_SIZE` evenly spaced ones.

    Evenly spaced, because folders are sorted by class.
    """
    return _spread(num_images, MAX_MANIFOLD_SIZE)


def spread_rows(features: Features, count: int) -> Features:
    """`count` evenly spaced rows of `features`, or all if there are fewer."""
    return features[_spread(len(features), count)]


def _spread(num_rows: int, count: int) -> NDArray[np.int64]:
    num_kept = min(num_rows, count)
    return np.arange(num_kept, dtype=np.int64) * num_rows // num_kept


def metric_keys(spaces: Iterable[str], is_teacher: bool = False) -> tuple[str, ...]:
    """The keys of every metric in the feature spaces of these names."""
    return tuple(metric.key for space in spaces for metric in columns(space, True, True, is_teacher))


def _groups(space: str) -> list[MetricGroup]:
    groups = [group for group in METRIC_GROUPS if group.needs != "probabilities" or ("is", space) in PUBLISHED]
    return [group for group in groups if group.space in (None, space) and group.no_space != space]


def _is_available(group: MetricGroup, has_features: bool, has_probabilities: bool) -> bool:
    return {"moments": True, "features": has_features, "probabilities": has_probabilities}[group.needs]


def _names(group: MetricGroup, space: str, is_teacher: bool) -> list[tuple[str, str]]:
    """(key, heading) of each metric."""
    return [_name(name, space, is_teacher) for name in group.names]


def _name(name: str, space: str, is_teacher: bool) -> tuple[str, str]:
    published = None if is_teacher and name in DISTANCES else PUBLISHED.get((name, space))
    if published is not None:
        return published
    return f"{name}-{space}", HEADINGS[name] + (" to teacher" if is_teacher and name in DISTANCES else "")


def _shortage(group: MetricGroup, num_samples: int, reference: ReferenceSize) -> str:
    """The reason if there are too few samples or reference images; else empty."""
    counts = [(num_samples, "samples")]
    if group.needs == "features" and reference.num_kept is not None:
        counts.append((reference.num_kept, "images of the reference"))
    count, what = min(counts)
    return f"wanted at least {group.num_needed} {what}; there are {count}" if count < group.num_needed else ""
