"""What a run trains, and on what: from a configuration to a network at its start and the stream of its batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from pipeline import networks
from pipeline.errors import BadInput
from pipeline.manifest import read_manifest
from pipeline.networks import Network, NetworkConfig
from pipeline.plan import Plan
from pipeline.store import Location, open_store
from pipeline.teachers import absolute_source, load_teacher
from pipeline.teachers.teacher import Teacher
from trainer.images import load_images
from trainer.recipes import RECIPES
from trainer.stream import ImageStream, TrajectoryStream
from trainer.student import Student, from_teacher


class TrainerConfig(BaseModel):
    """The optimisation: AdamW, its learning rate warmed up linearly and decayed linearly to zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_half_life_images: float = Field(default=10_000_000, gt=0)
    ema_ramp_up: float = Field(default=0.05, gt=0)
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)


class TrainConfig(BaseModel):
    """What `traflow-pipeline train` takes: trajectories (`data`) for a student, or `images` for a teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    recipe: str = "anchored"
    data: Location | None = None
    images: str | None = None
    network: NetworkConfig | None = None
    teacher: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = "auto"
    trainer: TrainerConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe not in RECIPES:
            raise ValueError(f"no recipe {self.recipe!r}: wanted one of {', '.join(RECIPES)}")
        return self


@dataclass(frozen=True)
class Task:
    """What a run trains, and on what."""

    model: nn.Module  # what the recipe's losses take: a Student, or a teacher's network
    network: Network  # its weights
    stream: TrajectoryStream | ImageStream
    origin: dict[str, Any]  # the fields of `CheckpointInfo` that say where it comes from


def prepare(config: TrainConfig, device: torch.device) -> Task:
    """The network at its start and the stream of its batches.

    Raises:
        BadInput: the configuration does not fit the recipe, the data or the teacher.
    """
    torch.manual_seed(config.seed)
    if RECIPES[config.recipe].trains == "teacher":
        return _prepare_teacher(config, device)
    return _prepare_student(config, device)


def _prepare_teacher(config: TrainConfig, device: torch.device) -> Task:
    if config.images is None or config.network is None or config.data or config.teacher:
        raise BadInput(
            f"recipe {config.recipe} trains a teacher: it takes 'images' and 'network', no 'data' or 'teacher'"
        )
    if config.network.second_time:
        raise BadInput(f"recipe {config.recipe} trains a teacher: its network has one time, not second_time")
    if config.network.convention == "adm":
        raise BadInput(
            f"recipe {config.recipe}: convention adm is for reading ADM's checkpoints: "
            "train one of flow, rectified-flow or edm"
        )
    images = load_images(config.images)
    shape, num_classes = config.network.shape, config.network.num_classes
    if images.shape != shape:
        raise BadInput(f"{config.images}: wanted images of {list(shape)} as the network; they are {list(images.shape)}")
    if num_classes and not 0 <= images.labels.min() <= images.labels.max() < num_classes:
        raise BadInput(f"{config.images}: wanted labels from 0 to {num_classes - 1} on every image as the network")
    network = networks.build(config.network).to(device)
    stream = ImageStream(images, num_classes, config.seed, config.trainer.batch_size)
    return Task(network, network, stream, {"data_sha256": images.sha256})


def _prepare_student(config: TrainConfig, device: torch.device) -> Task:
    if config.data is None or config.images:
        raise BadInput(f"recipe {config.recipe} trains a student: it takes 'data', made by generate, and no 'images'")
    manifest = read_manifest(open_store(config.data))
    plan, source = manifest.plan, absolute_source(config.teacher or manifest.dataset.teacher_source)
    if RECIPES[config.recipe].needs_velocities and not plan.velocities:
        raise BadInput(
            f"recipe {config.recipe} needs velocities; {config.data} has none: generate it with --velocities"
        )
    teacher = load_teacher(source, guidance_scale=plan.guidance_scale)
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(f"{config.data} was made by another teacher than {source}: name its own with --set teacher=...")
    student = _start(config, plan, teacher).to(device)
    origin = {
        "teacher": source,
        "teacher_sha256": plan.teacher_sha256,
        "data_sha256": manifest.sha256,
        "t_start": plan.t_start,
        "t_end": plan.t_end,
        "guidance_scale": plan.guidance_scale,
        "data_range": plan.data_range,
    }
    return Task(student, student.network, TrajectoryStream(manifest, config.seed, config.trainer.batch_size), origin)


def _start(config: TrainConfig, plan: Plan, teacher: Teacher) -> Student:
    """From the teacher's network, or from scratch where the configuration names one."""
    if config.network is None:
        if teacher.network is None:
            raise BadInput(
                f"teacher {teacher.name} has no network to start from: give 'network' to train one from scratch"
            )
        return from_teacher(teacher.network)
    network = config.network
    if (network.shape, network.num_classes) != (plan.shape, plan.num_classes):
        raise BadInput(
            f"wanted a network for {list(plan.shape)} and {plan.num_classes} classes as the data; "
            f"it is for {list(network.shape)} and {network.num_classes}"
        )
    return Student(networks.build(network.model_copy(update={"second_time": True})))
