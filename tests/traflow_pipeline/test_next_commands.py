"""What a stage proposes next works word by word."""

import shlex
import sys
from pathlib import Path

import pytest

from pipeline.networks import network_for
from tests.support.command import call

SIZES = ("--set", "shard_size=8", "--set", "batch_size=8", "--set", "block_size=8", "--executor", "inline")
SMALL = ("--solver", "euler", "--steps", 2, "--n", 8, *SIZES)
FLOW = """
from pipeline.teachers.teacher import Teacher
def load(device):
    return Teacher("line", "0" * 64, lambda x, t, label: x, shape={shape})
"""


def proposed(said: str) -> list[str]:
    (line,) = [line for line in said.splitlines() if line.startswith("next: traflow-pipeline ")]
    return shlex.split(line.removeprefix("next: traflow-pipeline "))


@pytest.fixture(autouse=True)
def _own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def generated(folder: Path, name: str, shape: tuple[int, ...], states: int) -> list[str]:
    """What follows the data of a function `name` without a network."""
    (folder / f"{name}.py").write_text(FLOW.format(shape=shape))
    return proposed(
        call(folder, "generate", "--teacher", f"{name}:load", "--out", "my 'data'/", "--states", states, *SMALL).stdout
    )


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
def test_the_student_of_a_function_is_given_a_network_of_its_size(shape: tuple[int, ...], tmp_path: Path) -> None:
    words = generated(tmp_path, f"my_line_{len(shape)}", shape, states=1)
    assert words[-2:] == ["--set", f"network={network_for(shape)}"]


def test_what_is_proposed_after_generate_trains_and_after_train_evaluates(tmp_path: Path) -> None:
    words = generated(tmp_path, "my_line", (2,), states=0)
    words[words.index("--steps") + 1] = "1"
    evaluation = proposed(call(tmp_path, *words, "--batch-size", 8).stdout)
    assert evaluation == ["evaluate", "my 'data'-run", "--out", "my 'data'-run-report"]


def test_a_student_starts_from_its_teachers_network_where_that_has_one(tmp_path: Path) -> None:
    said = call(tmp_path, "generate", "--teacher", "digits", "--out", "data", "--states", 1, *SMALL).stdout
    assert proposed(said) == ["train", "--data", "data", "--out", "data-run", "--steps", "1000"]
