"""The configs that come with the program: each is one, and makes the network its header says."""

from typing import Any

import pytest
import torch

from eval.config import EvaluateConfig
from pipeline import networks
from pipeline.common.config import CONFIGS, load_section, load_sections, validate
from pipeline.generation.generate import GenerateConfig
from traflow_pipeline.settings import follow_recipe
from trainer.config import TrainConfig

MODELS: dict[str, Any] = {"generate": GenerateConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
STUDENTS = {  # millions of parameters, learning rate (TraFlow, arXiv 2502.16972, Table 9)
    "cifar10-3m": (3.4, 1.5e-4),
    "cifar10-7m": (7.0, 1e-4),
    "cifar10-15m": (15.7, 0.75e-4),
    "cifar10-28m": (27.9, 0.5e-4),
    "ffhq64-16m": (15.7, 0.75e-4),
    "imagenet64-81m": (80.7, 0.5e-4),
}


NAMES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in (*CONFIGS.glob("*.yaml"), *CONFIGS.glob("studies/*.yaml"))
)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_to_run_it_and_every_section_of_it_is_one(name: str) -> None:
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")
    for command, section in follow_recipe(load_sections(name)).items():
        validate(MODELS[command], section, command)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_config_has_the_size_of_its_name_and_the_settings_of_the_papers_table_9(name: str) -> None:
    millions, rate = STUDENTS[name]
    config = validate(TrainConfig, load_section(name, "train"), "train")
    assert config.network is not None
    with torch.device("meta"):
        network = networks.build(config.network)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions
    assert config.network.dropout == 0.1
    settings, [average] = config.trainer, config.trainer.ema
    assert (settings.lr, settings.batch_size, settings.num_steps * settings.batch_size) == (rate, 64, 50e6)
    assert settings.warmup_steps * settings.batch_size == 1e6
    assert (settings.weight_decay, average.half_life_images, average.ramp_up) == (0.01, 10e6, None)
    assert settings.precision == "bf16"
