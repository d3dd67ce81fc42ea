import numpy as np
import pytest

from eval.metrics import Moments, frechet_distance, moments, precision_recall

RNG = np.random.default_rng(0)


def test_a_set_is_at_distance_zero_from_itself() -> None:
    features = RNG.standard_normal((500, 8))
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-6)


def test_two_gaussians_are_at_their_closed_form_distance() -> None:
    # Commuting covariances: |mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2.
    a = Moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Moments(np.array([0.0, 0.0]), np.diag([1.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 1)


def test_the_distance_of_samples_goes_to_that_of_their_gaussians() -> None:
    a = moments(RNG.normal(1.0, 2.0, (200_000, 2)))
    b = moments(RNG.normal(0.0, 1.0, (200_000, 2)))
    assert frechet_distance(a, b) == pytest.approx(2 * 1 + 2 * 1, rel=0.02)


def test_precision_is_of_the_samples_and_recall_of_the_reference() -> None:
    left, right = RNG.normal(-10, 1, (400, 2)), RNG.normal(10, 1, (400, 2))
    precision, recall = precision_recall(RNG.normal(-10, 1, (400, 2)), np.concatenate([left, right]))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.06)
    precision, recall = precision_recall(np.concatenate([left, right]), RNG.normal(-10, 1, (400, 2)))
    assert precision == pytest.approx(0.5, abs=0.06)
    assert recall > 0.9
