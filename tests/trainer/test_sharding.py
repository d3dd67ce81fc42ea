"""A student in shards (FSDP2) on two processes: what it learns, saves and resumes is what one process does."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.generation.generate import generate
from tests.support.prompts import prompted
from trainer.config import TrainConfig
from trainer.train import train

FILES = ("network", "ema", "ema-wide", "optimizer")
EMA = [{"decay": 0.9}, {"name": "wide", "sigma_rel": 0.2}]


@pytest.fixture(scope="module")
def data(pipelines: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    generate(prompted(folder, pipelines("sd3"), n=16))
    return folder / "data"


@pytest.fixture(scope="module")
def ranks() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.ranks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def train_on(ranks: subprocess.Popen[str]) -> Callable[..., list[int]]:
    def ends(config: TrainConfig, kill_after: int | None = None) -> list[int]:
        assert ranks.stdin
        assert ranks.stdout
        order = {"ranks": 2, "config": config.model_dump(mode="json"), "kill_after": kill_after}
        ranks.stdin.write(json.dumps(order) + "\n")
        ranks.stdin.flush()
        found: list[int] = json.loads(ranks.stdout.readline())
        return found

    return ends


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    trainer: dict[str, Any] = {"num_steps": 4, "batch_size": 4, "checkpoint_every": 2, "schedule": "constant"}
    trainer |= {"warmup_steps": 0, "parallel": "fsdp", "ema": EMA, "keep_checkpoints": 9}
    trainer |= changes.pop("trainer", {})
    values = {"data": str(data), "out": out, "device": "cpu", "recipe": "trajectory", "trainer": trainer}
    return TrainConfig.model_validate(values | changes)


def tensors(run: Path, step: int = 4) -> dict[str, Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {f"{n}.{key}": x for n in FILES for key, x in load_file(folder / f"{n}.safetensors").items()}


def assert_close(found: Path, wanted: Path) -> None:
    ours, theirs = tensors(found), tensors(wanted)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)  # sums of floats in another order


LORA = {"lora": {"rank": 2}, "trainer": {"gradient_checkpointing": True, "accumulate": 2}}


@pytest.mark.parametrize("changes", [LORA, {}], ids=["lora", "full"])
def test_two_processes_train_shards_as_one_trains_the_whole_and_either_resumes_the_other(
    changes: dict[str, Any], data: Path, train_on: Callable[..., list[int]], tmp_path: Path
) -> None:
    one, two = (settings(data, tmp_path / name, **changes) for name in ("one", "two"))
    train(one)
    assert train_on(two) == [0, 0]
    assert_close(two.out, one.out)
    assert load_file(two.out / "snapshots" / "step-000004" / "wide.safetensors").keys()
    for run in (one, two):
        (run.out / "checkpoints" / "step-000004").rename(tmp_path / f"{run.out.name}-whole")
    assert train_on(one) == [0, 0]
    train(two)
    assert_close(one.out, two.out)


def test_processes_that_are_killed_resume_to_the_same_bytes(
    data: Path, train_on: Callable[..., list[int]], tmp_path: Path
) -> None:
    calm, killed = (settings(data, tmp_path / name, lora={"rank": 2}, trainer={"num_steps": 12}) for name in "ab")
    assert train_on(calm) == [0, 0]
    assert train_on(killed, kill_after=2) == [-9, -9]
    assert not (killed.out / "checkpoints" / "step-000012").exists()
    assert train_on(killed) == [0, 0]
    for name in FILES:
        files = [run.out / "checkpoints" / "step-000012" / f"{name}.safetensors" for run in (calm, killed)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "eulerian"}, "differentiates forward, which shards cannot follow: set parallel=ddp"),
        ({"recipe": "progressive"}, "takes a second network, which is not in shards"),
        ({"trainer": {"precision": "fp16"}}, "take bf16"),
    ],
)
def test_what_shards_cannot_do_is_one_line(changes: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        train(settings(data, tmp_path / "run", **changes))
