"""Workers on machines that lack something, and a pool whose machines come and go: a fake stands for Ray."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, repeat
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayError

from pipeline.common.errors import WorkFailed
from pipeline.dataset.plan import Shard
from pipeline.generation import workers
from pipeline.generation.backlog import Backlog, Failure, Health
from pipeline.generation.workers import Job
from tests.support.fake_work import marker
from tests.support.plans import make_plan

PLAN = make_plan(shard_size=1024, batch_size=256, block_size=64)
JOB = Job(PLAN, "tests.support.problems:gaussian", "memory://nowhere")


@pytest.mark.parametrize(
    ("job", "wants_gpu", "said"),
    [
        (replace(JOB, teacher="gone.safetensors"), False, "no teacher 'gone.safetensors'"),
        (
            replace(JOB, version="0.0.1"),
            False,
            f"has traflow-pipeline {JOB.version}, the driver 0.0.1: install the same",
        ),
        (JOB, True, "sees none there"),
    ],
    ids=["the teacher's file", "the program's version", "a GPU"],
)
def test_what_a_machine_lacks_is_the_fault_of_its_worker_and_another_makes_the_shard(
    job: Job, wants_gpu: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backlog = Backlog(PLAN.shards(1024), threading.Event())
    shard = backlog.take("bare")
    assert isinstance(shard, Shard)
    failure = workers.Worker(job, wants_gpu).make(shard)
    assert isinstance(failure, Failure)
    assert said in failure.error
    assert not Health().is_fit_after(failure, is_first=True)
    assert list(backlog.final_results(failure, "bare")) == []
    assert backlog.take("other") == shard


@dataclass(eq=False)
class Actor:
    """An actor that comes up or not, and dies of its second shard."""

    comes_up: bool
    num_asked: int = 0

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: partial(getattr(self, f"do_{method}"), *arguments))

    def do_ready(self) -> None:
        if not self.comes_up:
            raise RayError("its machine was lost")

    def do_integrated(self) -> dict[int, int]:
        return {}

    def do_make(self, shard: Shard) -> Any:
        self.num_asked += 1
        if self.num_asked > 1:
            raise RayError("its machine was lost")
        return marker(PLAN, shard)


def make_on(starts: Iterator[bool], num_shards: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The results of one worker after another, of which `starts` says whether each comes up."""
    actors = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: Actor(next(starts))))
    monkeypatch.setattr("ray.remote", lambda **_: lambda _: actors)
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, []))
    monkeypatch.setattr("ray.get", lambda reference: reference())
    monkeypatch.setattr("ray.kill", lambda actor: None)
    backlog = Backlog(PLAN.shards(1024 * num_shards), threading.Event())
    return list(workers._ActorPool(JOB, backlog, lambda _: None, 1, 0).results())


def test_false_starts_end_no_run_that_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_on(cycle([False, False, True]), 4, monkeypatch)
    assert sorted(result.shard.number for result in results) == list(range(4))
    assert not any(isinstance(result, Failure) for result in results)


def test_false_starts_alone_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkFailed, match=r"workers die before they start \(its machine was lost\)"):
        make_on(repeat(False), 20, monkeypatch)
