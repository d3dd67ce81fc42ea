import pytest
import torch

from pipeline.flow.path import step_times, uniform_times


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, [1, 0]), (2, [1, 2 / 3, 0]), (4, [1, 6 / 7, 2 / 3, 2 / 5, 0])],
)
def test_a_shift_makes_steps_shorter_near_the_noise(num_steps: int, expected: list[float]) -> None:
    torch.testing.assert_close(step_times(num_steps, shift=2), torch.tensor(expected, dtype=torch.float64))


def test_steps_run_from_the_start_of_the_flow_to_its_end() -> None:
    times = step_times(3, start=0.9, end=0.1, shift=2)
    torch.testing.assert_close(times, 0.1 + 0.8 * step_times(3, shift=2))
    assert times[0] == 0.9
    assert times[-1] == 0.1


def test_steps_are_even_without_a_shift() -> None:
    torch.testing.assert_close(step_times(5, 0.9, 0.1), uniform_times(5, 0.9, 0.1))
