"""The scripts in examples/ do what they say, at the smallest sizes."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import traflow_pipeline as tp

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What my_recipe.py leaves."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        example("my_recipe").main(folder, n=64, num_steps=4)
    return folder


def example(name: str) -> Any:
    return import_module(name)


def test_a_teacher_of_your_own_makes_a_data_set() -> None:
    example("my_teacher").main(num_steps=300, n=64)
    (data,) = Path("runs/my-teacher").glob("data-*")
    samples = tp.open_dataset(data)[:].sample.astype(np.float32)
    # Bars: each column of an image is of one brightness.
    assert samples.std(axis=2).mean() < 0.3
    assert samples.std() > 0.5


def test_a_recipe_of_your_own_trains_a_student(run: Path) -> None:
    info = tp.load_student(run / "train", device="cpu").info
    assert (info.recipe, info.step) == ("my_recipe", 4)


def test_shards_are_read_both_ways(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("read_shards").main(run / "data")
    said = capsys.readouterr().out
    assert "record 5 of 64: 6 times from 1 to 0" in said
    assert "webdataset reads 64 records" in said


def test_a_checkpoint_is_sampled(run: Path) -> None:
    example("sample_checkpoint").main(run / "train")
    assert np.load("runs/samples/samples.npy").shape == (16, 1, 8, 8)
    assert Image.open("runs/samples/steps-4.png").width > 100


def test_the_readme_s_lines_draw_digits() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"4k"', "32").replace("400", "2"), names)
    assert names["samples"].arrays.shape == (16, 1, 8, 8)
    assert Path("digits.png").exists()


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "my_teacher",
        "my_recipe",
        "read_shards",
        "sample_checkpoint",
    }
