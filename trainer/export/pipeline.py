"""A pipeline's student for the stock library: a pipeline's folder or a LoRA's file, exact on a grid of N steps."""

import inspect
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.flow.path import step_times
from pipeline.networks.diffusers.adapter import adapter_layers, merge_adapter
from pipeline.networks.diffusers.family import pack, unpack
from pipeline.networks.diffusers.fold import folds, into_stock
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.weights import load_weights, quiet
from pipeline.teachers.diffusers.folder import DATA, INDEX, PipelineFolder, open_folder
from pipeline.teachers.diffusers.stock import assemble, call_arguments
from pipeline.teachers.loading import DIFFUSERS
from trainer.checkpoints.model import Model
from trainer.distillation.student import Student, sample_path
from trainer.export import any_step
from trainer.export.schedulers import Candidate, candidates

ANY_STEP = "any-step"
ANY_STEPS = (1, 2, 4, 8)  # at which it is compared
EXACT = ("diffusers", "lora")  # in one number of steps
FORMATS = (*EXACT, ANY_STEP)
LORA_FILE = "pytorch_lora_weights.safetensors"
SCHEDULER = "scheduler"  # its folder
TOLERANCE = 1e-4  # of the largest value of a sample


class Target(NamedTuple):
    """A scheduler, and the student's samples that an export is to draw by it."""

    scheduler: Candidate
    samples: Tensor


class Written(NamedTuple):
    """The scheduler that an export draws by, and its error relative to the largest value of a sample."""

    scheduler: Candidate
    error: float
    code: any_step.Code | None = None  # that it brings along


def write(kind: str, model: Model, network: DiffusersNetwork, num_steps: int | None, out: Path) -> Written:
    """Write the student as the format `kind` to the folder `out`; raises as the function of the format."""
    if kind == ANY_STEP:
        return write_any_step(model, network, out)
    assert num_steps is not None
    return (write_lora if kind == "lora" else write_pipeline)(model, network, num_steps, out)


def write_pipeline(model: Model, network: DiffusersNetwork, num_steps: int, out: Path) -> Written:
    """Write a stock pipeline that draws the student's samples of `num_steps` steps; `network` is used up.

    Returns the scheduler that it draws by, and how far it is from Algorithm 1 (arXiv 2502.16972).

    Raises:
        BadInput: the student's teacher has gone, or its grid has more steps than its embedder is wide.
        WorkFailed: no stock scheduler draws the same.
    """
    folder, times = _check(model, network, num_steps), _times(model, network, num_steps)
    targets = _targets(model, network, [times])
    found = list(folds(network, times, _told(network, targets, num_steps)))
    _copy_parts(folder, out)
    stock: Any = into_stock(network, found)
    stock.save_pretrained(out / folder.family.folder)

    def drawn(scheduler: Any) -> Tensor:
        weights = load_weights(folder.family.network, out / folder.family.folder)
        return _draw(assemble(folder, weights, _saved(scheduler, out)), network, num_steps)

    written = _best_scheduler(targets, drawn)
    index = dict(folder.index) | {SCHEDULER: ["diffusers", written.scheduler.name]}
    (out / INDEX).write_text(json.dumps(index, indent=2))
    return written


def write_lora(model: Model, network: DiffusersNetwork, num_steps: int, out: Path) -> Written:
    """Write one file for `load_lora_weights`, the student's adapter and its second time as one, and the scheduler.

    Returns as `write_pipeline`.

    Raises:
        BadInput, WorkFailed: as `write_pipeline`; or all weights of the student were trained, or its pipeline loads no
            LoRA.
    """
    if network.config.adapter is None:
        raise BadInput("--format lora: wanted a student trained as a lora; all its weights were: take diffusers")
    folder, times = _check(model, network, num_steps), _times(model, network, num_steps)
    if not hasattr(getattr(_diffusers(), folder.pipeline), "load_lora_weights"):
        raise BadInput(f"--format lora: a {folder.pipeline} loads no LoRA: take diffusers")
    targets = _targets(model, network, [times])
    found = folds(network, times, _told(network, targets, num_steps))
    layers = adapter_layers(network.model) | {fold.layer: (fold.a, fold.b) for fold in found}
    save_file(dict(_named(folder, layers)), out / LORA_FILE, metadata={"format": "pt"})

    def drawn(scheduler: Any) -> Tensor:
        stock = load_weights(folder.family.network, folder.path / folder.family.folder)
        pipeline = assemble(folder, stock, _saved(scheduler, out))
        with quiet():
            pipeline.load_lora_weights(out, weight_name=LORA_FILE)
        return _draw(pipeline, network, num_steps)

    return _best_scheduler(targets, drawn)


def write_any_step(model: Model, network: DiffusersNetwork, out: Path) -> Written:
    """Write a pipeline whose network, by code beside it, takes any number of steps; an adapter is used up.

    Returns as `write_pipeline`, the error being the largest of several numbers of steps.

    Raises:
        BadInput: the student's teacher has gone, or its model predicts noise.
        WorkFailed: no stock scheduler draws the same.
    """
    if network.config.schedule is not None:
        raise BadInput(
            f"--format {ANY_STEP}: wanted the student of a flow; this one predicts noise, for which schedulers are "
            "made for one number of steps: take --format diffusers --steps N"
        )
    folder = _check(model, network, 1)
    part, shift = folder.family.folder, model.info.step_shift
    targets = _targets(model, network, [_times(model, network, n) for n in ANY_STEPS])
    _copy_parts(folder, out)
    if network.config.adapter is not None:
        merge_adapter(network.model)
    model_of_two_times: Any = network.model
    model_of_two_times.save_pretrained(out / part)
    codes: list[any_step.Code] = []

    def drawn(scheduler: Any) -> Tensor:
        pipeline = assemble(folder, model_of_two_times, _saved(scheduler, out))
        call = call_arguments(pipeline, network, _own_guidance(network), 2)
        told = any_step.told_by(pipeline, model_of_two_times, shift, **call)
        codes[:] = [any_step.write_code(out, network.family, folder.pipeline, told, shift)]
        loaded, samples = any_step.load_network(out, part, codes[0]), []
        for num_steps in ANY_STEPS:
            loaded.num_steps = num_steps
            samples.append(_draw(assemble(folder, loaded, scheduler), network, num_steps))
        return torch.cat(samples)

    written = _best_scheduler(targets, drawn)
    own = {
        "_class_name": [codes[0].pipeline, codes[0].pipeline_class],
        part: [codes[0].network, codes[0].network_class],
    }
    index = dict(folder.index) | {SCHEDULER: ["diffusers", written.scheduler.name]} | own
    (out / INDEX).write_text(json.dumps(index, indent=2))
    return written._replace(code=codes[0])


def _check(model: Model, network: DiffusersNetwork, num_steps: int) -> PipelineFolder:
    """The teacher's folder. Raises `BadInput` if the student cannot be a stock pipeline of `num_steps` steps."""
    folder = teacher_folder(model)
    width = min(fold.a.shape[1] for fold in folds(network, _times(model, network, 1)))
    if num_steps > width:
        raise BadInput(f"--steps {num_steps}: wanted {width} at most, the width of its timestep embedder")
    return folder


def teacher_folder(model: Model) -> PipelineFolder:
    """The folder of the student's teacher.

    Raises:
        BadInput: it is not named, or has gone.
    """
    if model.info.teacher is None or not model.info.teacher.startswith(DIFFUSERS):
        raise BadInput(f"{model.weights}: wanted the student of a pipeline of diffusers; its teacher is not named")
    return open_folder(model.info.teacher.removeprefix(DIFFUSERS))


def _times(model: Model, network: DiffusersNetwork, num_steps: int) -> Tensor:
    return step_times(num_steps, network.config.t_start, shift=model.info.step_shift)


def _told(network: DiffusersNetwork, targets: Sequence[Target], num_steps: int) -> Tensor | None:
    """What a pipeline tells a network that predicts noise: the steps of its scheduler. A flow's is what we tell it."""
    if network.config.schedule is None:
        return None
    scheduler = targets[0].scheduler.make()
    scheduler.set_timesteps(num_steps)
    steps: Tensor = scheduler.timesteps
    return steps


def _targets(model: Model, network: DiffusersNetwork, grids: Sequence[Tensor]) -> list[Target]:
    """What each scheduler is to draw on `grids` of times, before the network is changed."""
    return [
        Target(candidate, torch.cat([_algorithm_1(network, times, candidate.start) for times in grids]))
        for candidate in candidates(network, grids[0], model.info.step_shift)
    ]


def _algorithm_1(network: DiffusersNetwork, times: Tensor, start: float) -> Tensor:
    """The student's sample for label 0, from `start` times the noise."""
    label, noise = torch.zeros(1, dtype=torch.int64), _noise(network)
    return deque(sample_path(Student(network), start * noise, times, label), maxlen=1)[0]


def _noise(network: DiffusersNetwork) -> Tensor:
    return torch.randn(1, *network.config.shape, generator=torch.Generator().manual_seed(0))


def _best_scheduler(targets: Sequence[Target], drawn: Callable[[Any], Tensor]) -> Written:
    """The first scheduler by which `drawn` makes its target.

    Raises:
        WorkFailed: there is none.
    """
    complaint = ""
    for candidate, wanted in targets:
        try:
            with quiet():
                found = drawn(candidate.make())
        except (TypeError, ValueError) as problem:  # the pipeline passes what this scheduler does not take
            complaint = one_line(problem)[:200]
            continue
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if error <= TOLERANCE:
            return Written(candidate, error)
        complaint = f"{error:.1e} of the largest value off"
    raise WorkFailed(f"wanted what Algorithm 1 draws from a stock pipeline; it draws others ({complaint})")


def _saved(scheduler: Any, out: Path) -> Any:
    """`scheduler`, written into the export and read back."""
    scheduler.save_pretrained(out / SCHEDULER)
    return type(scheduler).from_pretrained(out, subfolder=SCHEDULER)


def _own_guidance(network: DiffusersNetwork) -> float:
    """The guidance that the student is told; that of its teacher's samples it has in itself."""
    return network.family.guidance if network.family.embeds_guidance else 1.0


@torch.no_grad()
def _draw(pipeline: Any, network: DiffusersNetwork, num_steps: int) -> Tensor:
    """The latents, or pixels, that a stock pipeline draws for label 0."""
    noise, is_packed = _noise(network), network.family.is_packed
    arguments = call_arguments(pipeline, network, _own_guidance(network), num_steps)
    with _last_state(pipeline.scheduler) as states:
        # Where a pipeline takes no latents, it draws the same noise by the generator among its arguments.
        takes = "latents" in inspect.signature(type(pipeline).__call__).parameters
        pipeline(**arguments | ({"latents": pack(noise) if is_packed else noise} if takes else {}))
    return unpack(states[0], noise.shape) if is_packed else states[0].reshape(noise.shape)


@contextmanager
def _last_state(scheduler: Any) -> Iterator[deque[Tensor]]:
    """The state after the last step of `scheduler`, of what is done in the block."""
    states: deque[Tensor] = deque(maxlen=1)
    step = scheduler.step

    def recording(*arguments: Any, **options: Any) -> Any:
        found = step(*arguments, **options)
        states.append(found[0])
        return found

    scheduler.step = recording
    yield states


def _copy_parts(folder: PipelineFolder, out: Path) -> None:
    """Copy what the student shares with its teacher: text encoders, tokenizers, the VAE."""
    for part in sorted(path for path in folder.path.iterdir() if path.is_dir()):
        if part.name not in (folder.family.folder, SCHEDULER):
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
