"""From a path, a URL or a name to what it holds: a student, a teacher or a data set."""

from pathlib import Path

from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput
from pipeline.dataset.manifest import read_manifest
from pipeline.storage.store import open_store
from pipeline.teachers import loading
from pipeline.teachers.teacher import Teacher
from traflow_pipeline.student_sampler import StudentSampler
from traflow_pipeline.trajectory_dataset import TrajectoryDataset
from trainer.checkpoints.model import find_model
from trainer.distillation.student import Student


def load_student(path: str | Path, *, device: str = "auto") -> StudentSampler:
    """The student at `path`: a run, of which the newest checkpoint counts, a checkpoint, a file of weights, or a URL.

    `device` is auto, cpu, cuda, cuda:1, ...

    Raises:
        BadInput: no such device, no model, damaged weights, or a teacher's.
        WorkFailed: the run at a URL cannot be read.
    """
    where = pick_device(device)
    model = find_model(path)
    if model.info.trains != "student":
        raise BadInput(f"{model.weights}: wanted a student; it is a trained teacher: use load_teacher")
    network = model.load().to(where).requires_grad_(False)
    return StudentSampler(model.folder, model.info, Student(network), where)


def load_teacher(source: str | Path, *, device: str = "auto", guidance_scale: float = 1.0) -> Teacher:
    """The teacher that `source` names, under classifier-free guidance if `guidance_scale` is not 1.

    `source` is whatever `--teacher` takes: a name in `traflow-pipeline teachers`, a path, or "module:factory".

    Raises:
        BadInput: no such device, `source` is none of these or not a teacher, or it cannot be guided.
    """
    return loading.load_teacher(str(source), pick_device(device), guidance_scale, quiet=True)


def open_dataset(path: str | Path) -> TrajectoryDataset:
    """The data set in the folder or at the URL `path`, of which every record has been generated.

    Raises:
        BadInput: there is none, or records are missing.
        WorkFailed: it cannot be read.
    """
    return TrajectoryDataset(read_manifest(open_store(str(path))))
