import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.flow.noise import Stream, draw_labels, draw_noise

indices = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8)


@given(seed=st.integers(0, 2**63 - 1), indices=indices)
def test_a_row_depends_on_seed_and_index_alone(seed: int, indices: list[int]) -> None:
    together = draw_noise(seed, indices, (2, 3))
    for row, index in zip(together, indices, strict=True):
        np.testing.assert_array_equal(row, draw_noise(seed, [index], (2, 3))[0])


def test_the_numbers_are_those_of_every_other_machine() -> None:
    expected = np.array([0.059911035001, 0.015559634194, -1.164438486099, -0.132647126913], np.float32)
    np.testing.assert_array_equal(draw_noise(0, [0], (4,))[0], expected)


def test_noise_is_standard_normal() -> None:
    noise = draw_noise(1, range(2000), (1, 8, 8))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_streams_of_one_seed_are_independent() -> None:
    training = draw_noise(0, range(500), (16,))
    evaluation = draw_noise(0, range(500), (16,), Stream.EVALUATION_NOISE)
    assert abs(np.corrcoef(training.ravel(), evaluation.ravel())[0, 1]) < 0.03


def test_labels_are_uniform_and_absent_without_classes() -> None:
    counts = np.bincount(draw_labels(0, range(3000), 3), minlength=3)
    assert (abs(counts - 1000) < 120).all()
    assert (draw_labels(0, range(5), 0) == -1).all()
