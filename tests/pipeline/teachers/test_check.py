import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline import networks
from pipeline.flow.noise import draw_noise
from pipeline.flow.path import match_dims
from pipeline.flow.solver import Velocity
from pipeline.teachers.check import check_teacher, draw_classes
from pipeline.teachers.classes import TrainedClass
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher, of_network
from tests.support.problems import MEAN, SHAPE, STD, GaussianFlow, MixtureFlow, tiny_config

CPU = torch.device("cpu")


def teacher(velocity: object, **fields: object) -> Teacher:
    return Teacher("mine", "0" * 64, velocity, SHAPE, **fields)  # type: ignore[arg-type]


def test_a_flow_that_turns_noise_into_data_passes_with_the_statistics_of_its_data() -> None:
    found = check_teacher(teacher(GaussianFlow().velocity, data_range=(-1.5, 2.0)), 256, 0, CPU)
    assert not found.verdict.complaint
    assert abs(found.verdict.data.mean - MEAN) < 0.02
    assert abs(found.verdict.data.std - STD) < 0.02
    assert abs(found.verdict.noise.std - 1) < 0.05
    assert found.verdict.samples.shape == (256, *SHAPE)
    assert found.nfe > 10


def test_a_flow_that_runs_the_other_way_is_told_so() -> None:
    def reversed_velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return -GaussianFlow().velocity(x, 1 - t)

    found = check_teacher(teacher(reversed_velocity), 16, 0, CPU)
    assert found.verdict.complaint
    assert "does its time run from 1, noise, to 0, data" in found.verdict.complaint


UNLIKE = {
    "collapsed": (lambda x, t, label: x / t.clamp(min=1e-3)[:, None, None, None], "the model has collapsed"),
    "no velocity": (lambda x, t, label: 0 * x, "is the network trained"),
    "constant": (lambda x, t, label: 0 * x + 0.5, "is the network trained"),
    "time alone reversed": (lambda x, t, label: GaussianFlow().velocity(x, 1 - t), "does its time run from 1"),
    "sign alone reversed": (lambda x, t, label: -GaussianFlow().velocity(x, t), "does its time run from 1"),
    "another range": (GaussianFlow(127, 60).velocity, r"in \[-1, 1\]; there are \d%: most lie in .* data_range=\(-?\d"),
    "estimates unclipped": (GaussianFlow(0.9, 0.5).velocity, "clip_denoised|data_range"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_cannot_be_data_is_told_what_to_look_for(name: str) -> None:
    velocity, said = UNLIKE[name]
    found = check_teacher(teacher(velocity), 32, 0, CPU)
    assert found.verdict.complaint
    assert re.search(said, found.verdict.complaint)
    assert ("time run" in found.verdict.complaint) == ("reversed" in name)


def test_a_range_far_too_wide_is_told_from_a_collapse() -> None:
    found = check_teacher(teacher(GaussianFlow().velocity, data_range=(0.0, 255.0)), 32, 0, CPU)
    assert re.search(r"fill \[0, 255\]; most lie in .*data_range=\(", found.verdict.complaint)


FLOWS: dict[str, GaussianFlow | MixtureFlow] = {
    "narrow": GaussianFlow(),
    "as wide as noise": GaussianFlow(0, 1),
    "wide": GaussianFlow(0.5, 2),
    "lumps": MixtureFlow(),
}


@pytest.mark.parametrize("name", FLOWS)
def test_time_that_runs_the_other_way_is_seen_whatever_the_width_of_the_data(name: str) -> None:
    velocity = FLOWS[name].velocity
    wide = {"data_range": (-10.0, 10.0)}
    found = check_teacher(teacher(velocity, **wide), 16, 0, CPU)
    assert not found.verdict.complaint
    assert not found.motion.warning
    found = check_teacher(teacher(lambda x, t, label: velocity(x, 1 - t), **wide), 16, 0, CPU)
    assert re.search(r"at an end it points the other way: .*-v\(x, 1 - t\) here", found.verdict.complaint)


def test_a_trained_network_in_reversed_time_draws_something_and_is_seen_too() -> None:
    digits = load_teacher("digits")
    reversed_digits = replace(digits, velocity=lambda x, t, label: digits.velocity(x, 1 - t, label))
    assert "points the other way" in check_teacher(reversed_digits, 16, 0, CPU).verdict.complaint


def added(share: float, end: float) -> Velocity:
    """The Gaussian flow, and `share` of x divided by the time that is left to `end`."""

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return GaussianFlow().velocity(x, t) + share * x / ((t - end).abs() + 1e-4)[:, None, None, None]

    return velocity


@pytest.mark.parametrize("share", [-0.02, 0.02, -0.2])
def test_a_velocity_that_is_huge_at_the_start_is_told_to_start_later(share: float) -> None:
    found = check_teacher(teacher(added(share, 1), data_range=(-1.5, 2.0)), 16, 0, CPU)
    said = r"huge at t = 1 \(RMS \d.*\): give its Teacher a smaller t_start, such as 0.9\d"
    assert re.search(said, found.motion.warning)
    assert bool(found.verdict.complaint) == (share == -0.2)
    assert not found.verdict.complaint or re.search(said, found.verdict.complaint)
    assert found.motion.warning.endswith("; or its time runs from 0, noise, to 1, data, and it is -v(x, 1 - t) here")


def test_or_to_end_sooner() -> None:
    found = check_teacher(teacher(added(0.05, 0), data_range=(-1.5, 2.0)), 16, 0, CPU)
    assert re.search(r"huge at t = 0 .*: give its Teacher a larger t_end, such as 0.0\d", found.motion.warning)


def predicts_noise(flow: MixtureFlow, error: float, clips: bool) -> Velocity:
    """The velocity of a model that predicts the noise in `flow`, with the same `error` of each pixel at all times."""
    errors = error * torch.from_numpy(draw_noise(0, [0], SHAPE)[0])

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        before = match_dims(t, x)
        noise = x + (1 - before) * flow.velocity(x, t) + errors
        data = (x - before * noise) / (1 - before)
        return (x - (data.clamp(-1, 1) if clips else data)) / before

    return velocity


def test_a_model_that_predicts_noise_and_overshoots_is_told_to_clip_its_estimate_which_helps() -> None:
    said = r"a model that predicts noise overshoots near t = 1: clip its estimate of the data \(docs/how-to/teacher.md"
    for t_start in (0.85, 0.97):  # the velocity is not huge, and it is
        ends = {"t_start": t_start, "t_end": 0.001}
        plain, clipped = (
            check_teacher(teacher(predicts_noise(MixtureFlow(), 0.5, clips), **ends), 16, 0, CPU)
            for clips in (False, True)
        )
        assert re.search(said, plain.verdict.complaint)
        assert not clipped.verdict.complaint
        assert not clipped.motion.warning


@pytest.mark.parametrize("name", FLOWS)
def test_the_estimates_of_a_flow_do_not_overshoot(name: str) -> None:
    for num_samples in (1, 2, 16):
        assert check_teacher(teacher(FLOWS[name].velocity), num_samples, 0, CPU).motion.overshoot < 0.9


def test_a_velocity_that_is_clamped_at_the_very_start_is_no_fault() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return GaussianFlow().velocity(x, t) * (t < 1)[:, None, None, None]

    assert not check_teacher(teacher(velocity, data_range=(-1.5, 2.0)), 16, 0, CPU).verdict.complaint


def test_paths_that_no_flow_of_noise_and_data_takes_are_warned_of() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        turned = torch.stack([-x[:, :, 1::2], x[:, :, ::2]], dim=3).reshape(x.shape)
        return GaussianFlow(0).velocity(x, t) + 20 * torch.sin(6.2832 * t)[:, None, None, None] * turned

    found = check_teacher(teacher(velocity, data_range=(-2.0, 2.0)), 16, 0, CPU)
    assert not found.verdict.complaint
    assert re.match(r"the straightness is \d+.*at most 2.*; the velocity is largest at t = 0.\d", found.motion.warning)


def test_one_sample_for_each_class_is_a_collapse() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return (x - label[:, None, None, None] + 0.5) / t.clamp(min=1e-3)[:, None, None, None]

    found = check_teacher(teacher(velocity, num_classes=2), 8, 0, CPU)
    assert "the model has collapsed" in found.verdict.complaint


@pytest.mark.parametrize("convention", ["flow", "edm"])
def test_an_untrained_network_is_told_so(convention: str) -> None:
    torch.manual_seed(0)
    untrained = networks.build(tiny_config(resolution=8, convention=convention)).eval()
    found = check_teacher(of_network("new", "0" * 64, untrained, CPU), 16, 0, CPU)
    assert "is the network trained" in found.verdict.complaint


def test_straight_paths_have_straightness_zero() -> None:
    def constant(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return torch.full_like(x, 0.5)

    assert check_teacher(teacher(constant), 4, 0, CPU).motion.straightness < 1e-10
    assert check_teacher(teacher(GaussianFlow().velocity), 4, 0, CPU).motion.straightness > 0.01


def test_neighbours_of_an_image_are_alike_and_those_of_noise_are_not() -> None:
    found = check_teacher(load_teacher("digits"), 16, 0, CPU)
    assert not found.verdict.complaint
    assert found.verdict.noise.correlation is not None
    assert found.verdict.data.correlation is not None
    assert abs(found.verdict.noise.correlation) < 0.1 < 0.3 < found.verdict.data.correlation


def labelled(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """The Gaussian flow to data whose mean is a tenth of the class."""
    assert label is not None
    mean = match_dims(label, x) / 10
    return GaussianFlow(0, 0.2).velocity(x - (1 - match_dims(t, x)) * mean, t) - mean


@pytest.mark.parametrize(
    ("fields", "num_samples", "titles", "count"),
    [
        ({"num_classes": 3}, 16, ["0", "1", "2"], 5),
        ({"num_classes": 3, "classes": (TrainedClass(label=2, name="cat"),)}, 4, ["2 cat"], 4),
        ({"num_classes": 25}, 16, [str(label) for label in range(0, 25, 3)], 2),
        ({"num_classes": 2}, 1000, ["0", "1"], 10),
        ({}, 16, [], 0),
    ],
)
def test_each_class_has_a_row_of_samples_from_the_same_noise(
    fields: dict[str, object], num_samples: int, titles: list[str], count: int
) -> None:
    rows = draw_classes(teacher(labelled, **fields), num_samples, 0, CPU)
    assert list(rows) == titles
    for title, samples in rows.items():
        assert samples.shape == (count, *SHAPE)
        level = (int(title.split()[0]) - int(titles[0].split()[0])) / 10
        torch.testing.assert_close(samples, rows[titles[0]] + level, atol=1e-3, rtol=0)
