import pytest
import torch

from pipeline.flow.path import match_dims, uniform_times
from pipeline.flow.solver import Solver, integrate
from pipeline.networks import FlowNetworkConfig
from pipeline.teachers.teacher import NetworkVelocity
from tests.support.problems import FAMILIES, ExactStudent, GaussianFlow, shaken, tiny_network
from trainer.distillation.student import Student, from_teacher, sample

X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.2, 1.0, 8)


def test_a_new_student_is_exactly_the_teachers_euler_step() -> None:
    teacher = tiny_network(num_classes=3)
    student, _ = from_teacher(teacher)
    label = torch.arange(8) % 3
    for s in (torch.zeros(8), T / 2, T):
        euler = X + (s - T)[:, None, None, None] * teacher(X, T, label=label)
        torch.testing.assert_close(student(X, T, s, label), euler, rtol=0, atol=0)


def test_the_embedding_of_s_starts_as_that_of_t() -> None:
    student, _ = from_teacher(tiny_network())
    torch.testing.assert_close(student.network.embed_s(T), student.network.embed_t(T))
    assert student.network.gate_s.eq(0).all()


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_student_begins_as_a_teacher_of_any_family_and_convention(config: FlowNetworkConfig) -> None:
    teacher = shaken(config.model_copy(update={"convention": "edm", "dropout": 0.2}))
    x, t = torch.randn(3, *config.shape), torch.tensor([0.2, 0.5, 0.9])
    label = torch.tensor([0, 2, -1]) if config.num_classes else None
    euler = x - match_dims(t, x) * teacher(x, t, label=label)
    torch.testing.assert_close(from_teacher(teacher)[0].train()(x, t, 0 * t, label), euler, rtol=0, atol=0)


def test_the_gate_learns_from_the_first_step() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(True)
    student(X, T, 0 * T, None).square().mean().backward()
    assert student.network.gate_s.grad is not None
    assert student.network.gate_s.grad.abs().max() > 0


def test_many_steps_of_a_new_student_are_the_teachers_euler_solution() -> None:
    teacher = tiny_network()
    times = uniform_times(8)
    solution = integrate(NetworkVelocity(teacher), X, times[[0, -1]], None, Solver(name="euler", num_steps=8))
    torch.testing.assert_close(sample(from_teacher(teacher)[0], X, times, None), solution.states[-1])


def test_sampling_with_the_exact_map_is_exact_in_any_number_of_steps() -> None:
    flow = GaussianFlow()
    exact = flow.mean + flow.std * X
    student: Student = ExactStudent(flow)  # type: ignore[assignment]
    for steps in (1, 2, 4):
        torch.testing.assert_close(sample(student, X, uniform_times(steps), None), exact)


def test_sampling_starts_where_the_flow_starts() -> None:
    student, _ = from_teacher(tiny_network())
    times = uniform_times(1, start=0.5)
    torch.testing.assert_close(
        sample(student, X, times, None), student(0.5 * X, torch.full((8,), 0.5), torch.zeros(8), None)
    )
