import pytest

from pipeline.common.suggestions import SYNONYMS, suggest


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("--learning-rate", ["--lora", "--lr"], "--lr"),
        ("MLP", ["song", "mlp"], "mlp"),
        ("batch", ["batches", "batch_size"], "batch_size"),
        ("velcity", ["velocity"], "velocity"),
    ],
)
def test_another_word_for_a_name_comes_before_one_that_is_spelt_alike(name: str, known: list[str], meant: str) -> None:
    assert suggest(name, known) == f"; did you mean {meant!r}?"


def test_what_means_nothing_known_is_answered_with_nothing() -> None:
    assert not suggest("colour", ["seed", "out"])


def test_a_word_stands_for_one_thing() -> None:
    words = [word for group in SYNONYMS for word in group]
    assert len(words) == len(set(words))
