import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.storage import lease
from pipeline.storage.lease import LEASE, Holder, Lease, hold_lease
from pipeline.storage.store import Folder, Store, open_store


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.getfixturevalue("s3") + "/data" if request.param == "s3" else str(tmp_path / "data"))


def holder(**changes: object) -> Holder:
    values = {
        "host": "elsewhere",
        "machine": "another",
        "process": 7,
        "process_start": "1",
        "since": "2026-11-21 10:00:00 UTC",
        "token": "t",
    }
    return Holder.model_validate(values | changes)


def write(store: Store, found: Holder) -> None:
    store.write(LEASE, found.model_dump_json().encode())


def test_a_second_driver_is_told_who_the_first_one_is(store: Store) -> None:
    with (
        hold_lease(store),
        pytest.raises(BadInput, match=rf"at work there \(host .*, process {os.getpid()}, since 20"),
        hold_lease(store),
    ):
        pass
    assert store.sizes() == {}


def test_the_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with hold_lease(store):
        deadline = time.monotonic() + 20
        while Holder.model_validate_json(store.read(LEASE)).beat < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_lease_of_a_process_that_is_gone_is_taken_at_once(store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    with hold_lease(store):
        ours = Holder.model_validate_json(store.read(LEASE))
    write(store, ours.model_copy(update={"process": child.pid}))
    with hold_lease(store) as found:
        found.check()


def test_a_process_number_that_was_used_again_is_another_process(store: Store) -> None:
    with hold_lease(store):
        ours = Holder.model_validate_json(store.read(LEASE))
    write(store, ours.model_copy(update={"process_start": "1"}))
    with hold_lease(store):
        pass


def test_a_lease_from_elsewhere_that_stays_silent_is_taken(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    write(store, holder())
    with hold_lease(store):
        assert Holder.model_validate_json(store.read(LEASE)).host != "elsewhere"
    assert "waiting up to" in capsys.readouterr().out


def test_a_lease_from_elsewhere_that_is_renewed_is_respected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
    write(store, holder())
    done = threading.Event()

    def live() -> None:
        beat = 0
        while not done.wait(0.02):
            beat += 1
            write(store, holder(beat=beat))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(BadInput, match="host elsewhere, process 7, since 2026-11-21 10:00:00 UTC"),
            hold_lease(store),
        ):
            pass
    finally:
        done.set()
        thread.join()


def test_a_driver_that_was_taken_for_dead_is_told_and_leaves_the_other_alone(store: Store) -> None:
    with hold_lease(store) as ours:
        deadline = time.monotonic() + 20
        while not _is_lost(ours):
            assert time.monotonic() < deadline
            write(store, holder())
            time.sleep(0.02)
        with pytest.raises(WorkFailed, match=r"another took over \(host elsewhere"):
            ours.check()
    assert Holder.model_validate_json(store.read(LEASE)) == holder()


def _is_lost(found: Lease) -> bool:
    try:
        found.check()
    except WorkFailed:
        return True
    return False


def test_a_file_of_that_name_that_is_no_lease_is_left_alone(store: Store) -> None:
    store.write(LEASE, b"mine")
    with pytest.raises(BadInput, match=r"its driver\.json is not a driver's lease; move it away"), hold_lease(store):
        pass
    assert store.read(LEASE) == b"mine"


def test_a_renewal_that_fails_once_leaves_no_lease_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def full(name: str, payload: bytes) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    with hold_lease(store):
        monkeypatch.setattr(store, "write", full)
        assert failed.wait(20)
    assert store.sizes() == {}


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"), hold_lease(Folder(tmp_path / "file" / "data")):
        pass
