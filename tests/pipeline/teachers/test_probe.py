from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import BadInput
from pipeline.flow.solver import Solver
from pipeline.teachers.probe import SOLVERS, Point, ProbeResult, choose_solvers, probe
from pipeline.teachers.teacher import Teacher, of_network
from tests.support.command import call
from tests.support.plans import make_plan
from tests.support.problems import SHAPE, GaussianFlow, tiny_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found() -> ProbeResult:
    return probe(GaussianFlow().teacher(), 32, 0, CPU)


def by_name(found: ProbeResult) -> dict[str, Point]:
    return {str(point.solver): point for point in found.points}


def test_every_solver_is_measured(found: ProbeResult) -> None:
    assert [point.solver for point in found.points] == list(SOLVERS)
    assert found.refusals == []
    assert {name: point.nfe for name, point in by_name(found).items() if point.solver.num_steps == 8} == {
        "rk4 8": 32,
        "heun2 8": 16,
        "midpoint 8": 16,
        "euler 8": 8,
    }


def test_errors_fall_with_the_order_of_the_solver(found: ProbeResult) -> None:
    points = by_name(found)
    assert points["euler 64"].median / points["euler 128"].median == pytest.approx(2, rel=0.1)
    assert points["midpoint 16"].median / points["midpoint 32"].median > 3
    assert points["rk4 4"].median / points["rk4 8"].median > 8
    assert points["dopri5 1e-5"].worst < 1e-3 < points["dopri5 0.01"].worst
    assert all(point.median <= point.p90 <= point.worst for point in found.points)


def test_efficient_settings_are_beaten_by_none_in_both(found: ProbeResult) -> None:
    for point in found.points:
        beaten = any(other.nfe <= point.nfe and other.p90 < point.p90 for other in found.points)
        assert beaten != (point in found.efficient)


def test_the_cheapest_good_enough_is_recommended(found: ProbeResult) -> None:
    best = found.recommend(1e-3)
    assert best.p90 <= 1e-3
    assert best.nfe == min(point.nfe for point in found.points if point.p90 <= 1e-3)
    with pytest.raises(BadInput, match=r"no solver comes within 1\.0e-12 of the reference, the best within"):
        found.recommend(1e-12)


def test_labels_reach_a_conditional_teacher() -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        assert label is not None
        return label[:, None, None, None].expand_as(x).float()

    points = probe(Teacher("labels", "0" * 64, velocity, SHAPE, num_classes=3), 4, 0, CPU).points
    assert all(point.worst < 1e-4 for point in points)


def test_a_setting_that_gives_up_is_noted_and_the_others_are_measured() -> None:
    solvers = (Solver(name="dopri8", rtol=1e-30, atol=1e-30), Solver(name="euler", num_steps=8))
    found = probe(GaussianFlow().teacher(), 4, 0, CPU, solvers=solvers)
    assert [str(point.solver) for point in found.points] == ["euler 8"]
    assert "dopri8 1e-30 gave up" in found.refusals[0]


def test_solvers_are_chosen_by_name() -> None:
    assert {solver.name for solver in choose_solvers("euler, rk4")} == {"euler", "rk4"}
    assert choose_solvers(None) == SOLVERS
    with pytest.raises(BadInput, match="no solver 'ralston' to measure: wanted some of dopri5,"):
        choose_solvers("euler,ralston")


def test_a_fixed_step_solver_steps_where_generate_does() -> None:
    asked: list[float] = []

    def velocity(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        asked.append(float(t[0]))
        return GaussianFlow().velocity(x, t)

    teacher = Teacher("gaussian", "0" * 64, velocity, SHAPE)
    euler = Solver(name="euler", num_steps=5)
    probe(teacher, 4, 7, CPU, solvers=[euler], num_states=4)
    assert asked[-5:] == make_plan(seed=7, num_states=4, solver=euler).times(0)[:-1].tolist()
    even = probe(teacher, 4, 7, CPU, solvers=[Solver(name="euler", num_steps=2)], num_states=8)
    assert [point.nfe for point in even.points] == [2]


def test_a_compiled_teacher_is_compared_by_time_and_recommended_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    teacher, solvers = of_network("tiny", "0" * 64, tiny_network(), CPU), choose_solvers("euler,rk4")
    found = probe(teacher, 4, 0, CPU, solvers=solvers, compiled=True)
    assert [point.compiled for point in found.points] == [False] * len(solvers) + [True] * len(solvers)
    for is_compiled in (True, False):
        faster = [replace(p, seconds=p.nfe / (1 + (p.compiled == is_compiled))) for p in found.points]
        best = replace(found, points=faster).recommend(1)
        assert best.flags.endswith(f"--set compile={str(is_compiled).lower()}")
    assert "fp32, compiled" in [point.arithmetic for point in found.points]


def test_on_a_gpu_cuda_graphs_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    monkeypatch.setattr("pipeline.teachers.probe.ways_to_run", lambda device: (False, True, "graphs"))
    monkeypatch.setattr("pipeline.teachers.compilation.check_graphs", lambda device: None)
    teacher, solvers = of_network("tiny", "0" * 64, tiny_network(), CPU), choose_solvers("euler")
    found = probe(teacher, 4, 0, CPU, solvers=solvers[:1], compiled=True)
    assert [point.compiled for point in found.points] == [False, True, "graphs"]
    assert found.points[-1].flags.endswith("--set compile=graphs")
    assert found.points[-1].arithmetic == "fp32, CUDA graphs"


def test_what_cannot_be_compiled_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(BadInput, match="compile: wanted a network of this program; teacher gaussian is a function"):
        probe(GaussianFlow().teacher(), 4, 0, CPU, compiled=True)
    teacher = of_network("tiny", "0" * 64, tiny_network(), CPU)
    with pytest.raises(BadInput, match="precision tf32: wanted a GPU that has it, got a CPU"):
        probe(teacher, 4, 0, CPU, precisions=("tf32",), compiled=True)


def test_an_interrupt_keeps_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(amount: float, status: str = "", *, skipped: bool = False) -> None:
        raise KeyboardInterrupt

    found = probe(GaussianFlow().teacher(), 4, 0, CPU, interrupt)
    assert len(found.points) == 1
    assert not found.is_complete
    monkeypatch.setattr("pipeline.teachers.probe.probe", lambda *_, **__: found)
    shown = call(tmp_path, "probe", "--teacher", "digits", code=130)
    assert "dopri5 0.01" in shown.stdout
    assert "1 of 26 settings measured" in shown.stdout
