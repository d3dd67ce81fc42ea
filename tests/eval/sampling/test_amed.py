from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.sampling import amed
from eval.sampling.amed import AmedSolver, Facts, Predictor
from eval.sampling.baselines import baseline_samplers
from eval.sampling.grids import GRIDS
from pipeline.common.errors import BadInput
from pipeline.flow.path import uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.networks import FlowNetwork, MlpConfig
from pipeline.teachers.teacher import Teacher, guided, of_network
from tests.support.problems import MixtureFlow, make_data, tiny_network
from trainer.data.stream import TrajectoryBatch

FLOW, SHAPE, B = MixtureFlow(), (2,), 256
KNOWN = Teacher("known", "0" * 64, FLOW.velocity, SHAPE)
CPU = torch.device("cpu")


class Known(FlowNetwork):
    """A flow with a known velocity as a network, whose last feature is the state itself."""

    def __init__(self) -> None:
        super().__init__(MlpConfig(shape=SHAPE))
        self.asked = 0

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.asked += 1
        return FLOW.velocity(x, t)

    def features(self, x: Tensor, t: Tensor, label: Tensor | None) -> list[Tensor]:
        return [x]

    def velocity_and_features(self, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        return self(x, t), [x]


def trajectories(seed: int) -> TrajectoryBatch:
    noise = torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(seed))
    times = uniform_times(9)
    x = integrate(FLOW.velocity, noise, times, None, Solver(name="rk4", num_steps=9)).states.transpose(0, 1)
    velocity = torch.stack([FLOW.velocity(x[:, i], t.float().expand(B)) for i, t in enumerate(times)], dim=1)
    return TrajectoryBatch(x, velocity, times.float().expand(B, -1), None, torch.arange(B))


def facts(grid: str = "even", num_evaluations: int = 4) -> Facts:
    times = GRIDS[grid][1](num_evaluations // 2, 1.0, 0.0)
    return Facts("known", "0" * 64, grid, tuple(times.tolist()))


def error(found: Tensor, batch: TrajectoryBatch) -> float:
    return float((found - batch.x[:, -1]).square().mean().sqrt())


@pytest.mark.parametrize("grid", GRIDS)
def test_before_training_it_is_the_midpoint_method(grid: str) -> None:
    solver, batch = AmedSolver(Known(), Predictor(2), facts(grid)), trajectories(0)
    (midpoint,) = baseline_samplers(KNOWN, 4, ["midpoint"], [grid])
    torch.testing.assert_close(solver.sample(batch.x[:, 0], None), midpoint.draw(batch.noise, None)[0])


def test_trained_on_trajectories_it_ends_nearer_to_others_than_the_solvers_of_as_many_evaluations() -> None:
    network = Known()
    seen = [trajectories(seed) for seed in range(1, 6)]
    solver = amed.fit(network, facts(), 16 * seen)
    batch, network.asked = trajectories(0), 0
    ours = error(solver.sample(batch.x[:, 0], None), batch)
    assert network.asked == solver.num_evaluations == 4
    others = baseline_samplers(KNOWN, 4, ["midpoint", "dpm-2", "heun", "euler"], ["even"])
    assert ours < 0.9 * min(error(sampler.draw(batch.noise, None)[0], batch) for sampler in others)


def teacher_of(seed: int) -> Teacher:
    return of_network("tiny", str(seed) * 64, tiny_network(seed), CPU)


def saved(path: Path, teacher: Teacher) -> AmedSolver:
    network = amed.network_of(teacher)
    solver = AmedSolver(network, Predictor(4), replace(facts(), teacher=teacher.name, teacher_sha256=teacher.sha256))
    with torch.no_grad():
        for parameter in solver.predictor.parameters():
            parameter.add_(torch.randn_like(parameter))
    amed.save(path, solver)
    return solver


def test_a_predictor_is_kept_with_its_facts_and_is_a_row_at_its_own_number_of_evaluations(tmp_path: Path) -> None:
    path, teacher = tmp_path / "amed.safetensors", teacher_of(0)
    solver, noise = saved(path, teacher), torch.randn(3, 1, 4, 4)
    assert amed.load(path, teacher).facts == solver.facts
    assert [sampler.name for sampler in baseline_samplers(teacher, 2, [str(path)])] == []
    (sampler,) = baseline_samplers(teacher, 4, [str(path)])
    assert (sampler.name, sampler.group) == ("AMED-Solver 4", "few-step")
    samples, nfe = sampler.draw(noise, None)
    assert nfe == 4
    torch.testing.assert_close(samples, solver.sample(noise, None))


def test_a_predictor_of_another_teacher_and_what_is_none_are_refused(tmp_path: Path) -> None:
    path, teacher = tmp_path / "amed.safetensors", teacher_of(0)
    saved(path, teacher)
    with pytest.raises(BadInput, match=r"amed\.safetensors: wanted a predictor for tiny; it was trained for tiny"):
        amed.load(path, teacher_of(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"wanted a file that python -m eval\.sampling\.amed wrote"):
        amed.load(path, teacher)
    labelled = of_network("tiny", "0" * 64, tiny_network(0, num_classes=3, label_dropout=0.1), CPU)
    for other in (Teacher("function", "0" * 64, FLOW.velocity, SHAPE), guided(labelled, 2.0)):
        with pytest.raises(BadInput, match=r"wanted a teacher that is a network of this program, unguided"):
            amed.network_of(other)


def test_a_command_trains_a_predictor_from_trajectories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = (
        make_data(tmp_path, teacher="digits", n=16, shard_size=16, batch_size=16, velocities=True),
        tmp_path / "a",
    )
    monkeypatch.setattr(amed, "NUM_SAMPLES", 32)
    monkeypatch.setattr(amed, "BATCH_SIZE", 16)
    amed.train(path, str(data), 4, "edm", None)
    with pytest.raises(BadInput, match="it was trained for digits"):
        amed.load(path, teacher_of(0))
    with pytest.raises(BadInput, match="--evaluations 3: wanted an even number"):
        amed.train(path, str(data), 3, "edm", None)
