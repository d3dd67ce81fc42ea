"""A pipeline's student for the stock library: a pipeline's folder or a LoRA's file, exact on a grid of N steps."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.flow.path import uniform_times
from pipeline.networks.diffusers.adapter import adapter_layers
from pipeline.networks.diffusers.family import pack, unpack
from pipeline.networks.diffusers.fold import folds, into_stock
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.weights import load_weights, quiet
from pipeline.teachers.diffusers.folder import DATA, INDEX, PipelineFolder, open_folder
from pipeline.teachers.diffusers.stock import assemble, call_arguments
from pipeline.teachers.loading import DIFFUSERS
from trainer.checkpoints.model import Model
from trainer.distillation.student import Student, sample

FORMATS = ("diffusers", "lora")
LORA_FILE = "pytorch_lora_weights.safetensors"
TOLERANCE = 1e-4  # of the largest value of a sample
# Those that step from t to s by the velocity on an even grid; which one a pipeline takes depends on what it passes.
SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("FlowMapEulerDiscreteScheduler", {"shift": 1.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0, "use_dynamic_shifting": False}),
)


def write_pipeline(model: Model, network: DiffusersNetwork, num_steps: int, out: Path) -> tuple[str, float]:
    """Write a stock pipeline that draws the student's samples of `num_steps` even steps; an adapter is used up.

    Returns the scheduler that it draws by, and its error: the largest difference from Algorithm 1 (arXiv 2502.16972),
    relative to the largest value.

    Raises:
        BadInput: the student is of no flow, its teacher has gone, or its grid has more steps than its embedder is wide.
        WorkFailed: no stock scheduler draws the same.
    """
    folder, times = _check(model, network, num_steps), uniform_times(num_steps)
    wanted = _algorithm_1(network, times)
    stock: Any = into_stock(copy.deepcopy(network), list(folds(network, times)))
    _copy_parts(folder, out)
    stock.save_pretrained(out / folder.family.folder)
    kind = folder.family.network

    def drawn(scheduler: Any) -> Tensor:
        scheduler.save_pretrained(out / "scheduler")
        loaded = getattr(_diffusers(), type(scheduler).__name__).from_pretrained(out, subfolder="scheduler")
        return _draw(assemble(folder, load_weights(kind, out / folder.family.folder), loaded), network, num_steps)

    name, error = _best_scheduler(drawn, wanted)
    index = dict(folder.index) | {"scheduler": ["diffusers", name]}
    (out / INDEX).write_text(json.dumps(index, indent=2))
    return name, error


def write_lora(model: Model, network: DiffusersNetwork, num_steps: int, out: Path) -> tuple[str, float]:
    """Write one file for `load_lora_weights`: the student's adapter, and its second time as one.

    Returns as `write_pipeline`.

    Raises:
        BadInput, WorkFailed: as `write_pipeline`; or all weights of the student were trained.
    """
    if network.config.adapter is None:
        raise BadInput("--format lora: wanted a student trained as a lora; all its weights were: take diffusers")
    folder, times = _check(model, network, num_steps), uniform_times(num_steps)
    wanted = _algorithm_1(network, times)
    layers = adapter_layers(network.model) | {fold.layer: (fold.a, fold.b) for fold in folds(network, times)}
    save_file(dict(_named(folder, layers)), out / LORA_FILE, metadata={"format": "pt"})

    def drawn(scheduler: Any) -> Tensor:
        stock = load_weights(folder.family.network, folder.path / folder.family.folder)
        pipeline = assemble(folder, stock, scheduler)
        with quiet():
            pipeline.load_lora_weights(out, weight_name=LORA_FILE)
        return _draw(pipeline, network, num_steps)

    return _best_scheduler(drawn, wanted)


def _check(model: Model, network: DiffusersNetwork, num_steps: int) -> PipelineFolder:
    """The teacher's folder. Raises `BadInput` if the student cannot be a stock pipeline of `num_steps` steps."""
    if network.config.schedule is not None:
        raise BadInput(f"{model.weights}: wanted the student of a flow; its model predicts noise at whole steps")
    if model.info.teacher is None or not model.info.teacher.startswith(DIFFUSERS):
        raise BadInput(f"{model.weights}: wanted the student of a pipeline of diffusers; its teacher is not named")
    width = min(fold.a.shape[1] for fold in folds(network, uniform_times(1)))
    if num_steps > width:
        raise BadInput(f"--steps {num_steps}: wanted {width} at most, the width of its timestep embedder")
    return open_folder(model.info.teacher.removeprefix(DIFFUSERS))


def _algorithm_1(network: DiffusersNetwork, times: Tensor) -> Tensor:
    label = torch.zeros(1, dtype=torch.int64)
    return sample(Student(network), _noise(network), times, label)


def _noise(network: DiffusersNetwork) -> Tensor:
    return torch.randn(1, *network.config.shape, generator=torch.Generator().manual_seed(0))


def _best_scheduler(drawn: Callable[[Any], Tensor], wanted: Tensor) -> tuple[str, float]:
    """The first scheduler by which `drawn` makes the `wanted` samples, and the error.

    Raises:
        WorkFailed: there is none.
    """
    complaint = ""
    for name, settings in SCHEDULERS:
        try:
            with quiet():
                found = drawn(getattr(_diffusers(), name)(**settings))
        except (TypeError, ValueError) as problem:  # the pipeline passes what this scheduler does not take
            complaint = one_line(problem)[:200]
            continue
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if error <= TOLERANCE:
            return name, error
        complaint = f"{error:.1e} of the largest value off"
    raise WorkFailed(f"wanted what Algorithm 1 draws from a stock pipeline; it draws others ({complaint})")


@torch.no_grad()
def _draw(pipeline: Any, network: DiffusersNetwork, num_steps: int) -> Tensor:
    """The latents that a stock pipeline draws for label 0."""
    noise, is_packed = _noise(network), network.family.is_packed
    scale = network.family.guidance if network.family.embeds_guidance else 1.0
    arguments = call_arguments(pipeline, network, scale, num_steps)
    latents: Tensor = pipeline(**arguments | {"latents": pack(noise) if is_packed else noise}).images
    return unpack(latents, noise.shape) if is_packed else latents


def _copy_parts(folder: PipelineFolder, out: Path) -> None:
    """Copy what the student shares with its teacher: text encoders, tokenizers, the VAE."""
    for part in sorted(path for path in folder.path.iterdir() if path.is_dir()):
        if part.name not in (folder.family.folder, "scheduler"):
            for path in sorted(path for pattern in DATA for path in part.glob(pattern)):
                (out / part.name).mkdir(exist_ok=True)
                shutil.copyfile(path, out / part.name / path.name)


def _named(folder: PipelineFolder, layers: dict[str, tuple[Tensor, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a LoRA by the names that diffusers reads; all of one rank, filled up with zeros."""
    rank = max(len(a) for a, _ in layers.values())
    for name, (a, b) in layers.items():
        prefix, missing = f"{folder.family.folder}.{name}", rank - len(a)
        yield f"{prefix}.lora_A.weight", F.pad(a.detach().float(), (0, 0, 0, missing)).contiguous()
        yield f"{prefix}.lora_B.weight", F.pad(b.detach().float(), (0, missing)).contiguous()


def _diffusers() -> Any:
    import diffusers

    return diffusers
