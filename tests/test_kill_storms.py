"""Kill storms: a data set that is made on Ray, in parts or by an array of Slurm, each killed again and again, is the
one that an undisturbed process makes."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support import slurm_cluster
from tests.support.command import SCRIPT, run
from tests.support.slurm_cluster import said, wait_until

NUM_SHARDS, NUM_PARTS = 64, 3
SECTION = {
    "teacher": "digits",
    "n": 64 * NUM_SHARDS,
    "shard_size": 64,
    "batch_size": 64,
    "block_size": 64,
    "solver": {"name": "euler", "num_steps": 16},
}
CONFIG = {"generate": SECTION, "slurm": {"parts": NUM_PARTS, "time": "60", "stop_seconds": 20}}


def generate(folder: Path, out: str, *flags: str) -> list[str]:
    """The command that makes the set in `folder`."""
    return ["generate", "--config", str(folder / "set.yaml"), "--out", str(folder / out), *flags]


def num_made(data: Path) -> int:
    return len(list(data.glob("shard-*.json")))


def storm(data: Path, num_kills: int, kill: Callable[[random.Random], None], begin: Callable[[], None]) -> None:
    """Begin and kill again and again, each time a moment after some more shards were made."""
    rng, made = random.Random(0), []
    for _ in range(num_kills):
        begin()
        wanted = min(num_made(data) + rng.randint(0, NUM_SHARDS // (2 * num_kills)), NUM_SHARDS - 1)
        wait_until(lambda wanted=wanted: num_made(data) >= wanted, f"{wanted} shards")  # type: ignore[misc]
        time.sleep(rng.uniform(0, 1))
        kill(rng)
        made.append(num_made(data))
    assert made[num_kills // 2] < NUM_SHARDS, "it was killed at work"


def processes(folder: Path, num_kills: int, shares: list[list[str]]) -> Path:
    """Commands at once, one for each of `shares`, killed with their children; a last time they end by themselves."""
    alive: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        commands = [[str(SCRIPT), *generate(folder, "killed", *share)] for share in shares]
        alive[:] = [subprocess.Popen(c, start_new_session=True, stdout=subprocess.DEVNULL) for c in commands]

    def kill(rng: random.Random) -> None:
        for process in alive:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    storm(folder / "killed", num_kills, kill, begin)
    for share in shares:
        run(folder, *generate(folder, "killed", *share))
    return folder / "killed"


def on_ray(folder: Path, num_kills: int) -> Path:
    return processes(folder, num_kills, [["--executor", "ray", "--workers", "2"]])


def in_parts(folder: Path, num_kills: int) -> Path:
    return processes(folder, num_kills, [["--part", "1/2"], ["--part", "2/2", "--steal"]])


def on_slurm(folder: Path, num_kills: int) -> Path:
    """An array on three nodes, one of whose tasks is preempted, or loses its node, each time."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    data = folder / "run" / "data"
    with slurm_cluster.running() as cluster:

        def running() -> list[list[str]]:
            """The task and the node of each task at work."""
            return [line.split() for line in said("squeue", "--noheader", "--states=R", "--format=%i %N").splitlines()]

        def kill(rng: random.Random) -> None:
            wait_until(lambda: bool(running()) or num_made(data) == NUM_SHARDS, "a task to be at work")
            for task, node in running()[:1]:
                if rng.random() < 0.5:
                    said("scontrol", "requeue", task)
                else:
                    slurm_cluster.kill_node(cluster, node)
                    slurm_cluster.start_node(node)

        run(folder, "run", folder / "set.yaml", "--out", folder / "run", "--submit", "slurm")
        storm(data, num_kills, kill, lambda: None)
        wait_until((data / "manifest.parquet").exists, "the manifest")
        wait_until(lambda: not said("squeue", "--noheader"), "the tasks to end")
    return data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The last line of a process that nothing disturbs: the digest of its set."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "set.yaml").write_text(yaml.safe_dump(CONFIG))
    return run(folder, *generate(folder, "calm", "--executor", "inline")).stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "num_kills", [pytest.param(5, marks=pytest.mark.cluster), pytest.param(20, marks=pytest.mark.proof)]
)
@pytest.mark.parametrize("make", [on_ray, in_parts, on_slurm])
def test_a_kill_storm_ends_with_the_digest_of_an_undisturbed_process(
    make: Callable[[Path, int], Path], num_kills: int, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))  # of the jobs
    (tmp_path / "set.yaml").write_text(yaml.safe_dump(CONFIG))
    data = make(tmp_path, num_kills)
    found = run(tmp_path, "verify", data).stdout
    assert undisturbed.startswith("digest ")
    assert f"{NUM_SHARDS} of {NUM_SHARDS} shards are whole" in found
    assert found.rstrip().endswith(undisturbed)
    assert not list(data.glob("part-*")), "no part is left that seems to be at work"
