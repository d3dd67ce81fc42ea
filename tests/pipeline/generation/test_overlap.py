"""A GPU integrates a shard while the one before is written. These workers do so on the CPU."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common.errors import BadInput, StoreFailed
from pipeline.dataset.commit import parse_marker
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.shards import Marker
from pipeline.generation import workers
from pipeline.generation.backlog import Backlog, Failure, Result
from pipeline.generation.generate import generate, make_plan
from pipeline.generation.shard import commit_shard, integrate_shard
from pipeline.generation.verify import recheck, verify
from pipeline.generation.workers import Job, Worker
from pipeline.storage.store import Folder
from pipeline.teachers.loading import load_teacher
from tests.support.plans import config
from tests.support.problems import GaussianFlow, save_tiny_teacher, shard_bytes

SOURCE = "tests.support.problems:gaussian"
WAIT = 60  # seconds, in which a broken overlap fails instead of hanging


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return generate(config(tmp_path_factory.mktemp("one") / "data"))


def overlapped(folder: Path, stop: threading.Event) -> Iterator[Result]:
    plan = make_plan(config(folder), GaussianFlow().teacher())
    worker = Worker(Job(plan, SOURCE, str(folder)), wants_gpu=False)
    return workers._run_overlapped(worker, Backlog(plan.shards(20), stop), lambda _: None)


def test_a_shard_is_written_while_the_next_is_integrated_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_by_one: Manifest
) -> None:
    integrate, commit = integrate_shard, commit_shard
    begun = [threading.Event() for _ in range(6)]
    inside, most_inside = [0], [0]

    def watched(plan: object, shard: object, *rest: object) -> object:
        begun[shard.number].set()  # type: ignore[attr-defined]
        inside[0] += 1
        most_inside[0] = max(inside)
        solved = integrate(plan, shard, *rest)  # type: ignore[arg-type]
        inside[0] -= 1
        return solved

    def after_the_next_began(solved: object, store: object) -> Marker:
        number = solved.shard.number  # type: ignore[attr-defined]
        assert number == 4 or begun[number + 1].wait(WAIT)
        return commit(solved, store)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "integrate_shard", watched)
    monkeypatch.setattr(workers, "commit_shard", after_the_next_began)
    results = list(overlapped(tmp_path, threading.Event()))
    assert sorted(result.shard.number for result in results if isinstance(result, Marker)) == list(range(5))
    assert most_inside == [1]
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.tar")} == shard_bytes(one_by_one)


def test_an_error_of_writing_belongs_to_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_shard

    def refused(solved: object, store: object) -> Marker:
        if solved.shard.number == 2:  # type: ignore[attr-defined]
            raise StoreFailed(f"{solved.shard}: cannot be written")  # type: ignore[attr-defined]
        return commit(solved, store)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "commit_shard", refused)
    results = list(overlapped(tmp_path, threading.Event()))
    errors = [result.error for result in results if isinstance(result, Failure)]
    assert errors == ["shard 000002 (records 8 to 11): cannot be written (tried 3 times)"]
    assert len(results) == 5


def test_a_stop_waits_for_the_shards_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, commit = threading.Event(), commit_shard

    def stopped(solved: object, store: object) -> Marker:
        stop.set()
        return commit(solved, store)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "commit_shard", stopped)
    made = [result.shard.name for result in overlapped(tmp_path, stop) if isinstance(result, Marker)]
    assert sorted(made) == ["shard-000000.tar", "shard-000001.tar"]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == sorted(made)


def test_torch_rounds_to_half_precision_as_numpy_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32)
    x = bits.view(np.float32)[np.isfinite(bits.view(np.float32))]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(torch.from_numpy(x).half().numpy(), x.astype(np.float16))


def test_the_precision_is_in_the_plan_and_in_the_markers_and_verified(tmp_path: Path) -> None:
    teacher = str(save_tiny_teacher(tmp_path / "tiny.safetensors"))
    solver = {"name": "rk4", "num_steps": 4}
    exact, rounded = (
        generate(config(tmp_path / name, teacher=teacher, precision=name, solver=solver, n=4))
        for name in ("fp32", "bf16")
    )
    assert exact.sha256 != rounded.sha256
    marker = parse_marker((tmp_path / "bf16" / "shard-000000.json").read_bytes())
    assert marker is not None
    assert marker.numerics.precision == "bf16"
    found = verify(Folder(tmp_path / "bf16"))
    recheck(Folder(tmp_path / "bf16"), found, load_teacher(teacher), torch.device("cpu"), 1)
    assert [again.rms for again in found.rechecks] == [0]
    with pytest.raises(BadInput, match=r"holds another plan \(precision: bf16 there, fp32 asked\)"):
        generate(config(tmp_path / "bf16", teacher=teacher, solver=solver, n=4))


def test_a_precision_that_this_machine_lacks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="precision tf32: wanted a GPU that has it, got a CPU"):
        generate(config(tmp_path / "data", precision="tf32"))
    assert not (tmp_path / "data").exists()
