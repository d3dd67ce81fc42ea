"""One rule for every output: a new or empty folder, or one that holds an output of the same kind."""

from pathlib import Path

import pytest

from pipeline.common.errors import BadInput
from pipeline.storage.lease import LEASE
from pipeline.storage.output import Output, check_output, hold_output
from pipeline.storage.store import Folder

MARKS = {
    Output.DATA: "plan.json",
    Output.TRAINING: "log.jsonl",
    Output.REPORT: "metrics.json",
    Output.RUN: "run.yaml",
}


def put(folder: Path, *names: str) -> Folder:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return Folder(folder)


@pytest.mark.parametrize("kind", Output)
def test_a_new_an_empty_and_the_own_folder_are_taken(tmp_path: Path, kind: Output) -> None:
    check_output(Folder(tmp_path / "new"), kind)
    check_output(Folder(tmp_path), kind)
    check_output(put(tmp_path / "left", LEASE, ".x.aside-1", "ray/x"), kind)
    check_output(put(tmp_path / "own", MARKS[kind], "config.yaml"), kind)


@pytest.mark.parametrize("kind", Output)
def test_what_is_another_s_is_not(tmp_path: Path, kind: Output) -> None:
    with pytest.raises(BadInput, match=f"wanted a new or empty folder, or {kind}; it is not empty: choose another"):
        check_output(put(tmp_path / "home", "letter.txt", "config.yaml", "photos/a.png"), kind)
    for other in set(Output) - {kind}:
        with pytest.raises(BadInput, match=f"or {kind}; it holds {other}: choose another --out"):
            check_output(put(tmp_path / other.name, MARKS[other], "config.yaml"), kind)


def test_a_report_may_lie_beside_the_stages_of_its_run(tmp_path: Path) -> None:
    store = put(tmp_path, "run.yaml", "data/plan.json", "train/checkpoints/step-000001/checkpoint.json")
    check_output(store, Output.REPORT)
    put(tmp_path, "letter.txt")
    with pytest.raises(BadInput, match="it holds a run"):
        check_output(store, Output.REPORT)


def test_an_output_has_one_writer(tmp_path: Path) -> None:
    out, copy = str(tmp_path / "out"), str(tmp_path / "copy")
    with (
        hold_output(Output.TRAINING, out, copy),
        pytest.raises(BadInput, match="copy: another driver is at work there"),
        hold_output(Output.TRAINING, str(tmp_path / "other"), copy),
    ):
        pass
    with hold_output(Output.TRAINING, out, copy):
        pass


def test_a_file_where_a_folder_is_wanted_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file: wanted a folder to write to"):
        check_output(Folder(tmp_path / "file"), Output.REPORT)
