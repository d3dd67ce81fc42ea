"""The losses of compared methods on a Gaussian flow, whose map is known: zero there, and pointing there elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.path import interpolate
from tests.support.problems import ExactStudent, GaussianFlow, loss_values, tiny_network
from trainer.distillation import compared_losses, losses
from trainer.distillation.companions import Discriminator, Weighting, held
from trainer.distillation.queries import Loss
from trainer.distillation.student import from_teacher

FLOW = GaussianFlow()
B = 32
RNG = torch.Generator().manual_seed(0)
NOISE, OTHER = torch.randn(2, B, 1, 4, 4, generator=RNG)
S, U, T = (0.1 + 0.8 * torch.rand(3, B, generator=RNG)).sort(dim=0).values
ONE, ZERO = torch.ones(B), torch.zeros(B)


def state(t: Tensor) -> Tensor:
    return FLOW.state(NOISE, ONE, t)


class Offset(ExactStudent):
    """The exact student, and `offset` more as its mean velocity."""

    def __init__(self, flow: GaussianFlow, offset: float = 0.0) -> None:
        super().__init__(flow)
        self.offset = nn.Parameter(torch.tensor(offset))

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return super().mean_velocity(x_t, t, s, label) + self.offset


def values(loss: Loss, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """The values of `loss`, and the slope of their mean in the student's offset."""
    student = Offset(FLOW, offset)
    found = loss_values(loss, student)  # type: ignore[arg-type]
    mean = found.mean() if found.ndim == 1 else found[0].mean()
    return found, torch.autograd.grad(mean, student.offset)[0]


# Zero at the exact map: its targets are values of that map.
CONSISTENT: dict[str, Callable[[], Loss]] = {
    "ctm": lambda: compared_losses.trajectory_consistency_loss(state(T), T, state(U), U, S, ZERO, None),
    "consistency distillation": lambda: losses.consistency_loss(state(T), T, state(U), U, ZERO, None, "ema"),
    "progressive": lambda: compared_losses.progressive_loss(ExactStudent(FLOW).mean_velocity, state(T), T, U, S, None),
}


@pytest.mark.parametrize("name", CONSISTENT)
@pytest.mark.parametrize("offset", [-0.1, 0.1])
def test_a_consistent_loss_is_zero_at_the_exact_map_and_points_there(name: str, offset: float) -> None:
    assert values(CONSISTENT[name]())[0].abs().max() < 1e-8
    found, slope = values(CONSISTENT[name](), offset)
    assert found.mean() > 0
    assert slope * offset > 0


def test_two_half_steps_are_the_whole_of_a_shortcut_only_in_their_mean() -> None:
    """At half-way the mean of two mean velocities is the mean velocity."""
    middle = (T + S) / 2
    assert values(compared_losses.shortcut_loss(state(T), T, middle, S, None))[0].abs().max() < 1e-8


def test_progressive_distillation_learns_two_steps_of_the_student_before() -> None:
    before = Offset(FLOW, 0.3).mean_velocity
    middle = (T + S) / 2
    with torch.no_grad():
        x_m = state(T) + (middle - T)[:, None, None, None] * before(state(T), T, middle, None)
        x_s = x_m + (S - middle)[:, None, None, None] * before(x_m, middle, S, None)
        exact = (x_s - state(T)) / (S - T)[:, None, None, None]
        ours = ExactStudent(FLOW).mean_velocity(state(T), T, S, None)
    found, _ = values(compared_losses.progressive_loss(before, state(T), T, middle, S, None))
    torch.testing.assert_close(found, (ours - exact).square().flatten(1).mean(1))


def test_bootstrapping_in_small_steps_is_zero_at_the_exact_map_but_for_eulers_error() -> None:
    """Over the squared step an error of Euler's local order, step^2, leaves step^2."""
    found = []
    for step in (0.04, 0.02, 0.01):
        s = 0.2 + 0.6 * T
        first = FLOW.velocity(NOISE, ONE)
        loss = compared_losses.bootstrap_loss(FLOW.velocity, NOISE, ONE, s + step, s, first, None)
        found.append(float(values(loss)[0].detach().mean()))
    assert found[2] < 1e-3
    assert found[0] / found[1] == pytest.approx(4, rel=0.15)
    assert found[1] / found[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("offset", [-0.3, 0.3])
def test_bootstrapping_points_to_the_exact_map(offset: float) -> None:
    s = 0.2 + 0.6 * T
    loss = compared_losses.bootstrap_loss(FLOW.velocity, NOISE, ONE, s + 0.02, s, FLOW.velocity(NOISE, ONE), None)
    assert values(loss, offset)[1] * offset > 0


def straight(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """The velocity of a flow of straight lines to the one sample 0.5: two steps of it are exact."""
    return (x - 0.5) / t[:, None, None, None]


class ToOne(ExactStudent):
    """The exact student of that flow, and `offset` more."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__(FLOW)
        self.offset = nn.Parameter(torch.tensor(offset))

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return straight(x_t, t, None) + self.offset


GUIDED: dict[str, Callable[[], Loss]] = {
    "guided": lambda: compared_losses.guided_loss(straight, NOISE, ONE, ZERO, U, None),
    "score distillation": lambda: compared_losses.score_distillation_loss(straight, NOISE, ONE, ZERO, U, None),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("offset", [-0.1, 0.0, 0.1])
def test_a_live_teacher_of_straight_lines_guides_to_its_sample(name: str, offset: float) -> None:
    student = ToOne(offset)
    found = loss_values(GUIDED[name](), student)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(found.mean(), student.offset)
    assert (found.abs().max() < 1e-8) == (offset == 0)
    assert slope * offset >= 0


def test_the_gradient_of_score_distillation_is_that_of_its_equation() -> None:
    """u (v(x_u, u) - (noise - x)) in the student's sample x, over the number of its components."""
    student = from_teacher(tiny_network())[0]
    x = student(NOISE, ONE, ZERO, None).detach().requires_grad_(True)

    class Given(ExactStudent):
        def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
            return torch.sub(NOISE, x)

    loss = compared_losses.score_distillation_loss(FLOW.velocity, NOISE, ONE, ZERO, U, None)
    (found,) = torch.autograd.grad(loss_values(loss, Given(FLOW)).sum(), x)  # type: ignore[arg-type]
    u = U[:, None, None, None]
    with torch.no_grad():
        wanted = u * (FLOW.velocity(interpolate(x, NOISE, U), U) - (NOISE - x)) / x[0].numel()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_a_learned_weight_makes_the_error_of_every_time_count_alike() -> None:
    """At the weighting's minimum exp(w) is one over the error, so that each time's weighted error is 1."""
    weighting, error = Weighting(), 0.05 + T**2
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    ours, own = losses.weighted_loss(error, weighting(T))
    torch.testing.assert_close(ours, error)
    torch.testing.assert_close(own, error)
    for _ in range(400):
        loss = losses.weighted_loss(error, weighting(T))[1].mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(weighting(T).exp() * error, ONE, rtol=0.1, atol=0)


def test_the_students_loss_does_not_train_its_weight_nor_the_weighting_the_student() -> None:
    error, log_weight = T.clone().requires_grad_(), S.clone().requires_grad_()
    ours, own = losses.weighted_loss(error, log_weight)
    assert not torch.autograd.grad(ours.sum(), log_weight, retain_graph=True)[0].any()
    assert not torch.autograd.grad(own.sum(), error)[0].any()


def matching(student_flow: GaussianFlow, offset: float) -> tuple[Tensor, Tensor]:
    loss = compared_losses.distribution_matching_loss(
        FLOW.velocity, student_flow.velocity, student_flow.velocity, NOISE, ONE, ZERO, OTHER, U, None
    )
    return values(loss, offset)


def test_distribution_matching_is_zero_where_both_scores_agree() -> None:
    found, slope = matching(FLOW, 0.1)
    assert found[0].abs().max() < 1e-10
    assert slope == 0
    assert (found[1] > 0).all()  # the flow-matching loss of the score, which is never zero


@pytest.mark.parametrize("shift", [-0.2, 0.2])
def test_distribution_matching_moves_samples_to_the_teachers_distribution(shift: float) -> None:
    """A student whose samples lie `shift` too high: its mean velocity is lower by it, over a whole step."""
    _, slope = matching(GaussianFlow(FLOW.mean + shift), -shift)
    assert slope * -shift > 0


def test_a_discriminator_that_prefers_brighter_samples_makes_them_brighter() -> None:
    def bright(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return x.flatten(1)

    loss = compared_losses.adversarial_loss(bright, bright, NOISE, ONE, ZERO, state(ZERO), OTHER, ZERO, None, None)
    found, slope = values(loss)
    assert slope > 0  # less of the velocity is a brighter sample
    x = state(ZERO).flatten(1)
    torch.testing.assert_close(found[0], -x.mean(1))
    torch.testing.assert_close(found[1], ((1 + x).relu() + (1 - x).relu()).mean(1))


def test_a_discriminator_learns_to_tell_samples() -> None:
    torch.manual_seed(0)
    teacher = tiny_network()
    judge = Discriminator(teacher)
    assert {name.partition(".")[0] for name in judge.state_dict()} == {"heads"}
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    student = from_teacher(teacher)[0].requires_grad_(False)
    u = 0.1 * U
    losses_of_judge = []
    for _ in range(30):
        loss = compared_losses.adversarial_loss(judge, held(judge), NOISE, ONE, ZERO, state(ZERO), OTHER, u, None, None)
        _, own = loss_values(loss, student).mean(1)
        losses_of_judge.append(float(own.detach()))
        optimizer.zero_grad()
        own.backward()
        optimizer.step()
    assert losses_of_judge[-1] < 0.7 * losses_of_judge[0]


def test_no_gradient_of_the_students_loss_reaches_the_discriminator() -> None:
    teacher = tiny_network()
    judge = Discriminator(teacher)
    student = from_teacher(teacher)[0].requires_grad_(True)
    ours, own = loss_values(
        compared_losses.adversarial_loss(judge, held(judge), NOISE, ONE, ZERO, state(ZERO), OTHER, U, None, None),
        student,
    ).mean(1)
    heads, weight = list(judge.parameters()), student.network.get_parameter("conv_in.weight")
    assert all(not slope.any() for slope in torch.autograd.grad(ours, heads, retain_graph=True))
    assert not torch.autograd.grad(own, weight, retain_graph=True)[0].any()
    assert torch.autograd.grad(ours, weight)[0].any()


def test_the_held_average_lets_the_gradient_through_to_its_state() -> None:
    """CTM's loss with a student that is exact after s: the error at s reaches it through the jump to the end."""
    student = Offset(FLOW, 0.2)
    loss = compared_losses.trajectory_consistency_loss(state(T), T, state(S), S, S, ZERO, None)
    found = loss_values(loss, student)  # type: ignore[arg-type]
    assert torch.autograd.grad(found.sum(), student.offset)[0].abs() > 0
