"""The whole way on S3, Google's and Azure's stores: servers over HTTP on the loopback, real processes, kill -9."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.store import Store, open_store
from tests.support import emulators
from tests.support.command import SCRIPT, run

pytestmark = pytest.mark.cluster
PLAN = ("--config", "quickstart", "--set", "shard_size=128")
FLAGS = (*PLAN, "--n", 1024, "--workers", 2)


@pytest.fixture(params=["s3", "gs", "az"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    if request.param == "s3":
        yield request.getfixturevalue("s3")
        return
    with {"gs": emulators.google, "az": emulators.azure}[request.param](monkeypatch) as url:
        yield url


def secrets() -> list[str]:
    """What must be told to nobody."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING")
    return [*(os.environ[name] for name in names if name in os.environ), emulators.AZURITE_KEY]


def tars(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in sorted(store.sizes()) if name.endswith(".tar")}


def told(folder: Path, *arguments: object) -> str:
    """All that a command tells, its lines on stderr first."""
    found = run(folder, *arguments)
    return found.stderr + found.stdout


def kill_when_two_shards_are_committed(folder: Path, location: str) -> None:
    command = [str(SCRIPT), "generate", *map(str, FLAGS), "--out", location]
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len([name for name in open_store(location).sizes() if name.startswith("shard") and "json" in name]) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_generate_killed_resumed_verified_and_trained_from_on_a_store(tmp_path: Path, bucket: str) -> None:
    location = f"{bucket}/sets/digits"
    kill_when_two_shards_are_committed(tmp_path, location)
    left = open_store(location).sizes()
    assert 2 <= sum(name.endswith(".json") and name.startswith("shard") for name in left) < 8
    said = told(tmp_path, "generate", *FLAGS, "--out", location)
    here = told(tmp_path, "generate", *FLAGS, "--out", "here")
    assert said.splitlines()[-1] == here.splitlines()[-1]
    assert said.splitlines()[-1].startswith("digest ")
    assert tars(open_store(location)) == tars(open_store(str(tmp_path / "here")))

    said += told(tmp_path, "generate", *FLAGS, "--out", location)
    assert "nothing to do" in said
    said += told(tmp_path, "verify", location)
    assert "8 of 8 shards are whole" in said
    assert "every bit the same" in said
    said += told(tmp_path, "inspect", location)
    assert (tmp_path / "trajectories.png").exists()
    parts = f"{bucket}/sets/parts"
    for part in ("1/2", "2/2"):
        said += told(tmp_path, "generate", *PLAN, "--n", 256, "--out", parts, "--part", part)
    said += told(tmp_path, "status", parts)
    said += told(tmp_path, "merge", parts, location, "--out", "joined")
    assert tars(open_store(str(tmp_path / "joined"))) == tars(open_store(location))
    steps = ("--steps", "3", "--batch-size", "64")
    for place in (location, "here"):
        said += told(tmp_path, "train", "--data", place, "--out", f"run-{place == 'here'}", *steps)
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("run-*/checkpoints/*/network.safetensors"))]
    assert len(weights) == 2
    assert weights[0] == weights[1]

    written = [open_store(location).read(name) for name in open_store(location).sizes()]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in secrets():
        assert secret not in said
        assert not any(secret.encode() in payload for payload in written)
