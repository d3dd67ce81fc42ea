"""A diffusers pipeline as a teacher: its network as a velocity over latents, with the conditions of its prompts."""

from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.common.faults import explain
from pipeline.flow.numerics import Precision
from pipeline.networks.conditions import Conditions, Size
from pipeline.networks.diffusers.family import Family
from pipeline.networks.diffusers.network import DiffusersConfig, DiffusersNetwork
from pipeline.networks.diffusers.schedule import NoiseSchedule
from pipeline.networks.diffusers.weights import load_weights, versions
from pipeline.teachers.diffusers.decoder import Decoder
from pipeline.teachers.diffusers.folder import PipelineFolder, default_shift
from pipeline.teachers.teacher import FreshVelocity, NetworkVelocity, Teacher


def describe(folder: PipelineFolder, size: Size | None, num_prompts: int) -> Teacher:
    """The teacher of the pipeline in `folder`, without its weights: all that a plan takes, in a moment.

    Raises:
        BadInput: its network cannot draw pictures of `size`, or the schedule is not known here.
    """
    return _teacher(folder, make_config(folder, size, num_prompts), Unloaded())


class Unloaded(FreshVelocity):
    """The velocity of a teacher that was described, not loaded."""

    def __call__(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        raise RuntimeError("this teacher was described, not loaded")


def load(folder: PipelineFolder, size: Size | None, conditions: Conditions | None, device: torch.device) -> Teacher:
    """The teacher of the pipeline in `folder` on `device`; `conditions` are those of its labels.

    Raises:
        BadInput: as `describe`; or its weights cannot be loaded, or are not those of its configuration.
    """
    config = make_config(folder, size, 0 if conditions is None else len(conditions))
    model = load_weights(folder.family.network, folder.path / folder.family.folder)
    network = DiffusersNetwork(config, model, conditions).to(device).requires_grad_(False).eval()
    teacher = _teacher(folder, config, NetworkVelocity(network))
    return replace(
        teacher,
        network=network,
        decode=Decoder(folder, device) if teacher.latents else None,
        tell_guidance=network.told_guidance if teacher.tell_guidance else None,
    )


def _teacher(folder: PipelineFolder, config: DiffusersConfig, velocity: Callable[..., Tensor]) -> Teacher:
    family = config.make_family()
    return Teacher(
        name=folder.path.name if folder.path.parent.name != "snapshots" else folder.path.parents[1].name,
        sha256=folder.network_sha256,
        velocity=velocity,
        shape=config.shape,
        num_classes=config.num_classes,
        takes_no_label=family.takes_negative or family.num_classes > 0,
        t_start=config.t_start,
        shift=1.0 if config.schedule else default_shift(folder, config.shape),
        libraries=versions("diffusers"),
        latents=family.is_latent,
        image_size=config.image_size if family.is_latent else None,
        combine=family.with_guidance if type(family).with_guidance is not Family.with_guidance else None,
        tell_guidance=(lambda scale: None) if family.embeds_guidance else None,
    )


def make_config(folder: PipelineFolder, size: Size | None, num_prompts: int) -> DiffusersConfig:
    """What decides the velocity but the weights.

    Raises:
        BadInput: the network cannot draw pictures of `size`, or the schedule is not known here.
    """
    bare = folder.family(folder.network_config)
    shape = _shape(folder, bare, size)
    try:
        is_flow = "num_train_timesteps" in folder.scheduler_config and "beta_schedule" not in folder.scheduler_config
        schedule = None if is_flow else NoiseSchedule.model_validate(folder.scheduler_config)
    except ValidationError as error:
        raise BadInput(f"{folder.path}/scheduler: {explain(error, NoiseSchedule)}") from error
    return DiffusersConfig(
        pipeline=folder.pipeline,
        model=folder.network_config,
        schedule=schedule,
        shape=shape,
        image_size=(shape[1] * folder.scale, shape[2] * folder.scale),
        num_classes=num_prompts or bare.num_classes,
    )


def _shape(folder: PipelineFolder, family: Family, size: Size | None) -> tuple[int, int, int]:
    """The shape of the latents, or pixels, of pictures of `size`."""
    default = (family.default_size, family.default_size)
    wanted = tuple(side * folder.scale for side in default)
    if size is None or size == wanted:
        return family.channels, *default
    if family.has_fixed_size:
        raise BadInput(
            f"{folder.path}: wanted pictures of {wanted[0]}x{wanted[1]} pixels, which it draws alone; "
            f"got {size[0]}x{size[1]}"
        )
    step = folder.scale * family.patch
    if any(side % step or side < step for side in size):
        raise BadInput(
            f"{folder.path}: size {size[0]}x{size[1]}: wanted sides that {step} divides, a patch of its network"
        )
    return family.channels, size[0] // folder.scale, size[1] // folder.scale


def check_precision(folder: PipelineFolder, precision: Precision) -> None:
    """Raises `BadInput` for a precision whose range the pipeline leaves."""
    if precision == "fp16" and folder.encodes_by_t5:
        raise BadInput(
            f"{folder.path}: precision fp16: it is conditioned by T5, whose values leave the range of fp16: take bf16"
        )
