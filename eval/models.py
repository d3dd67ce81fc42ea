"""The models that are evaluated: a student and its teacher, or only a trained teacher."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.networks import DiffusersNetwork, Network, picture_shape
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import is_url, open_store
from pipeline.teachers.classes import trained_labels
from pipeline.teachers.loading import find_decoder, load_teacher, resolve_recorded
from pipeline.teachers.teacher import Decode, Teacher
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import find_model
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

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.config.shape

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Of a sample as it is shown; () where samples are latents without a decoder."""
        return picture_shape(self.network.config, self.decode is not None)

    @property
    def num_classes(self) -> int:
        return self.network.config.num_classes

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
        return self.folder.parent.parent if self.folder.parent.name == "checkpoints" else self.folder

    @property
    def training_data(self) -> str | None:
        """The trajectories of the training: where they were then, or in the whole run if that was moved; None: none."""
        recorded: str | None = self.info.config.get("data")
        beside = self.run.parent / "data"
        if recorded is None or is_url(recorded) or Path(recorded).is_dir() or not (beside / MANIFEST).is_file():
            return recorded
        return str(beside) if read_manifest(open_store(str(beside))).sha256 == self.info.data_sha256 else recorded

    def networks(self) -> dict[str, Network]:
        """The networks by "teacher" and "student"; a teacher that is only a function has none."""
        teacher, networks = self.teacher, dict[str, Network]()
        if teacher is not None and teacher.network is not None:
            networks["teacher"] = teacher.network
        if self.student is not None:
            networks["student"] = self.network
        return networks


def open_models(source: str | Path, weights: str, teacher: str | None, device: torch.device) -> EvaluatedModels:
    """Load the model that `source` names, with its weights called `weights`; see `find_model`.

    `teacher` says where a student's teacher is now; None: where it was in training; "none": evaluate without it.

    Raises:
        BadInput: there is no checkpoint, it lacks those weights, or the teacher is not the student's.
    """
    model = find_model(source, weights)
    folder, info, file = model.folder, model.info, model.weights
    network = model.load().to(device).requires_grad_(False)
    loaded_teacher = _load_teacher(folder, info, file, teacher, device, network)
    student = Student(network) if info.trains == "student" else None
    if loaded_teacher is not None and (loaded_teacher.shape, loaded_teacher.num_classes) != (
        network.config.shape,
        network.config.num_classes,
    ):
        raise BadInput(f"{file}: wanted the samples and classes of its teacher {loaded_teacher.name}; it has others")
    decode = loaded_teacher.decode if loaded_teacher is not None else find_decoder(info.teacher, device)
    return EvaluatedModels(folder, info, file, file_sha256(file), network, loaded_teacher, student, decode)


def _load_teacher(
    folder: Path, info: CheckpointInfo, file: Path, source: str | None, device: torch.device, network: Network
) -> Teacher | None:
    if info.trains == "teacher":
        if source:
            raise BadInput(f"{folder} is a teacher itself: leave 'teacher' out")
        return load_teacher(str(folder if file.name == checkpoint.EMA else file), device)
    if source == NO_TEACHER:
        return None
    if not source and info.teacher is None:
        raise BadInput(f"{folder}: wanted its teacher, which it does not name; give --set teacher=..., or teacher=none")
    try:
        found = resolve_recorded(
            info.teacher or "", source or None, f"{folder}/{checkpoint.INFO}", "--set teacher=NAME"
        )
        if isinstance(network, DiffusersNetwork):  # on the same conditions
            size, conditions = network.config.image_size, network.conditions
            teacher = found.load(device, info.guidance_scale, size=size, conditions=conditions)
        else:
            teacher = found.load(device, info.guidance_scale)
    except BadInput as error:
        raise BadInput(f"{error}; --set teacher=PATH says where it is, teacher=none evaluates without it") from error
    if teacher.sha256 != info.teacher_sha256:
        raise BadInput(f"{folder} was distilled from another teacher than {teacher.name}: the weights differ")
    return teacher
