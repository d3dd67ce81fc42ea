"""The whole way on S3: a real server over HTTP on the loopback, real processes, kill -9 in the middle."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.storage.store import Store, open_store
from tests.support.command import SCRIPT, run

pytestmark = pytest.mark.cluster
FLAGS = ("--config", "quickstart", "--n", 1024, "--workers", 2, "--set", "shard_size=128")


def tars(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in sorted(store.sizes()) if name.endswith(".tar")}


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


def test_generate_killed_resumed_verified_and_trained_from_on_s3(tmp_path: Path, s3: str) -> None:
    location = f"{s3}/sets/digits"
    kill_when_two_shards_are_committed(tmp_path, location)
    left = open_store(location).sizes()
    assert 2 <= sum(name.endswith(".json") and name.startswith("shard") for name in left) < 8
    said = run(tmp_path, "generate", *FLAGS, "--out", location).stdout
    here = run(tmp_path, "generate", *FLAGS, "--out", "here").stdout
    assert said.splitlines()[-1] == here.splitlines()[-1]
    assert said.splitlines()[-1].startswith("digest ")
    assert tars(open_store(location)) == tars(open_store(str(tmp_path / "here")))

    said += run(tmp_path, "generate", *FLAGS, "--out", location).stdout
    assert "nothing to do" in said
    said += run(tmp_path, "verify", location).stdout
    assert "8 of 8 shards are whole" in said
    assert "every bit the same" in said
    said += run(tmp_path, "inspect", location).stdout
    assert (tmp_path / "trajectories.png").exists()
    steps = ("--set", "trainer.num_steps=3", "--set", "trainer.batch_size=64")
    for place in (location, "here"):
        said += run(tmp_path, "train", "--data", place, "--out", f"run-{place == 'here'}", *steps).stdout
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("run-*/checkpoints/*/network.safetensors"))]
    assert len(weights) == 2
    assert weights[0] == weights[1]

    written = [open_store(location).read(name) for name in open_store(location).sizes()]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in said
        assert not any(secret.encode() in payload for payload in written)
