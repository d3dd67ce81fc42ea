import pytest

from pipeline.common.plural import counted


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "trajectory", "1 trajectory"),
        (16384, "trajectory", "16,384 trajectories"),
        (0, "class", "0 classes"),
        (2, "batch", "2 batches"),
        (1.0, "evaluation", "1 evaluation"),
        (120.9, "evaluation", "120.9 evaluations"),
    ],
)
def test_one_thing_is_no_plural(number: float, noun: str, said: str) -> None:
    assert counted(number, noun) == said
