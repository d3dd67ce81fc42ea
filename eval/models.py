"""What is evaluated: a student beside its teacher, or a trained teacher alone."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import Network
from pipeline.storage.hashing import file_sha256
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.distillation.student import Student

NO_TEACHER = "none"


@dataclass(frozen=True)
class EvaluatedModels:
    """A checkpoint and what it holds. One of `teacher` and `student` is there, or both are."""

    folder: Path
    info: CheckpointInfo
    weights: Path  # the file that was taken
    weights_sha256: str
    network: Network  # in it
    teacher: Teacher | None
    student: Student | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.config.shape

    @property
    def num_classes(self) -> int:
        return self.network.config.num_classes

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
        """The folder of the training run, or of the checkpoint where that lies alone."""
        return self.folder.parent.parent if self.folder.parent.name == "checkpoints" else self.folder

    def networks(self) -> dict[str, Network]:
        """The networks at hand, by what they are."""
        found = {} if self.teacher is None or self.teacher.network is None else {"teacher": self.teacher.network}
        return found if self.student is None else {**found, "student": self.network}


def open_subject(path: Path, weights: str, teacher: str | None, device: torch.device) -> EvaluatedModels:
    """The checkpoint at `path`, or the newest of the run there, with its weights of the name `weights`.

    `teacher` says where a student's teacher is, if not where it was, or "none" to go without.

    Raises:
        BadInput: no checkpoint, no such weights in it, or another teacher than the student's.
    """
    folder = checkpoint.find(path)
    info = checkpoint.read_info(folder)
    file = folder / f"{weights}.safetensors"
    if not file.is_file():
        held = [found.stem for found in sorted(folder.glob("*.safetensors")) if found.name != checkpoint.OPTIMIZER]
        raise BadInput(
            f"{folder}: wanted the weights {weights!r} ({file.name}); it holds {', '.join(held) or 'none'}: "
            "name one of these with --set weights=NAME, or take another checkpoint"
        )
    network = networks.load(file).to(device).requires_grad_(False)
    if network.config.second_time != (info.trains == "student"):
        raise BadInput(f"{file}: wanted the network of a {info.trains}, as its checkpoint.json says; it is another one")
    loaded = _load_teacher(folder, info, file, teacher, device)
    student = Student(network) if info.trains == "student" else None
    if loaded is not None and (loaded.shape, loaded.num_classes) != (network.config.shape, network.config.num_classes):
        raise BadInput(f"{file}: its samples or classes are not those of its teacher {loaded.name}")
    return EvaluatedModels(folder, info, file, file_sha256(file), network, loaded, student)


def _load_teacher(
    folder: Path, info: CheckpointInfo, file: Path, given: str | None, device: torch.device
) -> Teacher | None:
    if info.trains == "teacher":
        if given:
            raise BadInput(f"{folder} is a teacher itself; 'teacher' is for a student")
        return load_teacher(str(folder if file.name == checkpoint.EMA else file), device)
    if given == NO_TEACHER:
        return None
    source = given or info.teacher
    if source is None:
        raise BadInput(f"{folder}: wanted its teacher, which it does not name; give --set teacher=..., or teacher=none")
    try:
        teacher = load_teacher(source, device, info.guidance_scale)
    except BadInput as error:
        raise BadInput(f"{error}; --set teacher=PATH says where it is, teacher=none evaluates without it") from error
    if teacher.sha256 != info.teacher_sha256:
        raise BadInput(f"the checkpoint was distilled from another teacher than {teacher.name}: its weights differ")
    return teacher
