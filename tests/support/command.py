"""The console script as a user runs it: in a process of its own, or on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.serving import free_port

SCRIPT = Path(sys.executable).with_name("traflow-pipeline")


def run(folder: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
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
