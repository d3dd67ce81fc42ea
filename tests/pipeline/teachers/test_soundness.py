"""What is asked of a user's own velocity, and what it may do with the tensors it is given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.common.errors import WorkFailed
from pipeline.flow.solver import Velocity
from pipeline.generation.generate import generate
from pipeline.generation.verify import recheck, verify
from pipeline.teachers.check import check_teacher
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.probe import SOLVERS, probe
from pipeline.teachers.soundness import require_sound
from pipeline.teachers.teacher import OwnedVelocity, Teacher, guided
from tests.support.command import assert_one_line, call
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow, save_tiny_teacher, shard_bytes

CPU = torch.device("cpu")
FLOW = GaussianFlow()


def reusing(x: Tensor, t: Tensor, label: Tensor | None, buffers: dict[object, Tensor] = {}) -> Tensor:  # noqa: B006
    """Answers into one buffer for each shape, as bound outputs of ONNX Runtime do."""
    return buffers.setdefault(x.shape, torch.empty_like(x)).copy_(FLOW.velocity(x, t))


def spoiling(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """Leaves its answer, and zeros, in what it was given."""
    x.copy_(FLOW.velocity(x, t))
    t.zero_()
    return x


def freezing(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    with torch.inference_mode():
        return FLOW.velocity(x, t)


def teacher_of(velocity: Velocity) -> Teacher:
    return Teacher("gaussian", "0" * 64, velocity, SHAPE)


def reusing_teacher(device: torch.device) -> Teacher:
    return teacher_of(reusing)


def spoiling_teacher(device: torch.device) -> Teacher:
    return teacher_of(spoiling)


def freezing_teacher(device: torch.device) -> Teacher:
    return teacher_of(freezing)


def with_dropout(device: torch.device) -> Teacher:
    dropout = nn.Dropout(0.1)
    return teacher_of(lambda x, t, label: dropout(FLOW.velocity(x, t)))


def with_batch_norm(device: torch.device) -> Teacher:
    norm = nn.BatchNorm2d(1)
    return teacher_of(lambda x, t, label: norm(FLOW.velocity(x, t)))


@pytest.mark.parametrize("factory", ["reusing_teacher", "spoiling_teacher", "freezing_teacher"])
def test_whatever_a_velocity_does_with_its_tensors_the_trajectories_are_the_same(factory: str, tmp_path: Path) -> None:
    made = generate(config(tmp_path / "data", teacher=f"{__name__}:{factory}"))
    plain = generate(config(tmp_path / "plain"))
    assert shard_bytes(made) == shard_bytes(plain)
    result = verify(made.store)
    recheck(made.store, result, teacher_of(FLOW.velocity), CPU, 3)
    assert result.faults == []


@pytest.mark.parametrize("velocity", [reusing, spoiling])
def test_check_probe_and_guidance_see_the_same_velocity(velocity: Velocity) -> None:
    odd, plain = (check_teacher(teacher_of(v), 4, 0, CPU) for v in (velocity, FLOW.velocity))
    assert (odd.motion, odd.verdict.data) == (plain.motion, plain.verdict.data)
    points = [probe(teacher_of(v), 4, 0, CPU, solvers=SOLVERS[-2:]).points for v in (velocity, FLOW.velocity)]
    assert [point.worst for point in points[0]] == [point.worst for point in points[1]]


def test_guidance_of_a_reused_buffer() -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return reusing(x, t, None).mul_(label[:, None, None, None])

    teacher = Teacher("labels", "0" * 64, velocity, SHAPE, num_classes=3, takes_no_label=True)
    x, t, label = torch.randn(2, *SHAPE), torch.full((2,), 0.5), torch.tensor([1, 2])
    strong = guided(teacher, 3).velocity
    first, second = strong(x, t, label), strong(2 * x, t, label)
    expected = FLOW.velocity(x, t) * (-1 + 3 * (label + 1))[:, None, None, None]
    torch.testing.assert_close(first, expected)
    assert not torch.equal(first, second)


def test_our_own_networks_are_not_copied_for(tmp_path: Path) -> None:
    own = load_teacher(str(save_tiny_teacher(tmp_path / "one.safetensors")))
    assert not isinstance(own.velocity, OwnedVelocity)
    assert isinstance(teacher_of(FLOW.velocity).velocity, OwnedVelocity)


def test_a_velocity_of_another_shape_is_not_stretched() -> None:
    with pytest.raises(WorkFailed, match=r"teacher gaussian: wanted a velocity \[4, 1, 4, 4\], got \[4\] \(called"):
        check_teacher(teacher_of(lambda x, t, label: t), 4, 0, CPU)


@pytest.mark.parametrize(
    ("factory", "said"),
    [(with_dropout, "answers the same question differently"), (with_batch_norm, "answers for a sample by its batch")],
)
def test_a_network_left_in_training_mode_is_named(factory: Callable[[torch.device], Teacher], said: str) -> None:
    with pytest.raises(WorkFailed, match=rf"teacher gaussian {said} .*: call eval\(\)"):
        require_sound(factory(CPU), CPU)


def test_before_any_shard_is_made(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"call eval\(\)"):
        generate(config(tmp_path / "data", teacher=f"{__name__}:with_dropout"))
    assert not list(tmp_path.glob("data/*"))
    found = call(tmp_path, "teachers", "check", f"{__name__}:with_dropout", code=1)
    assert_one_line(found, "two evaluations", "call eval()")


def with_dropout_in_fixed_batches(device: torch.device) -> Teacher:
    random = with_dropout(device).velocity

    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if len(x) != 2:
            raise ValueError("wanted 2 rows")
        return random(x, t, label)

    return teacher_of(velocity)


def test_a_random_teacher_of_a_fixed_batch_is_named_before_any_shard_too(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"answers the same question differently .*: call eval\(\)"):
        generate(config(tmp_path / "data", teacher=f"{__name__}:with_dropout_in_fixed_batches"))
    assert not list(tmp_path.glob("data/shard-*"))


def test_verify_advises_no_repair_where_the_teacher_is_random(tmp_path: Path) -> None:
    generate(config(tmp_path / "data"))
    found = call(tmp_path, "verify", "data", "--teacher", f"{__name__}:with_dropout", code=1)
    assert "call eval()" in found.stdout
    assert "repair" not in found.stdout + found.stderr


def test_a_teacher_of_a_fixed_batch_is_left_to_the_work(tmp_path: Path) -> None:
    def fixed(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if len(x) != 256:
            raise ValueError("wanted 256 rows")
        return FLOW.velocity(x, t)

    require_sound(teacher_of(fixed), CPU)
    require_sound(teacher_of(lambda x, t, label: 0 * x), CPU)
