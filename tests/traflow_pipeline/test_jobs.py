"""A run submitted to a real Ray cluster with its dashboard and its token, on the loopback."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support.command import SCRIPT
from tests.support.runs import write_config
from tests.support.serving import free_port

pytestmark = pytest.mark.cluster
PATIENCE_SECONDS = 180


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of the dashboard of a cluster of one machine, which asks for a token."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", "a-token-for-this-test-alone-0123456789")
        environment.setenv("OMP_NUM_THREADS", "1")
        port, ray = free_port(), Path(sys.executable).with_name("ray")
        command = [str(ray), "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}"]
        command += ["--dashboard-host=127.0.0.1", "--num-cpus=2", "--disable-usage-stats", "--include-dashboard=true"]
        # Jobs find the program and the tests' feature space where this process does.
        path = os.pathsep.join([str(SCRIPT.parent), os.environ["PATH"]])
        settings = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
        head = subprocess.Popen(command, env=settings, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(f"http://127.0.0.1:{port}"):
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()


def answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/api/version", timeout=5):
            return True
    except URLError as error:
        return getattr(error, "code", None) in (401, 403)  # it is up, and wants its token
    except OSError:
        return False


def submit(folder: Path, config: Path, dashboard: str, *flags: str) -> "subprocess.Popen[str]":
    command = [str(SCRIPT), "run", str(config), "--out", str(folder / "run"), "--submit", dashboard, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)


def test_stages_are_jobs_that_go_on_when_nobody_watches(tmp_path: Path, dashboard: str) -> None:
    config = write_config(tmp_path)
    first = submit(tmp_path, config, dashboard)
    assert first.stdout is not None
    said = ""
    for line in first.stdout:
        said += line
        if "not begun" in line:  # all three are submitted, and the log of the first is followed
            first.send_signal(signal.SIGINT)
            break
    said += first.stdout.read()
    assert first.wait(PATIENCE_SECONDS) == 0, said
    assert "detached" in said
    jobs = re.findall(r"job (\S+)", said)

    second = submit(tmp_path, config, dashboard)
    again, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, again
    assert set(re.findall(r": job (\S+)", again)) <= set(jobs)  # followed, not submitted again
    status = subprocess.run([str(SCRIPT), "status", str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert status.stdout.count("; complete") == 3


def test_a_stage_that_fails_ends_those_after_it(tmp_path: Path, dashboard: str) -> None:
    config = write_config(tmp_path)
    found = submit(tmp_path, config, dashboard, "--set", "generate.teacher=nowhere.safetensors")
    said, _ = found.communicate(timeout=PATIENCE_SECONDS)
    assert found.returncode == 1, said
    assert "no teacher 'nowhere.safetensors'" in said
    assert "ended as FAILED" in said


def test_no_dashboard_is_said(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    found = submit(tmp_path, config, f"http://127.0.0.1:{free_port()}")
    said, _ = found.communicate(timeout=PATIENCE_SECONDS)
    assert found.returncode == 2, said
    assert "no Ray dashboard answers there" in said
