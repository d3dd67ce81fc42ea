"""The configs that come with the program: each is one, and makes the network its header says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eval.config import EvaluateConfig
from pipeline import networks
from pipeline.common.config import CONFIGS, load_section, validate
from pipeline.generation.generate import GenerateConfig
from trainer.config import TrainConfig

MODELS: dict[str, Any] = {"generate": GenerateConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
STUDENTS = {
    "cifar10-3m": 3.4,
    "cifar10-7m": 7.0,
    "cifar10-15m": 15.7,
    "cifar10-28m": 27.9,
    "ffhq64-16m": 15.7,
    "imagenet64-81m": 80.7,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_section_of_every_config_is_one(path: Path) -> None:
    for command in yaml.safe_load(path.read_text()):
        validate(MODELS[command], load_section(path.stem, command), command)


@pytest.mark.parametrize(("name", "millions"), STUDENTS.items())
def test_a_students_config_has_the_size_of_its_name(name: str, millions: float) -> None:
    config = validate(TrainConfig, load_section(name, "train"), "train")
    assert config.network is not None
    with torch.device("meta"):
        network = networks.build(config.network)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions
    assert config.network.dropout == 0.1
