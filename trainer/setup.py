"""What a run trains, and on what: from a configuration to an initialised network and a stream of batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from pydantic import ValidationError
from torch import nn

from pipeline import networks
from pipeline.common.config import differences
from pipeline.common.errors import BadInput
from pipeline.common.faults import explain
from pipeline.common.plural import counted
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.plan import Plan
from pipeline.flow.solver import Velocity
from pipeline.generation.same_flow import require_same_flow
from pipeline.networks import DiffusersNetwork, FlowNetwork, FlowNetworkConfig, Network
from pipeline.networks.unet import UNetConfig
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import Store, open_store
from pipeline.teachers.classes import TrainedClass, describe, ranges
from pipeline.teachers.loading import TeacherSource, resolve, resolve_recorded
from pipeline.teachers.teacher import Teacher
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import CheckpointInfo, Provenance
from trainer.checkpoints.model import find_model
from trainer.config import TrainConfig
from trainer.data.image_set import ImageSet
from trainer.data.images import load_images
from trainer.data.stream import WINDOW_BLOCKS, ImageStream, TrajectoryStream
from trainer.distillation.random_draws import draw
from trainer.distillation.step_input import StepInput
from trainer.distillation.student import Student, from_pipeline, from_teacher
from trainer.distillation.terms import Owner
from trainer.distributed import Ranks

TRAINABLE = ("flow", "rectified-flow", "edm")  # conventions

INITS = ("teacher", "scratch")  # values of `start` that name no model


@dataclass(frozen=True)
class Task:
    """What a run trains, and on what; `config` is the run's, completed by the data."""

    config: TrainConfig
    network: Network
    stream: TrajectoryStream | ImageStream
    provenance: Provenance
    init_source: str  # where the network's tensors come from, for the user
    teacher: Velocity | None = None  # if the recipe evaluates it
    notes: tuple[str, ...] = ()  # on the data, for the user
    owned: Mapping[str, nn.Module] = field(default_factory=dict)  # the networks of the recipe's terms, by their titles

    @property
    def num_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


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
    if recipe.trains == "teacher":
        _refuse_large(config)
    torch.manual_seed(config.seed)
    return _from_data(config, device) if config.start in INITS else _from_model(config, device)


def _refuse_large(config: TrainConfig) -> None:
    """Raises `BadInput` if what only the networks of diffusers can was asked of one of this program."""
    for name, is_asked in {
        "gradient_checkpointing": config.trainer.gradient_checkpointing,
        "parallel=fsdp": config.trainer.parallel == "fsdp",
    }.items():
        if is_asked:
            raise BadInput(f"trainer.{name} is for the networks of diffusers: leave it out")


def _from_data(config: TrainConfig, device: torch.device) -> Task:
    """The task of a network that starts from the teacher's or from scratch."""
    if config.recipe.reads == "images":
        return _prepare_flow_matching(config, device)
    return _prepare_student(config, device) if config.recipe.trains == "student" else _prepare_reflow(config, device)


def _from_model(config: TrainConfig, device: torch.device) -> Task:
    """The task of a network that starts from the weights of the model that `config.start` names."""
    begun = find_begun(config)
    if begun is not None:  # its weights are in its checkpoints; the model may have been trained on since, or be gone
        network = config.network or networks.parse_config(begun.config["network"])
        task = _from_data(config.model_copy(update={"network": network}), device)
        return replace(task, provenance=replace(task.provenance, start_sha256=begun.start_sha256))
    model, trains = find_model(config.start), config.recipe.trains
    if model.info.trains != trains:
        raise BadInput(
            f"start: wanted a {trains}'s weights, as recipe {config.recipe.name} trains; {config.start} holds a "
            f"{model.info.trains}'s"
        )
    trained = model.load()
    if isinstance(trained, FlowNetwork):
        config = config.model_copy(update={"network": config.network or trained.config})
    task = _from_data(config, device)
    if fields := differences(_shape(trained), _shape(task.network)):
        raise BadInput(f"start: {config.start} has another network ({fields}): leave 'network' out")
    task.network.load_state_dict(trained.state_dict())
    provenance = replace(task.provenance, start_sha256=file_sha256(model.weights))
    return replace(
        task, provenance=provenance, init_source=f"from {model.weights}, after {counted(model.info.step, 'step')}"
    )


def find_begun(config: TrainConfig) -> CheckpointInfo | None:
    """The newest checkpoint in `config.out` of a training that started from `config.start`; None without one."""
    for folder in reversed(checkpoint.find_all(config.out)):
        try:
            info = checkpoint.read_info(folder)
        except checkpoint.Damaged:
            continue
        return info if info.config.get("start") == config.start and info.config.get("network") else None
    return None


def _shape(network: Network) -> dict[str, object]:
    """The configuration of a network, without what only its training uses."""
    return network.config.model_dump(mode="json", exclude={"dropout", "label_dropout"})


def _prepare_flow_matching(config: TrainConfig, device: torch.device) -> Task:
    """A teacher from scratch, on images."""
    source, asked = _image_inputs(config)
    _check_trainable(asked)
    images = load_images(source)
    network_config = _complete(asked, images.shape, images.num_classes)
    _check_images(source, images, network_config)
    shape, num_classes = network_config.shape, network_config.num_classes
    for term in config.recipe.terms:
        term.prepare(shape)
    network = networks.build(network_config).to(device)
    stream = ImageStream(images, num_classes, config.seed, config.trainer.batch_size)
    classes = images.classes if num_classes else ()
    provenance = Provenance(images.sha256, data_range=images.data_range, classes=classes)
    completed = config.model_copy(update={"network": network_config})
    return Task(completed, network, stream, provenance, "from scratch", notes=tuple(_image_notes(images, num_classes)))


def _complete(network: FlowNetworkConfig, shape: tuple[int, ...], num_classes: int) -> FlowNetworkConfig:
    """`network`, with what it leaves out as in the data."""
    try:
        return network.completed(shape, num_classes)
    except ValueError as error:
        fault = explain(error, type(network)) if isinstance(error, ValidationError) else error
        raise BadInput(f"network, for data of {list(shape)}: {fault}") from error


def _check_images(source: str, images: ImageSet, network: FlowNetworkConfig) -> None:
    num_classes = network.num_classes
    if images.shape != network.shape:
        raise BadInput(
            f"{source}: wanted samples of {list(network.shape)} as the network; they are {list(images.shape)}: "
            f"leave {' and '.join(network.of_data[:-1])} out of it to take theirs"
        )
    if not num_classes:
        return
    if num_unlabelled := int((images.labels < 0).sum()):
        raise BadInput(f"{source}: wanted a class for every image as the network; {num_unlabelled} have none")
    if images.labels.max() >= num_classes:
        raise BadInput(
            f"{source}: wanted labels from 0 to {num_classes - 1} on every image as the network; "
            f"it has {describe(images.classes)}"
        )


def _image_notes(images: ImageSet, num_classes: int) -> Iterator[str]:
    yield str(images)
    yield from (f"note: {images.name}: {note}" for note in images.notes)
    trained = {one.label for one in images.classes}
    if num_classes and (missing := [label for label in range(num_classes) if label not in trained]):
        yield (
            f"warning: {len(missing)} of {num_classes} classes have no image and are not trained: {ranges(missing)}; "
            "generate draws none of them unless --classes names it"
        )
    if trained and not num_classes:
        num_unlabelled = int((images.labels < 0).sum())
        reason = f": {num_unlabelled} of {len(images)} images have none" if num_unlabelled else ""
        yield f"note: the network has no classes{reason}: labels are not used"


def _image_inputs(config: TrainConfig) -> tuple[str, FlowNetworkConfig]:
    """`images` and `network` of a configuration that trains on images."""
    name = config.recipe.name
    if config.images is None or config.data is not None:
        raise BadInput(f"recipe {name} reads images: it takes 'images' and 'network', no 'data'")
    if config.network is None or config.teacher:
        raise BadInput(f"recipe {name} trains a teacher: it takes 'images' and 'network', no 'teacher'")
    return config.images, config.network


def _check_trainable(network: FlowNetworkConfig) -> None:
    if network.second_time:
        raise BadInput("a teacher's network has one time, not second_time")
    if network.convention not in TRAINABLE:
        raise BadInput(
            f"convention {network.convention} is for reading published checkpoints; train one of {', '.join(TRAINABLE)}"
        )
    if isinstance(network, UNetConfig) and network.augment_dim:
        raise BadInput("augmentation labels are for reading EDM's checkpoints; train a network with augment_dim 0")


def _prepare_reflow(config: TrainConfig, device: torch.device) -> Task:
    """The next rectified flow, from the network of the one before, or from scratch."""
    data, teacher, provenance = _open_data(config)
    config = completed(config, data.plan)
    network_config = _network_config(config, teacher).for_training(second_time=False)
    _check_trainable(network_config)
    _check_fits(network_config, data.plan)
    network = networks.build(network_config)
    init_source = "from scratch"
    if config.start == "teacher" and isinstance(teacher.network, FlowNetwork) and config.network is None:
        state = teacher.network.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        init_source = f"from {teacher.name}"
    # The new flow is a teacher itself: it has the data's range, but its own times and no guidance.
    own = Provenance(provenance.data_sha256, data_range=provenance.data_range, classes=provenance.classes)
    return Task(config, network.to(device), data, own, init_source)


def _prepare_student(config: TrainConfig, device: torch.device) -> Task:
    data, teacher, provenance = _open_data(config)
    config = completed(config, data.plan)
    student, init_source = _init_student(config, data.plan, teacher, provenance)
    if not isinstance(student.network, DiffusersNetwork):
        _refuse_large(config)
    elif config.trainer.gradient_checkpointing:
        _checkpoint_gradients(config, student.network)
    if config.trainer.parallel == "fsdp":
        _check_shards(config)
    velocity = None
    if config.recipe.needs_teacher and provenance.teacher is not None:
        source, store = resolve(provenance.teacher), open_store(str(config.data))
        live = source.load_planned(data.plan, store, device, quiet=True)
        if source.is_function:
            require_same_flow(store, data.plan, live, device)
        velocity = live.velocity
    network = student.network.to(device)
    owned = {
        term.title: term.make_network(teacher.network, network).to(device)
        for term in config.recipe.terms
        if isinstance(term, Owner)
    }
    return Task(config, network, data, provenance, init_source, velocity, owned=owned)


def _checkpoint_gradients(config: TrainConfig, network: DiffusersNetwork) -> None:
    """Raises `BadInput` where gradients cannot be computed from activations that are made again."""
    if any(term.differentiates_forward for term in config.recipe.terms):
        raise BadInput(f"recipe {config.recipe.name} differentiates forward: set gradient_checkpointing=false")
    network.checkpoint_gradients()


def _check_shards(config: TrainConfig) -> None:
    """Raises `BadInput` where a training cannot hold its network in shards."""
    recipe = config.recipe
    if config.trainer.precision == "fp16":
        raise BadInput("trainer.parallel=fsdp: precision fp16 scales its gradients, which shards do not: take bf16")
    if recipe.needs_teacher or any(isinstance(term, Owner) for term in recipe.terms):
        raise BadInput(f"recipe {recipe.name} takes a second network, which is not in shards: set parallel=ddp")
    if any(term.differentiates_forward for term in recipe.terms):
        raise BadInput(f"recipe {recipe.name} differentiates forward, which shards cannot follow: set parallel=ddp")


def _open_data(config: TrainConfig) -> tuple[TrajectoryStream, Teacher, Provenance]:
    if config.data is None or config.images is not None:
        raise BadInput(
            f"recipe {config.recipe.name} reads trajectories: it takes 'data', made by generate, and no 'images'"
        )
    store = open_store(config.data)
    manifest = read_manifest(store)
    plan = manifest.plan
    config = completed(config, plan)
    if manifest.num_records == 0:
        raise BadInput(
            f"{config.data}: wanted trajectories; its manifest is empty: run traflow-pipeline generate again"
        )
    check_plan(config, plan)
    source, teacher = _load_teacher(config, manifest.dataset.teacher_source, plan, store)
    if teacher.sha256 != plan.teacher_sha256:
        raise BadInput(
            f"{config.data} was made by another teacher than {source.absolute}: name its own with --set teacher=PATH"
        )
    provenance = Provenance(
        data_sha256=manifest.sha256,
        teacher=source.absolute,
        teacher_sha256=plan.teacher_sha256,
        t_start=plan.t_start,
        t_end=plan.t_end,
        guidance_scale=plan.guidance_scale,
        data_range=plan.data_range,
        classes=_trained_classes(plan, teacher),
        distance_sha256=config.recipe.distance_sha256,
    )
    velocities = config.recipe.needs_velocities
    stream = TrajectoryStream(manifest, config.seed, config.trainer.batch_size, velocities, WINDOW_BLOCKS)
    return stream, teacher, provenance


def data_change(config: TrainConfig, trained_sha256: str | None) -> str:
    """What has become of the data that a run was trained on, whose digest was another than that of `config` is now."""
    if config.data is None:
        return f"it was trained on other images than {config.images} holds now"
    manifest = read_manifest(open_store(config.data))
    records, before = counted(manifest.num_records, "record"), manifest.num_records_of(trained_sha256)
    if before is None:
        return f"it was trained on other data, or on fewer, than the {records} that {config.data} holds now"
    return f"it was trained on the first {before:,} of the {records} that {config.data} has grown to"


def _trained_classes(plan: Plan, teacher: Teacher) -> tuple[TrainedClass, ...]:
    """The classes that trajectories are of, with what the teacher knows of them; none where they are simply all."""
    if plan.classes is None:
        return teacher.classes if teacher.labels is None else ()
    known = {one.label: one for one in teacher.classes}
    return tuple(known.get(label, TrainedClass(label=label)) for label in plan.classes)


def completed(config: TrainConfig, plan: Plan) -> TrainConfig:
    """`config` with the recipe and the network that fit data of `plan`."""
    network = config.network and _complete(config.network, plan.shape, plan.num_classes)
    return config.model_copy(update={"recipe": config.recipe.fitting(plan), "network": network})


def check_plan(config: TrainConfig, plan: Plan) -> None:
    """Raises `BadInput` if the recipe needs what data of `plan` lack, files that are missing, or another network."""
    config = completed(config, plan)
    if lack := config.recipe.lack(plan):
        raise BadInput(f"recipe {config.recipe.name} {lack}; {config.data} was made without")
    for term in config.recipe.terms:
        term.prepare(plan.shape)
    if config.network is not None:
        _check_fits(config.network, plan)


def _load_teacher(config: TrainConfig, recorded: str, plan: Plan, store: Store) -> tuple[TeacherSource, Teacher]:
    """The teacher that the configuration names, else the one that the data's plan records."""
    source = resolve_recorded(recorded, config.teacher, str(config.data), "--set teacher=")
    try:
        return source, source.load_planned(plan, store)
    except BadInput as error:
        elsewhere = "" if config.teacher else "; --set teacher=PATH says where it is now"
        raise BadInput(f"{config.data}: its teacher cannot be loaded: {error}{elsewhere}") from error


def _init_student(config: TrainConfig, plan: Plan, teacher: Teacher, provenance: Provenance) -> tuple[Student, str]:
    """The student, from the teacher's network or from scratch, and the source of its tensors, for the user."""
    if isinstance(teacher.network, DiffusersNetwork):
        return _init_from_pipeline(config, teacher.network, provenance)
    if config.lora is not None:
        raise BadInput("lora is for the students of pipelines of diffusers: leave it out")
    if config.network is not None:
        _check_fits(config.network, plan)
    if config.start == "teacher" and isinstance(teacher.network, FlowNetwork):
        same_kind = config.network is None or type(config.network) is type(teacher.network.config)
        if same_kind:
            student, summary = from_teacher(teacher.network, config.network)
            return student, f"from {teacher.name}: {summary}"
    network = _network_config(config, teacher)
    return Student(networks.build(network.for_training(second_time=True))), "from scratch"


def _init_from_pipeline(config: TrainConfig, network: DiffusersNetwork, provenance: Provenance) -> tuple[Student, str]:
    """The student of a pipeline, which has its teacher's network."""
    if config.network is not None or config.start == "scratch":
        raise BadInput("the student of a pipeline of diffusers starts as its network: leave 'network' and 'start' out")
    if config.trainer.compile:
        raise BadInput("trainer.compile is for networks of this program; the student of a pipeline is not compiled")
    assert provenance.teacher is not None
    student, summary = from_pipeline(network, config.lora, resolve(provenance.teacher).base_weights)
    return student, f"from {provenance.teacher}: {summary}"


def _network_config(config: TrainConfig, teacher: Teacher) -> FlowNetworkConfig:
    """The architecture that is asked for, by default the teacher's."""
    if config.network is not None:
        return config.network
    if isinstance(teacher.network, DiffusersNetwork):
        raise BadInput(f"recipe {config.recipe.name} trains a network of this program: give 'network'")
    if teacher.network is None:
        raise BadInput(
            f"teacher {teacher.name} has no network to start from: give 'network' to train one from scratch, such as "
            f"--set network='{networks.network_for(teacher.shape)}'"
        )
    return teacher.network.config


def _check_fits(network: FlowNetworkConfig, plan: Plan) -> None:
    if (network.shape, network.num_classes) != (plan.shape, plan.num_classes):
        advice = f"leave {', '.join(network.of_data[:-1])} and {network.of_data[-1]} out of it to take the data's"
        if isinstance(network, UNetConfig) and len(plan.shape) != 3:
            advice = "a U-Net is for images [C, H, W]; give a network of family mlp"
        raise BadInput(
            f"wanted a network for {list(plan.shape)} and {plan.num_classes} classes as the data; "
            f"it is for {list(network.shape)} and {network.num_classes}: {advice}"
        )


def read_input(config: TrainConfig, task: Task, ranks: Ranks, step: int) -> StepInput:
    """The input of `step` on the CPU; it depends on (seed, step) and the rank alone, so that it can be read ahead."""
    settings, terms = config.trainer, config.recipe.phase(step, config.trainer.num_steps).terms
    share = settings.batch_size // ranks.world
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    noise_shape = task.network.config.shape if any(term.draws_noise for term in terms) else None
    draws = draw(config.seed, step, settings.batch_size, mine, len(terms), noise_shape, settings.num_steps)
    return StepInput(task.stream.batch(step, ranks.rank, ranks.world), draws)
