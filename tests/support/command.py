"""The command line: in this process, in one of its own as a user runs it, or on several ranks."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.support.serving import free_port
from traflow_pipeline.cli import main

SCRIPT = Path(sys.executable).with_name("traflow-pipeline")


def call(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """What the command does in `folder`, in this process."""
    command = ["traflow-pipeline", *map(str, arguments)]
    out, err, on_term = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    signal.signal(signal.SIGTERM, on_term)
    found = subprocess.CompletedProcess(command, int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert found.returncode == code, found.stdout + found.stderr
    return found


def run(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """What the command does in `folder`, in a process of its own."""
    command = [str(SCRIPT), *map(str, arguments)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert found.returncode == code, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    return found


def assert_one_line(found: subprocess.CompletedProcess[str], *parts: str) -> None:
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def on_ranks(num_ranks: int, command: list[str], says: str = "minimising") -> None:
    """Run the console script's `command` under torchrun; only the first rank speaks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks), "--master-port"]
    launch += [str(free_port()), "-m", "traflow_pipeline"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(says) == 1
