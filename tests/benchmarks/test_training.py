from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.common import random_plan, random_set
from benchmarks.training import LOSSES, HeldBatch, log_of_training, peak_memory
from pipeline.storage.store import Folder
from trainer.config import TrainConfig
from trainer.distillation.recipes import Phase

NUM_RECORDS = 4


def config(folder: Path, **trainer: Any) -> TrainConfig:
    """A training on as many records as its batch has, all of one block: every batch is the same one."""
    plan = random_plan(velocities=True)
    random_set(Folder(folder / "data"), plan, NUM_RECORDS)
    values = {
        "data": str(folder / "data"),
        "out": str(folder / "run"),
        "teacher": "benchmarks.training:still",
        "device": "cpu",
        "network": {"resolution": 32, "image_channels": 3, "channels": 8, "channel_mult": [1], "num_blocks": 1},
        "trainer": {"num_steps": 3, "batch_size": NUM_RECORDS, "log_every": 1} | trainer,
    }
    return TrainConfig.model_validate(values)


def test_the_first_step_on_a_held_batch_is_the_loop_s_own(tmp_path: Path) -> None:
    training = config(tmp_path, num_steps=1)
    held = HeldBatch(training)
    assert held.take_steps(1) > 0
    log_of_training(training)
    [folder] = (training.out / "checkpoints").iterdir()
    for name, network in held.state.networks().items():
        expected = load_file(folder / name)
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, expected[key]), f"{name}: {key}"


def test_the_first_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    lines = log_of_training(config(tmp_path))
    assert [line["step"] for line in lines] == [2, 3]
    assert all(line["images_per_second"] > 0 and 0 <= line["stall"] < 1 for line in lines)


def test_peak_memory_is_what_a_dry_run_says(tmp_path: Path) -> None:
    amount, unit = peak_memory(config(tmp_path)).split()
    assert float(amount) > 0
    assert unit in ("MB", "GB")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("title", "evaluations"), list(zip(LOSSES, (1, 1, 3), strict=True)))
def test_each_loss_alone_asks_the_network_as_often_as_its_equation(title: str, evaluations: int) -> None:
    assert Phase.model_validate({"terms": [LOSSES[title]]}).cost == 3 * evaluations
