"""The models that are evaluated: a student and its teacher, or only a trained teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.prompts import HeldOut
from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.networks import DiffusersNetwork, Network, num_labels, picture_shape
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import is_url, open_store
from pipeline.teachers.classes import trained_labels
from pipeline.teachers.loading import TeacherSource, find_decoder, load_teacher, resolve_recorded
from pipeline.teachers.teacher import Decode, Teacher
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import Model
from trainer.distillation.student import Student

NO_TEACHER = "none"


@dataclass(frozen=True)
class EvaluatedModels:
    """A checkpoint and its networks: a student, usually with its teacher, or a teacher."""

    folder: Path
    info: CheckpointInfo
    weights: Path  # the file of `network`
    weights_sha256: str
    network: Network
    teacher: Teacher | None
    student: Student | None
    decode: Decode | None = None  # of latents
    prompts: HeldOut | None = None  # what its labels stand for, instead of the training's prompts
    has_own_code: bool = False  # whether the teacher is a function of the user's, see `TeacherSource.is_function`

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.config.shape

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of a sample as it is shown; () where samples are latents without a decoder."""
        return picture_shape(self.network.config, self.decode is not None)

    @property
    def num_classes(self) -> int:
        """Or of the prompts."""
        return num_labels(self.network)

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The classes that were trained, where some were not; None: all."""
        return trained_labels(self.info.classes, self.num_classes)

    @property
    def data_range(self) -> tuple[float, float]:
        return self.info.data_range if self.teacher is None else self.teacher.data_range

    @property
    def t_start(self) -> float:
        return self.info.t_start if self.teacher is None else self.teacher.t_start

    @property
    def t_end(self) -> float:
        return self.info.t_end if self.teacher is None else self.teacher.t_end

    @property
    def run(self) -> Path:
        """The folder of the training run, or of the checkpoint if that is not in a run."""
        return _run_of(self.folder)

    @property
    def training_data(self) -> str | None:
        """See `find_training_data`."""
        return find_training_data(self.folder, self.info)

    def networks(self) -> dict[str, Network]:
        """The networks by "teacher" and "student"; a teacher that is only a function has none."""
        teacher, networks = self.teacher, dict[str, Network]()
        if teacher is not None and teacher.network is not None:
            networks["teacher"] = teacher.network
        if self.student is not None:
            networks["student"] = self.network
        return networks


def _run_of(folder: Path) -> Path:
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def find_training_data(folder: Path, info: CheckpointInfo) -> str | None:
    """The trajectories of a checkpoint's training: where they were then, or in the whole run if that was moved.

    None where it was trained on none.
    """
    recorded: str | None = info.config.get("data")
    beside = _run_of(folder).parent / "data"
    if recorded is None or is_url(recorded) or Path(recorded).is_dir() or not (beside / MANIFEST).is_file():
        return recorded
    return str(beside) if read_manifest(open_store(str(beside))).sha256 == info.data_sha256 else recorded


def open_models(
    model: Model, teacher: str | None, device: torch.device, prompts: HeldOut | None = None
) -> EvaluatedModels:
    """Load `model` and, for a student, its teacher; both draw from `prompts`, where they draw from any.

    `teacher` says where a student's teacher is now; None: where it was in training; "none": evaluate without it.

    Raises:
        BadInput: the weights cannot be loaded, the teacher is not the student's, or a student of prompts has none.
    """
    folder, info, file = model.folder, model.info, model.weights
    network = model.load().to(device).requires_grad_(False)
    _take_prompts(folder, network, prompts)
    source = find_teacher(model, teacher)
    loaded_teacher = _load_teacher(model, teacher, source, device, network)
    student = Student(network) if info.trains == "student" else None
    if loaded_teacher is not None and (
        loaded_teacher.shape != network.config.shape
        or (prompts is None and loaded_teacher.num_classes != network.config.num_classes)
    ):
        raise BadInput(f"{file}: wanted the samples and classes of its teacher {loaded_teacher.name}; it has others")
    decode = loaded_teacher.decode if loaded_teacher is not None else find_decoder(info.teacher, device)
    return EvaluatedModels(
        folder,
        info,
        file,
        file_sha256(file),
        network,
        loaded_teacher,
        student,
        decode,
        prompts,
        has_own_code=source is not None and source.is_function,
    )


def _take_prompts(folder: Path, network: Network, prompts: HeldOut | None) -> None:
    if not isinstance(network, DiffusersNetwork) or not network.family.takes_prompts:
        return
    if prompts is None:
        raise BadInput(
            f"{folder}: it draws from prompts, which its teacher's text encoders encode: leave teacher=none out"
        )
    network.conditions = prompts.table


def find_teacher(model: Model, teacher: str | None) -> TeacherSource | None:
    """What loads the teacher of the student `model`, see `open_models`; None for a teacher itself, or without it.

    Raises:
        BadInput: it names none, or code that this user has not named before.
    """
    if model.info.trains == "teacher" or teacher == NO_TEACHER:
        return None
    if not teacher and model.info.teacher is None:
        raise BadInput(
            f"{model.folder}: wanted its teacher, which it does not name: give --teacher TEACHER, or --teacher none"
        )
    with or_without():
        return resolve_recorded(
            model.info.teacher or "", teacher or None, f"{model.folder}/{checkpoint.INFO}", "--teacher "
        )


@contextmanager
def or_without(elsewhere: str = "") -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{error}; {elsewhere}--teacher {NO_TEACHER} evaluates without it") from error


def _load_teacher(
    model: Model, teacher: str | None, source: TeacherSource | None, device: torch.device, network: Network
) -> Teacher | None:
    folder, info, file = model.folder, model.info, model.weights
    if info.trains == "teacher":
        if teacher:
            raise BadInput(f"{folder} is a teacher itself: leave 'teacher' out")
        return load_teacher(str(folder if file.name == checkpoint.EMA else file), device)
    if source is None:
        return None
    with or_without("" if teacher else "--teacher PATH says where it is, "):
        if isinstance(network, DiffusersNetwork):  # on the same conditions
            size, conditions = network.config.image_size, network.conditions
            loaded = source.load(device, info.guidance_scale, size=size, conditions=conditions)
        else:
            loaded = source.load(device, info.guidance_scale)
    if loaded.sha256 != info.teacher_sha256:
        raise BadInput(f"{folder} was distilled from another teacher than {loaded.name}: the weights differ")
    return loaded
