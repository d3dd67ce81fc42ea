import re

import pytest
import torch
from torch import Tensor

from pipeline import networks
from pipeline.teachers.check import check_teacher
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher, of_network
from tests.support.problems import MEAN, SHAPE, STD, GaussianFlow, tiny_config

CPU = torch.device("cpu")


def teacher(velocity: object, **fields: object) -> Teacher:
    return Teacher("mine", "0" * 64, velocity, SHAPE, **fields)  # type: ignore[arg-type]


def test_a_flow_that_turns_noise_into_data_passes_with_the_statistics_of_its_data() -> None:
    found = check_teacher(teacher(GaussianFlow().velocity, data_range=(-1.5, 2.0)), 256, 0, CPU)
    assert found.is_data_like
    assert abs(found.data.mean - MEAN) < 0.02
    assert abs(found.data.std - STD) < 0.02
    assert abs(found.noise.std - 1) < 0.05
    assert found.samples.shape == (256, *SHAPE)
    assert found.nfe > 10


def test_a_flow_that_runs_the_other_way_is_told_so() -> None:
    def reversed_velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return -GaussianFlow().velocity(x, 1 - t)

    found = check_teacher(teacher(reversed_velocity), 16, 0, CPU)
    assert not found.is_data_like
    assert "does its time run from 1, noise, to 0, data" in found.complaint


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
    assert not found.is_data_like
    assert re.search(said, found.complaint)
    assert ("time run" in found.complaint) == ("reversed" in name)


def test_one_sample_for_each_class_is_a_collapse() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return (x - label[:, None, None, None] + 0.5) / t.clamp(min=1e-3)[:, None, None, None]

    found = check_teacher(teacher(velocity, num_classes=2), 8, 0, CPU)
    assert "the model has collapsed" in found.complaint


@pytest.mark.parametrize("convention", ["flow", "edm"])
def test_an_untrained_network_is_told_so(convention: str) -> None:
    torch.manual_seed(0)
    untrained = networks.build(tiny_config(resolution=8, convention=convention)).eval()
    found = check_teacher(of_network("new", "0" * 64, untrained, CPU), 16, 0, CPU)
    assert "is the network trained" in found.complaint


def test_straight_paths_have_straightness_zero() -> None:
    def constant(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return torch.full_like(x, 0.5)

    assert check_teacher(teacher(constant), 4, 0, CPU).straightness < 1e-10
    assert check_teacher(teacher(GaussianFlow().velocity), 4, 0, CPU).straightness > 0.01


def test_neighbours_of_an_image_are_alike_and_those_of_noise_are_not() -> None:
    found = check_teacher(load_teacher("digits"), 16, 0, CPU)
    assert found.is_data_like
    assert found.noise.correlation is not None
    assert found.data.correlation is not None
    assert abs(found.noise.correlation) < 0.1 < 0.3 < found.data.correlation
