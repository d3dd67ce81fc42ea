"""The check of a loaded pipeline: our velocity beside what the stock pipeline hands to its own scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import WorkFailed, one_line
from pipeline.networks.diffusers.family import unpack
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.schedule import NoiseSchedule
from pipeline.networks.diffusers.weights import quiet
from pipeline.teachers.diffusers.folder import PipelineFolder
from pipeline.teachers.diffusers.stock import assemble, call_arguments
from pipeline.teachers.teacher import Teacher

NUM_STEPS = 2
TOLERANCE = 1e-3  # of the largest value: rounding in another order makes less, a wrong convention far more


@dataclass(frozen=True)
class Recorded:
    """One call of a pipeline's scheduler, in this program's terms."""

    x: Tensor  # [B, C, H, W]
    t: Tensor  # [B]
    velocity: Tensor  # [B, C, H, W]


def self_check(folder: PipelineFolder, teacher: Teacher, guidance_scale: float) -> None:
    """Raises `WorkFailed` unless `teacher`, guided by `guidance_scale`, is what its own pipeline integrates."""
    try:
        error = largest_difference(folder, teacher, guidance_scale)
    except Exception as problem:  # a pipeline raises whatever it meets
        text = one_line(problem)[:300]
        raise WorkFailed(
            f"teacher {teacher.name}: its own pipeline fails ({type(problem).__name__}: {text})"
        ) from problem
    if not error <= TOLERANCE:  # nor if it is not a number
        raise WorkFailed(
            f"teacher {teacher.name}: its own pipeline computes another velocity, {error:.1e} of the largest value "
            "off: this version of diffusers calls the network in another way than is known here"
        )


def largest_difference(folder: PipelineFolder, teacher: Teacher, guidance_scale: float) -> float:
    """The largest difference of our velocity from the pipeline's over a few steps, relative to its largest value."""
    worst = 0.0
    for recorded in record(folder, teacher, guidance_scale):
        label = torch.zeros(len(recorded.x), dtype=torch.int64, device=recorded.x.device)
        with torch.no_grad():
            ours = teacher.velocity(recorded.x, recorded.t, label if teacher.num_classes else None)
        worst = max(worst, float((ours - recorded.velocity).abs().max() / recorded.velocity.abs().max()))
    return worst


def record(folder: PipelineFolder, teacher: Teacher, guidance_scale: float) -> list[Recorded]:
    """What the stock pipeline hands to its scheduler in a few steps on the condition of label 0."""
    network = teacher.network
    assert isinstance(network, DiffusersNetwork)
    schedule = network.config.schedule
    with quiet():
        pipeline = assemble(folder, network.model, _scheduler(folder, network.config.schedule))
    with _recorded(pipeline.scheduler) as calls, torch.no_grad(), quiet():
        pipeline(**call_arguments(pipeline, network, guidance_scale, NUM_STEPS))
    sigmas = None if schedule is not None else pipeline.scheduler.sigmas
    shape = (-1, *network.config.shape)
    return [_in_our_terms(call, shape, schedule, None if sigmas is None else sigmas[i]) for i, call in enumerate(calls)]


def _scheduler(folder: PipelineFolder, schedule: NoiseSchedule | None) -> Any:
    """The pipeline's own scheduler; of a model that predicts noise DDIM, whose states keep their variance."""
    import diffusers

    if schedule is not None:
        return diffusers.DDIMScheduler.from_config(folder.scheduler_config, clip_sample=False)
    return getattr(diffusers, folder.index["scheduler"][1]).from_config(folder.scheduler_config)


@contextmanager
def _recorded(scheduler: Any) -> Iterator[list[tuple[Tensor, Any, Tensor]]]:
    calls: list[tuple[Tensor, Any, Tensor]] = []
    step = scheduler.step

    def recording(output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append((output.clone(), timestep, sample.clone()))
        return step(output, timestep, sample, *arguments, **options)

    scheduler.step = recording
    yield calls


def _in_our_terms(
    call: tuple[Tensor, Any, Tensor], shape: tuple[int, ...], schedule: NoiseSchedule | None, sigma: Tensor | None
) -> Recorded:
    output, step, sample = call
    output, sample = (_first(value.float(), shape) for value in (output, sample))
    if schedule is None:
        assert sigma is not None
        return Recorded(sample, sigma.float().expand(len(sample)).to(sample.device), output)
    t = schedule.log_sigmas[int(step)].sigmoid().float().expand(len(sample)).to(sample.device)
    time = t.view(-1, 1, 1, 1)
    x = sample * torch.hypot(1 - time, time)
    return Recorded(x, t, schedule.velocity(output, x, t))


def _first(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The latents of the first picture: some pipelines repeat it for its guidance, or pack it."""
    if value.ndim == 3:
        return unpack(value, (len(value), *shape[1:]))
    return value.reshape(-1, *shape[1:])[:1]
