"""The students of other checkpoints of a training, so that a report can show the distance against training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eval.models import EvaluatedModels
from eval.sampling.samplers import Sampler, student_sampler
from pipeline.common.errors import BadInput
from pipeline.storage.store import is_url
from trainer.checkpoints import mirror
from trainer.checkpoints.model import find_model
from trainer.distillation.student import Student


@dataclass(frozen=True)
class CheckpointSampler:
    """A sampler of the group "checkpoint", the row that it makes, and the training steps of its student."""

    sampler: Sampler
    row: str
    step: int


def checkpoint_samplers(
    models: EvaluatedModels,
    location: str,
    wanted: Sequence[int] | Literal["all"],
    weights: str,
    steps: Sequence[int | Sequence[float]],
    device: torch.device,
) -> list[CheckpointSampler]:
    """The student's samplers at `steps` of each of the `wanted` checkpoints of the run at `location`.

    The checkpoint of `models` is left out, because it is scored anyway. The others are loaded when they are drawn from.

    Raises:
        BadInput: the model is no student, or the run lacks a wanted checkpoint or its weights.
    """
    if not wanted:
        return []
    if models.student is None:
        raise BadInput(f"{models.folder}: wanted a student's run for 'checkpoints'; it trains a teacher")
    run = mirror.find_run(location.rstrip("/").partition("/checkpoints/")[0]) if is_url(location) else str(models.run)
    folders = {int(name.partition("-")[2]): f"{run}/checkpoints/{name}" for name in mirror.steps(run)}
    for step in folders if wanted == "all" else wanted:
        if step not in folders:
            raise BadInput(
                f"checkpoints: wanted steps of {run}: {', '.join(map(str, folders)) or 'it has none'}; not {step}"
            )
    chosen = sorted(set(folders if wanted == "all" else wanted) - {models.info.step})
    files = {step: find_model(folders[step], weights).weights for step in chosen}
    return [_sampler(models, file, step, each, device) for step, file in files.items() for each in steps]


def _sampler(
    models: EvaluatedModels, file: Path, step: int, steps: int | Sequence[float], device: torch.device
) -> CheckpointSampler:
    info = models.info

    def sampler_of(student: Student) -> Sampler:
        return student_sampler(student, steps, info.t_start, info.t_end, info.step_shift)

    def draw(noise: Tensor, label: Tensor | None) -> tuple[Tensor, int]:
        return sampler_of(_load(file, device)).draw(noise, label)

    own = sampler_of(Student(models.network))
    sampler = Sampler("checkpoint", f"{own.name} after {step} training steps", draw, own.evaluations)
    return CheckpointSampler(sampler, own.name, step)


@lru_cache(maxsize=1)
def _load(file: Path, device: torch.device) -> Student:
    """The student in `file`; the last one is kept, since its rows are drawn one after the other."""
    return Student(find_model(file).load().to(device).requires_grad_(False))
