"""The tutorials and the notebook run: each block of code, in the order of the page."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from eval.results import read_report
from tests.support.command import call

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r'^```(python|sh)(?: title="(.+?)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
# What makes the digits' tutorial small; the flow of your own is as small as it is printed.
SMALL = {
    "--n 4k": "--n 64 --executor inline --set shard_size=64",
    "--steps 400": "--steps 4 --batch-size 16",
    "--set data=data": "--set data=data --n 64 --set steps=[1] --set baselines=[euler] --set baseline_grids=[even] "
    '--set baseline_evaluations=[1] --set "teacher_solver={name: rk4, num_steps: 2}" --set num_trajectories=16',
}


def follow(page: Path, folder: Path, small: dict[str, str] | None = None) -> dict[str, Any]:
    """What a reader of `page` does in `folder`; returns the names that its Python ends with."""
    text = page.read_text()
    for printed, smaller in (small or {}).items():
        assert printed in text
        text = text.replace(printed, smaller)
    names: dict[str, Any] = {}
    for language, title, code in BLOCK.findall(text):
        if title:
            (folder / title).write_text(code)
        elif language == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                command(folder, *shlex.split(line))
    return names


def command(folder: Path, program: str, *arguments: str) -> None:
    if program == "python":
        subprocess.run([sys.executable, *arguments], cwd=folder, check=True, timeout=300)
    else:
        assert program == "traflow-pipeline"
        call(folder, *arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("moons", "teacher"):  # the reader's modules, forgotten afterwards
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_flow_of_your_own_becomes_a_student_of_one_evaluation(folder: Path) -> None:
    names = follow(TUTORIALS / "your-own-flow.md", folder)
    report = read_report(folder / "report")
    (exact,), student = report.rows_of("solver"), report.rows_of("student")
    one, euler = student[0], next(row for row in report.rows_of("few-step") if row.sampler == "euler 1")
    distance = {row.title: report.value(row) or 0.0 for row in (exact, one, euler)}
    assert report.headline.heading == "Wasserstein distance"
    assert distance[one.title] < 1.3 * distance[exact.title]
    assert distance[euler.title] > 2 * distance[one.title]
    assert exact.nfe > 30
    assert names["samples"].arrays.shape == names["points"].shape == np.load("drawn.npy").shape == (1000, 2)


def test_digits_go_through_all_commands_of_their_tutorial(folder: Path) -> None:
    follow(TUTORIALS / "digits.md", folder, SMALL)
    assert {"euler.png", "digits.png", "trajectories.png"} <= {path.name for path in folder.iterdir()}
    assert read_report(folder / "report").rows_of("student")


def test_the_notebook_runs(folder: Path) -> None:
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    NotebookClient(notebook, timeout=300).execute()
    said = [
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.get("name") == "stdout"
    ]
    assert "student, 1 step" in "".join(said)
    assert (folder / "runs" / "notebook" / "digits.png").exists()
