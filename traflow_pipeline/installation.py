"""What is installed: versions, and whether `pipeline`, `trainer` and `eval` are this program's own.

Their names are generic, so another distribution, or a file in the working folder, may stand in front of them.
"""

import os
import platform
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "trainer", "eval")


def check_rooms() -> None:
    """Raises ImportError with one line if another package shadows one of `ROOMS`."""
    for name in ROOMS:
        spec = find_spec(name)
        origin = spec.origin if spec is not None else None
        if origin is None or Path(origin).resolve() != (ROOT / name / "__init__.py").resolve():
            raise ImportError(
                f"package {name!r}: wanted {ROOT / name}, which comes with traflow-pipeline; Python finds "
                f"{origin or 'none'}: install traflow-pipeline into its own environment, or rename the other {name!r}"
            )


def prepare_threads() -> None:
    """Let torch's threads sleep while they wait, unless the environment says otherwise; call it before torch's import.

    Threads that spin burn the time slices of other processes, and each other's: with two threads on two cores, beside a
    load of 8, an evaluation of the digits network on 256 samples took 1.0 to 1.8 s; with sleeping threads 0.15 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def describe() -> str:
    """The versions of this program, Python and torch, on one line."""
    from pipeline.common.environment import installed_version  # after `check_rooms`

    program, torch = (installed_version(name) or "(not installed)" for name in ("traflow-pipeline", "torch"))
    return f"traflow-pipeline {program}, Python {platform.python_version()}, torch {torch}"
