"""What a part tells of itself while it is at work, and what is left of one that was lost."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.generation import heartbeat
from pipeline.generation.generate import generate
from pipeline.generation.heartbeat import Heartbeat, beating, heartbeats, sweep_heartbeats
from pipeline.generation.parts import Part, generate_part
from pipeline.generation.verify import verify
from pipeline.storage.lease import this_process
from pipeline.storage.store import Folder
from tests.support.plans import config


def write(folder: Path, name: str, seconds_ago: float = 0, **holder: object) -> None:
    """The heartbeat of a part of this process but for what `holder` says."""
    seen = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    found = Heartbeat(holder=this_process().model_copy(update=holder), seen=seen)
    (folder / name).write_text(found.model_dump_json())


def parts(folder: Path) -> dict[tuple[int, int], Heartbeat]:
    return heartbeats(Folder(folder), [path.name for path in folder.iterdir()])


def test_a_part_beats_while_it_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    with beating(Folder(tmp_path), 3, 16):
        while not (first := parts(tmp_path)):
            pass
        while (found := parts(tmp_path)[3, 16]) == first[3, 16]:
            pass
        assert found.is_beating
        assert found.holder.process == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_away_does_not_end_a_part(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with beating(Folder(tmp_path / "file"), 1, 2):
        pass


def test_who_is_gone_from_this_machine_or_silent_on_another_is_lost(tmp_path: Path) -> None:
    write(tmp_path, "part-1-of-5.json")
    write(tmp_path, "part-2-of-5.json", process=2**22 + 1)
    write(tmp_path, "part-3-of-5.json", host="other")
    write(tmp_path, "part-4-of-5.json", seconds_ago=heartbeat.SILENT_SECONDS + 1, host="other")
    (tmp_path / "part-5-of-5.json").write_text("{")
    assert {part: found.is_beating for part, found in parts(tmp_path).items()} == {
        (1, 5): True, (2, 5): False, (3, 5): True, (4, 5): False,
    }  # fmt: skip
    sweep_heartbeats(Folder(tmp_path))
    assert set(parts(tmp_path)) == {(1, 5), (3, 5)}


def test_heartbeats_are_no_fault_of_a_set_and_lost_ones_are_swept_by_a_driver(tmp_path: Path) -> None:
    data = tmp_path / "data"
    generate_part(config(data), Part(1, 2))
    write(data, "part-2-of-2.json", process=2**22 + 1)
    assert {fault.name for fault in verify(Folder(data)).faults} == {
        "shard-000001.tar",
        "shard-000003.tar",
        "manifest.parquet",
    }
    generate(config(data))
    assert not parts(data)
