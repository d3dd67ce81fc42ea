"""Stage 3: evaluate() scores a student beside its teacher on the same noise, or a trained teacher alone."""

import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from eval import cost, metrics
from eval.features import FEATURES, FeatureSpace
from eval.report import Report, Row
from eval.sampler import Sampler, draw_samples, student_sampler, teacher_sampler
from pipeline import networks
from pipeline.config import parse_count, write_resolved
from pipeline.device import pick_device
from pipeline.errors import BadInput, WorkFailed
from pipeline.pictures import to_bytes
from pipeline.progress import Advance, bar
from pipeline.solver import Solver
from pipeline.teachers import load_teacher
from pipeline.teachers.teacher import Teacher
from trainer import checkpoint
from trainer.checkpoint import CheckpointInfo
from trainer.images import ImageSet, load_images
from trainer.student import Student

NUM_PICTURES = 16


class EvaluateConfig(BaseModel):
    """What `traflow-pipeline evaluate` takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path
    out: Path
    reference: str = "digits"
    features: str = "digits"
    num_samples: Annotated[int, BeforeValidator(parse_count), Field(ge=metrics.MIN_SAMPLES)] = 4096
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8)
    teacher_solver: Solver = Solver()
    teacher: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int = Field(default=256, ge=1)
    device: str = "auto"


@dataclass(frozen=True)
class Reference:
    """What samples are measured against."""

    space: FeatureSpace
    features: metrics.Features
    moments: metrics.Moments


def evaluate(config: EvaluateConfig) -> Report:
    """Sample the checkpoint and its teacher, measure both, and write the report into `config.out`.

    Raises:
        BadInput: a checkpoint, reference, feature space or teacher that do not fit together.
        WorkFailed: samples that are not finite.
    """
    device = pick_device(config.device)
    if config.out.is_file():
        raise BadInput(f"{config.out} is a file; wanted a folder for the report")
    folder = checkpoint.find(config.checkpoint)
    info = checkpoint.read_info(folder)
    teacher = _load_teacher(config, folder, info, device)
    student = Student(networks.load(folder / checkpoint.EMA).to(device)) if info.trains == "student" else None
    images = load_images(config.reference)
    reference = _measure_reference(config, images, teacher)

    exact = teacher_sampler(teacher, config.teacher_solver)
    samplers = [exact]
    samplers += [teacher_sampler(teacher, Solver(name="euler", num_steps=n)) for n in config.steps]
    if student is not None:
        samplers += [student_sampler(student, n, info.t_start, info.t_end) for n in config.steps]
    rows, pictures, truth = [], {}, None
    with bar("evaluate", len(samplers) * config.num_samples) as advance:
        for sampler in samplers:
            drawn = _draw(config, sampler, teacher, device, advance)
            truth = drawn.samples if truth is None else truth
            rows.append(_score(sampler, drawn, truth, reference, teacher.data_range))
            pictures[f"{sampler.model}, {sampler.name}"] = to_bytes(drawn.samples[:NUM_PICTURES], teacher.data_range)
    report = Report(
        rows=rows,
        feature_space=reference.space.name,
        reference=f"{len(images)} images of {images.name}",
        num_samples=config.num_samples,
        cost={name: asdict(cost.measure(net)) for name, net in _networks(student, teacher).items()},
        checkpoint=str(folder),
        training=info.model_dump(mode="json"),
        machine=machine(device),
        date=date.today().isoformat(),
        pictures=pictures,
    )
    write_resolved(config.out / "evaluate.yaml", config, "evaluate")
    report.write(config.out)
    return report


@dataclass(frozen=True)
class Drawn:
    """All samples of one sampler, float32 [N, C, H, W]."""

    samples: NDArray[np.float32]
    nfe: float
    images_per_second: float


def _draw(config: EvaluateConfig, sampler: Sampler, teacher: Teacher, device: torch.device, advance: Advance) -> Drawn:
    samples: list[NDArray[np.float32]] = []
    evaluations, seconds = 0, 0.0
    title = f"{sampler.model}, {sampler.name}"
    for batch in draw_samples(
        sampler, teacher.shape, teacher.num_classes, config.seed, config.num_samples, config.batch_size, device
    ):
        if not torch.isfinite(batch.samples).all():
            raise WorkFailed(f"{title}: a sample of batch {len(samples)} is not finite")
        samples.append(batch.samples.numpy())
        evaluations += batch.nfe * len(batch.samples)
        seconds += batch.wall_seconds
        advance(len(batch.samples), title)
    return Drawn(np.concatenate(samples), evaluations / config.num_samples, config.num_samples / seconds)


def _score(
    sampler: Sampler,
    drawn: Drawn,
    truth: NDArray[np.float32],
    reference: Reference,
    data_range: tuple[float, float],
) -> Row:
    features = reference.space.extract(to_bytes(drawn.samples, data_range))
    precision, recall = metrics.precision_recall(features, reference.features)
    return Row(
        model=sampler.model,
        sampler=sampler.name,
        nfe=round(drawn.nfe, 1),
        frechet_distance=metrics.frechet_distance(metrics.moments(features), reference.moments),
        precision=precision,
        recall=recall,
        teacher_rmse=float(np.sqrt(np.mean((drawn.samples - truth) ** 2))),
        images_per_second=drawn.images_per_second,
    )


def _load_teacher(config: EvaluateConfig, folder: Path, info: CheckpointInfo, device: torch.device) -> Teacher:
    if info.teacher is None:
        if config.teacher:
            raise BadInput(f"{folder} is a teacher itself; 'teacher' is for a student")
        return load_teacher(str(folder), device)
    teacher = load_teacher(config.teacher or info.teacher, device, info.guidance_scale)
    if teacher.sha256 != info.teacher_sha256:
        raise BadInput(f"the checkpoint was distilled from another teacher than {teacher.name}: its weights differ")
    return teacher


def _measure_reference(config: EvaluateConfig, images: ImageSet, teacher: Teacher) -> Reference:
    if config.features not in FEATURES:
        raise BadInput(f"no features {config.features!r}: wanted one of {', '.join(FEATURES)}")
    space = FEATURES[config.features]()
    for name, shape in ((config.reference, images.shape), (teacher.name, teacher.shape)):
        if shape != space.shape:
            raise BadInput(f"{name}: wanted images of {list(space.shape)} for {space.name}; they are {list(shape)}")
    if len(images) < metrics.MIN_SAMPLES:
        raise BadInput(f"{config.reference}: wanted at least {metrics.MIN_SAMPLES} images; it holds {len(images)}")
    features = space.extract(images.images)
    return Reference(space, features, metrics.moments(features))


def _networks(student: Student | None, teacher: Teacher) -> dict[str, networks.Network]:
    found = {} if teacher.network is None else {"teacher": teacher.network}
    return found if student is None else {**found, "student": student.network}


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
