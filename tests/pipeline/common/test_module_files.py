"""A module, or its file, named alone is answered with its functions; it is not imported."""

from pathlib import Path

import pytest
import torch

import traflow_pipeline as tp
from eval.features.spaces import load_space
from pipeline.common.errors import BadInput
from pipeline.common.module_files import advise
from pipeline.teachers.loading import load_teacher

CODE = """
import nowhere
def load(device): ...
def other(device, scale=1.0, *, seed=0): ...
def _hidden(device): ...
def velocity(x, t, label): ...
def nothing(): ...
def keyword(device, *, scale): ...
class Flow: ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for path in ("my_flow.py", "sub/inner.py", "sub/__init__.py"):
        (tmp_path / path).write_text(CODE)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("my_flow", "my_flow"),
        ("my_flow.py", "my_flow"),
        ("./my_flow.py", "my_flow"),
        ("sub/inner.py", "sub.inner"),
        ("sub/inner", "sub.inner"),
        ("sub.inner", "sub.inner"),
        ("sub", "sub"),
    ],
)
def test_the_functions_that_take_a_device_alone_are_named(source: str, module: str) -> None:
    assert advise(source) == f"; name a function of it: {module}:load or {module}:other"


def test_a_file_of_another_folder_comes_with_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "sub")
    assert advise("../my_flow.py").endswith(f": my_flow:load or my_flow:other, in its folder {folder}")


def test_a_file_without_such_functions_is_told_so_and_what_is_no_python_file_is_left_alone(folder: Path) -> None:
    (folder / "broken.py").write_text("def (")
    assert advise("broken") == "; broken.py has no function that takes the device alone"
    assert [advise(source) for source in ("digits", "json", "a" * 99, "")] == [""] * 4


@pytest.mark.parametrize("source", ["my_flow", "my_flow.py", "my_flow.py:load"])
def test_teachers_and_features_say_so(source: str) -> None:
    said = rf"{source}: wanted module:factory; .* my_flow:load or my_flow:other"
    with pytest.raises(BadInput, match=f"teacher {said}"):
        load_teacher(source)
    with pytest.raises(BadInput, match=f"features {said}"):
        load_space(source, torch.device("cpu"))


def test_a_function_that_is_misspelt_is_answered_with_the_one_that_was_meant(folder: Path) -> None:
    (folder / "my_flow_e.py").write_text("def load(device): ...")
    with pytest.raises(BadInput, match=r"my_flow_e has no 'laod'; did you mean 'load'\?"):
        load_teacher("my_flow_e:laod")


def factory(device: object) -> None: ...


def test_a_function_that_is_passed_itself_is_answered_with_its_name() -> None:
    name = f"{__name__}:factory"
    with pytest.raises(BadInput, match=rf"^generate\(\): teacher: wanted a function's name as text: pass '{name}'"):
        tp.generate(teacher=factory, n=1, out="data")
    with pytest.raises(BadInput, match=f"pass '{name}'"):
        tp.load_teacher(factory)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"put it into a file such as flow\.py, and pass 'flow:load'"):
        tp.generate(teacher=lambda device: None, n=1, out="data")
