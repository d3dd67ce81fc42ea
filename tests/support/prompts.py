"""Prompts, and teachers and data sets that are drawn from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.generation.generate import GenerateConfig
from pipeline.networks.conditions import Conditions
from pipeline.teachers import loading
from pipeline.teachers.diffusers.teacher import load
from pipeline.teachers.loading import DiffusersSource
from pipeline.teachers.teacher import Teacher, guided
from tests.support.pipelines import SIZES

CPU = torch.device("cpu")
PROMPTS = ("a cat", "two very large dogs", "rain")


def write_prompts(folder: Path, prompts: Sequence[str] = PROMPTS, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return path


def source_of(folder: Path) -> DiffusersSource:
    source = loading.resolve(f"diffusers:{folder}")
    assert isinstance(source, DiffusersSource)
    return source


class RandomRows:
    """Conditions of a Qwen-Image pipeline, each of its own length, for one without text encoders."""

    def __len__(self) -> int:
        return len(PROMPTS)

    def row(self, number: int) -> dict[str, Tensor]:
        length = 5 + number
        embeds = torch.randn(length, 16, generator=torch.Generator().manual_seed(number + 1))
        return {"prompt_embeds": embeds, "prompt_embeds_mask": torch.ones(length, dtype=torch.int64)}


def conditions_of(source: DiffusersSource, folder: Path) -> Conditions | None:
    """Those of `PROMPTS`, where the teacher takes any."""
    takes_prompts = bool(source.folder.family.encoded)
    if takes_prompts and not source.folder.text_parts:
        return RandomRows()
    prompts = source.prompts(str(write_prompts(folder)), None) if takes_prompts else None
    return source.encoded(prompts, CPU)


def load_unchecked(source: DiffusersSource, conditions: Conditions | None, guidance_scale: float = 1.0) -> Teacher:
    """The teacher without the check of itself."""
    size = SIZES.get(source.folder.path.name)
    return guided(load(source.folder, size, conditions, CPU), guidance_scale)


def prompted(folder: Path, pipeline: Path, **changes: Any) -> GenerateConfig:
    """A data set of a few records of a tiny pipeline, to be made in this process."""
    values = {
        "teacher": f"diffusers:{pipeline}",
        "n": 12,
        "out": folder / "data",
        "prompts": str(write_prompts(folder)),
        "guidance_scale": 3.0,
        "states": 2,
        "executor": "inline",
        "solver": {"name": "euler", "num_steps": 3},
        "shard_size": 8,
        "batch_size": 4,
        "block_size": 4,
    }
    return GenerateConfig.model_validate(values | changes)
