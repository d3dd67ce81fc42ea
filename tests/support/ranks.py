"""Trains on several ranks, forks of this process, which has imported everything: `python -m tests.support.ranks`.

It reads {"ranks": N, "config": ..., "kill_after": step or null} from each line of its input, and answers how the
ranks ended.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import peft  # noqa: F401 (before the forks, as all that takes seconds)
import torch
import torch._dynamo
import torch.distributed.fsdp

from tests.support.serving import free_port
from trainer.config import TrainConfig
from trainer.train import train


def fork(rank: int, world: int, port: int, work: Callable[[], object]) -> int:
    """The process number of a child that is `rank` of `world`, and does `work`."""
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 1
        try:
            work()
            code = 0
        except Exception as error:
            print(f"rank {rank}: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    return child


def kill_at(children: Sequence[int], checkpoint: Path) -> None:
    """SIGKILL all `children` once there is a `checkpoint`."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for child in children:
        os.kill(child, signal.SIGKILL)


def train_on(ranks: int, config: dict[str, Any], kill_after: int | None) -> list[int]:
    """How each rank of a training ended: 0, 1, or minus the signal that killed it."""
    settings, port = TrainConfig.model_validate(config), free_port()
    children = [fork(rank, ranks, port, lambda: train(settings)) for rank in range(ranks)]
    if kill_after is not None:
        kill_at(children, settings.out / "checkpoints" / f"step-{kill_after:06d}")
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    _ = diffusers.StableDiffusion3Pipeline, diffusers.SD3Transformer2DModel  # imported when they are asked for
    silence = os.dup(1)
    os.dup2(2, 1)  # the trainings talk to stderr
    for line in sys.stdin:
        order = json.loads(line)
        ends = train_on(order["ranks"], order["config"], order["kill_after"])
        os.write(silence, f"{json.dumps(ends)}\n".encode())
