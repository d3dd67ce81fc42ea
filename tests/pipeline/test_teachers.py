from pathlib import Path

import pytest
import torch

from pipeline.errors import BadInput
from pipeline.teachers import load_teacher
from pipeline.teachers.teacher import state_sha256
from tests.problems import save_tiny_teacher, tiny_network


def test_an_unknown_teacher_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"no teacher 'digit': wanted one of digits, the path .* or module:factory"):
        load_teacher("digit")


def test_a_file_of_weights_is_a_teacher_known_by_its_bytes(tmp_path: Path) -> None:
    one = load_teacher(str(save_tiny_teacher(tmp_path / "one.safetensors")))
    two = load_teacher(str(save_tiny_teacher(tmp_path / "two.safetensors", seed=1)))
    assert (one.name, one.shape, one.num_classes) == ("one", (1, 4, 4), 0)
    assert one.sha256 != two.sha256
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8])
    torch.testing.assert_close(one.velocity(x, t, None), tiny_network()(x, t))


def test_a_factory_of_the_users_own_is_a_teacher() -> None:
    assert load_teacher("tests.problems:gaussian").name == "gaussian"


@pytest.mark.parametrize("source", ["nowhere:load", "tests.problems:nothing", ":load"])
def test_a_factory_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(BadInput, match=f"teacher {source}: wanted module:factory"):
        load_teacher(source)


def test_a_factory_must_return_a_teacher() -> None:
    with pytest.raises(BadInput, match="got dict"):
        load_teacher("tests.pipeline.test_teachers:no_teacher")


def test_what_a_factory_raises_is_said() -> None:
    with pytest.raises(BadInput, match=r"the factory failed with TypeError: .*takes 0 positional arguments"):
        load_teacher("tests.pipeline.test_teachers:takes_nothing")


def takes_nothing() -> None: ...


def no_teacher(device: torch.device) -> dict[str, int]:
    return {}


def test_a_student_is_no_teacher_and_an_empty_folder_neither(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="second time"):
        load_teacher(str(save_tiny_teacher(tmp_path / "student.safetensors", second_time=True)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"holds no ema\.safetensors"):
        load_teacher(str(tmp_path / "empty"))


def test_a_digest_of_weights_sees_names_shapes_and_values() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    digests = {
        state_sha256(state),
        state_sha256({"a": torch.zeros(2), "c": torch.ones(2)}),
        state_sha256({"a": torch.zeros(1, 2), "b": torch.ones(2)}),
        state_sha256({"a": torch.zeros(2), "b": torch.zeros(2)}),
    }
    assert len(digests) == 4
    assert state_sha256(dict(reversed(state.items()))) == state_sha256(state)
