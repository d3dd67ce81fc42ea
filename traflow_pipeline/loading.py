"""From a path, a URL or a name to what it holds: a student, a teacher or a data set."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.common.config import given, validate
from pipeline.common.device import pick_device
from pipeline.common.errors import BadInput
from pipeline.common.module_files import name_instead
from pipeline.dataset.conditions import Prompts
from pipeline.dataset.manifest import read_manifest
from pipeline.flow.solver import Solver
from pipeline.generation.config import PictureSettings
from pipeline.networks import DiffusersNetwork, Network
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import open_store
from pipeline.teachers import loading
from pipeline.teachers.loading import TeacherSource
from pipeline.teachers.teacher import Teacher
from traflow_pipeline.sample_source import SampleSource, of_teacher
from traflow_pipeline.student_sampler import StudentSampler
from traflow_pipeline.trajectory_dataset import TrajectoryDataset
from trainer.checkpoints.model import DEFAULT_WEIGHTS, Model, find_model
from trainer.distillation.student import Student


def load_student(
    path: str | Path, *, device: str = "auto", weights: str = DEFAULT_WEIGHTS, prompts: Sequence[str] | None = None
) -> StudentSampler:
    """The student at `path`: a run, of which the newest checkpoint counts, a checkpoint, a file of weights, or a URL.

    `device` is auto, cpu, cuda, cuda:1, ...; `weights` is ema, network, or the name of another average. A student of
    prompts draws from `prompts`, by default from those of its training.

    Raises:
        BadInput: no such device, no model, no such weights, damaged ones, or a teacher's; or prompts for a student of
            none, or whose teacher, which encodes them, has gone.
        WorkFailed: the run at a URL cannot be read.
    """
    return _sampler_of(find_model(path, weights), pick_device(device), None if prompts is None else tuple(prompts))


def _sampler_of(model: Model, device: torch.device, prompts: str | tuple[str, ...] | None = None) -> StudentSampler:
    if model.info.trains != "student":
        raise BadInput(f"{model.weights}: wanted a student; it is a trained teacher: use load_teacher")
    network = model.load()
    settings = "" if prompts is None else _take_prompts(model, network, device, prompts)
    network = network.to(device).requires_grad_(False)
    decode = loading.find_decoder(model.info.teacher, device)
    return StudentSampler(
        model.folder, model.info, Student(network), device, file_sha256(model.weights), decode, settings
    )


def _take_prompts(model: Model, network: Network, device: torch.device, given: str | tuple[str, ...]) -> str:
    """Let `network` draw from the prompts that are `given`, or in a file; what tells them from others."""
    if not isinstance(network, DiffusersNetwork) or model.info.teacher is None:
        raise BadInput(f"{model.weights}: a student without prompts; leave --prompt and --prompts out")
    source = loading.resolve(model.info.teacher)
    prompts = source.prompts(given, None)
    network.conditions = source.encoded(prompts, device, ahead=True)
    return _told(prompts)


def _told(prompts: Prompts | None) -> str:
    return "" if prompts is None else f", prompts {hashlib.sha256(prompts.dumped()).hexdigest()}"


def open_source(
    path: str | None,
    teacher: str | None,
    *,
    weights: str = DEFAULT_WEIGHTS,
    steps: int | None = None,
    solver: str | None = None,
    guidance_scale: float = 1.0,
    prompts: str | tuple[str, ...] | None = None,
    negative_prompt: str | None = None,
    size: str | None = None,
    device: str = "auto",
) -> SampleSource:
    """What samples are drawn from: the student or trained teacher at `path`, see `load_student`, or a teacher.

    A student takes `steps` steps, by default one. A teacher takes `steps` steps of `solver`, by default Euler's; or,
    without `steps`, those of an adaptive solver, by default dopri5. `prompts` is a file of them, or they themselves.

    Raises:
        BadInput: see `load_student` and `load_teacher`; both or neither is given; or a setting is not one of its kind.
    """
    if (path is None) == (teacher is None):
        raise BadInput("sample: wanted a checkpoint or a run, or --teacher TEACHER, and one of them only")
    where = pick_device(device)
    if path is not None:
        model = find_model(path, weights)
        if model.info.trains == "student":
            of_teachers = {
                "--solver": solver,
                "--guidance-scale": guidance_scale if guidance_scale != 1 else None,
                "--negative-prompt": negative_prompt,
                "--size": size,
            }
            if named := [flag for flag, value in of_teachers.items() if value is not None]:
                raise BadInput(f"{path}: a student takes --steps and prompts only; {named[0]} is a teacher's")
            return _sampler_of(model, where, prompts).source(steps or 1)
        teacher = str(model.weights)
    elif weights != DEFAULT_WEIGHTS:
        raise BadInput(f"--weights {weights}: a teacher has one set of weights; leave --weights out")
    assert teacher is not None
    settings = {"name": solver or ("dopri5" if steps is None else "euler"), "num_steps": steps}
    chosen = validate(Solver, given(settings), "solver")
    found = loading.resolve(teacher)
    read = found.prompts(prompts, negative_prompt)
    guidance = "" if guidance_scale == 1 else f", guidance {guidance_scale:g}"
    drawn_at = "" if size is None else f", size {size}"
    opened = _open(found, where, guidance_scale, read, size)
    return of_teacher(opened, chosen, where, f"{guidance}{_told(read)}{drawn_at}")


def open_teacher(
    source: str,
    device: torch.device,
    guidance_scale: float = 1.0,
    prompts: str | None = None,
    negative_prompt: str | None = None,
    size: str | None = None,
) -> Teacher:
    """The teacher that `source` names on `device`; a pipeline of diffusers with its prompts, encoded when asked for.

    Raises:
        BadInput: as `load_teacher`; or prompts or a size are missing, wrong, or for another kind of teacher.
    """
    named = loading.resolve(source)
    return _open(named, device, guidance_scale, named.prompts(prompts, negative_prompt), size)


def _open(
    source: TeacherSource, device: torch.device, guidance_scale: float, prompts: Prompts | None, size: str | None
) -> Teacher:
    sides = None if size is None else validate(PictureSettings, {"size": size}, "--size").size
    return source.load(device, guidance_scale, size=sides, conditions=source.encoded(prompts, device, ahead=True))


def load_teacher(source: str | Path, *, device: str = "auto", guidance_scale: float = 1.0) -> Teacher:
    """The teacher that `source` names, under classifier-free guidance if `guidance_scale` is not 1.

    `source` is whatever `--teacher` takes: a name in `traflow-pipeline teachers`, a path, or "module:factory".

    Raises:
        BadInput: no such device, `source` is none of these or not a teacher, or it cannot be guided.
    """
    if callable(source):
        raise BadInput(f"load_teacher(): {name_instead(source)}")
    return loading.load_teacher(str(source), pick_device(device), guidance_scale, quiet=True)


def open_dataset(path: str | Path) -> TrajectoryDataset:
    """The data set in the folder or at the URL `path`, of which every record has been generated.

    Raises:
        BadInput: there is none, or records are missing.
        WorkFailed: it cannot be read.
    """
    return TrajectoryDataset(read_manifest(open_store(str(path))))
