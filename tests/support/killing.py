"""Generates a data set in processes that are killed: `python -m tests.support.killing HOW FOLDER`.

Processes are forks of this one, which has imported everything, so that a run takes a fraction of a second.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.generation.generate import GenerateConfig, generate
from pipeline.storage import lease
from pipeline.teachers.loading import load_teacher

WRITES = {"os.rename", "os.link", "os.remove", "os.mkdir"}  # audit events


def config(out: Path, n: int) -> GenerateConfig:
    values = {
        "teacher": "tests.support.problems:gaussian",
        "n": n,
        "out": out,
        "states": 1,
        "executor": "inline",
        "solver": {"name": "rk4", "num_steps": 2},
        "shard_size": 4,
        "batch_size": 4,
        "block_size": 2,
    }
    return GenerateConfig.model_validate(values)


def fork(work: Callable[[], object]) -> int:
    """The process number of a child that does `work`, silently."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os._exit(0 if _done(work) else 1)
    return child


def _done(work: Callable[[], object]) -> bool:
    try:
        work()
    except Exception as error:
        print(repr(error), file=sys.stderr)
        return False
    return True


def ended(child: int) -> int:
    """How `child` ended: 0, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_every_step(folder: Path, step: Callable[[], None]) -> None:
    """Call `step` before this process opens for writing, syncs, renames, links or removes anything in `folder`."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in WRITES or (event == "open" and isinstance(arguments[1], str) and arguments[1] != "r")
        if writes and str(folder) in str(arguments[0]):
            step()

    sync = os.fsync

    def synced(descriptor: int) -> None:
        step()
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = synced  # type: ignore[assignment]


def count_steps(folder: Path, n: int) -> int:
    """The steps of an undisturbed run."""
    told = folder / "steps"
    folder.mkdir()

    def work() -> None:
        steps: list[None] = []
        on_every_step(folder / "data", lambda: steps.append(None))
        generate(config(folder / "data", n))
        told.write_text(str(len(steps)))

    assert ended(fork(work)) == 0
    return int(told.read_text())


def kill_at(folder: Path, n: int, step: int) -> int:
    """Kill a run before its `step`-th step; how it ended."""

    def work() -> None:
        left = iter(range(step, -1, -1))
        on_every_step(folder, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(left) == 0 else None)
        generate(config(folder, n))

    return ended(fork(work))


def every_step(root: Path) -> list[list[int]]:
    """Kill a run at each of its steps, each in a folder of its own, and run it again; how both ended."""
    n = 8
    steps = count_steps(root / "calm", n)
    ends = []
    for step in range(steps):
        folder = root / f"killed-{step}"
        killed = kill_at(folder, n, step)
        again = ended(fork(lambda folder=folder: generate(config(folder, n))))  # type: ignore[misc]
        ends.append([killed, again])
    return ends


def at_random(root: Path) -> list[int]:
    """Kill runs in one folder twenty times in a row, each a random moment after it has committed a random number of
    shards, and run once more; the shards after each."""
    n, num_shards, rng, committed = 400, 100, random.Random(0), [0]
    started = time.monotonic()
    assert ended(fork(lambda: generate(config(root / "calm", n)))) == 0
    seconds = time.monotonic() - started

    def count() -> int:
        return len(list((root / "killed").glob("*.tar")))

    for _ in range(20):
        child = fork(lambda: generate(config(root / "killed", n)))
        wanted = min(committed[-1] + rng.randint(0, 8), num_shards)
        while count() < wanted:
            time.sleep(seconds / 1000)
        time.sleep(rng.uniform(0, seconds / 50))
        os.kill(child, signal.SIGKILL)
        ended(child)
        committed.append(count())
    assert ended(fork(lambda: generate(config(root / "killed", n)))) == 0
    return committed[1:]


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_teacher("tests.support.problems:gaussian")  # what is read once is read before the forks
    # Short, or the runs, which are short, would mostly wait beside a dead driver's lease; but a run whose steps are
    # counted must end before its first renewal.
    lease.BEAT_SECONDS = {"every-step": 1.0, "at-random": 0.2}[sys.argv[1]]
    kinds: dict[str, Callable[[Path], object]] = {"every-step": every_step, "at-random": at_random}
    print(json.dumps(kinds[sys.argv[1]](Path(sys.argv[2]))))
