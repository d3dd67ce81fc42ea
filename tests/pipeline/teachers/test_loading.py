from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher, guided, state_sha256
from tests.support.problems import save_tiny_teacher, tiny_network


def test_an_unknown_teacher_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        BadInput, match=r"no teacher 'digit': wanted one of digits, .*2rf, .*, the path .* or module:factory"
    ):
        load_teacher("digit")


def test_a_file_of_weights_is_a_teacher_known_by_its_bytes(tmp_path: Path) -> None:
    one = load_teacher(str(save_tiny_teacher(tmp_path / "one.safetensors")))
    two = load_teacher(str(save_tiny_teacher(tmp_path / "two.safetensors", seed=1)))
    assert (one.name, one.shape, one.num_classes) == ("one", (1, 4, 4), 0)
    assert one.sha256 != two.sha256
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8])
    torch.testing.assert_close(one.velocity(x, t, None), tiny_network()(x, t))


def test_a_factory_of_the_users_own_is_a_teacher() -> None:
    assert load_teacher("tests.support.problems:gaussian").name == "gaussian"


@pytest.mark.parametrize("source", ["nowhere:load", "tests.support.problems:nothing", ":load"])
def test_a_factory_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(BadInput, match=f"teacher {source}: wanted module:factory"):
        load_teacher(source)


def test_a_factory_must_return_a_teacher() -> None:
    with pytest.raises(BadInput, match="got dict"):
        load_teacher("tests.pipeline.teachers.test_loading:no_teacher")


def test_what_a_factory_raises_is_said() -> None:
    with pytest.raises(BadInput, match=r"the factory failed: TypeError: .*takes 0 positional arguments"):
        load_teacher("tests.pipeline.teachers.test_loading:takes_nothing")


@pytest.mark.parametrize("code", ["raise SystemExit('bye')", "def (", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken_flow.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match="teacher my_broken_flow:load: wanted module:factory; "):
        load_teacher("my_broken_flow:load")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shape": "abc"}, "shape: wanted positive integers"),
        ({"t_start": 0.0, "t_end": 1.0}, "a flow runs from t_start down to t_end"),
        ({"data_range": (0, 0)}, "data_range"),
        ({"sha256": None}, "name and sha256 are texts"),
        ({"name": "a\nb"}, "name and sha256 are texts"),
    ],
)
def test_a_teacher_that_makes_no_flow_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(GUIDABLE, **fields)


def takes_nothing() -> None: ...


def no_teacher(device: torch.device) -> dict[str, int]:
    return {}


def test_a_student_is_no_teacher_and_an_empty_folder_neither(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="second time"):
        load_teacher(str(save_tiny_teacher(tmp_path / "student.safetensors", second_time=True)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"holds no ema\.safetensors"):
        load_teacher(str(tmp_path / "empty"))


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, '{"files": 3}'], ids=len)
def test_weights_whose_digests_cannot_be_read_are_not_used(tmp_path: Path, text: str) -> None:
    weights = save_tiny_teacher(tmp_path / "ema.safetensors")
    load_teacher(str(tmp_path))
    (tmp_path / "checkpoint.json").write_text(text)
    for source in (weights, tmp_path):
        with pytest.raises(BadInput, match=r"checkpoint\.json: not a checkpoint this version reads"):
            load_teacher(str(source))


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


def labelled(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    assert label is not None
    return label.float()[:, None, None, None].expand_as(x)


GUIDABLE = Teacher("guidable", "0" * 64, labelled, (1, 4, 4), num_classes=3, takes_no_label=True)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_goes_on_from_no_label_past_the_label(scale: float) -> None:
    x, t, label = torch.zeros(3, 1, 4, 4), torch.ones(3), torch.tensor([0, 1, 2])
    velocity = guided(GUIDABLE, scale).velocity(x, t, label)
    torch.testing.assert_close(velocity[:, 0, 0, 0], -1 + scale * (label + 1))


def test_guidance_is_refused_where_nothing_was_trained_for_it(tmp_path: Path) -> None:
    path = save_tiny_teacher(tmp_path / "one.safetensors", num_classes=3)
    with pytest.raises(BadInput, match="guidance can work on; it was trained without dropping labels"):
        load_teacher(str(path), guidance_scale=2)
    with pytest.raises(BadInput, match="guidance can work on; it has no classes"):
        load_teacher("digits", guidance_scale=2)


@pytest.mark.parametrize(("num_classes", "lack"), [(3, ""), (0, "num_classes, nor ")])
def test_a_function_that_cannot_be_guided_is_told_which_field_its_teacher_lacks(num_classes: int, lack: str) -> None:
    said = f"its Teacher has no {lack}takes_no_label=True: add that if the model was trained with dropped labels, else"
    with pytest.raises(BadInput, match=f"guidance can work on; {said} leave guidance_scale"):
        guided(replace(GUIDABLE, num_classes=num_classes, takes_no_label=False), 2)


def test_a_network_trained_with_dropped_labels_can_be_guided(tmp_path: Path) -> None:
    path = str(save_tiny_teacher(tmp_path / "one.safetensors", num_classes=3, label_dropout=0.1))
    x, t, label = torch.randn(3, 1, 4, 4), torch.full((3,), 0.5), torch.tensor([0, 1, 2])
    plain, strong = load_teacher(path), load_teacher(path, guidance_scale=3)
    without, with_label = plain.velocity(x, t, torch.full((3,), -1)), plain.velocity(x, t, label)
    torch.testing.assert_close(strong.velocity(x, t, label), without + 3 * (with_label - without))
    assert plain.sha256 == strong.sha256


def test_a_factory_can_be_an_entry_point_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[traflow_pipeline.teachers]\nmy-flow = tests.support.problems:gaussian\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_teacher("my-flow").name == "gaussian"


@pytest.mark.parametrize("convention", ["flow", "edm"])
def test_a_network_starts_where_the_flow_of_its_convention_does(convention: str, tmp_path: Path) -> None:
    teacher = load_teacher(str(save_tiny_teacher(tmp_path / "one.safetensors", convention=convention)))
    assert teacher.t_start == {"flow": 1, "edm": 80 / 81}[convention]
