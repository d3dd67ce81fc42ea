"""SIGKILL wherever it hurts: the data set that comes of it is the one of an undisturbed run, to the byte."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.dataset.manifest import read_manifest
from pipeline.storage.store import Folder

SIGKILL = -9


def killing(how: str, folder: Path) -> Any:
    command = [sys.executable, "-m", "tests.support.killing", how, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def outcome(folder: Path) -> tuple[str, list[str]]:
    """The digest of a data set, and the files in its folder."""
    return read_manifest(Folder(folder)).sha256, sorted(path.name for path in folder.iterdir())


def test_a_run_killed_at_any_step_of_its_commits_and_run_again_is_as_if_undisturbed(tmp_path: Path) -> None:
    ends = killing("every-step", tmp_path)
    assert len(ends) > 30, "temporary file, sync, rename and marker of every file it writes"
    assert ends == [[SIGKILL, 0]] * len(ends)
    calm = outcome(tmp_path / "calm" / "data")
    for step in range(len(ends)):
        assert outcome(tmp_path / f"killed-{step}") == calm, f"step {step}"


def test_a_run_killed_twenty_times_at_random_and_run_again_is_as_if_undisturbed(tmp_path: Path) -> None:
    committed = killing("at-random", tmp_path)
    assert len(committed) == 20
    assert len(set(committed) - {0, 100}) >= 3, "it was killed at different places of its work"
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "calm")
