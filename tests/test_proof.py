"""The longer proofs (`make proof`): the promises of the README's table, and kill -9 in the middle of a stage."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import SCRIPT, run

pytestmark = pytest.mark.proof
PATIENCE_SECONDS = 240
SMALL = ("generate", "--config", "quickstart", "--n", 4096)
SHORT = ("train", "--config", "quickstart", "--steps", "60", "--set", "trainer.checkpoint_every=10")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    for stage in ("generate", "train", "evaluate"):
        print(run(folder, stage, "--config", "quickstart").stdout)
    return folder


def test_the_quickstart_keeps_the_promises_of_its_table(quickstart: Path) -> None:
    rows = json.loads((quickstart / "runs" / "quickstart" / "metrics.json").read_text())["rows"]
    distance = {(row["model"], row["sampler"]): row["scores"]["fd-digits"]["mean"] for row in rows}
    one, two, four = (distance["student", f"{n} step{'s' if n > 1 else ''}"] for n in (1, 2, 4))
    assert one < distance["teacher", "euler 8"]
    assert one < distance["teacher", "euler 1"] / 100
    assert four < 3.5 * distance["teacher", "dopri5 1e-5"]
    assert one > two > four


def kill_when(folder: Path, arguments: tuple[object, ...], condition: Callable[[], bool]) -> None:
    """Start a command and kill it with all its children as soon as `condition` holds."""
    command = [str(SCRIPT), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_generate_and_train_killed_in_the_middle_end_as_if_undisturbed(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    data, checkpoints = Path("runs/quickstart/data"), Path("runs/quickstart/train/checkpoints")

    run(calm, *SMALL)
    for count in (2, 5):
        kill_when(killed, SMALL, lambda n=count: len(list((killed / data).glob("*.tar"))) >= n)  # type: ignore[misc]
    run(killed, *SMALL)
    assert contents(killed / data, "*.tar") == contents(calm / data, "*.tar")

    run(calm, *SHORT)
    for step in (10, 40):
        wanted = killed / checkpoints / f"step-{step:06d}"
        kill_when(killed, SHORT, wanted.exists)
    run(killed, *SHORT)
    assert not list(killed.rglob(".*.aside-*")), "what was left aside is swept away"
    last = "step-000060/*.safetensors"
    assert contents(killed / checkpoints, last) == contents(calm / checkpoints, last)
