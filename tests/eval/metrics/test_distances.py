import io
import warnings
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.features.spaces import Extracted, Features
from eval.metrics import distances
from eval.metrics.distances import (
    Moments,
    ReferenceStats,
    RunningMoments,
    cautions,
    columns,
    density_coverage,
    frechet_distance,
    inception_score,
    kept_rows,
    kernel_distance,
    moments,
    moments_without,
    not_computed,
    precision_recall,
    score,
    score_itself,
)

RNG = np.random.default_rng(0)
INCEPTIONS = ("inception", "inception-tf", "inception-torch")


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Features:
    return RNG.normal(mean, std, shape).astype(np.float32)


def measured(features: Features, space: str = "digits", has_features: bool = True) -> ReferenceStats:
    return ReferenceStats(space, moments(features), features if has_features else None, len(features))


def test_a_set_is_at_distance_zero_from_itself() -> None:
    features = normal(500, 8)
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-6)


def test_two_gaussians_are_at_their_closed_form_distance() -> None:
    # Commuting covariances: |mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2.
    a = Moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Moments(np.array([0.0, 0.0]), np.diag([1.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 1)


@pytest.mark.parametrize(
    ("num_samples", "num_images", "num_features"), [(500, 400, 16), (12, 400, 16), (400, 12, 16), (9, 7, 16), (5, 5, 2)]
)
def test_the_distance_is_clean_fids_also_where_covariances_are_singular(
    num_samples: int, num_images: int, num_features: int
) -> None:
    from cleanfid.fid import frechet_distance as theirs

    mixing = np.linspace(-1, 1, num_features**2, dtype=np.float32).reshape(num_features, -1) + np.eye(num_features)
    sets = (normal(num_samples, num_features) @ mixing, normal(num_images, num_features, mean=0.3, std=2.0))
    a, b = (moments(features.astype(np.float32)) for features in sets)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy deprecates sqrtm's `disp`
        wanted = theirs(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-6)


def test_the_distance_knows_features_that_never_change() -> None:
    constant = Moments(np.zeros(2), np.zeros((2, 2)))
    other = Moments(np.array([3.0, 4.0]), np.diag([2.0, 0.0]))
    assert frechet_distance(constant, other) == pytest.approx(25 + 2)
    assert frechet_distance(constant, constant) == 0


def test_the_distance_of_samples_goes_to_that_of_their_gaussians() -> None:
    a = moments(normal(200_000, 2, mean=1, std=2))
    b = moments(normal(200_000, 2))
    assert frechet_distance(a, b) == pytest.approx(2 * 1 + 2 * 1, rel=0.02)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 5), st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None)
def test_moments_are_numpys_however_the_features_are_cut(sizes: list[int], num_features: int, mean: float) -> None:
    sizes = [*sizes, 2]
    features = normal(sum(sizes), num_features, mean=mean)
    running = RunningMoments()
    for part in np.split(features, np.cumsum(sizes)[:-1]):
        running.add(part)
    found = running.result()
    np.testing.assert_allclose(found.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        found.covariance, np.atleast_2d(np.cov(features, rowvar=False)), rtol=1e-9, atol=1e-9 * (1 + abs(mean))
    )
    assert running.count == sum(sizes)


def test_moments_take_little_more_memory_than_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    features = normal(20_000, 64)
    monkeypatch.setattr(distances, "CHUNK", 1000)
    tracemalloc.start()
    moments(features)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < features.nbytes / 2


def test_the_kernel_distance_is_clean_fids_under_the_same_seed() -> None:
    from cleanfid.fid import kernel_distance as theirs

    samples, reference = normal(300, 4, mean=0.5), normal(200, 4)
    np.random.seed(distances.KERNEL_SEED)  # noqa: NPY002 - clean-fid draws from it
    assert kernel_distance(samples, reference) == theirs(reference, samples)


def test_the_kernel_distance_is_the_same_every_time_and_draws_from_nobodys_generator() -> None:
    samples, reference = normal(300, 4, mean=0.5), normal(200, 4)
    np.random.seed(7)  # noqa: NPY002 - the caller's
    first = kernel_distance(samples, reference)
    drawn = np.random.random()  # noqa: NPY002
    assert kernel_distance(samples, reference) == first
    np.random.seed(7)  # noqa: NPY002
    assert np.random.random() == drawn  # noqa: NPY002


def test_the_kernel_distance_is_zero_of_one_distribution_and_known_of_two_points() -> None:
    assert (
        abs(kernel_distance(normal(300, 4), normal(300, 4)))
        < kernel_distance(normal(300, 4), normal(300, 4, mean=0.5)) / 5
    )
    # At 0 and at (1, 1): k(x, x) = 1, k(y, y) = 2^3, k(x, y) = 1.
    zeros, ones = np.zeros((10, 2), np.float32), np.ones((10, 2), np.float32)
    assert kernel_distance(zeros, ones) == pytest.approx(1 + 8 - 2)


def test_precision_is_of_the_samples_and_recall_of_the_reference() -> None:
    left, right = normal(400, 2, mean=-10), normal(400, 2, mean=10)
    precision, recall = precision_recall(normal(400, 2, mean=-10), np.concatenate([left, right]))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.06)
    precision, recall = precision_recall(np.concatenate([left, right]), normal(400, 2, mean=-10))
    assert precision == pytest.approx(0.5, abs=0.06)
    assert recall > 0.9


def test_coverage_is_of_the_reference_and_density_counts_its_balls() -> None:
    left, right = normal(400, 2, mean=-10), normal(400, 2, mean=10)
    with redirect_stdout(io.StringIO()) as printed:
        density, coverage = density_coverage(normal(400, 2, mean=-10), np.concatenate([left, right]))
        far, none = density_coverage(normal(400, 2, mean=90), left)
    assert printed.getvalue() == ""
    assert density == pytest.approx(1, abs=0.15)  # 1 where samples are distributed as the reference there
    assert coverage == pytest.approx(0.5, abs=0.06)
    assert far == none == 0


def test_coverage_of_equal_sets_is_what_naeem_et_al_derive() -> None:
    """Their Eq. 13: 1 - (N - 1) ... (N - k) / ((2N - 1) ... (2N - k)), about 1 - 2^-k."""
    found = np.mean([density_coverage(normal(300, 3), normal(300, 3)) for _ in range(4)], axis=0)
    np.testing.assert_allclose(found, [1, 1 - 2.0**-distances.NEAREST], atol=0.05)


def test_the_inception_score_is_the_number_of_classes_that_are_sure_and_even() -> None:
    sure = np.tile(np.eye(5, dtype=np.float32), (400, 1))
    assert inception_score(sure) == pytest.approx(5, rel=0.03)  # a split's classes are not quite even
    assert inception_score(np.full((100, 5), 0.2, np.float32)) == pytest.approx(1)


def test_only_inceptions_distances_are_called_fid_or_kid() -> None:
    for space in INCEPTIONS:
        assert [m.heading[:3] for m in columns(space, True, False)][:2] == ["FID", "KID"]
    for metric in [m for space in ("digits", "dinov2", "quarters") for m in columns(space, True, True)]:
        assert "FID" not in metric.heading
        assert "KID" not in metric.heading
        assert metric.key.endswith(f"-{metric.space}")
    every = [metric for space in INCEPTIONS for metric in columns(space, True, True)]
    assert len({metric.heading for metric in every[:2]}) == 2
    assert len({metric.key for metric in every}) == len(every)


def test_columns_stand_in_a_fixed_order_and_only_where_they_can_be_computed() -> None:
    assert [metric.key for metric in columns("inception-tf", True, True)] == [
        *("fid-tf", "kid-tf", "is"),
        *("precision-inception-tf", "recall-inception-tf", "density-inception-tf", "coverage-inception-tf"),
    ]
    assert [metric.key for metric in columns("inception-tf", False, True)] == ["fid-tf", "is"]
    assert [metric.key for metric in columns("inception", False, True)] == ["fid"]
    assert [metric.key for metric in columns("digits", False, False)] == ["fd-digits"]
    assert {m.key: m.lower_is_better for m in columns("inception-tf", True, True)}["is"] is False
    assert {m.key: m.lower_is_better for m in columns("inception-tf", True, True)}["kid-tf"] is True


@pytest.mark.parametrize("has_features", [True, False])
@pytest.mark.parametrize("space", ["digits", "inception-tf"])
def test_scores_are_those_of_the_columns(space: str, has_features: bool) -> None:
    features, probabilities = normal(40, 3), np.full((40, 2), 0.5, np.float32)
    sample = Extracted(features, probabilities if space == "inception-tf" else None)
    reference = measured(features, space, has_features)
    found = score(sample, reference)
    assert list(found) == [m.key for m in columns(space, has_features, sample.probabilities is not None)]
    assert found[columns(space, True, False)[0].key] == pytest.approx(0, abs=1e-5)
    missing = {key for entry in not_computed(40, reference.size) for key in entry.metrics}
    assert missing.isdisjoint(found)
    assert missing == (set() if has_features else set(distances.metric_keys([space])) - set(found))


def test_a_reference_by_itself_has_what_perfect_samples_have() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(2000, 2)).astype(np.float32)
    parts = score_itself(measured(points[:1600], "values"), 400)
    itself = {key: np.mean([part[key] for part in parts]) for key in parts[0]}
    perfect = score(Extracted(points[1600:]), measured(points[:1200], "values"))
    assert set(perfect) - set(itself) == {"coverage-values"}
    for key in ("w2-values", "precision-values", "recall-values"):
        assert itself[key] == pytest.approx(perfect[key], rel=0.15)


def test_moments_without_a_part_are_those_of_the_rest() -> None:
    features = normal(30, 3, mean=2)
    rest, wanted = moments_without(moments(features), 30, features[:9]), moments(features[9:])
    np.testing.assert_allclose(rest.mean, wanted.mean, rtol=1e-10)
    np.testing.assert_allclose(rest.covariance, wanted.covariance, rtol=1e-8)


def test_a_reference_too_small_or_of_unknown_size_says_nothing_of_itself() -> None:
    points = normal(40, 2)
    assert score_itself(measured(points), 10) != []
    assert score_itself(replace(measured(points), num_images=400), 10) != []
    assert score_itself(measured(points), 11) == []
    assert score_itself(measured(points, has_features=False), 10) == []
    assert score_itself(replace(measured(points), num_images=None), 10) == []


@pytest.mark.parametrize("num_samples", range(1, 12))
@pytest.mark.parametrize("num_images", [2, 5, 20])
def test_with_too_few_of_either_a_metric_is_left_out_and_the_reason_is_given(num_samples: int, num_images: int) -> None:
    reference = measured(normal(num_images, 2))
    found = score(Extracted(normal(num_samples, 2)), reference)
    left_out = {key: entry.reason for entry in not_computed(num_samples, reference.size) for key in entry.metrics}
    assert set(found) | set(left_out) == set(distances.metric_keys(["digits"]))
    assert not set(found) & set(left_out)
    assert np.isfinite(list(found.values())).all()
    assert all(str(min(num_samples, num_images)) in reason for reason in left_out.values())


def test_a_singular_covariance_is_warned_of() -> None:
    assert cautions(9, measured(normal(9, 8)).size) == []
    (samples,) = cautions(8, measured(normal(9, 8)).size)
    assert "8 samples do not span 8 features" in samples
    assert "Fréchet distance in digits" in samples
    (images,) = cautions(50, measured(normal(5, 8)).size)
    assert "5 images of the reference" in images
    assert cautions(50, ReferenceStats("digits", moments(normal(5, 8)), None, None).size) == []


@given(st.integers(1, 100_000))
@settings(max_examples=50)
def test_the_features_that_are_kept_are_spread_over_the_whole_reference(num_images: int) -> None:
    rows = kept_rows(num_images)
    assert len(rows) == min(num_images, distances.MAX_MANIFOLD_SIZE)
    assert rows[0] == 0
    assert rows[-1] < num_images
    gaps = np.diff(rows)
    assert (gaps >= 1).all()
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
