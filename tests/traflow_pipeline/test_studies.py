"""The configs in configs/studies, on pictures and weights of our own and with everything small."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from eval.results import read_report
from tests.support.command import call
from tests.support.images import pictures, save_pngs
from trainer.distillation.distance import BACKBONES

NETWORK = "{resolution: 32, image_channels: 3, channels: 8, channel_mult: [1], num_blocks: 1}"
SMALL_TRAINING = {"network": NETWORK, "trainer.num_steps": 2, "trainer.batch_size": 4, "trainer.precision": "fp32"}
SMALL = {
    "generate.n": 8,
    "generate.states": 2,
    "generate.solver": "{name: rk4, num_steps: 3}",
    "generate.precision": "fp32",
    "generate.executor": "inline",
    "generate.shard_size": 8,
    "generate.batch_size": 8,
    "generate.block_size": 4,
    **{f"train.{key}": value for key, value in SMALL_TRAINING.items()},
    "evaluate.num_samples": 8,
    "evaluate.num_trajectories": 4,
    "evaluate.steps": "[1]",
    "evaluate.baselines": "[euler]",
    "evaluate.baseline_evaluations": "[1]",
}


def settings(values: Mapping[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def test_a_teacher_a_student_and_its_figures_come_from_a_folder_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights"
    weights.mkdir()
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights / BACKBONES["squeeze"])
    monkeypatch.setenv("TRAFLOW_WEIGHTS", str(weights))
    images = save_pngs(tmp_path / "cifar10", pictures(16))
    training = settings(SMALL_TRAINING)
    call(
        tmp_path, "train", "--config", "studies/cifar10-small-teacher", "--images", images, "--device", "cpu", *training
    )
    small = settings(SMALL | {"evaluate.reference": images, "train.device": "cpu", "evaluate.device": "cpu"})
    call(tmp_path, "run", "studies/cifar10-small", *small)
    report = read_report(tmp_path / "runs" / "cifar10-small" / "report")
    assert len(report.rows) == 3
    assert all(np.isfinite(row.values).all() and any("squeezenet" in key for key in row.scores) for row in report.rows)
