import pytest
import torch
from torch import Tensor

from pipeline.flow.path import interpolate
from tests.support.problems import ExactStudent, GaussianFlow, loss_values, tiny_network
from trainer.distillation import losses
from trainer.distillation.distance import squared_error
from trainer.distillation.models import differentiate
from trainer.distillation.queries import IN_S, Query, Source, Tangent
from trainer.distillation.student import Student, from_teacher

FLOW = GaussianFlow()
EXACT: Student = ExactStudent(FLOW)  # type: ignore[assignment]
B = 32
RNG = torch.Generator().manual_seed(0)
NOISE = torch.randn(B, 1, 4, 4, generator=RNG)
S, U, T = torch.rand(3, B, generator=RNG).sort(dim=0).values
ONE, ZERO = torch.ones(B), torch.zeros(B)


def state(t: Tensor) -> Tensor:
    return FLOW.state(NOISE, ONE, t)


def assert_zero(loss: Tensor) -> None:
    assert loss.shape == (B,)
    assert loss.abs().max() < 1e-10


def every_loss(student: Student) -> dict[str, Tensor]:
    x_t, x_u = state(T), state(U)
    middle = (T + S) / 2
    found = {
        "output": losses.output_loss(NOISE, ONE, state(ZERO), ZERO, None),
        "trajectory": losses.output_loss(x_t, T, state(S), S, None),
        "velocity": losses.velocity_loss(x_t, T, FLOW.velocity(x_t, T), None),
        "consistency": losses.consistency_loss(x_t, T, None, middle, S, None, "live"),
        "teacher's midpoint": losses.consistency_loss(x_t, T, state(middle), middle, S, None, "stopped"),
        "soft consistency": losses.consistency_loss(x_t, T, x_u, U, S, None, "stopped"),
        "lagrangian": losses.lagrangian_loss(FLOW.velocity, x_t, T, S, None),
        "lagrangian, own velocity": losses.lagrangian_loss(None, x_t, T, S, None),
        "eulerian": losses.eulerian_loss(x_t, T, S, FLOW.velocity(x_t, T), None, normalise=False),
        "eulerian, s = 0": losses.eulerian_loss(x_t, T, ZERO, FLOW.velocity(x_t, T), None),
        "meanflow": losses.meanflow_loss(x_t, T, S, FLOW.velocity(x_t, T), None),
    }
    return {name: loss_values(loss, student) for name, loss in found.items()}


def test_every_loss_is_zero_at_the_exact_map() -> None:
    for name, loss in every_loss(EXACT).items():
        assert loss.shape == (B,), name
        assert loss.abs().max() < 1e-6, name


def test_every_loss_is_positive_elsewhere() -> None:
    for name, loss in every_loss(from_teacher(tiny_network())[0]).items():
        assert (loss > 0).all(), name


def test_table_1s_loss_is_zero_where_g_moves_from_noise_to_sample_at_even_speed() -> None:
    class Straight(ExactStudent):
        def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
            return NOISE - state(ZERO)

    straight: Student = Straight(FLOW)  # type: ignore[assignment]
    assert_zero(loss_values(losses.derivative_loss(NOISE, ONE, S, NOISE - state(ZERO), None), straight))
    assert (loss_values(losses.derivative_loss(NOISE, ONE, S, NOISE - state(ZERO), None), EXACT) > 0).all()


def test_the_forward_mode_derivative_is_the_slope_and_can_be_trained() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(True)
    with torch.no_grad():
        student.network.gate_s.add_(0.3)
    query = Query(NOISE, T, S, None, tangent=IN_S)
    answer = differentiate(student.mean_velocity, query)
    torch.testing.assert_close(query.arrival(answer[0]), student(NOISE, T, S, None))
    with torch.no_grad():
        step = 1e-3
        ahead, behind = student(NOISE, T, S + step, None), student(NOISE, T, S - step, None)
    torch.testing.assert_close(query.departure(answer), (ahead - behind) / (2 * step), atol=2e-3, rtol=0)
    query.departure(answer).square().mean().backward()  # type: ignore[no-untyped-call]
    gradient = student.network.get_parameter("conv_in.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_the_velocity_target_points_from_data_to_noise() -> None:
    # On the line between a pair, the velocity of a flow that moves in straight lines is noise - data.
    class Straight(ExactStudent):
        def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
            return NOISE - state(ZERO)

    straight: Student = Straight(FLOW)  # type: ignore[assignment]
    x_t = interpolate(state(ZERO), NOISE, T)
    assert_zero(loss_values(losses.velocity_loss(x_t, T, NOISE - state(ZERO), None), straight))
    assert (loss_values(losses.velocity_loss(x_t, T, state(ZERO) - NOISE, None), straight) > 0.1).all()


def test_at_equal_times_f_is_the_derivative_in_s() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(False)
    student.network.gate_s.add_(0.3)
    step = 1e-3
    moved = (student(NOISE, T, T + step, None) - student(NOISE, T, T - step, None)) / (2 * step)
    torch.testing.assert_close(student.mean_velocity(NOISE, T, T, None), moved, atol=2e-3, rtol=0)


def test_a_stopped_target_is_not_trained_and_a_live_one_is() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(True)
    weight = student.network.get_parameter("conv_in.weight")

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss.sum(), weight)[0]

    x_t, x_u = state(T), state(U)
    constant = squared_error(student(x_t, T, S, None), student(x_u, U, S, None).detach())
    by_target: dict[Source, Tensor] = {
        target: gradient(loss_values(losses.consistency_loss(x_t, T, x_u, U, S, None, target), student))
        for target in ("stopped", "live")
    }
    torch.testing.assert_close(by_target["stopped"], gradient(constant))
    assert not torch.allclose(by_target["live"], by_target["stopped"])


def test_with_u_at_s_soft_consistency_is_anchored_at_the_teachers_state() -> None:
    student, _ = from_teacher(tiny_network())
    found = loss_values(losses.consistency_loss(state(T), T, state(S), S, S, None, "stopped"), student)
    torch.testing.assert_close(found, squared_error(student(state(T), T, S, None), state(S)))


def test_a_derivative_along_a_trajectory_is_what_the_student_changes_by() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(False)
    student.network.gate_s.add_(0.3)
    query = Query(state(T), T, S, None, tangent=Tangent(FLOW.velocity(state(T), T), t=1.0))
    step = 1e-3
    ahead, behind = (student(FLOW.state(state(T), T, T + d), T + d, S, None) for d in (step, -step))
    found = query.departure(differentiate(student.mean_velocity, query))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), atol=2e-3, rtol=0)


class Offset(ExactStudent):
    """The exact student, and `offset` more as its mean velocity: what losses without a live target must take back."""

    offset = torch.tensor(0.0)

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return super().mean_velocity(x_t, t, s, label) + self.offset * (1 + t[:, None, None, None])


@pytest.mark.parametrize("name", ["eulerian", "eulerian, s = 0", "meanflow", "lagrangian", "soft consistency"])
@pytest.mark.parametrize("offset", [-0.1, 0.1])
def test_the_gradient_points_to_the_exact_map(name: str, offset: float) -> None:
    student = Offset(FLOW)
    student.offset = torch.tensor(offset, requires_grad=True)
    loss = every_loss(student)[name].mean()  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(loss, student.offset)
    assert loss > 0
    assert slope * offset > 0


def test_at_s_equal_t_eulerian_and_meanflow_are_velocity_matching() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(False)
    x_t = state(T)
    velocity = FLOW.velocity(x_t, T)
    matching = squared_error(student.mean_velocity(x_t, T, T, None), velocity)
    eulerian = loss_values(losses.eulerian_loss(x_t, T, T, velocity, None, normalise=False), student)
    meanflow = loss_values(losses.meanflow_loss(x_t, T, T, velocity, None), student)
    torch.testing.assert_close(eulerian, matching)
    torch.testing.assert_close(meanflow, matching / (matching + 1e-3))


def test_at_rate_zero_the_eulerian_loss_has_no_derivative() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(False)
    student.network.gate_s.add_(0.3)
    x_t = state(T)
    velocity = FLOW.velocity(x_t, T)
    found = loss_values(losses.eulerian_loss(x_t, T, S, velocity, None, 0 * T, normalise=False), student)
    torch.testing.assert_close(found, squared_error(student.mean_velocity(x_t, T, S, None), velocity))


def test_a_normalised_tangent_moves_every_sample_alike() -> None:
    """|g| / (|g| + 0.1) is near 1 wherever the student is far from its target."""
    student = from_teacher(tiny_network())[0].requires_grad_(False)
    found = loss_values(losses.eulerian_loss(state(T), T, S, 100 * NOISE, None), student)
    assert ((found > 0.95) & (found < 1)).all()


def test_no_gradient_goes_through_the_teacher_of_the_lagrangian_loss() -> None:
    student = from_teacher(tiny_network())[0].requires_grad_(True)
    asked: list[bool] = []

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        asked.append(torch.is_grad_enabled() or x.requires_grad)
        return FLOW.velocity(x, t)

    loss_values(losses.lagrangian_loss(velocity, state(T), T, S, None), student).sum().backward()  # type: ignore[no-untyped-call]
    assert asked == [False]
