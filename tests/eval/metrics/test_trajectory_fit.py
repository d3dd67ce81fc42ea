from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from eval import results
from eval.metrics.trajectory_fit import MAX_TIMES, PATH_STEPS, measure
from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.reader import BlockReader
from pipeline.dataset.shards import Trajectories
from pipeline.flow.path import match_dims
from pipeline.generation.generate import GenerateConfig, generate
from pipeline.teachers.teacher import Teacher
from tests.support.problems import SHAPE, STD, ExactStudent, GaussianFlow, folder_of, tiny_network
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.distillation.student import Student

FLOW = GaussianFlow()
N = 70  # more than a batch, in blocks of 8
CPU = torch.device("cpu")
OFF = 0.05


def unit_range(device: torch.device) -> Teacher:
    """The Gaussian flow of data in [0, 1]."""
    return replace(FLOW.teacher(), data_range=(0.0, 1.0))


def bent(device: torch.device) -> Teacher:
    """x(t) = x(1) + t^2 - 1 in every component: velocity 2 t, mean velocity 1, so S = E (1 - 2 t)^2 = 1/3."""
    return Teacher("bent", "2" * 64, lambda x, t, label: 2 * match_dims(t, x).expand_as(x), SHAPE)


class OffStudent(ExactStudent):
    """Every step ends OFF beside the exact one, and so does the velocity."""

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return super().mean_velocity(x_t, t, s, label) + OFF

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return super().forward(x_t, t, s, label) + OFF


class BentStudent(ExactStudent):
    """The exact student of `bent`: G = x + s^2 - t^2."""

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return match_dims(s + t, x_t).expand_as(x_t)

    def forward(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return x_t + match_dims(s - t, x_t) * self.mean_velocity(x_t, t, s, label)


class StraightStudent(BentStudent):
    """Goes straight and at even speed, from `bent`'s starts to its ends."""

    def mean_velocity(self, x_t: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return torch.ones_like(x_t)


def student(kind: type[ExactStudent] = ExactStudent, **changes: Any) -> Student:
    made = kind(FLOW)
    made.network = tiny_network(second_time=True, **changes)  # its configuration says what samples are
    return cast(Student, made)


def dataset(folder: Path, **changes: Any) -> Manifest:
    values = {
        "teacher": "tests.support.problems:gaussian",
        "n": N,
        "out": folder / "data",
        "states": 5,
        "executor": "inline",
        "dtype": "float32",
        "shard_size": 32,
        "batch_size": 16,
        "block_size": 8,
    }
    return generate(GenerateConfig.model_validate(values | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return dataset(tmp_path_factory.mktemp("trajectories"))


def info(manifest: Manifest, **changes: Any) -> CheckpointInfo:
    plan = manifest.plan
    origin = {name: getattr(plan, name) for name in ("teacher_sha256", "t_start", "t_end", "data_range")}
    values = {"step": 1, "trains": "student", "recipe": "anchored", "teacher": "gaussian", "config": {}}
    return CheckpointInfo.model_validate(values | origin | {"data_sha256": manifest.sha256} | changes)


def fit(manifest: Manifest, of: Student, num_records: int = N, **changes: Any) -> results.TrajectoryFit:
    return measure(of, info(manifest, **changes), str(folder_of(manifest)), num_records, CPU)


def cells(grid: results.Grid) -> list[float]:
    return [value for row in grid.values for value in row if value is not None]


def test_the_exact_student_has_no_errors(data: Manifest) -> None:
    found = fit(data, student())
    assert found.endpoint_rmse < 2e-4  # of the teacher's solver
    assert max(cells(found.state_rmse)) < 2e-4
    assert max(cells(found.consistency_gap)) < 1e-6
    assert found.velocity_rmse is not None
    assert max(found.velocity_rmse.y) < 1e-6


def test_a_student_beside_the_truth_is_found_to_be_just_as_far_beside_it(data: Manifest) -> None:
    found = fit(data, student(OffStudent))
    assert found.endpoint_rmse == pytest.approx(OFF, rel=1e-2)
    assert cells(found.state_rmse) == pytest.approx([OFF] * len(cells(found.state_rmse)), rel=1e-2)
    assert found.velocity_rmse is not None
    assert found.velocity_rmse.y == pytest.approx([OFF] * len(found.velocity_rmse.y), rel=1e-3)


def test_its_two_ways_to_the_end_are_apart_by_what_the_flow_makes_of_the_constant(data: Manifest) -> None:
    """G(x_s + c, s, 0) is c std / sqrt(S(s)) from G(x_s, s, 0); the constant of the last step is in both."""
    found = fit(data, student(OffStudent))
    grid = found.consistency_gap
    for row in grid.values[:-1]:
        for s, gap in zip(grid.times[:-1], row[:-1], strict=True):
            if gap is not None:
                # Times differ between batches; the grid has their means.
                assert gap == pytest.approx(OFF * STD / float(FLOW.variance(torch.tensor(s)).sqrt()), rel=0.15)
        assert row[-1] == 0  # at the end both ways are one


def test_the_grids_hold_what_lies_below_their_times(data: Manifest) -> None:
    found = fit(data, student())
    times = found.state_rmse.times
    assert (len(times), times[0], times[-1]) == (7, 1.0, 0.0)
    assert list(times) == sorted(times, reverse=True)
    for i, row in enumerate(found.state_rmse.values):
        assert [value is None for value in row] == [j <= i for j in range(7)]
    assert found.velocity_rmse is not None
    assert found.velocity_rmse.x == times == found.consistency_gap.times


def test_of_many_stored_states_a_grid_of_ten_is_shown(tmp_path: Path) -> None:
    found = fit(dataset(tmp_path, states=14), student(), num_records=16)
    assert len(found.state_rmse.times) == MAX_TIMES == 10
    assert (found.state_rmse.times[0], found.state_rmse.times[-1]) == (1.0, 0.0)


def test_errors_are_in_units_of_images_from_minus_one_to_one(tmp_path: Path) -> None:
    found = fit(dataset(tmp_path, teacher="tests.eval.metrics.test_trajectory_fit:unit_range"), student(OffStudent))
    assert found.endpoint_rmse == pytest.approx(2 * OFF, rel=1e-2)
    assert found.velocity_rmse is not None
    assert found.velocity_rmse.y[0] == pytest.approx(2 * OFF, rel=1e-2)


def test_straightness_in_such_units_is_four_times_that_of_half_the_range(data: Manifest, tmp_path: Path) -> None:
    one = fit(data, student())
    other = fit(dataset(tmp_path, teacher="tests.eval.metrics.test_trajectory_fit:unit_range"), student())
    assert one.teacher_straightness is not None
    assert other.teacher_straightness == pytest.approx(4 * one.teacher_straightness)
    assert other.student_straightness == pytest.approx(4 * one.student_straightness)


def test_the_straightness_of_known_paths_is_known(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, teacher="tests.eval.metrics.test_trajectory_fit:bent", states=14)
    bent = fit(manifest, student(BentStudent))
    assert bent.student_straightness == pytest.approx(1 / 3 + 8 / 12 / PATH_STEPS**2, abs=1e-5)  # by trapezoids
    assert bent.teacher_straightness == pytest.approx(1 / 3, abs=1e-2)
    straight = fit(manifest, student(StraightStudent))
    assert straight.student_straightness == pytest.approx(0, abs=1e-10)
    assert straight.endpoint_rmse == pytest.approx(0, abs=1e-4)
    assert max(cells(straight.state_rmse)) > 0.1


def test_without_velocities_the_rest_is_measured(tmp_path: Path) -> None:
    found = fit(dataset(tmp_path, velocities=False), student(OffStudent))
    assert (found.velocity_rmse, found.teacher_straightness) == (None, None)
    assert cells(found.state_rmse) == pytest.approx([OFF] * 21, rel=1e-2)


def test_ends_alone_are_enough(tmp_path: Path) -> None:
    found = fit(dataset(tmp_path, states=0), student(OffStudent))
    assert found.state_rmse.values == ((None, found.endpoint_rmse), (None, None))


def test_a_part_of_the_records_is_the_same_every_time(data: Manifest) -> None:
    part, whole = fit(data, student(OffStudent), 20), fit(data, student(OffStudent), 10 * N)
    assert (part.num_records, whole.num_records) == (20, N)
    assert part == fit(data, student(OffStudent), 20)
    assert part.state_rmse != whole.state_rmse


def test_every_record_counts_once(data: Manifest) -> None:
    """A student that goes from the noise to noise - 1 is off by what the shards say."""
    reader = BlockReader(data)
    rows = Trajectories.concatenate([reader.read(block) for block in range(data.blocks.num_rows)])
    errors = rows.noise.astype(np.float64) - 1 - rows.sample
    found = fit(data, student(StraightStudent))
    assert found.num_records == len(errors) == N
    assert found.endpoint_rmse == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)


def test_whether_the_training_saw_the_data_is_told(data: Manifest) -> None:
    assert fit(data, student()).seen_in_training
    held_out = fit(data, student(), data_sha256="f" * 64)
    assert not held_out.seen_in_training
    assert held_out.data_sha256 == data.sha256


@pytest.mark.parametrize(
    ("changes", "network", "field"),
    [
        ({"teacher_sha256": "f" * 64}, {}, "teacher_sha256: 0{64} there, f{64} asked"),
        ({"guidance_scale": 2.0}, {}, "guidance_scale: 1.0 there, 2.0 asked"),
        ({"t_start": 0.9}, {}, "t_start: 1.0 there, 0.9 asked"),
        ({}, {"resolution": 8}, r"shape: \(1, 4, 4\) there, \(1, 8, 8\) asked"),
        ({}, {"num_classes": 3}, "num_classes: 0 there, 3 asked"),
    ],
)
def test_trajectories_of_another_teacher_are_refused(
    data: Manifest, changes: dict[str, Any], network: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadInput, match=rf"wanted trajectories of the student's own teacher \({field}\)") as refusal:
        fit(data, student(**network), **changes)
    assert "\n" not in str(refusal.value)


def test_no_data_set_is_refused(data: Manifest, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wanted a data set"):
        measure(student(), info(data), str(tmp_path), N, CPU)
