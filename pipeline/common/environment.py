"""What is installed, and on what a stage works: for checks of versions, and for the provenance of figures."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

PROGRAM = "traflow-pipeline"
ROOT = Path(__file__).parents[2]


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of the clone that this program runs from, with a + if files were changed; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if changes else head


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


class Environment(BaseModel):
    """Where a stage worked, and with what."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    machine: str  # the GPU, or the CPU's architecture and number of threads
    python: str  # its version
    program: str | None  # its installed version
    commit: str | None  # of the program, where it runs from a clone

    @classmethod
    def here(cls, machine: str) -> Self:
        """That of this process, on `machine`."""
        return cls(
            machine=machine, python=platform.python_version(), program=installed_version(PROGRAM), commit=commit()
        )

    def __str__(self) -> str:
        program = f"{PROGRAM} {self.program or 'of a source tree'}" + (f" at {self.commit}" if self.commit else "")
        return f"{self.machine}, Python {self.python}, {program}"
