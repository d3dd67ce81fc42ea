"""What goes wrong outside: named by shard and records, nothing half-written, everything else committed."""

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from torch import Tensor
from werkzeug.serving import make_server

from pipeline.common.errors import BadInput, StoreFailed, WorkFailed
from pipeline.flow import solver
from pipeline.generation.generate import generate
from pipeline.storage import store
from pipeline.storage.store import Folder
from pipeline.teachers.teacher import Teacher
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow, shard_bytes

FLOW = GaussianFlow()
THIRD = r"1 of 5 shards failed: shard 000002 \(records 8 to 11\): "


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return shard_bytes(generate(config(tmp_path_factory.mktemp("whole") / "data")))


def assert_all_but_the_third(data: Path, whole: dict[str, bytes]) -> None:
    tars = {path.name: path.read_bytes() for path in data.glob("*.tar")}
    assert tars == {name: payload for name, payload in whole.items() if name != "shard-000002.tar"}
    left = {path.name for path in data.iterdir()} - tars.keys() - {name.replace(".tar", ".json") for name in tars}
    assert left == {"plan.json", "config.yaml", "manifest.parquet"}


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]) -> None:
    sync, is_full = os.fsync, threading.Event()
    write = Folder.write

    def watched(self: Folder, name: str, payload: bytes) -> None:
        is_full.set() if name == "shard-000002.tar" else is_full.clear()
        write(self, name, payload)

    def full(descriptor: Any) -> None:
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(Folder, "write", watched)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailed, match=THIRD + r"cannot be written to .*data \(No space left on device\) \(tried 3"):
        generate(config(tmp_path / "data"))
    assert_all_but_the_third(tmp_path / "data", whole)


def test_a_disk_that_will_be_full_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "free_bytes", lambda self: 100)
    with pytest.raises(WorkFailed, match=r"5 of 5 shards failed: .* needs 1\.15 kB, but .* has 100 B left: make room$"):
        generate(config(tmp_path / "data", teacher="tests.pipeline.generation.test_faults:never_asked"))


def never_asked(device: torch.device) -> Teacher:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise AssertionError("there is no room for what this is for")

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/data: wanted a folder; it, or one that it lies in, is a file"):
        generate(config(tmp_path / "file" / "data"))


def test_a_solver_that_runs_out_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "MAX_NUM_STEPS", 3)
    message = r"5 of 5 shards failed: shard 000000 \(records 0 to 3\): teacher gaussian: dopri5 1e-5 gave up after"
    with pytest.raises(WorkFailed, match=message):
        generate(config(tmp_path / "data"))
    assert not list((tmp_path / "data").glob("shard-*"))


def out_of_memory(device: torch.device) -> Teacher:
    """Runs out of memory for the noise of records 8 to 11 of seed 0."""
    from pipeline.flow.noise import draw_noise

    bad = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if (x[-1:] == bad).all():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def test_a_folder_that_refuses_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, payload: bytes) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store, "_write_aside", refuse)
    with pytest.raises(BadInput, match=r"data: cannot be written \(Permission denied\)"):
        generate(config(tmp_path / "data"))


def test_a_worker_that_runs_out_of_memory(tmp_path: Path, whole: dict[str, bytes]) -> None:
    message = (
        THIRD
        + r"teacher gaussian: OutOfMemoryError: CUDA out of memory. Tried .* fewer workers.* smaller batch_size than 2"
    )
    with pytest.raises(WorkFailed, match=message):
        generate(config(tmp_path / "data", teacher="tests.pipeline.generation.test_faults:out_of_memory"))
    assert_all_but_the_third(tmp_path / "data", whole)


def has_a_sticky_error(device: torch.device) -> Teacher:
    """Its device fails for the noise of records 8 to 11 of seed 0, and from then on."""
    from pipeline.flow.noise import draw_noise

    bad, is_sick = torch.from_numpy(draw_noise(0, [9], SHAPE)).half().float(), threading.Event()

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if is_sick.is_set() or (x[-1:] == bad).all():
            is_sick.set()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def test_a_device_that_fails_for_good_ends_this_process_and_not_every_shard_that_is_left(tmp_path: Path) -> None:
    message = r"shard 000002 .*: CUDA error: an illegal memory access .*; 2 other shards are left: run the same"
    with pytest.raises(WorkFailed, match=message):
        generate(config(tmp_path / "data", teacher="tests.pipeline.generation.test_faults:has_a_sticky_error"))
    assert {path.name for path in (tmp_path / "data").glob("*.tar")} == {"shard-000000.tar", "shard-000001.tar"}
    assert (tmp_path / "data" / "manifest.parquet").exists()


def test_every_shard_that_failed_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkFailed, match="2 of 5 shards failed"):
        generate(config(tmp_path / "data", teacher="tests.pipeline.generation.test_faults:fails_for_two"))
    said = capsys.readouterr().out
    assert re.search(r"failed: shard 000001 \(records 4 to 7\): teacher gaussian: .*ValueError: one is enough", said)
    assert re.search(r"failed: shard 000003 \(records 12 to 15\): teacher gaussian: .*ValueError: one is enough", said)


def fails_for_two(device: torch.device) -> Teacher:
    from pipeline.flow.noise import draw_noise

    bad = [torch.from_numpy(draw_noise(0, [i], SHAPE)).half().float() for i in (5, 13)]

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if any((x[-1:] == start).all() for start in bad):
            raise ValueError("one is enough")
        return FLOW.velocity(x, t)

    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


@pytest.fixture
def stalling_s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """An S3 server that takes, but never answers, what is put to a path that ends like the one it is called with."""
    moto, released, stalled = DomainDispatcherApplication(create_backend_app), threading.Event(), list[str]()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "PUT" and any(environ["PATH_INFO"].endswith(end) for end in stalled):
            released.wait(60)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setattr(store, "REQUEST_SECONDS", 1.0)
    s3fs.S3FileSystem.clear_instance_cache()
    yield stalled.append
    s3fs.S3FileSystem.clear_instance_cache()
    released.set()
    server.shutdown()
    thread.join()


def test_a_store_that_times_out(s3: str, stalling_s3: Callable[[str], None]) -> None:
    stalling_s3("shard-000002.tar")
    message = THIRD + r"cannot be written to s3://.*/data \(no answer within 1 s\) \(tried 3 times\)"
    with pytest.raises(WorkFailed, match=message):
        generate(config(f"{s3}/data"))


def test_a_store_that_is_away(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreFailed, match=r"/data: plan\.json cannot be read \(Could not connect to the endpoint URL"):
        generate(config(f"{s3}/data"))
    s3fs.S3FileSystem.clear_instance_cache()
