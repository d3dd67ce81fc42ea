"""AMED-Solver (Zhou et al. 2023, arXiv 2312.00094): two evaluations a step, the second where a small network says.

A step from t to s goes in the direction that the ODE has at a time between them (their Eq. 9), which a predictor learns
from trajectories, with a scaling near 1. Theirs is the ODE in noise levels, with geometric means of both for the time
between; here it is the flow's own, which ends at 0, with weighted means. Half-way and unscaled, it is the midpoint
method.

    python -m eval.sampling.amed FILE --data DATA --evaluations 4

Then `evaluate` takes FILE among its baselines.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eval.sampling.grids import GRIDS
from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.plan import Plan
from pipeline.flow.path import match_dims
from pipeline.networks import FlowNetwork
from pipeline.storage.store import open_store
from pipeline.teachers.loading import resolve_recorded
from pipeline.teachers.teacher import NetworkVelocity, Teacher
from trainer.data.stream import TrajectoryBatch, TrajectoryStream

HIDDEN, OUT, NUM_FREQUENCIES = 128, 4, 4
MAX_SCALING = 0.01  # of a direction, as in the paper's code
NUM_SAMPLES, BATCH_SIZE, LR = 10_000, 128, 5e-3  # of a training
METADATA = "amed"


class Predictor(nn.Module):
    """Their Fig. 6, from the teacher's last features and both times of a step to r in (0, 1) and c around 1, [B] each.

    Images' features [B, C, H, W] are averaged over channels; other arrays' are taken as they are.
    """

    frequencies: Tensor

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * torch.arange(1, NUM_FREQUENCIES + 1), persistent=False)
        self.encoder = nn.Sequential(nn.Linear(num_inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, OUT))
        self.head = nn.Linear(OUT + 4 * NUM_FREQUENCIES, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # it starts as the midpoint method

    def forward(self, features: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
        phases = torch.cat([time * self.frequencies for time in (t, s)])
        times = torch.cat([phases.sin(), phases.cos()]).expand(len(features), -1)
        out = self.head(torch.cat([self.encoder(pooled(features)), times], dim=1)).sigmoid()
        return out[:, 0], 1 + MAX_SCALING * (2 * out[:, 1] - 1)


def pooled(features: Tensor) -> Tensor:
    """The predictor's input [B, D]."""
    return features.mean(1).flatten(1) if features.ndim > 2 else features


@dataclass(frozen=True)
class Facts:
    """What a predictor was trained for: it is good for nothing else."""

    teacher: str
    teacher_sha256: str
    grid: str  # of `GRIDS`
    times: tuple[float, ...]  # falling, both ends of the flow included


@dataclass(frozen=True)
class AmedSolver:
    """The sampler: a network, its predictor, and the times of its steps."""

    network: FlowNetwork
    predictor: Predictor
    facts: Facts

    @property
    def num_evaluations(self) -> int:
        return 2 * (len(self.facts.times) - 1)

    @torch.no_grad()
    def sample(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The end of the flow that starts as x [B, *shape]."""
        for t, s in pairwise(self.facts.times):
            x = self.step(x, t, s, label)
        return x

    def step(self, x: Tensor, t: float, s: float, label: Tensor | None) -> Tensor:
        """The state [B, *shape] at s from x at t (their Eq. 9)."""
        velocity, features = self.network.velocity_and_features(x, x.new_full((len(x),), t), label)
        r, scaling = self.predictor(features[-1], t, s)
        between = t + r * (s - t)
        x_between = x + match_dims(between - t, x) * velocity
        moved: Tensor = x + (s - t) * match_dims(scaling, x) * self.network(x_between, between, label=label)
        return moved


def fit(network: FlowNetwork, facts: Facts, batches: Iterable[TrajectoryBatch]) -> AmedSolver:
    """Train a predictor on the trajectories in `batches` (their Algorithm 1): a step is to end where the teacher is."""
    torch.manual_seed(0)
    network.requires_grad_(False)
    last = network.features(torch.zeros(1, *network.config.shape), torch.zeros(1), None)[-1]
    solver = AmedSolver(network, Predictor(pooled(last).shape[1]), facts)
    optimizer = torch.optim.Adam(solver.predictor.parameters(), lr=LR)
    for batch in batches:
        x = batch.x[:, 0]
        for t, s in pairwise(facts.times):
            x = solver.step(x.detach(), t, s, batch.label)
            loss = (x - batch.at(batch.times.new_full((len(x),), s))).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return solver


def network_of(teacher: Teacher) -> FlowNetwork:
    """The teacher's network, whose velocity is the teacher's own.

    Raises:
        BadInput: it has none of this program, or is under guidance.
    """
    if isinstance(teacher.network, FlowNetwork) and isinstance(teacher.velocity, NetworkVelocity):
        return teacher.network
    raise BadInput(f"AMED-Solver: wanted a teacher that is a network of this program, unguided; {teacher.name} is not")


def save(path: Path, solver: AmedSolver) -> None:
    """Write the predictor with its facts."""
    networks.save_tensors(path, solver.predictor.state_dict(), {METADATA: json.dumps(asdict(solver.facts))})


def load(path: Path, teacher: Teacher) -> AmedSolver:
    """The sampler of `teacher` with the predictor in the file `path`.

    Raises:
        BadInput: the file is none of `save`, or of another teacher.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        facts = Facts(**{**values, "times": tuple(values["times"])})
        predictor = Predictor(tensors["encoder.0.weight"].shape[1])
        predictor.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: wanted a file that python -m eval.sampling.amed wrote; {one_line(error)}") from error
    if facts.teacher_sha256 != teacher.sha256:
        raise BadInput(f"{path}: wanted a predictor for {teacher.name}; it was trained for {facts.teacher}")
    network = network_of(teacher)
    device = next(network.parameters()).device
    return AmedSolver(network, predictor.to(device).eval().requires_grad_(False), facts)


def times_of(plan: Plan, num_evaluations: int, grid: str) -> tuple[float, ...]:
    """Of the steps of `num_evaluations`, two each.

    Raises:
        BadInput: the number is odd.
    """
    if num_evaluations < 2 or num_evaluations % 2:
        raise BadInput(f"--evaluations {num_evaluations}: wanted an even number, two for each step")
    return tuple(GRIDS[grid][1](num_evaluations // 2, plan.t_start, plan.t_end).tolist())


def train(file: Path, data: str, num_evaluations: int, grid: str, teacher: str | None) -> None:
    """Fit a predictor to the trajectories `data`, and write it to `file`; `teacher` says where the teacher is now.

    Raises:
        BadInput: there are no velocities, or the teacher is another or has no network.
    """
    store = open_store(data)
    manifest = read_manifest(store)
    plan = manifest.plan
    if not plan.velocities:
        raise BadInput(f"{data}: wanted velocities, for the states between: generate with --velocities")
    source = resolve_recorded(manifest.dataset.teacher_source, teacher, data, "--teacher ")
    found = source.load_planned(plan, store)
    if found.sha256 != plan.teacher_sha256:
        raise BadInput(f"{data} was made by another teacher than {found.name}: name its own with --teacher")
    facts = Facts(found.name, found.sha256, grid, times_of(plan, num_evaluations, grid))
    batches = map(TrajectoryStream(manifest, 0, BATCH_SIZE).batch, range(NUM_SAMPLES // BATCH_SIZE))
    save(file, fit(network_of(found), facts, batches))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of the predictor, .safetensors")
    parser.add_argument("--data", required=True, help="trajectories with velocities")
    parser.add_argument("--evaluations", type=int, required=True, help="of a sample: an even number")
    parser.add_argument("--grid", choices=[*GRIDS], default="even", help="of the times")
    parser.add_argument("--teacher", help="where it is now")
    options = parser.parse_args()
    try:
        train(options.file, options.data, options.evaluations, options.grid, options.teacher)
    except (BadInput, WorkFailed) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BadInput) else 1) from error


if __name__ == "__main__":
    main()
