"""The noise taken for the velocity ends in samples of their own range; the squares of the states tell it."""

import pytest
import torch
from torch import Tensor

from pipeline.flow.path import match_dims
from pipeline.flow.solver import Velocity
from pipeline.teachers.check import TeacherCheck, check_teacher
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher, guided
from tests.support.problems import GaussianFlow, MixtureFlow

FLOWS: dict[str, GaussianFlow | MixtureFlow] = {
    "narrow": GaussianFlow(),
    "as wide as noise": GaussianFlow(0, 1),
    "wide": GaussianFlow(0.5, 2),
    "off the middle": GaussianFlow(0.8, 0.1),
    "lumps": MixtureFlow(),
    "two lumps": MixtureFlow((-0.8, 0.8), 0.05),
}


def check(velocity: Velocity, shape: tuple[int, ...] = (1, 8, 8), num_samples: int = 16) -> TeacherCheck:
    teacher = Teacher("mine", "0" * 64, velocity, shape, data_range=(-10.0, 10.0))
    return check_teacher(teacher, num_samples, 0, torch.device("cpu"))


def noise_of(velocity: Velocity) -> Velocity:
    """What a model predicts that knows the noise in the flow of `velocity`."""
    return lambda x, t, label: x + (1 - match_dims(t, x)) * velocity(x, t, label)


@pytest.mark.parametrize("name", FLOWS)
def test_the_noise_as_a_velocity_is_noted_and_a_flow_is_not(name: str) -> None:
    found = check(noise_of(FLOWS[name].velocity))
    assert "The noise that a model predicts is no velocity (docs/how-to/teacher.md" in found.warning
    for shape, num_samples in (((1, 8, 8), 16), ((1, 8, 8), 2), ((1, 8, 8), 1), ((2,), 16), ((2,), 3)):
        assert not check(FLOWS[name].velocity, shape, num_samples).warning


def test_a_network_with_its_errors_is_not_noted_and_its_noise_is() -> None:
    digits = load_teacher("digits").velocity

    def as_function(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return digits(x, t, label)

    assert not check(as_function).warning
    assert check(noise_of(as_function)).warning


def test_a_flow_that_starts_late_and_ends_early_is_not_noted() -> None:
    for t_start, t_end in ((0.9, 0.02), (0.97, 0.1), (1.0, 0.4), (1.0, 0.9)):
        teacher = Teacher("mine", "0" * 64, FLOWS["lumps"].velocity, (1, 8, 8), t_start=t_start, t_end=t_end)
        assert not check_teacher(teacher, 16, 0, torch.device("cpu")).warning


def test_guidance_which_changes_the_distribution_is_not_noted() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        of_class, of_all = GaussianFlow(0.5, 0.1).velocity(x, t), MixtureFlow((-0.5, 0.5), 0.1).velocity(x, t)
        return torch.where(match_dims(label, x) < 0, of_all, of_class)

    teacher = Teacher("mine", "0" * 64, velocity, (1, 8, 8), num_classes=1, takes_no_label=True)
    assert not check_teacher(guided(teacher, 3), 16, 0, torch.device("cpu")).warning
