from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import WorkFailed
from pipeline.dataset.plan import Plan, Shard
from pipeline.dataset.shards import Trajectories, read_block
from pipeline.flow.solver import Solver
from pipeline.generation.shard import draw_batch, generate_shard
from pipeline.storage.store import Folder
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import NetworkVelocity, Teacher
from tests.support.plans import make_plan
from tests.support.problems import SHAPE, GaussianFlow, tiny_network

CPU = torch.device("cpu")
FLOW = GaussianFlow()


def make(plan: Plan, shard: Shard, teacher: Teacher, folder: Path) -> Trajectories:
    payload, marker = generate_shard(plan, shard, teacher, Folder(folder), CPU)
    blocks = [read_block(payload[b.offset : b.offset + b.num_bytes]) for b in marker.blocks]
    return Trajectories.concatenate(blocks)


def test_the_states_lie_on_the_known_trajectories(tmp_path: Path) -> None:
    plan = make_plan(dtype="float32")
    rows = make(plan, plan.shards(8)[0], FLOW.teacher(), tmp_path)
    noise, ones = torch.from_numpy(rows.noise), torch.ones(8)
    states = torch.from_numpy(np.concatenate([rows.states, rows.sample[:, None]], axis=1))
    for k in range(plan.num_times - 1):
        t = torch.from_numpy(rows.times[:, k + 1].copy())
        torch.testing.assert_close(states[:, k], FLOW.state(noise, ones, t), atol=1e-3, rtol=0)


def test_velocities_are_the_teachers_at_the_states_as_stored(tmp_path: Path) -> None:
    plan = make_plan()
    rows = make(plan, plan.shards(8)[0], FLOW.teacher(), tmp_path)
    assert rows.velocities is not None
    states = np.concatenate([rows.noise[:, None], rows.states, rows.sample[:, None]], axis=1)
    for k in range(plan.num_times):
        x, t = torch.from_numpy(states[:, k].astype(np.float32)), torch.from_numpy(rows.times[:, k].copy())
        expected = FLOW.velocity(x, t).numpy().astype(np.float16)
        np.testing.assert_array_equal(rows.velocities[:, k], expected)


def test_a_record_does_not_depend_on_where_the_set_ends(tmp_path: Path) -> None:
    plan = make_plan()
    whole = make(plan, plan.shards(8)[0], FLOW.teacher(), tmp_path)
    short = make(plan, plan.shards(5)[0], FLOW.teacher(), tmp_path)
    assert len(short) == 5
    np.testing.assert_array_equal(short.sample, whole.sample[:5])


@pytest.mark.parametrize("solver", [Solver(), Solver(name="rk4", num_steps=6)])
def test_the_bytes_are_the_same_with_one_thread_or_two(tmp_path: Path, solver: Solver) -> None:
    network = tiny_network()
    teacher = Teacher("tiny", "0" * 64, NetworkVelocity(network), SHAPE)
    plan = make_plan(solver=solver)
    threads, payloads = torch.get_num_threads(), set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            payloads.add(generate_shard(plan, plan.shards(8)[0], teacher, Folder(tmp_path), CPU)[0])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert len(payloads) == 1


def test_labels_reach_a_conditional_teacher(tmp_path: Path) -> None:
    def velocity(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return -label[:, None, None, None].expand_as(x).float()

    plan = make_plan(num_classes=10, dtype="float32")
    rows = make(plan, plan.shards(8)[0], Teacher("labels", "0" * 64, velocity, SHAPE, num_classes=10), tmp_path)
    moved = rows.sample - rows.noise
    np.testing.assert_allclose(moved, np.broadcast_to(rows.label[:, None, None, None], moved.shape), atol=1e-4)
    assert len(set(rows.label.tolist())) > 1


def test_a_flow_that_starts_late_starts_from_scaled_noise(tmp_path: Path) -> None:
    plan = make_plan(t_start=0.5, dtype="float32")
    still = Teacher("still", "0" * 64, lambda x, t, label: torch.zeros_like(x), SHAPE, t_start=0.5)
    rows = make(plan, plan.shards(8)[0], still, tmp_path)
    np.testing.assert_allclose(rows.sample, 0.5 * rows.noise, atol=1e-5)


def test_a_teacher_that_is_not_finite_leaves_its_batch(tmp_path: Path) -> None:
    def broken(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return x * torch.nan

    plan = make_plan(num_states=0, solver=Solver(name="euler", num_steps=2))
    with pytest.raises(WorkFailed, match=r"shard 000001 \(records 8 to 15\): teacher broken.*not finite") as caught:
        generate_shard(plan, plan.shards(16)[1], Teacher("broken", "0" * 64, broken, SHAPE), Folder(tmp_path), CPU)
    saved = tmp_path / "failed-batch-000000008.safetensors"
    assert str(saved) in str(caught.value)
    torch.testing.assert_close(load_file(saved)["noise"], draw_batch(plan, 8).noise)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda t: 1 / t, "the velocity at t = 0 is not finite as float16: give its Teacher a larger t_end; the batch"),
        (lambda t: torch.where(t == 1, 1e6, 0), "the velocity at t = 1 is not finite as float16: .* smaller t_start;"),
        (lambda t: 0 * t + 1e5, "the state at t = 0 is not finite as float16; the batch"),
    ],
)
def test_what_is_not_finite_is_named_with_its_time(
    answer: Callable[[Tensor], Tensor], said: str, tmp_path: Path
) -> None:
    def broken(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return torch.zeros_like(x) + answer(t)[:, None, None, None]

    plan = make_plan(num_states=0, solver=Solver(name="euler", num_steps=20))
    with pytest.raises(WorkFailed, match=said):
        generate_shard(plan, plan.shards(16)[0], Teacher("broken", "0" * 64, broken, SHAPE), Folder(tmp_path), CPU)


def test_the_embedded_teacher_turns_noise_into_digits(tmp_path: Path) -> None:
    teacher = load_teacher("digits")
    plan = make_plan(
        shape=teacher.shape, batch_size=32, shard_size=32, block_size=32, solver=Solver(rtol=1e-3, atol=1e-3)
    )
    rows = make(plan, plan.shards(32)[0], teacher, tmp_path)
    samples = rows.sample.astype(np.float32)
    assert -1.3 < samples.min() < -0.95  # paper
    assert 0.9 < samples.max() < 1.5  # ink
    assert (samples < -0.9).mean() > 0.3
