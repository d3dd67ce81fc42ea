"""Recipes for students, compared on points of a checkerboard in the plane, where the distance is exact.

    python -m benchmarks.points

trains a small flow on the points, generates 8,192 of its trajectories, trains a student by each recipe at equal compute
(counted as `benchmarks.recipes` does), and prints a Markdown table of Wasserstein distances (W2) between 1,000 samples
at 1, 2, 4 and 8 evaluations and 1,000 points: the mean over five sets of each, and over the seeds. In the plane
trajectories and straight lines fill the same space, which tells recipes apart that images do not.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import traflow_pipeline as tp
from eval.metrics.distances import wasserstein_distance
from eval.sampling.samplers import Sampler, draw_samples, teacher_sampler
from pipeline.common.config import load_section, merge
from pipeline.flow.solver import Solver
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.teachers.loading import load_teacher
from trainer.config import TrainConfig
from trainer.distillation.recipes import Recipe, load_recipe
from trainer.train import train

STEPS = (1, 2, 4, 8)
RECIPES = ["anchored", "trajectory", "benchmarks/variants/d1-huber-line-4.yaml"]
NUM_POINTS = 1000
NETWORK = {"family": "mlp", "width": 128, "num_blocks": 3}
SOLVER = Solver(name="rk4", num_steps=32)
CPU = torch.device("cpu")

Points = NDArray[np.float32]  # [N, 2]


@dataclass(frozen=True)
class Effort:
    """The sizes of a comparison: trainings in evaluations of a batch of 256, as counted by `benchmarks.recipes`."""

    units: float = 7000.0  # 1,474 steps of `anchored`
    teacher_steps: int = 4000
    num_trajectories: int = 8192
    num_sets: int = 5  # of samples and of points, `NUM_POINTS` each


def checkerboard(num_points: int, seed: int) -> Points:
    """Points spread evenly over the eight dark squares of side 1 in [-2, 2]^2."""
    rng = np.random.default_rng(seed)
    column, half = rng.integers(0, 4, num_points), rng.integers(0, 2, num_points)
    corner = np.stack([column, 2 * half + column % 2], axis=1) - 2
    return (corner + rng.random((num_points, 2))).astype(np.float32)


def fit_teacher(folder: Path, num_steps: int) -> Path:
    """A flow that is trained on points of the checkerboard."""
    np.save(folder / "points.npy", checkerboard(65536, seed=0))
    out = folder / "teacher"
    values = {
        "recipe": "flow-matching",
        "images": str(folder / "points.npy"),
        "out": str(out),
        "device": "cpu",
        "network": NETWORK,
        "trainer": {"num_steps": num_steps, "batch_size": 256, "lr": 2e-3, "ema": {"half_life_images": 50000}},
    }
    train(TrainConfig.model_validate(values))
    return out


def make_trajectories(folder: Path, teacher: Path, num_trajectories: int) -> Path:
    """Trajectories of the teacher, by an accurate solver."""
    out = folder / "data"
    values = {
        "teacher": str(teacher),
        "n": num_trajectories,
        "out": str(out),
        "solver": SOLVER.model_dump(exclude_none=True),
        "executor": "inline",
    }
    generate(GenerateConfig.model_validate(values))
    return out


def fit_student(data: Path, source: str, seed: int, units: float) -> tp.StudentSampler:
    """The student that the recipe called `source` trains on `data`."""
    num_steps = round(units / Recipe.model_validate(load_recipe(source)).cost)
    with tempfile.TemporaryDirectory() as out:
        values = merge(
            load_section("quickstart", "train"),
            {"recipe": source, "data": str(data), "out": out, "seed": seed, "device": "cpu"},
            {"trainer": {"num_steps": num_steps, "checkpoint_every": num_steps, "batch_size": 256}},
        )
        return tp.load_student(train(TrainConfig.model_validate(values)), device="cpu")


def distance(sampler: Sampler, num_sets: int) -> float:
    """The mean W2 between sets of samples and of points."""
    with torch.no_grad():
        drawn = list(draw_samples(sampler, (2,), 0, 0, range(num_sets * NUM_POINTS), NUM_POINTS, CPU))
    points = checkerboard(num_sets * NUM_POINTS, seed=1).reshape(num_sets, NUM_POINTS, 2)
    return statistics.mean(
        wasserstein_distance(batch.samples.numpy(), each) for batch, each in zip(drawn, points, strict=True)
    )


def compare(sources: Sequence[str], seeds: Sequence[int], effort: Effort) -> str:
    """The table, a row for each recipe below the teacher's."""
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        path = fit_teacher(Path(name), effort.teacher_steps)
        accurate = teacher_sampler(load_teacher(str(path)), SOLVER)
        rows = [_row("the teacher", [distance(accurate, effort.num_sets)] * len(STEPS))]
        data = make_trajectories(Path(name), path, effort.num_trajectories)
        for source in sources:
            students = [fit_student(data, source, seed, effort.units) for seed in seeds]
            means = [
                statistics.mean(distance(each.source(n).sampler, effort.num_sets) for each in students) for n in STEPS
            ]
            rows.append(_row(Path(source).stem, means))
    titles = [f"{n} evaluation{'s' if n > 1 else ''}" for n in STEPS]
    return "\n".join([f"| recipe | {' | '.join(titles)} |", "|---" * (len(STEPS) + 1) + "|", *rows])


def _row(title: str, distances: Sequence[float]) -> str:
    return f"| {title} | {' | '.join(f'{each:.3f}' for each in distances)} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="names, or YAML files")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--units", type=float, default=Effort.units, help="evaluations of a batch, as counted above")
    options = parser.parse_args()
    print(compare(options.recipes, options.seeds, Effort(units=options.units)))


if __name__ == "__main__":
    main()
