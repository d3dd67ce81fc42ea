"""A data set grows only by the flow that it was made with, even where a user's function alone has changed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed
from pipeline.flow.solver import Solver
from pipeline.generation import same_flow
from pipeline.generation.dry_run import dry_run
from pipeline.generation.generate import generate
from pipeline.generation.parts import Part, generate_part
from pipeline.generation.same_flow import require_same_flow
from pipeline.generation.workers import Job, Worker
from pipeline.storage.store import open_store
from pipeline.teachers.teacher import Teacher
from tests.support.command import assert_one_line, call
from tests.support.plans import config
from tests.support.problems import SHAPE, GaussianFlow, folder_of, shard_bytes

CPU = torch.device("cpu")
ME = f"{__name__}:load"
RK4 = Solver(name="rk4", num_steps=3)
SETS = [{}, {"velocities": False}, {"states": 0}, {"n": 7}, {"solver": Solver()}]


class Function:
    """The user's function, which a test may correct: `scale` times a Gaussian flow's velocity."""

    scale = 1.0
    num_calls = 0

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        self.num_calls += 1
        return self.scale * GaussianFlow().velocity(x, t)


FUNCTION = Function()


def load(device: torch.device) -> Teacher:
    return Teacher("mine", "0" * 64, FUNCTION, SHAPE)


def load_again(device: torch.device) -> Teacher:
    return load(device)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    FUNCTION.scale, FUNCTION.num_calls = 1.0, 0


@pytest.mark.parametrize("changes", SETS, ids=str)
def test_a_corrected_function_makes_no_set_grow(changes: dict[str, object], tmp_path: Path) -> None:
    values = {"teacher": ME, "n": 6, "solver": RK4, **changes}
    made = generate(config(tmp_path / "data", **values))
    before = contents(folder_of(made))
    more = config(tmp_path / "data", **values | {"n": 13})
    FUNCTION.scale = 1.1
    if made.plan.velocities:
        with pytest.raises(BadInput, match="its code has changed"):
            generate(config(tmp_path / "data", **values))
    with pytest.raises((BadInput, WorkFailed), match=r"wanted the velocity that its .*; teacher mine, .*another --out"):
        generate(more)
    FUNCTION.scale = 1.0
    if made.plan.velocities:  # else it takes a worker to see it
        assert contents(folder_of(made)) == before
    assert shard_bytes(generate(more)) == shard_bytes(generate(config(tmp_path / "whole", **values | {"n": 13})))


def test_by_another_name_in_parts_and_in_a_dry_run(tmp_path: Path) -> None:
    generate(config(tmp_path / "data", teacher=ME))
    FUNCTION.scale = 1.1
    for work in (generate, dry_run, lambda given: generate_part(given, Part(1, 2))):
        with pytest.raises(BadInput, match="its code has changed"):
            work(config(tmp_path / "data", teacher=f"{ME}_again", n=40))


def test_one_line_on_the_command_line(tmp_path: Path) -> None:
    generate(config(tmp_path / "data", teacher=ME, n=4))
    FUNCTION.scale = -1.0
    flags = ("--executor", "inline", "--states", 2, *(f"--set={k}_size={v}" for k, v in SIZES.items()))
    found = call(tmp_path, "generate", "--teacher", ME, "--n", 8, "--out", "data", *flags, code=2)
    assert_one_line(
        found, "data: wanted the velocity", "200.0% of its size apart", "restore it, or generate with another"
    )


SIZES = {"shard": 4, "batch": 2, "block": 2}


def test_a_set_is_compared_once_by_its_driver_and_once_by_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []

    def counted(*arguments: object) -> object:
        before = FUNCTION.num_calls
        found = original(*arguments)  # type: ignore[arg-type]
        rows.append((arguments[-1], FUNCTION.num_calls - before))  # type: ignore[arg-type]
        return found

    original = same_flow._velocity_gaps
    monkeypatch.setattr(same_flow, "_velocity_gaps", counted)
    generate(config(tmp_path / "data", teacher=ME, n=20))
    assert rows == [(2, 4)]  # four stored times; with what it made itself, before its second commit
    rows.clear()
    generate(config(tmp_path / "data", teacher=ME, n=40))
    assert rows == [(4, 4), (2, 4)]
    rows.clear()
    generate(config(tmp_path / "data", teacher=ME, n=40))
    assert rows == [(4, 4)]  # though the set is complete: the same command may bring a corrected function


def test_a_worker_that_joins_and_one_that_began_at_once(tmp_path: Path) -> None:
    made = generate(config(tmp_path / "data", teacher=ME, n=8))
    job = Job(made.plan, ME, str(tmp_path / "data"))
    third = made.plan.shards(12)[2]
    FUNCTION.scale = 1.01
    late = Worker(job, wants_gpu=False)
    failure = late.make(third)
    assert "1.0% of its size apart" in failure.error  # type: ignore[union-attr]
    assert failure.cause == "loading"  # type: ignore[union-attr]
    early = Worker(job, wants_gpu=False)
    early.teacher = load(CPU)
    early._is_unchecked = True
    assert "its code has changed" in early.make(third).error  # type: ignore[union-attr]
    assert third.name not in open_store(str(tmp_path / "data")).sizes()


def test_rounding_is_no_change_and_on_another_machine_there_may_be_more(tmp_path: Path) -> None:
    made = generate(config(tmp_path / "data", teacher=ME))
    whole = made.plan.batch_size
    for scale, num_rows, agrees in ((1.0003, whole, True), (1.01, whole, False), (1.01, 4, True), (1.05, 4, False)):
        FUNCTION.scale = scale
        if agrees:
            assert require_same_flow(made.store, made.plan, load(CPU), CPU, num_rows)
        else:
            with pytest.raises(BadInput, match="its code has changed"):
                require_same_flow(made.store, made.plan, load(CPU), CPU, num_rows)


def test_what_cannot_be_asked_is_left_to_the_work(tmp_path: Path) -> None:
    made = generate(config(tmp_path / "data", teacher=ME))

    def fixed(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise ValueError("wanted 256 rows")

    refusing = replace(load(CPU), velocity=fixed)
    assert require_same_flow(made.store, made.plan, refusing, CPU)
    other = made.plan.model_copy(update={"seed": 1})
    assert not require_same_flow(made.store, other, refusing, CPU)
    first = folder_of(made) / "shard-000000.tar"
    first.write_bytes(bytes(first.stat().st_size))
    FUNCTION.scale = 2.0
    assert require_same_flow(made.store, made.plan, load(CPU), CPU)
