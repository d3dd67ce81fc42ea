"""What a run trains, and on what: from a configuration to a network at its start and the stream of its batches."""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.plan import Plan
from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from pipeline.networks.unet import UNetConfig
from pipeline.storage.store import open_store
from pipeline.teachers.loading import load_teacher, resolve
from pipeline.teachers.teacher import Teacher
from trainer.config import TrainConfig
from trainer.data.images import load_images
from trainer.data.stream import ImageStream, TrajectoryStream
from trainer.distillation.student import Student, from_teacher


@dataclass(frozen=True)
class Task:
    """What a run trains, and on what."""

    network: Network
    stream: TrajectoryStream | ImageStream
    origin: dict[str, Any]  # the fields of `CheckpointInfo` that say where it comes from
    start: str  # where the network's tensors come from, for the user
    teacher: Velocity | None = None  # where the recipe asks it


def prepare(config: TrainConfig, device: torch.device) -> Task:
    """The network at its start, on `device`, and the stream of its batches.

    Raises:
        BadInput: the configuration does not fit the recipe, the data or the teacher.
    """
    _check_alike(config)
    torch.manual_seed(config.seed)
    if config.recipe.trains == "student":
        return _prepare_student(config, device)
    return _prepare_teacher(config, device)


def _check_alike(config: TrainConfig) -> None:
    """Raises `BadInput` where fields of the configuration exclude each other."""
    recipe, reads = config.recipe, config.recipe.reads
    if reads == "images" and (config.images is None or config.data is not None):
        raise BadInput(f"recipe {recipe.name} reads images: it takes 'images' and 'network', no 'data'")
    if reads == "trajectories" and (config.data is None or config.images is not None):
        raise BadInput(f"recipe {recipe.name} reads trajectories: it takes 'data', made by generate, and no 'images'")
    if recipe.trains == "teacher" and reads == "images" and (config.network is None or config.teacher):
        raise BadInput(f"recipe {recipe.name} trains a teacher: it takes 'images' and 'network', no 'teacher'")
    if config.trainer.compile and any(term.differentiates_forward for term in recipe.terms):
        raise BadInput(
            f"recipe {recipe.name} differentiates forward, which torch.compile cannot follow: set compile=false"
        )


def _prepare_teacher(config: TrainConfig, device: torch.device) -> Task:
    if config.recipe.reads == "trajectories":
        return _prepare_reflow(config, device)
    assert config.images is not None
    assert config.network is not None
    _check_trainable(config.network)
    images = load_images(config.images)
    shape, num_classes = config.network.shape, config.network.num_classes
    if images.shape != shape:
        raise BadInput(f"{config.images}: wanted images of {list(shape)} as the network; they are {list(images.shape)}")
    if num_classes and not 0 <= images.labels.min() <= images.labels.max() < num_classes:
        raise BadInput(f"{config.images}: wanted labels from 0 to {num_classes - 1} on every image as the network")
    for term in config.recipe.terms:
        term.prepare(shape)
    network = networks.build(config.network).to(device)
    stream = ImageStream(images, num_classes, config.seed, config.trainer.batch_size)
    return Task(network, stream, {"data_sha256": images.sha256}, "from scratch")


def _check_trainable(network: UNetConfig) -> None:
    if network.second_time:
        raise BadInput("a teacher's network has one time, not second_time")
    if network.convention == "adm":
        raise BadInput("convention adm is for reading ADM's checkpoints; train one of flow, rectified-flow or edm")
    if network.augment_dim:
        raise BadInput("augmentation labels are for reading EDM's checkpoints; train a network with augment_dim 0")


def _prepare_reflow(config: TrainConfig, device: torch.device) -> Task:
    """The next rectified flow, from the network of the one before, or from scratch."""
    data, teacher, origin = _open_data(config)
    given = config.network or (teacher.network.config if teacher.network else None)
    if given is None:
        raise BadInput(f"teacher {teacher.name} has no network to start from: give 'network'")
    _check_trainable(given.model_copy(update={"augment_dim": 0}))
    _check_fits(given, data.plan)
    network = networks.build(given.model_copy(update={"augment_dim": 0}))
    start = "from scratch"
    if config.start == "teacher" and teacher.network is not None and config.network is None:
        state = teacher.network.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        start = f"from {teacher.name}"
    kept = {name: origin[name] for name in ("data_sha256", "data_range")}
    return Task(network.to(device), data, kept, start)


def _prepare_student(config: TrainConfig, device: torch.device) -> Task:
    data, teacher, origin = _open_data(config)
    student, start = _start(config, data.plan, teacher)
    velocity = None
    if config.recipe.needs_teacher:
        velocity = load_teacher(origin["teacher"], device, data.plan.guidance_scale, quiet=True).velocity
    return Task(student.network.to(device), data, origin, start, velocity)


def _open_data(config: TrainConfig) -> tuple[TrajectoryStream, Teacher, dict[str, Any]]:
    assert config.data is not None
    manifest = read_manifest(open_store(config.data))
    plan, source = manifest.plan, resolve(config.teacher or manifest.dataset.teacher_source)
    if manifest.num_records == 0:
        raise BadInput(
            f"{config.data}: wanted trajectories; its manifest is empty: run traflow-pipeline generate again"
        )
    if lack := config.recipe.lack(plan):
        raise BadInput(f"recipe {config.recipe.name} {lack}; {config.data} was made without")
    for term in config.recipe.terms:
        term.prepare(plan.shape)
    teacher = source.load(guidance_scale=plan.guidance_scale)
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(
            f"{config.data} was made by another teacher than {source.absolute}: name its own with --set teacher=..."
        )
    origin = {
        "teacher": source.absolute,
        "teacher_sha256": plan.teacher_sha256,
        "data_sha256": manifest.sha256,
        "t_start": plan.t_start,
        "t_end": plan.t_end,
        "guidance_scale": plan.guidance_scale,
        "data_range": plan.data_range,
    }
    return TrajectoryStream(manifest, config.seed, config.trainer.batch_size), teacher, origin


def _start(config: TrainConfig, plan: Plan, teacher: Teacher) -> tuple[Student, str]:
    """From the teacher's network, or from scratch; with what there is to say of it."""
    if config.network is not None:
        _check_fits(config.network, plan)
    if config.start == "teacher" and teacher.network is not None:
        same_kind = config.network is None or type(config.network) is type(teacher.network.config)
        if same_kind:
            student, origin = from_teacher(teacher.network, config.network)
            return student, f"from {teacher.name}: {origin}"
    network = config.network or (teacher.network.config if teacher.network else None)
    if network is None:
        raise BadInput(f"teacher {teacher.name} has no network to start from: give 'network' to train one from scratch")
    return Student(networks.build(network.model_copy(update={"second_time": True, "augment_dim": 0}))), "from scratch"


def _check_fits(network: UNetConfig, plan: Plan) -> None:
    if (network.shape, network.num_classes) != (plan.shape, plan.num_classes):
        raise BadInput(
            f"wanted a network for {list(plan.shape)} and {plan.num_classes} classes as the data; "
            f"it is for {list(network.shape)} and {network.num_classes}"
        )
