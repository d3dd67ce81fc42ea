"""`traflow-pipeline status` of any folder of ours."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree

import pytest

from pipeline.common.errors import BadInput
from pipeline.generation.heartbeat import Heartbeat
from pipeline.storage.lease import LEASE, hold_lease, this_process
from pipeline.storage.store import open_store
from tests.support.command import call
from tests.support.problems import make_data
from traflow_pipeline.folder_status import folder_status


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("status"))


def training(folder: Path, step: int) -> Path:
    """A folder as a training of 100 steps leaves it after `step`."""
    folder.mkdir()
    (folder / "config.yaml").write_text("train: {trainer: {num_steps: 100, batch_size: 64}}")
    lines = [json.dumps({"step": s, "images_per_second": 32.0}) for s in range(10, step + 1, 10)]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"step": 9']))
    return folder


def test_a_data_set(data: Path) -> None:
    assert folder_status(str(data)) == f"{data}: data set, 2 of 2 shards; complete"
    marker = data / "shard-000001.json"
    try:
        marker.rename(data / "away")
        assert folder_status(str(data)).endswith("data set, 1 of 2 shards; stopped")
        with hold_lease(open_store(str(data))):
            lease = json.loads((data / LEASE).read_text())
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - 320))
            (data / LEASE).write_text(json.dumps(lease | {"since": since}))
            said = folder_status(str(data))
        assert ", 1 of 2 shards, 0 samples/s, 5:2" in said
        assert f"running (host {os.uname().nodename}, process {os.getpid()}, since {since})" in said
    finally:
        (data / "away").rename(marker)


def test_parts_at_work_and_lost_are_named(data: Path, tmp_path: Path) -> None:
    here = Path(copytree(data, tmp_path / "data"))
    (here / "shard-000001.json").unlink()
    for number, process in ((1, 2**22 + 1), (2, os.getpid())):
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() - 320))
        holder = this_process().model_copy(update={"process": process, "since": since})
        text = Heartbeat(holder=holder, seen=datetime.now(UTC)).model_dump_json()
        (here / f"part-{number}-of-3.json").write_text(text)
    host = os.uname().nodename
    assert ", 1 of 2 shards, 0 samples/s, 5:2" in folder_status(str(here))
    assert folder_status(str(here)).endswith(f"running (part 2 of 3 on {host}; lost: part 1 of 3 on {host})")
    (here / "part-2-of-3.json").unlink()
    assert folder_status(str(here)).endswith(f"stopped (lost: part 1 of 3 on {host})")


def test_a_training_at_work_stopped_and_complete(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", 40)
    known = f"{folder}: training, 40 of 100 steps, 32 images/s, 2:00 left"
    assert folder_status(str(folder)) == f"{known}; running"
    an_hour_ago = time.time() - 3600
    os.utime(folder / "log.jsonl", (an_hour_ago, an_hour_ago))
    assert folder_status(str(folder)) == f"{known}; stopped"
    assert folder_status(str(training(tmp_path / "whole", 100))).endswith("training, 100 of 100 steps; complete")


def test_a_report_in_the_making(tmp_path: Path) -> None:
    row = tmp_path / "samples" / "0123" / "student" / "1-step"
    row.mkdir(parents=True)
    (row / "range-0.json").touch()
    assert folder_status(str(tmp_path)).endswith("report, 1 range scored; stopped")


def test_a_folder_of_others_is_said(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="wanted a run, data set, training or report"):
        folder_status(str(tmp_path))
    assert "wanted a run" in call(tmp_path, "status", "nowhere", code=2).stderr


def test_the_command_takes_any_folder(data: Path, tmp_path: Path) -> None:
    assert "data set, 2 of 2 shards; complete" in call(tmp_path, "status", data).stdout


@pytest.mark.parametrize("config", ["[", "train: 3", "train: {trainer: x}", "train: {trainer: {num_steps: ten}}"])
def test_a_damaged_configuration_hides_only_the_number_of_steps(tmp_path: Path, config: str) -> None:
    folder = training(tmp_path / "run", 40)
    (folder / "config.yaml").write_text(config)
    assert folder_status(str(folder)) == f"{folder}: training, 40 steps; running"


@pytest.mark.parametrize("rate", ["NaN", '"x"', "9" * 400, "1e-300", "[" * 9000])
def test_a_damaged_line_of_the_log_hides_no_more_than_the_rate(tmp_path: Path, rate: str) -> None:
    folder = training(tmp_path / "run", 40)
    (folder / "log.jsonl").write_text(f'{{"step": 30}}\n{{"step": 40, "images_per_second": {rate}}}')
    assert folder_status(str(folder)).startswith(f"{folder}: training, ")


def test_a_training_is_watched_until_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([40, 70, 100])
    folder = training(tmp_path / "run", 20)

    def go_on(_: float) -> None:
        lines = [json.dumps({"step": step, "images_per_second": 32.0}) for step in range(10, next(steps) + 1, 10)]
        (folder / "log.jsonl").write_text("\n".join(lines))

    monkeypatch.setattr("traflow_pipeline.folder_status.time.sleep", go_on)
    said = call(tmp_path, "status", folder, "--watch").stdout.splitlines()
    assert [line.partition("training, ")[2].partition(" of")[0] for line in said] == ["20", "40", "70", "100"]
    assert said[-1].endswith("; complete")
