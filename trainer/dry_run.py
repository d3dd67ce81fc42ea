"""`train --dry-run`: measure the memory and time of a training on a few steps; nothing is written."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.common.config import resolved
from pipeline.common.device import peak_memory_bytes, pick_device
from pipeline.common.plural import counted
from pipeline.common.progress import format_bytes, format_seconds, say
from trainer.config import TrainConfig
from trainer.distillation.objective import Objective
from trainer.distributed import Ranks
from trainer.kernels import check_kernels
from trainer.setup import prepare, read_input
from trainer.step import initial_state, take_step
from trainer.train import memory_errors_explained

NUM_STEPS = 3  # that are timed, after one to warm up


@dataclass(frozen=True)
class DryRun:
    """The resolved configuration of a training, and its memory and time in one process."""

    config: TrainConfig
    init_source: str
    num_parameters: int
    state_bytes: int  # weights, gradients, moments and averages
    peak_bytes: int  # of the device, or of this process
    seconds_per_step: float

    def lines(self) -> Iterator[str]:
        """What `--dry-run` prints."""
        settings = self.config.trainer
        yield resolved(self.config, "train").rstrip()
        yield f"network: {self.init_source}"
        state = format_bytes(self.state_bytes)
        yield f"{self.num_parameters:,} parameters; {state} with gradients, moments and averages"
        yield f"peak memory of a step: {format_bytes(self.peak_bytes)}"
        rate = settings.batch_size / self.seconds_per_step
        total = format_seconds(self.seconds_per_step * settings.num_steps)
        steps = counted(settings.num_steps, "step")
        yield f"{steps} of {settings.batch_size} at {rate:.0f} images/s: about {total}, one process"


def dry_run(config: TrainConfig) -> DryRun:
    """Take a few steps of the first phase; nothing is written.

    Raises:
        BadInput: see `train`.
    """
    ranks = Ranks(0, 1, pick_device(config.device))
    check_kernels(config, ranks.device)
    with memory_errors_explained(config, ranks.world):
        return _measure(config, ranks)


def _measure(config: TrainConfig, ranks: Ranks) -> DryRun:
    device = ranks.device
    task = prepare(config, device)
    config, settings = task.config, config.trainer
    say(
        f"measuring {counted(1 + NUM_STEPS, 'step')} of {counted(settings.batch_size, 'image')} "
        f"with {counted(task.num_parameters, 'parameter')} on {device}"
    )
    state = initial_state(config, task.network, device, task.owned)
    objective = Objective(task.network, state.averages[0].network, task.teacher, task.owned)
    seconds = []
    for step in range(1 + NUM_STEPS):
        started = time.perf_counter()
        given = read_input(config, task, ranks, step).to(device)
        take_step(config, ranks, state, objective, config.recipe.phases[0], given, step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    task.stream.close()
    count = task.num_parameters
    return DryRun(
        config=config,
        init_source=task.init_source,
        num_parameters=count,
        state_bytes=count * 4 * (4 + len(settings.ema)),
        peak_bytes=peak_memory_bytes(device),
        seconds_per_step=sorted(seconds[1:])[NUM_STEPS // 2],
    )
