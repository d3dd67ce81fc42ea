import torch
from torch import Tensor

from pipeline.flow import interpolate
from tests.problems import ExactStudent, GaussianFlow, tiny_network
from trainer import losses
from trainer.student import Student, from_teacher

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


def test_every_loss_is_zero_at_the_exact_map() -> None:
    assert_zero(losses.output_loss(EXACT, NOISE, ONE, state(ZERO), ZERO, None))
    assert_zero(losses.velocity_loss(EXACT, state(T), T, FLOW.velocity(state(T), T), None))
    assert_zero(losses.consistency_loss(EXACT, state(T), T, U, S, None))
    assert_zero(losses.soft_consistency_loss(EXACT, state(T), T, state(U), U, S, None))


def test_every_loss_is_positive_elsewhere() -> None:
    student = from_teacher(tiny_network())
    values = [
        losses.output_loss(student, NOISE, ONE, state(ZERO), ZERO, None),
        losses.velocity_loss(student, state(T), T, FLOW.velocity(state(T), T), None),
        losses.consistency_loss(student, state(T), T, U, S, None),
        losses.soft_consistency_loss(student, state(T), T, state(U), U, S, None),
    ]
    assert all((value > 0).all() for value in values)


def test_the_velocity_target_points_from_data_to_noise() -> None:
    # On the line between a pair, the velocity of a flow that moves in straight lines is noise - data.
    class Straight(ExactStudent):
        def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
            return NOISE - state(ZERO)

    straight: Student = Straight(FLOW)  # type: ignore[assignment]
    x_t = interpolate(state(ZERO), NOISE, T)
    assert_zero(losses.velocity_loss(straight, x_t, T, NOISE - state(ZERO), None))
    assert (losses.velocity_loss(straight, x_t, T, state(ZERO) - NOISE, None) > 0.1).all()


def test_at_equal_times_f_is_the_derivative_in_s() -> None:
    student = from_teacher(tiny_network()).requires_grad_(False)
    student.network.gate_s.add_(0.3)
    step = 1e-3
    moved = (student(NOISE, T, T + step, None) - student(NOISE, T, T - step, None)) / (2 * step)
    torch.testing.assert_close(student.mean_velocity(NOISE, T, T, None), moved, atol=2e-3, rtol=0)


def test_the_target_of_soft_consistency_is_not_trained() -> None:
    student = from_teacher(tiny_network()).requires_grad_(True)
    inputs = state(U).requires_grad_(True)
    losses.soft_consistency_loss(student, state(T), T, inputs, U, S, None).sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is None
    assert student.network.conv_in.weight.grad is not None


def test_with_u_at_s_soft_consistency_is_anchored_at_the_teachers_state() -> None:
    student = from_teacher(tiny_network())
    found = losses.soft_consistency_loss(student, state(T), T, state(S), S, S, None)
    torch.testing.assert_close(found, losses.squared_error(student(state(T), T, S, None), state(S)))


def test_losses_are_means_over_components() -> None:
    assert losses.squared_error(torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 4, 4)).tolist() == [4.0, 4.0]
