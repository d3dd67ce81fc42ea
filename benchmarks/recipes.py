"""Recipes for students, compared on digits at equal compute over several seeds.

    python -m benchmarks.recipes

generates the quickstart's trajectories, trains a student by each recipe and seed, and prints a Markdown table of
Fréchet distances (features of the digit classifier: no FID) at 1, 2, 4 and 8 evaluations: the mean over the seeds, and
half their range behind it. Compute is counted in evaluations of the network for a batch of 128: 1 without a backward
pass, 3 with one, 6 with a forward-mode derivative (`Recipe.cost`); each recipe gets as many steps as its losses leave
room for.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from eval.features.spaces import digits
from eval.metrics.distances import frechet_distance, moments
from eval.sampling.samplers import draw_samples, student_sampler
from pipeline import networks
from pipeline.common.config import load_section, merge
from pipeline.common.image_grid import to_bytes
from pipeline.generation.generate import GenerateConfig, generate
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.data.images import load_digits
from trainer.distillation.recipes import Recipe, load_recipe, recipe_names
from trainer.distillation.student import Student
from trainer.distillation.terms import Owner
from trainer.train import train

STEPS = (1, 2, 4, 8)
NUM_SAMPLES = 4096
UNITS = 2600.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """Of one training: its steps, seconds, and Fréchet distance at each of `STEPS`."""

    num_steps: int
    seconds: float
    distances: tuple[float, ...]


def students() -> list[str]:
    """The recipes that train a student."""
    return [name for name in recipe_names() if Recipe.model_validate(load_recipe(name)).trains == "student"]


def run(data: Path, source: str, seed: int, units: float) -> Result:
    """Train a student on `data` by the recipe called `source`, and score it."""
    torch.set_num_threads(1)
    recipe = Recipe.model_validate(load_recipe(source))
    num_steps = round(units / recipe.cost)
    with tempfile.TemporaryDirectory() as out, redirect_stdout(sys.stderr):
        values = merge(
            load_section("quickstart", "train"),
            {"recipe": source, "data": str(data), "out": out, "seed": seed, "device": "cpu"},
            {"trainer": {"num_steps": num_steps, "checkpoint_every": num_steps}},
        )
        started = time.monotonic()
        folder = train(TrainConfig.model_validate(values))
        seconds = time.monotonic() - started
        student = Student(networks.load(folder / checkpoint.EMA))
    return Result(num_steps, seconds, tuple(distance(student, n, recipe.step_shift) for n in STEPS))


def distance(student: Student, num_steps: int, shift: float) -> float:
    """From the scans, of samples of `num_steps` evaluations, spaced by `shift`."""
    space, shape = digits(CPU), student.network.config.shape
    sampler = student_sampler(student, num_steps, 1.0, 0.0, shift)
    with torch.no_grad():
        drawn = draw_samples(sampler, shape, 0, 0, range(NUM_SAMPLES), 256, CPU)
        samples = torch.cat([batch.samples for batch in drawn])
    ours, scans = (space.extract(images).features for images in (to_bytes(samples.numpy()), load_digits().images))
    return frechet_distance(moments(ours), moments(scans))


def compare(sources: list[str], seeds: list[int], units: float, workers: int) -> str:
    """The table, a row for each recipe."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        section = load_section("quickstart", "generate") | {"out": str(data), "executor": "inline"}
        with redirect_stdout(sys.stderr):
            generate(GenerateConfig.model_validate(section))
        # Fresh processes: torch's threads and a fork do not mix.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = {(source, seed): pool.submit(run, data, source, seed, units) for seed in seeds for source in sources}
            results = {source: [jobs[source, seed].result() for seed in seeds] for source in sources}
    header = [
        "| recipe | uses | cost of a row | steps | "
        + " | ".join(f"{n} evaluation{'s' if n > 1 else ''}" for n in STEPS)
        + " | seconds |",
        "|---" * (len(STEPS) + 5) + "|",
    ]
    return "\n".join(header + [_row(source, results[source]) for source in sources])


def _row(source: str, results: list[Result]) -> str:
    cells = []
    for place in range(len(STEPS)):
        values = [result.distances[place] for result in results]
        spread = (max(values) - min(values)) / 2
        cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
    seconds = statistics.mean(result.seconds for result in results)
    recipe = Recipe.model_validate(load_recipe(source))
    first = [Path(source).stem, uses(recipe), f"{recipe.cost:.2f}", str(results[0].num_steps)]
    return f"| {' | '.join([*first, *cells])} | {seconds:.0f} |"


def uses(recipe: Recipe) -> str:
    """What a recipe takes beside the pairs of noise and sample."""
    found = {
        "states": any(term.num_states for term in recipe.terms),
        "velocities": recipe.needs_velocities,
        "live teacher": recipe.needs_teacher,
        "fresh noise": any(term.draws_noise for term in recipe.terms),
        "average as target": recipe.needs_ema,
        "own network": any(isinstance(term, Owner) for term in recipe.terms),
    }
    return ", ".join(name for name, is_used in found.items() if is_used) or "pairs"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=students(), help="names, or YAML files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--units", type=float, default=UNITS, help="evaluations of a batch, as counted above")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    options = parser.parse_args()
    print(compare(options.recipes, options.seeds, options.units, options.workers))


if __name__ == "__main__":
    main()
