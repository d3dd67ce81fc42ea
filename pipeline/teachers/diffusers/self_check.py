"""The check of a loaded pipeline: our velocity beside what the stock pipeline hands to its own scheduler."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import WorkFailed, one_line
from pipeline.networks.diffusers.family import unpack
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.schedule import NoiseSchedule
from pipeline.networks.diffusers.weights import quiet
from pipeline.teachers.diffusers.folder import PipelineFolder, read_json
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
        pipeline = _assemble(folder, network)
    with _recorded(pipeline.scheduler) as calls, torch.no_grad(), quiet():
        pipeline(**_arguments(pipeline, network, guidance_scale))
    sigmas = None if schedule is not None else pipeline.scheduler.sigmas
    shape = (-1, *network.config.shape)
    return [_in_our_terms(call, shape, schedule, None if sigmas is None else sigmas[i]) for i, call in enumerate(calls)]


class _WithoutWeights:
    """Stands in a VAE's place where only its configuration counts; it decodes nothing."""

    dtype = torch.float32

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(**config)
        self.temperal_downsample = config.get("temperal_downsample", ())

    def decode(self, latents: Tensor, **_: Any) -> Any:
        return SimpleNamespace(sample=latents)


def _assemble(folder: PipelineFolder, network: DiffusersNetwork) -> Any:
    """The stock pipeline around `network`, without text encoders, and with a deterministic scheduler."""
    import diffusers

    kind = getattr(diffusers, folder.pipeline)
    scheduler = getattr(diffusers, folder.index["scheduler"][1]).from_config(folder.scheduler_config)
    if network.config.schedule is not None:
        scheduler = diffusers.DDIMScheduler.from_config(folder.scheduler_config, clip_sample=False)
    parts: dict[str, Any] = {folder.family.folder: network.model, "scheduler": scheduler}
    if folder.family.is_latent:
        parts["vae"] = _WithoutWeights(read_json(folder.path / "vae" / "config.json"))
    required = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    pipeline = kind(**{name: None for name in required if name != "self"} | parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _recorded(scheduler: Any) -> Iterator[list[tuple[Tensor, Any, Tensor]]]:
    calls: list[tuple[Tensor, Any, Tensor]] = []
    step = scheduler.step

    def recording(output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append((output.clone(), timestep, sample.clone()))
        return step(output, timestep, sample, *arguments, **options)

    scheduler.step = recording
    yield calls


def _arguments(pipeline: Any, network: DiffusersNetwork, guidance_scale: float) -> dict[str, Any]:
    """The arguments of the pipeline's call that draw one picture for label 0."""
    family, takes = network.family, inspect.signature(type(pipeline).__call__).parameters
    height, width = network.config.image_size
    wanted: dict[str, Any] = {
        "num_inference_steps": NUM_STEPS,
        "output_type": "latent",
        "height": height,
        "width": width,
    }
    wanted |= {"use_resolution_binning": False, "prompt": None, "negative_prompt": None, "class_labels": [0]}
    wanted |= {
        "generator": torch.Generator().manual_seed(0),
        family.guidance_argument: family.pipeline_guidance(guidance_scale),
    }
    if "class_labels" in takes or not family.takes_prompts:  # those that decode whatever is asked
        wanted["output_type"] = "np"
    if family.takes_prompts:
        wanted |= _embeddings(network, family.takes_negative and guidance_scale != 1)
    return {name: value for name, value in wanted.items() if name in takes}


def _embeddings(network: DiffusersNetwork, with_negative: bool) -> dict[str, Any]:
    device = next(network.parameters()).device
    found: dict[str, Any] = dict(network.rows(torch.zeros(1, dtype=torch.int64), device))
    if with_negative:
        negative: Mapping[str, Any] = network.rows(torch.full((1,), -1), device)
        found |= {f"negative_{name}": value for name, value in negative.items()}
    return found


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
