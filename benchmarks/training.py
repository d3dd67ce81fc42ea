"""Stage 2 on the GPU if there is one, else on all cores of the CPU, in two tables over random trajectories.

1. `train` as users run it, by the lines of its own log, beside the same steps on one batch that is held on the device:
   the share of its time that the loop waits for batches, and what reading, logging and the bar leave of its speed.
   Writing checkpoints is not counted. Peak memory is what `train --dry-run` prints in a process of its own: of the
   device, or of that whole process.
2. Images per second of each loss of the paper alone, on a held batch. Eq. 10 evaluates the network three times, each
   with a backward pass, where the other two do once.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import in_turn, main, random_plan, random_set, table
from pipeline.common.config import load_section, merge, write_resolved
from pipeline.common.device import pick_device
from pipeline.generation.generate import GenerateConfig, make_plan
from pipeline.storage.store import Folder
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from trainer import log
from trainer.config import TrainConfig
from trainer.distillation.objective import Objective
from trainer.distributed import Ranks
from trainer.setup import prepare, read_input
from trainer.step import initial_state, take_step
from trainer.train import train

OUTPUT, VELOCITY, CONSISTENCY = "output (Eq. 8)", "velocity (Eq. 9)", "consistency (Eq. 10)"
LOSSES = {
    OUTPUT: {"loss": "output"},
    VELOCITY: {"loss": "velocity", "at": "line"},
    CONSISTENCY: {"loss": "consistency"},
}
PAPER = {OUTPUT: 400.0, VELOCITY: 400.0, CONSISTENCY: 100.0}  # at 32x32 (TraFlow, arXiv 2502.16972, Table 3)
PEAK = "peak memory of a step: "


@dataclass(frozen=True)
class Sizes:
    """How much of a training is timed: `repeats` times `num_lines` lines of its log, each of `num_steps` steps."""

    batch_size: int
    num_steps: int
    num_lines: int
    repeats: int


@dataclass(frozen=True)
class Case:
    """A training to time."""

    name: str
    config: TrainConfig
    sizes: Sizes


def benchmark(quick: bool) -> str:
    """The tables, as Markdown."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        cases = [digits(Path(folder) / "digits", quick), cifar10(Path(folder) / "cifar10", quick)]
        return _loop(cases) + "\n" + _losses(cases)


def digits(folder: Path, quick: bool) -> Case:
    """The quickstart's training, on as many records as it has."""
    section = GenerateConfig.model_validate(load_section("quickstart", "generate"))
    random_set(Folder(folder / "data"), make_plan(section, load_teacher("digits", quiet=True)), section.n)
    sizes = Sizes(128, 100, 5, 3) if on_gpu() else Sizes(128, 20, 5, 3)
    return _case("digits", "quickstart", "digits", folder, sizes, quick)


def cifar10(folder: Path, quick: bool) -> Case:
    """The training of the config cifar10-15m, its student from scratch, on a few records of its shape."""
    plan = random_plan(velocities=True).model_copy(update={"num_states": 8})
    random_set(Folder(folder / "data"), plan, 1024)
    sizes = Sizes(128, 50, 5, 3) if on_gpu() else Sizes(4, 2, 4, 2)
    return _case("15m at 3x32x32", "cifar10-15m", "benchmarks.training:still", folder, sizes, quick)


def still(device: torch.device) -> Teacher:
    """The teacher of `random_plan`: nothing moves, and there is no network that a student could begin as."""
    return Teacher("random", "0" * 64, lambda x, t, label: torch.zeros_like(x), (3, 32, 32))


def _case(name: str, source: str, teacher: str, folder: Path, sizes: Sizes, quick: bool) -> Case:
    """The training of the config `source` on the records in `folder`, as short as `sizes` ask."""
    if quick:
        sizes = replace(sizes, num_steps=1, num_lines=1, repeats=1)
    num_steps = sizes.num_steps * (1 + sizes.num_lines)  # the first line is left out
    trainer = {
        "num_steps": num_steps,
        "batch_size": sizes.batch_size,
        "precision": "bf16" if on_gpu() else "fp32",
        "log_every": sizes.num_steps,
        "checkpoint_every": num_steps,
    }
    paths = {"data": str(folder / "data"), "out": str(folder / "run"), "teacher": teacher, "trainer": trainer}
    return Case(name, TrainConfig.model_validate(merge(load_section(source, "train"), paths)), sizes)


def on_gpu() -> bool:
    """Whether trainings run on a GPU here."""
    return pick_device("auto").type == "cuda"


class HeldBatch:
    """A training whose every step is on the same batch, held on the device: what the loop is without reading."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.ranks = config, Ranks(0, 1, pick_device(config.device))
        task = prepare(config, self.ranks.device)
        self.given = read_input(config, task, self.ranks, 0).to(self.ranks.device)
        self.state = initial_state(config, task.network, self.ranks.device, task.owned)
        self.objective = Objective(task.network, self.state.averages[0].network, task.teacher, task.owned)

    @property
    def num_parameters(self) -> int:
        """Of the network in training."""
        return sum(parameter.numel() for parameter in self.state.network.parameters())

    def take_steps(self, num_steps: int) -> float:
        """Take `num_steps` steps and fetch their losses; returns how many a second."""
        phase, started = self.config.recipe.phases[0], time.perf_counter()
        step = partial(take_step, self.config, self.ranks, self.state, self.objective, phase, self.given)
        torch.stack([step(number) for number in range(num_steps)]).cpu()
        return num_steps / (time.perf_counter() - started)


def _loop(cases: list[Case]) -> str:
    title = "Training: the loop beside its own step on a held batch (wanted: at least 0.95 of it, below 2 % waiting)"
    columns = ["student", "parameters", "recipe", "batch", "steps/s", "on a held batch", "of it", "waiting for batches"]
    columns += ["peak memory"]
    place = f"{torch.cuda.get_device_name()}, bf16" if on_gpu() else f"{torch.get_num_threads()} threads, fp32"
    return table(title, columns, [_row_of_loop(case) for case in cases], f"On {place}.")


def _row_of_loop(case: Case) -> list[str]:
    config, sizes = case.config, case.sizes
    held = HeldBatch(config)
    held.take_steps(sizes.num_steps)  # kernels are chosen
    lines: list[dict[str, float]] = []
    rates: list[float] = []
    for repeat in range(sizes.repeats):
        lines += log_of_training(config.model_copy(update={"out": config.out / str(repeat)}))
        rates += [held.take_steps(sizes.num_steps) for _ in range(sizes.num_lines)]
    rate = statistics.median(line["images_per_second"] for line in lines) / sizes.batch_size
    alone = statistics.median(rates)
    return [
        case.name,
        f"{held.num_parameters / 1e6:.1f} M",
        config.recipe.name,
        str(sizes.batch_size),
        f"{rate:.2f}",
        f"{alone:.2f}",
        f"{rate / alone:.3f}",
        f"{statistics.median(line['stall'] for line in lines):.2%}",
        peak_memory(config),
    ]


def log_of_training(config: TrainConfig) -> list[dict[str, float]]:
    """Train, and return the lines of the log but the first, in which caches fill and kernels are chosen."""
    train(config)
    return log.read_log(config.out / "log.jsonl")[1:]


def peak_memory(config: TrainConfig) -> str:
    """What `train --dry-run` in a process of its own says that a step takes."""
    path = config.out / "dry-run.yaml"
    write_resolved(path, config, "train")
    command = [sys.executable, "-m", "traflow_pipeline", "train", "--config", str(path), "--dry-run"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [peak] = [line.removeprefix(PEAK) for line in said.splitlines() if line.startswith(PEAK)]
    return peak


def _losses(cases: list[Case]) -> str:
    measured = {f"{case.name}, batch {case.sizes.batch_size}": images_per_second(case) for case in cases}
    columns, rows = ["loss alone"], [[title] for title in LOSSES]
    for name, rates in (measured | {"the paper, H100": PAPER}).items():
        columns += [f"{name}: images/s", "of Eq. 8's"]
        for row, rate in zip(rows, rates.values(), strict=True):
            row += [f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}", f"{rate / rates[OUTPUT]:.2f}"]
    return table("Training: images per second of each loss (beside the paper's, only ratios compare)", columns, rows)


def images_per_second(case: Case) -> dict[str, float]:
    """Of each loss alone, on a held batch, timed in turn."""
    sides = {}
    for title, term in LOSSES.items():
        recipe = {"recipe": {"phases": [{"terms": [term]}]}}
        held = HeldBatch(TrainConfig.model_validate(case.config.model_dump() | recipe))
        sides[title] = partial(held.take_steps, case.sizes.num_steps)
    timed = in_turn(sides, case.sizes.repeats)
    return {title: case.sizes.num_steps * case.sizes.batch_size / side.seconds for title, side in timed.items()}


if __name__ == "__main__":
    main(__doc__, benchmark)
