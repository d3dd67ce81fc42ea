"""What a run trains, and on what: from a configuration to an initialised network and a stream of batches."""

from dataclasses import dataclass, replace

import torch

from pipeline import networks
from pipeline.common.config import differences
from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.plan import Plan
from pipeline.flow.solver import Velocity
from pipeline.networks import Network
from pipeline.networks.unet import UNetConfig
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import open_store
from pipeline.teachers.loading import load_teacher, resolve
from pipeline.teachers.teacher import Teacher
from trainer.checkpoints.checkpoint import Provenance
from trainer.checkpoints.model import find_model
from trainer.config import TrainConfig
from trainer.data.images import load_images
from trainer.data.stream import ImageStream, TrajectoryStream
from trainer.distillation.student import Student, from_teacher

INITS = ("teacher", "scratch")  # values of `start` that name no model


@dataclass(frozen=True)
class Task:
    """What a run trains, and on what."""

    network: Network
    stream: TrajectoryStream | ImageStream
    provenance: Provenance
    init_source: str  # where the network's tensors come from, for the user
    teacher: Velocity | None = None  # if the recipe evaluates it


def prepare(config: TrainConfig, device: torch.device) -> Task:
    """The initialised network, on `device`, and the stream of its batches.

    Raises:
        BadInput: the configuration does not fit the recipe, the data or the teacher.
    """
    recipe = config.recipe
    if config.trainer.compile and any(term.differentiates_forward for term in recipe.terms):
        raise BadInput(
            f"recipe {recipe.name} differentiates forward, which torch.compile cannot follow: set compile=false"
        )
    torch.manual_seed(config.seed)
    return _from_data(config, device) if config.start in INITS else _from_model(config, device)


def _from_data(config: TrainConfig, device: torch.device) -> Task:
    """The task of a network that starts from the teacher's or from scratch."""
    if config.recipe.reads == "images":
        return _prepare_flow_matching(config, device)
    return _prepare_student(config, device) if config.recipe.trains == "student" else _prepare_reflow(config, device)


def _from_model(config: TrainConfig, device: torch.device) -> Task:
    """The task of a network that starts from the weights of the model that `config.start` names."""
    model, trains = find_model(config.start), config.recipe.trains
    if model.info.trains != trains:
        raise BadInput(
            f"start: wanted a {trains}'s weights, as recipe {config.recipe.name} trains; {config.start} holds a "
            f"{model.info.trains}'s"
        )
    trained = model.load()
    task = _from_data(config.model_copy(update={"network": config.network or trained.config}), device)
    if fields := differences(_shape(trained), _shape(task.network)):
        raise BadInput(f"start: {config.start} has another network ({fields}): leave 'network' out")
    task.network.load_state_dict(trained.state_dict())
    provenance = replace(task.provenance, start_sha256=file_sha256(model.weights))
    return replace(task, provenance=provenance, init_source=f"from {model.weights}, after {model.info.step} steps")


def _shape(network: Network) -> dict[str, object]:
    """The configuration of a network, without what only its training uses."""
    return network.config.model_dump(mode="json", exclude={"dropout", "label_dropout"})


def _prepare_flow_matching(config: TrainConfig, device: torch.device) -> Task:
    """A teacher from scratch, on images."""
    source, network_config = _image_inputs(config)
    _check_trainable(network_config)
    images = load_images(source)
    shape, num_classes = network_config.shape, network_config.num_classes
    if images.shape != shape:
        raise BadInput(f"{source}: wanted images of {list(shape)} as the network; they are {list(images.shape)}")
    if num_classes and not 0 <= images.labels.min() <= images.labels.max() < num_classes:
        raise BadInput(f"{source}: wanted labels from 0 to {num_classes - 1} on every image as the network")
    for term in config.recipe.terms:
        term.prepare(shape)
    network = networks.build(network_config).to(device)
    stream = ImageStream(images, num_classes, config.seed, config.trainer.batch_size)
    return Task(network, stream, Provenance(images.sha256), "from scratch")


def _image_inputs(config: TrainConfig) -> tuple[str, UNetConfig]:
    """`images` and `network` of a configuration that trains on images."""
    name = config.recipe.name
    if config.images is None or config.data is not None:
        raise BadInput(f"recipe {name} reads images: it takes 'images' and 'network', no 'data'")
    if config.network is None or config.teacher:
        raise BadInput(f"recipe {name} trains a teacher: it takes 'images' and 'network', no 'teacher'")
    return config.images, config.network


def _check_trainable(network: UNetConfig) -> None:
    if network.second_time:
        raise BadInput("a teacher's network has one time, not second_time")
    if network.convention == "adm":
        raise BadInput("convention adm is for reading ADM's checkpoints; train one of flow, rectified-flow or edm")
    if network.augment_dim:
        raise BadInput("augmentation labels are for reading EDM's checkpoints; train a network with augment_dim 0")


def _prepare_reflow(config: TrainConfig, device: torch.device) -> Task:
    """The next rectified flow, from the network of the one before, or from scratch."""
    data, teacher, provenance = _open_data(config)
    network_config = _network_config(config, teacher).model_copy(update={"augment_dim": 0})
    _check_trainable(network_config)
    _check_fits(network_config, data.plan)
    network = networks.build(network_config)
    init_source = "from scratch"
    if config.start == "teacher" and teacher.network is not None and config.network is None:
        state = teacher.network.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        init_source = f"from {teacher.name}"
    # The new flow is a teacher itself: it has the data's range, but its own times and no guidance.
    own = Provenance(provenance.data_sha256, data_range=provenance.data_range)
    return Task(network.to(device), data, own, init_source)


def _prepare_student(config: TrainConfig, device: torch.device) -> Task:
    data, teacher, provenance = _open_data(config)
    student, init_source = _init_student(config, data.plan, teacher)
    velocity = None
    if config.recipe.needs_teacher and provenance.teacher is not None:
        velocity = load_teacher(provenance.teacher, device, data.plan.guidance_scale, quiet=True).velocity
    return Task(student.network.to(device), data, provenance, init_source, velocity)


def _open_data(config: TrainConfig) -> tuple[TrajectoryStream, Teacher, Provenance]:
    if config.data is None or config.images is not None:
        raise BadInput(
            f"recipe {config.recipe.name} reads trajectories: it takes 'data', made by generate, and no 'images'"
        )
    manifest = read_manifest(open_store(config.data))
    plan, source = manifest.plan, config.teacher or manifest.dataset.teacher_source
    if manifest.num_records == 0:
        raise BadInput(
            f"{config.data}: wanted trajectories; its manifest is empty: run traflow-pipeline generate again"
        )
    check_plan(config, plan)
    teacher = _load_teacher(config, source, plan)
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(f"{config.data} was made by another teacher than {source}: name its own with --set teacher=PATH")
    provenance = Provenance(
        data_sha256=manifest.sha256,
        teacher=resolve(source).absolute,
        teacher_sha256=plan.teacher_sha256,
        t_start=plan.t_start,
        t_end=plan.t_end,
        guidance_scale=plan.guidance_scale,
        data_range=plan.data_range,
    )
    return TrajectoryStream(manifest, config.seed, config.trainer.batch_size), teacher, provenance


def check_plan(config: TrainConfig, plan: Plan) -> None:
    """Raises `BadInput` if the recipe needs what data of `plan` lack, files that are missing, or another network."""
    if lack := config.recipe.lack(plan):
        raise BadInput(f"recipe {config.recipe.name} {lack}; {config.data} was made without")
    for term in config.recipe.terms:
        term.prepare(plan.shape)
    if config.network is not None:
        _check_fits(config.network, plan)


def _load_teacher(config: TrainConfig, source: str, plan: Plan) -> Teacher:
    try:
        return load_teacher(source, guidance_scale=plan.guidance_scale)
    except BadInput as error:
        if config.teacher is not None:
            raise
        raise BadInput(
            f"{config.data}: its teacher cannot be loaded; --set teacher=PATH says where it is ({error})"
        ) from error


def _init_student(config: TrainConfig, plan: Plan, teacher: Teacher) -> tuple[Student, str]:
    """The student, from the teacher's network or from scratch, and the source of its tensors, for the user."""
    if config.network is not None:
        _check_fits(config.network, plan)
    if config.start == "teacher" and teacher.network is not None:
        same_kind = config.network is None or type(config.network) is type(teacher.network.config)
        if same_kind:
            student, summary = from_teacher(teacher.network, config.network)
            return student, f"from {teacher.name}: {summary}"
    network = _network_config(config, teacher)
    return Student(networks.build(network.model_copy(update={"second_time": True, "augment_dim": 0}))), "from scratch"


def _network_config(config: TrainConfig, teacher: Teacher) -> UNetConfig:
    """The architecture that is asked for, by default the teacher's."""
    if config.network is not None:
        return config.network
    if teacher.network is None:
        raise BadInput(f"teacher {teacher.name} has no network to start from: give 'network' to train one from scratch")
    return teacher.network.config


def _check_fits(network: UNetConfig, plan: Plan) -> None:
    if (network.shape, network.num_classes) != (plan.shape, plan.num_classes):
        raise BadInput(
            f"wanted a network for {list(plan.shape)} and {plan.num_classes} classes as the data; "
            f"it is for {list(network.shape)} and {network.num_classes}"
        )
