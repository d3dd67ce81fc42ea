"""Several ranks: real processes under torchrun and on Ray, and signals to real processes."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import SCRIPT, assert_one_line, call, on_ranks, run
from tests.support.problems import make_data
from trainer import on_ray
from trainer.config import TrainConfig
from trainer.distillation.random_draws import draw

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("ranks"), n=64, shard_size=64, batch_size=16, block_size=8)


def arguments(data: Path, out: Path, num_steps: int = 6, **settings: object) -> list[str]:
    trainer = {"num_steps": num_steps, "batch_size": 16, "log_every": 2, "checkpoint_every": 3, **settings}
    pairs = [part for key, value in trainer.items() for part in ("--set", f"trainer.{key}={value}")]
    return ["train", "--data", str(data), "--out", str(out), "--device", "cpu", *pairs]


def weights(out: Path, step: int = 6) -> dict[str, torch.Tensor]:
    folder = out / "checkpoints" / f"step-{step:06d}"
    return {f"{n}.{k}": v for n in ("network", "ema") for k, v in load_file(folder / f"{n}.safetensors").items()}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-4)  # sums of floats in another order


@pytest.mark.parametrize("recipe", ["anchored", "lagrangian", "anchored-adversarial"])
def test_two_ranks_train_as_one_does(data: Path, tmp_path: Path, recipe: str) -> None:
    call(tmp_path, *arguments(data, tmp_path / "one"), "--recipe", recipe)
    on_ranks(2, [*arguments(data, tmp_path / "two"), "--recipe", recipe], says="step 0: minimising")
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))


def test_a_run_of_one_rank_is_gone_on_with_by_two_on_the_same_batches(data: Path, tmp_path: Path) -> None:
    call(tmp_path, *arguments(data, tmp_path / "one", keep_checkpoints=3))
    six = tmp_path / "one" / "checkpoints" / "step-000006"
    wanted = {name: tensor.clone() for name, tensor in weights(tmp_path / "one").items()}
    six.rename(tmp_path / "kept")
    on_ranks(2, arguments(data, tmp_path / "one", keep_checkpoints=3))
    assert_close(weights(tmp_path / "one"), wanted)


def test_the_draws_of_ranks_are_parts_of_one_ranks() -> None:
    def numbers(mine: slice) -> list[torch.Tensor]:
        draws = draw(0, 5, 16, mine, 2, (2,), 10)
        first, second = draws.of(0), draws.of(1)
        return [first.uniform(), first.uniform(), second.uniform(), first.strata, first.normal()]

    whole = numbers(slice(0, 16))
    assert len({tuple(x.tolist()) for x in whole[:3]}) == 3
    assert sorted((whole[3] * 16).long().tolist()) == list(range(16))  # one in each of sixteen strata
    for rank in range(4):
        mine = slice(4 * rank, 4 * rank + 4)
        for part, all_of_it in zip(numbers(mine), whole, strict=True):
            assert torch.equal(part, all_of_it[mine])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.proof)]
)
def test_a_signal_saves_and_the_same_command_ends_bit_for_bit_as_an_undisturbed_one(
    data: Path, tmp_path: Path, number: int, code: int
) -> None:
    command = arguments(data, tmp_path / "run", num_steps=60, checkpoint_every=1000, log_every=1)
    process = subprocess.Popen([str(SCRIPT), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline, "the training never began"
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "which is saved; run the same command to resume" in err
    assert len(err.strip().splitlines()) == 1
    assert "resuming from" in call(tmp_path, *command).stdout
    call(tmp_path, *arguments(data, tmp_path / "whole", num_steps=60, checkpoint_every=1000, log_every=1))
    found, wanted = weights(tmp_path / "run", 60), weights(tmp_path / "whole", 60)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_ranks_that_are_not_set_up_whole_are_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = call(tmp_path, *arguments(data, tmp_path / "run"), code=2)
    assert_one_line(found, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start it with torchrun")


@pytest.mark.cluster
def test_ray_starts_the_ranks(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path / "run")
    assert "next: traflow-pipeline evaluate" in run(tmp_path, *command, "--on", "ray", "--workers", 2).stdout
    call(tmp_path, *arguments(data, tmp_path / "one"))
    assert_close(weights(tmp_path / "run"), weights(tmp_path / "one"))


@pytest.mark.cluster
def test_ranks_on_ray_save_when_their_machine_goes_away_and_when_the_command_is_interrupted(
    data: Path, tmp_path: Path
) -> None:
    def settings(num_steps: int) -> list[str]:
        return arguments(data, tmp_path / "run", num_steps=num_steps, checkpoint_every=10**6, log_every=10**6)

    def checkpoints() -> list[Path]:
        return sorted((tmp_path / "run" / "checkpoints").glob("step-*"))

    def wait_for(happened: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)

    command = [str(SCRIPT), *settings(10**6), "--on", "ray", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log, lease = tmp_path / "run" / "log.jsonl", tmp_path / "run" / "driver.json"
    wait_for(log.exists, 120)
    os.kill(json.loads(lease.read_text())["process"], signal.SIGTERM)  # of the first rank; the other is not told
    wait_for(checkpoints, 30)
    [first] = checkpoints()
    wait_for(lambda: not lease.exists(), 30)
    wait_for(lease.exists, 120)  # Ray Train starts the ranks again
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 143, err
    assert "which is saved; run the same command to resume" in err
    last = checkpoints()[-1]
    assert last > first
    step = int(last.name.removeprefix("step-"))
    assert f"resuming from {last}" in call(tmp_path, *settings(step + 1)).stdout


def test_as_many_places_as_share_a_batch_evenly_are_used(tmp_path: Path) -> None:
    trainer = {"num_steps": 1, "batch_size": 24}
    config = TrainConfig.model_validate({"data": "data", "out": tmp_path, "recipe": "instaflow", "trainer": trainer})
    assert [on_ray._most_ranks(config, places) for places in (1, 2, 5, 6, 7, 23)] == [1, 2, 4, 6, 6, 12]


@pytest.mark.proof
def test_ray_begins_again_after_a_lost_worker_and_ends_as_one_that_lost_none(data: Path, tmp_path: Path) -> None:
    settings = {"num_steps": 600, "checkpoint_every": 20, "log_every": 5}
    command = arguments(data, tmp_path / "run", **settings)
    process = subprocess.Popen([str(SCRIPT), *command, "--on", "ray", "--workers", "2"])
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 200
    while not (checkpoints.exists() and any(checkpoints.glob("step-*"))):
        assert time.monotonic() < deadline, "no checkpoint came"
        assert process.poll() is None
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    assert process.wait(timeout=400) == 0
    on_ranks(2, arguments(data, tmp_path / "calm", **settings))
    assert_close(weights(tmp_path / "run", 600), weights(tmp_path / "calm", 600))
