"""Recipes for students, compared at equal compute over several seeds.

    python -m benchmarks.recipes --out runs/recipes
    python -m benchmarks.recipes --out runs/mnist/recipes --config studies/mnist --set evaluate.reference=FILE

generates the trajectories of a config, trains a student by each recipe and seed, and prints a Markdown table of
Fréchet distances, as its section `evaluate` asks for: mean over the seeds, and half their range behind it. A student is
sampled in even steps and in steps shifted by 2, and the better of the two stands in the table, marked where it is the
latter.

Compute is counted in evaluations of the network for a batch: 1 without a backward pass, 3 with one, 6 with a
forward-mode derivative that is trained through, 5 with one that is not (`Recipe.cost`); each recipe gets as many steps
as its losses leave room for. Results are kept in OUT/results.jsonl as they end, and rows that are there are not
computed again: kill it, and start it again, with other recipes or seeds too. OUT/samples has a picture of each
student's samples, a row for each kind of steps.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.config import EvaluateConfig
from eval.features.spaces import FeatureSpace, load_space
from eval.metrics.distances import Moments, frechet_distance, moments
from eval.sample_counts import FULL_NUM_SAMPLES
from eval.sampling.samplers import draw_samples, student_sampler
from pipeline import networks
from pipeline.common.config import load_sections, merge, parse_assignment
from pipeline.common.image_grid import is_drawable, save_rows, to_bytes
from pipeline.common.plural import counted
from pipeline.generation.generate import GenerateConfig, generate
from traflow_pipeline.trajectory_dataset import TrajectoryDataset
from trainer.checkpoints import checkpoint
from trainer.config import TrainConfig
from trainer.data.images import load_images
from trainer.distillation.recipes import Recipe, load_recipe, recipe_names
from trainer.distillation.student import Student
from trainer.distillation.terms import Owner
from trainer.train import train

UNITS = 2000.0
SHIFTED = 2.0  # the shift of the uneven steps
NUM_SHOWN = 16
BATCH_SIZE = 256
OWN = ("out", "data", "recipe", "checkpoint", "baselines", "baseline_grids", "baseline_evaluations")  # not the config's
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Study:
    """The sections of a config, and the folder where its data and results lie."""

    sections: dict[str, dict[str, Any]]
    out: Path

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def num_samples(self) -> int:
        """Of each student and number of evaluations."""
        return self.evaluation.num_samples or FULL_NUM_SAMPLES

    @cached_property
    def evaluation(self) -> EvaluateConfig:
        return EvaluateConfig.model_validate(self.sections["evaluate"] | {"out": str(self.out)})

    @property
    def space(self) -> FeatureSpace:
        return _space(self._features)

    @property
    def _features(self) -> str:
        return (self.evaluation.features or ("digits",))[0]

    def distance(self, images: NDArray[np.uint8]) -> float:
        """Of samples from the real images."""
        real = _real(self._features, self.evaluation.reference or "digits")
        return frechet_distance(moments(self.space.extract(images).features), real)


@cache
def _space(name: str) -> FeatureSpace:
    return load_space(name, CPU)


@cache
def _real(space: str, images: str) -> Moments:
    """The moments of the real images, once a process."""
    return moments(_space(space).extract(load_images(images).images).features)


@dataclass(frozen=True)
class Row:
    """One training: what it was, its steps and seconds, and the distance at each number of evaluations."""

    recipe: str
    sha256: str  # of the recipe's content and of the config's training
    seed: int
    units: float
    num_steps: int
    seconds: float
    distances: dict[str, float]  # "2": in two even steps; "2 shifted": in two that are shorter near the noise

    @property
    def key(self) -> tuple[str, int, float]:
        return self.sha256, self.seed, self.units


def recipe_of(source: str) -> Recipe:
    return Recipe.model_validate(load_recipe(source))


def students() -> list[str]:
    """The recipes that train a student."""
    return [name for name in recipe_names() if recipe_of(name).trains == "student"]


def identity(study: Study, source: str) -> str:
    """The digest of all that decides a training and its score but its seed and its units."""
    sections = {name: {k: v for k, v in section.items() if k not in OWN} for name, section in study.sections.items()}
    trainer = {key: value for key, value in sections["train"].pop("trainer", {}).items() if key != "num_steps"}
    content = [recipe_of(source).model_dump(exclude={"name", "about"}, mode="json"), sections, trainer, SHIFTED]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def run(study: Study, source: str, seed: int, units: float) -> Row:
    """Train a student by the recipe called `source`, score it and draw its samples."""
    torch.set_num_threads(1)
    recipe = recipe_of(source)
    num_steps = round(units / recipe.cost)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        values = merge(
            study.sections["train"],
            {"recipe": source, "data": str(study.data), "out": folder, "seed": seed, "device": "cpu"},
            {"trainer": {"num_steps": num_steps, "checkpoint_every": num_steps}},
        )
        started = time.monotonic()
        student = Student(networks.load(train(TrainConfig.model_validate(values)) / checkpoint.EMA))
        seconds = time.monotonic() - started
    samples = {
        title: draw(student, n, shift, study.num_samples)
        for n in evaluations(study)
        for title, shift in _samplings(n).items()
    }
    if is_drawable(student.network.config.shape):
        rows = {title: images[:NUM_SHOWN] for title, images in samples.items()}
        save_rows(study.out / "samples" / f"{Path(source).stem}-{seed}.png", rows)
    distances = {title: study.distance(images) for title, images in samples.items()}
    return Row(Path(source).stem, identity(study, source), seed, units, num_steps, seconds, distances)


def evaluations(study: Study) -> list[int]:
    return [steps for steps in study.evaluation.steps if isinstance(steps, int)]


def _samplings(num_steps: int) -> dict[str, float]:
    """The shifts of `num_steps` steps by their titles; one step has none."""
    even = {str(num_steps): 1.0}
    return even | {f"{num_steps} shifted": SHIFTED} if num_steps > 1 else even


def draw(student: Student, num_steps: int, shift: float, num_samples: int) -> NDArray[np.uint8]:
    """Samples of `num_steps` evaluations, spaced by `shift`, as bytes."""
    sampler = student_sampler(student, num_steps, 1.0, 0.0, shift)
    with torch.no_grad():
        shape = student.network.config.shape
        drawn = draw_samples(sampler, shape, 0, 0, range(num_samples), BATCH_SIZE, CPU)
        return to_bytes(torch.cat([batch.samples for batch in drawn]).numpy())


def compare(study: Study, sources: Sequence[str], seeds: Sequence[int], units: float, workers: int) -> str:
    """Train what has no result yet, and return the table."""
    (study.out / "samples").mkdir(parents=True, exist_ok=True)
    section = study.sections["generate"] | {"out": str(study.data), "executor": "inline"}
    with redirect_stdout(sys.stderr):
        manifest = generate(GenerateConfig.model_validate(section))
    done = {row.key for row in read(study.results)}
    jobs = [(source, seed) for seed in seeds for source in sources]
    jobs = [(source, seed) for source, seed in jobs if (identity(study, source), seed, units) not in done]
    # Fresh processes: torch's threads and a fork do not mix.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, study.results.open("a") as file:
        for future in as_completed([pool.submit(run, study, source, seed, units) for source, seed in jobs]):
            file.write(json.dumps(asdict(future.result())) + "\n")
            file.flush()
    ends = TrajectoryDataset(manifest)[: study.num_samples].sample.astype(np.float32)
    of_teacher = (
        f"The teacher's own samples: {study.distance(to_bytes(ends)):.2f}, in the features of {study.space.title}."
    )
    return f"{table(study, sources, seeds, units)}\n\n{of_teacher}"


def read(path: Path) -> list[Row]:
    """The results in the file `path`, if it is there."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def table(study: Study, sources: Sequence[str], seeds: Sequence[int], units: float) -> str:
    """In Markdown, a row for each recipe."""
    rows = {row.key: row for row in read(study.results)}
    counts = [counted(n, "evaluation") for n in evaluations(study)]
    header = ["recipe", *counts, "steps", "cost of a row", "seconds", "needs"]
    lines = [header, ["---"] * len(header)]
    for source in sources:
        key = identity(study, source)
        lines.append(_line(study, source, [rows[key, seed, units] for seed in seeds]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(study: Study, source: str, rows: Sequence[Row]) -> list[str]:
    recipe = recipe_of(source)
    cells = [_cell(n, rows) for n in evaluations(study)]
    seconds = statistics.mean(row.seconds for row in rows)
    return [Path(source).stem, *cells, str(rows[0].num_steps), f"{recipe.cost:.2f}", f"{seconds:.0f}", needs(recipe)]


def _cell(num_steps: int, rows: Sequence[Row]) -> str:
    """The better mean of the seeds' distances in `num_steps` steps, even or shifted, and half their range."""
    found = {title: [row.distances[title] for row in rows] for title in _samplings(num_steps)}
    title = min(found, key=lambda title: statistics.mean(found[title]))
    values = found[title]
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}{' (shifted)' if title.endswith('shifted') else ''}"


def needs(recipe: Recipe) -> str:
    """What a recipe needs beside the pairs of noise and sample."""
    found = {
        "states": any(term.num_states for term in recipe.terms),
        "velocities": recipe.needs_velocities,
        "live teacher": recipe.needs_teacher,
        "fresh noise": any(term.draws_noise for term in recipe.terms),
        "average as target": recipe.needs_ema,
        "own network": any(isinstance(term, Owner) for term in recipe.terms),
    }
    return ", ".join(name for name, is_needed in found.items() if is_needed) or "pairs"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for data and results")
    parser.add_argument("--config", default="quickstart", help="with sections generate, train and evaluate")
    parser.add_argument("--set", action="append", default=[], dest="assignments", help="one of its values, as in run")
    parser.add_argument("--recipes", nargs="+", default=students(), help="names, or YAML files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--units", type=float, default=UNITS, help="evaluations of a batch, as counted above")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    options = parser.parse_args()
    sections = merge(load_sections(options.config), *map(parse_assignment, options.assignments))
    study = Study(sections, options.out)
    print(compare(study, options.recipes, options.seeds, options.units, options.workers))


if __name__ == "__main__":
    main()
